"use strict";
// Draws the page from the JSON in #data. What a trace says goes in as text nodes and nothing else.
//   numbers   decode 16-bit masses -> density and share of the chosen layers and head
//   map       a canvas: cells once per view, cursor and selection on top
//   text      the steps, tinted by what the selected one reads and who reads it
//   depth     profiles as SVG, verdicts, table
const data = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);
const VIRIDIS = ("440154 481a6c 472f7d 414487 39568c 31688e 2a788e 23888e " +
  "1f988b 22a884 35b779 54c568 7ad151 a5db36 d2e21b fde725")
  .split(" ").map((hex) => [0, 2, 4].map((at) => parseInt(hex.slice(at, at + 2), 16)));
const SEGMENTS = { question: "Q", thinking: "thinking", summary: "summary" };
const MEASURES = { density: "influence per token pair", share: "share of the row's influence" };
const FROM = "rgb(0,114,178)", BY = "rgb(213,94,0)", INK = "#1d2330", QUIET = "#565f6e";
const state = { trace: null, cursor: [0, 0], hover: null, selected: null }; // cells: [query step, key step]
let view, place; // the numbers shown; where the map lies in its canvas

function el(tag, properties = {}, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children);
  return node;
}
const at = (query, key) => (query * (query + 1)) / 2 + key; // place in a lower triangle
const clean = (text) => text.trim() || "(white space)";

// --- numbers ---------------------------------------------------------------------------------------------------------
function bytes(text) {
  return Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0)).buffer;
}

function compute() {
  const { trace } = state, n = trace.steps.length, cells = at(n, 0), [low, step] = trace.scale;
  trace.codes ??= new Uint16Array(bytes(trace.mass));
  trace.counts ??= new Uint32Array(bytes(trace.pairs));
  const density = new Float64Array(cells), share = new Float64Array(cells), layers = chosenLayers();
  for (const layer of layers) {
    const start = (trace.layers.indexOf(layer) * trace.heads.length + $("head").selectedIndex) * cells;
    const mass = Float64Array.from(trace.codes.subarray(start, start + cells), (code) =>
      code === 0 ? 0 : code === 65535 ? NaN : Math.exp(low + (code - 1) * step));
    for (let query = 0; query < n; query++) {
      const row = at(query, 0), sum = mass.subarray(row, row + query + 1).reduce((a, b) => a + b, 0);
      for (let cell = row; cell <= row + query; cell++) {
        density[cell] += (trace.counts[cell] ? mass[cell] / trace.counts[cell] : NaN) / layers.length;
        share[cell] += mass[cell] / sum / layers.length; // 0 / 0: missing
      }
    }
  }
  view = { density, share, values: $("measure").value === "density" ? density : share };
  // The scale is that of the thinking and the summary: the question was given, and its own row may be far larger.
  const answer = trace.steps.findIndex(([segment]) => segment !== "question");
  const rows = answer > 0 ? view.values.subarray(at(answer, 0)) : view.values;
  const scaled = rows.some((value) => value > 0) ? rows : view.values;
  view.top = scaled.reduce((a, b) => (b > a ? b : a), 0);
  const least = scaled.reduce((a, b) => (b > 0 && b < a ? b : a), view.top);
  view.low = Math.max(least, view.top / 1000);
}

function chosenLayers() {
  const chosen = $("layer").value;
  return chosen === "all" ? state.trace.layers : state.trace.bands[chosen] ?? [Number(chosen)];
}

function level(value) { // 0 to 1 on the colour scale
  if (view.low === view.top) return value < view.top ? 0 : 1;
  return value <= view.low ? 0 : value >= view.top ? 1 : Math.log(value / view.low) / Math.log(view.top / view.low);
}

function colour(part) {
  const place = part * (VIRIDIS.length - 1), low = Math.min(Math.floor(place), VIRIDIS.length - 2);
  return `rgb(${VIRIDIS[low].map((a, i) => Math.round(a + (VIRIDIS[low + 1][i] - a) * (place - low)))})`;
}

