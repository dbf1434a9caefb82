// Compare: one seed in every mode and at several scales; below, what the scale trades.

import { h, say } from "../lib/dom.js";
import * as fields from "../lib/fields.js";
import { pictureBox } from "../lib/picture.js";
import { defaultScale, inShort, linkTo, MODE_NAMES } from "../lib/requests.js";
import { studio } from "../lib/state.js";
import { fill, sharedBy } from "../lib/sweep.js";
import { dial } from "./dial.js";
import { subjectBar } from "./subject.js";

const TITLES = { ...MODE_NAMES, none: "No guidance" };
const MULTIPLES = [0, 0.25, 0.5, 1, 2, 4];
const MOST_SCALE = 100;
const MOST_STEPS = 20;
const PREVIEWS = 5;

/** Scales around the model's own, none of them above what a request may have. */
export function scalesAround(usual, multiples = MULTIPLES) {
  const most = Math.max(...multiples);
  const unit = Math.min(usual, MOST_SCALE / most);
  return multiples.map((one) => Number((one * unit).toPrecision(3)));
}

export async function mount(root, signal) {
  const grid = h("div", { class: "grid", role: "group", "aria-label": "Pictures by mode and scale" });
  const shown = h("pre", { class: "shown", role: "region", tabIndex: 0, "aria-label": "Request" }, h("code", {}));
  const progress = h("progress", { max: 1, value: 0, "aria-label": "Progress" });
  let rows = [];
  const bar = subjectBar({
    action: "Draw the grid", run: draw, changed: lay,
    defaultSteps: (card) => Math.min(card.defaults.steps, MOST_STEPS),
  });
  const strip = dial({ request: base, signal });

  function base(mode) {
    return { ...sharedBy(studio.request, mode), steps: bar.steps(), seed: studio.seed };
  }

  function lay() {
    const card = studio.card();
    const kept = new Map(rows.filter((row) => row.model === card.name).map((row) => [row.mode, row.scales()]));
    rows = card.guidance_modes.map((mode) => makeRow(mode, card, kept.get(mode)));
    grid.replaceChildren(...rows.map((row) => row.element));
    progress.value = 0;
    strip.reset();
    show(rows[0].requests()[0]);
  }
  function show(request) {
    shown.firstChild.textContent = inShort(request);
  }

  function makeRow(mode, card, kept) {
    let scales = kept ?? (mode === "none" ? [] : scalesAround(defaultScale(mode, card)));
    const cells = h("div", { class: "cells" });
    const input = mode === "none" ? null : fields.text({
      name: "guidance_scales", label: `${TITLES[mode]}: scales`,
      changed(text) {
        const read = (text ?? "").split(/[,\s]+/).filter(Boolean).map(Number);
        input.refuse(read.length < 2 || read.some(Number.isNaN) ? "Give two or more numbers, such as 0, 1, 3." : null);
        if (read.length > 1 && !read.some(Number.isNaN)) [scales] = [read], layCells();
      },
    });
    let boxes = [];
    const requests = () => (mode === "none" ? [base(mode)] : scales.map((scale) => ({ ...base(mode), guidance_scale: scale })));
    function layCells() {
      const [width, height] = card.sizes.default;
      boxes = requests().map(() => pictureBox({ width, height }));
      boxes.forEach((box) => box.blank(studio.seed));
      cells.style.setProperty("--columns", Math.max(6, boxes.length));
      const note = mode === "none" ? h("p", { class: "hint beside" }, "The plain model. Classifier-free guidance at scale 1 and a classifier at 0 give the same picture; what differs elsewhere is guidance.") : null;
      cells.replaceChildren(...boxes.map((box, index) => {
        const caption = mode === "none" ? "plain" : String(scales[index]);
        const name = mode === "none" ? "No guidance" : `${TITLES[mode]}, scale ${scales[index]}`;
        box.describe("");
        const look = () => show(requests()[index]);
        return h("a", { class: "cell", href: linkTo(requests()[index]), "aria-label": `${name}: open in Draw`, onmouseenter: look, onfocus: look }, box.element, h("span", { class: "caption" }, caption));
      }), ...(note ? [note] : []));
    }
    layCells();
    input?.show(scales.join(", "));
    const error = h("p", { class: "error", role: "alert", hidden: true });
    return {
      mode, model: card.name, requests, scales: () => scales,
      element: h("section", { class: "grid-row" }, h("div", { class: "row-head" }, h("h2", {}, TITLES[mode]), input?.element, error), cells),
      refuse: (text) => ((error.hidden = !text), (error.textContent = text ?? "")),
      async draw(on) {
        layCells();
        const every = Math.max(1, Math.round(bar.steps() / PREVIEWS));
        const shared = { ...base(mode), preview_every: every };
        await fill(boxes, mode === "none" ? shared : { request: shared, guidance_scales: scales }, on, signal);
      },
    };
  }

  async function draw() {
    bar.refuse(null);
    const shares = rows.map(() => 0);
    const count = rows.reduce((sum, row) => sum + row.requests().length, 0);
    const results = await Promise.allSettled(rows.map(async (row, index) => {
      row.refuse(null);
      await row.draw({ progress(share) {
        shares[index] = share * row.requests().length;
        progress.value = shares.reduce((a, b) => a + b) / count;
      } });
    }));
    if (signal.aborted) return;
    results.forEach((result, index) => result.status === "rejected" && rows[index].refuse(result.reason.message));
    progress.value = 1;
    say("The grid is drawn.");
  }

  root.append(
    h("h1", {}, "Compare"),
    h("p", { class: "lead" }, "One seed, every mode, several scales. Point at a picture to see its request; open it to go on in Draw."),
    bar.element, progress, grid, shown, strip.element,
  );
  lay();
}
