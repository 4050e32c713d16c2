//! The annotation `ebbtide.dev/retry-on: unavailable`: an application's own "not now" sends a request to
//! another endpoint, whatever its method. Nobody else's requests are sent twice.

use http::Response;
use serde_json::json;

use crate::proxy::h2::app::Version::{self, H1, H2};
use crate::proxy::h2::app::{Answer, App, Call, Client, data, request, with};
use crate::support::folder::Folder;
use crate::support::manifests::service;
use crate::support::rig::{Rig, one_listener};

/// An endpoint that can serve nothing now, as HTTP or as gRPC says it.
async fn busy(version: Version) -> App {
    App::start(version, |call: Call| async move {
        let grpc = call.parts.headers.contains_key("content-type");
        let mut response = Response::new(());
        match grpc {
            true => {
                _ = response
                    .headers_mut()
                    .insert("grpc-status", "14".parse().unwrap())
            }
            false => *response.status_mut() = http::StatusCode::SERVICE_UNAVAILABLE,
        }
        call.reply.send(response, None);
    })
    .await
}

async fn well(version: Version) -> App {
    App::start(version, |call: Call| async move { call.reply.say("well") }).await
}

async fn before(endpoints: &[&App], app: &str, retry_on: Option<&str>) -> Rig {
    let annotations = match retry_on {
        Some(what) => json!({ "ebbtide.dev/retry-on": what }),
        None => json!({}),
    };
    let (folder, mut shop) = (Folder::new(), service("shop", annotations));
    shop["spec"]["ports"][0]["appProtocol"] = json!(app);
    folder.write("service.json", &shop);
    let text =
        one_listener("auto", "retry: {budgetFloor: 1000}").replace("workers: 2", "workers: 1");
    let rig = Rig::run(folder, &text).await;
    let named = endpoints.iter().enumerate();
    let eps: Vec<_> = named.map(|(at, it)| it.ep(&format!("e{at}"))).collect();
    rig.endpoints(&eps);
    rig.usable(eps.len()).await;
    rig
}

/// The answer to a POST, or to a call of gRPC.
async fn post(client: &mut Client, grpc: bool) -> Answer {
    let kind: &[_] = match grpc {
        true => &[("content-type", "application/grpc")],
        false => &[],
    };
    let asked = client.ask(with(request("POST", "/"), kind), data("x"));
    asked.await.unwrap()
}

/// How many of 20 POSTs were answered by an endpoint that is well.
async fn served(rig: &Rig, version: Version, grpc: bool) -> usize {
    let mut client = Client::connect(version, rig.web()).await;
    let mut served = 0;
    for _ in 0..20 {
        let answer = post(&mut client, grpc).await;
        let is_well = answer.status() == 200 && answer.field("grpc-status").is_empty();
        served += usize::from(is_well);
    }
    served
}

#[tokio::test]
async fn an_application_that_is_unavailable_sends_its_requests_elsewhere_where_its_service_says_so()
{
    for (endpoint, app, client, grpc) in [
        (H1, "http", H1, false),
        (H1, "http", H2, false),
        (H2, "grpc", H2, true),
    ] {
        let (busy, well) = (busy(endpoint).await, well(endpoint).await);
        let rig = before(&[&busy, &well], app, None).await;
        assert!(
            served(&rig, client, grpc).await < 20,
            "{app}: nobody is to send it again"
        );
        let asked = busy.calls();
        let rig = before(&[&busy, &well], app, Some("unavailable")).await;
        assert_eq!(served(&rig, client, grpc).await, 20, "{app}");
        assert!(busy.calls() > asked, "{app}: it was not asked at all");
    }
}

#[tokio::test]
async fn where_every_endpoint_is_unavailable_the_attempts_are_bounded() {
    for (endpoint, app, grpc) in [(H1, "http", false), (H2, "grpc", true)] {
        let (one, other) = (busy(endpoint).await, busy(endpoint).await);
        let rig = before(&[&one, &other], app, Some("unavailable")).await;
        let mut client = Client::connect(H2, rig.web()).await;
        let answer = post(&mut client, grpc).await;
        assert_eq!(answer.field("x-ebbtide-reason"), "endpoint_unavailable");
        match grpc {
            true => assert_eq!((answer.status(), answer.field("grpc-status")), (200, "14")),
            false => assert_eq!(answer.status(), 503),
        }
        // `retry.attempts` is 3.
        assert_eq!(one.calls() + other.calls(), 3, "{app}");
    }
}
