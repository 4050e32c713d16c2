//! The rooms of `src/` and their one direction. Reads the sources and fails with the file, the line
//! and the rule when
//!
//! - a room imports a room that is not on a floor below it ([`FLOORS`]),
//! - files import each other in a circle,
//! - a file imports something that its folder's `mod.rs` defines: a `mod.rs` declares and
//!   documents.
//!
//! An import is each `use` and each path in the code that leads to another file of the crate. Unit
//! tests do not count: they may build their scene from any room.
#![allow(clippy::unwrap_used)] // A test that cannot set its scene has failed.
#![allow(unreachable_pub)] // A program of its own: nothing outside uses it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// The rooms, lowest floor first. A room imports only from floors below its own, so two rooms on
/// one floor do not see each other.
///
/// `observe` stands above `discovery`, because `/readyz` names a source's problems as they are.
/// `admin` and `control` do not see each other: both are given the state that they share.
const FLOORS: &[&[&str]] = &[
    &["text", "wire", "net", "contract"],
    &["config"],
    &["cluster"],
    &["discovery"],
    &["observe"],
    &["routing", "proxy"],
    &["gate"],
    &["control", "admin"],
    &["command"],
    &["app"],
    &["cli"],
    &["main"],
];

/// What a file may take from a module that it stands in, as (module, name, file).
/// `tests/loom.rs` puts loom's atomics in the place of `sync`. The version comes from the build of
/// the crate as a whole.
const FROM_ABOVE: &[(&str, &str, &str)] = &[
    ("contract", "sync", "src/contract/lease.rs"),
    ("", "VERSION", ""),
];

/// The modules of the crate, by path (`contract::lease`; the root is empty), and their files.
type Modules = BTreeMap<String, String>;

/// One import: where it stands, where it leads, and what it names there.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Import {
    file: String,
    line: usize,
    target: String,
    /// The module of the target, and the rest of the path.
    module: String,
    name: String,
}

#[test]
fn each_room_imports_only_rooms_below_it_and_no_file_itself() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut sources = BTreeMap::new();
    let mut folders = vec![root.join("src")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|end| end == "rs") {
                let name = path.strip_prefix(root).unwrap().display().to_string();
                sources.insert(name, std::fs::read_to_string(&path).unwrap());
            }
        }
    }
    let (imports, faults) = examine(&sources);
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
    // A reader of sources that finds nothing would be content with everything.
    let between = |import: &&Import| room(&import.file) != room(&import.target);
    assert!(sources.len() > 80 && imports.iter().filter(between).count() > 200);
}

/// All imports of `sources` (file name and text), and what is wrong with them.
fn examine(sources: &BTreeMap<String, String>) -> (BTreeSet<Import>, Vec<String>) {
    let mut tokens = BTreeMap::new();
    let mut modules = Modules::from([(String::new(), "src/lib.rs".to_owned())]);
    let mut only_tests = BTreeSet::new();
    for (file, text) in sources {
        let path = module_of(file);
        let found = without_tests(tokenize(text));
        only_tests.extend(found.1.into_iter().map(|name| join(&path, &name)));
        modules.insert(path, file.clone());
        tokens.insert(file, found.0);
    }
    modules.retain(|path, _| !only_tests.contains(path));
    tokens.retain(|file, _| modules.contains_key(&module_of(file)));
    for (file, tokens) in &tokens {
        for path in inline_modules(&module_of(file), tokens) {
            modules.insert(path, (*file).clone());
        }
    }
    let mut imports = BTreeSet::new();
    for (file, tokens) in &tokens {
        imports.extend(imports_of(file, tokens, &modules));
    }
    let mut faults = Vec::new();
    for import in &imports {
        faults.extend(wrong_floor(import));
        faults.extend(from_above(import));
    }
    faults.extend(circles(&imports));
    (imports, faults)
}

fn wrong_floor(import: &Import) -> Option<String> {
    let Import { file, line, .. } = import;
    let (from, to) = (room(file), room(&import.target));
    if from == to || to == "lib" {
        return None;
    }
    let floor = |room| FLOORS.iter().position(|rooms| rooms.contains(&room));
    let Some(from_floor) = floor(from) else {
        return Some(format!(
            "{file}:{line}: the room `{from}` has no floor; give it one in FLOORS of tests/layers.rs"
        ));
    };
    (floor(to).is_none_or(|to| to >= from_floor)).then(|| {
        format!(
            "{file}:{line}: `{from}` imports `{}` of `{to}`: a room imports only rooms below it",
            join(&import.module, &import.name)
        )
    })
}

