//! `files` discovery on real folders: how each way to change a manifest changes the merged Service.
//! A file takes effect when its writer has closed it, and a faulty file keeps its last good state
//! (contract 1.10 and 2.7).

use std::cell::RefCell;
use std::fs;
use std::io::Write;
use std::ops::Range;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use ebbtide::contract::name::ObjectName;
use ebbtide::discovery::files::{read_folder, watch};
use ebbtide::discovery::manifest::Reader;
use ebbtide::discovery::object::Change;
use ebbtide::discovery::source::{Message, Problem};
use ebbtide::routing::world::merged::MergedService;
use ebbtide::routing::world::objects::{Touched, World};
use tempfile::TempDir;
use tokio::sync::mpsc;
use tokio::task::LocalSet;
use tokio::time::timeout;

/// A watched folder, and the world that its messages have made.
struct Rig {
    temp: TempDir,
    inbox: mpsc::Receiver<Message>,
    world: World,
    synced: bool,
    problems: Vec<Problem>,
    /// One entry for each batch: its changes in words.
    batches: Vec<Vec<String>>,
    errors: Rc<RefCell<Vec<&'static str>>>,
}

impl Rig {
    /// Watches `manifests` in a new folder that `prepare` has filled. Call this inside a
    /// [`LocalSet`].
    async fn new(prepare: impl FnOnce(&Path)) -> Self {
        let temp = TempDir::new().unwrap();
        prepare(&temp.path().join("manifests"));
        let (out, inbox) = mpsc::channel(64);
        let errors = Rc::new(RefCell::new(Vec::new()));
        let counted = errors.clone();
        let path = temp.path().join("manifests");
        tokio::task::spawn_local(watch(path, Reader::default(), out, move |kind| {
            counted.borrow_mut().push(kind)
        }));
        let (world, problems) = (World::default(), Vec::new());
        Self {
            temp,
            inbox,
            world,
            synced: false,
            problems,
            batches: Vec::new(),
            errors,
        }
    }

    /// A folder with Service `app` of three endpoints, synced.
    async fn with_app() -> Self {
        let mut rig = Self::new(|path| {
            fs::create_dir(path).unwrap();
            fs::write(path.join("app.yaml"), service("app")).unwrap();
            fs::write(path.join("slice.yaml"), slice("app", "a", 1..4)).unwrap();
        })
        .await;
        rig.until("synced", |rig| rig.synced).await;
        assert_eq!(rig.endpoints("app"), 3);
        rig.batches.clear();
        rig
    }

    fn path(&self, name: &str) -> PathBuf {
        self.temp.path().join("manifests").join(name)
    }

    fn write(&self, name: &str, text: impl AsRef<[u8]>) {
        fs::write(self.path(name), text).unwrap();
    }

    /// Applies messages until the condition holds.
    async fn until(&mut self, what: &str, condition: impl Fn(&Self) -> bool) {
        while !condition(self) {
            match timeout(Duration::from_secs(30), self.inbox.recv()).await {
                Ok(Some(message)) => self.take(message),
                _ => panic!(
                    "not {what}: {:?} {:?} {:?}",
                    self.batches,
                    self.problems,
                    self.merged("app")
                ),
            }
        }
    }

    /// Waits until everything written so far has been read: a file that was written later is in
    /// force.
    async fn barrier(&mut self) {
        let name = format!("barrier-{}", fs::read_dir(self.path("")).unwrap().count());
        self.write(&format!("{name}.yaml"), service(&name));
        self.until("past the barrier", |rig| rig.merged(&name).is_some())
            .await;
    }

    fn take(&mut self, message: Message) {
        match message {
            Message::Changes { received, changes } => {
                self.batches.push(changes.iter().map(in_words).collect());
                for change in changes {
                    self.world.apply(change, received, &mut Touched::default());
                }
            }
            Message::Synced => self.synced = true,
            Message::Standing(_)
            | Message::PodRanges(_)
            | Message::Published(_)
            | Message::Certificate { .. }
            | Message::Authorities { .. } => {
                panic!("{message:?}")
            }
            Message::Problems(problems) => self.problems = problems,
        }
    }

