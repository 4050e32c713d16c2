//! Sets `EBBTIDE_COMMIT` for the crate: the environment's value, else git's short hash, else
//! `unknown` (for example in an unpacked tarball).

use std::path::Path;
use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=EBBTIDE_COMMIT");
    let commit = std::env::var("EBBTIDE_COMMIT")
        .ok()
        .filter(|commit| !commit.is_empty());
    let commit = commit
        .or_else(commit_of_checkout)
        .unwrap_or_else(|| "unknown".to_owned());
    println!("cargo::rustc-env=EBBTIDE_COMMIT={commit}");
}

fn commit_of_checkout() -> Option<String> {
    // A tarball that is unpacked inside another repository must not take the commit of that
    // repository.
    let top = git(&["rev-parse", "--show-toplevel"])?;
    if Path::new(&top).canonicalize().ok()?
        != Path::new(env!("CARGO_MANIFEST_DIR")).canonicalize().ok()?
    {
        return None;
    }
    // Cargo would run this script at each build if a path did not exist. The reflog changes with
    // every commit and checkout. A repository without a reflog has the branch file instead.
    let branch = git(&["symbolic-ref", "--quiet", "HEAD"]);
    for name in ["HEAD", "logs/HEAD", "packed-refs"]
        .into_iter()
        .chain(branch.as_deref())
    {
        if let Some(path) = git(&["rev-parse", "--git-path", name])
            && Path::new(&path).exists()
        {
            println!("cargo::rerun-if-changed={path}");
        }
    }
    git(&["rev-parse", "--short=9", "HEAD"])
}

fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git")
        .args(arguments)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .ok()?;
    let text = String::from_utf8(output.stdout).ok()?.trim().to_owned();
    (output.status.success() && !text.is_empty()).then_some(text)
}
