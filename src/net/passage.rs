//! What becomes of connections on their way from another host, or a pod, to the port to which the table
//! leads them: how many were led, and how many arrived. A firewall of the node stands between both.
//!
//! The node's own connections pass over `lo` and are not counted: most firewalls accept them, so they
//! prove nothing. A chain's policy is only a sign, because its rules may accept the port.

use std::io;

use netlink_bindings::nftables::{ExprOps, IterableRuleAttrs, Nfgenmsg, Request};

use crate::net::exchange::{ask, invalid};
use crate::net::netlink::{COUNTS, Family, LEADS, RULES, TABLE};

/// First packets of connections, since the family's table was written. A packet that is sent again
/// because it was dropped counts again.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Passage {
    /// A rule has led them to the proxy, or to the port that refuses.
    pub led: u64,
    /// They have passed all that stands before the port.
    pub arrived: u64,
}

/// What the kernel has counted for a family; `None`: its table is absent, or lacks rules.
///
/// # Errors
/// The kernel's.
pub fn read(family: Family) -> io::Result<Option<Passage>> {
    let mut request = Request::new().op_getrule_dump(&family.header());
    request.encode().push_table_bytes(TABLE);
    let (mut passage, mut rules) = (Passage::default(), 0);
    let asked = ask(&request, |(_, rule)| {
        // Kernels before 4.18 give the rules of all tables.
        let table = rule.get_table().map_err(invalid)?;
        let chain = rule.get_chain().map_err(invalid)?.to_bytes();
        if table.to_bytes() != TABLE {
            return Ok(());
        }
        if let Some(counted) = packets(&rule) {
            rules += 1;
            match chain {
                LEADS => passage.led += counted,
                COUNTS => passage.arrived += counted,
                _ => {}
            }
        }
        Ok(())
    });
    match asked {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok((rules == RULES).then_some(passage)),
    }
}

/// The chains that judge what comes to this host and drop what no rule of theirs accepts, with their
/// tables. Rules of the old kind (iptables-legacy) are not among them.
///
/// # Errors
/// The kernel's.
pub fn dropping_chains() -> io::Result<Vec<String>> {
    /// `NF_INET_LOCAL_IN` and `NF_DROP`
    const INPUT: u32 = 1;
    const DROP: u32 = 0;
    let mut request = Request::new().op_getchain_dump(&Nfgenmsg::new());
    request.encode();
    let mut found = Vec::new();
    ask(&request, |(header, chain)| {
        let hook = chain.get_hook().and_then(|hook| hook.get_num());
        let Some((_, family)) = (FAMILIES.iter()).find(|(it, _)| *it == header.nfgen_family) else {
            return Ok(());
        };
        if hook.is_ok_and(|it| it == INPUT) && chain.get_policy().is_ok_and(|it| it == DROP) {
            let name = chain.get_name().map_err(invalid)?.to_string_lossy();
            let table = chain.get_table().map_err(invalid)?.to_string_lossy();
            found.push(format!("chain {name} of table {family} {table}"));
        }
        Ok(())
    })?;
    Ok(found)
}

fn packets(rule: &IterableRuleAttrs<'_>) -> Option<u64> {
    let steps = rule.get_expressions().ok()?;
    let mut counters = steps.get_elem().filter_map(|step| match step.get_data() {
        Ok(ExprOps::Counter(counter)) => counter.get_packets().ok(),
        _ => None,
    });
    counters.next()
}

/// `NFPROTO_INET`, `NFPROTO_IPV4` and `NFPROTO_IPV6`. A bridge's chains judge other packets.
const FAMILIES: [(u8, &str); 3] = [(1, "inet"), (2, "ip"), (10, "ip6")];
