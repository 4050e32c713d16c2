//! The report of the demo or the drill as one page: the timelines of all phases one above the other,
//! the table, the versions and the machine. It needs no script and no other resource.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use jiff::Timestamp;
use tempfile::NamedTempFile;

use crate::command::demo::comparison::{Row, table};
use crate::command::demo::timeline::Timeline;
use crate::config::fault::Refused;
use crate::text::grouped;

/// A report that is to be written. The file appears when it is whole.
pub(crate) struct Page {
    path: PathBuf,
    file: NamedTempFile,
}

impl Page {
    /// Makes sure that the file can be written, before the load begins.
    ///
    /// # Errors
    /// The folder does not exist or cannot be written to, or the path is a folder.
    pub(crate) fn at(path: &Path) -> Result<Self, Refused> {
        let refused = |what: String| Refused::new("--report", what);
        if path.is_dir() {
            let what = format!("{} is a folder, expected a file", path.display());
            return Err(refused(what));
        }
        let folder = path.parent().filter(|it| !it.as_os_str().is_empty());
        let file = NamedTempFile::new_in(folder.unwrap_or(Path::new(".")));
        let file = file.map_err(|error| {
            refused(format!(
                "cannot write {} ({error}), expected a file in a folder that exists",
                path.display()
            ))
        })?;
        let path = path.to_owned();
        Ok(Self { path, file })
    }

    /// Writes the page. `what` says what was done, `verdict` how it ended.
    ///
    /// # Errors
    /// The file cannot be written.
    pub(crate) fn write(mut self, what: &str, rows: &[&Row], verdict: &str) -> anyhow::Result<()> {
        let told = || format!("--report: cannot write {}", self.path.display());
        let html = render(what, rows, verdict, &machine(), Timestamp::now());
        let file = self.file.as_file_mut();
        file.write_all(html.as_bytes()).with_context(told)?;
        // A temporary file is its owner's alone. A report is to be sent.
        let readable = std::os::unix::fs::PermissionsExt::from_mode(0o644);
        file.set_permissions(readable).with_context(told)?;
        self.file.persist(&self.path).with_context(told)?;
        // A drill must remove its objects, also if nobody reads what it says.
        let _ = writeln!(std::io::stdout(), "\nreport: {}", self.path.display());
        Ok(())
    }
}

/// The processor, the number of cores that this process may use, and the kernel.
fn machine() -> String {
    let read = |path| std::fs::read_to_string(path).unwrap_or_default();
    let cpus = read("/proc/cpuinfo");
    let model = cpus.lines().find_map(|line| {
        let (name, model) = line.split_once(':')?;
        (name.trim() == "model name").then(|| model.trim().to_owned())
    });
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    format!(
        "{cores} cores of {}, Linux {}",
        model.unwrap_or_else(|| std::env::consts::ARCH.to_owned()),
        read("/proc/sys/kernel/osrelease").trim()
    )
}

fn render(what: &str, rows: &[&Row], verdict: &str, machine: &str, at: Timestamp) -> String {
    let mut body = String::new();
    let length = rows.iter().map(|it| it.report.timeline.seconds.len()).max();
    let length = length.unwrap_or_default().max(1);
    for row in rows {
        body += &section(row, length);
    }
    let table = table(rows);
    let table: Vec<&str> = table.lines().map(|it| it.get(5..).unwrap_or(it)).collect();
    format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n<title>Ebbtide: {title}</title>\n\
         <style>\n{STYLE}</style></head>\n<body><main>\n<h1>{title}</h1>\n<p class=\"verdict\">{verdict}</p>\n\
         {body}<h2>In numbers</h2>\n<pre tabindex=\"0\">{table}</pre>\n\
         <p class=\"soft\">Requests each second by the version that answered; requests that failed are red, at the bottom. The line is the p99 of each second. \
         Latency counts from when a request was due. {at:.0}; ebbtide {version}; load and clients on {machine}.</p>\n\
         </main></body></html>\n",
        title = text(what),
        verdict = text(verdict),
        table = text(&table.join("\n")),
        version = text(crate::VERSION),
        machine = text(machine),
    )
}

