//! Secrets with certificates, which listeners name, and Secrets and ConfigMaps with authorities, which
//! Services name: each is watched alone, and what is known of it outlives it.

use std::collections::BTreeSet;
use std::time::Duration;

use ebbtide::cluster::api::connect;
use ebbtide::command::demo::client::Client;
use ebbtide::contract::authorities::{FoundAuthorities, Holder, HolderKind};
use ebbtide::contract::name::ObjectName;
use ebbtide::discovery::secret::Found;
use ebbtide::discovery::secrets;
use ebbtide::discovery::source::{InUse, Message};
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};

use super::api::{Api, Fault, Kind, Verb};
use super::rig::{Rig, service, shop};
use crate::support::wait::{eventually, soon};

fn secret(name: &str, host: &str) -> Value {
    let made = rcgen::generate_simple_self_signed([host.to_owned()]).unwrap();
    let data = |text: String| k8s_openapi::ByteString(text.into_bytes());
    json!({
        "apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/tls",
        "metadata": {"namespace": "web", "name": name},
        "data": {"tls.crt": data(made.cert.pem()), "tls.key": data(made.signing_key.serialize_pem())},
    })
}

struct Source {
    in_use: watch::Sender<InUse>,
    messages: mpsc::Receiver<Message>,
}

impl Source {
    fn start(api: &Api, names: &[&str]) -> Self {
        let config = kube::Config::new(format!("http://{}", api.address).parse().unwrap());
        let (client, _, _) = connect(config).unwrap();
        let (in_use, used) = watch::channel(using(names));
        let (out, messages) = mpsc::channel(64);
        tokio::spawn(secrets::run(client, Duration::from_secs(75), used, out));
        Self { in_use, messages }
    }

    /// What is reported next.
    async fn next(&mut self) -> (String, Found) {
        match soon("a report", self.messages.recv()).await {
            Some(Message::Certificate { secret, found }) => (secret.to_string(), found),
            other => panic!("{other:?}"),
        }
    }

    /// What is reported next of an object with authorities.
    async fn authorities(&mut self) -> (String, Option<FoundAuthorities>) {
        match soon("a report", self.messages.recv()).await {
            Some(Message::Authorities { holder, found }) => (holder.to_string(), found),
            other => panic!("{other:?}"),
        }
    }

    async fn names(&mut self) -> Vec<String> {
        let (secret, found) = self.next().await;
        [vec![secret], found.unwrap().names().to_vec()].concat()
    }
}

fn using(names: &[&str]) -> InUse {
    let secrets = names.iter().map(|name| ObjectName::new("web", *name));
    InUse {
        secrets: secrets.collect::<BTreeSet<_>>(),
        ..InUse::default()
    }
}

#[tokio::test]
async fn only_the_secrets_that_listeners_name_are_read_and_each_alone() {
    for streams in [false, true] {
        let api = Api::start().await;
        if streams {
            api.stream();
        }
        api.apply(&secret("shop", "shop.example"));
        api.apply(&secret("other", "other.example"));
        let mut source = Source::start(&api, &["shop"]);
        assert_eq!(source.names().await, ["web/shop", "shop.example"]);
        source.in_use.send_replace(using(&["shop", "other"]));
        assert_eq!(source.names().await, ["web/other", "other.example"]);
        api.apply(&secret("shop", "new.example"));
        assert_eq!(source.names().await, ["web/shop", "new.example"]);
        source.in_use.send_replace(using(&["shop"]));
        api.apply(&secret("shop", "newer.example"));
        assert_eq!(source.names().await, ["web/shop", "newer.example"]);
        let asked = api.asked();
        let asked = asked.iter().filter(|it| it.kind == Kind::Secrets);
        for asked in asked {
            assert_eq!(asked.namespace.as_deref(), Some("web"));
            let selector = asked.selector.as_deref().unwrap();
            assert!(selector.starts_with("metadata.name="), "{selector}");
        }
        assert_eq!(api.complaints(), Vec::<String>::new());
    }
}

#[tokio::test]
async fn a_secret_that_is_missing_broken_gone_or_forbidden_is_told_of_and_comes_back() {
    let api = Api::start().await;
    let mut source = Source::start(&api, &["shop"]);
    let missing = "there is no such Secret";
    assert_eq!(source.next().await.1.unwrap_err(), missing);
    api.apply(&secret("shop", "shop.example"));
    assert_eq!(source.names().await, ["web/shop", "shop.example"]);
    let mut broken = secret("shop", "shop.example");
    broken["data"]["tls.key"] = secret("x", "x.example")["data"]["tls.key"].clone();
    api.apply(&broken);
    let error = source.next().await.1.unwrap_err();
    assert!(
        error.contains("does not belong to the certificate"),
        "{error}"
    );
    api.delete(Kind::Secrets, "web", "shop");
    assert_eq!(source.next().await.1.unwrap_err(), missing);

    let api = Api::start().await;
    api.forbid(Kind::Secrets, Some("web"));
    let mut source = Source::start(&api, &["shop"]);
    let error = source.next().await.1.unwrap_err();
    assert!(
        error.starts_with("it may not be read; grant get, list and watch"),
        "{error}"
    );
    api.allow(Kind::Secrets, Some("web"));
    api.apply(&secret("shop", "shop.example"));
    loop {
        match source.next().await.1 {
            Ok(found) => break assert_eq!(found.names(), ["shop.example"]),
            Err(error) => assert!(
                error.contains("may not be read") || error == missing,
                "{error}"
            ),
        }
    }
}

