// How a map is drawn: the cells in sight, the segments, the numbers of steps, the scale; and over them pointer and selection.
const SEGMENTS = { question: "Q", thinking: "thinking", summary: "summary" };
const LEFT = 48, TOP = 26, RIGHT = 10, BELOW = 100;

// Where everything lies in a side's canvas. A map is as large as its column is wide, however many steps it has, so that nothing
// else on the page moves with it.
function placeOf(side) {
  const width = side.map.clientWidth, size = width - LEFT - RIGHT, n = side.trace.steps.length;
  const { span, row, column } = state.zoom;
  return {
    width, size, n, height: TOP + size + BELOW, cell: size / n / span,
    x: (step) => LEFT + ((step / n - column) / span) * size,
    y: (step) => TOP + ((step / n - row) / span) * size,
    first: [Math.floor(row * n), Math.floor(column * n)],
    last: [Math.min(n, Math.ceil((row + span) * n - 1e-9)), Math.min(n, Math.ceil((column + span) * n - 1e-9))],
  };
}

function drawMap(side) {
  side.place = placeOf(side);
  const { width, height } = side.place;
  if (side.view) paint(side, canvasPen(side.picture, width, height, window.devicePixelRatio || 1));
  drawOver(side);
}

function paint(side, pen) {
  const { place, view } = side, { x, y, size, first, last } = place, end = [TOP + size, LEFT + size];
  for (let query = first[0]; query < last[0]; query++)
    for (let key = first[1]; key < Math.min(query + 1, last[1]); key++) {
      const value = view.values[at(query, key)], fill = Number.isNaN(value) ? null : colour(view.ramp, view.level(value));
      pen.cell(Math.max(x(key), LEFT), Math.max(y(query), TOP), Math.min(x(key + 1), end[1]), Math.min(y(query + 1), end[0]), fill);
    }
  paintSegments(side, pen);
  paintNumbers(place, pen);
  paintScale(place, view, pen);
}

function paintSegments({ trace, place }, pen) {
  const { x, y, n, size } = place, { steps } = trace, ink = themed("ink"), line = Math.min(2, Math.max(1, place.cell / 4));
  const inside = (value, low) => Math.min(Math.max(value, low), low + size);
  const starts = steps.map((_, i) => i).filter((i) => i === 0 || steps[i][0] !== steps[i - 1][0]);
  starts.forEach((start, number) => {
    const stop = starts[number + 1] ?? n, fill = themed(number % 2 ? "edge" : "ink");
    const across = [inside(x(start), LEFT), inside(x(stop), LEFT)], down = [inside(y(start), TOP), inside(y(stop), TOP)];
    if (across[1] > across[0]) {
      pen.rect(across[0], TOP - 6, Math.max(across[1] - across[0] - 1, 1), 3, fill);
      const name = SEGMENTS[steps[start][0]], half = name.length * 3.2;
      const middle = Math.min(Math.max((across[0] + across[1]) / 2, LEFT + half + (start ? 18 : 0)), LEFT + size - half - (stop === n ? 0 : 60));
      if (across[1] - across[0] > 2 * half || steps[start][0] !== "thinking") pen.text(middle, TOP - 10, name, { fill: ink });
    }
    if (down[1] > down[0]) pen.rect(LEFT - 6, down[0], 3, Math.max(down[1] - down[0] - 1, 1), fill);
    if (start === 0) return;
    if (y(start) > TOP && y(start) < TOP + size) pen.rect(LEFT, y(start) - line / 2, inside(x(start), LEFT) - LEFT, line, themed("paper"));
    if (x(start) > LEFT && x(start) < LEFT + size) {
      const from = inside(y(start), TOP);
      pen.rect(x(start) - line / 2, from, line, TOP + size - from, themed("paper"));
    }
  });
}

