//! What the rules of all Ingress objects come to: a pure function of the objects.
//!
//! Invariant: the rules of the oldest Ingress come first, and of two that are equally old those of the
//! first by name. So a new object takes no requests from an older one.

use std::borrow::Cow;
use std::collections::{BTreeSet, HashMap, HashSet};

use crate::config::settings::Ingress;
use crate::contract::filters::{Filters, NewPath, Redirect};
use crate::contract::name::ObjectName;
use crate::contract::policy::Protocol;
use crate::contract::route::{Rule, Wants};
use crate::discovery::object::{BackendRef, IngressObject};
use crate::routing::classes::Classes;
use crate::routing::nginx::keys::Keys;

/// The rules of all Ingress objects that are ours.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Routes<'a> {
    /// In the order in which they count.
    pub rules: Vec<Route<'a>>,
    /// What gets the requests that no rule is for.
    pub default: Option<Route<'a>>,
    /// The Secrets with certificates, in the order in which they count.
    pub secrets: Vec<&'a ObjectName>,
}

/// What becomes of the requests of a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route<'a> {
    /// The Ingress.
    pub of: &'a ObjectName,
    /// Which requests.
    pub rule: Cow<'a, Rule>,
    /// Service ports, each with its weight.
    pub backends: Vec<(u32, &'a BackendRef)>,
    /// What endpoints speak. `None`: what the Service says.
    pub protocol: Option<Protocol>,
    /// What else is done.
    pub filters: Filters,
    /// A request without TLS is redirected.
    pub wants_tls: bool,
}

impl<'a> Routes<'a> {
    /// The rules of the objects of these classes.
    pub fn of(
        config: &Ingress,
        classes: &Classes,
        all: impl Iterator<Item = &'a IngressObject>,
    ) -> Self {
        let mut ours: Vec<_> = all.filter(|it| classes.have(it)).collect();
        ours.sort_by_key(|it| (it.created, &it.name));
        let (mut routes, mut seen) = (Self::default(), HashSet::new());
        let mut canaries = Vec::new();
        for ingress in ours {
            let new = ingress.secrets.iter().filter(|it| seen.insert(*it));
            routes.secrets.extend(new);
            let mut keys = match config.nginx_keys {
                true => Keys::of(&ingress.nginx),
                false => Keys::default(),
            };
            let server = config.server.iter();
            let server = server.map(|it| ("server".to_owned(), it.clone()));
            keys.filters.response.set.extend(server);
            match &keys.canary {
                Some(_) => canaries.push((ingress, keys)),
                None => routes.add(ingress, &keys),
            }
        }
        routes.add_canaries(&canaries);
        routes
    }

