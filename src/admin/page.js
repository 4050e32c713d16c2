// Fills the status page, once a second. Names come from the cluster, so all text is inserted by textContent, and none is
// parsed as HTML.
const EVERY_MS = 1000, PATIENCE_MS = 4000, FEW_ENDPOINTS = 12, FEW_DRAINS = 8;
const STATES = { // in the order of display: the states that need attention come first
  draining: "draining", serving: "last resort", notAnswering: "not answering", joining: "joining",
  notReady: "not ready", out: "out of rotation", ready: "ready",
};
const WHY = { podDeleted: "pod deleted", sliceTerminating: "terminating in its slice", removed: "removed" };
const expanded = new Set(); // keys of the lists that are shown whole
const SERVICES_AT_ONCE = 30;
let servicesShown = SERVICES_AT_ONCE;
const by = id => document.getElementById(id);

function element(tag, className, ...children) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  made.append(...children);
  return made;
}

// Both write only what has changed, so an update keeps the selection, the focus and a screen reader's position.
function say(node, text) { if (node.textContent !== text) node.textContent = text; }
function mark(node, className) { if (node.className !== className) node.className = className; }

// Makes the parent's children match the items: one element for each key. Elements are made, updated, moved and removed.
function list(parent, items, keyOf, make, update) {
  const old = parent.kept ?? new Map(), kept = new Map();
  let place = parent.firstChild;
  for (const item of items) {
    let key = keyOf(item);
    while (kept.has(key)) key += "'";
    const node = old.get(key) ?? make(item);
    old.delete(key);
    kept.set(key, node);
    update(node, item);
    if (node === place) place = place.nextSibling;
    else parent.insertBefore(node, place);
  }
  for (const node of old.values()) node.remove();
  parent.kept = kept;
}

// On a narrow screen rows are laid out as cards. The explicit roles keep it a table for a screen reader.
const ROLES = { TABLE: "table", THEAD: "rowgroup", TBODY: "rowgroup", TR: "row", TH: "columnheader", TD: "cell" };
function withRole(node) { node.setAttribute("role", ROLES[node.tagName]); return node; }
function withRoles(table) { [table, ...table.querySelectorAll("thead, tbody, tr, th")].forEach(withRole); return table; }
document.querySelectorAll("table").forEach(withRoles);

// A table row. A cell with a name has a smaller line below it. The other cells are text, or numbers with a heading.
function row(...cells) {
  const made = withRole(element("tr", ""));
  made.cells_ = cells.map(cell => {
    const td = element("td", cell.className ?? (cell.label ? "num" : ""));
    if (cell.label) td.dataset.label = cell.label;
    made.append(withRole(td));
    if (!cell.name) return td;
    td.append(element("span", "name"), element("small", ""));
    return td;
  });
  return made;
}
function named(td, name, below) { say(td.firstChild, name); say(td.lastChild, below); td.lastChild.hidden = !below; }

