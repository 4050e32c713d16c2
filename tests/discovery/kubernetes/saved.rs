//! The last table on disk (contract 1.10): a restart while the API server is gone serves it and
//! says how old it is. A new list replaces it. A file that cannot be trusted is not used.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::api::{Api, Fault, KINDS, Kind, Verb};
use super::rig::{Rig, Times, WEB, claimed, deleting, pod, ready, service, shop, slice, within};
use crate::support::wait::eventually;

/// A folder for the table, and proxies that keep it there.
struct Disk(TempDir);

impl Disk {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("table")
    }

    fn launch(&self, api: &Api, times: Times) -> Rig {
        let source = format!("| snapshot: {}", self.path().display());
        Rig::with_times(api, &source, WEB, times)
    }

    /// A proxy that is ready, once its table is on disk.
    async fn saved(&self, api: &Api) -> Rig {
        let rig = self.launch(api, Times::default());
        rig.ready().await;
        eventually("saved", async || self.text().contains("\"name\":\"shop\"")).await;
        rig
    }

    fn text(&self) -> String {
        std::fs::read_to_string(self.path()).unwrap_or_default()
    }

    /// Changes the saved table. The proxy that wrote it has ended, but a last write may be under way.
    fn edit(&self, change: impl Fn(&str) -> String) {
        let changed = change(&self.text());
        while self.text() != changed {
            std::fs::write(self.path(), &changed).unwrap();
            std::thread::sleep(std::time::Duration::from_millis(200));
        }
    }
}

/// A table that was in order a day before.
fn old(text: &str) -> String {
    let (header, rest) = text.split_once('\n').unwrap();
    let mut header: serde_json::Value = serde_json::from_str(header).unwrap();
    header["saved_at"] = (header["saved_at"].as_u64().unwrap() - 86_400).into();
    format!("{header}\n{rest}")
}