fn from_above(import: &Import) -> Option<String> {
    let Import {
        file, line, name, ..
    } = import;
    let stands_in = module_of(&import.target);
    let is_above = format!("{}::", module_of(file)).starts_with(&format!("{stands_in}::"));
    let above = (is_above || stands_in.is_empty()) && *file != import.target;
    let path = join(&import.module, name);
    let is_allowed = FROM_ABOVE.iter().any(|(module, name, user)| {
        path.starts_with(&join(module, name)) && (user.is_empty() || user == file)
    });
    (above && !is_allowed).then(|| {
        format!(
            "{file}:{line}: imports `{name}` from {}: a folder's mod.rs defines nothing that its \
             children need",
            import.target
        )
    })
}

/// Each circle once, with the line of each of its imports.
fn circles(imports: &BTreeSet<Import>) -> Vec<String> {
    let mut seen = BTreeSet::new();
    let mut faults = Vec::new();
    for import in imports {
        // The shortest way back, breadth first.
        let mut ways = vec![vec![import]];
        let mut reached = BTreeSet::from([&import.target]);
        let mut next = 0;
        while let Some(way) = ways.get(next).cloned() {
            next += 1;
            let end = &way.last().unwrap().target;
            if *end == import.file {
                let files: BTreeSet<&String> = way.iter().map(|step| &step.file).collect();
                if seen.insert(files) {
                    let steps = way.iter().map(|s| format!("{}:{} ->", s.file, s.line));
                    let steps: Vec<String> = steps.collect();
                    faults.push(format!(
                        "{} {end}: files import each other in a circle",
                        steps.join(" ")
                    ));
                }
                break;
            }
            for step in imports.iter().filter(|step| step.file == *end) {
                if reached.insert(&step.target) {
                    ways.push(way.iter().copied().chain([step]).collect());
                }
            }
        }
    }
    faults
}

fn imports_of(file: &str, tokens: &[Token], modules: &Modules) -> BTreeSet<Import> {
    let (uses, paths) = walk(&module_of(file), tokens);
    // The names by which this file may call a module, from its `use`.
    let mut aliases = BTreeMap::new();
    for Found { scope, path, .. } in &uses {
        let (name, path) = path.split_last().unwrap();
        if let Some(path) = absolute(path, scope, &aliases, modules) {
            aliases.insert(name.clone(), path);
        }
    }
    let uses = uses.into_iter().map(|mut found| {
        found.path.pop();
        found
    });
    let mut imports = BTreeSet::new();
    for Found { line, scope, path } in uses.chain(paths) {
        let Some(path) = absolute(&path, &scope, &aliases, modules) else {
            continue;
        };
        // The longest part of the path that is a module; the rest is an item of it.
        let mut module = path.as_str();
        while !modules.contains_key(module) {
            module = module.rsplit_once("::").map_or("", |(above, _)| above);
        }
        let Some(target) = modules.get(module).filter(|target| *target != file) else {
            continue;
        };
        imports.insert(Import {
            file: file.to_owned(),
            line,
            target: target.clone(),
            module: module.to_owned(),
            name: path[module.len()..].trim_start_matches("::").to_owned(),
        });
    }
    imports
}

/// A path as the crate's root sees it; `None` for one that leads out of the crate.
fn absolute(
    path: &[String],
    scope: &str,
    aliases: &BTreeMap<String, String>,
    modules: &Modules,
) -> Option<String> {
    let (first, mut rest) = path.split_first()?;
    let mut base = match first.as_str() {
        "crate" | "ebbtide" => String::new(),
        "self" => scope.to_owned(),
        "super" => parent(scope),
        word if aliases.contains_key(word) => aliases[word].clone(),
        word if modules.contains_key(&join(scope, word)) => join(scope, word),
        _ => return None,
    };
    while let Some(("super", after)) = rest.split_first().map(|(word, after)| (&**word, after)) {
        (base, rest) = (parent(&base), after);
    }
    Some(rest.iter().fold(base, |path, word| join(&path, word)))
}

/// A path in a file, and the module (perhaps an inline one) that it stands in.
struct Found {
    line: usize,
    scope: String,
    path: Vec<String>,
}

