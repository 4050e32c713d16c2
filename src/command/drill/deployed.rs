//! What the drill takes from the Ebbtide that is deployed: its image, and what its ConfigMap says of
//! claims. Who may not read them, or has deployed it otherwise, gets the defaults.

use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::core::ApiResource;
use serde_json::Value;

use crate::command::drill::cluster::{Cluster, items, text};

/// The DaemonSet `ebbtide-system/ebbtide`, as `deploy/` makes it.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Deployed {
    /// Its image, which every node already has.
    pub(super) image: Option<String>,
    /// `services.proxyName`
    pub(super) proxy_name: Option<String>,
    /// `services.addresses`: whether cluster IPs are served.
    pub(super) has_addresses: bool,
}

impl Deployed {
    pub(super) async fn find(cluster: &Cluster) -> Self {
        let sets = cluster.namespaced(&ApiResource::erase::<DaemonSet>(&()), NAMESPACE);
        let Ok(set) = sets.get("ebbtide").await else {
            return Self::default();
        };
        let mut containers = items(&set, "/spec/template/spec/containers");
        let image = containers
            .find(|it| it["name"] == "ebbtide")
            .and_then(|it| text(it, "image"));
        let mut volumes = items(&set, "/spec/template/spec/volumes");
        let map = volumes.find_map(|it| text(it.get("configMap")?, "name"));
        let maps = cluster.namespaced(&ApiResource::erase::<ConfigMap>(&()), NAMESPACE);
        let map = match map {
            Some(name) => maps.get(&name).await.ok(),
            None => None,
        };
        let config = map.and_then(|map| text(map.data.get("data")?, "ebbtide.yaml"));
        Self {
            image,
            ..Self::of_config(&config.unwrap_or_default())
        }
    }

    /// The proxy has checked the file, and it names addresses that only a node knows. So two fields are
    /// read, and nothing is checked.
    fn of_config(text: &str) -> Self {
        let config: Value = serde_saphyr::from_str(text).unwrap_or_default();
        let field = |name: &str| config.pointer(&format!("/services/{name}"));
        // `on` is a bool for some readers of YAML.
        let is_on = |it: &Value| *it == "on" || *it == true;
        Self {
            image: None,
            proxy_name: field("proxyName").and_then(|it| it.as_str().map(str::to_owned)),
            has_addresses: field("addresses").is_some_and(is_on),
        }
    }
}

const NAMESPACE: &str = "ebbtide-system";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_fields_of_the_configuration_count_and_a_broken_one_gives_the_defaults() {
        let config = "discovery: {kubernetes: {}}\nservices: {addresses: on, proxyName: mine}\n";
        let expected = Deployed {
            proxy_name: Some("mine".into()),
            has_addresses: true,
            ..Deployed::default()
        };
        assert_eq!(Deployed::of_config(config), expected);
        for other in ["", "services: {addresses: off}", "a: [", "services: on"] {
            assert_eq!(Deployed::of_config(other), Deployed::default(), "{other}");
        }
    }
}