    fn merged(&self, service: &str) -> Option<MergedService> {
        self.world.merge(&ObjectName::new("web", service))
    }

    fn endpoints(&self, service: &str) -> usize {
        self.merged(service)
            .map_or(0, |it| it.ports.first().unwrap().endpoints.len())
    }

    /// The changes so far that removed an object.
    fn removals(&self) -> Vec<&String> {
        self.batches
            .iter()
            .flatten()
            .filter(|change| change.starts_with('-'))
            .collect()
    }
}

fn in_words(change: &Change) -> String {
    match change {
        Change::Apply(object) => format!("+{} {}", object.kind(), object.name()),
        Change::Remove(kind, name) => format!("-{kind} {name}"),
        Change::Replace { kind, objects, .. } => format!("={kind} {}", objects.len()),
        Change::Forget { namespace } => panic!("{namespace} is forgotten"),
    }
}

fn service(name: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata:\n  name: {name}\n  namespace: web\nspec:\n  ports:\n  - port: 80\n"
    )
}

fn slice(service: &str, name: &str, endpoints: Range<u32>) -> String {
    let mut text = format!(
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\naddressType: IPv4\nmetadata:\n  name: {service}-{name}\n  \
         namespace: web\n  labels:\n    kubernetes.io/service-name: {service}\nports:\n- port: 8080\nendpoints:\n"
    );
    for n in endpoints {
        let address = std::net::Ipv4Addr::from(0x0a00_0000 + n);
        text += &format!(
            "- addresses:\n  - {address}\n  conditions:\n    ready: true\n  targetRef:\n    kind: Pod\n    name: {service}-{n}\n    uid: u-{n}\n"
        );
    }
    text
}

async fn local<F: Future>(test: F) -> F::Output {
    LocalSet::new().run_until(test).await
}

#[tokio::test]
async fn an_empty_folder_syncs() {
    local(async {
        let mut rig = Rig::new(|path| fs::create_dir(path).unwrap()).await;
        rig.until("synced", |rig| rig.synced).await;
        assert_eq!(rig.batches.len(), 1);
        let kinds = &rig.batches[0];
        assert_eq!(kinds[..3], ["=Pod 0", "=Service 0", "=EndpointSlice 0"]);
        let is_empty = |it: &String| it.starts_with('=') && it.ends_with(" 0");
        assert!(kinds.iter().all(is_empty), "{kinds:?}");
    })
    .await;
}

#[tokio::test]
async fn an_edit_in_place_changes_only_what_it_changes() {
    local(async {
        let mut rig = Rig::with_app().await;
        rig.write("slice.yaml", slice("app", "a", 1..6));
        rig.until("five", |rig| rig.endpoints("app") == 5).await;
        rig.write("slice.yaml", slice("app", "a", 1..6));
        rig.write("app.yaml", format!("# the same\n{}", service("app")));
        rig.barrier().await;
        assert_eq!(rig.batches.len(), 2, "{:?}", rig.batches);
        assert_eq!(rig.batches[0], ["+EndpointSlice web/app-a"]);
    })
    .await;
}

#[tokio::test]
async fn a_file_is_not_read_while_its_writer_has_it_open() {
    local(async {
        let mut rig = Rig::with_app().await;
        let text = slice("app", "a", 1..9);
        // Cut after a whole endpoint, so that the first half is a valid manifest.
        let (half, rest) = text.split_at(text.find("- addresses:\n  - 10.0.0.2").unwrap());
        let mut file = fs::File::create(rig.path("slice.yaml")).unwrap();
        rig.barrier().await;
        file.write_all(half.as_bytes()).unwrap();
        rig.barrier().await;
        assert_eq!((rig.endpoints("app"), rig.problems.len()), (3, 0));
        file.write_all(rest.as_bytes()).unwrap();
        drop(file);
        rig.until("eight", |rig| rig.endpoints("app") == 8).await;
        let all = |changes: &[Vec<String>]| {
            changes
                .iter()
                .flatten()
                .filter(|c| c.contains("Slice"))
                .count()
        };
        assert_eq!(
            (rig.removals(), all(&rig.batches), rig.errors.borrow().len()),
            (vec![], 1, 0)
        );
    })
    .await;
}

