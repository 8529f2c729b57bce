// The tables and lists beside the graph. Buttons say in data-choose which host, in data-place which end of a path they stand for.

// A browser takes long for more; the search finds the others.
const MAX_ROWS = 200;

const inOrder = new Intl.Collator("en", { numeric: true });

export function problems(list, { rows }) {
  const told = [...(rows.fact.get("problems") ?? [])];
  const missing = [...rows.host.values()].filter(({ state }) => state !== "connected" && state !== "here");
  if (missing.length > 0) told.push(`Not reached: ${some(missing.map(({ name, state }) => `${name} (${state})`))}`);
  const losing = Object.entries(rows.fact.get("dropping") ?? {});
  if (losing.length > 0) told.push(`Lost lately: ${losing.map(([reason, count]) => `${count} ${reason}`).join(", ")}`);
  fill(list, told.map((line) => element("li", line)));
}

export function endpoints(table, count, { rows, search, chosen }) {
  const found = [];
  for (const [key, endpoint] of rows.endpoint) {
    const host = key.slice(0, key.indexOf("/"));
    if (isFound(endpoint, search) && (chosen === null || chosen === host)) found.push([host, endpoint]);
  }
  const place = rows.host.has(chosen) ? ` on ${rows.host.get(chosen).name}` : "";
  count.textContent = counted(found.length, rows.endpoint.size) + place;
  const name = ({ names, ips }) => names[0] ?? plain(ips[0] ?? "");
  found.sort(([, one], [, other]) => inOrder.compare(name(one), name(other)));
  const lines = found.slice(0, MAX_ROWS).map(([host, endpoint]) => {
    const health = element("td", endpoint.health);
    health.classList.toggle("bad", endpoint.health === "unhealthy");
    const address = plain(endpoint.ips[0] ?? "");
    const path = element("td");
    if (address !== "") path.append(button("path", `the path to or from ${name(endpoint)}`, "place", address));
    const first = element("td", endpoint.names.join(", ") || "(no name)");
    const ports = (endpoint.ports ?? []).map(String);
    if (ports.length > 0) first.append(element("div", `published: ${ports.join(", ")}`));
    return keyed(`${host}/${endpoint.id}`, first, element("td", endpoint.ips.map(plain).join(" ")), hostCell(host, rows), element("td", endpoint.segment), health, path);
  });
  fill(table.tBodies[0], lines.concat(rest(found.length, 6)));
}

export function peers(table, count, { rows, search }) {
  const found = [...rows.host].filter(([, host]) => isFound(host, search));
  count.textContent = counted(found.length, rows.host.size);
  // Those in trouble first, then by name.
  const trouble = ({ state }) => (state === "connected" || state === "here" ? 1 : 0);
  found.sort(([, one], [, other]) => trouble(one) - trouble(other) || inOrder.compare(one.name, other.name));
  const lines = found.slice(0, MAX_ROWS).map(([id, host]) => {
    const state = element("td", host.state);
    state.classList.toggle("bad", trouble(host) === 0);
    const loss = element("td", percent(host.loss), "number");
    loss.classList.toggle("bad", isLossy(host));
    const path = host.path === "relay" ? `by ${host.via}` : (host.path ?? "");
    return keyed(id, hostCell(id, rows), state, element("td", path), element("td", milliseconds(host.rtt_us), "number"), loss,
      element("td", host.mtu ?? "", "number"), element("td", host.tls ? "tcp in TLS" : (host.transport ?? "")));
  });
  fill(table.tBodies[0], lines.concat(rest(found.length, 7)));
}

export function chosen(section, { rows, chosen, own }) {
  const host = rows.host.get(chosen);
  section.hidden = host === undefined;
  if (host === undefined) return;
  const [title, facts] = [section.querySelector("h2"), section.querySelector("dl")];
  const way = button("path", `the path to or from ${host.name}`, "place", chosen);
  fill(title, [new Text(`${host.name} `), element("span", host.state), new Text(" "), way]);
  const links = [...rows.link.keys()].map((key) => key.split("/")).filter((ends) => ends.includes(chosen));
  const others = links.map(([one, other]) => rows.host.get(one === chosen ? other : one)?.name ?? "?").sort();
  const told = [
    ["key", host.peer_id ?? own],
    ["path", host.path === "relay" ? `relayed by ${host.via}` : host.path],
    ["address", host.remote ?? host.addresses?.join(" ")],
    ["by", host.tls ? "tcp in TLS" : host.transport],
    ["cipher", host.cipher],
    ["round trip", host.path === "direct" ? milliseconds(host.rtt_us) : undefined],
    ["loss", host.path === "direct" ? percent(host.loss) : undefined],
    ["MTU", host.mtu],
    ["received", bytes(host.rx_bytes)],
    ["sent", bytes(host.tx_bytes)],
    ["relays", host.relays === false ? "nothing between others" : undefined],
    ["metered", host.metered ? "paid for by the byte" : undefined],
    ["linked with", some(others)],
  ];
  const known = told.filter(([, value]) => value !== undefined && value !== null && value !== "");
  fill(facts, known.flatMap(([name, value]) => [element("dt", name), element("dd", value)]));
}