/// The leaves of all `use` trees, each with the name that it gets as an extra last word; and all
/// other paths.
fn walk(own: &str, tokens: &[Token]) -> (Vec<Found>, Vec<Found>) {
    let (mut uses, mut paths) = (Vec::new(), Vec::new());
    // Inline modules, and how deep in braces each of them is.
    let mut scopes = vec![(own.to_owned(), 0)];
    let (mut depth, mut at) = (0_usize, 0);
    let text = |at: usize| tokens.get(at).map_or("", |token| token.text.as_str());
    while at < tokens.len() {
        let (line, scope) = (tokens[at].line, scopes.last().unwrap().0.clone());
        let before = at.checked_sub(1).map_or("", text);
        match text(at) {
            "{" => depth += 1,
            "}" => {
                scopes.pop_if(|(_, of)| *of == depth && depth > 0);
                depth = depth.saturating_sub(1);
            }
            "mod" if text(at + 2) == "{" => scopes.push((join(&scope, text(at + 1)), depth + 1)),
            "use" if text(at + 1) != "<" => {
                let mut leaves = Vec::new();
                at = use_tree(tokens, at + 1, &[], &mut leaves);
                uses.extend(leaves.into_iter().map(|(line, path)| Found {
                    line,
                    scope: scope.clone(),
                    path,
                }));
            }
            word if is_word(word) && text(at + 1) == "::" && before != "in" => {
                let mut path = vec![word.to_owned()];
                while text(at + 1) == "::" && is_word(text(at + 2)) {
                    path.push(text(at + 2).to_owned());
                    at += 2;
                }
                paths.push(Found { line, scope, path });
            }
            _ => {}
        }
        at += 1;
    }
    (uses, paths)
}

/// Reads the tree at `at`; returns the index of the token behind it.
fn use_tree(
    tokens: &[Token],
    mut at: usize,
    stem: &[String],
    leaves: &mut Vec<(usize, Vec<String>)>,
) -> usize {
    let mut path = stem.to_vec();
    let line = tokens[at].line;
    loop {
        match tokens[at].text.as_str() {
            "::" => at += 1,
            "{" => {
                at += 1;
                while tokens[at].text != "}" {
                    at = use_tree(tokens, at, &path, leaves);
                    if tokens[at].text == "," {
                        at += 1;
                    }
                }
                return at + 1;
            }
            word => {
                let is_stem = word == "*" || word == "self" && !path.is_empty();
                if !is_stem {
                    path.push(word.to_owned());
                }
                at += 1;
                if tokens[at].text == "::" {
                    continue;
                }
                let mut name = path.last().unwrap().clone();
                if tokens[at].text == "as" {
                    name.clone_from(&tokens[at + 1].text);
                    at += 2;
                }
                path.push(name);
                leaves.push((line, path));
                return at;
            }
        }
    }
}

#[derive(Debug, Clone)]
struct Token {
    line: usize,
    text: String,
}

/// Words, `::` and single marks. No comments, no strings, no characters.
fn tokenize(source: &str) -> Vec<Token> {
    let bytes = source.as_bytes();
    let (mut tokens, mut at, mut line) = (Vec::new(), 0, 1);
    while at < bytes.len() {
        let rest = &source[at..];
        let word = rest.find(|c: char| !(c.is_alphanumeric() || c == '_'));
        let word = &rest[..word.unwrap_or(rest.len())];
        let after = &rest[word.len()..];
        let hashes = after.len() - after.trim_start_matches('#').len();
        let is_raw = ["r", "br", "cr"].contains(&word) && after[hashes..].starts_with('"');
        let length = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            block_comment(rest)
        } else if is_raw {
            let end = format!("\"{}", "#".repeat(hashes));
            let open = word.len() + hashes + 1;
            open + rest[open..].find(&end).unwrap() + end.len()
        } else if rest.starts_with('"') {
            quoted(rest, '"')
        } else if rest.starts_with("'\\") {
            quoted(rest, '\'')
        } else if rest.starts_with('\'') && rest.chars().nth(2) == Some('\'') {
            rest.char_indices()
                .nth(3)
                .map_or(rest.len(), |(end, _)| end)
        } else {
            let length = match word {
                "" if rest.starts_with("::") => 2,
                "" => rest.chars().next().map_or(1, char::len_utf8),
                word => word.len(),
            };
            let text = rest[..length].to_owned();
            if !text.trim().is_empty() {
                tokens.push(Token { line, text });
            }
            length
        };
        line += rest[..length].matches('\n').count();
        at += length;
    }
    tokens
}

