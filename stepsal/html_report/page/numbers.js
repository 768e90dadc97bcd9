// Which numbers are shown: stored 16-bit masses -> density and share of the chosen layers and head, and how they are written.
function bytes(text) {
  return Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0)).buffer;
}

function chosenLayers(trace) {
  const chosen = $("layer").value;
  return chosen === "all" ? trace.layers : trace.bands[chosen] ?? [Number(chosen)].filter((layer) => trace.layers.includes(layer));
}

function numbersOf(trace) { // of the lower triangle; NaN is missing
  const n = trace.steps.length, cells = at(n, 0), [low, step] = trace.scale;
  trace.codes ??= new Uint16Array(bytes(trace.mass));
  trace.counts ??= new Uint32Array(bytes(trace.pairs));
  const layers = chosenLayers(trace), head = $("head").value === "mean" ? 0 : trace.heads.indexOf($("head").value, 1);
  if (!layers.length || head < 0) return null; // the other trace's map may hold other layers
  const density = new Float64Array(cells), share = new Float64Array(cells);
  for (const layer of layers) {
    const start = (trace.layers.indexOf(layer) * trace.heads.length + head) * cells;
    const mass = Float64Array.from(trace.codes.subarray(start, start + cells), (code) =>
      code === 0 ? 0 : code === 65535 ? NaN : Math.exp(low + (code - 1) * step));
    for (let query = 0; query < n; query++) {
      const row = at(query, 0), sum = mass.subarray(row, row + query + 1).reduce((a, b) => a + b, 0);
      for (let cell = row; cell <= row + query; cell++) {
        density[cell] += (trace.counts[cell] ? mass[cell] / trace.counts[cell] : NaN) / layers.length;
        share[cell] += mass[cell] / sum / layers.length; // 0 / 0: missing
      }
    }
  }
  return { density, share };
}

function scientific(value, digits) {
  const size = Math.abs(value);
  if (value === 0) return "0";
  if (size >= 0.001 && size < 1000) return String(Number(value.toPrecision(digits))).replace("-", "−");
  const [mantissa, power] = value.toExponential(digits - 1).split("e");
  const raised = [...String(Number(power))].map((letter) => "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"["-0123456789".indexOf(letter)]);
  return `${mantissa.replace("-", "−")} × 10${raised.join("")}`;
}

const signed = (write) => (value, digits) => (value > 0 ? "+" : value < 0 ? "−" : "") + write(Math.abs(value), digits);
const FORMATS = {
  share: (value, digits) => (value > 0 && value < 0.0001 ? "< 0.01 %" : `${Number((100 * value).toPrecision(digits))} %`),
  density: scientific,
  nats: (value, digits) => `${scientific(value, digits)} nats`,
  ranks: signed((value, digits) => String(Number(value.toPrecision(Math.min(digits, 2))))),
  "share difference": signed((value, digits) => `${Number((100 * value).toPrecision(digits))} points`),
  "density difference": signed(scientific),
};

function format(value, unit = $("measure").value, digits = 3) {
  return Number.isNaN(value) ? "missing" : FORMATS[unit](value, digits);
}
