//! What is watched at the API server: a pure function of the Services that are ours.
//!
//! Invariant: the API server selects what it can, so that a node gets few objects that it does not
//! need, and never fewer. Claimed Services are selected by the label of the claim, in one watch for
//! all namespaces. So are most of their slices, because the EndpointSlice controller copies the
//! labels of a Service to its slices. Slices that a person or another controller made may lack the
//! label, so [`Of::Unlabelled`] selects these by the names of the Services. With `services.claim: all`,
//! both are all that kube-proxy would read. Services that are ours
//! without that label stand [`Of::Apart`]: they are selected by their names, and their slices by the
//! name of the Service.
//!
//! Pods cannot be selected by their Service, so they are watched in each namespace in use. Above
//! [`MANY_NAMESPACES`], one watch of all pods costs the API server less than a watch for each.

use std::collections::{BTreeMap, BTreeSet};

use crate::config::settings::{Claim, PodWatch};
use crate::contract::name::ObjectName;
use crate::discovery::gateway::GatewayKind;
use crate::discovery::object::{Kind, Object};

/// One watch. The problems of watches are listed in the order of these keys.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key {
    pub(super) kind: Kind,
    /// `None`: all namespaces.
    pub(super) namespace: Option<String>,
    pub(super) of: Of,
}

/// Which Services a watch is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Of {
    /// For claimed Services; of pods, for all.
    Claimed,
    /// For slices of claimed Services that lack the label of the claim.
    Unlabelled,
    /// For Services without the label of the claim.
    Apart,
}

/// What the API server selects of a watch's objects. `None`: all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Selector {
    pub(super) labels: Option<String>,
    pub(super) fields: Option<String>,
    /// Of the slices that the API server selects, only those of these Services are taken.
    pub(super) only: Option<BTreeSet<ObjectName>>,
}

/// What decides which watches are wanted.
pub(super) struct Facts<'a> {
    /// The configured namespaces. Empty: all.
    pub(super) allowed: &'a [String],
    /// Which Services are claimed.
    pub(super) claim: &'a Claim,
    /// The Services that configured listeners name.
    pub(super) named: &'a BTreeSet<ObjectName>,
    /// Whether a Service is claimed, or once was.
    pub(super) claimed: bool,
    /// Services whose slices lack the label of the claim: those named by listeners, and those whose
    /// claim has ended while clients are connected.
    pub(super) apart: BTreeSet<&'a ObjectName>,
    /// The Services of which some slices may lack the label of the claim: those that are claimed,
    /// and those whose claim has just ended.
    pub(super) unlabelled: BTreeSet<&'a ObjectName>,
    /// Whether Ingress objects are served.
    pub(super) ingress: bool,
    /// Whether objects of the Gateway API are served.
    pub(super) gateway: bool,
    /// The namespaces in use.
    pub(super) in_use: BTreeSet<&'a str>,
    /// Which pods are watched.
    pub(super) pods: &'a PodWatch,
    /// The watch of all pods.
    pub(super) all_pods: AllPods,
}

/// How far the watch of all pods is, which replaces those of many namespaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum AllPods {
    /// It is not needed.
    Unneeded,
    /// It is needed, and not complete yet: the others go on.
    Needed,
    /// Its first list is complete.
    Listed,
    /// The API server refuses it.
    Refused,
}