function span(seconds) {
  const s = Math.max(0, Math.floor(seconds));
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min ${s % 60} s`;
  if (s < 86400) return `${Math.floor(s / 3600)} h ${Math.floor(s / 60) % 60} min`;
  return `${Math.floor(s / 86400)} d ${Math.floor(s / 3600) % 24} h`;
}
// Deadlines count by the proxy's clock. `skew` is the difference to the browser's clock, by the Date header.
let skew = 0;
const left = at => span((Date.parse(at) - Date.now() - skew) / 1000) + " left";
const took = (from, to) => { const s = (Date.parse(to) - Date.parse(from)) / 1000; return s < 10 ? `${s.toFixed(1)} s` : span(s); };
const clock = at => new Date(at).toLocaleTimeString();
const count = (n, one, many) => `${n.toLocaleString()} ${n === 1 ? one : many}`;
const doing = e => (STATES[e.state] ?? e.state) + (e.state === "draining" && e.drainDeadline ? ` · ${left(e.drainDeadline)}` : "");

function showState(node, state, text) { mark(node, `state ${state}`); say(node, text); }

function showService(card, service) {
  const tally = {};
  for (const e of service.endpoints) tally[e.state] = (tally[e.state] ?? 0) + 1;
  const states = Object.keys(STATES).filter(state => tally[state]);
  say(card.detail, [`port ${service.port}`, service.portName, service.protocol, service.nodePort && `node port ${service.nodePort}`].filter(Boolean).join(" · "));
  say(card.sum, states.length ? states.toReversed().map(state => `${tally[state].toLocaleString()} ${STATES[state]}`).join(" · ") : "no endpoints");
  list(card.bar, states.toReversed(), state => state, () => element("i", ""), (part, state) => { mark(part, state); part.style.flexGrow = tally[state]; });
  card.bar.hidden = card.table.hidden = !service.endpoints.length;

  const order = Object.keys(STATES);
  const sorted = service.endpoints.map((e, i) => [e, i]).sort(([a, i], [b, j]) => order.indexOf(a.state) - order.indexOf(b.state) || i - j).map(([e]) => e);
  const few = limit(card.more, card.key, sorted, FEW_ENDPOINTS, "endpoints");
  list(card.body, few, e => `${e.address} ${e.pod}`,
    () => row({ name: true }, {}, { label: "in flight" }, { label: "idle" }),
    (tr, e) => {
      const [name, state, inFlight, idle] = tr.cells_;
      named(name, e.pod ?? e.address, e.pod ? e.address : "");
      if (!state.firstChild) state.append(element("span", ""));
      showState(state.firstChild, e.state, doing(e));
      say(inFlight, e.inFlight.toLocaleString());
      say(idle, e.idle.toLocaleString());
    });
}

function makeService(service) {
  const card = element("article", "card");
  card.key = `${service.namespace}/${service.name}:${service.port}`;
  card.detail = element("span", "soft");
  card.sum = element("span", "soft meta push");
  card.bar = element("div", "bar");
  card.bar.setAttribute("aria-hidden", "true");
  card.body = element("tbody", "");
  const head = element("tr", "", element("th", "", "Endpoint"), element("th", "", "State"), element("th", "num", "In flight"), element("th", "num", "Idle"));
  card.table = withRoles(element("table", "fold", element("thead", "", head), card.body));
  card.more = element("button", "");
  card.more.type = "button";
  const name = `${service.namespace}/${service.name}`;
  const timeline = element("button", "", "timeline");
  timeline.type = "button";
  timeline.setAttribute("aria-label", `timeline of ${name}`);
  timeline.onclick = () => { location.hash = name; by("chart-section").scrollIntoView(); by("plot").focus({ preventScroll: true }); };
  card.append(element("div", "head", element("h3", "", name), card.detail, timeline, card.sum), card.bar, card.table, card.more);
  return card;
}

// The first items of a list, and a button that shows the others.
function limit(button, key, items, few, what) {
  const all = expanded.has(key);
  button.hidden = items.length <= few;
  button.setAttribute("aria-expanded", String(all));
  say(button, all ? `Show only ${few}` : `Show all ${items.length.toLocaleString()} ${what}`);
  button.onclick = () => { if (!expanded.delete(key)) expanded.add(key); show(); };
  return all ? items : items.slice(0, few);
}

function showTrouble(status) {
  const { discovery } = status;
  const problems = discovery.problems.map(p => `${p.subject}: ${p.error}`);
  const lines = status.obstacle ? [`Addresses of Services: ${status.obstacle}`, ...problems] : problems;
  let text = "";
  if (status.shuttingDown) text = "This proxy is shutting down.";
  else if (!discovery.synced) text = `Waiting for the first complete table from ${discovery.source}.`;
  else if (problems.length) text = "The source is not in order. The last good table stays in force.";
  const box = by("trouble");
  box.hidden = !text && !lines.length;
  if (!box.firstChild) box.append(element("p", ""), element("ul", ""));
  say(box.firstChild, text);
  const named = lines.slice(0, 5);
  if (lines.length > 5) named.push(`and ${lines.length - 5} more`);
  list(box.lastChild, named, line => line, () => element("li", ""), say);
  box.lastChild.hidden = !lines.length;

  if (status.shuttingDown) showState(by("source"), "serving", "shutting down");
  else if (!discovery.synced) showState(by("source"), "notReady", `${discovery.source}: no table yet`);
  else if (problems.length) showState(by("source"), "serving", `${discovery.source}: stale for ${span(discovery.ageSeconds)}`);
  else showState(by("source"), "ready", `${discovery.source}: in order`);
}

function showFigures(status, drains) {
  const endpoints = status.services.flatMap(s => s.endpoints);
  const in_ = (...states) => endpoints.filter(e => states.includes(e.state)).length;
  const sum = field => endpoints.reduce((total, e) => total + e[field], 0);
  const figures = [
    ["ready", in_("ready")], ["not in use", in_("joining", "notReady", "notAnswering", "out")],
    ["last resort", in_("serving")], ["draining", drains.running.length, drains.running.length ? "draining" : ""],
    ["in flight", sum("inFlight")], ["idle upstream", sum("idle")],
  ];
  list(by("figures"), figures, ([name]) => name,
    () => element("div", "", element("dt", ""), element("dd", "")),
    (node, [name, value, className = ""]) => { mark(node, className); say(node.firstChild, name); say(node.lastChild, value.toLocaleString()); });
}

function showListeners(listeners) {
  by("listeners-table").hidden = !listeners.length;
  by("no-listeners").hidden = listeners.length > 0;
  list(by("listeners"), listeners, l => l.name, () => row({ name: true }, {}, {}, { className: "soft" }),
    (tr, l) => {
      const [name, state, serves, protocol] = tr.cells_;
      named(name, l.name, l.address);
      say(serves, `${l.service}:${l.port}`);
      say(protocol, l.protocol);
      if (!state.firstChild) state.append(element("span", ""), element("small", ""));
      const why = l.error ?? (l.refuses ? "no endpoint" : "");
      const word = l.error ? "not bound" : l.refuses ? "refuses" : "bound";
      showState(state.firstChild, l.error ? "bad" : l.refuses ? "notReady" : "ready", word);
      say(state.lastChild, why);
      state.lastChild.hidden = !why;
    });
}

const drainKey = d => `${d.service} ${d.address} ${d.pod} ${d.startedAt}`;
const drainPlace = d => d.pod ? `${d.service} · ${d.address}` : d.service;

function showDrains(drains) {
  by("running-section").hidden = !drains.running.length;
  list(by("running"), limit(by("running-more"), "running", drains.running, FEW_DRAINS, "running drains"), drainKey,
    () => row({ name: true }, {}, { className: "soft" }, { label: "in flight" }, { label: "finished" }, { label: "replayed" }, { label: "forced" }),
    (tr, d) => {
      const [name, state, why, ...numbers] = tr.cells_;
      named(name, d.pod ?? d.address, drainPlace(d));
      if (!state.firstChild) state.append(element("span", ""));
      showState(state.firstChild, "draining", d.drainDeadline ? left(d.drainDeadline) : "no deadline");
      say(why, WHY[d.trigger] ?? d.trigger);
      [d.inFlight, d.finished, d.replayed, d.forced].forEach((n, i) => say(numbers[i], n.toLocaleString()));
    });

  by("finished-table").hidden = !drains.finished.length;
  by("no-finished").hidden = drains.finished.length > 0;
  list(by("finished"), limit(by("finished-more"), "finished", drains.finished, FEW_DRAINS, "drains"), drainKey,
    () => row({ name: true }, {}, { className: "soft" }, { label: "finished" }, { label: "replayed" }, { label: "forced" }, { label: "idle closed" }, { label: "at", className: "num at" }),
    (tr, d) => {
      const [name, outcome, why, ...numbers] = tr.cells_;
      named(name, d.pod ?? d.address, drainPlace(d));
      if (!outcome.firstChild) outcome.append(element("span", ""));
      showState(outcome.firstChild, d.outcome, `${d.outcome} in ${took(d.startedAt, d.endedAt)}`);
      say(why, WHY[d.trigger] ?? d.trigger);
      [d.finished, d.replayed, d.forced, d.idleClosed].forEach((n, i) => say(numbers[i], n.toLocaleString()));
      say(numbers[4], clock(d.endedAt));
      numbers[4].title = d.endedAt;
    });
}

function showRollouts(rollouts) {
  by("rollouts-section").hidden = !rollouts.length;
  list(by("rollouts"), limit(by("rollouts-more"), "rollouts", rollouts, FEW_DRAINS, "rollouts"), r => `${r.service} ${r.startedAt}`,
    () => row({ name: true }, {}, { className: "soft" }, { label: "requests" }, { label: "failed" }, { label: "replayed" }, { label: "held" }, { label: "connections kept" }, { label: "lost" }, { label: "at", className: "num at" }),
    (tr, r) => {
      const [name, outcome, pods, ...numbers] = tr.cells_;
      named(name, r.service, (r.routes ?? []).join(", "));
      if (!outcome.firstChild) outcome.append(element("span", ""));
      showState(outcome.firstChild, r.failures ? "bad" : "ready", `${r.failures ? "failures" : "clean"} in ${took(r.startedAt, r.endedAt)}`);
      say(pods, `${r.podsGone} gone, ${r.podsCome} come`);
      [r.requests, r.failures, r.replayed, r.held, r.connectionsKept, r.connectionsLost].forEach((n, i) => say(numbers[i], n.toLocaleString()));
      say(numbers[6], clock(r.endedAt));
      numbers[6].title = r.endedAt;
    });
}

const LET_GO = { clear: "ready", grace: "bad" };

function showGate(held) {
  by("gate-section").hidden = !held.length;
  list(by("gate"), limit(by("gate-more"), "gate", held, FEW_DRAINS, "pods"), h => `${h.pod} ${h.startedAt}`,
    () => row({ name: true }, {}, { className: "soft" }, { label: "at", className: "num at" }),
    (tr, h) => {
      const [name, state, whom, at] = tr.cells_;
      named(name, h.pod, "");
      if (!state.firstChild) state.append(element("span", ""));
      const time = `${h.heldSeconds.toFixed(1)} s`;
      showState(state.firstChild, h.outcome ? LET_GO[h.outcome] ?? "" : "draining", h.outcome ? `held ${time} (${h.outcome})` : `held since ${time}`);
      say(whom, h.by.join(", ") || "nobody");
      say(at, clock(h.startedAt));
      at.title = h.startedAt;
    });
}

// The Services that the search finds, in the chosen order, and of these the first ones: a page of 5,000 cards would be slow.
function showServices(services, traffic) {
  const latest = new Map(traffic.services.map(t => [t.service, t])), name = s => `${s.namespace}/${s.name}`;
  const words = by("search").value.toLowerCase().split(/\s+/).filter(Boolean);
  const found = services.filter(s => words.every(word => `${name(s)}:${s.port} ${s.protocol}`.toLowerCase().includes(word)));
  const weight = {
    requests: s => latest.get(name(s))?.requests ?? 0, failures: s => latest.get(name(s))?.failures ?? 0,
    p99: s => latest.get(name(s))?.p99Ms ?? 0, draining: s => s.endpoints.filter(e => e.state === "draining").length,
  }[by("sort").value];
  if (weight) found.sort((a, b) => weight(b) - weight(a)); // the sort is stable: equals stay in the order of their names
  by("tools").hidden = services.length < 2;
  by("no-services").hidden = services.length > 0;
  say(by("found"), words.length ? `${found.length.toLocaleString()} of ${count(services.length, "Service port", "Service ports")}` : count(services.length, "Service port", "Service ports"));
  const more = by("services-more");
  more.hidden = found.length <= servicesShown;
  say(more, `Show ${Math.min(SERVICES_AT_ONCE, found.length - servicesShown)} more of ${found.length.toLocaleString()}`);
  list(by("services"), found.slice(0, servicesShown), s => `${name(s)}:${s.port}`, makeService, (card, s) => {
    showService(card, s);
    const now = latest.get(name(s));
    if (now) say(card.sum, `${now.requests.toLocaleString()}/s · ${card.sum.textContent}`);
  });
}
by("services-more").onclick = () => { servicesShown += SERVICES_AT_ONCE; show(); };
by("search").oninput = by("sort").onchange = () => { servicesShown = SERVICES_AT_ONCE; show(); };

// The Service of the picture: the one in the address, else the one with the most requests when the page was opened.
let chosen = null;
function choose(traffic) {
  const wanted = decodeURIComponent(location.hash.slice(1));
  if (wanted) chosen = wanted;
  else chosen ??= traffic.services.reduce((a, b) => !a || b.requests > a.requests ? b : a, null)?.service ?? null;
  return chosen;
}
listenToPlot(by("plot"));
addEventListener("hashchange", () => update());

let last = null, awaySince = null;

function show() {
  if (!last) return;
  const [status, drains, traffic, history] = last;
  document.title = drains.running.length ? `Ebbtide (${drains.running.length} draining)` : "Ebbtide";
  say(by("version"), status.version);
  say(by("uptime"), `up ${span(status.uptimeSeconds)}`);
  showTrouble(status);
  showFigures(status, drains);
  showDrains(drains);
  showRollouts(drains.rollouts ?? []);
  showGate(drains.gate ?? []);
  showServices(status.services, traffic);
  showChart(chosen, history);
  showListeners(status.listeners);
}

function showAway(error) {
  by("away").hidden = !awaySince;
  mark(by("main"), awaySince ? "stale" : "");
  if (!awaySince) return;
  showState(by("source"), "bad", "not reachable");
  say(by("away"), `Not reachable since ${clock(awaySince)} (${error}). ${last ? "The page shows the last state." : ""} Trying again each second.`);
}

async function fetched(path) {
  const answer = await fetch(path, { cache: "no-store", signal: AbortSignal.timeout(PATIENCE_MS) });
  if (answer.status === 404 && path.includes("?")) return null; // the Service is gone
  if (!answer.ok) throw new Error(`${path} returned ${answer.status}`);
  const date = Date.parse(answer.headers.get("date"));
  // The header has whole seconds, so a difference below 2 s counts as none.
  if (date) skew = Math.abs(date - Date.now()) < 2000 ? 0 : date - Date.now();
  return answer.json();
}

let waiting = 0, turns = 0;

// At 5,000 Services an answer takes a while. The page asks for the next one only after three times as long.
async function update() {
  clearTimeout(waiting);
  const begun = Date.now(), turn = ++turns;
  try {
    const [status, drains, traffic] = await Promise.all(["status", "drains", "history"].map(page => fetched(`api/v1/${page}`)));
    const service = choose(traffic);
    const history = service && await fetched(`api/v1/history?service=${encodeURIComponent(service)}`);
    if (turn !== turns) return; // a later update has begun
    last = [status, drains, traffic, history];
    awaySince = null;
    showAway();
    show();
  } catch (error) {
    if (turn !== turns) return;
    awaySince ??= Date.now();
    showAway(error.name === "TimeoutError" ? "no response in time" : error.message);
  }
  waiting = setTimeout(update, Math.max(EVERY_MS, 3 * (Date.now() - begun)));
}
update();
