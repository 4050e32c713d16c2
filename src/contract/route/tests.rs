use proptest::prelude::*;
use proptest::sample::select;

use super::*;

/// The documentation's own words, without a thought for speed: the place of the rule that serves.
fn naive(rules: &[Rule], claims: &[&str], deep: bool, asked: &Asked<'_>) -> Option<usize> {
    let elements = |path: &str| -> Vec<String> {
        let path = path.trim_end_matches('/');
        path.split('/').map(str::to_owned).collect()
    };
    let host_rank = |wanted: Option<&str>| host_rank(wanted, asked.host, deep);
    let claimed = claims.iter().filter_map(|it| host_rank(Some(it))).max();
    let (path, query) = asked.target.split_once('?').unwrap_or((asked.target, ""));
    let lines = std::str::from_utf8(asked.fields).unwrap();
    let rank = |rule: &Rule| {
        let host = host_rank(rule.host.as_deref()).filter(|it| Some(*it) >= claimed)?;
        let (wanted, parts) = (elements(&rule.path), elements(path));
        let fits = match rule.exact {
            true => rule.path == path,
            false => parts.len() >= wanted.len() && parts[..wanted.len()] == wanted,
        };
        let wants = &rule.wants;
        let has_field = |(name, value): &(String, String)| {
            let lines = lines.lines().filter_map(|line| line.split_once(": "));
            let of_name = lines.filter(|(it, _)| it.to_lowercase() == *name);
            of_name.map(|it| it.1).collect::<Vec<_>>().join(",") == *value
        };
        let has_pair = |(name, value): &(String, String)| {
            let begins = format!("{name}=");
            query.split('&').find_map(|it| it.strip_prefix(&begins)) == Some(value)
        };
        let fits = fits
            && wants.method.as_ref().is_none_or(|it| it == asked.method)
            && wants
                .last
                .as_ref()
                .is_none_or(|it| path.split('/').next_back() == Some(it))
            && wants.fields.iter().all(has_field)
            && wants.query.iter().all(has_pair);
        let method = wants.method.is_some() || wants.last.is_some();
        let wants = (method, wants.fields.len(), wants.query.len());
        fits.then_some((host, rule.exact, wanted.len(), wants))
    };
    let ranked = rules.iter().enumerate();
    let ranked = ranked.filter_map(|(place, rule)| Some((rank(rule)?, place)));
    let best = ranked.max_by_key(|(rank, place)| (*rank, std::cmp::Reverse(*place)));
    best.map(|(_, place)| place)
}

/// How specific a rule or a claim is for a host. `None`: it is not for this one.
fn host_rank(wanted: Option<&str>, host: &str, deep: bool) -> Option<(u32, usize)> {
    match wanted {
        None => Some((0, 0)),
        Some(wanted) if wanted == host => Some((2, 0)),
        Some(wanted) => {
            let parent = wanted.strip_prefix("*.")?;
            let label = host.strip_suffix(parent)?.strip_suffix('.')?;
            (deep || !label.contains('.')).then_some((1, parent.len()))
        }
    }
}

fn table(rules: &[Rule]) -> RouteTable<usize> {
    let mut table = RouteTable::default();
    for (place, rule) in rules.iter().enumerate() {
        table.add(rule, place);
    }
    table
}

fn pairs(all: &'static [(&str, &str)]) -> impl Strategy<Value = Vec<(String, String)>> {
    proptest::sample::subsequence(all, 0..=2).prop_map(|some| {
        let owned = some
            .iter()
            .map(|(name, value)| (name.to_string(), value.to_string()));
        let mut owned: Vec<_> = owned.collect();
        owned.dedup_by(|next, first| next.0 == first.0);
        owned
    })
}

