//! The pages beside what they describe. `docs/reference.md` names each field, option, metric and
//! reason of the program, and none that does not exist. `docs/contract.md` names tests that exist.
//! Each relative link of each page leads to a file, and no file cites a page that is not in the
//! repository.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use ebbtide::config::settings::{Config, Discovery};
use ebbtide::contract::name::ObjectName;
use ebbtide::contract::policy::Transport;
use ebbtide::contract::reason::CloseReason;
use ebbtide::observe::metrics::Metrics;
use serde_json::Value;

use crate::support::binary::BINARY;

pub(super) const ROOT: &str = env!("CARGO_MANIFEST_DIR");
const REFERENCE: &str = "docs/reference.md";

pub(super) fn read(path: impl AsRef<Path>) -> String {
    let path = Path::new(ROOT).join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Every file of the repository that is text and not generated.
pub(super) fn files() -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut folders = vec![PathBuf::from(ROOT)];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if path.is_symlink() || ["target", ".git", "corpus", "artifacts"].contains(&&*name) {
                continue;
            } else if path.is_dir() {
                folders.push(path);
            } else {
                files.push(path);
            }
        }
    }
    files.sort();
    files
}

/// The text between two backticks, of all such places.
fn quoted(text: &str) -> BTreeSet<&str> {
    let lines = text.lines().filter(|line| !line.starts_with("```"));
    lines
        .flat_map(|line| line.split('`').skip(1).step_by(2))
        .collect()
}

/// The part of the reference below a heading, up to the next heading of the same depth.
pub(super) fn section<'a>(page: &'a str, heading: &str) -> &'a str {
    let marks = heading.split(' ').next().unwrap();
    let begin = page.find(&format!("\n{heading}\n")).expect(heading) + 1;
    let below = &page[begin + heading.len()..];
    let end = below.find(&format!("\n{marks} ")).unwrap_or(below.len());
    &below[..end]
}

/// What stands in backticks in the first cell of each row.
pub(super) fn first_cells(section: &str) -> BTreeSet<&str> {
    let rows = section.lines().filter(|line| line.starts_with('|'));
    rows.flat_map(|row| quoted(row.split(" | ").next().unwrap()))
        .collect()
}

/// Both ways, with the names that only one side has.
pub(super) fn assert_same(file: &str, what: &str, page: &BTreeSet<&str>, program: &BTreeSet<&str>) {
    let missing: Vec<_> = program.difference(page).collect();
    let unknown: Vec<_> = page.difference(program).collect();
    assert!(
        missing.is_empty() && unknown.is_empty(),
        "{what}: {file} lacks {missing:?}, and the program has no {unknown:?}"
    );
    assert!(!program.is_empty(), "{what}: nothing was compared");
}

/// Each field of the configuration, with its default or null.
fn fields(schema: &Value, node: &Value, path: &str, found: &mut BTreeMap<String, Value>) {
    if let Some(name) = node["$ref"].as_str() {
        let part = schema.pointer(name.trim_start_matches('#')).unwrap();
        return fields(schema, part, path, found);
    }
    for part in ["anyOf", "oneOf", "allOf"] {
        for option in node[part].as_array().into_iter().flatten() {
            fields(schema, option, path, found);
        }
    }
    if node["items"].is_object() {
        fields(schema, &node["items"], &format!("{path}[]"), found);
    }
    for (name, field) in node["properties"].as_object().into_iter().flatten() {
        let dot = if path.is_empty() { "" } else { "." };
        let path = format!("{path}{dot}{name}");
        found.insert(path.clone(), field["default"].clone());
        fields(schema, field, &path, found);
    }
}

#[test]
fn the_reference_has_every_field_of_the_configuration_and_no_other() {
    let schema = Config::schema();
    let mut found = BTreeMap::new();
    fields(&schema, &schema, "", &mut found);
    let page = read("docs/reference.md");
    let program = found.keys().map(String::as_str).collect();
    let section = section(&page, "## Configuration");
    assert_same(
        REFERENCE,
        "fields of the configuration",
        &first_cells(section),
        &program,
    );
    let mut compared = 0;
    for row in section.lines().filter(|line| line.starts_with("| `")) {
        let cells: Vec<&str> = row.split(" | ").collect();
        let (name, stated) = (quoted(cells[0]), quoted(cells[1]));
        let default = match &found[*name.first().unwrap()] {
            Value::String(text) => text.clone(),
            Value::Number(number) => number.to_string(),
            _ => continue,
        };
        assert_eq!(stated, BTreeSet::from([default.as_str()]), "{row}");
        compared += 1;
    }
    assert!(compared > 20, "{compared} defaults");
}

