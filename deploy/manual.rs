//! Writes the man pages and the shell completions of every subcommand into a folder:
//! `cargo run --example manual -- FOLDER`. `make release` packs them.
#![allow(unreachable_pub)] // A program of its own: nothing outside uses it.

use std::path::Path;

use anyhow::{Context, ensure};
use clap::CommandFactory;
use clap_complete::{Shell, generate_to};

#[path = "../src/cli.rs"]
#[allow(dead_code)] // Only the arguments are of use here.
mod cli;

fn main() -> anyhow::Result<()> {
    let folders: Vec<_> = std::env::args_os().skip(1).collect();
    ensure!(folders.len() == 1, "usage: manual FOLDER");
    let folder = Path::new(&folders[0]);
    std::fs::create_dir_all(folder).with_context(|| format!("{}", folder.display()))?;
    // A version has the commit, and pages of the same text should be the same file.
    let command = cli::Cli::command().version(env!("CARGO_PKG_VERSION"));
    for shell in [Shell::Bash, Shell::Fish, Shell::Zsh] {
        generate_to(shell, &mut command.clone(), "ebbtide", folder)?;
    }
    clap_mangen::generate_to(command, folder)?;
    Ok(())
}
