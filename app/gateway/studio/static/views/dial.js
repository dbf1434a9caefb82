// The dial: ten seeds at scales from "diverse" to "typical", and how far apart the ten pictures are.

import { duration, h, s, say } from "../lib/dom.js";
import * as fields from "../lib/fields.js";
import { pictureBox } from "../lib/picture.js";
import { defaultScale, linkTo, MODE_NAMES } from "../lib/requests.js";
import { studio } from "../lib/state.js";
import { fill } from "../lib/sweep.js";
import { scalesAround } from "./compare.js";

const SEEDS = 10;
const MULTIPLES = [0, 1 / 8, 1 / 4, 1 / 2, 1, 2, 4];
const FREE_SCALES = [0, 1, 1.5, 2, 3, 5, 8, 12];

/** The strip; `request(mode)` is what its pictures share. */
export function dial({ request, signal }) {
  const modes = () => studio.card().guidance_modes.filter((mode) => mode === "classifier_free" || mode === "classifier");
  let mode = null;
  let scales = [];
  let boxes = [];
  const element = h("section", { class: "dial", "aria-labelledby": "dial-title" });
  const slider = h("input", { type: "range", min: 0, step: 1, class: "slider", "aria-label": "Scale" });
  const pictures = h("div", { class: "dial-pictures" });
  const ticks = h("div", { class: "dial-ticks", "aria-hidden": "true" });
  const chart = h("div", { class: "spread" });
  const progress = h("progress", { max: 1, value: 0, "aria-label": "Progress of the dial" });
  const button = h("button", { type: "button", class: "primary", onclick: draw }, "Draw the dial");
  const line = h("p", { class: "plan", role: "status" });

  const seeds = () => Array.from({ length: SEEDS }, (_, index) => studio.seed + index);
  const at = () => Number(slider.value);

  function reset() {
    element.hidden = !modes().length;
    if (element.hidden) return;
    if (!modes().includes(mode)) mode = modes()[0];
    scales = mode === "classifier_free" ? FREE_SCALES : scalesAround(defaultScale(mode, studio.card()), MULTIPLES);
    slider.max = scales.length - 1;
    element.style.setProperty("--stops", scales.length);
    slider.value = mode === "classifier_free" ? 1 : 0;
    const { default: [width, height] } = studio.card().sizes;
    boxes = scales.map(() => seeds().map((seed) => {
      const box = pictureBox({ width, height });
      box.blank(seed);
      return box;
    }));
    ticks.replaceChildren(...scales.map((scale) => h("span", {}, String(scale))));
    chart.replaceChildren();
    progress.value = 0;
    line.textContent = `${scales.length} scales × ${SEEDS} seeds = ${scales.length * SEEDS} pictures`;
    const choice = fields.choice({ name: "dial_mode", label: "Mode", options: modes().map((one) => [one, MODE_NAMES[one]]), changed: (value) => ((mode = value), reset()) });
    choice.show(mode);
    element.replaceChildren(
      h("h2", { id: "dial-title", class: "title" }, "What the scale trades"),
      h("p", { class: "lead" }, "Ten seeds at one scale. Move the dial: the pictures become more typical of the label or prompt. The line shows how far apart they are; large scales exaggerate contrast."),
      h("div", { class: "dial-head" }, modes().length > 1 ? choice.element : null, button, line), progress,
      pictures,
      h("div", { class: "dial-track" }, chart, slider, ticks, h("div", { class: "ends", "aria-hidden": "true" }, h("span", {}, "diverse"), h("span", {}, "typical"))),
    );
    turn();
  }

  function turn() {
    const scale = scales[at()];
    slider.setAttribute("aria-valuetext", `scale ${scale}`);
    slider.style.setProperty("--filled", `${(100 * at()) / (scales.length - 1)}%`);
    pictures.replaceChildren(...boxes[at()].map((box, index) => {
      const seed = seeds()[index];
      return h("a", { href: linkTo({ ...request(mode), guidance_scale: scale, seed }), "aria-label": `Scale ${scale}, seed ${seed}: open in Draw` }, box.element);
    }));
    [...ticks.children].forEach((tick, index) => tick.classList.toggle("on", index === at()));
  }
  slider.addEventListener("input", turn);

  async function draw() {
    button.disabled = true;
    const { seed: _, ...shared } = request(mode);
    const began = performance.now();
    try {
      const every = Math.max(1, Math.round(shared.steps / 3));
      await fill(boxes.flat(), { request: { ...shared, preview_every: every }, guidance_scales: scales, seeds: seeds() }, {
        progress(share) {
          progress.value = share;
          if (share > 0.05 && share < 1) line.textContent = `${duration(((performance.now() - began) / 1000) * (1 / share - 1))} left`;
        },
      }, signal);
      await showSpread();
      line.textContent = "Drawn. Move the dial.";
      say("The dial is drawn.");
      slider.focus({ preventScroll: true });
    } catch (error) {
      if (!signal.aborted) line.textContent = error.message;
    } finally {
      button.disabled = false;
    }
  }

  /** Over the dial: the mean distance between two of the ten pictures, relative to the largest. */
  async function showSpread() {
    await Promise.all(boxes.flat().map((box) => box.settled()));
    const spreads = boxes.map((row) => meanDistance(row.map((box) => pixels(box.image))));
    const most = Math.max(...spreads) || 1;
    const points = spreads.map((spread, index) => [1000 * ((index + 0.5) / spreads.length), 8 + 48 * ((most - spread) / (most - Math.min(...spreads) || 1))]);
    chart.replaceChildren(
      h("p", { class: "hint" }, "How far apart the ten pictures are: the mean distance of two, in per cent of the largest"),
      s("svg", { viewBox: "0 0 1000 64", preserveAspectRatio: "none", role: "img", "aria-label": `Distance between the pictures, by scale: ${scales.map((scale, index) => `${scale}: ${Math.round((100 * spreads[index]) / most)} %`).join(", ")}` },
        s("polyline", { points: points.map((point) => point.join(",")).join(" ") })),
    );
    [...ticks.children].forEach((tick, index) => tick.append(h("small", {}, `${Math.round((100 * spreads[index]) / most)} %`)));
    turn();
  }
  reset();
  return { element, reset };
}

/** An image's pixels as grey levels. */
function pixels(image) {
  const [width, height] = [Math.min(image.naturalWidth, 64), Math.min(image.naturalHeight, 64)];
  const context = new OffscreenCanvas(width, height).getContext("2d");
  context.drawImage(image, 0, 0, width, height);
  return context.getImageData(0, 0, width, height).data;
}

/** The mean, over all pairs, of the root mean square difference of their pixels. */
function meanDistance(all) {
  let sum = 0;
  let pairs = 0;
  for (let i = 0; i < all.length; i++) {
    for (let j = 0; j < i; j++) {
      let squares = 0;
      for (let k = 0; k < all[i].length; k++) squares += (all[i][k] - all[j][k]) ** 2;
      sum += Math.sqrt(squares / all[i].length);
      pairs++;
    }
  }
  return sum / pairs;
}