#[tokio::test]
async fn a_restart_without_the_api_server_serves_the_last_table_and_a_list_replaces_it() {
    let (api, disk) = (shop(3).await, Disk::new());
    api.apply(&claimed(service("claimed")));
    api.apply(&slice("c", "claimed", &[ready(9, "p9")]));
    api.apply(&pod("p9"));
    let rig = disk.saved(&api).await;
    eventually("whole", async || disk.text().contains("\"p9\"")).await;
    let mode = std::fs::metadata(disk.path()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    drop(rig);
    api.unplug();
    let rig = disk.launch(&api, Times::default());
    rig.ready().await;
    rig.shop(&[1, 2, 3]).await;
    assert_eq!(rig.usable("claimed"), [9]);
    let saved = "ready; a saved table is in force, from ";
    let (_, line) = rig.readyz().await;
    assert!(line.starts_with(saved), "{line}");
    assert!(
        rig.running()
            .admin
            .health
            .state()
            .standing
            .saved_at
            .is_some()
    );
    // Two pods leave while nobody looks: one is gone, and one only terminates.
    api.delete(Kind::Pods, "web", "p1");
    api.apply(&deleting(pod("p2"), &api, 20, 30));
    api.apply(&slice(
        "s",
        "shop",
        &[ready(2, "p2"), ready(3, "p3"), ready(4, "p4")],
    ));
    api.delete(Kind::Services, "web", "claimed");
    api.plug();
    rig.shop(&[3, 4]).await;
    rig.clean().await;
    eventually("the other Service goes", async || {
        rig.port("claimed").is_none()
    })
    .await;
    assert_eq!(rig.drained(), [1, 2]);
    eventually("saved again", async || disk.text().contains("10.0.0.4")).await;
    assert!(!disk.text().contains("10.0.0.1\""));
}

#[tokio::test]
async fn a_pod_that_terminated_when_it_was_saved_gets_nothing() {
    let (api, disk) = (shop(3).await, Disk::new());
    api.apply(&deleting(pod("p2"), &api, 3_000, 3_000));
    let rig = disk.saved(&api).await;
    drop(rig);
    api.unplug();
    let rig = disk.launch(&api, Times::default());
    rig.ready().await;
    rig.shop(&[1, 3]).await;
}

#[tokio::test]
async fn a_file_that_cannot_be_trusted_is_not_used_and_hinders_nothing() {
    type Damage = fn(&str) -> String;
    let damages: [(&str, Damage); 7] = [
        ("empty", |_| String::new()),
        ("foreign", |_| "apiVersion: v1\nkind: Config\n".into()),
        ("half", |text| text[..text.len() / 2].into()),
        ("a line less", |text| {
            text.trim_end().rsplit_once('\n').unwrap().0.to_owned() + "\n"
        }),
        ("another address", |text| {
            text.replace("10.0.0.1", "10.0.0.5")
        }),
        ("another version", |text| {
            text.replacen("\"version\":\"", "\"version\":\"0", 1)
        }),
        ("another server", |text| {
            text.replacen("\"server\":\"http://", "\"server\":\"http://x", 1)
        }),
    ];
    for (what, damage) in damages {
        let (api, disk) = (shop(2).await, Disk::new());
        drop(disk.saved(&api).await);
        let before = disk.text();
        disk.edit(damage);
        assert_ne!(before, disk.text(), "{what}");
        api.unplug();
        let rig = disk.launch(&api, Times::impatient());
        eventually("some tries", async || rig.errors("list") >= 4).await;
        assert_eq!(rig.readyz().await.0, 503, "{what}");
        api.plug();
        rig.clean().await;
        rig.shop(&[1, 2]).await;
        eventually("a good one replaces it", async || {
            disk.text().contains("10.0.0.1")
        })
        .await;
    }
}

#[tokio::test]
async fn half_a_list_is_never_saved() {
    for kind in KINDS {
        let (api, disk) = (shop(2).await, Disk::new());
        drop(disk.saved(&api).await);
        api.fault(kind, Verb::List, Fault::Wait);
        let rig = disk.launch(&api, Times::default());
        for other in KINDS.into_iter().filter(|other| *other != kind) {
            eventually("listed", async || api.count(other, Verb::Watch) > 0).await;
        }
        rig.shop(&[1, 2]).await;
        // Long enough for some writes. Whenever they come, none may lose the endpoints.
        tokio::time::sleep(std::time::Duration::from_millis(300)).await;
        drop(rig);
        assert!(disk.text().contains("10.0.0.2"), "{kind:?}");
        api.unplug();
        let rig = disk.launch(&api, Times::default());
        rig.ready().await;
        rig.shop(&[1, 2]).await;
    }
}

#[tokio::test]
async fn an_old_table_is_used_only_where_the_api_server_does_not_answer() {
    let (api, disk) = (shop(2).await, Disk::new());
    drop(disk.saved(&api).await);
    disk.edit(old);
    // It would be replaced at once, if it were ever in force.
    api.apply(&slice("s", "shop", &[ready(7, "p7")]));
    let rig = disk.launch(&api, Times::default());
    rig.clean().await;
    rig.shop(&[7]).await;
    assert_eq!(
        rig.port("shop").unwrap().all.len(),
        1,
        "no saved endpoint was ever known"
    );
    eventually("saved", async || disk.text().contains("10.0.0.7")).await;
    drop(rig);
    disk.edit(old);
    api.unplug();
    let rig = disk.launch(&api, Times::impatient());
    rig.ready().await;
    rig.shop(&[7]).await;
    let (_, line) = rig.readyz().await;
    assert!(
        line.contains("from 24h") || line.contains("from 1d"),
        "{line}"
    );
}

/// All nodes at once would list everything. Each serves the saved table meanwhile.
#[tokio::test]
async fn a_proxy_with_a_recent_table_serves_before_it_asks_and_asks_at_a_random_time() {
    let (api, disk) = (shop(2).await, Disk::new());
    drop(disk.saved(&api).await);
    for _ in 0..10 {
        let before = api.asked().len();
        let rig = disk.launch(&api, Times::default());
        rig.shop(&[1, 2]).await;
        rig.ready().await;
        let asked = api.asked().len() - before;
        rig.clean().await;
        if asked == 0 {
            return;
        }
    }
    panic!("it never served before it asked");
}

#[tokio::test]
async fn a_saved_table_is_over_with_the_first_table_of_the_api_server() {
    let (api, disk) = (shop(2).await, Disk::new());
    let app = |last: u8, slice_name: &str| {
        api.apply(&within("later", claimed(service("app"))));
        let pod = format!("p{last}");
        let slice = slice(slice_name, "app", &[ready(last, &pod)]);
        api.apply(&within("later", slice));
    };
    app(7, "old");
    api.apply(&within("later", pod("p7")));
    let rig = disk.saved(&api).await;
    eventually("whole", async || {
        disk.text().contains("10.0.0.7") && disk.text().contains("\"p7\"")
    })
    .await;
    drop(rig);
    disk.edit(old);
    api.delete(Kind::Services, "later", "app");
    api.delete(Kind::Slices, "later", "old");
    api.delete(Kind::Pods, "later", "p7");
    let rig = disk.launch(&api, Times::impatient());
    rig.clean().await;
    // A first table would be waited for no longer than this.
    tokio::time::sleep(Times::impatient().patience).await;
    // The pods of a namespace cannot be listed now.
    api.forbid(Kind::Pods, Some("later"));
    app(8, "new");
    eventually("served", async || rig.usable("later/app") == [8]).await;
    let records = rig.running().admin.drains.records();
    assert!(records.is_empty(), "the old endpoint was never known");
    let (_, line) = rig.readyz().await;
    assert!(!line.contains("saved table"), "{line}");
}

#[tokio::test]
async fn a_folder_that_cannot_be_written_costs_only_the_saved_table() {
    let (api, disk) = (shop(2).await, Disk::new());
    let rig = disk.saved(&api).await;
    drop(rig);
    std::fs::remove_file(disk.path()).unwrap();
    std::fs::create_dir(Path::new(&format!("{}.new", disk.path().display()))).unwrap();
    let rig = disk.launch(&api, Times::default());
    rig.clean().await;
    rig.shop(&[1, 2]).await;
    assert_eq!(disk.text(), "");
}
