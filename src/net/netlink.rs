//! The kernel's tables `ip ebbtide` and `ip6 ebbtide` (nf_tables): they lead a connection from a
//! Service's address to the port on which the proxy listens.
//!
//! Each table has two nat chains, prerouting for pods and other hosts and output for the node itself,
//! and a map for each protocol from (address, port) to (address, port). A further map is for TCP of the
//! node itself alone: only output asks it. The chains' priority is below
//! -100: kube-proxy drops what still has an unknown cluster IP there. A third nat chain, input, only
//! counts what arrives ([`crate::net::passage`]). The kernel asks nat chains about the first packet of
//! a connection only. Every function is one or two system calls and needs CAP_NET_ADMIN. A change is
//! one batch, which the kernel takes whole or not at all.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use netlink_bindings::nftables::{
    Chained, Nfgenmsg, PushExprListAttrs, PushRuleAttrs, PushSetelemListAttrs, Request,
};
use netlink_bindings::traits::Pusher;

use crate::net::exchange::{ask, invalid, send};
use crate::net::rules::{Rules, Step, Transport, difference};

/// Replaces both tables, in one batch. A family without rules gets no table.
///
/// # Errors
/// The kernel's, and that the process lacks CAP_NET_ADMIN. Nothing has changed then.
pub fn replace(rules: &Rules) -> io::Result<()> {
    let steps = difference(&Rules::new(), rules);
    send(|batch| {
        for family in Family::ALL {
            destroy(batch, family, TABLE);
            if steps.iter().any(|step| Family::of(&step.at.1) == family) {
                create(batch, family);
                put_steps(batch, family, &steps);
            }
        }
    })
}

/// Changes the rules in one batch. The tables of the rules' families must be there.
///
/// # Errors
/// As for [`replace`]. `NotFound` or `AlreadyExists`: the table is not as the steps say.
pub fn change(steps: &[Step]) -> io::Result<()> {
    send(|batch| {
        for family in Family::ALL {
            put_steps(batch, family, steps);
        }
    })
}

/// Removes both tables. It is no error that there is none.
///
/// # Errors
/// As for [`replace`].
pub fn remove() -> io::Result<()> {
    send(|batch| {
        Family::ALL
            .iter()
            .for_each(|family| destroy(batch, *family, TABLE))
    })
}

/// The rules that the kernel has now, and the families that have a table.
///
/// # Errors
/// The kernel's, and an element that this program cannot have written.
pub fn list() -> io::Result<(Rules, Vec<Family>)> {
    let (mut rules, mut families) = (Rules::new(), Vec::new());
    for family in Family::ALL {
        let mut has_all = true;
        for transport in TRANSPORTS {
            match list_map(family, transport, &mut rules) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => has_all = false,
                Err(error) => return Err(error),
            }
        }
        if has_all {
            families.push(family);
        }
    }
    Ok((rules, families))
}

/// The number of the last change of any table of this network namespace, and the program that made
/// it.
///
/// # Errors
/// The kernel's.
pub fn last_change() -> io::Result<(u32, String)> {
    let mut request = Request::new().op_getgen_dump(&Nfgenmsg::new());
    request.encode();
    let mut found = None;
    ask(&request, |(_, attributes)| {
        let id = attributes.get_id().map_err(invalid)?;
        let program = attributes.get_proc_name().map_err(invalid)?;
        found = Some((id, program.to_string_lossy().into_owned()));
        Ok(())
    })?;
    found.ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
}

/// One table stands for each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    /// IPv4: the table `ip ebbtide`.
    V4,
    /// IPv6: the table `ip6 ebbtide`.
    V6,
}

impl Family {
    /// Both families.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// The family of an address with its port.
    pub fn of(address: &SocketAddr) -> Self {
        Self::of_ip(address.ip())
    }

    /// The family of an address.
    pub fn of_ip(address: IpAddr) -> Self {
        match address.is_ipv4() {
            true => Self::V4,
            false => Self::V6,
        }
    }

    /// `AF_INET` or `AF_INET6`.
    pub(super) const fn number(self) -> u8 {
        self.either(2, 10) as u8
    }

    pub(super) const fn address_length(self) -> u32 {
        self.either(4, 16)
    }

    /// Where a packet's destination stands in its header.
    const fn destination(self) -> u32 {
        self.either(16, 24)
    }

    /// What `nft list` reads a key as: an address (7 or 8), then a port (13).
    const fn key_type(self) -> u32 {
        self.either(7 << 6 | 13, 8 << 6 | 13)
    }

    pub(super) const fn either(self, v4: u32, v6: u32) -> u32 {
        match self {
            Self::V4 => v4,
            Self::V6 => v6,
        }
    }

    pub(super) fn header(self) -> Nfgenmsg {
        let mut header = Nfgenmsg::new();
        header.nfgen_family = self.number();
        header
    }
}

