//! The routes by which shadow addresses ([`crate::net::source`]) are the node's own: then a program may
//! bind a socket to each without any privilege. Also what the kernel's routes say of a client.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use netlink_bindings::rt_route::{IterableRouteAttrs, PushRouteAttrs, Request, RtmType, Rtmsg};
use netlink_bindings::traits::Pusher;

use crate::net::exchange::{ask, invalid};
use crate::net::netlink::Family;
use crate::net::source::RANGES;

/// Adds the route of a family. It is no error that it is there.
///
/// # Errors
/// The kernel's. `AddrInUse`: somebody uses a part of the range.
pub fn add(family: Family) -> io::Result<()> {
    if exists(family)? {
        return Ok(());
    }
    if let Some(other) = user_of_range(family)? {
        let what =
            format!("{other} is in use on this node, and is in the range of shadow addresses");
        return Err(io::Error::new(io::ErrorKind::AddrInUse, what));
    }
    let mut request = Request::new().set_create().op_newroute_do(&header(family));
    attach(family, request.encode());
    ask(&request, |_| Ok(()))
}

/// Removes both routes. It is no error that there is none.
///
/// # Errors
/// The kernel's.
pub fn remove() -> io::Result<()> {
    for family in Family::ALL {
        let mut request = Request::new().op_delroute_do(&header(family));
        attach(family, request.encode());
        match ask(&request, |_| Ok(())) {
            Err(error) if !is_absent(&error) => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// Whether the family's route is there: whether its last address is the node's own.
///
/// # Errors
/// The kernel's.
pub fn exists(family: Family) -> io::Result<bool> {
    let (_, last, _) = RANGES[family as usize];
    Ok(way_to(last)?.is_some_and(|way| way.is_local))
}

/// The interfaces that lead to other hosts of a family: there is a gateway behind each.
///
/// # Errors
/// The kernel's.
pub fn uplinks(family: Family) -> io::Result<BTreeSet<u32>> {
    let far = match family {
        Family::V4 => FAR_V4.into(),
        Family::V6 => FAR_V6.into(),
    };
    // A default route with several gateways names none by itself.
    let mut uplinks: BTreeSet<u32> = way_to(far)?.iter().map(|way| way.interface).collect();
    each_route(family, |_, attributes| {
        if has_gateway(&attributes) {
            uplinks.extend(attributes.get_oif());
        }
        Ok(())
    })?;
    Ok(uplinks)
}

/// Whether what is sent to this address reaches a pod of this node, or the node: it leaves neither by
/// a gateway nor by an interface that leads to other hosts.
///
/// # Errors
/// The kernel's.
pub fn is_near(address: IpAddr, uplinks: &BTreeSet<u32>) -> io::Result<bool> {
    let way = way_to(address)?;
    let is_near = |way: &Way| way.is_local || !way.by_gateway && !uplinks.contains(&way.interface);
    Ok(way.as_ref().is_some_and(is_near))
}

/// Where a packet to some address goes.
struct Way {
    is_local: bool,
    by_gateway: bool,
    interface: u32,
}

/// `None`: there is no way.
fn way_to(address: IpAddr) -> io::Result<Option<Way>> {
    let mut header = Rtmsg::new();
    header.rtm_family = Family::of_ip(address).number();
    header.rtm_dst_len = if address.is_ipv4() { 32 } else { 128 };
    let mut request = Request::new().op_getroute_do(&header);
    request.encode().push_dst(address);
    let mut way = None;
    let asked = ask(&request, |(header, attributes)| {
        way = Some(Way {
            is_local: header.rtm_type == RtmType::Local as u8,
            by_gateway: has_gateway(&attributes),
            interface: attributes.get_oif().unwrap_or(0),
        });
        Ok(())
    });
    match asked {
        Err(error) if !is_absent(&error) => Err(error),
        _ => Ok(way),
    }
}

/// A route that others have in the range.
fn user_of_range(family: Family) -> io::Result<Option<IpNet>> {
    let (first, _, length) = RANGES[family as usize];
    let range = IpNet::new(first, length).map_err(invalid)?;
    let mut user = None;
    each_route(family, |header, attributes| {
        let Ok(first) = attributes.get_dst() else {
            return Ok(()); // The default route.
        };
        let other = IpNet::new(first, header.rtm_dst_len).map_err(invalid)?;
        if range.contains(&other) {
            user = Some(other);
        }
        Ok(())
    })?;
    Ok(user)
}

/// Calls this with each route of the family, in all tables.
fn each_route(
    family: Family,
    mut take: impl FnMut(&Rtmsg, IterableRouteAttrs<'_>) -> io::Result<()>,
) -> io::Result<()> {
    let mut header = Rtmsg::new();
    header.rtm_family = family.number();
    let mut request = Request::new().op_getroute_dump(&header);
    request.encode();
    ask(&request, |(header, attributes)| take(&header, attributes))
}

fn has_gateway(attributes: &IterableRouteAttrs<'_>) -> bool {
    attributes.get_gateway().is_ok() || attributes.get_via().is_ok()
}

/// `ip route add local RANGE dev lo`
fn header(family: Family) -> Rtmsg {
    const LOCAL_TABLE: u8 = 255;
    const HOST: u8 = 254;
    /// `RTPROT_STATIC`: an administrator's.
    const STATIC: u8 = 4;
    let mut header = Rtmsg::new();
    header.rtm_family = family.number();
    header.rtm_dst_len = RANGES[family as usize].2;
    header.rtm_table = LOCAL_TABLE;
    header.rtm_protocol = STATIC;
    header.rtm_scope = HOST;
    header.rtm_type = RtmType::Local as u8;
    header
}

fn attach<P: Pusher>(family: Family, attributes: PushRouteAttrs<P>) {
    let (first, _, _) = RANGES[family as usize];
    attributes.push_dst(first).push_oif(LOOPBACK);
}

/// There is no such route, or no way (one of type `blackhole` or `prohibit`), or no such family.
fn is_absent(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let absent = [
        Errno::SRCH,
        Errno::NOENT,
        Errno::NETUNREACH,
        Errno::HOSTUNREACH,
        Errno::AFNOSUPPORT,
        Errno::OPNOTSUPP,
        Errno::INVAL,
        Errno::ACCESS,
    ];
    let number = error.raw_os_error();
    absent.iter().any(|it| Some(it.raw_os_error()) == number)
}

/// The number of `lo` in every network namespace.
const LOOPBACK: u32 = 1;
/// Addresses of no host (RFC 5737, RFC 3849): the way to them is the way to all other hosts.
const FAR_V4: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
const FAR_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0xffff, 0, 0, 0, 0, 1);