/// The watches that are wanted.
pub(super) fn wanted(facts: &Facts<'_>) -> BTreeMap<Key, Selector> {
    let mut watches = BTreeMap::new();
    let mut add = |kind, namespace: Option<&str>, of, selector| {
        let namespace = namespace.map(str::to_owned);
        watches.insert(
            Key {
                kind,
                namespace,
                of,
            },
            selector,
        );
    };
    let scopes: Vec<Option<&str>> = match facts.allowed {
        [] => vec![None],
        some => some.iter().map(|it| Some(it.as_str())).collect(),
    };
    // No selector says "this value or none". Few Services have the value of another proxy.
    let all = facts.claim.all;
    let (claim, no_claim) = match all {
        true => (NOT_HEADLESS.to_owned(), String::new()),
        false => {
            let name = &facts.claim.proxy_name;
            (format!("{PROXY}={name}"), format!("{PROXY}!={name}"))
        }
    };
    for scope in &scopes {
        let of = Selector::labels(&claim);
        add(Kind::Service, *scope, Of::Claimed, of.clone());
        if facts.claimed || all {
            add(Kind::EndpointSlice, *scope, Of::Claimed, of);
        }
        if all {
            continue;
        }
        let services = facts.unlabelled.iter().copied();
        let services =
            services.filter(|it| scope.is_none_or(|namespace| namespace == it.namespace));
        let only: BTreeSet<ObjectName> = services.cloned().collect();
        if !only.is_empty() {
            let names: BTreeSet<&str> = only.iter().map(|it| it.name.as_str()).collect();
            let labels = Some(format!("{},{no_claim}", of_services(names)));
            let selector = Selector {
                labels,
                fields: None,
                only: Some(only),
            };
            add(Kind::EndpointSlice, *scope, Of::Unlabelled, selector);
        }
    }
    if facts.ingress {
        // No selector knows a class.
        for scope in &scopes {
            add(Kind::Ingress, *scope, Of::Claimed, Selector::default());
        }
        // A Role cannot allow to read what has no namespace.
        if facts.allowed.is_empty() {
            add(Kind::IngressClass, None, Of::Claimed, Selector::default());
        }
    }
    for kind in GatewayKind::ALL.into_iter().filter(|_| facts.gateway) {
        let all = [None];
        let scopes = match kind.is_of_the_cluster() {
            true => &all[..],
            false => &scopes,
        };
        for scope in scopes {
            add(
                Kind::Gateway(kind),
                *scope,
                Of::Claimed,
                Selector::default(),
            );
        }
    }
    for (namespace, names) in by_namespace(facts.named.iter()) {
        let selector = match names[..] {
            [name] => Selector::fields(&format!("metadata.name={name}")),
            // Fields cannot be selected by a set of values.
            _ => Selector::default(),
        };
        add(Kind::Service, Some(namespace), Of::Apart, selector);
    }
    for (namespace, names) in by_namespace(facts.apart.iter().copied()) {
        let selector = Selector::labels(&of_services(names.into_iter().collect()));
        add(Kind::EndpointSlice, Some(namespace), Of::Apart, selector);
    }
    match facts.pods {
        PodWatch::None => {}
        PodWatch::Node(node) => {
            for scope in &scopes {
                let selector = Selector::fields(&format!("spec.nodeName={node}"));
                add(Kind::Pod, *scope, Of::Claimed, selector);
            }
        }
        PodWatch::All => {
            if matches!(facts.all_pods, AllPods::Needed | AllPods::Listed) {
                add(Kind::Pod, None, Of::Claimed, Selector::default());
            }
            if facts.all_pods != AllPods::Listed {
                for namespace in &facts.in_use {
                    add(Kind::Pod, Some(namespace), Of::Claimed, Selector::default());
                }
            }
        }
    }
    watches
}

/// Selects the slices of Services with these names. A set that is too long for the line of a request
/// becomes the slices of all Services.
fn of_services(names: BTreeSet<&str>) -> String {
    // A comma takes three bytes in a query.
    let length: usize = names.iter().map(|name| name.len() + 3).sum();
    if length > LONGEST_SET {
        return SERVICE.to_owned();
    }
    let names: Vec<&str> = names.into_iter().collect();
    format!("{SERVICE} in ({})", names.join(","))
}

fn by_namespace<'a>(
    services: impl Iterator<Item = &'a ObjectName>,
) -> BTreeMap<&'a str, Vec<&'a str>> {
    let mut all: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for service in services {
        let names = all.entry(&service.namespace).or_default();
        names.push(&service.name);
    }
    all
}

impl Key {
    /// Whether the watch sees objects of this namespace.
    pub(super) fn covers(&self, namespace: &str) -> bool {
        self.namespace.as_deref().is_none_or(|it| it == namespace)
    }