pub(super) const TABLE: &[u8] = b"ebbtide";
/// The chain that leads pods and other hosts, and the one that counts what arrives of them.
pub(super) const LEADS: &[u8] = b"prerouting";
pub(super) const COUNTS: &[u8] = b"input";
/// Each chain has one rule for each protocol, and output one for the node's own TCP.
pub(super) const RULES: usize = CHAINS.len() * 2 + 1;
/// `NF_INET_PRE_ROUTING`, `NF_INET_LOCAL_IN` and `NF_INET_LOCAL_OUT`.
const CHAINS: [(&[u8], u32); 3] = [(LEADS, 0), (COUNTS, 1), (OUTPUT, 3)];
const OUTPUT: &[u8] = b"output";
const TRANSPORTS: [Transport; 3] = [Transport::Tcp, Transport::Udp, Transport::Own];

const fn map_of(transport: Transport) -> &'static [u8] {
    match transport {
        Transport::Tcp => b"tcp",
        Transport::Udp => b"udp",
        Transport::Own => b"own",
    }
}

/// Removes a table that may be absent: it is made first if it is. (The kernel's own command for
/// this is younger than some kernels in use.)
pub(super) fn destroy(batch: &mut Chained<'static>, family: Family, table: &[u8]) {
    make_table(batch, family, table);
    let mut gone = batch.request().op_deltable_do(&family.header());
    gone.encode().push_name_bytes(table);
}

/// Makes a table, if it is absent.
pub(super) fn make_table(batch: &mut Chained<'static>, family: Family, table: &[u8]) {
    let request = batch.request().set_create();
    let mut made = request.op_newtable_do(&family.header());
    made.encode().push_name_bytes(table);
}

fn create(batch: &mut Chained<'static>, family: Family) {
    const PRIORITY: i32 = -105;
    let header = family.header();
    make_table(batch, family, TABLE);
    for (id, transport) in (1..).zip(TRANSPORTS) {
        add_map(batch, family, transport, id);
    }
    for (name, hook) in CHAINS {
        let mut chain = batch.request().set_create().op_newchain_do(&header);
        let parts = chain.encode().push_table_bytes(TABLE).push_name_bytes(name);
        let hook = parts.nested_hook().push_num(hook).push_priority(PRIORITY);
        hook.end_nested().push_type_bytes(b"nat");
        drop(chain);
        for transport in TRANSPORTS {
            if transport != Transport::Own || name == OUTPUT {
                add_rule(batch, family, name, transport);
            }
        }
    }
}

fn add_map(batch: &mut Chained<'static>, family: Family, transport: Transport, id: u32) {
    /// `NFT_SET_MAP`
    const IS_MAP: u32 = 8;
    // The kernel pads each part of a key to four bytes.
    let length = family.address_length() + 4;
    let mut map = batch.request().set_create().op_newset_do(&family.header());
    map.encode()
        .push_table_bytes(TABLE)
        .push_name_bytes(map_of(transport))
        .push_flags(IS_MAP)
        .push_key_type(family.key_type())
        .push_key_len(length)
        .push_data_type(family.key_type())
        .push_data_len(length)
        .push_id(id);
}

/// `meta l4proto tcp dnat ip to ip daddr . tcp dport map @tcp`, with a counter of what is found in the
/// map. In the chain that counts, the key is what the connection wanted first, and there is no `dnat`.
fn add_rule(batch: &mut Chained<'static>, family: Family, chain: &[u8], transport: Transport) {
    const L4_PROTOCOL: u32 = 16;
    const EQUAL: u32 = 0;
    const DNAT: u32 = 1;
    let number = transport.number();
    let behind = FIRST + family.address_length() / 4;
    let request = batch.request().set_create().set_append();
    let mut rule = request.op_newrule_do(&family.header());
    let rule = rule
        .encode()
        .push_table_bytes(TABLE)
        .push_chain_bytes(chain);
    let steps = rule.nested_expressions();
    let step = steps.nested_elem().nested_data_meta();
    let step = step.push_dreg(FIRST).push_key(L4_PROTOCOL);
    let steps = step.end_nested().end_nested();
    let step = steps.nested_elem().nested_data_cmp();
    let step = step.push_sreg(FIRST).push_op(EQUAL);
    let step = step.nested_data().push_value(&[number]).end_nested();
    let steps = step.end_nested().end_nested();
    let steps = match chain == COUNTS {
        true => load_first_target(steps, behind),
        false => load_target(steps, family, behind),
    };
    let step = steps.nested_elem().nested_data_lookup();
    let step = step.push_set_bytes(map_of(transport)).push_set_id(FIRST);
    // Version 0.3.5 of the bindings numbers these attributes wrongly: its 2 (`set_id`) is the
    // kernel's source register, and its 3 (`sreg`) the destination (`enum nft_lookup_attributes`).
    let steps = step.push_sreg(FIRST).end_nested().end_nested();
    let step = steps.nested_elem().nested_data_counter();
    let steps = step.push_packets(0).push_bytes(0).end_nested().end_nested();
    if chain == COUNTS {
        steps.end_nested();
        return;
    }
    let step = steps.nested_elem().nested_data_nat();
    let step = step.push_type(DNAT).push_family(family.number().into());
    let step = step.push_reg_addr_min(FIRST).push_reg_proto_min(behind);
    step.end_nested().end_nested().end_nested();
}