fn block_comment(rest: &str) -> usize {
    let (mut depth, mut at) = (0, 0);
    loop {
        let step = match &rest.as_bytes()[at..] {
            [b'/', b'*', ..] => (1, 2),
            [b'*', b'/', ..] => (-1, 2),
            _ => (0, 1),
        };
        (depth, at) = (depth + step.0, at + step.1);
        if depth == 0 {
            return at;
        }
    }
}

/// The length of a string or character with its quotes.
fn quoted(rest: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, c) in rest.char_indices().skip(1) {
        if c == quote && !escaped {
            return at + 1;
        }
        escaped = c == '\\' && !escaped;
    }
    rest.len()
}

/// The tokens without `#[cfg(test)] mod NAME { ... }`; and the names of test modules in files of
/// their own.
fn without_tests(tokens: Vec<Token>) -> (Vec<Token>, Vec<String>) {
    const MARK: [&str; 8] = ["#", "[", "cfg", "(", "test", ")", "]", "mod"];
    let (mut kept, mut in_files, mut at) = (Vec::new(), Vec::new(), 0);
    let is_mark = |at: usize| {
        let words = tokens.iter().skip(at).map(|token| token.text.as_str());
        words.take(MARK.len()).eq(MARK)
    };
    while at < tokens.len() {
        if !is_mark(at) {
            kept.push(tokens[at].clone());
            at += 1;
            continue;
        }
        at += MARK.len();
        let name = tokens[at].text.clone();
        at += 1;
        if tokens[at].text == ";" {
            in_files.push(name);
        }
        let mut depth = 0;
        loop {
            match tokens[at].text.as_str() {
                "{" => depth += 1,
                "}" => depth -= 1,
                _ => {}
            }
            at += 1;
            if depth == 0 {
                break;
            }
        }
    }
    (kept, in_files)
}

fn inline_modules<'a>(own: &'a str, tokens: &'a [Token]) -> impl Iterator<Item = String> + 'a {
    let open = tokens.windows(3);
    let open = open.filter(|three| three[0].text == "mod" && three[2].text == "{");
    open.map(move |three| join(own, &three[1].text))
}

/// `src/contract/lease.rs` -> `contract::lease`; `src/lib.rs` -> the empty path.
fn module_of(file: &str) -> String {
    let path = file.trim_start_matches("src/").trim_end_matches(".rs");
    let path = path.strip_suffix("/mod").unwrap_or(path);
    if path == "lib" {
        String::new()
    } else {
        path.replace('/', "::")
    }
}

fn room(file: &str) -> &str {
    let path = file.trim_start_matches("src/").trim_end_matches(".rs");
    path.split('/').next().unwrap()
}

fn join(module: &str, name: &str) -> String {
    match (module, name) {
        ("", path) | (path, "") => path.to_owned(),
        _ => format!("{module}::{name}"),
    }
}

fn parent(module: &str) -> String {
    module
        .rsplit_once("::")
        .map_or(String::new(), |(above, _)| above.to_owned())
}

fn is_word(text: &str) -> bool {
    text.starts_with(|c: char| c.is_alphabetic() || c == '_')
}

mod resolver {
    use super::*;

    /// What is wrong with these files.
    fn faults(files: &[(&str, &str)]) -> Vec<String> {
        let owned = |(file, text): &(&str, &str)| ((*file).to_owned(), (*text).to_owned());
        examine(&files.iter().map(owned).collect()).1
    }

    fn assert_one(files: &[(&str, &str)], at: &str, rule: &str) {
        let found = faults(files);
        assert!(
            found.len() == 1 && found[0].starts_with(at) && found[0].contains(rule),
            "{found:#?}, expected one at {at}: {rule}"
        );
    }

    const UPWARD: &str = "a room imports only rooms below it";
    const CIRCLE: &str = "files import each other in a circle";
    const ABOVE: &str = "a folder's mod.rs defines nothing";

    #[test]
    fn an_import_downwards_is_right_and_one_upwards_or_sideways_is_not() {
        let table = ("src/routing/table.rs", "pub struct Table;");
        let lease = ("src/contract/lease.rs", "pub struct Word;");
        let down = ("src/routing/table.rs", "use crate::contract::lease::Word;");
        assert_eq!(faults(&[down, lease]), [""; 0]);
        let up = (
            "src/contract/lease.rs",
            "\nuse crate::routing::table::Table;",
        );
        assert_one(&[table, up], "src/contract/lease.rs:2:", UPWARD);
        let sideways = ("src/proxy/run.rs", "use crate::routing::table::Table;");
        assert_one(&[table, sideways], "src/proxy/run.rs:1:", UPWARD);
        let unknown = ("src/attic/box.rs", "use crate::routing::table::Table;");
        assert_one(&[table, unknown], "src/attic/box.rs:1:", "has no floor");
    }

