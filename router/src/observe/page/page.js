// The page: keeps the rows that /live tells of, and has the graph and the tables show them. It only reads.
//
// Rows come by key: host/ID, link/ID/ID, endpoint/ID/ENDPOINT, fact/NAME. What others wrote is shown as text, never as markup.

import { Graph } from "./graph.js";
import * as lists from "./lists.js";

const MAX_EVENTS = 500;

const byId = (id) => document.getElementById(id);
const rows = { host: new Map(), link: new Map(), endpoint: new Map(), fact: new Map() };
const view = { chosen: null, way: [], search: "" };
const events = [];
const graph = new Graph(byId("graph"), choose);
// What is to be shown anew.
const stale = new Set();

function show(...parts) {
  if (stale.size === 0) setTimeout(render, 0);
  parts.forEach((part) => stale.add(part));
}

function render() {
  const own = rows.fact.get("own");
  const context = { ...view, rows, own };
  if (stale.has("fact")) {
    byId("self").textContent = `on ${rows.fact.get("name") ?? "?"}, version ${rows.fact.get("version") ?? "?"}`;
    document.title = `weft on ${rows.fact.get("name") ?? "?"}`;
    lists.drops(byId("drops"), rows.fact.get("drops"));
  }
  if (stale.has("fact") || stale.has("host")) lists.problems(byId("problems"), context);
  if (stale.has("host") || stale.has("link") || stale.has("view")) {
    graph.show(context);
    lists.peers(byId("peers"), byId("peers-count"), context);
  }
  if (stale.has("endpoint") || stale.has("host") || stale.has("view")) {
    lists.endpoints(byId("endpoints"), byId("endpoints-count"), context);
    lists.chosen(byId("chosen"), context);
  }
  if (stale.has("events")) lists.events(byId("events"), events);
  stale.clear();
}

function choose(id) {
  view.chosen = view.chosen === id ? null : id;
  show("view");
}

// Asks why the path between two places is as it is.
async function ask(from, to) {
  byId("from").value = from;
  byId("to").value = to;
  const answer = byId("answer");
  answer.hidden = false;
  try {
    const response = await fetch(`why?${new URLSearchParams({ from, to })}`);
    const report = await response.json();
    answer.textContent = report.text ?? report.error;
    view.way = response.ok ? [report.from_id, ...report.hops.map((hop) => hop.peer_id)] : [];
  } catch {
    answer.textContent = "this host's router does not answer";
    view.way = [];
  }
  show("view");
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

function listen() {
  const source = new EventSource("live");
  const state = byId("state");
  let isNew = true;
  source.onopen = () => {
    // The router tells everything anew.
    isNew = true;
    state.textContent = "live";
    state.className = "live";
  };
  source.onerror = () => {
    state.textContent = "the router does not answer; what is shown is old";
    state.className = "lost";
    // After some errors a browser does not try again by itself.
    if (source.readyState === EventSource.CLOSED) setTimeout(listen, 3000);
  };
  const begin = () => {
    if (!isNew) return;
    isNew = false;
    Object.values(rows).forEach((table) => table.clear());
    events.length = 0;
    show("fact", "host", "link", "endpoint", "events");
  };
  source.addEventListener("changed", (message) => {
    begin();
    const { rows: changed, gone } = JSON.parse(message.data);
    const keys = [...Object.entries(changed), ...gone.map((key) => [key, undefined])];
    for (const [key, row] of keys) {
      const slash = key.indexOf("/");
      const [kind, id] = [key.slice(0, slash), key.slice(slash + 1)];
      if (row === undefined) rows[kind]?.delete(id);
      else rows[kind]?.set(id, row);
      show(kind);
    }
  });
  source.addEventListener("happened", (message) => {
    begin();
    events.push(...JSON.parse(message.data));
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
listen();