    /// What the watch is about, for people.
    pub(super) fn subject(&self) -> String {
        let kind = match self.kind {
            Kind::Ingress | Kind::IngressClass => format!("{}es", self.kind),
            Kind::Gateway(kind) => kind.names().1.to_owned(),
            kind => format!("{kind}s"),
        };
        match &self.namespace {
            Some(namespace) => format!("{kind} in namespace {namespace}"),
            None => kind,
        }
    }
}

impl Selector {
    fn labels(text: &str) -> Self {
        Self {
            labels: Some(text.to_owned()),
            ..Self::default()
        }
    }

    fn fields(text: &str) -> Self {
        Self {
            fields: Some(text.to_owned()),
            ..Self::default()
        }
    }

    /// Whether an object that the API server selects for this purpose is taken.
    pub(super) fn takes(&self, of: Of, object: &Object) -> bool {
        match (&self.only, object) {
            (_, Object::Service(service)) if of == Of::Claimed => service.claimed,
            (Some(only), Object::EndpointSlice(slice)) => slice
                .service
                .as_ref()
                .is_some_and(|it| only.contains(&ObjectName::new(&*slice.name.namespace, &**it))),
            _ => true,
        }
    }
}

/// Above this number of namespaces in use, all pods are watched at once.
pub(super) const MANY_NAMESPACES: usize = 32;
const PROXY: &str = "service.kubernetes.io/service-proxy-name";
const NOT_HEADLESS: &str = "!service.kubernetes.io/headless";
const SERVICE: &str = "kubernetes.io/service-name";
/// The largest set of names in a selector, in bytes: some hundred names. The line of the request is
/// then shorter than the 8 KiB that proxies before an API server take.
const LONGEST_SET: usize = 6_000;

#[cfg(test)]
mod tests {
    use super::*;

    const CLAIM: &str = "service.kubernetes.io/service-proxy-name=ebbtide";
    const NO_CLAIM: &str = "service.kubernetes.io/service-proxy-name!=ebbtide";

    struct Given {
        claim: Claim,
        allowed: Vec<String>,
        named: BTreeSet<ObjectName>,
        claimed: bool,
        unlabelled: BTreeSet<ObjectName>,
        ingress: bool,
        in_use: Vec<&'static str>,
        pods: PodWatch,
        all_pods: AllPods,
    }

    fn given() -> Given {
        Given {
            claim: Claim::default(),
            allowed: Vec::new(),
            named: BTreeSet::new(),
            claimed: true,
            unlabelled: BTreeSet::new(),
            ingress: false,
            in_use: vec!["web"],
            pods: PodWatch::All,
            all_pods: AllPods::Unneeded,
        }
    }

    impl Given {
        fn watches(&self) -> Vec<String> {
            let facts = Facts {
                claim: &self.claim,
                allowed: &self.allowed,
                named: &self.named,
                claimed: self.claimed,
                apart: self.named.iter().collect(),
                unlabelled: self.unlabelled.iter().collect(),
                ingress: self.ingress,
                gateway: false,
                in_use: self.in_use.iter().copied().collect(),
                pods: &self.pods,
                all_pods: self.all_pods,
            };
            let text = |(key, selector): (Key, Selector)| {
                let selector = selector.labels.or(selector.fields).unwrap_or_default();
                format!("{}: {selector}", key.subject())
            };
            wanted(&facts).into_iter().map(text).collect()
        }
    }

    #[test]
    fn claimed_services_and_slices_are_one_watch_each_and_pods_one_for_each_namespace() {
        let mut given = given();
        given.in_use = vec!["shop", "web"];
        assert_eq!(
            given.watches(),
            [
                format!("Services: {CLAIM}"),
                format!("EndpointSlices: {CLAIM}"),
                "Pods in namespace shop: ".to_owned(),
                "Pods in namespace web: ".to_owned(),
            ]
        );
        given.claimed = false;
        given.in_use = Vec::new();
        assert_eq!(given.watches(), [format!("Services: {CLAIM}")]);
    }