function format(value, measure = $("measure").value, digits = 3) {
  if (Number.isNaN(value)) return "missing";
  if (measure === "share") return value > 0 && value < 0.0001 ? "< 0.01 %" : `${Number((100 * value).toPrecision(digits))} %`;
  if (value === 0) return "0";
  if (value >= 0.001 && value < 1000) return String(Number(value.toPrecision(digits)));
  const [mantissa, power] = value.toExponential(digits - 1).split("e");
  const raised = [...String(Number(power))].map((letter) => "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"["-0123456789".indexOf(letter)]);
  return `${mantissa} × 10${raised.join("")}`;
}

// --- the map ---------------------------------------------------------------------------------------------------------
const canvas = document.querySelector("canvas"), cells = document.createElement("canvas");

function drawCells() {
  const width = $("map").clientWidth, ratio = window.devicePixelRatio || 1, n = state.trace.steps.length;
  const left = 48, top = 24, size = Math.min(width - left - 10, Math.max(72 * n, 260));
  place = { left, top, size, n, ratio, width, height: top + size + 98 };
  for (const each of [canvas, cells]) {
    each.width = Math.round(width * ratio);
    each.height = Math.round(place.height * ratio);
  }
  const pen = cells.getContext("2d");
  const edge = (step) => Math.round(((step * size) / n) * ratio) / ratio; // whole device pixels: no seams
  pen.scale(ratio, ratio);
  pen.font = "12px system-ui, sans-serif";
  const hatch = pen.createPattern(hatched(), "repeat");
  for (let query = 0; query < n; query++)
    for (let key = 0; key <= query; key++) {
      const value = view.values[at(query, key)];
      pen.fillStyle = Number.isNaN(value) ? hatch : colour(level(value));
      pen.fillRect(left + edge(key), top + edge(query), edge(key + 1) - edge(key), edge(query + 1) - edge(query));
    }
  drawSegments(pen, edge);
  drawNumbers(pen);
  drawScale(pen, hatch);
  draw();
}

function hatched() {
  const tile = el("canvas", { width: 6, height: 6 }), pen = tile.getContext("2d");
  pen.fillStyle = "#eef0f3";
  pen.fillRect(0, 0, 6, 6);
  pen.strokeStyle = "#8a93a1";
  for (const shift of [-6, 0, 6]) pen.stroke(new Path2D(`M${shift} 6 l6 -6`));
  return tile;
}

function drawSegments(pen, edge) {
  const { left, top, size, n } = place, steps = state.trace.steps;
  const starts = steps.map((_, i) => i).filter((i) => i === 0 || steps[i][0] !== steps[i - 1][0]);
  starts.forEach((start, index) => {
    const stop = starts[index + 1] ?? n, from = edge(start), to = edge(stop);
    pen.fillStyle = index % 2 ? "#8a93a1" : INK;
    pen.fillRect(left + from, top - 6, Math.max(to - from - 1, 1), 3);
    pen.fillRect(left - 6, top + from, 3, Math.max(to - from - 1, 1));
    pen.fillStyle = INK;
    pen.textAlign = start === 0 ? "left" : stop === n ? "right" : "center";
    const middle = Math.min(Math.max((from + to) / 2, 45), size - 85);
    pen.fillText(SEGMENTS[steps[start][0]], left + (start === 0 ? 0 : stop === n ? size : middle), top - 10);
    if (start === 0) return;
    pen.fillStyle = "#fff";
    const line = Math.min(2, Math.max(1, size / n / 4));
    pen.fillRect(left, top + from - line / 2, from, line);
    pen.fillRect(left + from - line / 2, top + from, line, size - from);
  });
}

