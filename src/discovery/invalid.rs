//! Values that the API server would refuse, wherever a field is read.

use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::contract::name::ObjectName;

/// A field with a value that the API server would refuse.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {message}")]
pub struct Invalid {
    /// The path of the field in its object.
    pub field: String,
    /// What is wrong.
    pub message: String,
}

/// A port from 1 to 65535.
pub(super) fn port_number(number: i32, field: impl FnOnce() -> String) -> Result<u16, Invalid> {
    match u16::try_from(number) {
        Ok(port) if port != 0 => Ok(port),
        _ => Err(Invalid {
            field: field(),
            message: format!("expected a port from 1 to 65535, found {number}"),
        }),
    }
}

/// A number of seconds; none for a negative one.
pub(super) fn seconds(seconds: i64) -> Duration {
    Duration::from_secs(seconds.try_into().unwrap_or(0))
}

/// An object's namespace and name.
pub(super) fn object_name(metadata: &ObjectMeta) -> Result<ObjectName, Invalid> {
    match metadata.name.as_deref() {
        None | Some("") => Err(Invalid {
            field: "metadata.name".into(),
            message: "missing".into(),
        }),
        Some(name) => {
            let name = ObjectName::new(metadata.namespace.as_deref().unwrap_or("default"), name);
            if name.to_string().contains(char::is_control) {
                return Err(Invalid {
                    field: "metadata".into(),
                    message: "a control character in its name".into(),
                });
            }
            Ok(name)
        }
    }
}