#[tokio::test]
async fn a_rename_over_takes_effect_and_its_temporary_does_not_count() {
    local(async {
        let mut rig = Rig::with_app().await;
        rig.write(".slice.yaml.tmp", slice("app", "a", 1..6));
        fs::rename(rig.path(".slice.yaml.tmp"), rig.path("slice.yaml")).unwrap();
        rig.until("five", |rig| rig.endpoints("app") == 5).await;
        assert_eq!(rig.batches, [["+EndpointSlice web/app-a"]]);
        // A rename to another name keeps the same objects, so nothing changes.
        fs::rename(rig.path("slice.yaml"), rig.path("other.yml")).unwrap();
        rig.barrier().await;
        fs::remove_file(rig.path("other.yml")).unwrap();
        rig.until("none", |rig| rig.endpoints("app") == 0).await;
        assert_eq!(rig.removals(), ["-EndpointSlice web/app-a"]);
        assert!(
            rig.problems.is_empty() && rig.errors.borrow().is_empty(),
            "{:?}",
            rig.problems
        );
    })
    .await;
}

#[tokio::test]
async fn a_config_map_swap_is_one_batch() {
    local(async {
        let fill = |root: &Path, version: &str, files: &[(&str, String)]| {
            let data = root.join(version);
            fs::create_dir(&data).unwrap();
            for (name, text) in files {
                fs::write(data.join(name), text).unwrap();
                let _ = symlink(Path::new("..data").join(name), root.join(name));
            }
            symlink(version, root.join("..data_tmp")).unwrap();
            fs::rename(root.join("..data_tmp"), root.join("..data")).unwrap();
        };
        let first = [
            ("app.yaml", service("app")),
            ("a.yaml", slice("app", "a", 1..4)),
            ("b.yaml", slice("app", "b", 4..6)),
        ];
        let mut rig = Rig::new(|path| {
            fs::create_dir(path).unwrap();
            fill(path, "..1", &first);
        })
        .await;
        rig.until("synced", |rig| rig.synced).await;
        assert_eq!(rig.endpoints("app"), 5);
        rig.batches.clear();
        let second = [
            ("app.yaml", service("app")),
            ("a.yaml", slice("app", "a", 2..4)),
            ("c.yaml", slice("app", "c", 4..9)),
        ];
        fill(&rig.path(""), "..2", &second);
        fs::remove_file(rig.path("b.yaml")).unwrap();
        fs::remove_dir_all(rig.path("..1")).unwrap();
        rig.until("seven", |rig| rig.endpoints("app") == 7).await;
        rig.barrier().await;
        let swap = [
            "+EndpointSlice web/app-a",
            "+EndpointSlice web/app-c",
            "-EndpointSlice web/app-b",
        ];
        assert_eq!(rig.batches[0], swap);
        assert_eq!(rig.batches.len(), 2, "{:?}", rig.batches);
        assert!(rig.problems.is_empty(), "{:?}", rig.problems);
    })
    .await;
}

#[tokio::test]
async fn a_folder_may_be_removed_and_made_again() {
    local(async {
        let mut rig = Rig::with_app().await;
        fs::remove_dir_all(rig.path("")).unwrap();
        rig.until("reported", |rig| !rig.problems.is_empty()).await;
        assert_eq!(
            rig.problems[0].subject,
            rig.temp.path().join("manifests").display().to_string()
        );
        assert!(
            rig.problems[0]
                .error
                .starts_with("the folder cannot be read"),
            "{:?}",
            rig.problems
        );
        assert_eq!(
            (rig.endpoints("app"), rig.removals()),
            (3, vec![]),
            "the last state stays"
        );
        fs::create_dir(rig.path("")).unwrap();
        rig.write("slice.yaml", slice("app", "a", 1..3));
        rig.until("read again", |rig| {
            rig.endpoints("app") == 0 && rig.problems.is_empty()
        })
        .await;
        assert_eq!(
            rig.removals(),
            ["-Service web/app"],
            "the objects that are no longer in it"
        );
        rig.write("app.yaml", service("app"));
        rig.until("back", |rig| rig.endpoints("app") == 2).await;
        assert_eq!(*rig.errors.borrow(), ["folder"]);
    })
    .await;
}

