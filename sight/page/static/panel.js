"use strict";
// The panel with what is known of one workload.

function element(name, attributes, ...children) {
  const e = document.createElement(name);
  for (const [key, value] of Object.entries(attributes || {})) e.setAttribute(key, value);
  e.append(...children);
  return e;
}

function bytes(n) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  while (n >= 1024 && unit < units.length - 1) [n, unit] = [n / 1024, unit + 1];
  return (unit ? n.toFixed(1) : n) + " " + units[unit];
}

function duration(micros) {
  if (!micros) return "–";
  if (micros < 1000) return `< ${micros} µs`;
  return micros < 1e6 ? `< ${(micros / 1000).toFixed(1)} ms` : `< ${(micros / 1e6).toFixed(1)} s`;
}

const clock = (time) => new Date(time).toLocaleTimeString();

function section(title, items, none) {
  if (!items.length) return none ? [element("h3", null, title), element("p", {class: "soft"}, none)] : [];
  return [element("h3", null, title), element("ul", null, ...items.map((i) => element("li", null, i)))];
}

function trafficText(t) {
  const connections = t.mtls + t.plain + t.skipped + t.passthrough;
  if (!connections && !t.denied && !t.failed && !t.requests) return "none";
  const share = connections ? `${Math.floor(t.share * 1000) / 10} % of ${connections} connections by mutual TLS` : "no connections";
  return `${share}; ${t.denied} denied, ${t.failed} failed, ${t.requests} requests, ${bytes(t.bytes)}; ` +
    `median ${duration(t.median)}, 90 % ${duration(t.p90)}, 99 % ${duration(t.p99)}`;
}

function denialOf(d, open) {
  const who = partyName(d.source) + " → " + partyName(d.destination);
  const box = element("details", {"data-id": d.id + d.time}, element("summary", null, `${clock(d.time)}  ${who}`),
    element("ol", null, ...d.steps.map((s) => element("li", null, s))));
  if (d.change) box.append(element("p", {class: "change"}, element("strong", null, "To change it: "), d.change));
  box.open = open;
  return box;
}

// fill shows a workload; what was unfolded stays so.
function fill(panel, d, close) {
  const unfolded = new Set([...panel.querySelectorAll("details[open]")].map((e) => e.dataset.id));
  const same = panel.dataset.of === d.namespace + "/" + d.name;
  panel.dataset.of = d.namespace + "/" + d.name;
  const shut = element("button", {type: "button"}, "Close");
  shut.addEventListener("click", close);
  const soon = (c) => c.notAfter ? `${c.identity} on ${c.node}: until ${new Date(c.notAfter).toLocaleString()}` + (c.error ? `; not renewed: ${c.error}` : "")
    : `${c.identity} on ${c.node}: none${c.error ? ": " + c.error : ""}`;
  panel.replaceChildren(
    element("h2", null, d.namespace + "/" + d.name), shut,
    element("h3", null, "Last denials"),
    ...(d.denials.length ? d.denials.map((x, i) => denialOf(x, same ? unfolded.has(x.id + x.time) : i === 0)) : [element("p", {class: "soft"}, "None in this hour.")]),
    element("h3", null, "Traffic in"), element("p", null, trafficText(d.in)),
    element("h3", null, "Traffic out"), element("p", null, trafficText(d.out)),
    ...section("Policies", d.policies.map((p) => `${p.name} (${p.action}, ${p.scope}${p.dryRun ? ", dry run" : ""})${p.last ? ": decided last at " + clock(p.last) : ""}${p.lacks ? "; NOT ENFORCED AS WRITTEN: " + p.lacks.join("; ") : ""}`), "No policy covers it: whoever reaches it may call."),
    ...section("Certificates", d.certificates.map(soon), "None was told of."),
    ...section("Pods", d.pods.map((p) => `${p.name} on ${p.node || "no node"}${p.captured ? "" : ": not captured"}`)),
  );
  panel.hidden = false;
}

function rowsOf(edges) {
  return [...edges].reverse().slice(0, 200).map((e) => element("tr", null, ...[
    e.from.label, e.to.label, e.mtls, e.plain, e.denied, e.failed, e.requests, bytes(e.bytes), duration(e.median), duration(e.p99),
  ].map((cell) => element("td", null, String(cell)))));
}