    #[test]
    fn ingresses_are_watched_where_they_are_served() {
        let mut given = given();
        given.ingress = true;
        let watches = given.watches();
        assert!(watches.contains(&"Ingresses: ".to_owned()));
        assert!(watches.contains(&"IngressClasses: ".to_owned()));
        given.allowed = vec!["web".to_owned(), "shop".to_owned()];
        let watches = given.watches();
        for namespace in ["web", "shop"] {
            let watch = format!("Ingresses in namespace {namespace}: ");
            assert!(watches.contains(&watch), "{watches:?}");
        }
        assert!(!watches.iter().any(|it| it.contains("IngressClasses")));
    }

    #[test]
    fn only_configured_namespaces_are_watched() {
        let mut given = given();
        given.allowed = vec!["web".to_owned()];
        given.pods = PodWatch::Node("n1".to_owned());
        assert_eq!(
            given.watches(),
            [
                format!("Services in namespace web: {CLAIM}"),
                format!("EndpointSlices in namespace web: {CLAIM}"),
                "Pods in namespace web: spec.nodeName=n1".to_owned(),
            ]
        );
    }

    #[test]
    fn named_services_are_selected_by_name_and_their_slices_by_the_service() {
        let mut given = given();
        given.claimed = false;
        given.pods = PodWatch::None;
        given.named = [ObjectName::new("a", "x"), ObjectName::new("b", "y")].into();
        given.named.insert(ObjectName::new("b", "z"));
        let services = [
            format!("Services: {CLAIM}"),
            "Services in namespace a: metadata.name=x".to_owned(),
            "Services in namespace b: ".to_owned(),
        ];
        let slices = [
            format!("EndpointSlices in namespace a: {SERVICE} in (x)"),
            format!("EndpointSlices in namespace b: {SERVICE} in (y,z)"),
        ];
        assert_eq!(given.watches(), [&services[..], &slices[..]].concat());
        let many = (0..LONGEST_SET / 4).map(|n| ObjectName::new("b", format!("s{n}")));
        given.named = many.collect();
        let slices = given.watches().pop();
        assert_eq!(
            slices,
            Some(format!("EndpointSlices in namespace b: {SERVICE}"))
        );
    }

    #[test]
    fn slices_of_claimed_services_without_the_label_are_selected_by_the_service() {
        let mut given = given();
        given.pods = PodWatch::None;
        given.allowed = vec!["a".to_owned(), "b".to_owned(), "c".to_owned()];
        let services = [("a", "x"), ("a", "y"), ("b", "x")];
        given.unlabelled = services.map(|(at, name)| ObjectName::new(at, name)).into();
        let unlabelled = |given: &Given| {
            let mut watches = given.watches();
            watches.retain(|it| it.contains(SERVICE));
            watches
        };
        assert_eq!(
            unlabelled(&given),
            [
                format!("EndpointSlices in namespace a: {SERVICE} in (x,y),{NO_CLAIM}"),
                format!("EndpointSlices in namespace b: {SERVICE} in (x),{NO_CLAIM}"),
            ]
        );
        given.allowed = Vec::new();
        assert_eq!(
            unlabelled(&given),
            [format!("EndpointSlices: {SERVICE} in (x,y),{NO_CLAIM}")]
        );
        let many = (0..LONGEST_SET / 4).map(|n| ObjectName::new("a", format!("s{n}")));
        given.unlabelled = many.collect();
        assert_eq!(
            unlabelled(&given),
            [format!("EndpointSlices: {SERVICE},{NO_CLAIM}")]
        );
    }

    #[test]
    fn the_watch_of_all_pods_replaces_the_others_once_it_is_listed() {
        let pods = |all_pods| {
            let given = Given {
                all_pods,
                ..given()
            };
            let watches = given.watches().into_iter();
            watches
                .filter(|it| it.starts_with("Pod"))
                .collect::<Vec<_>>()
        };
        let (one, all) = ("Pods in namespace web: ", "Pods: ");
        assert_eq!(pods(AllPods::Unneeded), [one]);
        assert_eq!(pods(AllPods::Needed), [all, one]);
        assert_eq!(pods(AllPods::Listed), [all]);
        assert_eq!(pods(AllPods::Refused), [one]);
    }
}
