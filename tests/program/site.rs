//! The pages as a site. The table of contents has every page once. `docs/troubleshooting.md` has an entry
//! for each reason, each Event and each warning of the program, and for nothing else.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use ebbtide::cluster::event::Reason;
use ebbtide::contract::reason::CloseReason;

use super::docs::{ROOT, assert_same, files, first_cells, read, reasons, section};
use crate::support::binary::BINARY;

const PAGE: &str = "docs/troubleshooting.md";

/// What stands in backticks in the first column of a part of the page.
fn entries(heading: &str) -> BTreeSet<String> {
    let page = read(PAGE);
    let part = section(&page, heading);
    let names = first_cells(part).into_iter();
    names.map(str::to_owned).collect()
}

fn same<'a>(what: &str, heading: &str, program: impl IntoIterator<Item = &'a str>) {
    let page = entries(heading);
    let mut page: BTreeSet<&str> = page.iter().map(String::as_str).collect();
    // The head of the table of answers.
    page.remove("x-ebbtide-reason");
    assert_same(PAGE, what, &page, &program.into_iter().collect());
}

#[test]
fn each_reason_of_an_answer_has_its_entry() {
    let reasons = reasons();
    same("answers", "## Answers", reasons.iter().map(String::as_str));
}

#[test]
fn each_close_reason_has_its_entry() {
    let reasons = CloseReason::ALL.map(CloseReason::as_str);
    same("close reasons", "## Closed connections", reasons);
}

#[test]
fn each_event_has_its_entry() {
    same("Events", "## Events", Reason::ALL.map(Reason::as_str));
}

/// The argument list of a macro's call, from behind its parenthesis.
fn arguments(code: &str) -> &str {
    let (mut depth, mut in_text, mut is_escaped) = (1, false, false);
    for (at, c) in code.char_indices() {
        match c {
            _ if is_escaped => is_escaped = false,
            '\\' if in_text => is_escaped = true,
            '"' => in_text = !in_text,
            '(' if !in_text => depth += 1,
            ')' if !in_text => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return &code[..at];
        }
    }
    panic!("a call without an end: {code:.80}");
}

/// A message as the page has it: `…` for what is put in, and no backtick, which would end the entry.
fn plain(message: &str) -> String {
    let mut text = String::new();
    for (n, part) in message.split('{').enumerate() {
        text.push_str(match n {
            0 => part,
            _ => part.split_once('}').expect(message).1,
        });
        if n + 1 < message.split('{').count() {
            text.push('…');
        }
    }
    text.replace(['`', '‘', '’'], "")
}

/// The messages of all warnings and errors of a source file, its tests left out.
fn messages(source: &str) -> BTreeSet<String> {
    let code = source.split("#[cfg(test)]").next().unwrap();
    let lines = code.lines().filter(|line| !line.trim().starts_with("//"));
    let code = lines.collect::<Vec<_>>().join("\n").replace("\\\n", " ");
    let calls = ["warn!(", "error!("].map(|call| code.split(call).skip(1));
    let found = calls.into_iter().flatten().map(|call| {
        let arguments = arguments(call);
        let text = arguments.split('"').nth(1).expect(arguments);
        plain(&text.split_whitespace().collect::<Vec<_>>().join(" "))
    });
    found.collect()
}

#[test]
fn a_message_is_found_however_it_is_written() {
    let source = "warn!(%error, \"short\");\n tracing::error!(\n a = f(1), // no\n \"long \\\n  (one) of \
                  {name}\"\n);\n // warn!(\"not this\")\n#[cfg(test)] warn!(\"nor this\")";
    let found = messages(source);
    assert_eq!(found, ["short".into(), "long (one) of …".into()].into());
}

#[test]
fn each_warning_and_error_of_the_log_has_its_entry() {
    let mut found = BTreeSet::new();
    for file in files() {
        let name = file.strip_prefix(ROOT).unwrap();
        let is_test = name.ends_with("tests.rs");
        if name.starts_with("src") && !is_test && name.extension().is_some_and(|it| it == "rs") {
            found.extend(messages(&read(&file)));
        }
    }
    assert!(found.len() > 60, "{}", found.len());
    let page: BTreeSet<String> = entries("## Log").iter().map(|it| plain(it)).collect();
    assert_same(
        PAGE,
        "warnings and errors",
        &page.iter().map(String::as_str).collect(),
        &found.iter().map(String::as_str).collect(),
    );
}

/// The targets of all relative links of a page, without their headings.
fn links(text: &str) -> impl Iterator<Item = &str> {
    let links = text.split("](").skip(1);
    let links = links.filter_map(|link| link.split([')', '#']).next());
    links.filter(|link| !link.is_empty() && !link.contains("://"))
}

#[test]
fn the_table_of_contents_has_each_page_once() {
    let contents = read("docs/SUMMARY.md");
    let mut named = BTreeSet::new();
    for link in links(&contents) {
        assert!(named.insert(link), "twice: {link}");
    }
    assert!(named.len() > 10, "{named:?}");
    for entry in std::fs::read_dir(Path::new(ROOT).join("docs")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let is_page = name.ends_with(".md") && name != "SUMMARY.md";
        assert!(
            !is_page || named.contains(&*name),
            "docs/SUMMARY.md lacks {name}"
        );
    }
}

/// A page that is not in the table of contents is no page of the site: a link there would lead to text that
/// nobody has made a page of.
#[test]
fn pages_of_the_site_link_to_pages_of_the_site() {
    let contents = read("docs/SUMMARY.md");
    let docs = Path::new(ROOT).join("docs");
    let pages: BTreeSet<_> = links(&contents)
        .map(|link| docs.join(link).canonicalize().unwrap())
        .collect();
    let mut wrong = Vec::new();
    for page in &pages {
        let folder = page.parent().unwrap();
        for link in links(&read(page)).filter(|link| link.ends_with(".md")) {
            let target = folder.join(link).canonicalize().unwrap();
            if !pages.contains(&target) {
                wrong.push(format!("{}: {link}", page.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "not in docs/SUMMARY.md: {wrong:#?}");
}

/// The first block is the configuration, the second one a manifest.
#[test]
fn the_example_of_the_page_about_standalone_is_served() {
    let page = read("docs/standalone.md");
    let blocks = page.split("```yaml\n").skip(1);
    let blocks: Vec<&str> = blocks.map(|it| it.split("```").next().unwrap()).collect();
    let folder = tempfile::tempdir().unwrap();
    let (config, manifests) = (
        folder.path().join("it.yaml"),
        folder.path().join("manifests"),
    );
    std::fs::create_dir(&manifests).unwrap();
    std::fs::write(&config, blocks[0]).unwrap();
    std::fs::write(manifests.join("shop.yaml"), blocks[1]).unwrap();
    let mut check = Command::new(BINARY);
    let output = check
        .arg("check")
        .arg("--config")
        .arg(&config)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{output:?}");
    assert!(text.contains("2 of 2 ready"), "{text}");
}
