//! The connections of the server: HTTP/1.1, or over TLS what the client wants.

use std::sync::Arc;

use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::Api;

/// A certificate for 127.0.0.1, signed by itself, and its key.
const CERTIFICATE: &[u8] = include_bytes!("../../../fixtures/api-server.pem");

/// The certificate that a client must trust.
pub fn certificate() -> CertificateDer<'static> {
    CertificateDer::from_pem_slice(CERTIFICATE).unwrap()
}

pub(super) fn acceptor() -> TlsAcceptor {
    let key = PrivateKeyDer::from_pem_slice(CERTIFICATE).unwrap();
    let config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()));
    let config = config.with_safe_default_protocol_versions().unwrap();
    let config = config.with_no_client_auth();
    let mut config = config.with_single_cert(vec![certificate()], key).unwrap();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    TlsAcceptor::from(Arc::new(config))
}

impl Api {
    pub(super) async fn serve(self, listener: TcpListener, tls: Option<TlsAcceptor>) {
        let mut connections = JoinSet::new();
        let mut moved = self.shared.moved.subscribe();
        loop {
            if self.lock().unplugged {
                connections.abort_all();
            }
            tokio::select! {
                _ = moved.changed() => {}
                Some(_) = connections.join_next() => {}
                accepted = listener.accept() => {
                    let Ok((stream, _)) = accepted else { return };
                    if self.lock().unplugged {
                        continue;
                    }
                    connections.spawn(self.clone().serve_one(stream, tls.clone()));
                }
            }
        }
    }

    /// Serves one connection. It does not matter how a client ends it.
    async fn serve_one(self, stream: TcpStream, tls: Option<TlsAcceptor>) {
        let _open = Open::new(&self);
        let service = service_fn(|request| self.clone().answer(request));
        let Some(tls) = tls else {
            let http1 = http1::Builder::new();
            let _ = http1.serve_connection(TokioIo::new(stream), service).await;
            return;
        };
        let Ok(stream) = tls.accept(stream).await else {
            return;
        };
        let is_http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
        let stream = TokioIo::new(stream);
        if is_http2 {
            let mut http2 = http2::Builder::new(TokioExecutor::new());
            http2.max_concurrent_streams(100);
            let _ = http2.serve_connection(stream, service).await;
        } else {
            let _ = http1::Builder::new()
                .serve_connection(stream, service)
                .await;
        }
    }
}

/// One open connection.
struct Open(Api);

impl Open {
    fn new(api: &Api) -> Self {
        api.lock().connections += 1;
        Self(api.clone())
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.lock().connections -= 1;
        self.0.shared.notify();
    }
}
