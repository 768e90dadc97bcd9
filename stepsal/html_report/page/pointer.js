// What pointer and keys do in a map: show the value beside the cell, select, zoom, move.
const ZOOM_STEP = 1.5, FEWEST_STEPS = 4;

function cellAt(side, x, y) {
  const { place } = side, { span, row, column } = state.zoom;
  if (!side.view || x < LEFT || y < TOP || x >= LEFT + place.size || y >= TOP + place.size) return null;
  const key = Math.floor(((x - LEFT) / place.size * span + column) * place.n);
  const query = Math.floor(((y - TOP) / place.size * span + row) * place.n);
  return key >= 0 && key <= query && query < place.n ? [query, key] : null;
}

function pointAt(side, cell) { // null: no cell is pointed at
  for (const each of together(side)) {
    each.hover = cell;
    drawOver(each);
  }
  showTip(side);
  const pointed = cell ?? [];
  for (const each of together(side))
    for (const item of each.list.querySelectorAll("li.step"))
      item.classList.toggle("pointed", pointed.includes(Number(item.dataset.step)));
}

// --- the value beside the cell ---------------------------------------------------------------------------------------
function showTip(side) {
  for (const each of sides) if (each !== side && each.tip) each.tip.hidden = true;
  const cell = side.hover ?? (side.keys ? side.cursor : null), { tip, place } = side;
  tip.hidden = cell === null || !side.view;
  if (tip.hidden) return;
  const [query, key] = cell, { steps } = side.trace;
  const name = (step) => `step ${step} (${steps[step][0]})`;
  const text = (step) => el("p", { className: "text", dir: "auto" }, el("b", {}, `${step} `), clean(steps[step][1]));
  tip.replaceChildren(
    el("p", { className: "values" }, ...valuesAt(side, query, key)),
    el("p", { className: "pair" }, `S${name(query).slice(1)} reads from ${query === key ? "itself" : name(key)}`),
    text(query), ...(query === key ? [] : [text(key)]));
  // To the right, and rather above: there the map is empty. On narrow pages it stands above or below the cell.
  const gap = 14, { offsetWidth: width, offsetHeight: height } = tip, x = place.x(key), y = place.y(query), { cell: wide } = place;
  const edge = document.documentElement.clientWidth - side.map.getBoundingClientRect().left - 8;
  const beside = x + wide + gap + width <= edge ? x + wide + gap : x - gap - width, above = y - gap - height;
  const across = beside >= 0 ? beside : Math.min(Math.max(x + wide / 2 - width / 2, 0), edge - width);
  const down = beside >= 0 ? Math.max(y + wide / 2 - 0.7 * height, 0) : above >= -TOP ? above : y + wide + gap;
  Object.assign(tip.style, { left: `${across}px`, top: `${down}px` });
}

function valuesAt(side, query, key) {
  const cell = at(query, key), measure = $("measure").value, lines = [];
  if (side === right && state.beside === "difference")
    lines.push([right.view.values[cell], right.view.unit, ` of ${measure}`], ...sides.map(({ numbers, trace }) => [numbers[measure][cell], measure, ` in ${trace.name}`]));
  else if (side === right && causal()) {
    const { byKnockout, byMap, difference } = right.ranks, of = (rank) => (Number.isNaN(rank) ? "no rank" : `rank ${rank.toFixed(2)}`);
    lines.push([lossesOf(right.trace)[cell], "nats", ` lost without it, ${of(byKnockout[cell])}`],
      [right.numbers[measure][cell], measure, ` in the map, ${of(byMap[cell])}`]);
    if (!Number.isNaN(difference[cell])) lines.push([difference[cell], "ranks", " knockout less map"]);
  } else lines.push([side.numbers.share[cell], "share", " of the row’s influence"], [side.numbers.density[cell], "density", " per token pair"]);
  return lines.flatMap(([value, unit, words]) => [el("b", {}, format(value, unit)), words, el("br")]);
}

// --- select and move -------------------------------------------------------------------------------------------------
// A click and Enter do the same: the cell's reading step is selected, and is selected no more the second time.
function activate(side, cell) {
  const again = side.selected === cell[0] && side.cursor.join() === cell.join();
  for (const each of together(side)) each.cursor = cell;
  select(side, again ? null : cell[0], true);
}

function moveCursor(side, event) {
  const n = side.place.n, [query, key] = side.cursor;
  const to = { ArrowUp: [query - 1, key], ArrowDown: [query + 1, key], PageUp: [query - 10, key], PageDown: [query + 10, key],
    ArrowLeft: [query, key - 1], ArrowRight: [query, key + 1], Home: [query, 0], End: [query, query] }[event.key];
  if (event.ctrlKey || event.metaKey || event.altKey || !side.view) return;
  side.keys = true;
  if (event.key === "Enter" || event.key === " ") activate(side, side.cursor);
  else if (event.key === "Escape") select(side, null);
  else if (event.key === "+" || event.key === "=") zoomAround(side, 1 / ZOOM_STEP);
  else if (event.key === "-") zoomAround(side, ZOOM_STEP);
  else if (event.key === "0") showWhole();
  else if (!to) return;
  else {
    const row = Math.min(Math.max(to[0], 0), n - 1), cell = [row, Math.min(Math.max(to[1], 0), row)];
    for (const each of together(side)) Object.assign(each, { cursor: cell, hover: null });
    bringIntoSight(cell, n);
    pointAt(side, null);
  }
  event.preventDefault();
}

