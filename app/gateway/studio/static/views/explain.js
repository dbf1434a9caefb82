// Explain: what guidance did at every step, beside the picture at that step.

import { api, pictureUrl } from "../lib/api.js";
import { lineChart } from "../lib/charts.js";
import { figure, h, say, wantsLessMotion } from "../lib/dom.js";
import * as fields from "../lib/fields.js";
import { follow } from "../lib/follow.js";
import { pictureBox } from "../lib/picture.js";
import { linkTo, MODE_NAMES } from "../lib/requests.js";
import { studio } from "../lib/state.js";
import { sharedBy } from "../lib/sweep.js";
import { subjectBar } from "./subject.js";

const MOST_TOLD = ["combined", "classifier", "classifier_free", "none"];
const MOST_PREVIEWS = 100;
const PLAY_MS = 90;
const share = (value) => `${figure(100 * value, 2)} %`;
const CHARTS = [
  { field: "probability", title: () => ["p(y | x", h("sub", {}, "t"), ")"], hint: "How sure the classifier is of the label, given the noisy picture.", least: 0, most: 1, format: share, needs: "classifier" },
  { field: "similarity", title: () => "Similarity", hint: "Of the prompt and the noisy picture.", needs: null },
  { field: "gradient_norm", title: () => ["‖∇ log p(y | x", h("sub", {}, "t"), ")‖"], hint: "Length of the classifier's gradient.", needs: "classifier" },
  { field: "conditional_minus_unconditional", title: () => ["‖D", h("sub", {}, "c"), " − D", h("sub", {}, "u"), "‖"], hint: "How far apart the predictions with and without the label or prompt are.", needs: "classifier-free" },
  { field: "clipped", title: () => "Clipped", hint: "Share of the prediction that was out of range.", least: 0, most: 1, format: share, needs: "any" },
];

