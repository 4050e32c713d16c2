//! The kernel's tables `ip ebbtide-sources` and `ip6 ebbtide-sources`: they write a client's address in
//! the place of its shadow ([`crate::net::source`]).
//!
//! Each has a map from shadow to client, a set of the users that may use shadows, and three chains:
//! - `name`: a new connection of such a user from a shadow gets the client's address;
//! - `lost`: nothing leaves with a shadow as its source;
//! - `guard`: nothing that comes from outside reaches a shadow, because every program of the node would
//!   be found there. What an endpoint answers still has the client's address at this place.
//!
//! Elements are never removed, and never given to another client, while the table is there.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netlink_bindings::nftables::{
    Chained, PushExprListAttrs, PushRuleAttrs, PushSetelemListAttrs, Request,
};
use netlink_bindings::traits::Pusher;

use crate::net::exchange::{ask, invalid, send};
use crate::net::netlink::{Family, IN_A_MESSAGE, destroy, make_table};
use crate::net::source::RANGES;

/// A shadow and its client.
pub type Pair = (IpAddr, IpAddr);

/// Replaces the family's table by one with these elements, in one batch. Connections under way keep
/// their names.
///
/// # Errors
/// As for [`crate::net::netlink::replace`].
pub fn replace(family: Family, pairs: &[Pair], users: &[u32]) -> io::Result<()> {
    send(|batch| {
        destroy(batch, family, TABLE);
        create(batch, family);
        put(batch, family, pairs, users);
    })
}

/// Adds elements of one family.
///
/// # Errors
/// As for [`crate::net::netlink::change`]. `AlreadyExists`: a shadow belongs to another client.
pub fn add(family: Family, pairs: &[Pair], users: &[u32]) -> io::Result<()> {
    send(|batch| put(batch, family, pairs, users))
}

/// Removes both tables. It is no error that there is none.
///
/// # Errors
/// As for [`crate::net::netlink::replace`].
pub fn remove() -> io::Result<()> {
    send(|batch| {
        Family::ALL
            .iter()
            .for_each(|family| destroy(batch, *family, TABLE))
    })
}

