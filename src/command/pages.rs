//! The admin pages of a running proxy, for subcommands that read them.
//!
//! Each page is one GET on a connection of its own, by hyper. The demo's client is not used here: the
//! URL comes from a user, so the host may be a name, a proxy may stand in between and need the `Host`
//! as given, and the response must be bounded.

use std::fmt;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use axum::body::{self, Body};
use axum::http::{Request, StatusCode, Uri, header};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::net::TcpStream;

use crate::command::through::Through;
use crate::config::fault::Refused;
use crate::text::seconds;

/// Where the pages of an instance are.
pub(super) enum Pages {
    /// At this URL, to which their paths are appended.
    At(Uri),
    /// At a pod, which the API server asks for us.
    Through(Box<Through>),
}

impl Pages {
    /// Finds them. `place` is a URL, `pod/NAMESPACE/NAME[:PORT]` or `cluster`, as `--admin` says.
    ///
    /// # Errors
    /// It is none of these, or the API server cannot be asked.
    pub(super) async fn find(place: &str) -> anyhow::Result<Self> {
        if place == CLUSTER || place.starts_with("pod/") {
            return Ok(Self::Through(Box::new(Through::find(place).await?)));
        }
        Ok(Self::At(base(place)?))
    }

    /// The JSON of a page. `path` may have a query.
    ///
    /// # Errors
    /// No response, or one that is not Ebbtide's.
    pub(super) async fn fetch<T: DeserializeOwned>(&self, path: &str) -> anyhow::Result<T> {
        match self {
            Self::At(base) => fetch(base, path).await,
            Self::Through(pod) => pod.fetch(path).await,
        }
    }
}

impl fmt::Display for Pages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::At(base) => f.write_str(base.to_string().trim_end_matches('/')),
            Self::Through(pod) => pod.fmt(f),
        }
    }
}

/// Any instance of the cluster.
const CLUSTER: &str = "cluster";

/// The URL of an admin address.
fn base(url: &str) -> anyhow::Result<Uri> {
    let text = url.trim().trim_end_matches('/');
    let text = if text.contains("://") {
        text.to_owned()
    } else {
        format!("http://{text}")
    };
    let refused = |what: &str| Refused::new("--admin", format!("{what}, found {url:?}"));
    let uri: Uri = text
        .parse()
        .map_err(|_| refused("expected a URL such as http://127.0.0.1:9901"))?;
    if uri.scheme_str() != Some("http") {
        let what = "the admin port speaks plain HTTP, expected http://HOST:PORT";
        return Err(refused(what).into());
    }
    if uri.query().is_some() {
        let what = "expected no query, a URL such as http://127.0.0.1:9901";
        return Err(refused(what).into());
    }
    Ok(uri)
}

async fn fetch<T: DeserializeOwned>(base: &Uri, path: &str) -> anyhow::Result<T> {
    let url = format!("{}{path}", base.to_string().trim_end_matches('/'));
    let answer = tokio::time::timeout(PATIENCE, get(base, &url)).await;
    let (status, bytes) = match answer {
        Ok(answer) => answer.with_context(|| {
            format!(
                "no response from {url} (is ebbtide running, and is --admin its admin.address?)"
            )
        })?,
        Err(_) => bail!(
            "no response from {url} within {}; is --admin its admin.address?",
            seconds(PATIENCE)
        ),
    };
    ensure!(
        status == StatusCode::OK,
        "{url} returned {status}; is --admin the admin.address of an ebbtide?"
    );
    serde_json::from_slice(&bytes).with_context(|| {
        format!(
            "the response of {url} is not Ebbtide's; is --admin the admin.address of an ebbtide?"
        )
    })
}

async fn get(base: &Uri, url: &str) -> anyhow::Result<(StatusCode, body::Bytes)> {
    let host = base.host().context("no host")?;
    let stream = TcpStream::connect(format!("{host}:{}", base.port_u16().unwrap_or(80))).await?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let url: Uri = url.parse()?;
    let path = url.path_and_query().context("no path")?;
    let request = Request::get(path.as_str())
        .header(header::HOST, base.authority().context("no host")?.as_str())
        .header(header::CONNECTION, "close")
        .body(Body::empty())?;
    let exchange = async {
        let response = sender.send_request(request).await?;
        let status = response.status();
        anyhow::Ok((
            status,
            body::to_bytes(Body::new(response.into_body()), LARGEST).await?,
        ))
    };
    // The connection must be polled while the exchange waits. If the connection ends first, the
    // exchange reports the error.
    tokio::pin!(exchange);
    tokio::select! {
        answer = &mut exchange => answer,
        _ = connection => exchange.await,
    }
}

/// How long one request with its whole response may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// The largest response in bytes. 100,000 endpoints take about 25 MB.
const LARGEST: usize = 256 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bad_addresses_name_the_cure() {
        for (url, says) in [
            ("https://127.0.0.1:9901", "plain HTTP"),
            ("http://127.0.0.1:9901/?x=1", "no query"),
            ("http://not a host", "such as http://127.0.0.1:9901"),
            ("", "such as http://127.0.0.1:9901"),
        ] {
            let error = format!("{:#}", base(url).unwrap_err());
            assert!(
                error.contains(says)
                    && error.starts_with("--admin: ")
                    && error.contains(&format!("{url:?}")),
                "{url}: {error}"
            );
        }
        assert_eq!(base("http://h:1/prefix/").unwrap().path(), "/prefix");
    }
}
