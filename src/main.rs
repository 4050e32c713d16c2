//! Stand-in until the real one is merged: `run` is a balancer of connections that polls its folder, good enough to test
//! the demo's second phase.
use std::net::SocketAddr;
use std::time::Duration;

use clap::Parser;

#[derive(clap::Parser)]
#[command(version = ebbtide::VERSION)]
enum Command {
    Demo {
        #[arg(long = "for", default_value = "20s", value_parser = humantime::parse_duration)]
        load: Duration,
        #[arg(long)]
        stay: bool,
    },
    #[command(hide = true)]
    SampleApp(ebbtide::demo::sample::Args),
    Run {
        #[arg(long)]
        config: std::path::PathBuf,
    },
}

fn main() -> anyhow::Result<std::process::ExitCode> {
    Ok(match Command::parse() {
        Command::Demo { load, stay } => u8::from(!ebbtide::demo::run(load, stay)?).into(),
        Command::SampleApp(args) => {
            ebbtide::demo::sample::main(args)?;
            std::process::ExitCode::SUCCESS
        }
        Command::Run { config } => {
            tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(run(&config))?;
            std::process::ExitCode::SUCCESS
        }
    })
}

async fn run(config: &std::path::Path) -> anyhow::Result<()> {
    let config: serde_json::Value = serde_saphyr::from_str(&std::fs::read_to_string(config)?)?;
    let folder = config["discovery"]["files"]["path"].as_str().unwrap_or_default().to_owned();
    let (send, receive) = tokio::sync::watch::channel(read(&folder)?);
    let late = ebbtide::demo::late::Late::start(receive, Duration::ZERO)?;
    let admin = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    eprintln!(r#"{{"fields":{{"message":"admin listening","address":"{}"}}}}"#, admin.local_addr()?);
    eprintln!(r#"{{"fields":{{"message":"listening","listener":"web","address":"{}"}}}}"#, late.address);
    let routes = axum::Router::new().route("/readyz", axum::routing::get(|| async { "ready\n" })).route(
        "/metrics",
        axum::routing::get(|| async {
            "ebbtide_retries_total{reason=\"replay\"} 7\nebbtide_retries_total{reason=\"connect\"} 70\n"
        }),
    );
    tokio::spawn(async { axum::serve(admin, routes).await });
    let mut term = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    loop {
        tokio::select! {
            _ = term.recv() => return Ok(()),
            () = tokio::time::sleep(Duration::from_millis(5)) => if let Ok(new) = read(&folder) {
                send.send_if_modified(|old| std::mem::replace(old, new.clone()) != new);
            }
        }
    }
}

fn read(folder: &str) -> anyhow::Result<Vec<SocketAddr>> {
    let slice: serde_json::Value = serde_json::from_slice(&std::fs::read(format!("{folder}/slice-0.json"))?)?;
    let port = slice["ports"][0]["port"].as_u64().unwrap_or_default() as u16;
    let endpoints = slice["endpoints"].as_array().cloned().unwrap_or_default();
    let ready = endpoints.iter().filter(|e| e["conditions"]["terminating"] == false);
    Ok(ready.filter_map(|e| Some(SocketAddr::new(e["addresses"][0].as_str()?.parse().ok()?, port))).collect())
}
