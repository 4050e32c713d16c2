//! The files of a release, made of two programs that do nothing. `make release` makes them of real ones.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::support::binary::BINARY;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// A 64-bit ELF file for a machine, without a program header: a static one, as far as headers say.
fn program(folder: &Path, name: &str, machine: u16) -> PathBuf {
    let mut elf = vec![0; 64];
    elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
    elf[18..20].copy_from_slice(&machine.to_le_bytes());
    let path = folder.join(name);
    std::fs::write(&path, elf).unwrap();
    path
}

fn run(program: &str, arguments: &[&str], folder: &Path) -> String {
    let mut command = Command::new(program);
    let output = command
        .args(arguments)
        .current_dir(folder)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {said}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn release(out: &Path) {
    let folder = tempfile::tempdir().unwrap();
    let script = format!("{ROOT}/deploy/release.py");
    let given = |name: &str, path: PathBuf| format!("{name}={}", path.display());
    let mut arguments = vec![
        script,
        out.display().to_string(),
        given("x86_64", program(folder.path(), "x", 62)),
        given("aarch64", program(folder.path(), "a", 183)),
    ];
    // `cargo test` builds examples, too, and `cargo test --test program` leaves that to the script.
    let manual = Path::new(BINARY).parent().unwrap().join("examples/manual");
    if manual.exists() {
        arguments.push(given("manual", manual));
    }
    let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
    run("python3", &arguments, folder.path());
}

fn names(folder: &Path) -> BTreeSet<String> {
    let files = std::fs::read_dir(folder).unwrap();
    let names = files.map(|it| it.unwrap().file_name().into_string().unwrap());
    names.collect()
}

#[test]
fn a_release_is_whole_and_the_same_each_time() {
    let [first, second] = [(); 2].map(|()| tempfile::tempdir().unwrap());
    for folder in [&first, &second] {
        release(folder.path());
    }
    let all = names(first.path());
    let expected = [
        format!("ebbtide-{VERSION}-linux-x86_64.tar.gz"),
        format!("ebbtide-{VERSION}-linux-aarch64.tar.gz"),
        format!("ebbtide_{VERSION}_amd64.deb"),
        format!("ebbtide_{VERSION}_arm64.deb"),
        format!("ebbtide-{VERSION}-image.tar"),
        format!("ebbtide-chart-{VERSION}.tgz"),
        format!("ebbtide-manifests-{VERSION}.tar.gz"),
        format!("ebbtide-{VERSION}.cdx.json"),
        "CHANGELOG.md".to_owned(),
        "SHA256SUMS".to_owned(),
    ];
    assert_eq!(all, expected.into());
    for name in &all {
        let read = |folder: &Path| std::fs::read(folder.join(name)).unwrap();
        assert!(read(first.path()) == read(second.path()), "{name}");
    }
    run(
        "sha256sum",
        &["--check", "--quiet", "SHA256SUMS"],
        first.path(),
    );
    let sums = std::fs::read_to_string(first.path().join("SHA256SUMS")).unwrap();
    assert_eq!(sums.lines().count(), all.len() - 1);

    let listed = |archive: String| run("tar", &["-tf", &archive], first.path());
    let standalone = listed(format!("ebbtide-{VERSION}-linux-aarch64.tar.gz"));
    for file in [
        "ebbtide",
        "man/ebbtide-run.1",
        "completions/ebbtide.bash",
        "ebbtide@.service",
    ] {
        let path = format!("ebbtide-{VERSION}-linux-aarch64/{file}");
        assert!(standalone.lines().any(|it| it == path), "{path}");
    }
    let chart = format!("ebbtide-chart-{VERSION}.tgz");
    let values = run("tar", &["-xOf", &chart, "ebbtide/Chart.yaml"], first.path());
    assert!(
        values.contains(&format!("appVersion: {VERSION}\n")),
        "{values}"
    );
    // A link to what is not in the archive would be of no use.
    let alerts = run(
        "tar",
        &["-xOf", &chart, "ebbtide/files/alerts.yaml"],
        first.path(),
    );
    assert!(alerts.contains("groups:"));
}

#[test]
fn the_image_of_a_release_is_for_both_architectures() {
    let folder = tempfile::tempdir().unwrap();
    release(folder.path());
    let image = format!("ebbtide-{VERSION}-image.tar");
    let read = |path: &str| -> Value {
        serde_json::from_str(&run("tar", &["-xOf", &image, path], folder.path())).unwrap()
    };
    let blob = |of: &Value| {
        let digest = of["digest"].as_str().unwrap();
        let path = format!("blobs/{}", digest.replace(':', "/"));
        let size = run("tar", &["-xOf", &image, &path], folder.path()).len();
        assert_eq!(of["size"], size, "{path}");
        read(&path)
    };
    assert_eq!(read("oci-layout")["imageLayoutVersion"], "1.0.0");
    let every = blob(&read("index.json")["manifests"][0]);
    let mut found = Vec::new();
    for manifest in every["manifests"].as_array().unwrap() {
        let config = blob(&blob(manifest)["config"]);
        assert_eq!(config["architecture"], manifest["platform"]["architecture"]);
        assert_eq!(config["config"]["User"], "10901:10901");
        found.push(config["architecture"].as_str().unwrap().to_owned());
    }
    assert_eq!(found, ["amd64", "arm64"]);
}

#[test]
fn the_bill_of_materials_has_what_is_linked_and_nothing_of_the_tests() {
    let folder = tempfile::tempdir().unwrap();
    release(folder.path());
    let text = std::fs::read(folder.path().join(format!("ebbtide-{VERSION}.cdx.json"))).unwrap();
    let bill: Value = serde_json::from_slice(&text).unwrap();
    let components = bill["components"].as_array().unwrap();
    let names: BTreeSet<_> = components
        .iter()
        .map(|it| it["name"].as_str().unwrap())
        .collect();
    for linked in ["tokio", "h2", "kube", "rustls", "aws-lc-sys"] {
        assert!(names.contains(linked), "{linked}");
    }
    for other in ["divan", "proptest", "clap_mangen", "ebbtide"] {
        assert!(!names.contains(other), "{other}");
    }
    for it in components {
        assert!(it["hashes"][0]["content"].is_string(), "{it}");
        assert!(it["licenses"][0]["expression"].is_string(), "{it}");
    }
}

#[test]
fn debian_reads_the_package() {
    let folder = tempfile::tempdir().unwrap();
    release(folder.path());
    let package = format!("ebbtide_{VERSION}_arm64.deb");
    if Command::new("dpkg-deb").arg("--version").output().is_err() {
        return println!("SKIPPED: debian_reads_the_package: dpkg-deb is not installed");
    }
    let fields = ["--field", &package, "Version", "Architecture"];
    let said = run("dpkg-deb", &fields, folder.path());
    assert_eq!(said, format!("Version: {VERSION}\nArchitecture: arm64\n"));
    let files = run("dpkg-deb", &["--contents", &package], folder.path());
    for path in [
        "./usr/bin/ebbtide",
        "./usr/lib/systemd/system/ebbtide@.service",
        "./etc/ebbtide/ebbtide.yaml",
        "./etc/ebbtide/manifests/",
        "./usr/share/man/man1/ebbtide.1.gz",
    ] {
        let is_there = files.lines().any(|line| line.ends_with(path));
        assert!(is_there, "{path} in\n{files}");
    }
}
