//! Shadow addresses: the proxy connects to an endpoint from the shadow of its client, and the kernel
//! writes the client's own address in its place. So the endpoint sees its client.
//!
//! Here is which shadows a client may have, without the kernel. A client has a few places, and gets
//! the first that is its own or free. No place is ever taken away: so it is always the same one,
//! whichever process decides, and no connection has another client's name.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};

/// A client that wants a shadow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Client {
    /// Its own address.
    pub address: IpAddr,
    /// Where it came from.
    pub side: Side,
}

/// Clients from outside can be any number, and some choose their address. So they have places of
/// their own, and take none from pods.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Side {
    /// It has asked for a cluster IP.
    Inside,
    /// It has asked for any other address.
    Outside,
}

/// The shadows that a client may have, in the order in which they are tried.
pub fn places(client: Client) -> impl Iterator<Item = IpAddr> {
    let low = match client.address {
        IpAddr::V4(address) => address.to_bits() as u16,
        IpAddr::V6(address) => address.to_bits() as u16,
    };
    (0..TRIES).map(move |step| {
        let place = u32::from(low.wrapping_add(step))
            | match client.side {
                Side::Inside => 0,
                Side::Outside => 1 << 16,
            };
        match client.address {
            IpAddr::V4(_) => Ipv4Addr::from_bits(FIRST_V4.to_bits() | place).into(),
            IpAddr::V6(_) => Ipv6Addr::from_bits(FIRST_V6.to_bits() | u128::from(place)).into(),
        }
    })
}

/// The first and the last shadow of each family, and the length of their common prefix: IPv4, IPv6.
/// 198.18.0.0/15 is for measurements inside one network (RFC 2544), and no site's own. The other is a
/// random unique local prefix (RFC 4193).
pub const RANGES: [(IpAddr, IpAddr, u8); 2] = [
    (IpAddr::V4(FIRST_V4), IpAddr::V4(LAST_V4), 15),
    (IpAddr::V6(FIRST_V6), IpAddr::V6(LAST_V6), 111),
];
/// How many shadows a family has.
pub const SHADOWS: u32 = 1 << 17;
const FIRST_V4: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 0);
const LAST_V4: Ipv4Addr = Ipv4Addr::new(198, 19, 255, 255);
const FIRST_V6: Ipv6Addr = Ipv6Addr::new(0xfdeb, 0xb71d, 0xe6a5, 0, 0, 0, 0, 0);
const LAST_V6: Ipv6Addr = Ipv6Addr::new(0xfdeb, 0xb71d, 0xe6a5, 0, 0, 0, 1, 0xffff);
/// The pods of a node differ in their last bits, so most clients have their first place.
const TRIES: u16 = 8;

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    fn client(address: &str, side: Side) -> Client {
        Client {
            address: address.parse().unwrap(),
            side,
        }
    }

    #[test]
    fn a_client_has_eight_places_of_its_family_and_side_that_its_last_bits_choose() {
        let first = |address, side| places(client(address, side)).next().unwrap().to_string();
        assert_eq!(first("10.244.3.9", Side::Inside), "198.18.3.9");
        assert_eq!(first("10.245.3.9", Side::Outside), "198.19.3.9");
        assert_eq!(first("fd00:244::3:9", Side::Inside), "fdeb:b71d:e6a5::9");
        assert_eq!(first("fd00:244::9", Side::Outside), "fdeb:b71d:e6a5::1:9");
        for (address, family) in [("10.0.255.253", 0), ("fd00::ffff", 1)] {
            for side in [Side::Inside, Side::Outside] {
                let all: Vec<_> = places(client(address, side)).collect();
                assert_eq!(all.len(), 8);
                let (from, to, _) = RANGES[family];
                assert!(all.iter().all(|it| (from..=to).contains(it)), "{all:?}");
                let other = match side {
                    Side::Inside => Side::Outside,
                    Side::Outside => Side::Inside,
                };
                assert!(!places(client(address, other)).any(|it| all.contains(&it)));
            }
        }
    }

    /// In any order of clients, and by any process: no client has the place of another one.
    #[test]
    fn a_place_is_given_once_and_its_client_finds_it_again() {
        let mut taken = HashMap::<IpAddr, IpAddr>::new();
        let mut take = |address: IpAddr| {
            let client = Client {
                address,
                side: Side::Inside,
            };
            places(client).find(|place| *taken.entry(*place).or_insert(address) == address)
        };
        // Nine clients with the same last bits, and a neighbour of theirs.
        let clients = (0..9).map(|net| IpAddr::from([10, net, 0, 7]));
        let clients: Vec<IpAddr> = clients.chain([IpAddr::from([10, 0, 0, 10])]).collect();
        let first: Vec<_> = clients.iter().map(|it| take(*it)).collect();
        assert_eq!(first.iter().filter(|it| it.is_some()).count(), 9);
        assert_eq!(first[8], None, "its places are taken");
        assert_eq!(first[9], "198.18.0.15".parse().ok(), "the next free one");
        let again: Vec<_> = clients.iter().rev().map(|it| take(*it)).collect();
        assert!(again.iter().rev().eq(first.iter()));
    }
}
