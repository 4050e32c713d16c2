//! Hosts of listeners and of routes, which may begin with `*.`.
//!
//! Source: <https://gateway-api.sigs.k8s.io/reference/spec/#hostname>.

/// The hosts that a listener and a route have in common, in lower case. `None`: every host. An empty list:
/// they have none in common.
pub fn common(listener: Option<&str>, route: &[String]) -> Vec<Option<String>> {
    let listener = listener.filter(|it| !it.is_empty());
    let listener = listener.map(str::to_ascii_lowercase);
    if route.is_empty() {
        return vec![listener];
    }
    let each = route.iter().map(|it| it.to_ascii_lowercase());
    let common = each.filter_map(|route| match &listener {
        None => Some(Some(route)),
        Some(listener) if covers(listener, &route) => Some(Some(route)),
        Some(listener) if covers(&route, listener) => Some(Some(listener.clone())),
        Some(_) => None,
    });
    common.collect()
}

/// Whether every host of the second is one of the first.
pub fn covers(wide: &str, narrow: &str) -> bool {
    wide == narrow
        || wide.strip_prefix('*').is_some_and(|suffix| {
            let narrow = narrow.strip_prefix('*').unwrap_or(narrow);
            narrow.len() > suffix.len() && narrow.ends_with(suffix)
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_what_both_have() {
        let common = |listener: Option<&str>, route: &[&str]| {
            let route: Vec<_> = route.iter().map(|&it| it.to_owned()).collect();
            let hosts = common(listener, &route).into_iter();
            let hosts = hosts.map(|it| it.unwrap_or_else(|| "all".to_owned()));
            hosts.collect::<Vec<_>>().join(" ")
        };
        assert_eq!(common(None, &[]), "all");
        assert_eq!(common(Some(""), &["A.x"]), "a.x");
        assert_eq!(common(Some("A.x"), &[]), "a.x");
        assert_eq!(common(Some("a.x"), &["b.x", "a.x", "*.x"]), "a.x a.x");
        assert_eq!(
            common(Some("*.x"), &["a.x", "b.a.x", "x", "*.a.x", "*.x"]),
            "a.x b.a.x *.a.x *.x"
        );
        assert_eq!(common(Some("*.a.x"), &["*.x", "*.b.x", "ba.x"]), "*.a.x");
        assert_eq!(common(Some("a.x"), &["*.a.x"]), "");
    }
}