/// All elements of a family's table; `None`: there is no table.
///
/// # Errors
/// The kernel's, and an element that this program cannot have written.
pub fn list(family: Family) -> io::Result<Option<Vec<Pair>>> {
    let mut request = Request::new().op_getsetelem_dump(&family.header());
    let list = request.encode().push_table_bytes(TABLE);
    list.push_set_bytes(SOURCES);
    let mut pairs = Vec::new();
    let found = ask(&request, |(_, attributes)| {
        let Ok(elements) = attributes.get_elements() else {
            return Ok(());
        };
        for element in elements.get_elem() {
            let key = element.get_key().and_then(|it| it.get_value());
            let data = element.get_data().and_then(|it| it.get_value());
            let key = decode(family, key.map_err(invalid)?);
            let data = decode(family, data.map_err(invalid)?);
            pairs.push(Option::zip(key, data).ok_or(io::ErrorKind::InvalidData)?);
        }
        Ok(())
    });
    match found {
        Ok(()) => Ok(Some(pairs)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

const TABLE: &[u8] = b"ebbtide-sources";
const SOURCES: &[u8] = b"sources";
const USERS: &[u8] = b"users";

fn create(batch: &mut Chained<'static>, family: Family) {
    make_table(batch, family, TABLE);
    add_sets(batch, family);
    add_chain(batch, family, &NAME, |steps| {
        let steps = in_range(steps, family, Field::Source);
        let steps = load_meta(steps, SOCKET_USER);
        let step = steps.nested_elem().nested_data_lookup();
        let step = step.push_set_bytes(USERS).push_set_id(REGISTER);
        let steps = step.end_nested().end_nested();
        let steps = load(steps, family, Field::Source);
        let step = steps.nested_elem().nested_data_lookup();
        // For the numbers of these attributes, see `crate::net::netlink`.
        let step = step.push_set_bytes(SOURCES).push_set_id(REGISTER);
        let steps = step.push_sreg(REGISTER).end_nested().end_nested();
        let step = steps.nested_elem().nested_data_nat();
        let step = step.push_type(SNAT).push_family(family.number().into());
        step.push_reg_addr_min(REGISTER).end_nested().end_nested()
    });
    add_chain(batch, family, &LOST, |steps| {
        drop_it(in_range(steps, family, Field::Source))
    });
    add_chain(batch, family, &GUARD, |steps| {
        let steps = in_range(steps, family, Field::Destination);
        let steps = load_meta(steps, INCOMING);
        drop_it(compare(steps, NOT_EQUAL, &LOOPBACK.to_ne_bytes()))
    });
}

/// The map and the set. They grow with their elements, of which there are no more than shadows.
fn add_sets(batch: &mut Chained<'static>, family: Family) {
    /// `NFT_SET_MAP`
    const IS_MAP: u32 = 8;
    /// What `nft list` reads a user as. An address is 7 or 8.
    const USER: u32 = 24;
    let (kind, length) = (family.either(7, 8), family.address_length());
    let header = family.header();
    let mut sources = batch.request().set_create().op_newset_do(&header);
    let set = sources.encode().push_table_bytes(TABLE);
    let set = set.push_name_bytes(SOURCES).push_flags(IS_MAP);
    let set = set.push_key_type(kind).push_key_len(length).push_id(1);
    set.push_data_type(kind).push_data_len(length);
    drop(sources);
    let mut users = batch.request().set_create().op_newset_do(&header);
    let set = users
        .encode()
        .push_table_bytes(TABLE)
        .push_name_bytes(USERS);
    set.push_key_type(USER).push_key_len(4).push_id(2);
}

/// The expressions of a rule that is being written.
type Steps<'a> = PushExprListAttrs<PushRuleAttrs<&'a mut Vec<u8>>>;

/// A chain with one rule.
struct Chain {
    name: &'static [u8],
    kind: &'static [u8],
    hook: u32,
    priority: i32,
}

fn add_chain(
    batch: &mut Chained<'static>,
    family: Family,
    it: &Chain,
    fill: impl for<'a> FnOnce(Steps<'a>) -> Steps<'a>,
) {
    let header = family.header();
    let mut chain = batch.request().set_create().op_newchain_do(&header);
    let parts = chain
        .encode()
        .push_table_bytes(TABLE)
        .push_name_bytes(it.name);
    let hook = parts
        .nested_hook()
        .push_num(it.hook)
        .push_priority(it.priority);
    hook.end_nested().push_type_bytes(it.kind);
    drop(chain);
    let request = batch.request().set_create().set_append();
    let mut rule = request.op_newrule_do(&header);
    let rule = rule
        .encode()
        .push_table_bytes(TABLE)
        .push_chain_bytes(it.name);
    fill(rule.nested_expressions()).end_nested();
}

/// An address in the head of a packet.
#[derive(Clone, Copy)]
enum Field {
    Source,
    Destination,
}

fn load(steps: Steps<'_>, family: Family, field: Field) -> Steps<'_> {
    const NETWORK: u32 = 1;
    let offset = match field {
        Field::Source => family.either(12, 8),
        Field::Destination => family.either(16, 24),
    };
    let step = steps.nested_elem().nested_data_payload();
    let step = step.push_dreg(REGISTER).push_base(NETWORK);
    let step = step.push_offset(offset).push_len(family.address_length());
    step.end_nested().end_nested()
}

fn load_meta(steps: Steps<'_>, key: u32) -> Steps<'_> {
    let step = steps.nested_elem().nested_data_meta();
    let step = step.push_dreg(REGISTER).push_key(key);
    step.end_nested().end_nested()
}

fn compare<'a>(steps: Steps<'a>, how: u32, with: &[u8]) -> Steps<'a> {
    let step = steps.nested_elem().nested_data_cmp();
    let step = step.push_sreg(REGISTER).push_op(how);
    let step = step.nested_data().push_value(with).end_nested();
    step.end_nested().end_nested()
}

/// Goes on if the address is a shadow.
fn in_range(steps: Steps<'_>, family: Family, field: Field) -> Steps<'_> {
    const AT_MOST: u32 = 3;
    const AT_LEAST: u32 = 5;
    let (first, last, _) = RANGES[family as usize];
    let steps = compare(load(steps, family, field), AT_LEAST, &encode(first));
    compare(steps, AT_MOST, &encode(last))
}

fn drop_it(steps: Steps<'_>) -> Steps<'_> {
    /// `NFT_REG_VERDICT` and `NF_DROP`
    const VERDICT: u32 = 0;
    const DROP: u32 = 0;
    let step = steps.nested_elem().nested_data_immediate();
    let step = step.push_dreg(VERDICT).nested_data().nested_verdict();
    let step = step.push_code(DROP).end_nested().end_nested();
    step.end_nested().end_nested()
}

fn put(batch: &mut Chained<'static>, family: Family, pairs: &[Pair], users: &[u32]) {
    let header = family.header();
    for some in pairs.chunks(IN_A_MESSAGE) {
        let request = batch.request().set_create().set_excl();
        let mut request = request.op_newsetelem_do(&header);
        let elements = some.iter().map(|(at, to)| (encode(*at), Some(encode(*to))));
        fill(request.encode(), SOURCES, elements);
    }
    for some in users.chunks(IN_A_MESSAGE) {
        // Not exclusive: it is no error that a user is in the set.
        let mut request = batch.request().set_create().op_newsetelem_do(&header);
        let elements = some.iter().map(|user| (user.to_ne_bytes().to_vec(), None));
        fill(request.encode(), USERS, elements);
    }
}

fn fill<P: Pusher>(
    list: PushSetelemListAttrs<P>,
    set: &[u8],
    elements: impl Iterator<Item = (Vec<u8>, Option<Vec<u8>>)>,
) {
    let list = list.push_table_bytes(TABLE).push_set_bytes(set);
    let mut list = list.nested_elements();
    for (key, data) in elements {
        let key = list.nested_elem().nested_key().push_value(&key);
        let mut element = key.end_nested();
        if let Some(data) = data {
            element = element.nested_data().push_value(&data).end_nested();
        }
        list = element.end_nested();
    }
    list.end_nested();
}

fn encode(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

fn decode(family: Family, bytes: &[u8]) -> Option<IpAddr> {
    Some(match family {
        Family::V4 => Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?).into(),
        Family::V6 => Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?).into(),
    })
}

/// `NF_INET_POST_ROUTING`. Before those of others, which are at 100: they would write the node's address.
const NAME: Chain = Chain {
    name: b"name",
    kind: b"nat",
    hook: 4,
    priority: 95,
};
/// Behind the kernel's translation of sources, which is at 100.
const LOST: Chain = Chain {
    name: b"lost",
    kind: b"filter",
    hook: 4,
    priority: 105,
};
/// `NF_INET_PRE_ROUTING`, before the kernel writes the shadow as an answer's destination (-100).
const GUARD: Chain = Chain {
    name: b"guard",
    kind: b"filter",
    hook: 0,
    priority: -300,
};
/// `NFT_REG32_00`
const REGISTER: u32 = 8;
const SNAT: u32 = 0;
/// `NFT_META_SKUID` and `NFT_META_IIF`
const SOCKET_USER: u32 = 10;
const INCOMING: u32 = 4;
const NOT_EQUAL: u32 = 1;
/// The number of `lo` in every network namespace.
const LOOPBACK: u32 = 1;
