//! The source without events: the fixed endpoints of `ebbtide proxy --to`.
//!
//! It gives the same kinds of objects as the other sources, once. There are no pods, and nothing
//! changes.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use crate::contract::name::ObjectName;
use crate::contract::policy::Transport;
use crate::discovery::object::{
    Change, Hints, Object, ServiceObject, ServicePortObject, SliceEndpoint, SliceObject,
};

/// The changes that make one Service port with fixed endpoints. Its Service exists only in this
/// process.
pub fn fixed(service: &ObjectName, port: u16, endpoints: &[SocketAddr]) -> Vec<Change> {
    let object = ServiceObject {
        name: service.clone(),
        uid: None,
        claimed: false,
        external_name: false,
        headless: false,
        ports: vec![ServicePortObject {
            name: None,
            port,
            node_port: None,
            target_port: endpoints.first().map(SocketAddr::port),
            app_protocol: None,
            transport: Transport::Tcp,
        }],
        ipv6_first: false,
        annotations: BTreeMap::new(),
        unserved: Vec::new(),
        addresses: Vec::new(),
        source_ranges: Vec::new(),
        traffic: Default::default(),
    };
    // A slice has one port for all its endpoints, so each address gets a slice.
    let slices = endpoints.iter().enumerate().map(|(i, endpoint)| {
        Change::Apply(Object::EndpointSlice(SliceObject {
            name: ObjectName::new(&service.namespace, format!("{}-{i}", service.name)),
            service: Some(service.name.clone()),
            ipv6: endpoint.is_ipv6(),
            fqdn: false,
            created: 0,
            generation: 0,
            ports: vec![(String::new(), endpoint.port())],
            endpoints: vec![SliceEndpoint {
                address: endpoint.ip(),
                pod: None,
                ready: true,
                serving: true,
                terminating: false,
                hints: Hints::default(),
                local: false,
            }],
            udp_ports: Vec::new(),
        }))
    });
    std::iter::once(Change::Apply(Object::Service(object)))
        .chain(slices)
        .collect()
}
