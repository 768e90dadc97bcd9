// The text of a trace: its steps, tinted by what the selected one reads and who reads it; and the search in it.
function showSteps(side) {
  const items = [], { steps, about, name } = side.trace;
  steps.forEach(([segment, text], step) => {
    if (step === 0 || steps[step - 1][0] !== segment) items.push(el("li", { className: "segment" }, segment));
    const button = el("button", { type: "button", tabIndex: step ? -1 : 0 }, String(step));
    button.ariaLabel = `step ${step}, ${segment}`;
    const item = el("li", { className: "step" }, button, el("span", { className: "text", dir: "auto" }, clean(text)),
      el("span", { className: "value" }));
    item.dataset.step = step;
    item.addEventListener("click", ({ target }) => {
      if (target === button || window.getSelection().isCollapsed) select(side, side.selected === step ? null : step);
    });
    items.push(item);
  });
  side.list.replaceChildren(...items);
  side.list.scrollTop = 0;
  side.textTitle.textContent = name;
  side.made.textContent = [...Object.entries(about).filter(([key]) => key !== "tokens" && !(key in index.about))
    .map(([key, value]) => `${key} ${value}`), `${about.tokens} tokens`, `${steps.length} steps`,
  `${side.trace.layers.length} layers`].join(" · ");
  side.query.value = "";
  search(side);
}

function select(side, step, scroll = false) {
  for (const each of together(side)) {
    each.selected = step;
    showSelection(each);
    if (scroll && step !== null) reveal(each, step);
  }
  rememberStep(left.selected);
}

function reveal(side, step) {
  const item = side.list.querySelector(`li.step[data-step="${step}"]`), { list } = side;
  if (item && (item.offsetTop < list.scrollTop || item.offsetTop + item.offsetHeight > list.scrollTop + list.clientHeight))
    list.scrollTop = item.offsetTop - list.clientHeight / 3;
}

function showSelection(side) {
  const { selected, view } = side, reads = [], readers = [];
  for (const item of side.list.querySelectorAll("li.step")) {
    const step = Number(item.dataset.step), from = step <= selected;
    const value = selected === null || !view ? NaN : view.values[from ? at(selected, step) : at(step, selected)];
    item.className = "step" + (selected === null ? "" : step === selected ? " selected" : from ? " from" : " by");
    item.style.setProperty("--tint", Number.isNaN(value) ? 0 : view.level(value));
    item.querySelector(".value").textContent = selected === null || !view ? "" : format(value, view.unit);
    item.firstChild.ariaPressed = String(step === selected);
    if (value > 0) (from ? reads : readers).push([step, value]);
  }
  const most = (pairs) => pairs.sort((a, b) => b[1] - a[1]).slice(0, 5).map(([step, value]) => {
    const button = el("button", { type: "button" }, `${step === selected ? "itself" : step} · ${format(value, view.unit)}`);
    button.addEventListener("click", () => select(side, step, true));
    return button;
  });
  const clear = el("button", { type: "button", onclick: () => select(side, null) }, "clear");
  side.selection.replaceChildren(...(selected === null
    ? [el("p", { className: "quiet" }, "Select a step to see where it reads from and who reads it.")]
    : [el("p", {}, el("b", {}, `Step ${selected}`), ` (${side.trace.steps[selected][0]}) `, clear),
      el("p", { className: "from" }, el("span", {}, "reads most from"), ...(reads.length ? most(reads) : ["nothing, or missing"])),
      el("p", { className: "by" }, el("span", {}, "is read most by"), ...(readers.length ? most(readers) : ["no later step"]))]));
  if (side.view) drawOver(side);
}

function walkSteps(side, event) {
  const buttons = [...side.list.querySelectorAll("button")], here = buttons.indexOf(document.activeElement);
  const to = { ArrowDown: here + 1, ArrowUp: here - 1, Home: 0, End: buttons.length - 1 }[event.key];
  if (event.key === "Escape") select(side, null);
  if (here < 0 || !buttons[to]) return;
  buttons[here].tabIndex = -1;
  buttons[to].tabIndex = 0;
  buttons[to].focus();
  event.preventDefault();
}

// --- search ----------------------------------------------------------------------------------------------------------
function search(side) {
  const wanted = side.query.value.trim(), pattern = new RegExp(wanted.replace(/[\\^$.*+?()[\]{}|/]/g, "\\$&"), "giu");
  for (const item of side.list.querySelectorAll("li.step")) {
    const line = item.querySelector(".text"), text = clean(side.trace.steps[item.dataset.step][1]);
    if (!wanted && !line.firstElementChild) continue;
    const parts = [];
    let end = 0;
    for (const { 0: hit, index: start } of wanted ? text.matchAll(pattern) : []) {
      parts.push(text.slice(end, start), el("mark", {}, hit));
      end = start + hit.length;
    }
    line.replaceChildren(...parts, text.slice(end));
  }
  side.hits = [...side.list.querySelectorAll("mark")];
  side.hit = -1;
  if (side.hits.length) showHit(side, 1);
  else side.found.textContent = wanted ? "not found" : "";
}

function showHit(side, move) {
  const { hits, list } = side;
  if (!hits.length) return;
  hits[side.hit]?.classList.remove("current");
  side.hit = (side.hit + move + hits.length) % hits.length;
  const hit = hits[side.hit], item = hit.closest("li");
  hit.classList.add("current");
  side.found.textContent = `${side.hit + 1} of ${hits.length}`;
  const where = hit.getBoundingClientRect(), frame = list.getBoundingClientRect();
  if (where.top < frame.top || where.bottom > frame.bottom)
    list.scrollTop += where.top - frame.top - list.clientHeight / 3;
  for (const each of list.querySelectorAll("li.hit")) each.classList.remove("hit");
  item.classList.add("hit");
}
