// What is shown, as a file: the picture of a map as PNG or SVG, its numbers as CSV. Numbers and segments alone go into the CSV.
const SAVERS = {
  png(side) {
    const canvas = el("canvas"), { width, height } = side.place, pen = canvasPen(canvas, width, height, 3);
    pen.rect(0, 0, width, height, themed("paper"));
    paint(side, pen);
    canvas.toBlob((blob) => save(blob, side, "png"));
  },
  svg(side) {
    const pen = svgPen(side.place.width, side.place.height);
    paint(side, pen);
    save(new Blob([new XMLSerializer().serializeToString(pen.root)], { type: "image/svg+xml" }), side, "svg");
  },
  csv(side) {
    const columns = columnsOf(side), { steps } = side.trace, rows = [["query_step", "key_step", "query_segment", "key_segment", ...Object.keys(columns)]];
    for (let query = 0; query < steps.length; query++)
      for (let key = 0; key <= query; key++) {
        const numbers = Object.values(columns).map((values) => values[at(query, key)]);
        rows.push([query, key, steps[query][0], steps[key][0], ...numbers.map((value) => (Number.isNaN(value) ? "" : value))]);
      }
    save(new Blob([rows.map((row) => row.join(",") + "\n").join("")], { type: "text/csv" }), side, "csv");
  },
};

function columnsOf(side) {
  if (side === right && state.beside === "difference") {
    const measure = $("measure").value;
    return { [measure]: left.numbers[measure], [`other_${measure}`]: right.numbers[measure], difference: right.view.values };
  }
  if (side === right && causal()) {
    const measure = $("measure").value, { byKnockout, byMap, difference } = right.ranks;
    return { [measure]: right.numbers[measure], kl_nats: lossesOf(right.trace), rank_knockout: byKnockout, rank_map: byMap, difference };
  }
  return { share: side.numbers.share, density: side.numbers.density };
}

function save(blob, side, ending) {
  const words = [side.trace.name, "layer", $("layer").value, "head", $("head").value, ...(ending === "csv" ? [] : [side.view.unit])];
  const name = words.join(" ").replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-/, "").slice(0, 100);
  const link = el("a", { href: URL.createObjectURL(blob), download: `${name}.${ending}` });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}
