// Puts the page together: what is drawn when something is chosen, the theme, and who listens to what.
function build(side, name) {
  const maps = $("map-template").content.cloneNode(true).firstElementChild, texts = $("text-template").content.cloneNode(true).firstElementChild;
  maps.id = `map-${name}`;
  texts.id = `text-${name}`;
  Object.assign(side, {
    maps, texts, map: maps.querySelector(".map"), canvas: maps.querySelector("canvas"), picture: el("canvas"), tip: maps.querySelector(".tip"),
    mapTitle: maps.querySelector("h2"), below: maps.querySelector(".below"), textTitle: texts.querySelector("h2"),
    made: texts.querySelector(".made"), selection: texts.querySelector(".selection"), list: texts.querySelector(".steps"),
    query: texts.querySelector("input"), found: texts.querySelector(".found"), hits: [], hit: -1,
    tools: Object.fromEntries([...maps.querySelectorAll("[data-tool]")].map((button) => [button.dataset.tool, button])),
  });
  $("main").insertBefore(maps, $("depth"));
  $("main").insertBefore(texts, $("depth"));
  listenTo(side);
  side.list.addEventListener("keydown", (event) => walkSteps(side, event));
  side.query.addEventListener("input", () => search(side));
  side.query.addEventListener("keydown", (event) => event.key === "Enter" && showHit(side, event.shiftKey ? -1 : 1));
  side.tools.in.addEventListener("click", () => zoomAround(side, 1 / ZOOM_STEP));
  side.tools.out.addEventListener("click", () => zoomAround(side, ZOOM_STEP));
  side.tools.whole.addEventListener("click", showWhole);
  for (const [name, saver] of Object.entries(SAVERS)) side.tools[name].addEventListener("click", () => side.view && saver(side));
  new ResizeObserver(() => side.trace && side.map.clientWidth && side.map.clientWidth !== side.place?.width && drawMap(side)).observe(side.map);
}

function fill(select, options, value) {
  select.replaceChildren(...options.map(([value, text]) => el("option", { value }, text)));
  select.value = options.some(([each]) => each === value) ? value : options[0][0];
}

function showTraces(trace, other, said) {
  const { layers, bands, heads, steps } = trace, changed = trace !== left.trace;
  const besides = right.trace, span = (list) => (list.length > 1 ? `${list[0]}–${list.at(-1)}` : String(list[0]));
  fill($("layer"), [["all", `mean of all ${layers.length}`],
    ...Object.entries(bands).map(([name, held]) => [name, `mean of ${name}, ${span(held)}`]),
    ...layers.map((layer) => [String(layer), String(layer)])], said.get("layer"));
  fill($("head"), heads.map((head, i) => [i ? head : "mean", head]), said.get("head"));
  fill($("measure"), [["share", "share"], ["density", "density"]], said.get("measure"));
  fill($("beside"), kindsBeside(), said.get("beside"));
  $("beside-label").hidden = $("beside").length === 1;
  state.beside = other ? $("beside").value : "";
  Object.assign(left, { trace, hover: null });
  if (changed) {
    Object.assign(left, { selected: null, cursor: [0, 0] });
    state.zoom = { span: 1, row: 0, column: 0 };
    left.map.ariaLabel = `Step map of ${trace.name}, ${steps.length} steps`;
    $("loss").textContent = `${(50 * Math.expm1(trace.scale[1])).toFixed(3)} %`;
    showSteps(left);
    markListed();
  }
  left.numbers = numbersOf(trace);
  showBeside(other, other !== besides);
  if (changed) left.cursor = strongest(left);
  const step = said.has("step") ? Number(said.get("step")) : null;
  left.selected = Number.isInteger(step) && step < steps.length ? step : null;
  if (linked()) Object.assign(right, { selected: left.selected, cursor: left.cursor });
  lookAt(state.zoom.span, state.zoom.row, state.zoom.column);
  for (const side of sides) if (side.trace) showSelection(side);
  if (changed && left.selected !== null) reveal(left, left.selected);
  showDepth();
}

function strongest({ view, trace }) {
  let best = [trace.steps.length - 1, 0];
  for (let query = 0; query < trace.steps.length; query++)
    for (let key = 0; key < query; key++)
      if (view.values[at(query, key)] > (view.values[at(...best)] || 0)) best = [query, key];
  return best;
}

// --- theme -----------------------------------------------------------------------------------------------------------
const prefersDark = matchMedia("(prefers-color-scheme: dark)");

function dark() {
  return (document.documentElement.dataset.theme ?? (prefersDark.matches ? "dark" : "light")) === "dark";
}

function showTheme() {
  $("theme").textContent = dark() ? "light" : "dark";
  palette = {};
  $("theme").title = `Show the page in ${dark() ? "light" : "dark"} colours`;
  for (const side of sides) if (side.place) drawMap(side);
}

$("theme").addEventListener("click", () => {
  document.documentElement.dataset.theme = dark() ? "light" : "dark";
  showTheme();
});
prefersDark.addEventListener("change", showTheme);

// --- the start -------------------------------------------------------------------------------------------------------
document.title = $("title").textContent = index.title;
$("about").textContent = [...["model", "objective", "rule", "score"].filter((key) => key in index.about && (key !== "score" || index.about.score !== "loss"))
  .map((key) => (key === "model" ? index.about.model : `${key} ${index.about[key]}`)),
`${index.traces.length} trace${index.traces.length === 1 ? "" : "s"}`].join(" · ");
build(left, "left");
build(right, "right");
fill($("with"), order.map((number) => [index.traces[number].name, index.traces[number].name]));
showRun();
listenToList();
showList();
for (const id of CHOICES) $(id).addEventListener("change", () => choose({ [id]: $(id).value }));
addEventListener("hashchange", showAddress);
showTheme();
showAddress();