#[tokio::test]
async fn a_folder_may_be_moved_away_and_replaced() {
    local(async {
        let mut rig = Rig::with_app().await;
        let next = rig.temp.path().join("next");
        fs::create_dir(&next).unwrap();
        fs::write(next.join("app.yaml"), service("app")).unwrap();
        fs::write(next.join("slice.yaml"), slice("app", "a", 1..8)).unwrap();
        fs::rename(rig.path(""), rig.temp.path().join("old")).unwrap();
        fs::rename(next, rig.path("")).unwrap();
        rig.until("the new folder", |rig| rig.endpoints("app") == 7)
            .await;
        fs::write(
            rig.temp.path().join("old/slice.yaml"),
            slice("app", "a", 1..2),
        )
        .unwrap();
        rig.write("slice.yaml", slice("app", "a", 1..6));
        rig.until("watched", |rig| rig.endpoints("app") == 5).await;
        assert_eq!(rig.removals(), Vec::<&String>::new());
    })
    .await;
}

#[tokio::test]
async fn a_folder_that_is_a_symlink_may_be_switched() {
    local(async {
        let make = |root: &Path, count: u32| {
            fs::create_dir(root).unwrap();
            fs::write(
                root.join("all.yaml"),
                format!("{}---\n{}", service("app"), slice("app", "a", 0..count)),
            )
            .unwrap();
        };
        let mut rig = Rig::new(|path| {
            make(&path.with_file_name("..1"), 1);
            make(&path.with_file_name("..2"), 2);
            symlink("..1", path.with_file_name("..data")).unwrap();
            symlink("..data", path).unwrap();
        })
        .await;
        rig.until("synced", |rig| rig.synced).await;
        symlink("..2", rig.temp.path().join("..tmp")).unwrap();
        fs::rename(
            rig.temp.path().join("..tmp"),
            rig.temp.path().join("..data"),
        )
        .unwrap();
        rig.until("the second", |rig| rig.endpoints("app") == 2)
            .await;
    })
    .await;
}

#[tokio::test]
async fn a_folder_that_is_not_there_yet_is_waited_for() {
    local(async {
        let mut rig = Rig::new(|_| ()).await;
        rig.until("reported", |rig| !rig.problems.is_empty()).await;
        assert!(!rig.synced && rig.batches.is_empty());
        fs::create_dir(rig.path("")).unwrap();
        rig.write("app.yaml", service("app"));
        rig.until("there", |rig| {
            rig.synced && rig.merged("app").is_some() && rig.problems.is_empty()
        })
        .await;
    })
    .await;
}