// --- zoom and move the map -------------------------------------------------------------------------------------------
function lookAt(span, row, column) {
  const held = (start) => Math.min(Math.max(start, 0), 1 - span);
  state.zoom = { span, row: held(row), column: held(column) };
  for (const side of sides) if (side.view) drawMap(side);
  for (const side of sides) {
    side.map.classList.toggle("zoomed", span < 1);
    side.tools.out.disabled = side.tools.whole.disabled = span >= 1;
  }
}

const showWhole = () => lookAt(1, 0, 0);

// Zoom so that this point, as a fraction of what is in sight, stays where it is.
function zoomAt(side, factor, [down, across]) {
  const { span, row, column } = state.zoom;
  const wanted = Math.min(Math.max(span * factor, Math.min(1, FEWEST_STEPS / side.place.n)), 1);
  lookAt(wanted, row + down * (span - wanted), column + across * (span - wanted));
  showTip(side);
}

function zoomAround(side, factor) { // the cursor's cell, where it is in sight
  const { span, row, column } = state.zoom, n = side.place.n;
  const parts = [((side.cursor[0] + 0.5) / n - row) / span, ((side.cursor[1] + 0.5) / n - column) / span];
  zoomAt(side, factor, parts.every((part) => part >= 0 && part <= 1) ? parts : [0.5, 0.5]);
}

function bringIntoSight([query, key], n) {
  const { span, row, column } = state.zoom;
  const held = (start, step) => Math.min(Math.max(start, (step + 1) / n - span), step / n);
  lookAt(span, held(row, query), held(column, key));
}

function listenTo(side) {
  const { map, canvas } = side, fingers = new Map();
  let pressed = null, moved = false, apart = 0;
  const where = (event) => [(event.offsetY - TOP) / side.place.size, (event.offsetX - LEFT) / side.place.size];
  map.addEventListener("keydown", (event) => moveCursor(side, event));
  map.addEventListener("focus", () => {
    side.keys = map.matches(":focus-visible");
    showTip(side);
  });
  map.addEventListener("blur", () => {
    side.keys = false;
    showTip(side);
  });
  canvas.addEventListener("pointerdown", (event) => {
    fingers.set(event.pointerId, [event.offsetX, event.offsetY]);
    pressed = { x: event.offsetX, y: event.offsetY, ...state.zoom };
    moved = fingers.size > 1;
    apart = 0;
    side.keys = false;
  });
  canvas.addEventListener("pointermove", (event) => {
    if (fingers.has(event.pointerId)) fingers.set(event.pointerId, [event.offsetX, event.offsetY]);
    if (fingers.size === 2) {
      const [a, b] = [...fingers.values()], now = Math.hypot(a[0] - b[0], a[1] - b[1]);
      const middle = [((a[1] + b[1]) / 2 - TOP) / side.place.size, ((a[0] + b[0]) / 2 - LEFT) / side.place.size];
      if (apart) zoomAt(side, apart / now, middle);
      apart = now;
      return;
    }
    const far = pressed && Math.hypot(event.offsetX - pressed.x, event.offsetY - pressed.y) > 4;
    if (far && state.zoom.span < 1 && !moved) {
      moved = true;
      canvas.setPointerCapture(event.pointerId);
    }
    if (pressed && moved && fingers.size === 1 && state.zoom.span < 1) {
      const scale = pressed.span / side.place.size;
      lookAt(pressed.span, pressed.row - (event.offsetY - pressed.y) * scale, pressed.column - (event.offsetX - pressed.x) * scale);
    }
    side.keys = false;
    pointAt(side, cellAt(side, event.offsetX, event.offsetY));
  });
  for (const end of ["pointerup", "pointercancel"])
    canvas.addEventListener(end, (event) => {
      fingers.delete(event.pointerId);
      pressed = null;
    });
  canvas.addEventListener("pointerleave", (event) => event.pointerType === "mouse" && pointAt(side, null));
  canvas.addEventListener("click", (event) => {
    const cell = cellAt(side, event.offsetX, event.offsetY);
    if (cell && !moved) activate(side, cell);
    pointAt(side, cell); // the value stays where the finger was
    moved = false;
  });
  canvas.addEventListener("wheel", (event) => {
    if (!(event.ctrlKey || event.metaKey)) return; // the page's own scrolling stays
    event.preventDefault();
    zoomAt(side, Math.exp(Math.min(Math.max(event.deltaY, -60), 60) / 120), where(event));
  }, { passive: false });
}
