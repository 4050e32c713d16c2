//! Gives the crate `EBBTIDE_COMMIT`: what the environment says, else git's short hash, else `unknown` (a tarball).

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
    // A tarball unpacked inside another repository must not take that one's commit.
    let top = git(&["rev-parse", "--show-toplevel"])?;
    if Path::new(&top).canonicalize().ok()?
        != Path::new(env!("CARGO_MANIFEST_DIR")).canonicalize().ok()?
    {
        return None;
    }
    // A path that does not exist would make cargo run this again each time. The reflog sees every commit and checkout; where
    // none is kept, the branch does.
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