function paintNumbers({ x, y, size, cell, first, last }, pen) {
  const gap = [1, 2, 5, 10, 20, 50, 100].find((each) => each * cell >= 26) ?? 200, fill = themed("quiet");
  const seen = (value, low) => value >= low && value <= low + size;
  for (let step = Math.ceil(first[0] / gap) * gap; step < last[0]; step += gap)
    if (seen(y(step + 0.5), TOP)) pen.text(LEFT - 10, y(step + 0.5) + 4, String(step), { align: "right", fill });
  for (let step = Math.ceil(first[1] / gap) * gap; step < last[1]; step += gap)
    if (seen(x(step + 0.5), LEFT)) pen.text(x(step + 0.5), TOP + size + 15, String(step), { fill });
  pen.text(LEFT + size / 2, TOP + size + 33, "step read from", { fill });
  pen.text(11, TOP + size / 2, "reading step", { fill, turned: true });
}

function paintScale({ width, size }, view, pen) {
  const y = TOP + size + 48, length = Math.min(width - LEFT - RIGHT, 480), fill = themed("quiet");
  if (view.ticks.length) for (let x = 0; x < length; x += 2) pen.rect(LEFT + x, y, Math.min(2.5, length - x), 10, colour(view.ramp, x / length));
  const ticks = length < 400 ? view.ticks.filter(([part]) => [0, 0.5, 1].includes(part)) : view.ticks;
  for (const [part, text] of ticks) {
    pen.rect(LEFT + part * (length - 1), y + 10, 1, 3, fill);
    pen.text(LEFT + part * length, y + 25, text, { align: part === 0 ? "left" : part === 1 ? "right" : "center", fill });
  }
  pen.text(LEFT, y + 43, view.caption, { align: "left", fill });
  pen.text(LEFT + length, y + 43, "missing", { align: "right", fill });
  pen.cell(LEFT + length - 64, y + 33, LEFT + length - 50, y + 44, null);
}

// --- over the picture ------------------------------------------------------------------------------------------------
function drawOver(side) {
  const { canvas, place, selected } = side, { x, y, size, n, cell, width, height } = place, ratio = window.devicePixelRatio || 1;
  const pen = canvasPen(canvas, width, height, ratio), context = canvas.getContext("2d");
  if (!side.view) return;
  context.save();
  context.setTransform(1, 0, 0, 1, 0, 0);
  context.drawImage(side.picture, 0, 0);
  context.restore();
  context.save();
  context.beginPath();
  context.rect(LEFT - 3, TOP - 3, size + 6, size + 6);
  context.clip();
  if (selected !== null) {
    const veil = new Path2D(), [a, b] = [selected, selected + 1];
    veil.rect(LEFT, TOP, size, size);
    veil.rect(x(0), y(a), x(b) - x(0), cell);
    veil.rect(x(a), y(b), cell, y(n) - y(b));
    context.fillStyle = themed("veil");
    context.fill(veil, "evenodd");
    const [out, line] = cell < 12 ? [1.5, 1.5] : [0, 2.5]; // around small cells, not on them
    pen.frame(x(a) - out, y(a) - out, cell + 2 * out, y(n) - y(a) + 2 * out, themed("by"), line);
    pen.frame(x(0) - out, y(a) - out, x(b) - x(0) + 2 * out, cell + 2 * out, themed("from"), line);
  }
  markDisagreement(side, pen);
  const [query, key] = side.hover ?? side.cursor, grow = Math.max(0, 7 - cell) / 2, wide = cell + 2 * grow;
  pen.frame(x(key) - grow, y(query) - grow, wide, wide, "#000", 4);
  pen.frame(x(key) - grow, y(query) - grow, wide, wide, "#fff", 2);
  context.restore();
  const labels = [[query, LEFT - 19, y(query + 0.5), TOP], [key, x(key + 0.5), TOP + size + 11, LEFT]];
  for (const [step, px, py, low] of labels) {
    const middle = low === TOP ? py : px;
    if (middle < low || middle > low + size) continue;
    pen.rect(px - 13, py - 8, 26, 16, themed("ink"));
    pen.text(px, py + 4, String(step), { fill: themed("paper"), bold: true });
  }
}