export function events(list, all) {
  const items = all.toReversed().map(({ at, words }) => {
    const when = new Date(at);
    const time = element("time", when.toLocaleString());
    time.dateTime = when.toISOString();
    const item = element("li");
    item.append(time, words);
    return item;
  });
  fill(list, items);
}

export function drops(table, counts) {
  const grown = Object.entries(counts ?? {}).filter(([, count]) => count > 0);
  const lines = grown.map(([reason, count]) => line(element("td", reason), element("td", count.toLocaleString(), "number")));
  fill(table.tBodies[0], lines.length > 0 ? lines : [line(element("td", "nothing"))]);
}

// Whether a row has what is searched for in one of its texts, or an id or key that begins like it.
export function isFound(row, search) {
  const texts = [row.name, row.host, row.segment, row.remote, row.state, row.health, ...(row.names ?? []), ...(row.ips ?? [])];
  const ids = [row.id, row.peer_id, row.mac].filter((id) => id?.startsWith(search));
  return search === "" || ids.length > 0 || texts.some((text) => text?.toLowerCase().includes(search));
}

export function isLossy({ loss }) {
  return (loss ?? 0) >= 0.01;
}

export function milliseconds(rtt) {
  if (rtt === undefined || rtt === null) return "";
  return rtt < 10_000 ? `${(rtt / 1000).toFixed(1)} ms` : `${Math.round(rtt / 1000)} ms`;
}

function percent(share) {
  return share === undefined || share === null ? "" : `${Math.round(share * 100)} %`;
}

function bytes(count) {
  if (count === undefined || count === null) return undefined;
  const units = ["B", "kB", "MB", "GB", "TB"];
  const power = count < 1 ? 0 : Math.min(Math.floor(Math.log10(count) / 3), units.length - 1);
  return `${(count / 1000 ** power).toPrecision(3).replace(/\.0+$/, "")} ${units[power]}`;
}

function plain(ip) {
  return ip.split("/")[0];
}

function some(words) {
  return words.length > 12 ? `${words.slice(0, 12).join(", ")} and ${words.length - 12} more` : words.join(", ");
}

function counted(found, all) {
  return found === all ? `${all}` : `${found} of ${all}`;
}

function rest(found, columns) {
  if (found <= MAX_ROWS) return [];
  const cell = element("td", `and ${found - MAX_ROWS} more: search, or choose a host`);
  cell.colSpan = columns;
  return [line(cell)];
}

function hostCell(id, rows) {
  const cell = element("td");
  const host = button(rows.host.get(id)?.name ?? id, "show only what is on this host, or everything again", "choose", id);
  host.className = "name";
  cell.append(host);
  return cell;
}

function button(text, title, kind, value) {
  const made = element("button", text);
  made.type = "button";
  made.title = title;
  made.setAttribute("aria-label", text === title ? text : `${text}: ${title}`);
  made.dataset[kind] = value;
  return made;
}

function line(...cells) {
  const made = document.createElement("tr");
  made.append(...cells);
  return made;
}

// A row that stays itself wherever it moves.
function keyed(key, ...cells) {
  const made = line(...cells);
  made.dataset.key = key;
  return made;
}

function element(kind, text, className) {
  const made = document.createElement(kind);
  if (text !== undefined) made.textContent = text;
  if (className !== undefined) made.className = className;
  return made;
}

// Has an element contain these nodes. What is there is changed rather than replaced, and rows are found by their keys: the keyboard's focus stays
// where it is.
function fill(parent, nodes) {
  const known = new Map([...parent.childNodes].map((node) => [node.dataset?.key, node]));
  const wanted = new Set(nodes.map((node) => node.dataset?.key));
  for (const [key, node] of known) if (key !== undefined && !wanted.has(key)) node.remove();
  nodes.forEach((node, at) => {
    const key = node.dataset?.key;
    const there = parent.childNodes[at];
    const same = key === undefined ? there : known.get(key);
    if (same === undefined) parent.insertBefore(node, there ?? null);
    else {
      if (same !== there) parent.insertBefore(same, there ?? null);
      become(same, node);
    }
  });
  while (parent.childNodes.length > nodes.length) parent.lastChild.remove();
}

function become(there, wanted) {
  if (there.isEqualNode(wanted)) return;
  if (there.nodeName !== wanted.nodeName || there.dataset?.key !== wanted.dataset?.key) there.replaceWith(wanted);
  else if (there.nodeType === Node.TEXT_NODE) there.data = wanted.data;
  else {
    for (const { name } of [...there.attributes]) if (!wanted.hasAttribute(name)) there.removeAttribute(name);
    for (const { name, value } of wanted.attributes) there.setAttribute(name, value);
    fill(there, [...wanted.childNodes]);
  }
}