#[tokio::test]
async fn a_listener_has_the_secret_that_it_names_as_soon_as_there_is_one() {
    let api = shop(1).await;
    let web = "listeners: [{name: web, address: '127.0.0.1:0', service: web/shop, port: 80, \
               tls: {secrets: [web/shop-tls]}}]";
    let rig = Rig::launch(&api, "", web);
    rig.ready().await;
    let problems = || rig.running().admin.health.state().certificates;
    let missing = "Secret web/shop-tls: there is no such Secret";
    eventually("the Secret is missed", async || {
        problems().iter().any(|it| it.error == missing)
    })
    .await;
    api.apply(&secret("shop-tls", "shop.example"));
    eventually("the Secret", async || problems().is_empty()).await;
    api.delete(Kind::Secrets, "web", "shop-tls");
    eventually("its end", async || {
        problems().iter().any(|it| it.error == missing)
    })
    .await;
}

fn config_map(name: &str, pem: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"namespace": "web", "name": name}, "data": {"ca.crt": pem},
    })
}

fn authority() -> String {
    let made = rcgen::generate_simple_self_signed(["authority".to_owned()]).unwrap();
    made.cert.pem()
}

fn naming(kinds: &[HolderKind]) -> InUse {
    let holder = |kind: &HolderKind| Holder {
        kind: *kind,
        name: ObjectName::new("web", "ca"),
    };
    InUse {
        holders: kinds.iter().map(holder).collect(),
        ..InUse::default()
    }
}

#[tokio::test]
async fn only_the_objects_with_authorities_that_services_name_are_read_and_each_alone() {
    let api = Api::start().await;
    let (first, second) = (authority(), authority());
    let mut secret = secret("ca", "a.example");
    secret["data"]["ca.crt"] = json!(k8s_openapi::ByteString(first.clone().into_bytes()));
    secret["type"] = "Opaque".into();
    api.apply(&secret);
    api.apply(&config_map("ca", "no PEM"));
    let mut source = Source::start(&api, &[]);
    source.in_use.send_replace(naming(&[HolderKind::Secret]));
    let (holder, found) = source.authorities().await;
    assert_eq!(holder, "Secret web/ca");
    assert_eq!(&*found.unwrap().unwrap(), first);
    // In place of the Secret, the ConfigMap of the same name.
    source.in_use.send_replace(naming(&[HolderKind::ConfigMap]));
    let gone = ("Secret web/ca".to_owned(), None);
    assert_eq!(source.authorities().await, gone);
    let (holder, found) = source.authorities().await;
    assert_eq!(holder, "ConfigMap web/ca");
    let error = found.unwrap().unwrap_err();
    assert!(error.starts_with("ca.crt: "), "{error}");
    api.apply(&config_map("ca", &second));
    assert_eq!(&*source.authorities().await.1.unwrap().unwrap(), second);
    api.delete(Kind::ConfigMaps, "web", "ca");
    let error = source.authorities().await.1.unwrap().unwrap_err();
    assert_eq!(error, "there is no such ConfigMap");

    api.forbid(Kind::Secrets, Some("web"));
    source
        .in_use
        .send_replace(naming(&[HolderKind::ConfigMap, HolderKind::Secret]));
    let error = source.authorities().await.1.unwrap().unwrap_err();
    let expected =
        "it may not be read; grant get, list and watch for the Secret ca in namespace web";
    assert!(error.starts_with(expected), "{error}");
    assert_eq!(api.complaints(), Vec::<String>::new());
}

#[tokio::test]
async fn requests_wait_until_it_is_known_whom_the_endpoints_certificates_must_come_from() {
    let api = shop(1).await;
    let mut shop = service("shop");
    let backend = r#"{"hostname": "shop.example", "caConfigMap": "ca"}"#;
    shop["metadata"]["annotations"]["ebbtide.dev/backend-tls"] = backend.into();
    shop["spec"]["ports"][0]["appProtocol"] = "https".into();
    api.apply(&shop);
    api.fault(Kind::ConfigMaps, Verb::List, Fault::Wait);
    let rig = Rig::start(&api).await;
    rig.shop(&[1]).await;
    let port = || rig.port("shop").unwrap();
    let waits = || port().policy.backend.as_ref().unwrap().waits;
    assert!(waits());
    let web = rig.running().listener("web").unwrap();
    let client = tokio::spawn(async move {
        let mut client = Client::connect(web).await.unwrap();
        client.exchange("GET", "/", "", b"").await
    });
    let held = || port().metrics.held_now.get();
    eventually("a request is held", async || held() == 1).await;
    api.lift(Kind::ConfigMaps, Verb::List);
    eventually("its end", async || held() == 0).await;
    assert!(!waits());
    let endpoint = "10.0.0.1".parse().unwrap();
    let session = |what: &str| {
        let refused = port()
            .policy
            .backend
            .as_ref()
            .unwrap()
            .session(endpoint, false);
        assert_eq!(refused.err().unwrap_or_default(), what);
    };
    session("ConfigMap web/ca: there is no such ConfigMap");
    client.abort();
    let is_ready = || {
        let backend = port().policy.backend.clone().unwrap();
        backend.session(endpoint, false).is_ok()
    };
    api.apply(&config_map("ca", &authority()));
    eventually("authorities", async || is_ready()).await;
    // What is known outlives the object.
    api.delete(Kind::ConfigMaps, "web", "ca");
    rig.barrier(&[]).await;
    assert!(is_ready());
    // Of another object nothing is known.
    shop["metadata"]["annotations"]["ebbtide.dev/backend-tls"] =
        backend.replace("ca\"}", "other\"}").into();
    api.apply(&shop);
    eventually("the other is missed", async || {
        let backend = port().policy.backend.clone().unwrap();
        let refused = backend.session(endpoint, false).err().unwrap_or_default();
        refused == "ConfigMap web/other: there is no such ConfigMap"
    })
    .await;
}
