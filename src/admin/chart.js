// Draws the last 15 minutes of one Service, as /api/v1/history tells them: one unit of width is one second. The same numbers
// stand in tables below the picture, for those who cannot see it.
"use strict";

const WIDTHS = [60, 120, 300, 600, 900], COLOURS = 6, SPANS = 14, SVG = "http:" + "//www.w3.org/2000/svg"; // the name of the format, not an address
const EVENTS = [["failed", "failures"], ["replayed", "replayed"], ["held", "held"]];
let chart = null, cursor = null; // what is drawn, and the second that is read, counted from the end
let wide = 900; // the seconds of the whole width: few while there is little to draw

function shape(tag, className, attributes) {
  const made = document.createElementNS(SVG, tag);
  made.setAttribute("class", className);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}

function draw(id, height, shapes) {
  const svg = document.getElementById(id);
  svg.setAttribute("viewBox", `0 0 ${wide} ${height}`);
  svg.setAttribute("preserveAspectRatio", "none");
  svg.replaceChildren(...shapes);
}

// The runs of seconds in which `has(i)`, as [first, end).
function runs(length, has) {
  const found = [];
  for (let i = 0; i < length; i++) {
    if (!has(i)) continue;
    const first = i;
    while (i < length && has(i)) i++;
    found.push([first, i]);
  }
  return found;
}

const number = n => n.toLocaleString(undefined, { maximumFractionDigits: 1 });
const ms = n => n == null ? "–" : n < 10 ? `${n.toFixed(1)} ms` : n < 1000 ? `${Math.round(n)} ms` : `${(n / 1000).toFixed(1)} s`;
const generationName = g => g.name || "pods";
const total = numbers => numbers.reduce((sum, n) => sum + n, 0);

// A round number that is at least `most`.
function roundUp(most) {
  const power = 10 ** Math.floor(Math.log10(Math.max(most, 1)));
  return [1, 2, 5, 10].map(n => n * power).find(n => n >= most);
}

function drawRequests(history, length, marks) {
  const below = new Array(length).fill(0), layers = [];
  const sums = below.map((_, i) => total(history.generations.map(g => g.requests[i])));
  const top = roundUp(Math.max(1, ...sums)), x0 = wide - length, y = n => (100 - 100 * n / top).toFixed(2);
  history.generations.forEach((g, index) => {
    const upper = below.map((n, i) => n + g.requests[i]);
    const path = runs(length, i => g.requests[i] > 0).map(([from, to]) => {
      let there = "", back = "";
      for (let i = from; i < to; i++) {
        there += `L${x0 + i} ${y(upper[i])}H${x0 + i + 1}`;
        back = `L${x0 + i + 1} ${y(below[i])}H${x0 + i}` + back;
      }
      return `M${x0 + from} ${y(below[from])}${there}${back}Z`;
    });
    layers.push(shape("path", `generation g${index % COLOURS}`, { d: path.join("") }));
    upper.forEach((n, i) => below[i] = n);
  });
  draw("requests", 100, [...layers, ...marks(100)]);
  say(by("top-requests"), `up to ${number(Math.max(0, ...sums))}`);
}

function drawEvents(history, length, marks) {
  const x0 = wide - length;
  const bars = EVENTS.flatMap(([name, field], lane) => runs(length, i => history[field][i] > 0)
    .map(([from, to]) => shape("rect", `event ${name}`, { x: x0 + from - wide / 900, width: to - from + wide / 450, y: lane * 10 + 1, height: 8 })));
  draw("events", 30, [...bars, ...marks(30)]);
}

function drawLatency(history, length, marks) {
  const top = roundUp(Math.max(1, ...history.p99Ms.filter(n => n != null))), x0 = wide - length;
  const lines = [["p99", history.p99Ms], ["p50", history.p50Ms]].map(([name, values]) => {
    const path = runs(length, i => values[i] != null).map(([from, to]) => {
      const points = values.slice(from, to).map((n, i) => `${x0 + from + i} ${(100 - 98 * n / top).toFixed(2)}`);
      return `M${points.join("L")}h1`;
    });
    return shape("path", `line ${name}`, { d: path.join("") });
  });
  draw("latency", 100, [...lines, ...marks(100)]);
  const now = history.p99Ms.findLast(n => n != null);
  say(by("top-latency"), now == null ? "" : `p99 now ${ms(now)}, full height ${ms(top)}`);
}

// The drains and holds as spans, newest first.
function spansOf(history) {
  const drains = history.drains.map(d => ({
    name: d.pod ?? d.address, from: d.startedAt, to: d.endedAt, kind: d.outcome ?? "draining", numbers: [d.finished, d.replayed, d.forced],
  }));
  const holds = history.gate.map(h => ({
    name: `${h.pod}, held by the gate`, from: h.startedAt, kind: "gate", numbers: null,
    to: h.outcome ? new Date(Date.parse(h.startedAt) + h.heldSeconds * 1000).toISOString() : null,
  }));
  return [...drains, ...holds].sort((a, b) => Date.parse(b.from) - Date.parse(a.from));
}

function drawSpans(spans, place, marks) {
  const shown = spans.slice(0, SPANS), height = Math.max(3, shown.length) * 10;
  const bars = shown.map((span, row) => {
    const from = Math.max(0, place(span.from)), to = span.to ? place(span.to) : wide;
    const bar = shape("rect", `span ${span.kind}`, { x: from.toFixed(2), y: row * 10 + 1.5, height: 7, width: Math.max(2, to - from).toFixed(2) });
    bar.append(shape("title", "", {}));
    bar.firstChild.textContent = span.name;
    return bar;
  });
  draw("spans", height, [...bars, ...marks(height)]);
  by("spans").style.height = `${Math.max(3, shown.length) * .7}rem`;
  say(by("spans-sum"), spans.length > SPANS ? `the last ${SPANS} of ${spans.length}` : String(spans.length));
}

