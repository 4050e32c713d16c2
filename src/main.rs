//! Stand-in until the real one is merged: only what tests/demo.rs needs.
use clap::Parser;

#[derive(clap::Parser)]
#[command(version = ebbtide::VERSION)]
enum Command {
    Demo {
        #[arg(long = "for", default_value = "20s", value_parser = humantime::parse_duration)]
        load: std::time::Duration,
        #[arg(long)]
        stay: bool,
    },
    #[command(hide = true)]
    SampleApp(ebbtide::demo::sample::Args),
}

fn main() -> anyhow::Result<std::process::ExitCode> {
    Ok(match Command::parse() {
        Command::Demo { load, stay } => u8::from(!ebbtide::demo::run(load, stay)?).into(),
        Command::SampleApp(args) => {
            ebbtide::demo::sample::main(args)?;
            std::process::ExitCode::SUCCESS
        }
    })
}
