//! Listeners that routes serve. Each test opens its own, and puts its routes in force itself: where routes
//! come from is tested elsewhere.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Instant;

use ebbtide::contract::filters::Filters;
use ebbtide::contract::listener::{
    Action, Backends, FoundBy, ListenerId, ListenerSpec, Routes, Serves, Target,
};
use ebbtide::contract::name::ObjectName;
use ebbtide::contract::policy::{PortRef, Protocol, Transport};
use ebbtide::contract::route::{RouteTable, Rule};
use ebbtide::net::datagrams;
use ebbtide::proxy::shared::{Listening, WorkerCommand};
use serde_json::json;

use crate::support::folder::{Ep, Folder};
use crate::support::manifests::service;
use crate::support::rig::Rig;
use crate::support::wait::eventually;

mod answers;
mod logged;
mod requests;
mod shares;
mod whole;

type Table = RouteTable<Arc<Action>>;

/// A proxy that serves every Service of its folder to whom a route leads there.
async fn rig(more: &str) -> Rig {
    let text = format!(
        "discovery: {{files: {{path: manifests}}}}\nservices: {{claim: all}}\n\
         admin: {{address: '127.0.0.1:0'}}\nworkers: 1\nretry: {{budgetFloor: 1000}}\n{more}\n"
    );
    Rig::run(Folder::new(), &text).await
}

/// Gives a Service these endpoints, and waits until they are in rotation.
async fn serve(rig: &Rig, name: &str, endpoints: &[SocketAddr]) {
    serve_over(rig, Transport::Tcp, name, endpoints).await;
}

async fn serve_over(rig: &Rig, transport: Transport, name: &str, endpoints: &[SocketAddr]) {
    let (mut object, protocol) = (service(name, json!({})), json!(transport.to_string()));
    object["spec"]["ports"][0]["protocol"] = protocol.clone();
    rig.write(&format!("{name}.json"), &object);
    for (at, endpoint) in endpoints.iter().enumerate() {
        let mut slice = Ep::new(&format!("{name}-{at}"), *endpoint).slice_of(name, "");
        slice["ports"][0]["protocol"] = protocol.clone();
        rig.write(&format!("{name}-{at}.json"), &slice);
    }
    let key = ObjectName::new("web", name).port_over(transport, 80);
    eventually(
        &format!("{} endpoints of {name}", endpoints.len()),
        async || {
            let snapshot = rig.running().admin.snapshot.load();
            let port = snapshot.ports.get(&key);
            port.is_some_and(|port| port.usable.len() == endpoints.len())
                && rig.running().is_settled()
        },
    )
    .await;
}

/// Numbers of listeners that no configuration has.
fn number() -> ListenerId {
    static LAST: AtomicU64 = AtomicU64::new(1 << 61);
    ListenerId(LAST.fetch_add(1, Ordering::Relaxed))
}

/// A listener that routes serve, at this address. What it has in force is returned with it.
async fn open(
    rig: &Rig,
    by: FoundBy,
    protocol: Protocol,
    table: Table,
) -> (SocketAddr, Arc<Routes>) {
    let loopback = SocketAddr::from(([127, 0, 0, 1], 0));
    let (socket, address): (OwnedFd, _) = match protocol.transport() {
        Transport::Tcp => {
            let socket = std::net::TcpListener::bind(loopback).unwrap();
            socket.set_nonblocking(true).unwrap();
            let address = socket.local_addr().unwrap();
            (socket.into(), address)
        }
        Transport::Udp => {
            let socket = datagrams::bind(loopback).unwrap();
            let address = socket.local_addr().unwrap();
            (socket.into(), address)
        }
    };
    let table = Arc::new(Routes::from_pointee(table));
    let (nobody, port) = (ObjectName::new("", ""), PortRef::Number(0));
    let spec = ListenerSpec {
        serves: Serves::Routes {
            table: table.clone(),
            by,
        },
        protocol: Some(protocol),
        sockets: 1,
        accepting: AtomicUsize::new(1),
        ..ListenerSpec::unbound(number(), "door", address, &nobody, &port)
    };
    let listening = Listening {
        number: 0,
        socket,
        may_read: None,
    };
    let mailbox = &rig.running().shared().mailboxes[0];
    assert!(
        mailbox
            .send(WorkerCommand::Listen(Arc::new(spec), listening))
            .is_ok()
    );
    (address, table)
}

/// A listener of HTTP.
async fn http(rig: &Rig, table: Table) -> SocketAddr {
    open(rig, FoundBy::Request, Protocol::Http, table).await.0
}

/// What leads to port 80 of a Service, whose endpoints speak this.
fn to(name: &str, protocol: Option<Protocol>) -> Target {
    let nowhere = SocketAddr::from(([0, 0, 0, 0], 0));
    let (service, port) = (ObjectName::new("web", name), PortRef::Number(80));
    let listener = ListenerSpec {
        protocol,
        ..ListenerSpec::unbound(number(), "target", nowhere, &service, &port)
    };
    Target {
        listener: Arc::new(listener),
        since: Instant::now(),
        filters: None,
    }
}

/// An action with these backends.
fn action(filters: Filters, backends: Vec<(u32, Option<Target>)>) -> Arc<Action> {
    Arc::new(Action {
        route: "HTTPRoute web/test".into(),
        backends: Backends::new(backends),
        filters: Some(Box::new(filters)),
        ends_tls: false,
    })
}

/// Filters for one Service.
fn filtered(filters: Filters, name: &str) -> Arc<Action> {
    action(filters, vec![(1, Some(to(name, None)))])
}

/// A table in which paths begin with these prefixes.
fn table(rules: Vec<(&str, Arc<Action>)>) -> Table {
    let mut table = Table::default();
    for (path, action) in rules {
        let path = path.to_owned();
        let rule = Rule {
            path,
            ..Rule::default()
        };
        table.add(&rule, action);
    }
    table
}
