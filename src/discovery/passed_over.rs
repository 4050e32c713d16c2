//! Manifests that nothing reads, although somebody probably meant them to be read: an API version
//! that is not read, a misspelt kind, a slice that belongs to no Service.
//!
//! Invariant: an object that another API may have under the same name (the Service of Knative) is
//! none of them. Each is a line of text with the object and the cure; the file is the caller's.

use std::collections::HashSet;

use serde_json::Value;

use crate::contract::name::ObjectName;
use crate::discovery::gateway::GatewayKind;
use crate::discovery::object::{Object, SliceObject};
use crate::text::{near, one_line};

/// A manifest that was passed over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PassedOver {
    /// The object, what is wrong with it, and the cure. One line.
    pub(super) text: String,
    /// The Service that has no need of it if it has slices.
    service: Option<ObjectName>,
}

impl PassedOver {
    /// Why a manifest that made no object is passed over; `None` for one that is of no use here. The last
    /// argument: whether Ingress objects, and those of the Gateway API, are served.
    pub(super) fn of(
        version: Option<&str>,
        kind: &str,
        fields: &Value,
        (ingress, gateway): (bool, bool),
    ) -> Option<Self> {
        let version = version.unwrap_or_default();
        let known = || known(ingress, gateway);
        let read = |kind: &str| known().find(|(name, _)| *name == kind);
        let (why, is_old_list) = if let Some((_, wanted)) = read(kind) {
            let may_be_another = kind != "EndpointSlice" && !is_of_kubernetes(version);
            if version == wanted || may_be_another {
                return None;
            }
            let why = format!("apiVersion {version} is not read; write it as {wanted}");
            (why, false)
        } else if (version, kind) == ("v1", "Endpoints") {
            let why = "this kind is not read; write an EndpointSlice (discovery.k8s.io/v1) instead";
            (why.to_owned(), true)
        } else if is_of_kubernetes(version)
            && let Some(meant) = near(kind, known().map(|(name, _)| name))
        {
            let why = format!("there is no kind {kind}, did you mean {meant}?");
            (why, false)
        } else {
            return None;
        };
        let field = |name: &str| fields.pointer(&format!("/metadata/{name}"))?.as_str();
        let name = field("name")
            .map(|name| ObjectName::new(field("namespace").unwrap_or("default"), name));
        let called = name
            .as_ref()
            .map_or_else(|| "without a name".to_owned(), ObjectName::to_string);
        Some(Self {
            text: one_line(&format!("{kind} {called}: {why}")),
            service: name.filter(|_| is_old_list),
        })
    }
}

/// What is passed over of a folder: what its documents say, and slices that belong to no Service.
/// `objects` are all objects in force, `noted` what was passed over, each with its file.
pub(super) fn all<'a, F: 'a>(
    objects: impl Iterator<Item = (&'a F, &'a Object)> + Clone,
    noted: impl Iterator<Item = (&'a F, &'a PassedOver)>,
) -> Vec<(&'a F, String)> {
    let services: HashSet<&ObjectName> = objects
        .clone()
        .filter_map(|(_, object)| match object {
            Object::Service(service) => Some(&service.name),
            _ => None,
        })
        .collect();
    let slices = objects.filter_map(|(file, object)| match object {
        Object::EndpointSlice(slice) => Some((file, slice)),
        _ => None,
    });
    let mut served = HashSet::new();
    let mut found = Vec::new();
    for (file, slice) in slices {
        let service = service_of(slice);
        found.extend(without_service(slice, service.as_ref(), &services).map(|text| (file, text)));
        served.extend(service);
    }
    let is_missed = |it: &PassedOver| it.service.as_ref().is_none_or(|it| !served.contains(it));
    let noted = noted.filter(|(_, it)| is_missed(it));
    found.extend(noted.map(|(file, it)| (file, it.text.clone())));
    found
}

/// The Service that a slice names.
fn service_of(slice: &SliceObject) -> Option<ObjectName> {
    let name = slice.service.as_deref().filter(|it| !it.is_empty())?;
    Some(ObjectName::new(slice.name.namespace.clone(), name))
}

fn without_service(
    slice: &SliceObject,
    service: Option<&ObjectName>,
    services: &HashSet<&ObjectName>,
) -> Option<String> {
    let Some(service) = service else {
        return Some(format!(
            "EndpointSlice {}: no Service gets its endpoints; give it the label kubernetes.io/service-name \
             with the name of its Service",
            slice.name
        ));
    };
    if services.contains(service) {
        return None;
    }
    let here = services
        .iter()
        .filter(|it| it.namespace == service.namespace);
    let cure = match near(&service.name, here.map(|it| it.name.as_str())) {
        Some(meant) => format!("did you mean {meant}?"),
        None => "correct the label, or write the Service".to_owned(),
    };
    Some(one_line(&format!(
        "EndpointSlice {}: no manifest has the Service {service} that its label \
         kubernetes.io/service-name names; {cure}",
        slice.name
    )))
}

/// The kinds that are read, each with its `apiVersion`.
fn known(ingress: bool, gateway: bool) -> impl Iterator<Item = (&'static str, &'static str)> {
    let all = ["Service", "Pod", "EndpointSlice", "Ingress", "IngressClass"];
    let own = all.into_iter().take(if ingress { all.len() } else { 3 });
    let gateway = GatewayKind::ALL.into_iter().filter(move |_| gateway);
    own.map(|kind| (kind, version_of(kind).unwrap_or_default()))
        .chain(gateway.map(|it| (it.names().0, it.version())))
}