/// The timeline of one phase.
fn section(row: &Row, length: usize) -> String {
    let Timeline {
        versions, seconds, ..
    } = &row.report.timeline;
    let sums = seconds.iter().map(|it| it.sum() + it.failed);
    let top = sums.max().unwrap_or_default().max(1);
    let y = |count: u32| 100.0 - 100.0 * f64::from(count) / f64::from(top);
    let mut shapes = String::new();
    for (x, second) in seconds.iter().enumerate() {
        let mut below = 0;
        let mut bar = |class: &str, count: u32| {
            let height = 100.0 * f64::from(count) / f64::from(top);
            below += count;
            let y = y(below);
            let _ = write!(
                shapes,
                "<rect class=\"{class}\" x=\"{x}\" y=\"{y:.2}\" width=\"1\" height=\"{height:.2}\"/>"
            );
        };
        for (version, count) in &second.answered {
            bar(&format!("v{}", version % COLOURS), *count);
        }
        if second.failed > 0 {
            // At the bottom, and high enough to be seen among hundreds of answers.
            let height = (100.0 - y(second.failed)).max(8.0);
            let y = 100.0 - height;
            let _ = write!(
                shapes,
                "<rect class=\"failed\" x=\"{x}\" y=\"{y:.2}\" width=\"1\" height=\"{height:.2}\"/>"
            );
        }
    }
    let slowest = seconds.iter().map(|it| it.p99).max().unwrap_or_default();
    let scale = slowest.as_secs_f64().max(0.001);
    let points = seconds.iter().enumerate().map(|(x, second)| {
        let y = 28.0 - 26.0 * second.p99.as_secs_f64() / scale;
        format!("{}.5 {y:.2}", x)
    });
    let points: Vec<String> = points.collect();
    let mut legend = String::new();
    for (index, version) in versions.iter().enumerate().take(LEGEND) {
        let class = index % COLOURS;
        let _ = write!(
            legend,
            "<li class=\"v{class}\"><span>{}</span></li>",
            text(version)
        );
    }
    if versions.len() > LEGEND {
        let _ = write!(
            legend,
            "<li><span>and {} more</span></li>",
            versions.len() - LEGEND
        );
    }
    let failed = grouped(row.report.failed);
    let name = text(row.name);
    let said = format!(
        "{name}: {} requests, {failed} failed, {} client sockets, longest stall {} ms, highest p99 of a second {} ms",
        grouped(row.report.sent),
        grouped(row.report.sockets),
        millis(row.report.longest_stall),
        millis(slowest),
    );
    format!(
        "<section><h2>{name}</h2>\n<ul>{legend}</ul>\n<figure><svg class=\"tall\" viewBox=\"0 0 {length} 100\" \
         preserveAspectRatio=\"none\" role=\"img\" aria-label=\"{said}\">{shapes}</svg>\n\
         <svg viewBox=\"0 0 {length} 28\" preserveAspectRatio=\"none\" aria-hidden=\"true\"><polyline points=\"{}\"/></svg>\n\
         <figcaption>{said}</figcaption></figure></section>\n",
        points.join(" ")
    )
}

fn millis(time: Duration) -> String {
    grouped(u64::try_from(time.as_millis()).unwrap_or(u64::MAX))
}

/// Text that is safe between tags and in attributes.
fn text(text: &str) -> String {
    let text = text.replace('&', "&amp;").replace('<', "&lt;");
    text.replace('>', "&gt;").replace('"', "&quot;")
}

const COLOURS: usize = 5;
/// Versions that the legend names.
const LEGEND: usize = 12;
const STYLE: &str = "\
:root { color-scheme: light dark; --soft: light-dark(#53636d, #9badb7); --card: light-dark(#fff, #192127);
  font: 16px/1.45 system-ui, \"Segoe UI\", \"Liberation Sans\", sans-serif; }