    #[test]
    fn every_form_of_an_import_is_found() {
        let forms = [
            "use crate::{text::chain, routing::table::Table};",
            "use crate::{\n  text::chain, routing::{self, table::{Table as T, *}}};",
            "pub use crate::routing::table as t;",
            "pub(crate) use super::super::routing::table::Table;",
            "fn f() { use crate::routing::table::*; }",
            "fn f(x: &crate::routing::table::Table) {}",
            "fn f() { super::super::routing::table::make(); }",
            "mod inner { use super::super::super::routing::table::Table; }",
            "use crate::routing as r; fn f() { r::table::make(); }",
            "macro_rules! m { () => { $crate::routing::table::make() } }",
        ];
        for form in forms {
            let found = faults(&[
                ("src/routing/mod.rs", "pub mod table;"),
                ("src/routing/table.rs", "pub fn make() {}"),
                ("src/text.rs", "pub fn chain() {}"),
                ("src/config/raw.rs", form),
            ]);
            let upward = |fault: &String| fault.contains("table") && fault.contains(UPWARD);
            assert!(found.iter().any(upward), "{form}: {found:#?}");
        }
    }

    #[test]
    fn comments_strings_and_unit_tests_import_nothing() {
        let text = r##"
            // use crate::routing::table::Table;
            /* /* nested */ use crate::routing::table::Table; */
            const A: &str = "use crate::routing::table::Table; \" { ";
            const B: &str = r#"use crate::routing::table::Table; " { "#;
            const C: [char; 3] = ['"', '\'', '{'];
            fn f<'a>(x: &'a str) {}
            #[cfg(test)]
            mod tests {
                use crate::routing::table::Table;
                fn f() { if true {} }
            }
        "##;
        let table = ("src/routing/table.rs", "pub struct Table;");
        assert_eq!(faults(&[table, ("src/config/raw.rs", text)]), [""; 0]);
        let behind = format!("{text}\nuse crate::routing::table::Table;");
        let files = [table, ("src/config/raw.rs", &behind)];
        assert_one(&files, "src/config/raw.rs:14:", UPWARD);
        let declared = ("src/config/mod.rs", "#[cfg(test)]\nmod tests;");
        let tests = ("src/config/tests.rs", "use crate::routing::table::Table;");
        assert_eq!(faults(&[table, declared, tests]), [""; 0]);
    }

    #[test]
    fn a_circle_is_reported_once_with_each_of_its_steps() {
        let files = [
            ("src/proxy/a.rs", "use crate::proxy::b::B; pub struct A;"),
            ("src/proxy/b.rs", "\nuse super::c::C; pub struct B;"),
            ("src/proxy/c.rs", "pub struct C(crate::proxy::a::A);"),
        ];
        let steps = "src/proxy/a.rs:1 -> src/proxy/b.rs:2 -> src/proxy/c.rs:1 -> src/proxy/a.rs";
        assert_one(&files, steps, CIRCLE);
        let end = ("src/proxy/c.rs", "pub struct C;");
        assert_eq!(faults(&[files[0], files[1], end]), [""; 0]);
    }

    #[test]
    fn a_file_takes_nothing_from_the_module_that_it_stands_in() {
        let folder = ("src/config/mod.rs", "pub mod raw; pub struct Limit;");
        let child = ("src/config/raw.rs", "use super::Limit;");
        assert_one(&[folder, child], "src/config/raw.rs:1:", ABOVE);
        let root = ("src/lib.rs", "pub mod config; pub const VERSION: u8 = 0;");
        let version = ("src/config/raw.rs", "fn f() { crate::VERSION; }");
        assert_eq!(faults(&[root, folder, version]), [""; 0]);
        let other = ("src/config/raw.rs", "fn f() { crate::OTHER; }");
        assert_one(&[root, folder, other], "src/config/raw.rs:1:", ABOVE);
        // What loom puts in the place of, and only there.
        let sync = ("src/contract/mod.rs", "mod sync { pub use std::x::Y; }");
        let lease = ("src/contract/lease.rs", "use super::sync::Y;");
        assert_eq!(faults(&[sync, lease]), [""; 0]);
        let hold = ("src/contract/hold.rs", "use super::sync::Y;");
        assert_one(&[sync, hold], "src/contract/hold.rs:1:", ABOVE);
    }
}