function drawNumbers(pen) {
  const { left, top, size, n } = place, gap = [1, 2, 5, 10, 20, 50, 100].find((each) => (each * size) / n >= 26) ?? 200;
  pen.fillStyle = QUIET;
  for (let step = 0; step < n; step += gap) {
    const middle = ((step + 0.5) * size) / n;
    pen.textAlign = "right";
    pen.fillText(step, left - 10, top + middle + 4);
    pen.textAlign = "center";
    pen.fillText(step, left + middle, top + size + 15);
  }
  pen.fillText("step read from", left + size / 2, top + size + 33);
  pen.save();
  pen.translate(10, top + size / 2);
  pen.rotate(-Math.PI / 2);
  pen.fillText("reading step", 0, 0);
  pen.restore();
}

function drawScale(pen, hatch) {
  const { left, top, width, size } = place, y = top + size + 46, length = Math.min(width - left - 10, 480);
  for (let x = 0; view.top > 0 && x < length; x++) {
    pen.fillStyle = colour(x / length);
    pen.fillRect(left + x, y, 1.5, 10);
  }
  pen.fillStyle = QUIET;
  const parts = view.top === 0 ? [] : view.low === view.top ? [1] : length < 400 ? [0, 0.5, 1] : [0, 1 / 3, 2 / 3, 1];
  for (const part of parts) {
    pen.textAlign = part === 0 ? "left" : part === 1 ? "right" : "center";
    pen.fillRect(left + part * (length - 1), y + 10, 1, 3);
    const text = format(view.low * (view.top / view.low) ** part, $("measure").value, 2);
    pen.fillText((part ? "" : "≤ ") + text, left + part * length, y + 25);
  }
  pen.textAlign = "left";
  pen.fillText(view.top > 0 ? MEASURES[$("measure").value] : "no positive value in this view", left, y + 42);
  pen.textAlign = "right";
  pen.fillText("missing", left + length, y + 42);
  pen.fillStyle = hatch;
  pen.fillRect(left + length - 66, y + 32, 14, 11);
}

function draw() {
  const pen = canvas.getContext("2d"), { left, top, size, n, ratio } = place, cell = size / n, { selected } = state;
  const box = (x, y, w, h, style, line) => Object.assign(pen, { strokeStyle: style, lineWidth: line }).strokeRect(x, y, w, h);
  pen.setTransform(1, 0, 0, 1, 0, 0);
  pen.clearRect(0, 0, canvas.width, canvas.height);
  pen.drawImage(cells, 0, 0);
  pen.scale(ratio, ratio);
  if (selected !== null) {
    const veil = new Path2D();
    veil.rect(left, top, size, size);
    veil.rect(left, top + selected * cell, (selected + 1) * cell, cell);
    veil.rect(left + selected * cell, top + (selected + 1) * cell, cell, (n - selected - 1) * cell);
    pen.fillStyle = "rgba(255,255,255,.62)";
    pen.fill(veil, "evenodd");
    const [out, line] = cell < 12 ? [1.5, 1.5] : [0, 2.5]; // around small cells, not on them
    const start = selected * cell - out, wide = cell + 2 * out;
    box(left + start, top + start, wide, (n - selected) * cell + 2 * out, BY, line);
    box(left - out, top + start, (selected + 1) * cell + 2 * out, wide, FROM, line);
  }
  const [query, key] = state.hover ?? state.cursor, grow = Math.max(0, 7 - cell) / 2, wide = cell + 2 * grow;
  const x = left + key * cell - grow, y = top + query * cell - grow;
  box(x, y, wide, wide, "#000", 4);
  box(x, y, wide, wide, "#fff", 2);
  Object.assign(pen, { font: "bold 12px system-ui, sans-serif", textAlign: "center" });
  const labels = [[query, left - 19, top + (query + 0.5) * cell], [key, left + (key + 0.5) * cell, top + size + 11]];
  for (const [text, px, py] of labels) {
    pen.fillStyle = INK;
    pen.fillRect(px - 13, py - 8, 26, 16);
    pen.fillStyle = "#fff";
    pen.fillText(text, px, py + 4);
  }
}

function point(event) {
  const key = Math.floor(((event.offsetX - place.left) / place.size) * place.n);
  const query = Math.floor(((event.offsetY - place.top) / place.size) * place.n);
  return key >= 0 && key <= query && query < place.n ? [query, key] : null;
}

