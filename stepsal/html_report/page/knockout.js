// The knockout beside the map: what a step's predictions lose without an earlier one, and where the map ranks that otherwise.
//   Of a reading step the earlier steps that were knocked out are ranked twice, by the knockout and by the map as it is shown,
//   from 0 (least) to 1 (most). Their difference is above 0 where the map misses a cause, and below 0 where it has an entry that
//   causes nothing.
const FAR_APART = 0.5; // a difference of ranks that is pointed out
const LEAST_RANKED = 4; // earlier steps that a rank correlation needs, as in `stepsal faithfulness`

function lossesOf(trace) { // in nats, of the lower triangle; NaN was not measured
  trace.losses ??= Float64Array.from(new Float32Array(bytes(trace.knockout.kl)));
  return trace.losses;
}

function ranksOf(values) { // from 0 to 1; ties share their mean rank
  const order = values.map((_, i) => i).sort((a, b) => values[a] - values[b]), ranks = new Array(values.length);
  for (let start = 0, stop = 0; start < order.length; start = stop) {
    while (stop < order.length && values[order[stop]] === values[order[start]]) stop++;
    for (let i = start; i < stop; i++) ranks[order[i]] = (start + stop - 1) / 2 / (values.length - 1);
  }
  return ranks;
}

function correlation(x, y) {
  const middle = 0.5, sum = (a, b) => a.reduce((total, each, i) => total + (each - middle) * (b[i] - middle), 0);
  return sum(x, y) / Math.sqrt(sum(x, x) * sum(y, y));
}

function disagreement(trace, values) {
  const losses = lossesOf(trace), n = trace.steps.length, blank = () => new Float64Array(at(n, 0)).fill(NaN);
  const found = { difference: blank(), byKnockout: blank(), byMap: blank(), correlations: [] };
  for (let query = 0; query < n; query++) {
    const cells = Array.from({ length: query }, (_, key) => at(query, key)).filter((cell) => !Number.isNaN(losses[cell] + values[cell]));
    if (cells.length < 2) continue;
    const [byKnockout, byMap] = [losses, values].map((each) => ranksOf(cells.map((cell) => each[cell])));
    cells.forEach((cell, i) => {
      found.byKnockout[cell] = byKnockout[i];
      found.byMap[cell] = byMap[i];
      found.difference[cell] = byKnockout[i] - byMap[i];
    });
    const rho = cells.length < LEAST_RANKED ? NaN : correlation(byKnockout, byMap);
    if (!Number.isNaN(rho)) found.correlations.push(rho);
  }
  return found;
}

function knockoutBeside(measure) {
  const { trace } = right, title = state.beside === "knockout" ? "Knockout" : "Knockout against map";
  if (!trace.knockout) return { title, message: `There is no knockout of ${trace.name} in this report.` };
  const losses = lossesOf(trace), ranks = disagreement(trace, right.numbers[measure]);
  Object.assign(right, { ranks });
  showDisagreement(ranks);
  if (state.beside === "knockout")
    return { title, view: logarithmicView(losses, "nats", `lost without the step (KL, ${trace.knockout.mode})`, endsOf([[losses, trace.steps]])) };
  const caption = "red: a cause that the map misses; blue: no cause";
  return { title, view: signedView(ranks.difference, "ranks", caption, 1, [-1, -0.25, 0, 0.25, 1]) };
}

function showDisagreement({ difference, correlations }) {
  const { steps } = right.trace, missed = [], idle = [];
  for (let query = 0; query < steps.length; query++)
    for (let key = 0; key < query; key++) {
      const value = difference[at(query, key)];
      if (Math.abs(value) >= FAR_APART) (value > 0 ? missed : idle).push([query, key, value]);
    }
  const list = (words, pairs, className) => {
    const most = pairs.sort((a, b) => Math.abs(b[2]) - Math.abs(a[2])).slice(0, 6).map(([query, key, value]) => {
      const button = el("button", { type: "button", title: `Step ${query} reads from step ${key}` }, `${query} ← ${key} · ${format(value, "ranks")}`);
      button.addEventListener("click", () => goTo([query, key]));
      return button;
    });
    return el("p", { className }, el("span", {}, `${words} (${pairs.length})`), ...most);
  };
  const mean = correlations.reduce((a, b) => a + b, 0) / correlations.length;
  const found = correlations.length
    ? [el("b", {}, mean.toFixed(2).replace("-", "−")), ` rank correlation of map and knockout (mean over ${correlations.length} reading steps)`]
    : [`No reading step has ${LEAST_RANKED} earlier steps that were knocked out: there is no rank correlation.`];
  right.below.append(el("div", { className: "disagreement" }, el("p", {}, ...found),
    list("causes that the map misses", missed, "missed"), list("map entries that cause nothing", idle, "idle")));
}

function goTo(cell) {
  for (const side of sides) Object.assign(side, { cursor: cell, hover: null, keys: side === right });
  bringIntoSight(cell, right.place.n);
  pointAt(right, null);
}

// Where map and knockout are far apart, in both maps; too small to see below some pixels.
function markDisagreement(side, pen) {
  if (!causal() || !right.view || side.place.cell < 5) return;
  const { x, y, cell, first, last } = side.place, line = Math.min(2.5, cell / 5), [missed, idle] = [themed("missed"), themed("idle")];
  for (let query = first[0]; query < last[0]; query++)
    for (let key = first[1]; key < Math.min(query, last[1]); key++) {
      const value = right.ranks.difference[at(query, key)];
      if (Math.abs(value) < FAR_APART || Number.isNaN(value)) continue;
      pen.frame(x(key) + line / 2 + 0.5, y(query) + line / 2 + 0.5, cell - line - 1, cell - line - 1, "#fff", line + 1);
      pen.frame(x(key) + line / 2 + 0.5, y(query) + line / 2 + 0.5, cell - line - 1, cell - line - 1, value > 0 ? missed : idle, line);
    }
}
