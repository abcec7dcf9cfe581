"use strict";
// Drawing the graph. Every text from the mesh goes in as text, never as markup.

const SVG = "http://www.w3.org/2000/svg";
// How many nodes a person can still tell apart.
const most = () => Math.max(24, Math.min(120, Math.floor((innerWidth + innerHeight) / 17)));

function svg(name, attributes, ...children) {
  const e = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) e.setAttribute(key, value);
  e.append(...children);
  return e;
}

function stateOf(edge) {
  if (edge.denied > 0) return "denied";
  return edge.plain > 0 ? "plain" : "mtls";
}

const weightOf = (edge) => edge.mtls + edge.plain + edge.denied + edge.failed + edge.requests;

function partyName(w) {
  if (!w.namespace) return w.name ? w.name.replace(/[()]/g, "") : "outside of the mesh";
  return w.namespace + "/" + w.name;
}

// graphOf sums a map up to what is drawn: namespaces, and the workloads of the
// one that is open.
function graphOf(map, open) {
  const room = most();
  const nodes = new Map(), edges = new Map();
  const busy = new Map();
  if (open !== null) {
    for (const e of map.edges) for (const i of [e.from, e.to]) busy.set(i, (busy.get(i) || 0) + weightOf(e));
  }
  const inside = map.workloads.map((w, i) => i).filter((i) => map.workloads[i].namespace === open);
  const shown = new Set(inside.sort((a, b) => (busy.get(b) || 0) - (busy.get(a) || 0)).slice(0, room));
  const place = (i) => {
    const w = map.workloads[i];
    let key, label, kind = "namespace";
    if (!w.namespace) [key, label, kind] = ["-" + w.name, partyName(w), "outside"];
    else if (w.namespace !== open) [key, label] = ["n" + w.namespace, w.namespace];
    else if (shown.has(i)) [key, label, kind] = ["w" + i, w.name, "workload"];
    else [key, label, kind] = ["more", `${inside.length - shown.size} more`, "more"];
    let node = nodes.get(key);
    if (!node) nodes.set(key, node = {key, label, kind, namespace: w.namespace, workload: w, workloads: 0, pods: 0, captured: 0, uncovered: 0, weight: 0});
    node.workloads++;
    node.pods += w.pods;
    node.captured += w.captured;
    if (w.captured && !w.policy) node.uncovered++;
    return node;
  };
  const places = map.workloads.map((_, i) => place(i));
  for (const e of map.edges) {
    const from = places[e.from], to = places[e.to];
    const key = from.key + "\n" + to.key;
    let sum = edges.get(key);
    if (!sum) edges.set(key, sum = {from, to, mtls: 0, plain: 0, denied: 0, failed: 0, requests: 0, bytes: 0, median: 0, p99: 0});
    for (const count of ["mtls", "plain", "denied", "failed", "requests", "bytes"]) sum[count] += e[count];
    for (const time of ["median", "p99"]) sum[time] = Math.max(sum[time], e[time]);
    from.weight += weightOf(e);
    to.weight += weightOf(e);
  }
  // Where there are many, those without traffic are named only by the search.
  let list = [...nodes.values()];
  if (open !== null) {
    const inside = (n) => n.namespace === open;
    const near = new Set([...edges.values()].filter((e) => inside(e.from) || inside(e.to)).flatMap((e) => [e.from, e.to]));
    list = list.filter((n) => inside(n) || near.has(n));
  } else if (list.length > room) {
    list = list.sort((a, b) => b.weight - a.weight).slice(0, room);
  }
  const kept = new Set(list);
  const shownEdges = [...edges.values()].filter((e) => kept.has(e.from) && kept.has(e.to)).sort((a, b) => weightOf(a) - weightOf(b));
  list.sort((a, b) => (a.kind < b.kind ? 1 : a.kind > b.kind ? -1 : a.label < b.label ? -1 : 1));
  return {nodes: list, edges: shownEdges, left: nodes.size - list.length};
}

// layOut puts nodes on an ellipse that leaves room for their names.
function layOut(graph, width, height) {
  const n = graph.nodes.length, crowded = n > 16;
  const room = crowded ? Math.min(150, width * 0.24) : Math.min(90, width * 0.2);
  const rx = Math.max(40, width / 2 - room), ry = Math.max(40, height / 2 - (crowded ? room : 50));
  graph.nodes.forEach((node, i) => {
    node.angle = (2 * Math.PI * i) / n - Math.PI / 2;
    node.x = width / 2 + rx * Math.cos(node.angle);
    node.y = height / 2 + ry * Math.sin(node.angle);
    const size = 5 + 2.2 * Math.log10(1 + node.weight);
    node.r = crowded ? Math.min(size, 8) : size;
  });
  return crowded;
}

function edgePath(e, cx, cy) {
  const {from: a, to: b} = e;
  if (a === b) {
    const out = a.r + 26;
    const dx = Math.cos(a.angle - 0.5) * out, dy = Math.sin(a.angle - 0.5) * out;
    const ex = Math.cos(a.angle + 0.5) * out, ey = Math.sin(a.angle + 0.5) * out;
    return `M${a.x},${a.y} C${a.x + dx},${a.y + dy} ${a.x + ex},${a.y + ey} ${a.x},${a.y}`;
  }
  // Both directions bend to their own side.
  const mx = (a.x + b.x) / 2, my = (a.y + b.y) / 2;
  const qx = mx + (cx - mx) * 0.45 - (b.y - a.y) * 0.06, qy = my + (cy - my) * 0.45 + (b.x - a.x) * 0.06;
  // It ends where the circle begins, so that its arrow is seen.
  const far = Math.hypot(b.x - qx, b.y - qy) || 1, short = Math.min((b.r + 2) / far, 1);
  return `M${a.x},${a.y} Q${qx},${qy} ${b.x + (qx - b.x) * short},${b.y + (qy - b.y) * short}`;
}