/// A balancer that finds its idle connection closed loses the request that it has just sent.
#[test]
fn idle_clients_are_kept_longer_than_cloud_balancers_keep_them() {
    let discovery = Discovery::Files { path: "x".into() };
    let default = Config::new(discovery).timeouts.client_idle;
    assert!(default > Duration::from_secs(600), "{default:?}");
}

fn help(arguments: &[&str]) -> String {
    let output = Command::new(BINARY).args(arguments).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// The lines of a part of a help text, with their indentation.
fn entries<'a>(help: &'a str, part: &str) -> Vec<&'a str> {
    let below = help.lines().skip_while(|line| *line != part).skip(1);
    below
        .take_while(|line| line.is_empty() || line.starts_with(' '))
        .collect()
}

#[test]
fn the_reference_has_every_command_and_every_option_with_its_default() {
    let page = read("docs/reference.md");
    let commands = section(&page, "## Commands");
    let overview = help(&["--help"]);
    let names: BTreeSet<&str> = entries(&overview, "Commands:")
        .iter()
        .filter_map(|line| line.strip_prefix("  ")?.split(' ').next())
        .filter(|word| !word.is_empty())
        .collect();
    let table = commands.split("### Options").next().unwrap();
    assert_same(REFERENCE, "commands", &first_cells(table), &names);

    // One row for each command and option: its names, and its default.
    let mut rows = BTreeSet::new();
    for command in names.iter().filter(|name| **name != "help") {
        let text = help(&[command, "--help"]);
        let mut row: Option<String> = None;
        for line in entries(&text, "Options:") {
            if line.trim().starts_with('-') {
                rows.extend(row.take());
                let words = line.split([' ', ',']).filter(|word| word.starts_with('-'));
                let mut words: Vec<String> = words.map(|word| format!("`{word}`")).collect();
                words.sort();
                row = Some(format!("`{command}` {}", words.join(" ")));
            }
            let default = line.split_once("[default: ");
            let value = default.map_or("", |(_, value)| value.split(']').next().unwrap());
            // More than one word says how the default is found.
            if !value.is_empty() && !value.contains(' ') {
                row.as_mut().unwrap().push_str(&format!(" = `{value}`"));
            }
        }
        rows.extend(row);
    }
    rows.retain(|row| !row.contains("`--help`") && !row.contains("`--version`"));
    let options = section(commands, "### Options");
    let named = options.lines().filter_map(|line| {
        let cells: Vec<&str> = line.split(" | ").collect();
        let names = quoted(cells.get(1)?);
        let mut names: Vec<&str> = names.into_iter().filter(|n| n.starts_with('-')).collect();
        names.sort_unstable();
        let names: Vec<String> = names.iter().map(|name| format!("`{name}`")).collect();
        let command = quoted(cells[0]).into_iter().next()?;
        let default = quoted(cells.get(2)?).into_iter().next();
        let default = default.map(|value| format!(" = `{value}`"));
        let row = format!("`{command}` {}", names.join(" "));
        Some(row + &default.unwrap_or_default())
    });
    let named: BTreeSet<String> = named.collect();
    assert_same(
        REFERENCE,
        "options",
        &named.iter().map(String::as_str).collect(),
        &rows.iter().map(String::as_str).collect(),
    );

    let known: BTreeSet<&str> = rows.iter().flat_map(|row| quoted(row)).collect();
    for word in quoted(&page) {
        let flag = word.split([' ', '=']).find(|word| word.starts_with("--"));
        let exists = |flag| known.contains(flag) || ["--help", "--version"].contains(&flag);
        assert!(flag.is_none_or(exists), "no command has the option {word}");
    }
}

#[test]
fn the_reference_has_every_metric_and_no_other() {
    let metrics = Metrics::new().unwrap();
    // These appear with the first client, and with the first error.
    let port = ObjectName::new("web", "nginx").port(80);
    metrics.service(&port).answered(200);
    metrics.service(&port).handshakes[0].inc();
    metrics.service(&port).grpc[0].inc();
    let udp = ObjectName::new("web", "nginx").port_over(Transport::Udp, 53);
    metrics.service(&udp).datagrams[0].inc();
    metrics.discovery_errors.with_label_values(&["file"]).inc();
    metrics.gate.show("clear");
    let text = metrics.render().unwrap();
    let families = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    let families: Vec<String> = families
        .map(|family| {
            let (name, kind) = family.split_once(' ').unwrap();
            format!("| `{name}` | {kind} |")
        })
        .collect();
    let page = read("docs/reference.md");
    for row in &families {
        assert!(page.contains(row), "docs/reference.md has no row {row}");
    }
    assert!(families.len() > 10, "{families:?}");
    let named = quoted(&page).into_iter().filter(|word| {
        let rest = word.strip_prefix("ebbtide_");
        rest.is_some_and(|rest| rest.chars().all(|c| c.is_ascii_lowercase() || c == '_'))
    });
    for name in named {
        let exists = families
            .iter()
            .any(|row| row.contains(&format!("`{name}`")));
        assert!(exists, "docs/reference.md names {name}, which is no metric");
    }
}

