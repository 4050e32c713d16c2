//! The elected writer: one instance of an installation writes the status of Ingress objects, and
//! Events on what it cannot serve of them.

use serde_json::{Value, json};

use super::api::{Api, Kind};
use super::ingress::ingress;
use super::rig::{Rig, shop};
use crate::support::wait::eventually;

const LEASE: &str = "ebbtide";
const INGRESS: &str = "ingress: {addresses: [127.0.0.1], httpPort: 0, httpsPort: 0, \
                       publish: [192.0.2.1, lb.example]}";

fn published(api: &Api, name: &str) -> Value {
    api.object(Kind::Ingresses, "web", name)["status"]["loadBalancer"]["ingress"].clone()
}

fn ours() -> Value {
    json!([{"ip": "192.0.2.1"}, {"hostname": "lb.example"}])
}

async fn until(api: &Api, name: &str, expected: &Value) {
    let what = format!("the status of {name}: {expected}");
    eventually(&what, async || published(api, name) == *expected).await;
}

fn class(name: &str, controller: &str, is_default: bool) -> Value {
    let default = json!({"ingressclass.kubernetes.io/is-default-class": is_default.to_string()});
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "IngressClass",
        "metadata": {"name": name, "annotations": default},
        "spec": {"controller": controller},
    })
}

#[tokio::test]
async fn one_instance_writes_statuses_and_another_goes_on_when_it_ends() {
    let api = shop(1).await;
    api.apply(&ingress("a", "ebbtide", "shop"));
    let first = Rig::launch(&api, "", INGRESS);
    until(&api, "a", &ours()).await;
    let holder = api.holder(LEASE).unwrap();
    let second = Rig::launch(&api, "", INGRESS);
    second.ready().await;
    api.apply(&ingress("b", "ebbtide", "shop"));
    until(&api, "b", &ours()).await;
    assert_eq!(api.holder(LEASE), Some(holder.clone()));
    // What the first has not written when it ends, the second knows already.
    api.answer_patches(Some(500));
    api.apply(&ingress("c", "ebbtide", "shop"));
    tokio::task::spawn_blocking(move || drop(first))
        .await
        .unwrap();
    assert_eq!(api.releases(), 1, "it is not waited for until it expires");
    eventually("another holder", async || {
        api.holder(LEASE).is_some_and(|it| it != holder)
    })
    .await;
    api.answer_patches(None);
    until(&api, "c", &ours()).await;
    let written: Vec<String> = api.patched().into_iter().map(|it| it.name).collect();
    assert_eq!(written, ["a", "b", "c"], "each once");
}

#[tokio::test]
async fn a_lease_of_another_is_waited_for_and_nothing_is_written() {
    let api = shop(1).await;
    let now = api.time(0).replace('Z', ".000000Z");
    let spec = json!({"holderIdentity": "other", "leaseDurationSeconds": 3_600, "renewTime": now});
    api.lease(LEASE, spec);
    api.apply(&ingress("a", "ebbtide", "shop"));
    let rig = Rig::launch(&api, "", INGRESS);
    rig.ready().await;
    rig.shop(&[1]).await;
    assert_eq!(published(&api, "a"), Value::Null);
    // It expires a second after it is seen to have changed, whatever its time says.
    let spec = json!({"holderIdentity": "other", "leaseDurationSeconds": 1, "renewTime": null});
    api.lease(LEASE, spec);
    until(&api, "a", &ours()).await;
    assert_ne!(api.holder(LEASE).unwrap(), "other");
}

#[tokio::test]
async fn a_status_is_kept_as_it_should_be_and_taken_away_only_by_who_wrote_it() {
    let api = shop(1).await;
    let mut foreign = ingress("foreign", "nginx", "shop");
    foreign["status"] = json!({"loadBalancer": {"ingress": [{"ip": "198.51.100.7"}]}});
    api.apply(&foreign);
    api.apply(&ingress("a", "ebbtide", "shop"));
    let rig = Rig::launch(&api, "", INGRESS);
    until(&api, "a", &ours()).await;
    assert_eq!(api.patched()[0].manager, "default/ebbtide");
    // Somebody undoes it.
    let mut undone = api.object(Kind::Ingresses, "web", "a");
    undone["status"] = json!({});
    api.apply(&undone);
    until(&api, "a", &ours()).await;
    let mut given_away = api.object(Kind::Ingresses, "web", "a");
    given_away["spec"]["ingressClassName"] = "nginx".into();
    api.apply(&given_away);
    until(&api, "a", &Value::Null).await;
    assert_eq!(published(&api, "foreign"), json!([{"ip": "198.51.100.7"}]));
    assert!(api.patched().iter().all(|it| it.name == "a"));
    rig.shop(&[]).await;
}

