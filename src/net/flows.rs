//! The flows that the kernel remembers (connection tracking): how many, and the end of UDP flows.
//!
//! The kernel looks at a rule for the first datagram of a flow only, and leads all others after it. A
//! client that goes on sending from one port would never see a rule that has changed since. A TCP
//! connection has an end of its own, so none is ended here.

use std::io;
use std::net::{IpAddr, SocketAddr};

use netlink_bindings::conntrack::{IterableTupleAttrs, Nfgenmsg, Request};

use crate::net::exchange::{ask, ask_as, invalid};
use crate::net::netlink::Family;

/// Ends the flows of which `is_stale` holds: it gets the address that the client has asked, and the
/// one that the flow leads to. Returns how many there were. Reads all flows of the node: 100,000 take
/// about 0.1 s. Needs CAP_NET_ADMIN.
///
/// # Errors
/// The kernel's: it has no connection tracking, or the process may not change it. Some flows may
/// have ended then.
pub fn end(is_stale: impl Fn(SocketAddr, SocketAddr) -> bool) -> io::Result<usize> {
    let mut ended = 0;
    for family in Family::ALL {
        let mut header = Nfgenmsg::new();
        header.nfgen_family = family.number();
        let mut stale = Vec::new();
        ask(&Request::new().op_get_dump(&header), |(_, flow)| {
            let there = flow.get_tuple_orig().map_err(invalid)?;
            let back = flow.get_tuple_reply().map_err(invalid)?;
            if let (Some([client, asked]), Some([leads_to, _])) = (ends(&there), ends(&back))
                && is_stale(asked, leads_to)
            {
                stale.push((client, asked));
            }
            Ok(())
        })?;
        for (client, asked) in stale {
            match end_one(&header, client, asked) {
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

/// The source and the destination of one direction; `None` if it is not UDP.
fn ends(tuple: &IterableTupleAttrs<'_>) -> Option<[SocketAddr; 2]> {
    let (ip, ports) = (tuple.get_tuple_ip().ok()?, tuple.get_tuple_proto().ok()?);
    if ports.get_proto_num().ok()? != UDP {
        return None;
    }
    let (from, to): (IpAddr, IpAddr) = match ip.get_ip_v4_src() {
        Ok(from) => (from.into(), ip.get_ip_v4_dst().ok()?.into()),
        Err(_) => (
            ip.get_ip_v6_src().ok()?.into(),
            ip.get_ip_v6_dst().ok()?.into(),
        ),
    };
    Some([
        SocketAddr::new(from, ports.get_proto_src_port().ok()?),
        SocketAddr::new(to, ports.get_proto_dst_port().ok()?),
    ])
}

/// The bindings have no request for this. It has the attributes of the request for one flow.
fn end_one(header: &Nfgenmsg, client: SocketAddr, asked: SocketAddr) -> io::Result<()> {
    let mut request = Request::new().op_get_do(header);
    let ip = request.encode().nested_tuple_orig().nested_tuple_ip();
    let ip = match (client.ip(), asked.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => ip.push_ip_v4_src(from).push_ip_v4_dst(to),
        (IpAddr::V6(from), IpAddr::V6(to)) => ip.push_ip_v6_src(from).push_ip_v6_dst(to),
        _ => return Err(io::ErrorKind::InvalidInput.into()),
    };
    let ports = ip.end_nested().nested_tuple_proto().push_proto_num(UDP);
    let ports = ports.push_proto_src_port(client.port());
    let ports = ports.push_proto_dst_port(asked.port());
    ports.end_nested().end_nested();
    ask_as(DELETE, &request, |_| Ok(()))
}

const UDP: u8 = 17;
/// `NFNL_SUBSYS_CTNETLINK` and `IPCTNL_MSG_CT_DELETE`.
const DELETE: u16 = 1 << 8 | 2;