function showCell() {
  const { steps } = state.trace, [query, key] = state.hover ?? state.cursor, cell = at(query, key);
  const name = (step) => `step ${step} (${steps[step][0]})`;
  draw();
  for (const item of document.querySelectorAll("li.step"))
    item.classList.toggle("pointed", [query, key].includes(Number(item.dataset.step)));
  $("cell-head").textContent = `S${name(query).slice(1)} reads from ${query === key ? "itself" : name(key)}`;
  $("cell-values").replaceChildren(el("b", {}, format(view.density[cell], "density")), " per token pair · ",
    el("b", {}, format(view.share[cell], "share")), " of the row's influence · ",
    `layer ${$("layer").selectedOptions[0].textContent}, head ${$("head").value}`);
  $("cell-texts").replaceChildren(...[["reading", query], ["read from", key]].map(([role, step]) =>
    el("div", {}, el("dt", {}, `${role}: ${name(step)}`), el("dd", { dir: "auto" }, clean(steps[step][1])))));
}

function strongest() {
  let best = [place.n - 1, 0];
  for (let query = 0; query < place.n; query++)
    for (let key = 0; key < query; key++)
      if (view.values[at(query, key)] > (view.values[at(...best)] || 0)) best = [query, key];
  return best;
}

function moveCursor(event) {
  const n = place.n, [query, key] = state.cursor;
  const to = { ArrowUp: [query - 1, key], ArrowDown: [query + 1, key], PageUp: [query - 10, key], PageDown: [query + 10, key],
    ArrowLeft: [query, key - 1], ArrowRight: [query, key + 1], Home: [query, 0], End: [query, query] }[event.key];
  if (event.key === "Enter" || event.key === " ") select(query);
  else if (event.key === "Escape") select(null);
  else if (!to) return;
  else {
    const row = Math.min(Math.max(to[0], 0), n - 1);
    Object.assign(state, { cursor: [row, Math.min(Math.max(to[1], 0), row)], hover: null });
    showCell();
  }
  event.preventDefault();
}

// --- the text --------------------------------------------------------------------------------------------------------
function showSteps() {
  const items = [];
  state.trace.steps.forEach(([segment, text], step, steps) => {
    if (step === 0 || steps[step - 1][0] !== segment) items.push(el("li", { className: "segment" }, segment));
    const button = el("button", { type: "button", tabIndex: step ? -1 : 0 }, String(step));
    button.ariaLabel = `step ${step}, ${segment}`;
    const item = el("li", { className: "step" }, button, el("span", { className: "text", dir: "auto" }, clean(text)));
    item.append(el("span", { className: "value" }));
    item.dataset.step = step;
    item.addEventListener("click", ({ target }) => {
      if (target === button || window.getSelection().isCollapsed) select(state.selected === step ? null : step);
    });
    items.push(item);
  });
  $("steps").replaceChildren(...items);
  $("steps").scrollTop = 0;
}

function select(step) {
  state.selected = step;
  showSelection();
  const item = document.querySelector(`li.step[data-step="${step}"]`), list = $("steps");
  if (!item) return;
  if (item.offsetTop < list.scrollTop || item.offsetTop + item.offsetHeight > list.scrollTop + list.clientHeight)
    list.scrollTop = item.offsetTop - list.clientHeight / 3;
}

