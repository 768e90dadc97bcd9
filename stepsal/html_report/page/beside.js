// What is beside the map: another trace, by how much it differs, or the trace's knockout. Both maps have the same layer, head and measure.
function kindsBeside() {
  const kinds = [["", "nothing"]];
  if (index.traces.length > 1) kinds.push(["trace", "another trace"], ["difference", "difference to another trace"]);
  if (index.traces.some(({ knockout }) => knockout)) kinds.push(["knockout", "knockout"], ["ranks", "knockout against map"]);
  return kinds;
}

function withOther(beside, name, trace, then) { // the trace beside this one, or null
  if (!kindsBeside().some(([kind]) => kind === beside) || beside === "") return then(null);
  if (beside === "knockout" || beside === "ranks") return then(trace);
  if (name !== null && named(name) === null) notice(`This report holds no trace ${name}.`);
  withTrace(named(name) ?? counterpart(trace.number), then);
}

// The same problem before or after an intervention, else a trace of as many steps, else the next one.
function counterpart(number) {
  const problem = (each) => index.traces[each].name.replace(/ \(\d+\)$/, "").split("/").at(-1);
  const others = order.filter((each) => each !== number);
  return others.find((each) => problem(each) === problem(number)) ??
    others.find((each) => index.traces[each].steps === index.traces[number].steps) ?? others[0];
}

function showBeside(other, changed) {
  const measure = $("measure").value, ends = [[left.numbers[measure], left.trace.steps]], own = other !== null && !causal();
  Object.assign(right, { trace: other, view: null, hover: null, numbers: other && numbersOf(other) });
  right.maps.hidden = other === null;
  right.texts.hidden = !own;
  $("main").classList.toggle("beside", other !== null);
  $("main").classList.toggle("two-texts", own);
  $("with-label").hidden = !own;
  right.below.replaceChildren();
  left.mapTitle.textContent = own ? left.trace.name : "Who reads whom";
  if (own) $("with").value = other.name;
  if (changed || own !== right.list.childElementCount > 0) {
    Object.assign(right, { selected: null, cursor: [0, 0] });
    right.list.replaceChildren();
    if (own) showSteps(right);
  }
  if (other === null) {
    left.view = influenceView(left, endsOf(ends));
    return;
  }
  const shown = BESIDE[state.beside](measure);
  if (shown.ends) ends.push(shown.ends);
  left.view = influenceView(left, endsOf(ends));
  right.mapTitle.textContent = shown.title;
  right.map.ariaLabel = `${shown.title}, ${other.steps.length} steps`;
  if (shown.message) right.below.append(el("p", { className: "message" }, shown.message));
  else right.view = shown.view ?? influenceView(right, endsOf(ends));
  if (changed && right.view && !linked()) right.cursor = strongest(right);
}

const BESIDE = {
  knockout: knockoutBeside,
  ranks: knockoutBeside,
  trace(measure) {
    if (!right.numbers) return { title: right.trace.name, message: `The map of ${right.trace.name} does not hold these layers or this head.` };
    return { title: right.trace.name, ends: [right.numbers[measure], right.trace.steps] };
  },
  difference(measure) {
    const title = `${right.trace.name} less ${left.trace.name}`, steps = [left, right].map(({ trace }) => trace.steps.length);
    if (steps[0] !== steps[1])
      return { title, message: `There is a difference only between traces of as many steps: these have ${steps[0]} and ${steps[1]}.` };
    if (!right.numbers) return BESIDE.trace(measure);
    const values = right.numbers[measure].map((value, cell) => value - left.numbers[measure][cell]);
    return { title, view: divergingView(values, `${measure} difference`, `difference of ${measure}: blue less, red more`, right.trace.steps) };
  },
};
