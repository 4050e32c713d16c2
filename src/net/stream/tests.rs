//! Both ends of a TLS connection in this process, over a real socket.

use std::future::poll_fn;
use std::net::TcpListener;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use rustls::pki_types::{PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection};

use crate::net::socket::Peer;
use crate::net::stream::Stream;

/// The client's end and the server's end, after the handshake.
async fn pair(version: &'static rustls::SupportedProtocolVersion) -> (Stream, Stream) {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let certificate = made.cert.der().clone();
    let key = PrivateKeyDer::Pkcs8(made.signing_key.serialize_der().into());
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let server = ServerConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[version])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.clone()], key)
        .unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(certificate).unwrap();
    let client = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[version])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut near = Stream::connect(listener.local_addr().unwrap(), None).unwrap();
    let accepted = listener.accept().unwrap().0;
    accepted.set_nonblocking(true).unwrap();
    let mut far = Stream::accepted(accepted.into()).unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    let client = ClientConnection::new(Arc::new(client), name).unwrap();
    near.begin_tls(client, &[], 7).unwrap();
    far.begin_tls(ServerConnection::new(Arc::new(server)).unwrap(), &[], 8)
        .unwrap();
    let (a, b) = tokio::join!(
        poll_fn(|cx| near.poll_handshake(cx)),
        poll_fn(|cx| far.poll_handshake(cx))
    );
    a.and(b).unwrap();
    (near, far)
}

const VERSIONS: [&rustls::SupportedProtocolVersion; 2] =
    [&rustls::version::TLS12, &rustls::version::TLS13];

async fn read(stream: &mut Stream, room: usize) -> std::io::Result<Vec<u8>> {
    let mut room = vec![0; room];
    poll_fn(|cx| stream.poll_read(cx, &mut room).map_ok(<[u8]>::to_vec)).await
}

fn is_readable(stream: &Stream) -> bool {
    let mut cx = Context::from_waker(Waker::noop());
    stream.poll_read_ready(&mut cx).is_ready()
}

#[tokio::test(flavor = "local")]
async fn what_tls_itself_sends_is_nothing_to_read() {
    let (mut near, mut far) = pair(&rustls::version::TLS13).await;
    far.write_all(b"x").await.unwrap();
    assert_eq!(read(&mut near, 9).await.unwrap(), b"x");
    assert!(!is_readable(&near) && near.is_quiet() && !near.has_ended());
    let (near, _far) = pair(&rustls::version::TLS13).await;
    while crate::net::socket::is_quiet(near.socket().unwrap()) {
        tokio::task::yield_now().await;
    }
    assert!(near.is_quiet(), "the tickets are in the socket");
    assert!(!is_readable(&near) && !near.has_ended());
    assert_eq!(near.peer(), Peer::Open);
}

#[tokio::test(flavor = "local")]
async fn a_rest_that_is_decrypted_already_can_be_read() {
    for version in VERSIONS {
        let (mut near, mut far) = pair(version).await;
        far.write_all(&[7; 10_000]).await.unwrap();
        assert_eq!(read(&mut near, 100).await.unwrap().len(), 100);
        // It was one record, so the socket has nothing left.
        assert!(crate::net::socket::is_quiet(near.socket().unwrap()));
        assert!(is_readable(&near) && !near.is_quiet());
        far.shutdown().await.unwrap();
        near.readable().await.unwrap();
        assert!(is_readable(&near) && !near.is_quiet() && !near.has_ended());
        while near.peer() == Peer::Open {
            tokio::task::yield_now().await;
        }
        assert_eq!(near.peer(), Peer::HalfClosed);
        let mut left = 9_900;
        while left > 0 {
            left -= read(&mut near, 16 << 10).await.unwrap().len();
        }
        assert_eq!(read(&mut near, 9).await.unwrap(), b"", "a clean end");
        assert!(near.has_ended() && is_readable(&near));
    }
}

#[tokio::test(flavor = "local")]
async fn a_fin_without_a_close_notify_is_an_error_and_an_end() {
    for version in VERSIONS {
        let (mut near, mut far) = pair(version).await;
        far.write_all(b"half").await.unwrap();
        drop(far);
        assert_eq!(read(&mut near, 9).await.unwrap(), b"half");
        let cut = read(&mut near, 9).await.unwrap_err();
        assert_eq!(cut.kind(), std::io::ErrorKind::UnexpectedEof);
        assert!(near.has_ended() && !near.is_quiet());
        assert_ne!(near.peer(), Peer::Open);
    }
}

#[tokio::test(flavor = "local")]
async fn one_direction_ends_and_the_other_goes_on() {
    for version in VERSIONS {
        let (mut near, mut far) = pair(version).await;
        near.shutdown().await.unwrap();
        assert_eq!(read(&mut far, 9).await.unwrap(), b"");
        assert!(far.has_ended());
        far.write_all(b"answer").await.unwrap();
        far.end();
        drop(far);
        assert_eq!(read(&mut near, 9).await.unwrap(), b"answer");
        assert_eq!(read(&mut near, 9).await.unwrap(), b"", "a clean end");
    }
}

#[tokio::test(flavor = "local")]
async fn what_was_taken_to_be_written_arrives_whole_by_flushing_alone() {
    for version in VERSIONS {
        let (mut near, mut far) = pair(version).await;
        let (mut taken, piece) = (0, [9; 40_000]);
        // Until the peer's window is closed. The last write was taken in part or whole, and the
        // kernel has not all of it.
        loop {
            let wrote = poll_fn(|cx| Poll::Ready(near.poll_write(cx, &piece))).await;
            let Poll::Ready(n) = wrote else { break };
            taken += n.unwrap();
        }
        assert!(near.delivery().unwrap().waiting);
        let flush = async {
            poll_fn(|cx| near.poll_flush(cx)).await.unwrap();
            near.end();
        };
        let mut came = 0;
        let count = async {
            while came < taken {
                let bytes = read(&mut far, 48 << 10).await.unwrap();
                assert!(!bytes.is_empty() && bytes.iter().all(|byte| *byte == 9));
                came += bytes.len();
            }
        };
        tokio::join!(flush, count);
        assert_eq!(read(&mut far, 9).await.unwrap(), b"", "and a clean end");
        assert_eq!(came, taken);
    }
}

#[tokio::test(flavor = "local")]
async fn bytes_that_are_no_record_are_an_error_once_and_for_all() {
    let (mut near, far) = pair(&rustls::version::TLS13).await;
    far.socket()
        .unwrap()
        .try_write(b"GET / HTTP/1.1\r\n\r\n")
        .unwrap();
    for _ in 0..2 {
        let refused = read(&mut near, 9).await.unwrap_err();
        assert_eq!(refused.kind(), std::io::ErrorKind::InvalidData);
    }
    assert!(near.has_ended() && !near.is_quiet());
}

#[test]
fn a_stream_takes_no_more_room_than_its_socket() {
    assert_eq!(size_of::<Stream>(), size_of::<tokio::net::TcpStream>());
}