/// In half of all rules it wants nothing.
fn wants() -> impl Strategy<Value = Wants> {
    let some = |all: &'static [&str]| proptest::option::weighted(0.3, select(all));
    let fields = pairs(&[("x", "1"), ("x", "2"), ("x", "1,2"), ("y", "1")]);
    let query = pairs(&[("q", "1"), ("q", "2"), ("r", "1")]);
    let wants = (some(&["GET", "POST"]), fields, query, some(&["a", "b"]));
    let wants = wants.prop_map(|(method, fields, query, last)| Wants {
        method: method.map(str::to_owned),
        last: last.map(str::to_owned),
        fields,
        query,
    });
    prop_oneof![Just(Wants::default()), wants]
}

fn rules() -> impl Strategy<Value = Vec<Rule>> {
    let host = select(vec![
        None,
        Some("a.x"),
        Some("b.x"),
        Some("*.x"),
        Some("*.a.x"),
    ]);
    let path = "((/[ab]{0,2}){1,4}/?|(/a){1,2})";
    let rule = (host, path, any::<bool>(), wants());
    let rule = rule.prop_map(|(host, path, exact, wants)| Rule {
        host: host.map(str::to_owned),
        path,
        exact,
        wants,
    });
    proptest::collection::vec(rule, 0..16)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4_000, ..ProptestConfig::default() })]

    #[test]
    fn a_table_finds_what_the_documentation_says(
        rules in rules(),
        claims in proptest::sample::subsequence(vec!["a.x", "*.x", "*.a.x"], 0..=2),
        deep in any::<bool>(),
        host in "(a\\.x|b\\.x|c\\.a\\.x|d\\.c\\.a\\.x|x|d\\.x)",
        target in "((/[ab]{0,2}){1,6}/{0,2}|(/a){1,3})(\\?(q=[12])?(&r=1)?(&q=1)?)?",
        method in "(GET|POST|PUT)",
        fields in "(X: 1\r\n)?(x: 2\r\n)?(Y: 1\r\n)?(xy: 1\r\n)?",
    ) {
        let mut table = table(&rules);
        table.deep = deep;
        claims.iter().for_each(|host| table.claim(host));
        let (host, target, method) = (&*host, &*target, &*method);
        let asked = Asked { host, target, method, fields: fields.as_bytes() };
        let found = table.search(&asked).copied();
        prop_assert_eq!(found, naive(&rules, &claims, deep, &asked));
    }

    /// A request is misdirected if its host and the name of its connection have two owners.
    #[test]
    fn a_request_by_a_connection_to_the_host_of_another_is_misdirected(
        rules in rules(),
        claims in proptest::sample::subsequence(vec!["a.x", "*.x", "*.a.x"], 0..=3),
        rest_is_owned in any::<bool>(),
        deep in any::<bool>(),
        connected in "(a\\.x|b\\.x|c\\.a\\.x|d\\.c\\.a\\.x|x|y)",
        host in "(a\\.x|b\\.x|c\\.a\\.x|d\\.c\\.a\\.x|x|y)",
    ) {
        let mut table = table(&rules);
        (table.deep, table.rest_is_owned) = (deep, rest_is_owned);
        claims.iter().for_each(|host| table.claim(host));
        let owner = |name: &str| {
            let rank = |claim: &&str| Some((host_rank(Some(claim), name, deep)?, claim.to_string()));
            let claim = claims.iter().filter_map(rank).max().map(|(_, claim)| claim);
            claim.or(rest_is_owned.then(String::new))
        };
        let (mine, other) = (owner(&connected), owner(&host));
        let wanted = mine.is_some() && other.is_some() && mine != other;
        prop_assert_eq!(table.is_misdirected(&connected, &host), wanted);
        let written = format!("{}.:443", host.to_uppercase());
        prop_assert_eq!(table.is_misdirected(&connected.to_uppercase(), &written), wanted);
    }
}

