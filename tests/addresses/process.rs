//! `ebbtide net` as a process: what it writes, when it gives way, and what it leaves behind.

use std::io::{BufRead, BufReader, Write};
use std::net::{IpAddr, SocketAddr};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use ebbtide::net::netlink::{self, Family};
use ebbtide::net::rules::{Answer, Message, Rules, Transport};
use ebbtide::net::source::{Client, Side};
use ebbtide::net::source_table;
use rustix::process::{Pid, Signal, kill_process};

use super::namespace::is_inside;
use crate::support::binary::BINARY;

/// An `ebbtide net` with its socket.
pub struct Net {
    child: Child,
    pub socket: PathBuf,
}

impl Net {
    pub fn start(socket: &Path) -> Self {
        let child = Command::new(BINARY)
            .args(["net", "--socket"])
            .arg(socket)
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap();
        let net = Self {
            child,
            socket: socket.to_owned(),
        };
        until("the socket", || UnixStream::connect(socket).is_ok());
        net
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(
            Pid::from_raw(self.child.id().cast_signed()).unwrap(),
            signal,
        )
        .unwrap();
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    pub fn ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The proxy's side.
struct Proxy(BufReader<UnixStream>);

impl Proxy {
    fn connect(net: &Net) -> Self {
        let stream = UnixStream::connect(&net.socket).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        Self(BufReader::new(stream))
    }

    fn say(&mut self, message: &Message) -> Answer {
        let mut line = serde_json::to_vec(message).unwrap();
        line.push(b'\n');
        self.0.get_mut().write_all(&line).unwrap();
        let mut answer = String::new();
        self.0.read_line(&mut answer).unwrap();
        serde_json::from_str(&answer).unwrap_or_else(|_| panic!("{answer:?}"))
    }

    fn all(&mut self, rules: &Rules) -> Answer {
        let rules = rules
            .iter()
            .map(|((transport, at), to)| (*transport, *at, *to));
        self.say(&Message::All(rules.collect()))
    }
}

pub fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !condition() {
        assert!(
            begun.elapsed() < Duration::from_secs(60),
            "not within 60 s: {what}"
        );
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn rules(ports: &[u16]) -> Rules {
    let to: SocketAddr = "192.0.2.1:15001".parse().unwrap();
    let to6: SocketAddr = "[2001:db8::1]:15001".parse().unwrap();
    let both = ports.iter().flat_map(|port| {
        [
            (
                (
                    Transport::Tcp,
                    SocketAddr::new("10.96.0.7".parse().unwrap(), *port),
                ),
                to,
            ),
            (
                (
                    Transport::Udp,
                    SocketAddr::new("fd00:96::7".parse().unwrap(), *port),
                ),
                to6,
            ),
        ]
    });
    both.collect()
}

fn written() -> Rules {
    netlink::list().unwrap().0
}

#[test]
fn what_the_proxy_says_is_written_and_kept_until_it_has_let_go() {
    if !is_inside("addresses::process::what_the_proxy_says_is_written_and_kept_until_it_has_let_go")
    {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let mut net = Net::start(&folder.path().join("net.sock"));
    let mut proxy = Proxy::connect(&net);
    assert_eq!(proxy.all(&rules(&[80, 81])), Answer::Applied);
    assert_eq!(written(), rules(&[80, 81]));
    let (at, to) = rules(&[82]).pop_first().unwrap();
    let gone = *rules(&[80]).keys().next().unwrap();
    let change = Message::Change(vec![(at.0, at.1, Some(to)), (gone.0, gone.1, None)]);
    assert_eq!(proxy.say(&change), Answer::Applied);
    let mut expected = rules(&[80, 81]);
    expected.insert(at, to);
    expected.remove(&gone);
    assert_eq!(written(), expected);

    // Somebody takes the table away: it comes back.
    netlink::remove().unwrap();
    until("the table", || written() == expected);
    // Somebody changes one rule.
    let mut other = expected.clone();
    other.insert(at, "192.0.2.1:9".parse().unwrap());
    netlink::replace(&other).unwrap();
    until("the rule", || written() == expected);

    // The proxy crashes and comes again, with fewer rules.
    drop(proxy);
    let mut proxy = Proxy::connect(&net);
    assert_eq!(written(), expected);
    assert_eq!(proxy.all(&rules(&[81])), Answer::Applied);
    assert_eq!(written(), rules(&[81]));

    // What is no message ends the connection and nothing else.
    let mut stream = UnixStream::connect(&net.socket).unwrap();
    stream.write_all(b"{\"all\":[[\"tcp\"]]}\n").unwrap();
    let mut end = String::new();
    BufReader::new(stream).read_line(&mut end).unwrap();
    assert_eq!(end, "");
    assert_eq!(written(), rules(&[81]));
    let mut proxy = Proxy::connect(&net);
    assert_eq!(proxy.all(&rules(&[81])), Answer::Applied);

    // SIGTERM: the proxy still drains, so the rules stay.
    let refused = Command::new(BINARY)
        .args(["net", "--remove"])
        .output()
        .unwrap();
    assert_eq!(refused.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("stop it first"));
    net.signal(Signal::TERM);
    assert_eq!(proxy.all(&rules(&[80, 81])), Answer::Applied);
    assert_eq!(written(), rules(&[80, 81]));
    // It lets go. The kernel needs the tables for its last connections.
    assert_eq!(proxy.all(&Rules::new()), Answer::Applied);
    assert_eq!(written(), Rules::new());
    assert_eq!(netlink::list().unwrap().1.len(), 2);
    assert!(!net.ended());
    drop(proxy);
    until("its end", || net.ended());
    assert_eq!(netlink::list().unwrap(), (Rules::new(), Vec::new()));
    assert!(!net.socket.exists());
}

#[test]
fn a_crash_leaves_the_rules_and_the_next_one_or_remove_takes_them() {
    if !is_inside(
        "addresses::process::a_crash_leaves_the_rules_and_the_next_one_or_remove_takes_them",
    ) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("net.sock");
    let net = Net::start(&socket);
    let mut proxy = Proxy::connect(&net);
    assert_eq!(proxy.all(&rules(&[80])), Answer::Applied);
    net.kill();
    assert_eq!(written(), rules(&[80]));
    // Its socket file is still there.
    let net = Net::start(&socket);
    assert_eq!(
        written(),
        rules(&[80]),
        "nothing is written before the proxy has spoken"
    );
    let mut proxy = Proxy::connect(&net);
    assert_eq!(proxy.all(&rules(&[81])), Answer::Applied);
    assert_eq!(written(), rules(&[81]));
    net.kill();
    let removed = Command::new(BINARY)
        .args(["net", "--remove"])
        .status()
        .unwrap();
    assert!(removed.success());
    assert_eq!(netlink::list().unwrap(), (Rules::new(), Vec::new()));
}

#[test]
fn of_several_the_newest_writes_and_the_next_newest_follows_it() {
    if !is_inside("addresses::process::of_several_the_newest_writes_and_the_next_newest_follows_it")
    {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let start = |name: &str, port| {
        let net = Net::start(&folder.path().join(name));
        let mut proxy = Proxy::connect(&net);
        assert_eq!(proxy.all(&rules(&[port])), Answer::Applied);
        assert_eq!(written(), rules(&[port]));
        (net, proxy)
    };
    let (_a, mut a_proxy) = start("a", 1);
    let (b, _b_proxy) = start("b", 2);
    let (mut c, mut c_proxy) = start("c", 3);
    // An older one keeps what it hears for later.
    assert_eq!(a_proxy.all(&rules(&[11])), Answer::Kept);
    assert_eq!(written(), rules(&[3]));
    // One that stands between the newest and the oldest ends: nothing changes.
    b.kill();
    // It hears of that end before, between or after these.
    for _ in 0..100 {
        assert_eq!(a_proxy.all(&rules(&[12])), Answer::Kept);
        assert_eq!(written(), rules(&[3]));
    }
    // The newest ends in peace. Its proxy lets go and still drains: the oldest follows at once.
    c.signal(Signal::TERM);
    assert_eq!(c_proxy.all(&Rules::new()), Answer::Kept);
    until("the oldest", || {
        assert!(!written().is_empty(), "there was a moment without rules");
        written() == rules(&[12])
    });
    assert!(!c.ended());
    drop(c_proxy);
    until("its end", || c.ended());
    assert_eq!(written(), rules(&[12]));
    assert_eq!(a_proxy.all(&rules(&[13])), Answer::Applied);
    assert_eq!(written(), rules(&[13]));
}

#[test]
fn every_process_gives_a_client_the_same_shadow_and_no_other_client() {
    if !is_inside(
        "addresses::process::every_process_gives_a_client_the_same_shadow_and_no_other_client",
    ) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let start = |name: &str| {
        let net = Net::start(&folder.path().join(name));
        let proxy = Proxy::connect(&net);
        (net, proxy)
    };
    // These have the same places.
    let client = |net: u8| Client {
        address: [10, net, 0, 2].into(),
        side: Side::Outside,
    };
    let ask = |proxy: &mut Proxy, clients: &[Client]| -> Vec<Option<IpAddr>> {
        match proxy.say(&Message::Sources(clients.to_vec())) {
            Answer::Sources(shadows) => shadows,
            other => panic!("{other:?}"),
        }
    };
    let shadow = |n: u8| Some(IpAddr::from([198, 19, 0, n]));
    let (_older, mut old) = start("older");
    assert_eq!(
        ask(&mut old, &[client(1)]),
        [None],
        "nothing is written before the rules"
    );
    assert_eq!(old.all(&rules(&[80])), Answer::Applied);
    assert_eq!(
        ask(&mut old, &[client(1), client(2)]),
        [shadow(2), shadow(3)]
    );
    let (newer, mut new) = start("newer");
    assert_eq!(new.all(&rules(&[80])), Answer::Applied);
    // In turns, by the one that owns the table and by the other.
    assert_eq!(
        ask(&mut new, &[client(2), client(3)]),
        [shadow(3), shadow(4)]
    );
    assert_eq!(old.all(&rules(&[80])), Answer::Kept);
    assert_eq!(
        ask(&mut old, &[client(4), client(3)]),
        [shadow(5), shadow(4)]
    );
    assert_eq!(
        ask(&mut new, &[client(5), client(4)]),
        [shadow(6), shadow(5)]
    );
    let full: Vec<Client> = (1..=9).map(client).collect();
    let expected: Vec<_> = (2..=9).map(shadow).chain([None]).collect();
    assert_eq!(ask(&mut new, &full), expected);
    // Addresses that are no client's.
    let loopback = Client {
        address: [127, 0, 0, 1].into(),
        ..client(1)
    };
    assert_eq!(ask(&mut new, &[loopback]), [None]);
    // Of a pod that has no way here, no answer of an endpoint would pass this node.
    let inside = Client {
        side: Side::Inside,
        ..client(1)
    };
    assert_eq!(ask(&mut new, &[inside]), [None]);

    newer.kill();
    until("the older one", || {
        old.all(&rules(&[81])) == Answer::Applied
    });
    assert_eq!(ask(&mut old, &full), expected);
    // The next one has been asked for nobody yet, and knows all the same what the kernel had.
    let (_third, mut third) = start("third");
    assert_eq!(third.all(&rules(&[82])), Answer::Applied);
    source_table::remove().unwrap();
    until("the table", || {
        source_table::list(Family::V4)
            .unwrap()
            .is_some_and(|it| it.len() == 8)
    });
    assert_eq!(ask(&mut third, &full), expected);
    assert_eq!(ask(&mut old, &full), expected);
}