function showSelection() {
  const { selected } = state, reads = [], readers = [];
  for (const item of document.querySelectorAll("li.step")) {
    const step = Number(item.dataset.step), from = step <= selected;
    const value = selected === null ? NaN : view.values[from ? at(selected, step) : at(step, selected)];
    item.className = "step" + (selected === null ? "" : step === selected ? " selected" : from ? " from" : " by");
    item.style.setProperty("--tint", value > 0 ? level(value) : 0);
    item.querySelector(".value").textContent = selected === null ? "" : format(value);
    item.firstChild.ariaPressed = String(step === selected);
    if (value > 0) (from ? reads : readers).push([step, value]);
  }
  const most = (pairs) => pairs.sort((a, b) => b[1] - a[1]).slice(0, 5).map(([step, value]) => {
    const button = el("button", { type: "button" }, `${step === selected ? "itself" : step} · ${format(value)}`);
    button.addEventListener("click", () => select(step));
    return button;
  });
  const clear = el("button", { type: "button", onclick: () => select(null) }, "clear");
  $("selection").replaceChildren(...(selected === null
    ? [el("p", { className: "quiet" }, "Select a step to see where it reads from and who reads it.")]
    : [el("p", {}, el("b", {}, `Step ${selected}`), ` (${state.trace.steps[selected][0]}) `, clear),
      el("p", { className: "from" }, "reads most from", ...(reads.length ? most(reads) : ["nothing, or missing"])),
      el("p", { className: "by" }, "is read most by", ...(readers.length ? most(readers) : ["no later step"]))]));
  showCell();
}

function walkSteps(event) {
  const buttons = [...document.querySelectorAll("#steps button")], here = buttons.indexOf(document.activeElement);
  const to = { ArrowDown: here + 1, ArrowUp: here - 1, Home: 0, End: buttons.length - 1 }[event.key];
  if (event.key === "Escape") select(null);
  if (here < 0 || !buttons[to]) return;
  buttons[here].tabIndex = -1;
  buttons[to].tabIndex = 0;
  buttons[to].focus();
  event.preventDefault();
}