/// The order that the Gateway API gives to the rules that a request fits, the first one first.
#[test]
fn rules_count_in_the_order_of_the_gateway_api() {
    let rule = |host: Option<&str>, path: &str, exact, wants: &[&str]| {
        let mut rule = Rule {
            host: host.map(str::to_owned),
            path: path.to_owned(),
            exact,
            ..Rule::default()
        };
        for want in wants {
            let pair = (want.to_string(), "1".to_owned());
            match *want {
                "GET" => rule.wants.method = Some("GET".to_owned()),
                "q" => rule.wants.query.push(pair),
                _ => rule.wants.fields.push(pair),
            }
        }
        rule
    };
    let mut rules = vec![
        rule(Some("b.a.x"), "/a/b", true, &[]),
        rule(Some("b.a.x"), "/a/b", false, &["GET"]),
        rule(Some("b.a.x"), "/a/b", false, &["x", "y"]),
        rule(Some("b.a.x"), "/a/b", false, &["x", "q"]),
        rule(Some("b.a.x"), "/a/b", false, &["x"]),
        rule(Some("b.a.x"), "/a/b", false, &["y"]),
        rule(Some("b.a.x"), "/a/b", false, &["q"]),
        rule(Some("b.a.x"), "/a/b", false, &[]),
        rule(Some("b.a.x"), "/a", false, &["GET", "x", "y", "q"]),
        rule(Some("*.a.x"), "/", false, &[]),
        rule(Some("*.x"), "/a/b", true, &["GET"]),
        rule(None, "/a/b", true, &["GET"]),
    ];
    let asked = Asked {
        host: "b.a.x",
        target: "/a/b?q=1",
        method: "GET",
        fields: b"x: 1\r\ny: 1\r\n",
    };
    let first = |rules: &[Rule]| {
        let mut table = table(rules);
        table.deep = true;
        *table.search(&asked).unwrap()
    };
    let mut unsure = Vec::new();
    while let Some(rule) = rules.first().cloned() {
        assert_eq!(first(&rules), 0, "{rule:?}");
        // Of equals alone, the one that was added first counts.
        let backwards: Vec<_> = rules.iter().rev().cloned().collect();
        if first(&backwards) != rules.len() - 1 {
            unsure.push(rule);
        }
        rules.remove(0);
    }
    let ties: Vec<_> = unsure.iter().map(|rule| &rule.wants.fields[..]).collect();
    assert_eq!(ties, [[("x".to_owned(), "1".to_owned())]]);
}

#[test]
fn a_claimed_host_goes_by_no_rule_of_a_less_specific_one() {
    let rule = |host: Option<&str>, path: &str| Rule {
        host: host.map(str::to_owned),
        path: path.to_owned(),
        ..Rule::default()
    };
    let rules = [
        rule(Some("a.b.x"), "/own"),
        rule(Some("*.x"), "/wild"),
        rule(None, "/any"),
    ];
    let mut table = table(&rules);
    (table.deep, table.default) = (true, Some(9));
    let found = |table: &RouteTable<usize>| {
        ["/own", "/wild", "/any", "/none"].map(|path| table.find("a.b.x", path).copied())
    };
    assert_eq!(found(&table), [Some(0), Some(1), Some(2), Some(9)]);
    table.claim("*.x");
    assert_eq!(found(&table), [Some(0), Some(1), None, None]);
    table.claim("a.b.x");
    assert_eq!(found(&table), [Some(0), None, None, None]);
    assert_eq!(table.find("y", "/any"), Some(&2));
}

#[test]
fn a_wildcard_is_for_one_label_or_for_any_number() {
    let rule = |host: &str| Rule {
        host: Some(host.to_owned()),
        path: "/".to_owned(),
        ..Rule::default()
    };
    let mut table = table(&[rule("*.x"), rule("*.b.x")]);
    let found = |table: &RouteTable<usize>| {
        ["x", "a.x", "a.b.x", "a.c.x", "d.a.b.x"].map(|host| table.find(host, "/").copied())
    };
    assert_eq!(found(&table), [None, Some(0), Some(1), None, None]);
    table.deep = true;
    assert_eq!(found(&table), [None, Some(0), Some(1), Some(0), Some(1)]);
    // No host makes a search longer than the rules do.
    assert_eq!(table.find(&"a.".repeat(8 << 10), "/"), None);
    assert_eq!(table.find(&("a.".repeat(8 << 10) + "x"), "/"), Some(&0));
}

