// The mesh as a graph: hosts are circles, links lines. Positions come from repelling hosts and pulling links, after Fruchterman and Reingold,
// "Graph drawing by force-directed placement" (1991). Hosts that are drawn already begin where they are.

import { isFound, isLossy, milliseconds } from "./lists.js";

const SVG = "http://www.w3.org/2000/svg";
// With more hosts, only names of some are shown.
const MANY = 40;
// How far linked hosts are from each other, about, in the units of the drawing.
const APART = 200;
// Links cost 10 and, above two milliseconds, 10 for each millisecond of round-trip time.
const COST = { near: 40, middle: 290 };
const RTT = { near: 5_000, middle: 30_000 };
const ARROWS = { ArrowUp: [0, -1], ArrowDown: [0, 1], ArrowLeft: [-1, 0], ArrowRight: [1, 0] };

export class Graph {
  constructor(svg, choose) {
    this.svg = svg;
    this.choose = choose;
    this.places = new Map();
    this.circles = new Map();
    this.lines = new Map();
    this.layers = [make("g", svg), make("g", svg)];
    this.zoom = 1;
    this.middle = [0, 0];
    this.extent = APART;
    svg.addEventListener("keydown", (event) => this.onKey(event));
    svg.addEventListener("wheel", (event) => this.onWheel(event), { passive: false });
    svg.addEventListener("pointerdown", (event) => this.onDrag(event));
    svg.addEventListener("click", ({ target }) => this.chooseAt(target));
    new ResizeObserver(() => this.look()).observe(svg);
  }

  show({ rows, own, chosen, way, search }) {
    const hosts = [...rows.host.keys()].sort();
    const isNew = hosts.length !== this.places.size || hosts.some((id) => !this.places.has(id));
    if (isNew) this.settle(hosts, rows.link);
    const absent = [...rows.host].filter(([id, host]) => id !== own && host.state !== "connected");
    this.svg.classList.toggle("many", hosts.length > MANY);
    this.svg.classList.toggle("few-absent", absent.length <= MANY);
    this.showLinks(rows, own, way);
    this.showHosts(rows, own, chosen, search);
    if (isNew) this.look();
  }

  settle(hosts, links) {
    const before = this.places;
    const places = hosts.map((id, at) => before.get(id) ?? spiral(before.size + at));
    const index = new Map(hosts.map((id, at) => [id, at]));
    const ends = [...links.keys()].map((key) => key.split("/").map((id) => index.get(id)));
    place(places, ends.filter(([one, other]) => one !== undefined && other !== undefined));
    this.places = new Map(hosts.map((id, at) => [id, places[at]]));
    // A mesh of few is not drawn larger for it.
    this.extent = Math.max(1.5 * APART, ...places.map(([x, y]) => Math.max(Math.abs(x), Math.abs(y)) + 0.75 * APART));
  }

  showLinks(rows, own, way) {
    const wanted = new Map();
    for (const [key, { cost }] of rows.link) {
      const ends = key.split("/");
      const peer = ends.includes(own) ? rows.host.get(ends[0] === own ? ends[1] : ends[0]) : undefined;
      wanted.set(key, [ends, peer === undefined ? classOf(cost, COST) : `own ${isLossy(peer) ? "lossy" : classOf(peer.rtt_us ?? 0, RTT)}`]);
    }
    for (const [id, { path }] of rows.host) {
      if (path === "relay") wanted.set(`relayed/${id}`, [[own, id], "own relayed"]);
    }
    way.slice(1).forEach((id, at) => wanted.set(`way/${at}`, [[way[at], id], "way"]));
    for (const [key, line] of this.lines) {
      if (!wanted.has(key)) {
        line.remove();
        this.lines.delete(key);
      }
    }
    for (const [key, [ends, kind]] of wanted) {
      const [one, other] = ends.map((id) => this.places.get(id));
      if (one === undefined || other === undefined) continue;
      const line = this.lines.get(key) ?? make("path", this.layers[0]);
      this.lines.set(key, line);
      // What is relayed goes round the hosts between.
      const bend = kind.includes("relayed") ? 0.25 : 0;
      const [x, y] = [(one[0] + other[0]) / 2 + bend * (one[1] - other[1]), (one[1] + other[1]) / 2 + bend * (other[0] - one[0])];
      set(line, { d: `M${one.join()}Q${x},${y} ${other.join()}`, class: kind });
      line.dataset.link = ends.map((id) => rows.host.get(id)?.name ?? id).join(" ");
    }
  }

