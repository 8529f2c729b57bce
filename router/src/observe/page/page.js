// The page: keeps the rows that /live tells of, and has the graph and the tables show them. It only reads.
//
// Rows come by key: host/ID, link/ID/ID, endpoint/ID/ENDPOINT, fact/NAME. What others wrote is shown as text, never as markup.

import { Graph } from "./graph.js";
import * as lists from "./lists.js";

const MAX_EVENTS = 500;
// Milliseconds after which a router that says nothing is taken for lost.
const SILENCE = 30_000;

const byId = (id) => document.getElementById(id);
const rows = { host: new Map(), link: new Map(), endpoint: new Map(), fact: new Map() };
const view = { chosen: null, way: [], search: "" };
const events = [];
const graph = new Graph(byId("graph"), choose);
// What is to be shown anew.
const stale = new Set();
let asking = new AbortController();

function show(...parts) {
  if (stale.size === 0) setTimeout(render, 0);
  parts.forEach((part) => stale.add(part));
}

function render() {
  const parts = new Set(stale);
  stale.clear();
  if (rows.host.size > 0 && !rows.host.has(view.chosen)) view.chosen = null;
  const own = rows.fact.get("own");
  const context = { ...view, rows, own };
  if (parts.has("fact")) {
    byId("self").textContent = `on ${rows.fact.get("name") ?? "?"}, version ${rows.fact.get("version") ?? "?"}`;
    document.title = `weft on ${rows.fact.get("name") ?? "?"}`;
    lists.drops(byId("drops"), rows.fact.get("drops"));
  }
  if (parts.has("fact") || parts.has("host")) lists.problems(byId("problems"), context);
  if (["host", "link", "endpoint", "view"].some((part) => parts.has(part))) {
    graph.show(context);
    lists.peers(byId("peers"), byId("peers-count"), context);
    lists.endpoints(byId("endpoints"), byId("endpoints-count"), context);
    lists.chosen(byId("chosen"), context);
  }
  if (parts.has("events")) lists.events(byId("events"), events);
}

function choose(id) {
  view.chosen = view.chosen === id ? null : id;
  show("view");
}

// Asks why the path between two places is as it is. A later question ends an earlier one.
async function ask(from, to) {
  asking.abort();
  asking = new AbortController();
  const { signal } = asking;
  [byId("from").value, byId("to").value] = [from, to];
  byId("answer").hidden = false;
  byId("answer").textContent = "asking";
  const [text, way] = await answer(from, to, signal);
  if (signal.aborted) return;
  byId("answer").textContent = text;
  view.way = way;
  show("view");
}

// The answer in words, and the hosts that the path leads over.
async function answer(from, to, signal) {
  try {
    const response = await fetch(`why?${new URLSearchParams({ from, to })}`, { signal: AbortSignal.any([signal, AbortSignal.timeout(10_000)]) });
    const report = await response.json();
    return response.ok ? [report.text, [report.from_id, ...report.hops.map((hop) => hop.peer_id)]] : [report.error, []];
  } catch {
    return ["this host's router does not answer", []];
  }
}

// The next place that is chosen for a path: the first one becomes its beginning.
function place(name) {
  const [from, to] = [byId("from"), byId("to")];
  if (from.value === "" || to.value !== "") {
    [from.value, to.value] = [name, ""];
    to.focus();
  } else {
    ask(from.value, name);
  }
}

// Listens to the router for as long as the page is in sight: a browser has few connections to a host for all of its pages.
function listen() {
  const source = new EventSource("live");
  const old = new Set();
  let heard = Date.now();
  const say = (className, text) => {
    byId("state").className = className;
    byId("state").textContent = text;
  };
  const lose = () => say("lost", "the router does not answer; what is shown is old");
  const close = () => {
    source.close();
    clearInterval(watch);
    document.removeEventListener("visibilitychange", hide);
  };
  const hide = () => {
    if (document.hidden) close();
  };
  document.addEventListener("visibilitychange", hide);
  // The router speaks at least each few seconds; a connection that is dead says nothing.
  const watch = setInterval(() => {
    if (Date.now() - heard > SILENCE) lose();
    // After some errors a browser does not try again by itself.
    if (source.readyState !== EventSource.CLOSED && Date.now() - heard <= 2 * SILENCE) return;
    close();
    listen();
  }, 3000);
  source.onopen = () => {
    // The router tells everything anew.
    old.add("changed").add("happened");
    heard = Date.now();
  };
  source.onerror = lose;
  const on = (kind, act) => source.addEventListener(kind, (message) => {
    heard = Date.now();
    say("live", "live");
    act(JSON.parse(message.data), old.delete(kind));
  });
  on("alive", () => {});
  on("changed", ({ rows: changed, gone }, isFirst) => {
    if (isFirst) Object.values(rows).forEach((table) => table.clear());
    if (isFirst) show(...Object.keys(rows));
    const keys = [...Object.entries(changed), ...gone.map((key) => [key, undefined])];
    for (const [key, row] of keys) {
      const slash = key.indexOf("/");
      const [kind, id] = [key.slice(0, slash), key.slice(slash + 1)];
      if (row === undefined) rows[kind]?.delete(id);
      else rows[kind]?.set(id, row);
      show(kind);
    }
  });
  on("happened", (entries, isFirst) => {
    if (isFirst) events.length = 0;
    events.push(...entries);
    events.splice(0, events.length - MAX_EVENTS);
    show("events");
  });
}

document.addEventListener("click", ({ target }) => {
  const { dataset } = target.closest("[data-choose], [data-place]") ?? {};
  if (dataset?.choose !== undefined) choose(dataset.choose);
  if (dataset?.place !== undefined) place(dataset.place);
});
byId("search").addEventListener("input", ({ target }) => {
  view.search = target.value.trim().toLowerCase();
  show("view");
});
byId("why").addEventListener("submit", (event) => {
  event.preventDefault();
  ask(byId("from").value.trim(), byId("to").value.trim());
});
byId("why").addEventListener("reset", () => {
  asking.abort();
  byId("answer").hidden = true;
  view.way = [];
  show("view");
});
document.addEventListener("keydown", (event) => {
  const isTyping = event.target instanceof HTMLInputElement;
  if (event.key === "/" && !isTyping) {
    event.preventDefault();
    byId("search").focus();
  } else if (event.key === "Escape" && event.target === byId("search")) {
    event.target.value = "";
    event.target.dispatchEvent(new Event("input"));
  }
});
document.addEventListener("visibilitychange", () => {
  if (!document.hidden) listen();
});
if (!document.hidden) listen();
