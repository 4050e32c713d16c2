//! The `ebbtide` command: reads the arguments and the configuration, then makes one call into the
//! library. Exit codes: 0 for a clean end, 1 for a failure at work, 2 for a refused start. A
//! [`fault::Error`] or a [`fault::Refused`] means 2.

mod cli;

use std::process::ExitCode;

use clap::Parser;
use ebbtide::app;
use ebbtide::command::{check, demo, drill, net, receipt, status, wait};
use ebbtide::config::fault;
use ebbtide::config::settings::Config;
use ebbtide::contract::name::ObjectName;
use ebbtide::observe::log;

use cli::{Cli, Command};

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("ebbtide: {error:#}");
            let refused = error.is::<fault::Error>() || error.is::<fault::Refused>();
            ExitCode::from(if refused { 2 } else { 1 })
        }
    }
}

fn run(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Run { config: file } => {
            let config = Config::load(&file)?;
            let _log = log::init();
            app::run(config, Some(file))?;
        }
        Command::Proxy(proxy) => {
            let config = proxy.config()?;
            let _log = log::init();
            app::run(config, None)?;
        }
        Command::Check {
            config,
            claim,
            migrate,
        } => {
            let report = check::run::check(&config, &claim, migrate.is_some())?;
            cli::print(&report.text)?;
            report
                .problems
                .iter()
                .for_each(|problem| eprintln!("error: {}: {}", problem.subject, problem.error));
            return Ok(ExitCode::from(if report.problems.is_empty() {
                0
            } else {
                2
            }));
        }
        Command::Demo { load, stay, report } => {
            return Ok(ExitCode::from(
                if demo::show::run(load, stay, report.as_deref())? {
                    0
                } else {
                    1
                },
            ));
        }
        Command::Drill(settings) => {
            return Ok(ExitCode::from(if drill::run::run(&settings)? {
                0
            } else {
                1
            }));
        }
        Command::Net { remove: true, .. } => net::run::remove()?,
        Command::Net { socket, .. } => {
            let _log = log::init();
            net::run::run(&socket)?;
        }
        Command::Status { admin, watch } => status::status(&admin.admin, watch)?,
        Command::Receipt {
            service,
            output,
            admin,
        } => cli::print(&receipt::receipt(&admin.admin, &service, output)?)?,
        Command::Wait {
            drained,
            namespace,
            timeout,
            admin,
        } => {
            let left = wait::wait(&admin.admin, &ObjectName::new(namespace, drained), timeout)?;
            left.iter().for_each(|line| eprintln!("{line}"));
            return Ok(ExitCode::from(u8::from(!left.is_empty())));
        }
        Command::Schema => cli::print(&format!("{:#}\n", Config::schema()))?,
        Command::SampleApp(args) => demo::sample::main(args)?,
    }
    Ok(ExitCode::SUCCESS)
}
