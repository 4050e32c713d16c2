//! The `ebbtide` command: arguments, configuration, then one call into the library. Exit codes: 0 clean, 1 failed at
//! work, 2 refused to start.

mod cli;

use std::process::ExitCode;

use clap::Parser;
use ebbtide::config::Config;
use ebbtide::standins::{admin, app, demo, telemetry}; // at the merge: ebbtide::{admin, app, demo, telemetry}

use cli::{Cli, Command};

fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Run { config: file } => match Config::load(&file) {
            Ok(config) => {
                telemetry::init();
                worked(app::run(config, Some(file)))
            }
            Err(error) => refused(&error),
        },
        Command::Proxy(proxy) => match proxy.config() {
            Ok(config) => {
                telemetry::init();
                worked(app::run(config, None))
            }
            Err(error) => refused(&error),
        },
        Command::Check { config } => match ebbtide::check::check(&config) {
            Ok(report) => {
                cli::print(&report.text);
                report.problems.iter().for_each(|problem| eprintln!("error: {}: {}", problem.subject, problem.error));
                if report.problems.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(2) }
            }
            Err(error) => refused(&error),
        },
        Command::Demo { load, stay } => match demo::run(load, stay) {
            Ok(true) => ExitCode::SUCCESS,
            Ok(false) => ExitCode::FAILURE,
            Err(error) => worked(Err(error)),
        },
        Command::Status { admin, watch } => worked(admin::status(&admin, watch)),
        Command::Schema => cli::print(&format!("{:#}\n", Config::schema())),
        Command::SampleApp { args } => worked(demo::sample::main(args)),
    }
}

fn worked(result: anyhow::Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ebbtide: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn refused(error: &dyn std::fmt::Display) -> ExitCode {
    eprintln!("ebbtide: {error}");
    ExitCode::from(2)
}