  showHosts(rows, own, chosen, search) {
    for (const [id, circle] of this.circles) {
      if (!rows.host.has(id)) {
        circle.remove();
        this.circles.delete(id);
      }
    }
    const counts = new Map();
    for (const [key, endpoint] of rows.endpoint) {
      const host = key.slice(0, key.indexOf("/"));
      const count = counts.get(host) ?? { all: 0, found: 0 };
      counts.set(host, { all: count.all + 1, found: count.found + (search !== "" && isFound(endpoint, search) ? 1 : 0) });
    }
    for (const [id, host] of rows.host) {
      const group = this.circles.get(id) ?? this.makeHost(id);
      const { all = 0, found = 0 } = counts.get(id) ?? {};
      const isMatched = search !== "" && (found > 0 || isFound(host, search));
      const state = id === own ? "here" : host.state !== "connected" ? "absent" : host.path === "relay" ? "relayed" : "direct";
      const classes = [state, id === chosen && "chosen", isMatched && "matched", search !== "" && !isMatched && "unmatched"];
      const [x, y] = this.places.get(id);
      const way = host.path === "relay" ? `relayed by ${host.via}` : `${host.state} ${milliseconds(host.rtt_us)}`.trim();
      const label = `${host.name}, ${id === own ? "this host" : way}, ${all} ${all === 1 ? "container" : "containers"}`;
      set(group, { class: classes.filter(Boolean).join(" "), transform: `translate(${x} ${y})`, "aria-label": label, "aria-pressed": id === chosen });
      if (group.dataset.label !== label) {
        group.dataset.label = label;
        group.querySelector("title").textContent = label;
        group.querySelector("text").textContent = host.name;
      }
    }
    // One of them is where the tabulator key goes.
    const groups = [...this.circles.values()];
    if (!groups.some((group) => group.getAttribute("tabindex") === "0")) {
      (this.circles.get(own) ?? groups[0])?.setAttribute("tabindex", "0");
    }
  }

  makeHost(id) {
    const group = make("g", this.layers[1]);
    set(group, { role: "button", tabindex: -1 });
    group.dataset.id = id;
    make("title", group);
    make("circle", group);
    make("text", group);
    this.circles.set(id, group);
    this.scale(group);
    return group;
  }

  // Shows the part of the plane that is looked at, with circles and names of one size on the screen.
  look() {
    const { width, height } = this.svg.getBoundingClientRect();
    if (width === 0 || height === 0) return;
    this.unit = (2 * this.extent) / Math.min(width, height) / this.zoom;
    const [x, y] = [this.middle[0] - (width * this.unit) / 2, this.middle[1] - (height * this.unit) / 2];
    set(this.svg, { viewBox: `${x} ${y} ${width * this.unit} ${height * this.unit}` });
    // Close enough for names not to hide each other.
    this.svg.classList.toggle("close", APART / this.unit > 70);
    this.circles.forEach((group) => this.scale(group));
  }

  scale(group) {
    const [unit, radius] = [this.unit ?? 1, Math.min(9 * (this.unit ?? 1), APART / 3)];
    set(group.querySelector("circle"), { r: radius });
    set(group.querySelector("text"), { y: radius + 14 * unit, "font-size": 12 * unit, "stroke-width": 3 * unit });
  }

  chooseAt(target) {
    const group = target.closest("[data-id]");
    if (group !== null && !this.wasDragged) this.choose(group.dataset.id);
    this.wasDragged = false;
  }

  onKey(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const group = event.target.closest("[data-id]");
    const towards = ARROWS[event.key];
    if (group !== null && towards !== undefined) this.step(group, towards);
    else if (group !== null && (event.key === "Enter" || event.key === " ")) this.choose(group.dataset.id);
    else if (event.key === "+" || event.key === "=") this.zoomBy(1.25);
    else if (event.key === "-") this.zoomBy(0.8);
    else if (event.key === "0") this.zoomTo(1, [0, 0]);
    else return;
    event.preventDefault();
  }