#[tokio::test]
async fn classes_of_our_controller_are_ours_and_a_default_one_has_those_without_a_class() {
    let api = shop(1).await;
    api.apply(&class("inner", "ebbtide.dev/ingress", false));
    api.apply(&class("nginx", "k8s.io/ingress-nginx", true));
    api.apply(&ingress("a", "inner", "shop"));
    let mut without = ingress("b", "", "shop");
    without["spec"]
        .as_object_mut()
        .unwrap()
        .remove("ingressClassName");
    api.apply(&without);
    let rig = Rig::launch(&api, "", INGRESS);
    rig.ready().await;
    rig.shop(&[1]).await;
    until(&api, "a", &ours()).await;
    assert_eq!(published(&api, "b"), Value::Null);
    api.apply(&class("inner", "ebbtide.dev/ingress", true));
    until(&api, "b", &ours()).await;
    api.delete(Kind::Classes, "", "inner");
    until(&api, "a", &Value::Null).await;
    until(&api, "b", &Value::Null).await;
    rig.shop(&[]).await;
}

#[tokio::test]
async fn a_service_may_say_where_ingresses_are_served() {
    let api = shop(1).await;
    api.apply(&ingress("a", "ebbtide", "shop"));
    let mut balancer = super::rig::service("edge");
    balancer["status"] = json!({"loadBalancer": {"ingress": [{"ip": "192.0.2.9"}]}});
    api.apply(&balancer);
    let config =
        "ingress: {addresses: [127.0.0.1], httpPort: 0, httpsPort: 0, publishService: web/edge}";
    let rig = Rig::launch(&api, "", config);
    until(&api, "a", &json!([{"ip": "192.0.2.9"}])).await;
    balancer["status"] = json!({"loadBalancer": {"ingress": [{"hostname": "lb.example"}]}});
    api.apply(&balancer);
    until(&api, "a", &json!([{"hostname": "lb.example"}])).await;
    assert!(rig.port("edge").is_none(), "it is not served");
}

#[tokio::test]
async fn what_is_not_served_is_an_event_on_the_ingress_by_the_elected_one() {
    let api = shop(1).await;
    let mut broken = ingress("a", "ebbtide", "gone");
    let bucket = json!({"apiGroup": "x", "kind": "Bucket", "name": "b"});
    broken["spec"]["defaultBackend"] = json!({"resource": bucket});
    broken["spec"]["tls"] = json!([{"secretName": "no-such"}]);
    api.apply(&broken);
    api.apply(&ingress("b", "nginx", "gone"));
    let rigs = [
        Rig::launch(&api, "", INGRESS),
        Rig::launch(&api, "", INGRESS),
    ];
    let notes = || {
        let mut notes = api.posted();
        notes.retain(|it| it["regarding"]["kind"] == "Ingress");
        notes
    };
    eventually("three Events", async || notes().len() == 3).await;
    let mut texts: Vec<_> = notes().iter().map(|it| it["note"].to_string()).collect();
    texts.sort_unstable();
    assert_eq!(
        texts,
        [
            "\"Secret web/no-such: there is no such Secret\"",
            "\"spec.defaultBackend.resource is not served\"",
            "\"there is no Service web/gone\"",
        ]
    );
    let expected = json!({"apiVersion": "networking.k8s.io/v1", "kind": "Ingress", "namespace": "web", "name": "a", "uid": "a"});
    assert_eq!(notes()[0]["regarding"], expected);
    assert_eq!(api.refused_events(), 0, "the others post nothing");
    drop(rigs);
}
