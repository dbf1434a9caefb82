// Small line charts with one cursor.

import { figure, h, newId, s } from "./dom.js";

const [WIDTH, HEIGHT] = [600, 120];

/**
 * A chart of `values` (null where there is none) over `count` steps; `title()` gives the title's nodes, `format(value)` writes one.
 *
 * The answer has `element`, `point(index)` and `update(values, count)`.
 */
export function lineChart({ title, hint, format = (value) => figure(value), least = null, most = null }) {
  const id = newId("chart");
  const line = s("path", { class: "line" });
  const cursor = s("line", { class: "cursor", y1: 0, y2: HEIGHT });
  const dot = s("circle", { class: "dot", r: 0 });
  const now = h("output", { class: "value" });
  const ends = h("div", { class: "chart-ends", "aria-hidden": "true" }, h("span", {}), h("span", {}));
  const svg = s("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img", "aria-labelledby": id },
    s("line", { class: "axis", x1: 0, x2: WIDTH, y1: HEIGHT, y2: HEIGHT }), line, cursor, dot);
  const element = h("figure", { class: "chart" },
    h("figcaption", {}, h("span", { class: "chart-title", id }, title()), now),
    h("p", { class: "hint" }, hint),
    h("div", { class: "chart-plot" }, svg, ends));
  let shown = [];
  let total = 1;
  let range = [0, 1];

  const x = (index) => (total < 2 ? 0 : (WIDTH * index) / (total - 1));
  const y = (value) => HEIGHT - 4 - (HEIGHT - 8) * ((value - range[0]) / (range[1] - range[0] || 1));
  return {
    element,
    update(values, count) {
      [shown, total] = [values, count];
      const known = values.filter((value) => value !== null);
      range = [least ?? Math.min(0, ...known), most ?? Math.max(...known, Number.MIN_VALUE)];
      ends.firstChild.textContent = known.length ? format(range[1]) : "";
      ends.lastChild.textContent = known.length ? format(range[0]) : "";
      let path = "";
      values.forEach((value, index) => {
        if (value !== null) path += `${index && values[index - 1] !== null && values[index - 1] !== undefined ? "L" : "M"}${x(index).toFixed(1)},${y(value).toFixed(1)}`;
      });
      line.setAttribute("d", path);
      element.classList.toggle("empty", !known.length);
    },
    point(index) {
      const value = shown[index] ?? null;
      cursor.setAttribute("x1", x(index));
      cursor.setAttribute("x2", x(index));
      now.textContent = value === null ? "" : format(value);
    },
  };
}
