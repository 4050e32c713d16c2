//! Endpoints that accept too slowly: a full accept queue is load and not death. It is waited for, and
//! neither second connects nor ejections make it worse (contract 1.8 and 3.1).

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::JoinSet;

use crate::support::folder::Ep;
use crate::support::rig::Rig;
use crate::support::wait::{eventually, soon};

/// A listener whose accept queue is full, so that connects to it are not answered.
pub struct Full {
    listener: TcpListener,
    filling: Vec<TcpStream>,
}

impl Full {
    pub async fn start() -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let listener = socket.listen(1).unwrap();
        let address = listener.local_addr().unwrap();
        let mut filling = Vec::new();
        // The first SYN without an answer shows that the accept queue is full.
        while let Ok(stream) =
            tokio::time::timeout(Duration::from_millis(300), TcpStream::connect(address)).await
        {
            filling.push(stream.unwrap());
            assert!(filling.len() < 100, "the accept queue never fills");
        }
        Self { listener, filling }
    }

    pub fn address(&self) -> SocketAddr {
        self.listener.local_addr().unwrap()
    }

    /// Accepts, and sends a byte to each client.
    async fn serve(self) {
        drop(self.filling);
        let mut served = Vec::new();
        loop {
            let (stream, _) = self.listener.accept().await.unwrap();
            let _ = stream.try_write(b"x");
            served.push(stream);
        }
    }
}

async fn rig_of(endpoints: &[Full], more: &str) -> Rig {
    let rig = Rig::with_protocol("tcp", more).await;
    rig.service(&[("ebbtide.dev/join-check", "off")]);
    let all = endpoints.iter().enumerate();
    let all: Vec<Ep> = all
        .map(|(n, full)| Ep::new(&format!("e{n}"), full.address()))
        .collect();
    rig.endpoints(&all);
    rig.usable(endpoints.len()).await;
    rig
}

/// The connects under way, and how many endpoints are ejected.
fn state(rig: &Rig) -> (u64, usize) {
    let snapshot = rig.running().admin.snapshot.load();
    let all: Vec<_> = snapshot
        .ports
        .values()
        .flat_map(|port| port.all.iter())
        .collect();
    let ejected = all.iter().filter(|e| e.is_ejected()).count();
    (all.iter().map(|e| e.leases()).sum(), ejected)
}

const CLIENTS: usize = 300;

#[tokio::test]
async fn clients_of_full_accept_queues_double_neither_the_load_nor_eject_most_endpoints() {
    let mut endpoints = Vec::new();
    for _ in 0..6 {
        endpoints.push(Full::start().await);
    }
    let rig = rig_of(&endpoints, "timeouts: {connect: 500ms, hold: 0s}").await;
    let mut clients = JoinSet::new();
    for _ in 0..CLIENTS {
        let web = rig.web();
        clients.spawn(async move {
            let mut stream = TcpStream::connect(web).await.unwrap();
            let _ = stream.read(&mut [0]).await;
        });
    }
    let (mut most, mut most_ejected) = (0, 0);
    eventually("all clients are refused", async || {
        let (leases, ejected) = state(&rig);
        most = most.max(leases as usize);
        most_ejected = most_ejected.max(ejected);
        while clients.try_join_next().is_some() {}
        clients.is_empty()
    })
    .await;
    // The floor is 10 a second over 10 s, the share a tenth of the connects: each client makes two,
    // one of them from the queue of the held.
    let hedges = 100 + 2 * CLIENTS / 10;
    assert!(most > CLIENTS, "{most}: no second connect was tried");
    assert!(
        most <= CLIENTS + hedges,
        "{most} connects of {CLIENTS} clients"
    );
    // Two workers that eject at the same moment may exceed the half by one.
    assert!(
        (1..=4).contains(&most_ejected),
        "{most_ejected} of 6 are ejected"
    );
}

/// The only replica is slow to accept: its clients wait for it, and each is served.
#[tokio::test]
async fn a_full_accept_queue_is_waited_for() {
    let full = Full::start().await;
    let rig = rig_of(
        std::slice::from_ref(&full),
        "timeouts: {connect: 200ms, hold: 1m}",
    )
    .await;
    let mut clients = JoinSet::new();
    for _ in 0..20 {
        let web = rig.web();
        clients.spawn(async move {
            let mut stream = TcpStream::connect(web).await.unwrap();
            stream.read(&mut [0]).await.unwrap()
        });
    }
    eventually("connects time out", async || {
        rig.metric("ebbtide_retries_total", "reason=\"connect\"") >= 40.0
    })
    .await;
    assert_eq!(
        state(&rig).1,
        0,
        "the last one is never ejected for silence"
    );
    let serving = tokio::spawn(full.serve());
    for served in soon("all clients", clients.join_all()).await {
        assert_eq!(served, 1);
    }
    serving.abort();
}