#[tokio::test]
async fn a_broken_an_empty_and_an_unreadable_file_keep_their_last_good_state() {
    local(async {
        let mut rig = Rig::with_app().await;
        let good = slice("app", "a", 1..4);
        let cases: [(Vec<u8>, &str); 4] = [
            (
                good.replace("10.0.0.2", "10.0.0").into_bytes(),
                "line 21, endpoints[1].addresses[0]: expected an IPv4",
            ),
            (b"".to_vec(), "empty: no manifest in it"),
            (b"# only\n---\n".to_vec(), "empty: no manifest in it"),
            (
                [good.as_bytes(), b"# \xff\n"].concat(),
                "line 36: not UTF-8 text",
            ),
        ];
        for (text, expected) in cases {
            rig.write("slice.yaml", text);
            rig.until(expected, |rig| {
                rig.problems.iter().any(|p| p.error.starts_with(expected))
            })
            .await;
            assert_eq!((rig.problems.len(), rig.endpoints("app")), (1, 3));
            assert_eq!(
                rig.problems[0].subject,
                rig.path("slice.yaml").display().to_string()
            );
            assert!(
                rig.problems[0]
                    .error
                    .contains("the last good state of this file stays in force")
            );
        }
        // Only the faulty file keeps its old state. Other files are still read.
        rig.write("b.yaml", slice("app", "b", 10..12));
        rig.until("others", |rig| rig.endpoints("app") == 5).await;
        fs::remove_file(rig.path("slice.yaml")).unwrap();
        symlink("slice.yaml", rig.path("slice.yaml")).unwrap();
        rig.until("a loop", |rig| {
            rig.problems
                .iter()
                .any(|p| p.error.starts_with("cannot be read"))
        })
        .await;
        assert_eq!((rig.endpoints("app"), rig.removals()), (5, vec![]));
        assert!(rig.errors.borrow().iter().all(|kind| *kind == "file"));
        fs::remove_file(rig.path("slice.yaml")).unwrap();
        rig.write("slice.yaml", slice("app", "a", 1..2));
        rig.until("fixed", |rig| {
            rig.problems.is_empty() && rig.endpoints("app") == 3
        })
        .await;
    })
    .await;
}

#[tokio::test]
async fn a_file_broken_from_the_start_is_named_and_the_rest_serves() {
    local(async {
        let mut rig = Rig::new(|path| {
            fs::create_dir(path).unwrap();
            fs::write(path.join("app.yaml"), service("app")).unwrap();
            fs::write(path.join("slice.yaml"), "kind: [").unwrap();
        })
        .await;
        rig.until("reported", |rig| !rig.problems.is_empty()).await;
        assert!(rig.synced && rig.merged("app").is_some());
        assert!(
            rig.problems[0]
                .error
                .contains("nothing of this file is in force"),
            "{:?}",
            rig.problems
        );
        rig.write("slice.yaml", slice("app", "a", 1..4));
        rig.until("fixed", |rig| {
            rig.problems.is_empty() && rig.endpoints("app") == 3
        })
        .await;
    })
    .await;
}

#[tokio::test]
async fn an_object_in_two_files_comes_from_the_first_file() {
    local(async {
        let mut rig = Rig::with_app().await;
        rig.write("z.yaml", slice("app", "a", 1..9));
        rig.until("reported", |rig| !rig.problems.is_empty()).await;
        assert_eq!(rig.endpoints("app"), 3);
        assert_eq!(
            rig.problems[0].subject,
            rig.path("z.yaml").display().to_string()
        );
        let error =
            "EndpointSlice web/app-a is in slice.yaml too, and the first is in force; remove one";
        assert_eq!(rig.problems[0].error, error);
        fs::remove_file(rig.path("slice.yaml")).unwrap();
        rig.until("the other", |rig| {
            rig.endpoints("app") == 8 && rig.problems.is_empty()
        })
        .await;
        assert_eq!(
            (rig.removals(), rig.errors.borrow().clone()),
            (vec![], vec!["duplicate"])
        );
    })
    .await;
}

#[tokio::test]
async fn a_file_removed_and_written_again_loses_nothing() {
    local(async {
        let mut rig = Rig::with_app().await;
        for count in 4..24 {
            fs::remove_file(rig.path("slice.yaml")).unwrap();
            rig.write("slice.yaml", slice("app", "a", 1..count));
            rig.until("written again", |rig| {
                rig.endpoints("app") == count as usize - 1
            })
            .await;
        }
        assert_eq!(rig.removals(), Vec::<&String>::new());
    })
    .await;
}

