//! The line and column of each field of a YAML document, so that every error has both a path and a
//! line.
//!
//! It is built only when there is an error. A text that is not YAML has no places; its error has a
//! line from the parser.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::{Location, NonFiniteFloatPolicy, Spanned};

/// All fields in document order: a field stands before its own fields.
pub(super) struct Places(Vec<Place>);

struct Place {
    path: String,
    /// Line and column of the key, or of the item in a list.
    key: (u64, u64),
    value: (u64, u64),
    /// The value is neither a mapping nor a list.
    leaf: bool,
}

/// Which field a place means. A mapping in block style begins at the same place as its first key.
#[derive(Debug, Clone, Copy)]
pub(super) enum Aim {
    /// The innermost field at the place.
    Inner,
    /// The outermost field at the place.
    Outer,
    /// This field is missing. The place is that of its parent or of a field beside it.
    Absent(&'static str),
}

impl Places {
    /// Finds the places of a text. A text that is not YAML gives none.
    pub(super) fn of(text: &str) -> Self {
        let options = serde_saphyr::options! {
            with_snippet: false,
            non_finite_float_policy: NonFiniteFloatPolicy::AsString,
            duplicate_keys: serde_saphyr::DuplicateKeyPolicy::PassThrough,
        };
        let mut places = Self(Vec::new());
        if let Ok(root) = serde_saphyr::from_str_with_options::<Node>(text, options) {
            places.add("", &root);
        }
        places
    }

    /// The path of the field at this line and column; empty if there is none.
    pub(super) fn path_at(&self, at: (u64, u64), aim: Aim) -> String {
        let is_here = |place: &&Place| place.key == at || place.value == at;
        let place = match aim {
            Aim::Outer => self.0.iter().find(is_here),
            Aim::Inner | Aim::Absent(_) => self.0.iter().rev().find(is_here),
        };
        let path = place.or_else(|| self.0.iter().rev().find(|place| place.key < at));
        match (aim, path) {
            (Aim::Absent(field), None) => field.to_owned(),
            (Aim::Absent(field), Some(place)) if place.leaf => match place.path.rsplit_once('.') {
                Some((holder, _)) => format!("{holder}.{field}"),
                None => field.to_owned(),
            },
            (Aim::Absent(field), Some(place)) => format!("{}.{field}", place.path),
            (_, place) => place.map_or_else(String::new, |place| place.path.clone()),
        }
    }

    /// The line of a field, or of its innermost parent that is present.
    pub(super) fn line_of(&self, path: &str) -> Option<u64> {
        let mut path = path;
        loop {
            if let Some(place) = self.0.iter().find(|place| place.path == path) {
                return Some(place.key.0);
            }
            path = &path[..path.rfind(['.', '['])?];
        }
    }

    fn add(&mut self, path: &str, node: &Node) {
        match node {
            Node::Map(fields) => {
                for (key, value) in fields {
                    let dot = if path.is_empty() { "" } else { "." };
                    self.place(format!("{path}{dot}{}", key.value), &key.referenced, value);
                }
            }
            Node::List(items) => {
                for (index, item) in items.iter().enumerate() {
                    self.place(format!("{path}[{index}]"), &item.referenced, item);
                }
            }
            Node::Leaf => {}
        }
    }

    fn place(&mut self, path: String, key: &Location, value: &Spanned<Node>) {
        let at = |location: &Location| (location.line(), location.column());
        self.0.push(Place {
            path: path.clone(),
            key: at(key),
            value: at(&value.referenced),
            leaf: matches!(value.value, Node::Leaf),
        });
        self.add(&path, &value.value);
    }
}

enum Node {
    Map(Vec<(Spanned<String>, Spanned<Node>)>),
    List(Vec<Spanned<Node>>),
    Leaf,
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(NodeVisitor)
    }
}

struct NodeVisitor;

impl<'de> Visitor<'de> for NodeVisitor {
    type Value = Node;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("any value")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Node, A::Error> {
        let mut fields = Vec::new();
        while let Some(field) = map.next_entry()? {
            fields.push(field);
        }
        Ok(Node::Map(fields))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Node, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = list.next_element()? {
            items.push(item);
        }
        Ok(Node::List(items))
    }

    fn visit_unit<E>(self) -> Result<Node, E> {
        Ok(Node::Leaf)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Node, E> {
        Ok(Node::Leaf)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Node, E> {
        Ok(Node::Leaf)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Node, E> {
        Ok(Node::Leaf)
    }

    fn visit_i128<E>(self, _: i128) -> Result<Node, E> {
        Ok(Node::Leaf)
    }

    fn visit_u128<E>(self, _: u128) -> Result<Node, E> {
        Ok(Node::Leaf)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Node, E> {
        Ok(Node::Leaf)
    }

    fn visit_str<E>(self, _: &str) -> Result<Node, E> {
        Ok(Node::Leaf)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_has_a_path_and_a_path_has_a_line() {
        let places = Places::of(
            "workers: 4\nlisteners:\n  - name: web\n    address: x\n  - {name: b}\ntimeouts: {hold: 1s}\n",
        );
        assert_eq!(places.path_at((1, 10), Aim::Inner), "workers");
        assert_eq!(places.path_at((4, 14), Aim::Inner), "listeners[0].address");
        assert_eq!(places.path_at((4, 5), Aim::Inner), "listeners[0].address");
        assert_eq!(places.path_at((3, 5), Aim::Inner), "listeners[0].name");
        assert_eq!(places.path_at((3, 5), Aim::Outer), "listeners[0]");
        assert_eq!(
            places.path_at((4, 5), Aim::Absent("port")),
            "listeners[0].port"
        );
        assert_eq!(
            places.path_at((6, 11), Aim::Absent("hold")),
            "timeouts.hold"
        );
        assert_eq!(places.path_at((6, 12), Aim::Inner), "timeouts.hold");
        assert_eq!(places.line_of("listeners[1].name"), Some(5));
        assert_eq!(
            places.line_of("listeners[1].address"),
            Some(5),
            "an absent field has its listener's line"
        );
        assert_eq!(places.line_of("listeners"), Some(2));
        assert_eq!(places.line_of("admin.address"), None);
    }

    #[test]
    fn a_broken_document_has_no_places() {
        assert_eq!(Places::of("a: [").path_at((1, 1), Aim::Inner), "");
    }
}
