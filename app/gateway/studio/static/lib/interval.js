// The guidance interval: two handles on the trajectory from noise to the picture.

import { h, newId } from "./dom.js";
import { field } from "./fields.js";

export function interval({ name, label, changed }) {
  const handle = (text) => h("input", { type: "range", min: 0, max: 1, step: 0.01, id: newId(name), "aria-label": text });
  const from = handle("Guide from");
  const to = handle("Guide until");
  const output = h("output", { class: "figure" });
  const track = h("div", { class: "trajectory" }, h("div", { class: "trajectory-track" }, h("div", { class: "trajectory-part" })), from, to);
  const ends = h("div", { class: "ends", "aria-hidden": "true" }, h("span", {}, "noise"), h("span", {}, "picture"));
  const made = field({ name, label, control: h("div", {}, track, ends), group: true, aside: output });

  function paint() {
    const [low, high] = [Number(from.value), Number(to.value)];
    track.style.setProperty("--from", `${low * 100}%`);
    track.style.setProperty("--to", `${high * 100}%`);
    output.textContent = low === 0 && high === 1 ? "all steps" : `${low.toFixed(2)} – ${high.toFixed(2)}`;
    // Where the handles meet, the one that can still move lies above.
    from.style.zIndex = low > 0.5 ? 3 : 2;
    to.style.zIndex = low > 0.5 ? 2 : 3;
  }
  from.addEventListener("input", () => {
    if (Number(from.value) > Number(to.value)) from.value = to.value;
    paint();
    changed([Number(from.value), Number(to.value)]);
  });
  to.addEventListener("input", () => {
    if (Number(to.value) < Number(from.value)) to.value = from.value;
    paint();
    changed([Number(from.value), Number(to.value)]);
  });
  return {
    ...made,
    show(value) {
      const [low, high] = value ?? [0, 1];
      from.value = low;
      to.value = high;
      paint();
    },
  };
}
