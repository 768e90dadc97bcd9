// What is in this report, and what of it is shown. What a trace says goes into the page as text nodes and nothing else.
const index = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);

// Two sides: the trace shown, and what is beside it (`beside` says what; "" is nothing). Cells are [reading step, step read from].
const makeSide = () => ({ trace: null, numbers: null, view: null, place: null, selected: null, cursor: [0, 0], hover: null });
const left = makeSide(), right = makeSide(), sides = [left, right];
const state = { beside: "", zoom: { span: 1, row: 0, column: 0 } }; // the part of the maps in sight, as fractions of their side

function el(tag, properties = {}, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children);
  return node;
}

const natural = new Intl.Collator("en", { numeric: true }).compare; // t2 before t10
const at = (query, key) => (query * (query + 1)) / 2 + key; // place in a lower triangle
const clean = (text) => text.trim() || "(white space)";
const linked = () => state.beside !== "" && right.trace !== null && right.trace.steps.length === left.trace.steps.length;
const causal = () => state.beside === "knockout" || state.beside === "ranks"; // what is beside is of the same trace
const together = (side) => (linked() ? sides : [side]); // the sides that show a selection or a pointer alike

// --- traces: inside the page, or in files beside it ------------------------------------------------------------------
const inside = document.querySelectorAll("script.trace");
const KEPT = 12; // traces in memory
const loaded = new Map(), awaited = new Map();

function withTrace(number, then) {
  if (loaded.has(number)) return then(loaded.get(number));
  if (!index.traces[number].file) {
    keep(number, JSON.parse(inside[number].textContent));
    return then(loaded.get(number));
  }
  if (awaited.has(number)) return awaited.get(number).push(then);
  awaited.set(number, [then]);
  const script = el("script", { src: index.traces[number].file });
  script.addEventListener("load", () => script.remove());
  script.addEventListener("error", () => {
    awaited.delete(number);
    script.remove();
    notice(`The file ${index.traces[number].file} cannot be read: keep that folder beside this page.`);
  });
  document.head.append(script);
}

function loadedTrace(number, trace) { // the files call this
  const waiting = awaited.get(number) ?? [];
  awaited.delete(number);
  keep(number, trace);
  for (const then of waiting) then(trace);
}

function keep(number, trace) {
  trace.number = number;
  loaded.set(number, trace);
  for (const old of loaded.keys())
    if (loaded.size > KEPT && ![number, left.trace?.number, right.trace?.number].includes(old)) loaded.delete(old);
}

function notice(text) {
  $("notice").textContent = text;
}
