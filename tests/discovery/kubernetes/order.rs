//! The order of events (contract 2.2). The same events, in any order between the kinds and with any
//! of them repeated, end in the same table, with the same drains. Within one kind the order is
//! kept, as in a watch.

use super::api::{KINDS, Kind};
use super::rig::{Rig, claimed, deleting, pod, ready, service, shop, slice, terminating};
use crate::support::manifests::endpoint;
use crate::support::wait::eventually;

const ORDERS: [[Kind; 3]; 6] = [
    [Kind::Services, Kind::Slices, Kind::Pods],
    [Kind::Services, Kind::Pods, Kind::Slices],
    [Kind::Slices, Kind::Services, Kind::Pods],
    [Kind::Slices, Kind::Pods, Kind::Services],
    [Kind::Pods, Kind::Services, Kind::Slices],
    [Kind::Pods, Kind::Slices, Kind::Services],
];

#[tokio::test]
async fn any_order_between_the_kinds_and_any_repetition_end_in_the_same_table() {
    for (seed, order) in ORDERS.iter().enumerate() {
        let mut random = fastrand::Rng::with_seed(seed as u64);
        let api = shop(4).await;
        // The endpoints of this Service show how far each kind has come.
        api.apply(&claimed(service("marker")));
        api.apply(&pod("m"));
        api.apply(&slice("m", "marker", &[ready(100, "m")]));
        let rig = Rig::start(&api).await;
        eventually("all four", async || {
            rig.usable("shop") == [1, 2, 3, 4] && rig.usable("marker") == [100]
        })
        .await;
        KINDS.iter().for_each(|kind| api.hold(*kind));

        let not_ready = endpoint("10.0.0.4", Some("p4"), [false, false, false]);
        let changes = [
            deleting(pod("p1"), &api, 30, 30),
            pod("p5"),
            pod("p6"),
            slice(
                "s",
                "shop",
                &[
                    terminating(2, "p2"),
                    ready(3, "p3"),
                    ready(5, "p5"),
                    not_ready,
                ],
            ),
            slice("t", "shop", &[ready(6, "p6")]),
            slice("u", "side", &[ready(3, "p3"), ready(1, "p1")]),
            claimed(service("side")),
            service("shop"),
        ];
        for change in &changes {
            for _ in 0..=random.usize(..2) {
                api.apply(change);
            }
        }
        api.delete(Kind::Pods, "web", "p2");
        api.apply(&claimed(service("marker-2")));
        api.apply(&slice("m", "marker", &[ready(100, "m"), ready(101, "m2")]));
        api.apply(&deleting(pod("m"), &api, 30, 30));

        for kind in order {
            api.release(*kind);
            eventually("reported", async || match kind {
                Kind::Services => rig.port("marker-2").is_some(),
                Kind::Slices => rig
                    .port("marker")
                    .unwrap()
                    .all
                    .iter()
                    .any(|it| it.address.ip().to_string() == "10.0.0.101"),
                Kind::Pods => {
                    rig.running()
                        .admin
                        .drains
                        .records()
                        .iter()
                        .any(|it| it.pod.as_deref() == Some("m"))
                        || !rig.usable("marker").contains(&100)
                }
                _ => unreachable!(),
            })
            .await;
        }
        rig.settled().await;
        assert_eq!(
            (rig.usable("shop"), rig.usable("side")),
            (vec![3, 5, 6], vec![3]),
            "{order:?}"
        );
        assert_eq!(rig.drained(), [1, 2], "{order:?}");
        rig.clean().await;
    }
}
