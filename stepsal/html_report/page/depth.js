// What a trace is like by depth: profiles as pictures, verdicts, and the numbers as a table.
// One chart serves the traces and the run: `series` are lines of a value for each layer, with or without an interval.
function chart({ label, line, layers, bands = {}, chosen = [], series }) {
  const [first, last, top, bottom] = [34, 404, 8, 130], middle = (first + last) / 2;
  const low = Math.min(...layers), wide = (last - first) / (Math.max(...layers) - low + 1);
  const order = layers.map((_, i) => i).sort((a, b) => layers[a] - layers[b]);
  const x = (layer) => first + (layer - low + 0.5) * wide, y = (value) => bottom - value * (bottom - top);
  const picture = svg("svg", { viewBox: "0 0 412 166", role: "img", "aria-label": `${label} by layer` });
  const draw = (tag, attributes, ...children) => picture.append(svg(tag, attributes, ...children));
  const write = (text, x, y, align = "middle") => draw("text", { x, y, "text-anchor": align }, String(text));
  const known = (list) => order.filter((i) => list[i] !== null);
  const trail = (list) => order.map((i, place) => list[i] === null ? "" :
    `${place && list[order[place - 1]] !== null ? "L" : "M"}${x(layers[i])} ${y(list[i])}`).join("");
  for (const held of Object.values(bands))
    draw("rect", { x: x(Math.min(...held)) - wide / 2, y: top, width: held.length * wide, height: bottom - top, fill: "var(--ground)" });
  for (const layer of chosen)
    draw("path", { class: "chosen", d: `M${x(layer)} ${top}V${bottom}`, stroke: "var(--ink)", "stroke-opacity": 0.5 });
  for (const value of [0, 0.25, 0.5, 0.75, 1]) {
    draw("path", { d: `M${first} ${y(value)}H${last}`, stroke: "var(--line)", "stroke-width": value ? 0.6 : 1 });
    write(value, first - 6, y(value) + 4, "end");
  }
  const gap = [1, 2, 5, 10, 20].find((each) => each * wide >= 20) ?? 50;
  for (const layer of layers) if (layer % gap === 0) write(layer, x(layer), bottom + 15);
  write("layer", middle, bottom + 31);
  if (line !== null)
    draw("path", { d: `M${first} ${y(line)}H${last}`, fill: "none", stroke: "var(--quiet)", "stroke-width": 1.4, "stroke-dasharray": "1 4" });
  for (const { low: from, high: to, colour } of series) if (from) {
    const there = known(from);
    const edge = [...there.map((i) => `${x(layers[i])} ${y(to[i])}`), ...there.reverse().map((i) => `${x(layers[i])} ${y(from[i])}`)];
    if (there.length > 1) draw("path", { class: "interval", d: `M${edge.join("L")}Z`, fill: colour, "fill-opacity": 0.2 });
  }
  for (const { values, colour, dash, dots } of series) {
    draw("path", { d: trail(values), fill: "none", stroke: colour, "stroke-width": dash ? 1.4 : 2, "stroke-dasharray": dash ?? "none" });
    for (const i of dots ? known(values) : []) draw("circle", { cx: x(layers[i]), cy: y(values[i]), r: 3, fill: colour });
  }
  if (series.every(({ values }) => values.every((value) => value === null))) write("missing: there is none", middle, y(0.5) - 8);
  return el("figure", {}, el("figcaption", {}, label), picture);
}

function showDepth() {
  const { trace } = left, { profiles, verdicts, layers, bands } = trace, number = (value) => (value === null ? "missing" : value.toFixed(3));
  const chosen = chosenLayers(trace), other = right.trace && right.trace !== trace && right.trace.layers.join() === layers.join() ? right.trace : null;
  $("profiles").replaceChildren(...profiles.map(({ name, label, line, values, control }, i) => {
    const series = [{ values: control, colour: "var(--quiet)", dash: "6 4" }, { values, colour: "rgb(var(--blue))", dots: true }];
    if (other) series.push({ values: other.profiles[i].values, colour: "rgb(var(--orange))", dots: true });
    const figure = chart({ label, line, layers, bands, chosen: chosen.length === 1 ? chosen : [], series });
    figure.dataset.metric = name;
    return figure;
  }));
  $("depth-other").textContent = other ? `, orange: ${other.name}` : "";
  $("verdicts").replaceChildren(...verdicts.map(({ failure, found, layers: where, evidence }) => {
    const [kind, word] = found === null ? ["none", "not judged"] : found ? ["yes", "yes"] : ["no", "no"];
    return el("li", {}, el("span", { className: `tag ${kind}` }, `${failure}: ${word}`),
      where.length ? `in layer${where.length > 1 ? "s" : ""} ${where.join(", ")}: ${evidence}` : evidence);
  }));
  const columns = profiles.flatMap(({ label, values, control }) => [[label, values], [`${label}, distance alone`, control]]);
  const row = (head, ...cells) => el("tr", {}, el("th", { scope: "row" }, head), ...cells.map((cell) => el("td", {}, cell)));
  $("table").replaceChildren(
    el("thead", {}, el("tr", {}, ...[["layer"], ...columns].map(([name]) => el("th", { scope: "col" }, name)))),
    el("tbody", {}, ...layers.map((layer, i) => row(String(layer), ...columns.map(([, values]) => number(values[i]))))));
}