// arrows are the heads of edges, one for each state.
const arrows = () => svg("defs", {}, ...["mtls", "plain", "denied"].map((state) => svg("marker", {
  id: "to-" + state, viewBox: "0 0 10 10", refX: 9, refY: 5, markerWidth: 9, markerHeight: 9, markerUnits: "userSpaceOnUse", orient: "auto",
}, svg("polygon", {class: "arrow " + state, points: "0,1 10,5 0,9"}))));

// labelOf is a node's name; beyond what leads from the node to itself, where that is
// drawn on the same side.
function labelOf(node, crowded, loops) {
  const name = node.label.length > 28 ? node.label.slice(0, 27) + "…" : node.label;
  const text = svg("text", {}, name);
  if (!crowded) {
    const below = node.y > 40 && Math.sin(node.angle) >= 0;
    const beyond = loops && Math.abs(Math.sin(node.angle)) > 0.5 ? 12 : 0;
    text.setAttribute("x", node.x);
    text.setAttribute("y", node.y + (below ? node.r + 16 + beyond : -node.r - 8 - beyond));
    text.setAttribute("text-anchor", "middle");
    return text;
  }
  const left = Math.cos(node.angle) < 0, degrees = (node.angle * 180) / Math.PI + (left ? 180 : 0);
  text.setAttribute("x", node.x + (left ? -1 : 1) * (node.r + 5));
  text.setAttribute("y", node.y + 4);
  text.setAttribute("text-anchor", left ? "end" : "start");
  text.setAttribute("transform", `rotate(${degrees} ${node.x} ${node.y})`);
  return text;
}

// draw fills the picture; choose is called with a node that somebody chose.
function draw(picture, graph, chosen, choose) {
  const focused = document.activeElement && document.activeElement.dataset ? document.activeElement.dataset.key : undefined;
  const width = Math.max(picture.clientWidth, 280), height = Math.max(picture.clientHeight, 280);
  picture.setAttribute("viewBox", `0 0 ${width} ${height}`);
  const crowded = layOut(graph, width, height);
  const touches = (e) => chosen && (e.from.key === chosen || e.to.key === chosen);
  const edges = graph.edges.map((e) => svg("path", {
    class: `edge ${stateOf(e)}${touches(e) ? " chosen" : ""}`, d: edgePath(e, width / 2, height / 2),
    "stroke-width": 1 + Math.min(6, Math.log10(1 + weightOf(e)) * 1.4), "marker-end": `url(#to-${stateOf(e)})`,
  }, svg("title", {}, `${e.from.label} → ${e.to.label}: ${edgeText(e)}`)));
  const loops = new Set(graph.edges.filter((e) => e.from === e.to).map((e) => e.from));
  const nodes = graph.nodes.map((node) => {
    const classes = ["node"];
    if (node.kind === "workload") classes.push("open");
    if (node.kind === "workload" && node.uncovered) classes.push("uncovered");
    if (node.key === chosen) classes.push("chosen");
    const g = svg("g", {class: classes.join(" "), tabindex: 0, role: "button", "aria-label": nodeText(node), "data-key": node.key},
      svg("title", {}, nodeText(node)), svg("circle", {cx: node.x, cy: node.y, r: node.r}), labelOf(node, crowded, loops.has(node)));
    g.addEventListener("click", () => choose(node));
    g.addEventListener("keydown", (event) => {
      if (event.key === "Enter" || event.key === " ") {
        event.preventDefault();
        choose(node);
      }
    });
    return g;
  });
  picture.classList.toggle("choosing", Boolean(chosen) && graph.edges.some(touches));
  picture.replaceChildren(arrows(), ...edges, ...nodes);
  if (focused !== undefined) {
    const again = nodes.find((g) => g.dataset.key === focused);
    if (again) again.focus();
  }
}

function nodeText(node) {
  const workloads = node.workloads === 1 ? "1 workload" : `${node.workloads} workloads`;
  switch (node.kind) {
    case "namespace": return `Namespace ${node.label}: ${workloads}, ${node.captured} of ${node.pods} pods captured`;
    case "workload": return `Workload ${node.namespace}/${node.label}: ${node.captured} of ${node.pods} pods captured${node.uncovered ? ", no policy" : ""}`;
    case "more": return `${node.label} workloads of this namespace with less traffic`;
  }
  return node.label;
}

function edgeText(e) {
  const parts = [];
  if (e.mtls) parts.push(`${e.mtls} by mutual TLS`);
  if (e.plain) parts.push(`${e.plain} in clear`);
  if (e.denied) parts.push(`${e.denied} denied`);
  if (e.failed) parts.push(`${e.failed} failed`);
  if (e.requests) parts.push(`${e.requests} requests`);
  return parts.join(", ") || "open connections";
}