export async function mount(root, signal) {
  let mode = null;
  let steps = [];
  let frames = new Map();
  let player = null;
  const place = h("div", { class: "explain-picture" });
  let box = null;
  const slider = h("input", { type: "range", min: 0, max: 0, value: 0, step: 1, class: "slider", "aria-label": "Step" });
  const line = h("p", { class: "state" });
  const play = h("button", { type: "button", class: "quiet", disabled: true, onclick: toggle }, "Play");
  const open = h("a", { class: "quiet", href: "#draw" }, "Open in Draw");
  const progress = h("progress", { max: 1, value: 0, "aria-label": "Progress" });
  const error = h("p", { class: "error", role: "alert", hidden: true });
  const charts = CHARTS.map((one) => ({ ...one, chart: lineChart(one) }));
  const modeSlot = h("div", {});
  const bar = subjectBar({
    action: "Explain", run, changed: reset,
    defaultSteps: (card) => Math.min(card.defaults.steps, MOST_PREVIEWS),
  });

  const request = () => {
    const scale = studio.request.guidance_scale;
    const own = studio.request.guidance_mode === mode && scale !== undefined ? { guidance_scale: scale } : {};
    return { ...sharedBy(studio.request, mode), ...own, steps: bar.steps(), seed: studio.seed };
  };

  function reset() {
    const card = studio.card();
    stop();
    if (!card.guidance_modes.includes(mode)) mode = MOST_TOLD.find((one) => card.guidance_modes.includes(one));
    const choice = fields.choice({
      name: "guidance_mode", label: "Mode", options: card.guidance_modes.map((one) => [one, MODE_NAMES[one]]),
      changed: (value) => ((mode = value), reset()),
    });
    choice.show(mode);
    const hadFocus = modeSlot.contains(document.activeElement);
    modeSlot.replaceChildren(choice.element);
    if (hadFocus) modeSlot.querySelector(":checked").focus();
    const { default: [width, height] } = card.sizes;
    box = pictureBox({ width, height, label: "The prediction at this step" });
    box.blank(studio.seed);
    place.replaceChildren(box.element);
    [steps, frames] = [[], new Map()];
    slider.max = 0;
    progress.value = 0;
    line.textContent = "";
    play.disabled = slider.disabled = true;
    for (const one of charts) {
      one.chart.update([], 1);
      one.chart.element.hidden = !drawnIn(one);
    }
    open.href = linkTo(request());
  }
  /** Whether a chart has anything to show in the mode. */
  function drawnIn(one) {
    const isClassified = mode === "classifier" || mode === "combined";
    if (one.needs === null) return studio.card().classifier_takes_prompt && isClassified;
    if (one.field === "probability" && studio.card().classifier_takes_prompt) return false;
    if (one.needs === "classifier") return isClassified;
    return one.needs === "any" || mode === "classifier_free" || mode === "combined";
  }

  /** Show a step: the cursor of the charts, and the last picture up to there. */
  function turn(index) {
    slider.value = index;
    slider.style.setProperty("--filled", `${(100 * index) / Math.max(1, slider.max)}%`);
    const at = steps[index];
    if (at) {
      line.textContent = `Step ${index + 1} of ${steps.length}, timestep ${Math.round(at.timestep)}`;
      slider.setAttribute("aria-valuetext", line.textContent);
    }
    for (const { chart } of charts) chart.point(index);
    for (let seen = index + 1; seen > 0; seen--) {
      if (frames.has(seen)) return box.at(frames.get(seen));
    }
  }
  slider.addEventListener("input", () => (stop(), turn(Number(slider.value))));

  function toggle() {
    if (player) return stop();
    let index = Number(slider.value) >= Number(slider.max) ? 0 : Number(slider.value);
    play.textContent = "Pause";
    player = setInterval(() => {
      turn(index);
      if (index++ >= Number(slider.max)) stop();
    }, PLAY_MS);
  }
  function stop() {
    clearInterval(player);
    player = null;
    play.textContent = "Play";
  }
  signal.addEventListener("abort", stop);

  function plot(count) {
    for (const { field, chart } of charts) chart.update(steps.map((step) => step?.[field] ?? null), count);
  }

  async function run() {
    bar.refuse(null);
    error.hidden = true;
    reset();
    const asked = request();
    const every = Math.ceil(asked.steps / MOST_PREVIEWS);
    try {
      const posted = await api.generate({ ...asked, telemetry: true, preview_every: every, use_cache: false });
      const job = await follow(posted, {
        progress({ evaluations_done: done, evaluations, telemetry = [] }) {
          progress.value = done / evaluations;
          for (const { image, evaluation, ...step } of telemetry) if (image === 0) steps[evaluation] = step;
          plot(evaluations);
        },
        preview({ evaluations_done: done, png }) {
          frames.set(done, `data:image/png;base64,${png}`);
          box.show(frames.get(done));
        },
      }, signal);
      if (job.status !== "succeeded") throw new Error(job.error?.message ?? "Cancelled.");
      steps = job.telemetry?.[0] ?? steps;
      frames.set(steps.length, await pictureUrl(job.id));
      plot(steps.length);
      progress.value = 1;
      slider.max = steps.length - 1;
      play.disabled = slider.disabled = false;
      turn(wantsLessMotion() ? steps.length - 1 : 0);
      if (!wantsLessMotion()) toggle();
      say("Drawn. Move the slider to look at each step.");
    } catch (refused) {
      if (signal.aborted) return;
      const isAtMode = ["guidance_mode"].includes(refused.faults?.[0]?.field);
      bar.refuse(isAtMode ? null : refused);
      error.hidden = !isAtMode;
      error.textContent = refused.message;
    }
  }

  root.append(
    h("h1", {}, "Explain"),
    h("p", { class: "lead" }, "One picture, step by step: what the classifier thinks of it, and how hard guidance pulls."),
    bar.element, progress,
    h("div", { class: "explain" },
      h("section", { class: "explain-left", "aria-label": "The picture at a step" }, modeSlot, error, place, slider,
        h("div", { class: "state-row" }, line, h("div", { class: "row actions" }, play, open))),
      h("section", { class: "charts", "aria-label": "What guidance did" }, charts.map((one) => one.chart.element))),
  );
  reset();
}