/// The values of `x-ebbtide-reason`. They have no list of their own: each is a literal in the code that
/// refuses.
pub(super) fn reasons() -> BTreeSet<String> {
    let mut found = BTreeSet::from(["shutdown".to_owned()]);
    for file in files() {
        let name = file.strip_prefix(ROOT).unwrap();
        let refuses = [
            "src/wire",
            "src/proxy/http",
            "src/proxy/h2",
            "src/proxy/tls.rs",
        ];
        if !refuses.iter().any(|it| name.starts_with(it)) {
            continue;
        }
        let text = read(&file);
        let code = text.split("#[cfg(test)]").next().unwrap();
        let lines = code.lines().filter(|line| !line.trim().starts_with("//"));
        let literals = lines.flat_map(|line| line.split('"').skip(1).step_by(2));
        let is_reason = |word: &&str| {
            word.contains('_')
                && word.starts_with(|c: char| c.is_ascii_lowercase())
                && word
                    .chars()
                    .all(|c| matches!(c, 'a'..='z' | '0'..='9' | '_'))
        };
        found.extend(literals.filter(is_reason).map(str::to_owned));
    }
    // A body that ends too early is a lost endpoint, under that name.
    found.remove("truncated_body");
    found
}

#[test]
fn the_reference_has_every_reason() {
    let page = read("docs/reference.md");
    let closes: BTreeSet<&str> = CloseReason::ALL
        .iter()
        .map(|reason| reason.as_str())
        .collect();
    let named = first_cells(section(&page, "## Close reasons"));
    assert_same(REFERENCE, "close reasons", &named, &closes);

    let found = reasons();
    let answers = section(&page, "## Answers of the proxy itself");
    let named = quoted(answers).into_iter();
    let named = named.filter(|word| !word.contains(['.', ' ', ':', '-']) && !word.is_empty());
    let program = found.iter().map(String::as_str).collect();
    assert_same(REFERENCE, "reasons", &named.collect(), &program);
}

#[test]
fn each_log_message_and_each_event_of_the_reference_is_in_the_code() {
    let sources = files().into_iter().filter(|file| {
        let name = file.strip_prefix(ROOT).unwrap();
        name.starts_with("src") && name.extension().is_some_and(|end| end == "rs")
    });
    // A literal may go on in the next line, behind a backslash.
    let words = |text: String| text.split_whitespace().collect::<Vec<_>>().join(" ");
    let code: Vec<String> = sources
        .map(|file| words(read(file).replace("\\\n", "")))
        .collect();
    let page = read("docs/reference.md");
    for (heading, count) in [("## Log", 20), ("## Kubernetes Events", 6)] {
        let mut named = first_cells(section(&page, heading));
        // These have a name or an outcome in them.
        let made = [
            "NAMESPACE/SERVICE: WARNING",
            "endpoint drained",
            "endpoint forced",
        ];
        named.retain(|message| !made.contains(message));
        assert!(named.len() >= count, "{heading}: {named:?}");
        let exists = |name: &&&str| {
            code.iter()
                .any(|text| text.contains(&format!("\"{name}\"")))
        };
        let gone: Vec<_> = named.iter().filter(|name| !exists(name)).collect();
        assert!(gone.is_empty(), "{heading}: no code has {gone:#?}");
    }
}

/// The module path by which `docs/contract.md` names the tests of a file: the crate or the test
/// program first. `None` for a file that is neither in `src` nor in `tests`.
fn module(file: &Path) -> Option<String> {
    let name = file.strip_prefix(ROOT).unwrap().with_extension("");
    let mut parts: Vec<&str> = name.iter().map(|part| part.to_str().unwrap()).collect();
    match parts[0] {
        "src" => parts[0] = "lib",
        "tests" => _ = parts.remove(0),
        _ => return None,
    }
    // `main-proxy.rs` and `model/main.rs` are the roots of test programs. `tests` is the module of
    // unit tests, which the contract leaves out.
    if parts.len() > 1 && ["mod", "lib", "main", "tests"].contains(parts.last()?) {
        parts.pop();
    }
    parts[0] = parts[0].trim_start_matches("main-");
    Some(parts.join("::"))
}

