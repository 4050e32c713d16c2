//! What the schema says of a field, for the error of a value of the wrong kind: the bounds of a number, and
//! the names of the fields below it.
//!
//! Built only when there is an error. A path that the schema does not have gives nothing.

use serde_json::Value;

/// What the text of a fault lacks until the path of its field is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lacks {
    /// Nothing.
    Nothing,
    /// The bounds of a whole number.
    Bounds,
    /// The names of the fields below it.
    Names,
}

impl Lacks {
    /// What follows the text, for the field at this path.
    pub(super) fn of(self, path: &str, schema: fn() -> Value) -> String {
        if self == Self::Nothing {
            return String::new();
        }
        let schema = schema();
        let found = match self {
            Self::Nothing => None,
            Self::Bounds => at(path, &schema).and_then(bounds),
            Self::Names => at(path, &schema).and_then(names),
        };
        found.unwrap_or_default()
    }
}

/// ` from 1 to 1024`.
fn bounds(field: &Value) -> Option<String> {
    let of = |name: &str| field.get(name)?.as_u64();
    Some(format!(" from {} to {}", of("minimum")?, of("maximum")?))
}

/// ` such as connect, head or request`.
fn names(field: &Value) -> Option<String> {
    let names = field.get("properties")?.as_object()?.keys();
    let names: Vec<&str> = names.map(String::as_str).collect();
    Some(format!(" such as {}", any_of(&names)))
}

/// `a, b or c`.
pub(super) fn any_of(names: &[&str]) -> String {
    match names {
        [] => "none".into(),
        [only] => (*only).into(),
        [head @ .., last] => format!("{} or {last}", head.join(", ")),
    }
}

fn at<'a>(path: &str, root: &'a Value) -> Option<&'a Value> {
    let steps = path.split(['.', '[']).filter(|step| !step.is_empty());
    let mut field = root;
    for step in steps {
        field = match step.ends_with(']') {
            true => field.get("items")?,
            false => field.get("properties")?.get(step)?,
        };
        field = resolved(field, root)?;
    }
    Some(field)
}

/// Follows `$ref`, and the `anyOf` that lets a field be absent.
fn resolved<'a>(field: &'a Value, root: &'a Value) -> Option<&'a Value> {
    let any = field.get("anyOf").and_then(Value::as_array);
    let field = any.map_or(Some(field), |any| {
        any.iter().find(|it| it.get("$ref").is_some())
    })?;
    match field.get("$ref").and_then(Value::as_str) {
        Some(place) => root.pointer(place.strip_prefix('#')?),
        None => Some(field),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::settings::Config;

    fn error(path: &str, value: &str) -> String {
        let (section, field) = path.split_once('.').unwrap_or((path, ""));
        let own = match field {
            "" => format!("{section}: {value}"),
            field => format!("{section}: {{{field}: {value}}}"),
        };
        let text = format!("discovery: {{kubernetes: {{}}}}\n{own}\n");
        let read = Config::parse(&text, Path::new("ebbtide.yaml"));
        read.expect_err(&format!("{path}: {value}")).to_string()
    }

    /// The paths of all whole numbers, with their bounds.
    fn numbers() -> Vec<(String, u64, u64)> {
        let schema = Config::schema();
        let mut found = Vec::new();
        let mut open = vec![String::new()];
        while let Some(path) = open.pop() {
            let field = at(&path, &schema).unwrap();
            let types: Vec<&Value> = match &field["type"] {
                Value::Array(types) => types.iter().collect(),
                one => vec![one],
            };
            if types.iter().any(|it| *it == "integer") && !types.iter().any(|it| *it == "string") {
                let of = |name: &str| {
                    field[name]
                        .as_u64()
                        .unwrap_or_else(|| panic!("{path} has no {name}"))
                };
                found.push((path.clone(), of("minimum"), of("maximum")));
            }
            let dot = if path.is_empty() { "" } else { "." };
            let below = field.get("properties").and_then(Value::as_object);
            open.extend(
                below
                    .into_iter()
                    .flatten()
                    .map(|(name, _)| format!("{path}{dot}{name}")),
            );
            if field.get("items").is_some() {
                open.push(format!("{path}[0]"));
            }
        }
        found
    }

    #[test]
    fn every_whole_number_says_its_bounds() {
        let numbers = numbers();
        assert!(numbers.len() >= 12, "{numbers:?}");
        for (path, least, most) in numbers {
            let above = (most + 1).to_string();
            for value in ["-1", "1.5", "many", &above, "99999999999999999999999"] {
                let error = error(&path, value);
                assert!(
                    error.contains(&format!("{path}: "))
                        && error.contains(&format!("{least} to {most}")),
                    "{path}: {value}: {error}"
                );
            }
        }
    }

    #[test]
    fn a_value_in_place_of_fields_gets_their_names() {
        let error = error("admin", "127.0.0.1:9901");
        assert!(
            error.ends_with("expected fields below it (name: value) such as address"),
            "{error}"
        );
        let error = Config::parse("listeners: [x]", Path::new("f"))
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("listeners[0]: ") && error.contains("address, "),
            "{error}"
        );
        assert_eq!(Lacks::Names.of("no.such[0].field", Config::schema), "");
    }
}
