//! Clients that speak TLS with the proxy. The modules have one subject each; here are the authority
//! that signs certificates for them, the rig with a TLS listener, and the client's side.

mod backend;
mod bytes;
mod drain;
mod handshake;
mod hostile;
mod passthrough;
mod rotation;
mod tickets;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, SanType};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, Error, SignatureScheme};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::support::folder::Folder;
use crate::support::rig::Rig;
use crate::support::wait::soon;

/// An authority that signs certificates.
pub struct Authority(CertifiedIssuer<'static, KeyPair>);

/// A certificate and its key, PEM.
pub struct Pair {
    pub certificate: String,
    pub key: String,
}

impl Authority {
    pub fn new() -> Self {
        let mut wanted = CertificateParams::new(Vec::new()).unwrap();
        wanted.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        Self(CertifiedIssuer::self_signed(wanted, key).unwrap())
    }

    pub fn pem(&self) -> String {
        self.0.pem()
    }

    pub fn sign(&self, names: &[&str]) -> Pair {
        self.sign_for(names, &[])
    }

    /// A certificate for these hosts and URIs.
    pub fn sign_for(&self, names: &[&str], uris: &[&str]) -> Pair {
        let names: Vec<String> = names.iter().map(|it| (*it).to_owned()).collect();
        let key = KeyPair::generate().unwrap();
        let mut wanted = CertificateParams::new(names).unwrap();
        let uris = uris.iter().map(|&it| SanType::URI(it.try_into().unwrap()));
        wanted.subject_alt_names.extend(uris);
        let signed = wanted.signed_by(&key, &self.0).unwrap();
        Pair {
            certificate: signed.pem(),
            key: key.serialize_pem(),
        }
    }
}

impl Pair {
    /// Writes `{name}.crt` and `{name}.key`. Each file is replaced by a rename, the key first.
    pub fn write(&self, folder: &Path, name: &str) {
        for (end, text) in [("key", &self.key), ("crt", &self.certificate)] {
            let new = folder.join("new.pem");
            std::fs::write(&new, text).unwrap();
            std::fs::rename(new, folder.join(format!("{name}.{end}"))).unwrap();
        }
    }

    pub fn der(&self) -> CertificateDer<'static> {
        CertificateDer::from_pem_slice(self.certificate.as_bytes()).unwrap()
    }

    pub fn key(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::from_pem_slice(self.key.as_bytes()).unwrap()
    }
}

/// A folder with `a.crt` and `a.key`, for `a.example`.
pub fn folder() -> (Folder, Pair) {
    let folder = Folder::new();
    let pair = Authority::new().sign(&["a.example"]);
    pair.write(folder.path(), "a");
    (folder, pair)
}

/// A configuration with one listener `web` for Service `web/shop` port 80, with these further fields
/// of `tls`, and `more` YAML at its end.
pub fn listener(protocol: &str, tls: &str, more: &str) -> String {
    let tls = format!("tls: {{certificates: [{{certificate: a.crt, key: a.key}}]{tls}}}");
    format!(
        "discovery: {{files: {{path: manifests}}}}\n\
         listeners: [{{name: web, address: '127.0.0.1:0', service: web/shop, port: 80, protocol: {protocol}, {tls}}}]\n\
         admin: {{address: '127.0.0.1:0'}}\nworkers: 2\n{more}\n"
    )
}

/// A proxy with the listener [`listener`] and the certificate of [`folder`].
pub async fn rig(protocol: &str, tls: &str, more: &str) -> Rig {
    Rig::run(folder().0, &listener(protocol, tls, more)).await
}

/// The first bytes of a client that asks for this name. An address asks for none.
pub fn hello(name: &str) -> Vec<u8> {
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let mut session = rustls::ClientConnection::new(Arc::new(trusting()), name).unwrap();
    let mut bytes = Vec::new();
    session.write_tls(&mut bytes).unwrap();
    bytes
}

/// A client that trusts everybody.
pub fn trusting() -> ClientConfig {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider);
    let config = config.with_safe_default_protocol_versions().unwrap();
    let config = config
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Trusting));
    config.with_no_client_auth()
}

/// The same, with one version of TLS.
pub fn speaking(version: &'static rustls::SupportedProtocolVersion) -> ClientConfig {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider);
    let config = config.with_protocol_versions(&[version]).unwrap();
    let config = config
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Trusting));
    config.with_no_client_auth()
}

pub async fn connect(
    to: SocketAddr,
    name: &str,
    config: &Arc<ClientConfig>,
) -> std::io::Result<TlsStream<TcpStream>> {
    let stream = TcpStream::connect(to).await?;
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let connector = TlsConnector::from(config.clone());
    soon("a handshake", connector.connect(name, stream)).await
}

/// A connection that must succeed.
pub async fn open(to: SocketAddr) -> TlsStream<TcpStream> {
    connect(to, "a.example", &Arc::new(trusting()))
        .await
        .unwrap()
}

/// The client's side of TLS as a program of its own: who connects to this address in the clear
/// reaches `to` over TLS, byte for byte, each end as it is.
pub async fn tunnel(to: SocketAddr) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let config = Arc::new(trusting());
    tokio::spawn(async move {
        while let Ok((mut plain, _)) = listener.accept().await {
            let config = config.clone();
            tokio::spawn(async move {
                let reset = |stream: &TcpStream| {
                    let now = Some(std::time::Duration::ZERO);
                    let _ = socket2::SockRef::from(stream).set_linger(now);
                };
                match connect(to, "a.example", &config).await {
                    Ok(mut tls) => {
                        if tokio::io::copy_bidirectional(&mut plain, &mut tls)
                            .await
                            .is_err()
                        {
                            reset(&plain);
                        }
                    }
                    Err(_) => reset(&plain),
                }
            });
        }
    });
    address
}

#[derive(Debug)]
struct Trusting;

impl ServerCertVerifier for Trusting {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        let provider = rustls::crypto::aws_lc_rs::default_provider();
        provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}
