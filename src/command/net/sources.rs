//! Which shadow each client has, and whether the kernel knows it ([`crate::net::source`]).
//!
//! Invariant: while a family's table lives, a shadow means one client. The kernel's map decides: a new
//! element is added only where there is none, also while several processes of the node add some. The
//! process that owns the rules remembers all elements, and writes them again if somebody removes them.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use crate::net::netlink::{self, Family};
use crate::net::source::{Client, RANGES, Side, places};
use crate::net::source_route;
use crate::net::source_table::{self, Pair};

/// What is known of the kernel's tables of sources.
#[derive(Default)]
pub struct Sources {
    /// The clients by shadow. A family without any client has no table.
    clients: BTreeMap<IpAddr, IpAddr>,
    /// The users that may use shadows.
    users: BTreeSet<u32>,
    /// The number of the last change of the kernel's tables at which ours were complete.
    seen: u32,
    /// The earliest time of the next comparison. It takes long where there are many clients.
    next_look: Option<Instant>,
    /// What was logged last.
    fault: Option<String>,
}

impl Sources {
    /// The shadow of each client, for a proxy of this user; `None`: it has none, because its places
    /// are taken, because its answers would not pass this node, or because of a fault, which is logged.
    pub fn answer(&mut self, clients: &[Client], user: u32, is_owner: bool) -> Vec<Option<IpAddr>> {
        let mut shadows = vec![None; clients.len()];
        for family in Family::ALL {
            let own: Vec<usize> = (0..clients.len())
                .filter(|i| Family::of_ip(clients[*i].address) == family)
                .collect();
            if own.is_empty() {
                continue;
            }
            let asked: Vec<Client> = own.iter().map(|i| clients[*i]).collect();
            match self.of_family(family, &asked, user, is_owner) {
                Ok(found) => own.iter().zip(found).for_each(|(i, it)| shadows[*i] = it),
                Err(error) => self.complain(&error),
            }
        }
        shadows
    }

    fn of_family(
        &mut self,
        family: Family,
        clients: &[Client],
        user: u32,
        is_owner: bool,
    ) -> io::Result<Vec<Option<IpAddr>>> {
        if !is_owner {
            // Another process may have replaced the table.
            for (shadow, _) in self.of(family) {
                self.clients.remove(&shadow);
            }
            if !self.read(family)? {
                return Ok(vec![None; clients.len()]);
            }
        }
        for _ in 0..TRIES {
            let (shadows, new) = self.choose(clients)?;
            if new.is_empty() && self.users.contains(&user) {
                return Ok(shadows);
            }
            let added = source_table::add(family, &new, &[user]);
            match added {
                // Another process of the node has given one of these.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                    self.read(family)?;
                    continue;
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound && is_owner => {
                    source_route::add(family)?;
                    self.users.insert(user);
                    let mut all = self.of(family);
                    all.extend(&new);
                    source_table::replace(family, &all, &self.users())?;
                    tracing::info!(?family, "endpoints see the addresses of their clients");
                }
                added => added?,
            }
            self.users.insert(user);
            self.clients.extend(new);
            self.fault = None;
            return Ok(shadows);
        }
        Err(io::ErrorKind::AlreadyExists.into())
    }

    /// Chooses the shadow of each client. Returns those that are new, too.
    fn choose(&self, clients: &[Client]) -> io::Result<(Vec<Option<IpAddr>>, Vec<Pair>)> {
        let mut new = BTreeMap::<IpAddr, IpAddr>::new();
        let mut uplinks = None;
        let mut shadows = Vec::new();
        for client in clients {
            let owner = |place: &IpAddr| self.clients.get(place).or(new.get(place)).copied();
            let found = places(*client)
                .find(|place| owner(place).is_none_or(|owner| owner == client.address));
            let is_new = found.is_some_and(|place| owner(&place).is_none());
            if is_new && !may_have_one(*client, &mut uplinks)? {
                shadows.push(None);
                continue;
            }
            if let Some(place) = found.filter(|_| is_new) {
                new.insert(place, client.address);
            }
            shadows.push(found);
        }
        Ok((shadows, new.into_iter().collect()))
    }