  // Goes to the nearest host in a direction.
  step(group, [dx, dy]) {
    const [x, y] = this.places.get(group.dataset.id);
    let best;
    for (const [id, [otherX, otherY]] of this.places) {
      const [along, across] = [(otherX - x) * dx + (otherY - y) * dy, Math.abs((otherX - x) * dy) + Math.abs((otherY - y) * dx)];
      const far = along + 2 * across;
      if (along > 1 && across <= 2 * along && (best === undefined || far < best.far)) best = { id, far };
    }
    if (best === undefined) return;
    const next = this.circles.get(best.id);
    group.setAttribute("tabindex", "-1");
    next.setAttribute("tabindex", "0");
    next.focus();
    const { width, height } = this.svg.getBoundingClientRect();
    const [aside, above] = [0, 1].map((axis) => Math.abs(this.places.get(best.id)[axis] - this.middle[axis]));
    if (aside > (width * this.unit) / 2 || above > (height * this.unit) / 2) this.zoomTo(this.zoom, this.places.get(best.id));
  }

  onWheel(event) {
    event.preventDefault();
    this.zoomBy(Math.exp(-event.deltaY / 400));
  }

  onDrag(start) {
    const [x, y] = this.middle;
    this.wasDragged = false;
    const move = (event) => {
      const [dx, dy] = [event.clientX - start.clientX, event.clientY - start.clientY];
      if (Math.hypot(dx, dy) > 4) this.wasDragged = true;
      if (this.wasDragged) this.zoomTo(this.zoom, [x - dx * this.unit, y - dy * this.unit]);
    };
    const stop = new AbortController();
    window.addEventListener("pointermove", move, { signal: stop.signal });
    for (const end of ["pointerup", "pointercancel"]) window.addEventListener(end, () => stop.abort(), { signal: stop.signal });
  }

  zoomBy(factor) {
    this.zoomTo(Math.min(Math.max(this.zoom * factor, 0.5), 40), this.middle);
  }

  zoomTo(zoom, middle) {
    [this.zoom, this.middle] = [zoom, middle];
    this.look();
  }
}

// Where hosts begin: a sunflower's seeds.
function spiral(at) {
  const [radius, angle] = [0.8 * APART * Math.sqrt(at), at * 2.399963];
  return [radius * Math.cos(angle), radius * Math.sin(angle)];
}

// Moves hosts such that linked ones come near each other and none comes too near, around the origin. The work is some 4 million pairs at most.
function place(places, ends) {
  const count = places.length;
  const rounds = Math.min(200, Math.ceil(4e6 / (count * count + 1)));
  // In a mesh where all are linked with all, links would pull everything into a point.
  const pull = Math.min(1, (2 * count) / (ends.length + 1));
  for (let round = 0; round < rounds; round++) {
    const most = 0.75 * APART * (1 - round / rounds);
    const moves = places.map(() => [0, 0]);
    const push = (one, other, force) => {
      let [dx, dy] = [places[one][0] - places[other][0], places[one][1] - places[other][1]];
      // Those in one place have to leave it in some direction.
      if (Math.hypot(dx, dy) < 1) [dx, dy] = [Math.cos(other), Math.sin(other)];
      const distance = Math.hypot(dx, dy);
      const by = force(distance) / distance;
      moves[one][0] += dx * by;
      moves[one][1] += dy * by;
      moves[other][0] -= dx * by;
      moves[other][1] -= dy * by;
    };
    for (let one = 0; one < count; one++) {
      for (let other = one + 1; other < count; other++) push(one, other, (distance) => APART ** 2 / distance);
    }
    for (const [one, other] of ends) push(one, other, (distance) => (-pull * distance ** 2) / APART);
    places.forEach((at, host) => {
      // Parts of the mesh that nothing links stay near.
      const [x, y] = [moves[host][0] - 0.05 * at[0], moves[host][1] - 0.05 * at[1]];
      const length = Math.max(Math.hypot(x, y), 1);
      const step = Math.min(length, most) / length;
      at[0] += x * step;
      at[1] += y * step;
    });
  }
  const middle = [0, 1].map((axis) => places.reduce((sum, at) => sum + at[axis], 0) / Math.max(count, 1));
  places.forEach((at) => {
    at[0] -= middle[0];
    at[1] -= middle[1];
  });
}

function classOf(value, { near, middle }) {
  return value < near ? "near" : value < middle ? "middle" : "far";
}

function make(kind, parent) {
  const made = document.createElementNS(SVG, kind);
  parent.append(made);
  return made;
}

function set(element, attributes) {
  for (const [name, value] of Object.entries(attributes)) {
    if (element.getAttribute(name) !== String(value)) element.setAttribute(name, value);
  }
}
