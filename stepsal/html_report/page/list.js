// Which traces are listed, and in which order.
const KINDS = { all: () => true, right: ({ correct }) => correct === true, wrong: ({ correct }) => correct === false };
const WORDS = { true: ["✓", "right"], false: ["✗", "wrong"] };
const ORDERS = { name: (a, b) => natural(a.name, b.name), steps: (a, b) => b.steps - a.steps, tokens: (a, b) => b.tokens - a.tokens };
const order = index.traces.map((_, number) => number).sort((a, b) => ORDERS.name(index.traces[a], index.traces[b]));
const failures = index.run.verdicts.map(({ failure }) => failure);

function listed() { // the numbers of the traces that pass all filters, in order
  const kind = KINDS[document.querySelector("[name=filter]:checked").value], part = $("find-trace").value.trim().toLowerCase();
  const [failure, found] = $("verdict").value.split(" ").map(Number), sort = ORDERS[$("sort").value];
  return order.filter((number) => {
    const trace = index.traces[number];
    return kind(trace) && trace.name.toLowerCase().includes(part) && ($("verdict").value === "" || trace.verdicts[failure] === [false, true, null][found]);
  }).sort((a, b) => sort(index.traces[a], index.traces[b]));
}

function showList() {
  const shown = listed();
  $("list").replaceChildren($("list").firstElementChild, ...shown.map((number) => {
    const { name, correct, verdicts, steps } = index.traces[number], [sign, word] = WORDS[correct] ?? ["·", "not graded"];
    const found = failures.filter((_, i) => verdicts[i]);
    const input = el("input", { type: "radio", name: "trace", value: number, checked: number === left.trace?.number });
    return el("label", {}, input, el("span", { ariaHidden: "true" }, sign), el("span", {}, name),
      el("small", {}, [word, `${steps} steps`, ...found].join(", ")));
  }));
  const count = (kind) => shown.filter((number) => KINDS[kind](index.traces[number])).length;
  $("listed").textContent = shown.length === order.length ? "" :
    `${shown.length} of ${order.length} listed: ${count("right")} right, ${count("wrong")} wrong`;
}

function markListed() { // the trace that is shown
  for (const input of document.querySelectorAll("[name=trace]")) input.checked = Number(input.value) === left.trace.number;
}

function listenToList() {
  for (const [kind, test] of Object.entries(KINDS)) {
    const count = index.traces.filter(test).length;
    const input = el("input", { type: "radio", name: "filter", value: kind, checked: kind === "all", disabled: !count });
    $("filter").append(el("label", {}, input, `${kind} ${count}`));
  }
  $("verdict").append(el("option", { value: "" }, "any verdict"), ...failures.flatMap((failure, i) =>
    ["no", "yes", "not judged"].map((word, found) => el("option", { value: `${i} ${found}` }, `${failure}: ${word}`))));
  for (const [id, event] of [["filter", "change"], ["verdict", "change"], ["sort", "change"], ["find-trace", "input"]])
    $(id).addEventListener(event, showList);
  $("list").addEventListener("change", ({ target }) => choose({ trace: index.traces[target.value].name, step: null }));
}