function showTables(history, length, spans, minuteOf) {
  const minutes = new Map();
  for (let i = 0; i < length; i++) {
    const key = minuteOf(i), m = minutes.get(key) ?? { key, requests: new Map(), sums: [0, 0, 0], p99: null };
    minutes.set(key, m);
    for (const g of history.generations) if (g.requests[i]) m.requests.set(g, (m.requests.get(g) ?? 0) + g.requests[i]);
    EVENTS.forEach(([, field], n) => m.sums[n] += history[field][i]);
    if (history.p99Ms[i] != null) m.p99 = Math.max(m.p99 ?? 0, history.p99Ms[i]);
  }
  list(by("minutes"), [...minutes.values()].reverse(), m => m.key,
    () => row({}, { className: "soft" }, { label: "requests" }, { label: "failed" }, { label: "replayed" }, { label: "held" }, { label: "highest p99" }),
    (tr, m) => {
      const words = [...m.requests].map(([g, n]) => `${generationName(g)}: ${number(n)}`).join(", ");
      [m.key, words, number(total([...m.requests.values()])), ...m.sums.map(number), ms(m.p99)].forEach((text, i) => say(tr.cells_[i], text));
    });
  list(by("span-rows"), spans, s => `${s.name} ${s.from}`,
    () => row({}, {}, { className: "soft" }, { label: "finished" }, { label: "replayed" }, { label: "cut" }),
    (tr, s) => {
      const texts = [s.name, s.to ? `${s.kind === "gate" ? "held" : s.kind} in ${took(s.from, s.to)}` : "runs", clock(s.from)];
      [...texts, ...(s.numbers ?? ["", "", ""]).map(String)].forEach((text, i) => say(tr.cells_[i], text));
    });
}

function showChart(service, history) {
  by("chart-section").hidden = !history;
  chart = null;
  if (!history) return;
  const length = history.failures.length, end = Date.parse(history.end);
  wide = WIDTHS.find(n => n >= length) ?? 900;
  list(by("axis"), [1, 2 / 3, 1 / 3, 0], part => part, () => element("span", ""), (node, part) => say(node, part ? `${span(wide * part).replace(" min 0 s", " min")} ago` : "now"));
  const place = at => wide - (end - Date.parse(at)) / 1000;
  const lines = history.restarts.map(at => [place(at), "mark"]);
  chart = { history, length, end };
  if (cursor != null) lines.push([wide - cursor - .5, "cursor"]);
  const marks = height => lines.map(([x, name]) => shape("line", name, { x1: x, x2: x, y1: 0, y2: height }));
  say(by("chart-service"), service);
  const sums = EVENTS.map(([name, field]) => `${number(total(history[field]))} ${name}`);
  const restarts = history.restarts.map(at => `Ebbtide started ${clock(at)}`);
  say(by("chart-sum"), [`${number(total(history.generations.flatMap(g => g.requests)))} requests`, ...sums, ...restarts].join(" · "));
  list(by("legend"), history.generations, g => g.name, () => element("li", "", element("span", "")), (item, g) => {
    mark(item, `g${history.generations.indexOf(g) % COLOURS}`);
    say(item.firstChild, `${generationName(g)}: ${number(g.requests.at(-1) ?? 0)}/s`);
  });
  const spans = spansOf(history);
  drawRequests(history, length, marks);
  drawEvents(history, length, marks);
  drawLatency(history, length, marks);
  drawSpans(spans, place, marks);
  showTables(history, length, spans, i => new Date(end - (length - 1 - i) * 1000).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" }));
  showReadout();
}

// The second under the pointer, or under the cursor that the arrow keys move, in words.
function showReadout() {
  if (cursor == null || !chart) return;
  const { history, length, end } = chart, i = length - 1 - cursor;
  const at = new Date(end - cursor * 1000).toLocaleTimeString();
  if (i < 0) return say(by("readout"), `${at}: no record`);
  const sent = history.generations.filter(g => g.requests[i]).map(g => `${generationName(g)} ${number(g.requests[i])}`);
  const events = EVENTS.filter(([, field]) => history[field][i]).map(([name, field]) => `${number(history[field][i])} ${name}`);
  say(by("readout"), `${at}: ${[sent.join(", ") || "no request", ...events].join(" · ")} · p50 ${ms(history.p50Ms[i])} · p99 ${ms(history.p99Ms[i])}`);
}

function setCursor(to) {
  cursor = to == null ? null : Math.min(wide - 1, Math.max(0, to));
  if (chart) show();
}

function listenToPlot(plot) {
  plot.addEventListener("pointermove", event => {
    const { left, width } = plot.getBoundingClientRect();
    setCursor(wide - 1 - Math.floor((event.clientX - left) / width * wide));
  });
  plot.addEventListener("pointerleave", () => setCursor(null));
  plot.addEventListener("keydown", event => {
    const step = { ArrowLeft: 1, ArrowRight: -1, PageUp: 60, PageDown: -60 }[event.key];
    if (event.key === "Escape") setCursor(null);
    else if (event.key === "Home") setCursor(wide - 1);
    else if (event.key === "End") setCursor(0);
    else if (step) setCursor((cursor ?? 0) + step);
    else return;
    event.preventDefault();
  });
}