body { margin: 0; background: light-dark(#f5f7f8, #11171b); color: light-dark(#18242b, #e3eaee); }
main { max-width: 60rem; margin: 0 auto; padding: 1.5rem 1rem; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.05rem; margin: 1.4rem 0 .3rem; }
.soft, figcaption { color: var(--soft); font-size: .9rem; }
figure { margin: 0; } svg { display: block; width: 100%; height: 3.5rem; background: var(--card); margin-bottom: 3px; }
svg.tall { height: 9rem; }
ul { display: flex; flex-wrap: wrap; gap: .1rem 1rem; list-style: none; margin: 0 0 .3rem; padding: 0; font-size: .9rem; }
li::before { content: \"\"; display: inline-block; width: .7rem; height: .7rem; margin-right: .35rem; background: currentColor; }
li span { color: light-dark(#18242b, #e3eaee); } rect { fill: currentColor; shape-rendering: crispEdges; }
.v0 { color: light-dark(#7d97a5, #6d8898); } .v1 { color: light-dark(#0b7f9e, #3fb3d1); } .v2 { color: light-dark(#8f6fc0, #b094de); }
.v3 { color: light-dark(#b07a1c, #dca850); } .v4 { color: light-dark(#3f8a5c, #63bd88); } .failed { color: light-dark(#c62828, #ff6b5e); }
polyline { fill: none; stroke: light-dark(#8a5a00, #e8b75a); stroke-width: 1.5; vector-effect: non-scaling-stroke; }
pre { overflow-x: auto; background: var(--card); padding: .8rem; }
";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::demo::load::Report;

    fn row() -> Row {
        let mut timeline = Timeline::default();
        for n in 0..5 {
            let at = Duration::from_millis(n * 400);
            timeline.answered(at, Duration::from_millis(7), b"v1\n");
            timeline.answered(at, Duration::from_millis(7), b"<script>");
        }
        timeline.failed(Duration::from_millis(1_900));
        timeline.close();
        let report = Report {
            sent: 11,
            ok: 10,
            failed: 1,
            timeline,
            ..Report::default()
        };
        Row {
            name: "late balancer",
            report,
            replayed: None,
            replaced: 3,
        }
    }

    #[test]
    fn a_page_is_whole_by_itself_and_takes_names_for_text() {
        let row = row();
        let at = "2026-01-01T00:00:00Z".parse().unwrap();
        let html = render("a \"test\"", &[&row, &row], "1 < 2", "2 cores", at);
        assert_eq!(html.matches("<section>").count(), 2, "one timeline a phase");
        assert!(
            html.contains("1 &lt; 2") && html.contains("&lt;script&gt;"),
            "{html}"
        );
        for outside in ["<script", "http", "src=", "url(", "@import"] {
            assert!(!html.contains(outside), "{outside}");
        }
        assert_eq!(html.matches("class=\"failed\"").count(), 2);
        assert!(html.contains("11 requests, 1 failed"), "{html}");
        assert!(html.contains("2 cores") && html.contains(crate::VERSION));
    }

    #[test]
    fn a_report_that_cannot_be_written_is_refused_before_the_load() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| Page::at(&folder.path().join(name)).map(drop);
        assert!(
            at("none/report.html")
                .unwrap_err()
                .to_string()
                .contains("--report")
        );
        assert!(at("").unwrap_err().to_string().contains("is a folder"));
        let path = folder.path().join("report.html");
        Page::at(&path)
            .unwrap()
            .write("a test", &[&row()], "good")
            .unwrap();
        assert!(
            std::fs::read_to_string(&path)
                .unwrap()
                .ends_with("</html>\n")
        );
        drop(Page::at(&folder.path().join("dropped.html")).unwrap());
        let left = std::fs::read_dir(folder.path()).unwrap().count();
        assert_eq!(left, 1, "a report that was not written leaves no file");
    }
}
