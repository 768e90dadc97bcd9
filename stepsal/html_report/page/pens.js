// What draws a map: a canvas on the screen and for PNG, or an SVG document. Both have the same few strokes.
const FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif";
const probe = document.body.appendChild(el("span", { hidden: true }));

let palette = {}; // emptied when the theme changes

function themed(name) { // a colour of the style sheet, as it is in the theme of now
  if (!(name in palette)) {
    probe.style.color = `var(--${name})`;
    palette[name] = getComputedStyle(probe).color;
  }
  return palette[name];
}

function canvasPen(canvas, width, height, ratio) {
  canvas.width = Math.round(width * ratio);
  canvas.height = Math.round(height * ratio);
  const pen = canvas.getContext("2d");
  let hatched = null;
  const snap = (value) => Math.round(value * ratio) / ratio; // whole device pixels: no seams
  pen.scale(ratio, ratio);
  return {
    cell(x, y, x2, y2, fill) {
      pen.fillStyle = fill ?? (hatched ??= pen.createPattern(hatchTile(), "repeat"));
      pen.fillRect(snap(x), snap(y), snap(x2) - snap(x), snap(y2) - snap(y));
    },
    rect(x, y, width, height, fill) {
      pen.fillStyle = fill;
      pen.fillRect(x, y, width, height);
    },
    frame(x, y, width, height, stroke, line) {
      Object.assign(pen, { strokeStyle: stroke, lineWidth: line }).strokeRect(x, y, width, height);
    },
    text(x, y, text, { align = "center", fill, turned = false, bold = false }) {
      pen.save();
      Object.assign(pen, { textAlign: align, fillStyle: fill, font: `${bold ? "bold " : ""}12px ${FONT}` });
      pen.translate(x, y);
      if (turned) pen.rotate(-Math.PI / 2);
      pen.fillText(text, 0, 0);
      pen.restore();
    },
  };
}

function hatchTile() {
  const tile = el("canvas", { width: 6, height: 6 }), pen = tile.getContext("2d");
  pen.fillStyle = themed("ground");
  pen.fillRect(0, 0, 6, 6);
  pen.strokeStyle = themed("edge");
  for (const shift of [-6, 0, 6]) pen.stroke(new Path2D(`M${shift} 6 l6 -6`));
  return tile;
}

function svg(tag, attributes, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

function svgPen(width, height) {
  const short = (value) => Number(value.toFixed(2));
  const root = svg("svg", { width, height, viewBox: `0 0 ${width} ${height}`, "font-family": FONT, "font-size": 12 });
  const hatch = svg("pattern", { id: "missing", width: 6, height: 6, patternUnits: "userSpaceOnUse" },
    svg("rect", { width: 6, height: 6, fill: themed("ground") }), svg("path", { d: "M0 6l6-6", stroke: themed("edge") }));
  root.append(svg("defs", {}, hatch), svg("rect", { width, height, fill: themed("paper") }));
  const rect = (x, y, width, height, more) =>
    root.append(svg("rect", { x: short(x), y: short(y), width: short(width), height: short(height), ...more }));
  return {
    root,
    cell: (x, y, x2, y2, fill) =>
      rect(x, y, x2 - x, y2 - y, { fill: fill ?? "url(#missing)", "shape-rendering": "crispEdges" }),
    rect: (x, y, width, height, fill) => rect(x, y, width, height, { fill }),
    frame: (x, y, width, height, stroke, line) => rect(x, y, width, height, { fill: "none", stroke, "stroke-width": line }),
    text: (x, y, text, { align = "center", fill, turned = false, bold = false }) =>
      root.append(svg("text", {
        transform: `translate(${short(x)} ${short(y)})${turned ? " rotate(-90)" : ""}`, fill,
        "text-anchor": { left: "start", right: "end", center: "middle" }[align], "font-weight": bold ? "bold" : "normal",
      }, text)),
  };
}