    fn add(&mut self, ingress: &'a IngressObject, keys: &Keys) {
        let route = |rule: Cow<'a, Rule>, filters, to| {
            let has_tls = keys.redirects_to_tls && ingress.has_tls(rule.host.as_deref());
            let is_challenge = rule.path.starts_with(CHALLENGE);
            Route {
                of: &ingress.name,
                wants_tls: (has_tls || keys.always_redirects_to_tls) && !is_challenge,
                rule,
                backends: vec![(1, to)],
                protocol: keys.protocol,
                filters,
            }
        };
        if let Some(root) = &keys.app_root {
            let mut hosts = HashSet::new();
            let rules = ingress.rules.iter();
            let firsts = rules.filter(|(rule, _)| hosts.insert(&rule.host));
            self.rules.extend(firsts.map(|(first, to)| {
                let rule = Rule {
                    host: first.host.clone(),
                    path: "/".to_owned(),
                    exact: true,
                    wants: Wants::default(),
                };
                let redirect = Redirect {
                    path: Some(NewPath::Full(root.clone())),
                    status: 302,
                    keeps_port: true,
                    ..Redirect::default()
                };
                let filters = Filters {
                    redirect: Some(redirect),
                    ..keys.filters.clone()
                };
                route(Cow::Owned(rule), filters, to)
            }));
        }
        self.rules
            .extend(ingress.rules.iter().filter_map(|(rule, to)| {
                let (rule, filters) = keys.apply(rule)?;
                Some(route(rule, filters, to))
            }));
        if self.default.is_none() {
            let everything = || Cow::Owned(Rule::default());
            let default = ingress.default.as_ref();
            self.default = default.map(|to| route(everything(), keys.filters.clone(), to));
        }
    }

    /// Gives canaries their shares of the rules for the same requests. A canary of no rule has none.
    fn add_canaries(&mut self, canaries: &[(&'a IngressObject, Keys)]) {
        if canaries.is_empty() {
            return;
        }
        let mut places = HashMap::new();
        for (place, route) in self.rules.iter().enumerate() {
            let key = (&route.of.namespace, route.rule.clone().into_owned());
            places
                .entry((key.0, key.1.host, key.1.path, key.1.exact))
                .or_insert(place);
        }
        for (ingress, keys) in canaries {
            for (rule, to) in &ingress.rules {
                let (Some((rule, _)), Some(canary)) = (keys.apply(rule), &keys.canary) else {
                    continue;
                };
                let (host, path) = (rule.host.clone(), rule.path.clone());
                let key = (&ingress.name.namespace, host, path, rule.exact);
                let Some(place) = places.get(&key) else {
                    continue;
                };
                let main = self.rules[*place].clone();
                // One canary, as with nginx.
                if main.backends.len() > 1 {
                    continue;
                }
                let by_field = |value: &str, to| {
                    let mut route = main.clone();
                    let header = canary.header.clone()?;
                    route.rule.to_mut().wants.fields = vec![(header, value.to_owned())];
                    route.backends = vec![(1, to)];
                    Some(route)
                };
                let stays = main.backends[0].1;
                match &canary.value {
                    Some(value) => self.rules.extend(by_field(value, to)),
                    None => {
                        self.rules.extend(by_field("always", to));
                        self.rules.extend(by_field("never", stays));
                    }
                }
                let weight = canary.weight;
                self.rules[*place].backends = vec![(canary.total - weight, stays), (weight, to)];
            }
        }
    }

    /// Every Service port that serves a rule, and what its endpoints speak.
    pub fn backends(&self) -> BTreeSet<(&'a BackendRef, Option<Protocol>)> {
        let routes = self.rules.iter().chain(&self.default);
        let of = |route: &Route<'a>| {
            let protocol = route.protocol;
            let backends = route.backends.clone().into_iter();
            backends.map(move |(_, to)| (to, protocol))
        };
        routes.flat_map(of).collect()
    }
}

/// Who checks the ownership of a host asks here without TLS, and before there is a certificate.
const CHALLENGE: &str = "/.well-known/acme-challenge";

#[cfg(test)]
pub(in crate::routing) mod tests {
    use super::*;
    use crate::contract::policy::PortRef;

    pub(in crate::routing) fn ingress(
        name: &str,
        created: i64,
        class: Option<&str>,
    ) -> IngressObject {
        let rule = Rule {
            host: None,
            path: format!("/{name}"),
            ..Rule::default()
        };
        let to = BackendRef {
            service: ObjectName::new("web", name),
            port: PortRef::Number(80),
        };
        IngressObject {
            name: ObjectName::new("web", name),
            class: class.map(str::to_owned),
            created,
            rules: vec![(rule, to.clone())],
            default: Some(to),
            secrets: vec![ObjectName::new("web", name), ObjectName::new("web", "all")],
            unserved: Vec::new(),
            tls_hosts: Vec::new(),
            nginx: Default::default(),
            uid: None,
            published: Default::default(),
        }
    }

    #[test]
    fn the_oldest_comes_first_and_other_classes_do_not_count() {
        let all = [
            ingress("c", 2, Some("ebbtide")),
            ingress("b", 1, Some("ebbtide")),
            ingress("a", 2, Some("ebbtide")),
            ingress("other", 0, Some("nginx")),
            ingress("none", 0, None),
        ];
        let classes = |name| Classes::of(&Ingress::of(name), [].into_iter());
        let config = Ingress::of("ebbtide");
        let routes = Routes::of(&config, &classes("ebbtide"), all.iter());
        let paths: Vec<_> = routes.rules.iter().map(|it| &*it.rule.path).collect();
        assert_eq!(paths, ["/b", "/a", "/c"]);
        assert_eq!(
            routes.default.as_ref().unwrap().backends[0].1.service.name,
            "b"
        );
        let secrets: Vec<_> = routes.secrets.iter().map(|it| &*it.name).collect();
        assert_eq!(secrets, ["b", "all", "a", "c"]);
        assert_eq!(routes.backends().len(), 3);
        assert_eq!(
            Routes::of(&config, &classes("x"), all.iter()),
            Routes::default()
        );
    }

