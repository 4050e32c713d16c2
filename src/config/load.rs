//! The only way to read a configuration: a file or its text in, checked settings or one fault out.
//!
//! Reading the file again at SIGHUP is left to `app.rs`.

use std::path::Path;

use crate::config::fault::Error;
use crate::config::settings::Config;
use crate::config::{raw, value};

impl Config {
    /// Reads and checks a configuration file. Relative paths in the file count from the file's
    /// folder.
    ///
    /// # Errors
    /// The first fault, with its file, line and field.
    pub fn load(file: &Path) -> Result<Self, Error> {
        let text = std::fs::read_to_string(file).map_err(|error| Error {
            file: file.to_owned(),
            line: None,
            path: String::new(),
            what: format!(
                "cannot be read ({}), expected a configuration file",
                value::plain(&error)
            ),
        })?;
        Self::parse(&text, file)
    }

    /// Checks the text of `file`, without reading the file.
    ///
    /// # Errors
    /// The first fault, with its file, line and field.
    pub fn parse(text: &str, file: &Path) -> Result<Self, Error> {
        let folder = file.parent().unwrap_or(Path::new(""));
        raw::parse(text)
            .and_then(|raw| raw.check(folder))
            .map_err(|fault| fault.placed(file, text, Self::schema))
    }

    /// The JSON Schema (2020-12) of the file that [`Config::load`] reads.
    pub fn schema() -> serde_json::Value {
        schemars::schema_for!(raw::Config).to_value()
    }
}
