//! The flows that the kernel remembers (connection tracking): how many, and the end of those that a
//! rule has changed for.
//!
//! The kernel looks at a rule for the first packet of a flow only, and leads all others after it. A UDP
//! client that goes on sending from one port would never see a rule that has changed since. Nor would a
//! TCP client that asked before the rule was there and has had no answer: its SYN, sent again, goes
//! where the first one went. An answered TCP connection has an end of its own and is left alone.

use std::io;
use std::net::{IpAddr, SocketAddr};

use netlink_bindings::conntrack::{IterableTupleAttrs, Nfgenmsg, Request};

use crate::net::exchange::{ask, ask_as, invalid};
use crate::net::netlink::Family;
use crate::net::rules::Transport;

/// Ends the flows of which `is_stale` holds: it gets the address that the client has asked, and the
/// one that the flow leads to. It is asked for unanswered flows, and with `datagrams` for UDP's answered
/// ones, too. Returns how many have ended. With `datagrams` all flows of the node are read: 100,000 take
/// about 0.1 s. Needs CAP_NET_ADMIN.
///
/// # Errors
/// The kernel's: it has no connection tracking, or the process may not change it. Some flows may
/// have ended then.
pub fn end(
    datagrams: bool,
    is_stale: impl Fn((Transport, SocketAddr), SocketAddr) -> bool,
) -> io::Result<usize> {
    let mut ended = 0;
    for family in Family::ALL {
        let mut header = Nfgenmsg::new();
        header.nfgen_family = family.number();
        let mut stale = Vec::new();
        let mut request = Request::new().op_get_dump(&header);
        if !datagrams {
            // A kernel that does not know this sends all.
            request.encode().push_status(0).push_status_mask(ANSWERED);
        }
        ask(&request, |(_, flow)| {
            let there = flow.get_tuple_orig().map_err(invalid)?;
            let back = flow.get_tuple_reply().map_err(invalid)?;
            let Some((transport, [client, asked])) = ends(&there) else {
                return Ok(());
            };
            let is_answered = flow.get_status().unwrap_or(ANSWERED) & ANSWERED != 0;
            if (transport == Transport::Udp || !is_answered)
                && let Some((_, [leads_to, _])) = ends(&back)
                && is_stale((transport, asked), leads_to)
            {
                stale.push((transport, client, asked));
            }
            Ok(())
        })?;
        for (transport, client, asked) in stale {
            match end_one(&header, transport, client, asked) {
                Ok(()) => ended += 1,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(ended)
}

/// How full the kernel's table of flows is. The table is this network's, and its limit may be one of
/// all networks of the machine.
#[derive(Debug, Clone, Copy)]
pub struct Tracked {
    /// The flows in the table.
    pub entries: u64,
    /// The most that it takes.
    pub limit: u64,
    /// Packets that were dropped because their flow got no place, and some for other reasons.
    pub dropped: u64,
}

/// Reads how full the table is.
///
/// # Errors
/// The kernel has no connection tracking.
pub fn tracked() -> io::Result<Tracked> {
    let read = |name: &str| -> io::Result<u64> {
        let text = std::fs::read_to_string(format!("/proc/sys/net/netfilter/nf_conntrack_{name}"))?;
        text.trim().parse().map_err(invalid)
    };
    let mut dropped = 0;
    let mut request = Request::new().op_get_stats_dump(&Nfgenmsg::new());
    request.encode();
    // One answer for each processor.
    ask(&request, |(_, counts)| {
        dropped += u64::from(counts.get_drop().unwrap_or(0));
        Ok(())
    })?;
    Ok(Tracked {
        entries: read("count")?,
        limit: read("max")?,
        dropped,
    })
}

/// The source and the destination of one direction; `None` if it is neither TCP nor UDP.
fn ends(tuple: &IterableTupleAttrs<'_>) -> Option<(Transport, [SocketAddr; 2])> {
    let (ip, ports) = (tuple.get_tuple_ip().ok()?, tuple.get_tuple_proto().ok()?);
    let number = ports.get_proto_num().ok()?;
    let transport = [Transport::Tcp, Transport::Udp]
        .into_iter()
        .find(|it| it.number() == number)?;
    let (from, to): (IpAddr, IpAddr) = match ip.get_ip_v4_src() {
        Ok(from) => (from.into(), ip.get_ip_v4_dst().ok()?.into()),
        Err(_) => (
            ip.get_ip_v6_src().ok()?.into(),
            ip.get_ip_v6_dst().ok()?.into(),
        ),
    };
    let ends = [
        SocketAddr::new(from, ports.get_proto_src_port().ok()?),
        SocketAddr::new(to, ports.get_proto_dst_port().ok()?),
    ];
    Some((transport, ends))
}

/// The bindings have no request for this. It has the attributes of the request for one flow.
fn end_one(
    header: &Nfgenmsg,
    transport: Transport,
    client: SocketAddr,
    asked: SocketAddr,
) -> io::Result<()> {
    let mut request = Request::new().op_get_do(header);
    let ip = request.encode().nested_tuple_orig().nested_tuple_ip();
    let ip = match (client.ip(), asked.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => ip.push_ip_v4_src(from).push_ip_v4_dst(to),
        (IpAddr::V6(from), IpAddr::V6(to)) => ip.push_ip_v6_src(from).push_ip_v6_dst(to),
        _ => return Err(io::ErrorKind::InvalidInput.into()),
    };
    let ports = ip.end_nested().nested_tuple_proto();
    let ports = ports.push_proto_num(transport.number());
    let ports = ports.push_proto_src_port(client.port());
    let ports = ports.push_proto_dst_port(asked.port());
    ports.end_nested().end_nested();
    ask_as(DELETE, &request, |_| Ok(()))
}

/// `IPS_SEEN_REPLY`: something has come back.
const ANSWERED: u32 = 1 << 1;
/// `NFNL_SUBSYS_CTNETLINK` and `IPCTNL_MSG_CT_DELETE`.
const DELETE: u16 = 1 << 8 | 2;