    /// The name, the path and the annotations of an Ingress.
    type Given<'a> = (&'a str, &'a str, &'a [(&'a str, &'a str)]);

    /// The routes of these Ingress objects: host, path, what it leads to, and
    /// whether it wants TLS.
    fn nginx(all: &[Given<'_>]) -> Vec<String> {
        let objects = all
            .iter()
            .enumerate()
            .map(|(age, (name, path, annotations))| {
                let mut object = ingress(name, age as i64, Some("ebbtide"));
                object.default = None;
                object.tls_hosts = vec!["a.example".to_owned()];
                object.rules[0].0.host = Some("a.example".to_owned());
                object.rules[0].0.path = (*path).to_owned();
                let annotations = annotations.iter();
                let annotations =
                    annotations.map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
                object.nginx = annotations.collect();
                object
            });
        let objects: Vec<_> = objects.collect();
        let mut config = Ingress::of("ebbtide");
        config.nginx_keys = true;
        let classes = Classes::of(&config, [].into_iter());
        let routes = Routes::of(&config, &classes, objects.iter());
        let text = |it: &Route<'_>| {
            let to = it
                .backends
                .iter()
                .map(|(weight, to)| format!("{weight} {}", to.service.name));
            let wants = it
                .rule
                .wants
                .fields
                .iter()
                .map(|(name, value)| format!("{name}={value} "));
            let to = to.collect::<Vec<_>>().join(", ");
            let tls = if it.wants_tls { " tls" } else { "" };
            format!("{}{}: {to}{tls}", wants.collect::<String>(), it.rule.path)
        };
        routes.rules.iter().map(text).collect()
    }

    #[test]
    fn requests_without_tls_are_redirected_where_nginx_does_it() {
        assert_eq!(nginx(&[("a", "/", &[])]), ["/: 1 a tls"]);
        assert_eq!(
            nginx(&[("a", "/", &[("ssl-redirect", "false")])]),
            ["/: 1 a"]
        );
        let forced = [("force-ssl-redirect", "true"), ("ssl-redirect", "false")];
        assert_eq!(nginx(&[("a", "/", &forced)]), ["/: 1 a tls"]);
        let challenge = "/.well-known/acme-challenge/x";
        assert_eq!(
            nginx(&[("a", challenge, &forced)]),
            [format!("{challenge}: 1 a")]
        );
        let mut object = ingress("a", 0, None);
        object.tls_hosts = vec!["*.example".to_owned()];
        assert!(object.has_tls(Some("a.example")) && !object.has_tls(Some("a.b.example")));
        assert!(!object.has_tls(None) && !object.has_tls(Some("example")));
        object.tls_hosts = vec![String::new()];
        assert!(object.has_tls(None));
    }

    #[test]
    fn a_canary_has_its_share_of_the_rule_for_the_same_requests() {
        let off = ("ssl-redirect", "false");
        let canary = [("canary", "true"), ("canary-weight", "10")];
        // The older one may be the canary.
        for all in [
            [("c", "/x", &canary[..]), ("a", "/x", &[off][..])],
            [("a", "/x", &[off]), ("c", "/x", &canary)],
        ] {
            assert_eq!(nginx(&all), ["/x: 90 a, 10 c"]);
        }
        let header = [("canary", "true"), ("canary-by-header", "X-New")];
        assert_eq!(
            nginx(&[("a", "/x", &[off]), ("c", "/x", &header)]),
            [
                "/x: 100 a, 0 c",
                "x-new=always /x: 1 c",
                "x-new=never /x: 1 a"
            ]
        );
        let value = [header[0], header[1], ("canary-by-header-value", "yes")];
        assert_eq!(
            nginx(&[("a", "/x", &[off]), ("c", "/x", &value)]),
            ["/x: 100 a, 0 c", "x-new=yes /x: 1 c"]
        );
        assert_eq!(
            nginx(&[("a", "/", &[off]), ("c", "/x", &canary)]),
            ["/: 1 a"]
        );
    }

    #[test]
    fn the_root_of_an_application_comes_before_its_rule() {
        let root = [("app-root", "/app"), ("ssl-redirect", "false")];
        assert_eq!(nginx(&[("a", "/", &root)]), ["/: 1 a", "/: 1 a"]);
    }
}
