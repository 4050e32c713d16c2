//! Certificates that change while they are in use.

use std::sync::Arc;

use crate::proxy::ingress::secret;
use crate::proxy::play::{Act, OK, Play};
use crate::proxy::tls::handshake::ask;
use crate::proxy::tls::{Authority, connect, folder, listener, open, trusting};
use crate::support::folder::{Ep, Folder};
use crate::support::process::Process;
use crate::support::rig::Rig;
use crate::support::wait::eventually;
use rustls::pki_types::CertificateDer;

async fn shown(rig: &Rig) -> CertificateDer<'static> {
    let stream = connect(rig.web(), "a.example", &Arc::new(trusting()))
        .await
        .unwrap();
    stream.get_ref().1.peer_certificates().unwrap()[0]
        .clone()
        .into_owned()
}

fn problems(rig: &Rig) -> String {
    let problems = rig.running().admin.health.state().certificates;
    problems
        .iter()
        .map(|it| format!("{}: {}\n", it.subject, it.error))
        .collect()
}

#[tokio::test]
async fn a_new_certificate_serves_new_clients_and_closes_no_connection() {
    let endpoint = Play::start(|_| Act::Say(OK.into())).await;
    let (folder, old) = folder();
    let rig = Rig::run(folder, &listener("http", "", "")).await;
    rig.endpoints(&[Ep::new("e", endpoint.address())]);
    rig.usable(1).await;
    let mut kept = open(rig.web()).await;
    assert_eq!(ask(&mut kept).await.unwrap(), OK);
    assert_eq!(shown(&rig).await, old.der());
    let new = Authority::new().sign(&["a.example"]);
    new.write(rig.path(), "a");
    eventually("the new certificate", async || {
        assert_eq!(ask(&mut kept).await.unwrap(), OK, "under load");
        shown(&rig).await == new.der()
    })
    .await;
    assert_eq!(ask(&mut kept).await.unwrap(), OK);
    assert_eq!(problems(&rig), "");
}

#[tokio::test]
async fn a_broken_certificate_is_named_and_the_last_good_one_stays() {
    let (folder, old) = folder();
    let rig = Rig::run(folder, &listener("http", "", "")).await;
    assert_eq!(shown(&rig).await, old.der());
    let other = Authority::new().sign(&["a.example"]);
    let file = |end: &str| rig.path().join(format!("a.{end}"));
    for (what, text) in [
        ("does not belong to the certificate", other.key.as_str()),
        ("holds no private key", ""),
        ("cannot be read", "gone"),
    ] {
        match text {
            "gone" => std::fs::remove_file(file("key")).unwrap(),
            text => std::fs::write(file("key"), text).unwrap(),
        }
        eventually(what, async || {
            let problems = problems(&rig);
            problems.contains(what) && problems.starts_with("listener web: ")
        })
        .await;
        assert_eq!(shown(&rig).await, old.der(), "{what}");
    }
    other.write(rig.path(), "a");
    eventually("the new certificate", async || {
        shown(&rig).await == other.der() && problems(&rig).is_empty()
    })
    .await;
}

#[tokio::test]
async fn an_expired_certificate_is_served_and_named() {
    let (folder, _) = folder();
    let mut wanted = rcgen::CertificateParams::new(vec!["a.example".to_owned()]).unwrap();
    wanted.not_after = rcgen::date_time_ymd(2001, 1, 1);
    wanted.not_before = rcgen::date_time_ymd(2000, 1, 1);
    let key = rcgen::KeyPair::generate().unwrap();
    std::fs::write(
        folder.path().join("a.crt"),
        wanted.self_signed(&key).unwrap().pem(),
    )
    .unwrap();
    std::fs::write(folder.path().join("a.key"), key.serialize_pem()).unwrap();
    let rig = Rig::run(folder, &listener("http", "", "")).await;
    eventually("the expiry", async || {
        problems(&rig).contains("expired at 2001-01-01")
    })
    .await;
    shown(&rig).await;
}

#[tokio::test]
async fn a_secret_of_the_folder_is_served_and_stays_in_force_when_it_is_gone() {
    let folder = Folder::new();
    let text = listener("http", "", "").replace(
        "certificates: [{certificate: a.crt, key: a.key}]",
        "secrets: [web/shop-tls]",
    );
    let authority = Authority::new();
    let (first, second) = (
        authority.sign(&["a.example"]),
        authority.sign(&["a.example"]),
    );
    let rig = Rig::run(folder, &text).await;
    let config = Arc::new(trusting());
    let missing = "listener web: Secret web/shop-tls: there is no such Secret\n";
    eventually("the Secret is missed", async || problems(&rig) == missing).await;
    let refused = connect(rig.web(), "a.example", &config).await;
    assert!(refused.is_err(), "there is no certificate");
    rig.write("secret.json", &secret("shop-tls", &first));
    eventually("the Secret", async || problems(&rig).is_empty()).await;
    assert_eq!(shown(&rig).await, first.der());
    rig.write("secret.json", &secret("shop-tls", &second));
    eventually("its new certificate", async || {
        shown(&rig).await == second.der()
    })
    .await;
    rig.remove("secret.json");
    eventually("its end is told", async || problems(&rig) == missing).await;
    assert_eq!(shown(&rig).await, second.der(), "the last one stays");
}

#[tokio::test]
async fn a_key_is_on_no_page_and_in_no_log() {
    let pair = Authority::new().sign(&["a.example"]);
    let folder = tempfile::tempdir().unwrap();
    pair.write(folder.path(), "a");
    let files = folder.path().display();
    let text = listener("http", ", secrets: [web/shop-tls, web/broken]", "")
        .replace("a.crt", &format!("{files}/a.crt"));
    let text = text.replace("a.key", &format!("{files}/a.key"));
    let process = Process::run(&[], &text, &["web"]).await;
    process
        .folder
        .write("secret.json", &secret("shop-tls", &pair));
    let mut broken = secret("broken", &pair);
    broken["stringData"]["tls.key"] = format!("{}{}", &pair.key[..90], "!").into();
    process.folder.write("broken.json", &broken);
    let ready = async || {
        process
            .proxy
            .page("/readyz")
            .await
            .unwrap()
            .text()
            .into_owned()
    };
    eventually("the broken one is named", async || {
        ready().await.contains("web/broken: the")
    })
    .await;
    let mut shown = ready().await;
    for path in ["/", "/metrics", "/api/v1/status", "/api/v1/drains"] {
        shown += &process.proxy.page(path).await.unwrap().text();
    }
    shown += &process.proxy.log_tail();
    assert!(shown.contains("certificates are in force"), "{shown}");
    for line in pair.key.lines().filter(|it| !it.starts_with('-')) {
        assert!(!shown.contains(&line[..line.len().min(16)]), "{shown}");
    }
}
