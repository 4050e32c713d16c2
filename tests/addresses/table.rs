//! The kernel's table alone: what is written is what connections get.

use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use ebbtide::net::netlink;
use ebbtide::net::rules::{Rules, Transport, difference};
use socket2::SockRef;

use super::namespace::is_inside;

const FAMILIES: [(&str, &str); 2] = [
    ("127.0.0.1:0", "10.96.0.7:80"),
    ("[::1]:0", "[fd00:96::7]:80"),
];

#[test]
fn a_connection_reaches_where_its_address_leads_and_names_the_address() {
    if !is_inside(
        "addresses::table::a_connection_reaches_where_its_address_leads_and_names_the_address",
    ) {
        return;
    }
    for (host, service) in FAMILIES {
        super::namespace::ip(&[
            "route",
            "replace",
            "local",
            &format!("{}", service.parse::<SocketAddr>().unwrap().ip()),
            "dev",
            "lo",
        ]);
        let service: SocketAddr = service.parse().unwrap();
        let listener = TcpListener::bind(host).unwrap();
        let to = listener.local_addr().unwrap();
        let rules = Rules::from([((Transport::Tcp, service), to)]);
        netlink::replace(&rules).unwrap();
        assert_eq!(netlink::list().unwrap().0, rules);
        let _client = TcpStream::connect(service).unwrap();
        let accepted = listener.accept().unwrap().0;
        let socket = SockRef::from(&accepted);
        let named = match service.is_ipv4() {
            true => socket.original_dst_v4(),
            false => socket.original_dst_v6(),
        };
        assert_eq!(named.unwrap().as_socket().unwrap(), service);

        // A datagram takes the other map, and its answer comes from the address that was asked.
        let server = UdpSocket::bind(host).unwrap();
        let mut both = rules.clone();
        both.insert((Transport::Udp, service), server.local_addr().unwrap());
        netlink::change(&difference(&rules, &both)).unwrap();
        assert_eq!(netlink::list().unwrap().0, both);
        let client = UdpSocket::bind(host).unwrap();
        client.send_to(b"ask", service).unwrap();
        let mut buf = [0; 16];
        let (n, from) = server.recv_from(&mut buf).unwrap();
        assert_eq!(&buf[..n], b"ask");
        server.send_to(b"answer", from).unwrap();
        assert_eq!(client.recv_from(&mut buf).unwrap().1, service);

        // A closed port refuses, and the open connection goes on.
        let mut closed = both.clone();
        closed.insert((Transport::Tcp, service), SocketAddr::new(to.ip(), 9));
        netlink::change(&difference(&both, &closed)).unwrap();
        let refused = TcpStream::connect(service).unwrap_err();
        assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
        assert!(accepted.take_error().unwrap().is_none());
        netlink::remove().unwrap();
        netlink::remove().unwrap();
        let (left, families) = netlink::list().unwrap();
        assert!(left.is_empty() && families.is_empty());
    }
}

#[test]
fn a_batch_is_taken_whole_or_not_at_all() {
    if !is_inside("addresses::table::a_batch_is_taken_whole_or_not_at_all") {
        return;
    }
    let to: SocketAddr = "192.0.2.1:15001".parse().unwrap();
    let many = |ports: std::ops::Range<u16>| -> Rules {
        let ips = ["10.96.0.7", "fd00:96::7"].map(|ip| ip.parse().unwrap());
        let keys = ports.flat_map(|port| ips.map(|ip| (Transport::Tcp, SocketAddr::new(ip, port))));
        keys.map(|key| (key, to))
            .filter(|(key, _)| key.1.is_ipv4())
            .collect()
    };
    let first = many(1000..1001);
    netlink::replace(&first).unwrap();
    // The last of these is there already.
    let steps = difference(&Rules::new(), &many(500..1001));
    let error = netlink::change(&steps).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::AlreadyExists, "{error}");
    assert!(error.to_string().contains("newsetelem"), "{error}");
    assert_eq!(netlink::list().unwrap().0, first);
    // An element that is not there cannot end.
    let error = netlink::change(&difference(&many(5..6), &Rules::new())).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::NotFound, "{error}");
}

#[test]
fn ten_thousand_services_are_one_batch_and_a_change_is_seen() {
    if !is_inside("addresses::table::ten_thousand_services_are_one_batch_and_a_change_is_seen") {
        return;
    }
    let to: SocketAddr = "192.0.2.1:15001".parse().unwrap();
    let rules: Rules = (0..20_000u32)
        .map(|i| {
            let ip = std::net::Ipv4Addr::from(0x0a60_0000 + i / 2);
            (
                (
                    Transport::Tcp,
                    SocketAddr::new(ip.into(), 80 + (i % 2) as u16),
                ),
                to,
            )
        })
        .collect();
    let quick = |name: &str, act: &mut dyn FnMut()| {
        let begun = Instant::now();
        act();
        let took: Duration = begun.elapsed();
        println!(
            "FIGURE addresses: {name} took {:.1} ms",
            took.as_secs_f64() * 1e3
        );
    };
    quick("writing 20,000 rules", &mut || {
        netlink::replace(&rules).unwrap()
    });
    let before = netlink::last_change().unwrap();
    quick("reading 20,000 rules", &mut || {
        assert_eq!(netlink::list().unwrap().0, rules);
    });
    assert_eq!(netlink::last_change().unwrap(), before);
    let mut other = rules.clone();
    let key = *other.keys().next().unwrap();
    other.insert(key, "192.0.2.1:9".parse().unwrap());
    let steps = difference(&rules, &other);
    quick("changing one of 20,000 rules", &mut || {
        netlink::change(&steps).unwrap()
    });
    let (after, program) = netlink::last_change().unwrap();
    assert!(after > before.0, "{after} {before:?}");
    assert!(!program.is_empty());
    assert_eq!(netlink::list().unwrap().0, other);
    quick("replacing 20,000 rules", &mut || {
        netlink::replace(&rules).unwrap()
    });
    assert_eq!(netlink::list().unwrap().0, rules);
}
