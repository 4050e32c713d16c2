//! Which endpoint lives where.

use std::net::SocketAddr;

use crate::contract::endpoint::Endpoint;
use crate::contract::name::PortKey;
use crate::routing::world::merged::MergedEndpoint;

/// Where a living endpoint belongs.
pub(super) struct Home {
    pub(super) key: PortKey,
    pub(super) identity: Identity,
    /// In [`PortEntry::all`].
    pub(super) place: usize,
}

/// Address and pod UID; with the generation, which is the [`EndpointId`], the endpoint's key.
pub(super) type Identity = (SocketAddr, Option<String>);

pub(super) fn identity(merged: &MergedEndpoint) -> Identity {
    (
        merged.address,
        merged.pod.as_ref().map(|pod| pod.uid.clone()),
    )
}

pub(super) fn identity_of(endpoint: &Endpoint) -> Identity {
    (
        endpoint.address,
        endpoint.pod.as_ref().map(|pod| pod.uid.clone()),
    )
}