#[tokio::test]
async fn a_file_rewritten_in_place_repeatedly_is_never_read_half_written() {
    local(async {
        let mut rig = Rig::with_app().await;
        let path = rig.path("slice.yaml");
        let writer = std::thread::spawn(move || {
            for round in 0..300 {
                let text = slice("app", "a", 1..6 + u32::from(round % 2 == 1));
                let (half, rest) = text.split_at(text.find("- addresses:\n  - 10.0.0.3").unwrap());
                let mut file = fs::File::create(&path).unwrap();
                file.write_all(half.as_bytes()).unwrap();
                std::thread::sleep(Duration::from_millis(1));
                file.write_all(rest.as_bytes()).unwrap();
                drop(file);
                std::thread::sleep(Duration::from_millis(round % 7));
            }
        });
        while !writer.is_finished() || rig.endpoints("app") != 6 {
            if let Ok(Some(message)) = timeout(Duration::from_millis(50), rig.inbox.recv()).await {
                rig.take(message);
            }
            assert!(
                [3, 5, 6].contains(&rig.endpoints("app")) && rig.problems.is_empty(),
                "{:?}",
                rig.problems
            );
        }
        writer.join().unwrap();
    })
    .await;
}

#[tokio::test]
async fn files_without_a_known_manifest_are_ignored() {
    local(async {
        let mut rig = Rig::with_app().await;
        rig.write("notes.txt", "kind: [");
        rig.write(".hidden.yaml", "kind: [");
        rig.write(
            "deployment.yaml",
            "apiVersion: apps/v1\nkind: Deployment\nspec: {replicas: 3}\n",
        );
        fs::create_dir(rig.path("folder.yaml")).unwrap();
        rig.barrier().await;
        assert!(
            rig.problems.is_empty() && rig.batches.len() == 1,
            "{:?} {:?}",
            rig.problems,
            rig.batches
        );
    })
    .await;
}

#[tokio::test]
async fn ten_thousand_endpoints_in_a_hundred_slices() {
    local(async {
        let one = |n: u32| slice("app", &n.to_string(), n * 100..n * 100 + 100);
        let mut rig = Rig::new(|path| {
            fs::create_dir(path).unwrap();
            fs::write(path.join("app.yaml"), service("app")).unwrap();
            for n in 0..50 {
                fs::write(path.join(format!("slice-{n}.yaml")), one(n)).unwrap();
            }
            // The other half is in one file.
            fs::write(
                path.join("rest.yaml"),
                (50..100).map(one).collect::<Vec<_>>().join("---\n"),
            )
            .unwrap();
        })
        .await;
        rig.until("synced", |rig| rig.synced).await;
        assert_eq!((rig.endpoints("app"), rig.problems.len()), (10_000, 0));
        rig.batches.clear();
        rig.write("slice-7.yaml", slice("app", "7", 700..750));
        rig.until("one changed", |rig| rig.endpoints("app") == 9_950)
            .await;
        let rest = (50..99).map(one).collect::<Vec<_>>().join("---\n");
        rig.write("rest.yaml", rest);
        rig.until("one removed", |rig| rig.endpoints("app") == 9_850)
            .await;
        assert_eq!(
            rig.batches,
            [["+EndpointSlice web/app-7"], ["-EndpointSlice web/app-99"]]
        );
    })
    .await;
}

#[test]
fn reading_once_gives_the_same_objects_and_problems() {
    let temp = TempDir::new().unwrap();
    fs::write(temp.path().join("app.yaml"), service("app")).unwrap();
    fs::write(
        temp.path().join("b.json"),
        r#"{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}}"#,
    )
    .unwrap();
    fs::write(
        temp.path().join("c.yaml"),
        "apiVersion: v1\nkind: Service\nspec: 5\n",
    )
    .unwrap();
    let contents = read_folder(temp.path(), &Reader::default());
    let problems = contents.problems;
    let names: Vec<_> = contents
        .objects
        .iter()
        .map(|object| format!("{} {}", object.kind(), object.name()))
        .collect();
    assert_eq!(names, ["Service web/app", "Pod default/p"]);
    assert_eq!(problems.len(), 1);
    assert!(
        problems[0].error.starts_with("line 3, spec: "),
        "{problems:?}"
    );
    let missing = read_folder(&temp.path().join("missing"), &Reader::default());
    let error = &missing.problems[0].error;
    assert!(missing.objects.is_empty() && error.starts_with("the folder cannot be read"));
}