#[test]
fn hosts_are_compared_without_case_port_and_last_dot() {
    let rule = |host: &str| Rule {
        host: Some(host.to_owned()),
        path: "/".to_owned(),
        ..Rule::default()
    };
    let table = table(&[rule("a.x"), rule("*.x"), rule("[::1]")]);
    for (host, found) in [
        ("A.x", Some(0)),
        ("a.X:8080", Some(0)),
        ("a.x.", Some(0)),
        ("b.x:80", Some(1)),
        ("c.b.x", None),
        ("x", None),
        (".x", Some(1)),
        ("", None),
        (":", None),
        ("[::1]", Some(2)),
        ("[::1]:80", Some(2)),
    ] {
        assert_eq!(table.find(host, "/").copied(), found, "{host:?}");
    }
}

#[test]
fn the_query_is_no_part_of_a_path_and_the_default_gets_the_rest() {
    let rule = |path: &str, exact| Rule {
        host: None,
        path: path.to_owned(),
        exact,
        ..Rule::default()
    };
    let mut table = table(&[rule("/a", true), rule("/ä/b", false)]);
    assert_eq!(table.find("x", "/a?b=/c"), Some(&0));
    assert_eq!(table.find("x", "/ä/b/ü?b"), Some(&1));
    assert_eq!(table.find("x", "/äöü"), None);
    assert_eq!(table.find("x", "*"), None);
    table.default = Some(7);
    assert_eq!(table.find("x", "/äöü/äöü"), Some(&7));
    assert_eq!(table.find("x", ""), Some(&7));
}

/// For gRPC: its method comes before any number of fields, as in a GRPCRoute.
#[test]
fn the_last_element_of_a_path_counts_as_a_method() {
    let mut rules = [Rule::default(), Rule::default()];
    rules[0].wants.fields = vec![("x".to_owned(), "1".to_owned())];
    rules[1].wants.last = Some("Get".to_owned());
    let table = table(&rules.map(|rule| Rule {
        path: "/".to_owned(),
        ..rule
    }));
    let found = |target: &str| {
        let fields = b"x: 1\r\n";
        let asked = Asked {
            target,
            fields,
            ..Asked::default()
        };
        table.search(&asked).copied()
    };
    assert_eq!(found("/shop.Cart/Get?a"), Some(1));
    assert_eq!(found("/shop.Cart/GetAll"), Some(0));
}

/// A value that holds the beginning of another is not taken for it.
#[test]
fn values_of_several_wants_are_kept_apart() {
    let wants = |pairs: &[(&str, &str)]| Rule {
        path: "/".to_owned(),
        wants: Wants {
            fields: pairs
                .iter()
                .map(|(a, b)| (a.to_string(), b.to_string()))
                .collect(),
            ..Wants::default()
        },
        ..Rule::default()
    };
    let table = table(&[
        wants(&[("x", "ab"), ("y", "c")]),
        wants(&[("y", "bc"), ("x", "a")]),
    ]);
    let found = |fields: &str| {
        let asked = Asked {
            target: "/",
            fields: fields.as_bytes(),
            ..Asked::default()
        };
        table.search(&asked).copied()
    };
    assert_eq!(found("x: ab\r\nY:c\r\n"), Some(0));
    assert_eq!(found("x:  a \r\ny: bc\r\n"), Some(1));
    assert_eq!(found("x: abc\r\ny: \r\n"), None);
    assert_eq!(found("x: ab\r\n"), None);
}
