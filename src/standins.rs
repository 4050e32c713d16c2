//! Stand-ins for what others are writing now; this file goes at the merge.

pub mod telemetry {
    pub fn init() {}
}

pub mod app {
    use std::path::PathBuf;

    pub fn run(config: crate::config::Config, config_path: Option<PathBuf>) -> anyhow::Result<()> {
        anyhow::bail!("app::run is being written ({} listeners, {config_path:?})", config.listeners.len())
    }
}

pub mod admin {
    pub fn status(url: &str, _watch: bool) -> anyhow::Result<()> {
        anyhow::bail!("admin::status is being written ({url})")
    }
}

pub mod demo {
    pub fn run(load: std::time::Duration, _stay: bool) -> anyhow::Result<bool> {
        anyhow::bail!("demo::run is being written ({load:?})")
    }

    pub mod sample {
        pub fn main(args: Vec<String>) -> anyhow::Result<()> {
            anyhow::bail!("demo::sample::main is being written ({args:?})")
        }
    }
}

pub mod files {
    use crate::discovery::{Object, Problem};

    pub fn read_folder(path: &std::path::Path) -> (Vec<Object>, Vec<Problem>) {
        let files = std::fs::read_dir(path).into_iter().flatten().flatten().map(|entry| entry.path());
        let problems = files.filter_map(|file| {
            let text = std::fs::read_to_string(&file).unwrap_or_default();
            let error = serde_saphyr::from_multiple::<serde_json::Value>(&text).err()?.to_string();
            Some(Problem { subject: file.display().to_string(), error, since: std::time::SystemTime::now() })
        });
        (Vec::new(), problems.collect())
    }
}
