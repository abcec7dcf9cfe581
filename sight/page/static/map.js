"use strict";
// The page: what is asked for, what is open, and what the keys do.

const by = (id) => document.getElementById(id);
const state = {map: null, open: null, chosen: null, edges: [], ago: 0, span: 5, asked: 0, trouble: ""};

function query() {
  const q = new URLSearchParams({minutes: state.span});
  if (state.ago) q.set("until", Math.floor(Date.now() / 1000) - 60 * state.ago);
  return q;
}

async function ask(path, q) {
  const response = await fetch(path + "?" + q);
  const text = await response.json();
  if (!response.ok) throw new Error(text.error);
  return text;
}

async function load() {
  const asked = ++state.asked;
  try {
    const map = await ask("api/map", query());
    if (asked !== state.asked) return; // there was another question meanwhile
    state.map = map;
    state.trouble = "";
    by("names").replaceChildren(...map.workloads.filter((w) => w.namespace).map((w) => element("option", {value: partyName(w)})));
    show();
    if (state.chosen) await details();
  } catch (e) {
    state.trouble = e.message;
    notice();
  }
  document.body.dataset.loaded = asked;
}

async function details() {
  const {namespace, name} = state.chosen, q = query();
  q.set("namespace", namespace);
  q.set("name", name);
  const d = await ask("api/workload", q);
  if (state.chosen && state.chosen.namespace === namespace && state.chosen.name === name) fill(by("panel"), d, close);
}

function close() {
  state.chosen = null;
  by("panel").hidden = true;
  show();
}

function notice() {
  const parts = [], m = state.map;
  if (state.trouble) parts.push(state.trouble);
  if (m && m.missing) parts.push(`Partial: ${m.missing === 1 ? "a node says" : m.missing + " nodes say"} nothing${m.nodes.length ? " (" + m.nodes.slice(0, 10).join(", ") + ")" : ""}.`);
  if (m && m.partly) parts.push("Only namespaces are shown whose pods you may list.");
  if (m && m.oldest && new Date(m.oldest) > new Date(m.from)) parts.push(`Nothing is known of the time before ${clock(m.oldest)}.`);
  by("notice").textContent = parts.join(" ");
}

function show() {
  const graph = graphOf(state.map, state.open);
  const at = state.chosen && state.map.workloads.findIndex((w) => w.namespace === state.chosen.namespace && w.name === state.chosen.name);
  const key = state.chosen ? "w" + at : null;
  draw(by("map"), graph, key, choose);
  by("empty").hidden = graph.nodes.length > 0;
  by("where").textContent = state.open !== null ? "› " + state.open : graph.left > 0 ? `${graph.left} with less traffic are not drawn` : "";
  state.edges = graph.edges;
  table();
  by("at").textContent = state.ago ? `${clock(state.map.from)} to ${clock(state.map.to)}` : "live";
  notice();
}

// table is filled only where it can be seen.
function table() {
  by("rows").replaceChildren(...(by("list").open ? rowsOf(state.edges) : []));
}

function choose(node) {
  if (node.kind === "namespace") {
    state.open = node.namespace;
    state.chosen = null;
    by("panel").hidden = true;
    show();
  } else if (node.kind === "workload") {
    select(node.workload);
  }
}

async function select(w) {
  state.chosen = {namespace: w.namespace, name: w.name};
  state.open = w.namespace;
  show();
  try {
    await details();
    by("panel").focus();
  } catch (e) {
    state.trouble = e.message;
    notice();
  }
}

function home() {
  state.open = state.chosen = null;
  by("panel").hidden = true;
  show();
}

function travel(ago) {
  state.ago = ago;
  by("ago").value = -ago;
  load();
}

by("home").addEventListener("click", home);
by("list").addEventListener("toggle", table);
by("live").addEventListener("click", () => travel(0));
by("ago").addEventListener("change", () => travel(-Number(by("ago").value)));
by("span").addEventListener("change", () => { state.span = Number(by("span").value); load(); });
by("search").addEventListener("change", () => {
  const wanted = by("search").value.trim();
  const found = state.map.workloads.find((w) => w.namespace && (partyName(w) === wanted || w.name === wanted));
  if (found) select(found);
});
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape") return;
  if (state.chosen) close();
  else if (state.open !== null) home();
});
addEventListener("resize", () => { if (state.map) show(); });

const events = new EventSource("api/events");
events.addEventListener("news", () => { if (!state.ago) load(); });
events.addEventListener("error", () => { state.trouble = "The connection is lost; trying again."; notice(); });
events.addEventListener("open", () => { state.trouble = ""; if (state.map) notice(); });
load();