// --- depth -----------------------------------------------------------------------------------------------------------
function svg(tag, attributes, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

function profile({ name, label, line, values, control }) {
  const { layers, bands } = state.trace, [left, right, top, bottom] = [34, 404, 8, 150], middle = (left + right) / 2;
  const wide = (right - left) / (layers.at(-1) - layers[0] + 1);
  const x = (layer) => left + (layer - layers[0] + 0.5) * wide, y = (value) => bottom - value * (bottom - top);
  const picture = svg("svg", { viewBox: "0 0 412 186", role: "img", "aria-label": `${label} by layer; numbers below` });
  const draw = (tag, attributes, ...children) => picture.append(svg(tag, attributes, ...children));
  const write = (text, x, y, anchor = "middle") => draw("text", { x, y, "text-anchor": anchor }, String(text));
  const trail = (list) => list.map((value, i) =>
    value === null ? "" : `${(list[i - 1] ?? null) === null ? "M" : "L"}${x(layers[i])} ${y(value)}`).join("");
  for (const held of Object.values(bands))
    draw("rect", { x: x(held[0]) - wide / 2, y: top, width: held.length * wide, height: bottom - top, fill: "#eef0f3" });
  if (chosenLayers().length === 1)
    draw("path", { class: "chosen", d: `M${x(chosenLayers()[0])} ${top}V${bottom}`, stroke: INK, "stroke-opacity": 0.5 });
  for (const value of [0, 0.25, 0.5, 0.75, 1]) {
    draw("path", { d: `M${left} ${y(value)}H${right}`, stroke: "#d8dce3", "stroke-width": value ? 0.6 : 1 });
    write(value, left - 6, y(value) + 4, "end");
  }
  const gap = [1, 2, 5, 10, 20].find((each) => each * wide >= 20) ?? 50;
  for (const layer of layers) if (layer % gap === 0) write(layer, x(layer), bottom + 15);
  write("layer", middle, bottom + 32);
  const grey = { fill: "none", stroke: QUIET, "stroke-width": 1.4 };
  if (line !== null) draw("path", { ...grey, d: `M${left} ${y(line)}H${right}`, "stroke-dasharray": "1 4" });
  draw("path", { ...grey, d: trail(control), "stroke-dasharray": "6 4" });
  draw("path", { d: trail(values), fill: "none", stroke: FROM, "stroke-width": 2 });
  values.forEach((value, i) => value !== null && draw("circle", { cx: x(layers[i]), cy: y(value), r: 3, fill: FROM }));
  if (values.every((value) => value === null)) write("missing: this trace has none", middle, y(0.5) - 8);
  const figure = el("figure", {}, el("figcaption", {}, label), picture);
  figure.dataset.metric = name;
  return figure;
}

function showDepth() {
  const { profiles, verdicts, layers } = state.trace, number = (value) => (value === null ? "missing" : value.toFixed(3));
  $("profiles").replaceChildren(...profiles.map(profile));
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

// --- the page --------------------------------------------------------------------------------------------------------
function showView() {
  compute();
  drawCells();
  showSelection();
  showDepth();
}

function fill(select, options) {
  const before = select.value;
  select.replaceChildren(...options.map(([value, text]) => el("option", { value }, text)));
  if (options.some(([value]) => value === before)) select.value = before;
}

function showTrace(trace) {
  const { layers, bands, heads, about, steps } = trace;
  const span = (list) => (list.length > 1 ? `${list[0]}–${list.at(-1)}` : list[0]);
  Object.assign(state, { trace, cursor: [0, 0], hover: null, selected: null });
  fill($("layer"), [["all", `mean of all ${layers.length}`],
    ...Object.entries(bands).map(([name, held]) => [name, `mean of ${name}, ${span(held)}`]),
    ...layers.map((layer) => [String(layer), String(layer)])]);
  fill($("head"), heads.map((head) => [head, head]));
  $("map").ariaLabel = `Step map of ${trace.name}, ${steps.length} steps`;
  $("text-title").textContent = trace.name;
  $("loss").textContent = `${(50 * Math.expm1(trace.scale[1])).toFixed(3)} %`;
  $("about").textContent = [about.model, about.objective && `objective ${about.objective}`, about.rule && `rule ${about.rule}`,
    about.score && about.score !== "loss" && `score ${about.score}`,
    about.tokens && `${about.tokens} tokens`, `${steps.length} steps`, `${layers.length} layers`].filter(Boolean).join(" · ");
  showSteps();
  showView();
  state.cursor = strongest();
  showCell();
}

const KINDS = { all: () => true, correct: (trace) => trace.correct === true, wrong: (trace) => trace.correct === false };

function showList(kind) {
  const shown = data.traces.filter(KINDS[kind]), current = shown.includes(state.trace) ? state.trace : shown[0];
  $("list").replaceChildren(...shown.map((trace) => {
    const [sign, word] = { true: ["✓", "correct"], false: ["✗", "wrong"] }[trace.correct] ?? ["·", "not marked"];
    const found = trace.verdicts.filter((verdict) => verdict.found).map((verdict) => verdict.failure);
    const input = el("input", { type: "radio", name: "trace", checked: trace === current });
    input.addEventListener("change", () => showTrace(trace));
    return el("label", {}, input, el("span", { ariaHidden: "true" }, sign), el("span", {}, trace.name),
      el("small", {}, [word, ...found].join(", ")));
  }));
  if (current !== state.trace) showTrace(current);
}

document.title = $("title").textContent = data.title;
for (const [kind, test] of Object.entries(KINDS)) {
  const count = data.traces.filter(test).length;
  const input = el("input", { type: "radio", name: "filter", checked: kind === "all", disabled: !count });
  input.addEventListener("change", () => showList(kind));
  $("filter").append(el("label", {}, input, `${kind} ${count}`));
}
for (const id of ["layer", "head", "measure"]) $(id).addEventListener("change", showView);
$("map").addEventListener("keydown", moveCursor);
canvas.addEventListener("pointermove", (event) => ((state.hover = point(event)), showCell()));
canvas.addEventListener("pointerleave", () => ((state.hover = null), showCell()));
canvas.addEventListener("click", (event) => ((state.cursor = point(event) ?? state.cursor), showCell()));
$("steps").addEventListener("keydown", walkSteps);
showList("all");
new ResizeObserver(() => $("map").clientWidth && $("map").clientWidth !== place.width && drawCells()).observe($("map"));