#[test]
fn each_test_that_the_contract_names_exists() {
    let mut tests = BTreeSet::new();
    for file in files() {
        if file.extension().is_none_or(|end| end != "rs") {
            continue;
        }
        let Some(module) = module(&file) else {
            continue;
        };
        let text = read(&file);
        let code = text.lines().filter(|line| !line.trim().starts_with("//"));
        let names = code.filter_map(|line| {
            let (_, name) = line.split_once("fn ")?;
            let name = name.split(['(', '<']).next().unwrap();
            Some(format!("{module}::{name}"))
        });
        tests.extend(names);
    }
    let page = read("docs/contract.md");
    let named = quoted(&page).into_iter().filter_map(|word| {
        let word = word.strip_prefix('[')?.strip_suffix(']')?;
        word.contains("::").then_some(word)
    });
    let named: Vec<&str> = named.collect();
    assert!(named.len() > 150, "{}", named.len());
    let gone: Vec<_> = named
        .iter()
        .filter(|path| !tests.contains(**path))
        .collect();
    assert!(gone.is_empty(), "docs/contract.md names {gone:#?}");
}

/// `a/{b,c}.rs` names two files.
fn expanded(path: &str) -> Vec<String> {
    let Some((before, rest)) = path.split_once('{') else {
        return vec![path.to_owned()];
    };
    let (names, after) = rest.split_once('}').unwrap_or((rest, ""));
    let names = names.split(',');
    names.map(|name| format!("{before}{name}{after}")).collect()
}

#[test]
fn each_source_file_that_the_maps_name_exists() {
    let files = files();
    let mut wrong = BTreeSet::new();
    let mut named = 0;
    for map in ["docs/architecture.md", "src/lib.rs", "CONTRIBUTING.md"] {
        let text = read(map);
        let text = text
            .lines()
            .filter(|line| map.ends_with("md") || line.starts_with("//!"));
        let words = text.flat_map(|line| line.split([' ', '`', '(', ')', ';', '|']));
        for word in words.map(|word| word.trim_end_matches([',', ':', '.'])) {
            if !word.ends_with(".rs") {
                continue;
            }
            for path in expanded(word) {
                named += 1;
                // By its whole path, or by its end.
                if !files.iter().any(|file| file.ends_with(&path)) {
                    wrong.insert(format!("{map}: {path}"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(named > 40, "{named}");
}

/// The anchor of a heading, as GitHub makes it.
fn anchor(heading: &str) -> String {
    let text = heading.trim_start_matches('#').trim().to_lowercase();
    let kept = text
        .chars()
        .filter(|c| c.is_alphanumeric() || " -_".contains(*c));
    kept.map(|c| if c == ' ' { '-' } else { c }).collect()
}

#[test]
fn each_relative_link_leads_to_a_file_and_to_a_heading_of_it() {
    let mut wrong = Vec::new();
    let mut links = 0;
    for file in files() {
        if file.extension().is_none_or(|end| end != "md") {
            continue;
        }
        let text = read(&file);
        for link in text.split("](").skip(1) {
            let link = link.split(')').next().unwrap();
            if link.contains("://") || link.contains(char::is_whitespace) || link.is_empty() {
                continue;
            }
            links += 1;
            let (path, heading) = link.split_once('#').unwrap_or((link, ""));
            let target = if path.is_empty() {
                file.clone()
            } else {
                file.parent().unwrap().join(path)
            };
            let place = file.strip_prefix(ROOT).unwrap().display();
            if !target.exists() {
                wrong.push(format!("{place}: {link}: no such file"));
            } else if !heading.is_empty() {
                let page = read(&target);
                let headings = page.lines().filter(|line| line.starts_with('#'));
                if !headings.map(anchor).any(|anchor| anchor == heading) {
                    wrong.push(format!("{place}: {link}: no such heading"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(links > 20, "{links}");
}

#[test]
fn no_file_cites_a_page_that_is_not_in_the_repository() {
    // In two parts, so that this file does not cite them.
    let pages = [
        ("design, ", "section"),
        ("interface", ".md"),
        ("house", ".md"),
        ("faults", ".md"),
    ];
    let mut wrong = Vec::new();
    for file in files() {
        let Ok(text) = std::fs::read_to_string(&file) else {
            continue;
        };
        for (number, line) in text.lines().enumerate() {
            for (first, second) in pages {
                if line.contains(&format!("{first}{second}")) {
                    let place = file.strip_prefix(ROOT).unwrap().display();
                    wrong.push(format!("{place}:{}: {first}{second}", number + 1));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}