/// The `apiVersion` in which a kind is read that is not the Gateway API's; `None` for one that is not
/// read.
pub(super) fn version_of(kind: &str) -> Option<&'static str> {
    match kind {
        "Service" | "Pod" => Some("v1"),
        "EndpointSlice" => Some("discovery.k8s.io/v1"),
        "Ingress" | "IngressClass" => Some("networking.k8s.io/v1"),
        _ => None,
    }
}

/// Whether an `apiVersion` is one of Kubernetes itself. Names of other API groups have a domain
/// (<https://kubernetes.io/docs/reference/using-api/#api-groups>).
fn is_of_kubernetes(version: &str) -> bool {
    let group = version.split_once('/').map_or("", |(group, _)| group);
    !group.contains('.') || group.ends_with(".k8s.io")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::discovery::document::Format;
    use crate::discovery::manifest::parse;
    use serde_json::json;

    fn said(version: &str, kind: &str, is_all: bool) -> Option<String> {
        let fields = json!({"metadata": {"name": "a", "namespace": "web"}});
        PassedOver::of(Some(version), kind, &fields, (is_all, is_all)).map(|it| it.text)
    }

    #[test]
    fn what_was_probably_meant_is_named_with_its_cure() {
        let slice = "write it as discovery.k8s.io/v1";
        for (version, kind, expected) in [
            ("discovery.k8s.io/v1beta1", "EndpointSlice", slice),
            ("v1", "EndpointSlice", slice),
            ("discovery.k8.io/v1", "EndpointSlice", slice),
            ("apps/v1", "Service", "write it as v1"),
            (
                "v1",
                "Endpoints",
                "write an EndpointSlice (discovery.k8s.io/v1)",
            ),
            ("v1", "Sevice", "did you mean Service?"),
            ("v1", "Pods", "did you mean Pod?"),
            (
                "discovery.k8s.io/v1",
                "endpointslice",
                "did you mean EndpointSlice?",
            ),
        ] {
            let text = said(version, kind, false).unwrap_or_default();
            assert!(
                text.starts_with(&format!("{kind} web/a: ")),
                "{version} {kind}: {text}"
            );
            assert!(text.contains(expected), "{version} {kind}: {text}");
        }
        for (version, kind) in [
            ("extensions/v1beta1", "Ingress"),
            ("gateway.networking.k8s.io/v1beta1", "HTTPRoute"),
            ("networking.k8s.io/v1", "Ingres"),
        ] {
            assert!(said(version, kind, true).is_some(), "{version} {kind}");
            assert_eq!(said(version, kind, false), None, "{kind} is not served");
        }
    }

    #[test]
    fn what_is_of_no_use_here_is_not_named() {
        for (version, kind) in [
            ("serving.knative.dev/v1", "Service"),
            ("apps/v1", "Deployment"),
            ("batch/v1", "Job"),
            ("v1", "Node"),
            ("v1", "Secret"),
            ("apiregistration.k8s.io/v1", "APIService"),
            ("networking.k8s.io/v1", "NetworkPolicy"),
            ("example.com/v1", "Services"),
        ] {
            assert_eq!(said(version, kind, true), None, "{version} {kind}");
        }
    }

    #[test]
    fn a_slice_that_belongs_to_no_service_is_named_and_an_old_list_beside_slices_is_not() {
        let slice = |name: &str, labels: &str| {
            format!(
                "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\naddressType: IPv4\n\
                 metadata: {{name: {name}, namespace: web, labels: {{{labels}}}}}\nendpoints: []\n"
            )
        };
        let label = |name: &str| format!("kubernetes.io/service-name: {name}");
        let text = "apiVersion: v1\nkind: Service\nmetadata: {name: shop, namespace: web}\n"
            .to_owned()
            + &slice("good", &label("shop"))
            + &slice("bare", "")
            + &slice("empty", &label("''"))
            + &slice("typo", &label("shopp"))
            + &slice("lone", &label("gone"));
        let objects = parse(&text, Format::Yaml, None).unwrap();
        let list = |name: &str| {
            let fields = json!({"metadata": {"name": name, "namespace": "web"}});
            PassedOver::of(Some("v1"), "Endpoints", &fields, (false, false)).unwrap()
        };
        let lists = [list("shop"), list("other")];
        let file = "f";
        let found = all(
            objects.iter().map(|it| (&file, it)),
            lists.iter().map(|it| (&file, it)),
        );
        let found: Vec<&str> = found.iter().map(|(_, text)| text.as_str()).collect();
        insta::assert_snapshot!(found.join("\n"), @r"
        EndpointSlice web/bare: no Service gets its endpoints; give it the label kubernetes.io/service-name with the name of its Service
        EndpointSlice web/empty: no Service gets its endpoints; give it the label kubernetes.io/service-name with the name of its Service
        EndpointSlice web/typo: no manifest has the Service web/shopp that its label kubernetes.io/service-name names; did you mean shop?
        EndpointSlice web/lone: no manifest has the Service web/gone that its label kubernetes.io/service-name names; correct the label, or write the Service
        Endpoints web/other: this kind is not read; write an EndpointSlice (discovery.k8s.io/v1) instead
        ");
    }
}
