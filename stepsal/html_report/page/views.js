// What a map can show: values of a lower triangle, with the colours and the words for them.
//   values, unit      the numbers, and how they are written
//   level(value)      where a value is on the colour scale, 0 to 1
//   ramp              the colours of that scale
//   ticks, caption    what stands below the scale
const VIRIDIS = ramp("440154 481a6c 472f7d 414487 39568c 31688e 2a788e 23888e 1f988b 22a884 35b779 54c568 7ad151 a5db36 d2e21b fde725");
const CAPTIONS = { density: "influence per token pair", share: "share of the row's influence" };

function ramp(hexes) {
  return hexes.split(" ").map((hex) => [0, 2, 4].map((start) => parseInt(hex.slice(start, start + 2), 16)));
}

const SHADES = 512, shades = new WeakMap(); // of a ramp: a long map has ten thousand cells

function colour(colours, part) {
  if (!shades.has(colours)) shades.set(colours, Array.from({ length: SHADES + 1 }, (_, i) => between(colours, i / SHADES)));
  return shades.get(colours)[Math.round(part * SHADES)];
}

function between(colours, part) {
  const place = part * (colours.length - 1), low = Math.min(Math.floor(place), colours.length - 2);
  return `rgb(${colours[low].map((a, i) => Math.round(a + (colours[low + 1][i] - a) * (place - low)))})`;
}

// The ends of a logarithmic scale. It is that of the thinking and the summary: the question was given, and its own row may be
// far larger.
function endsOf(pairs) {
  const parts = pairs.map(([values, steps]) => {
    const answer = steps.findIndex(([segment]) => segment !== "question");
    const rows = answer > 0 ? values.subarray(at(answer, 0)) : values;
    return rows.some((value) => value > 0) ? rows : values;
  });
  const top = Math.max(...parts.map((part) => part.reduce((a, b) => (b > a ? b : a), 0)));
  const least = Math.min(...parts.map((part) => part.reduce((a, b) => (b > 0 && b < a ? b : a), top)));
  return { top, low: Math.max(least, top / 1000) };
}

function logarithmicView(values, unit, caption, { low, top }) {
  const level = (value) => {
    if (low === top) return value < top ? 0 : 1;
    return value <= low ? 0 : value >= top ? 1 : Math.log(value / low) / Math.log(top / low);
  };
  const parts = top === 0 ? [] : low === top ? [1] : [0, 1 / 3, 2 / 3, 1];
  const ticks = parts.map((part) => [part, (part ? "" : "≤ ") + format(low * (top / low) ** part, unit, 2)]);
  return { values, unit, level, ramp: VIRIDIS, ticks, caption: top > 0 ? caption : "no positive value in this view" };
}

// A difference: white, or black, where there is none. The colours go by its square root, so that small ones show, too.
const DIVERGING = {
  light: ramp("053061 2166ac 4393c3 92c5de d1e5f0 f7f7f7 fddbc7 f4a582 d6604d b2182b 67001f"),
  dark: ramp("9ecbff 5ea3ea 3c7cc4 2a5487 1f3350 1c2027 512a22 8a3d2c c35a3f f0876a ffc0aa"),
};

function divergingView(values, unit, caption, steps) {
  const answer = steps.findIndex(([segment]) => segment !== "question"), rows = values.subarray(at(Math.max(answer, 0), 0));
  const top = rows.reduce((a, b) => (Math.abs(b) > a ? Math.abs(b) : a), 0);
  return signedView(values, unit, caption, top, top ? [-1, -0.25, 0, 0.25, 1].map((part) => part * top) : [0]);
}

function signedView(values, unit, caption, top, marks) {
  const level = (value) => top === 0 ? 0.5 : 0.5 + 0.5 * Math.sign(value) * Math.sqrt(Math.min(Math.abs(value) / top, 1));
  const ticks = marks.map((value) => [level(value), format(value, unit, 2)]);
  return { values, unit, level, get ramp() { return DIVERGING[dark() ? "dark" : "light"]; }, ticks, caption };
}

function influenceView(side, ends) {
  const measure = $("measure").value;
  return logarithmicView(side.numbers[measure], measure, CAPTIONS[measure], ends);
}
