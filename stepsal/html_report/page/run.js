// The run as a whole: how many traces are right, what the verdicts say, and the profiles of right and wrong traces by layer.
const GROUP_COLOURS = { right: "rgb(var(--blue))", wrong: "rgb(var(--orange))", "not graded": "var(--quiet)" };

function showRun() {
  const { groups, accuracy, verdicts, profiles, layers } = index.run, percent = (part) => `${(100 * part).toFixed(1)} %`;
  $("run").hidden = index.traces.length < 2;
  const graded = groups.filter(({ name }) => name !== "not graded");
  const facts = el("div", { className: "facts" });
  if (accuracy) {
    const right = groups.find(({ name }) => name === "right")?.traces ?? 0, all = graded.reduce((sum, { traces }) => sum + traces, 0);
    facts.append(el("p", { id: "accuracy" }, el("b", {}, percent(accuracy[0])), " right"),
      el("p", { className: "quiet" }, `${right} of ${all} graded traces; 95 %: ${percent(accuracy[1])} to ${percent(accuracy[2])}`));
  } else facts.append(el("p", { id: "accuracy" }, el("b", {}, String(index.traces.length)), " traces, none graded"));
  const head = (text) => el("th", { scope: "col" }, text);
  facts.append(el("table", { id: "verdict-counts" },
    el("thead", {}, el("tr", {}, head("verdict"), ...groups.map(({ name, traces }) => head(`${name} (${traces})`)))),
    el("tbody", {}, ...verdicts.map(({ failure, counts }) => el("tr", {}, el("th", { scope: "row" }, failure),
      ...counts.map(([yes, no, unknown]) => el("td", {}, yes + no ? `${yes} of ${yes + no}` : "–",
        ...(unknown ? [el("br"), el("small", {}, `${unknown} not judged`)] : []))))))));
  if (layers) facts.append(el("p", { className: "quiet" }, "Lines are means over traces, bands their 95 % intervals (bootstrap)."));
  const charts = el("div", { className: "charts" }, ...profiles.map(({ name, label, line, groups: means }) => {
    const series = means.map(({ mean, low, high }, i) => ({ values: mean, low, high, colour: GROUP_COLOURS[groups[i].name] }));
    const figure = chart({ label, line, layers, series });
    figure.dataset.metric = name;
    figure.firstElementChild.append(el("span", { className: "key" }, ...means.map(({ traces }, i) => {
      const swatch = el("i", {});
      swatch.style.background = GROUP_COLOURS[groups[i].name];
      return el("span", {}, swatch, `${groups[i].name} (${traces})`);
    })));
    return figure;
  }));
  if (!layers) charts.append(el("p", { className: "quiet" }, "The maps hold different layers, so there is no profile of all of them."));
  $("run-content").replaceChildren(facts, charts);
}