    /// This process owns the rules from now on: takes in what the kernel has, and mends it.
    ///
    /// # Errors
    /// The kernel's.
    pub fn take_over(&mut self) -> io::Result<()> {
        for family in Family::ALL {
            self.read(family)?;
        }
        (self.seen, self.next_look) = (0, None);
        self.look()
    }

    /// Looks whether somebody has removed a route, a table or an element, and mends it. For the owner.
    ///
    /// # Errors
    /// The kernel's.
    pub fn look(&mut self) -> io::Result<()> {
        let begun = Instant::now();
        let used = |family: &Family| !self.of(*family).is_empty();
        let used: Vec<Family> = Family::ALL.into_iter().filter(used).collect();
        for family in &used {
            source_route::add(*family)?;
        }
        if used.is_empty() || self.next_look.is_some_and(|at| begun < at) {
            return Ok(());
        }
        let (now, program) = netlink::last_change()?;
        if now == self.seen {
            return Ok(());
        }
        for family in used {
            let wanted = self.of(family);
            let found = source_table::list(family)?.map(BTreeMap::from_iter);
            let has_all = found.as_ref().is_some_and(|found| {
                let has = |(shadow, client)| found.get(shadow) == Some(client);
                wanted.iter().map(|it| (&it.0, &it.1)).all(has)
            });
            self.clients.extend(found.into_iter().flatten());
            if !has_all {
                tracing::warn!(
                    ?family,
                    program,
                    "somebody has changed the table of sources; writing it again"
                );
                self.clients.extend(wanted);
                source_table::replace(family, &self.of(family), &self.users())?;
            }
        }
        self.seen = now;
        self.next_look = Some(Instant::now() + REST * begun.elapsed().as_millis() as u32);
        Ok(())
    }

    /// Takes in what the kernel's table has. Returns whether there is one.
    fn read(&mut self, family: Family) -> io::Result<bool> {
        let found = source_table::list(family)?;
        let is_there = found.is_some();
        self.clients.extend(found.into_iter().flatten());
        Ok(is_there)
    }

    fn of(&self, family: Family) -> Vec<Pair> {
        let (first, last, _) = RANGES[family as usize];
        let own = self.clients.range(first..=last);
        own.map(|(shadow, client)| (*shadow, *client)).collect()
    }

    fn complain(&mut self, error: &io::Error) {
        let fault = error.to_string();
        if self.fault.as_ref() != Some(&fault) {
            tracing::error!(
                fault,
                "endpoints see the node's address instead of their clients'"
            );
            self.fault = Some(fault);
        }
    }

    fn users(&self) -> Vec<u32> {
        self.users.iter().copied().collect()
    }
}

/// Removes the tables and the routes.
///
/// # Errors
/// The kernel's.
pub fn remove() -> io::Result<()> {
    source_table::remove()?;
    source_route::remove()
}

/// Whether what an endpoint answers to this client passes this node. An endpoint of any node answers
/// the pods of this one by this node. A client from outside is sent to endpoints of this node only.
fn may_have_one(client: Client, uplinks: &mut Option<BTreeSet<u32>>) -> io::Result<bool> {
    let is_host = match client.address {
        IpAddr::V4(address) => !address.is_loopback() && !address.is_link_local(),
        IpAddr::V6(address) => !address.is_loopback() && !address.is_unicast_link_local(),
    };
    if !is_host || client.side == Side::Outside {
        return Ok(is_host);
    }
    let uplinks = match uplinks {
        Some(known) => known,
        None => uplinks.insert(source_route::uplinks(Family::of_ip(client.address))?),
    };
    source_route::is_near(client.address, uplinks)
}

/// How often a choice is tried while others choose, too.
const TRIES: usize = 5;
/// The time between two comparisons, in times that one takes.
const REST: Duration = Duration::from_millis(100);