/// The expressions of a rule that is being written.
type Steps<'a> = PushExprListAttrs<PushRuleAttrs<&'a mut Vec<u8>>>;

/// `ip daddr . th dport`
fn load_target(steps: Steps<'_>, family: Family, behind: u32) -> Steps<'_> {
    const NETWORK: u32 = 1;
    const TRANSPORT: u32 = 2;
    let step = steps.nested_elem().nested_data_payload();
    let step = step.push_dreg(FIRST).push_base(NETWORK);
    let step = step.push_offset(family.destination());
    let step = step.push_len(family.address_length());
    let steps = step.end_nested().end_nested();
    let step = steps.nested_elem().nested_data_payload();
    let step = step.push_dreg(behind).push_base(TRANSPORT);
    step.push_offset(2).push_len(2).end_nested().end_nested()
}

/// `ct original ip daddr . ct original proto-dst`
fn load_first_target(steps: Steps<'_>, behind: u32) -> Steps<'_> {
    const ORIGINAL: u8 = 0;
    const ADDRESS: u32 = 9;
    const PORT: u32 = 12;
    let step = steps.nested_elem().nested_data_ct();
    let step = step.push_dreg(FIRST).push_key(ADDRESS);
    let steps = step.push_direction(ORIGINAL).end_nested().end_nested();
    let step = steps.nested_elem().nested_data_ct();
    let step = step.push_dreg(behind).push_key(PORT);
    step.push_direction(ORIGINAL).end_nested().end_nested()
}

/// Puts the steps of this family into the batch: first all that ends, then all that comes.
fn put_steps(batch: &mut Chained<'static>, family: Family, steps: &[Step]) {
    let header = family.header();
    for transport in TRANSPORTS {
        let own = |step: &&Step| step.at.0 == transport && Family::of(&step.at.1) == family;
        let own: Vec<&Step> = steps.iter().filter(own).collect();
        let gone = own.iter().filter(|step| step.before.is_some());
        let gone: Vec<_> = gone.map(|step| (step.at.1, None)).collect();
        for some in gone.chunks(IN_A_MESSAGE) {
            let mut request = batch.request().op_delsetelem_do(&header);
            fill(request.encode(), transport, some);
        }
        let new = own.iter().filter(|step| step.after.is_some());
        let new: Vec<_> = new.map(|step| (step.at.1, step.after)).collect();
        for some in new.chunks(IN_A_MESSAGE) {
            let request = batch.request().set_create().set_excl();
            let mut request = request.op_newsetelem_do(&header);
            fill(request.encode(), transport, some);
        }
    }
}

fn fill<P: Pusher>(
    list: PushSetelemListAttrs<P>,
    transport: Transport,
    elements: &[(SocketAddr, Option<SocketAddr>)],
) {
    let list = list.push_table_bytes(TABLE);
    let list = list.push_set_bytes(map_of(transport));
    let mut list = list.nested_elements();
    for (at, to) in elements {
        let key = list.nested_elem().nested_key().push_value(&encode(at));
        let mut element = key.end_nested();
        if let Some(to) = to {
            element = element.nested_data().push_value(&encode(to)).end_nested();
        }
        list = element.end_nested();
    }
    list.end_nested();
}

fn list_map(family: Family, transport: Transport, into: &mut Rules) -> io::Result<()> {
    let mut request = Request::new().op_getsetelem_dump(&family.header());
    let list = request.encode().push_table_bytes(TABLE);
    list.push_set_bytes(map_of(transport));
    ask(&request, |(_, attributes)| {
        let Ok(elements) = attributes.get_elements() else {
            return Ok(());
        };
        for element in elements.get_elem() {
            let key = element.get_key().and_then(|it| it.get_value());
            let data = element.get_data().and_then(|it| it.get_value());
            let key = decode(family, key.map_err(invalid)?);
            let data = decode(family, data.map_err(invalid)?);
            let (at, to) = Option::zip(key, data).ok_or(io::ErrorKind::InvalidData)?;
            into.insert((transport, at), to);
        }
        Ok(())
    })
}

/// Address, port, two bytes of nothing.
fn encode(address: &SocketAddr) -> Vec<u8> {
    let mut bytes = match address.ip() {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    };
    bytes.extend(address.port().to_be_bytes());
    bytes.extend([0; 2]);
    bytes
}

fn decode(family: Family, bytes: &[u8]) -> Option<SocketAddr> {
    let (address, port) = bytes.split_at_checked(family.address_length() as usize)?;
    let address = match family {
        Family::V4 => Ipv4Addr::from(<[u8; 4]>::try_from(address).ok()?).into(),
        Family::V6 => Ipv6Addr::from(<[u8; 16]>::try_from(address).ok()?).into(),
    };
    let port = u16::from_be_bytes(*port.first_chunk()?);
    Some(SocketAddr::new(address, port))
}

/// `NFT_REG32_00`: the first of the registers of four bytes.
const FIRST: u32 = 8;
/// An error repeats its message. With this many elements, it fits into one read of answers.
pub(super) const IN_A_MESSAGE: usize = 100;
