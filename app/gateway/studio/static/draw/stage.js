// The stage: boxes in which pictures form, their progress, and what to do with finished ones.

import { api, pictureUrl } from "../lib/api.js";
import { copyButton, duration, figure, h, save, say } from "../lib/dom.js";
import { pictureBox } from "../lib/picture.js";
import { fileStem, linkTo, subjectOf } from "../lib/requests.js";
import { studio } from "../lib/state.js";

/** Where the pictures form: boxes, progress, and what to do with a finished one. */
export function makeStage() {
  const boxes = h("div", { class: "boxes" });
  const bar = h("progress", { max: 1, value: 0, "aria-label": "Progress" });
  const line = h("p", { class: "state" });
  const actions = h("div", { class: "row actions" });
  const warnings = h("ul", { class: "warnings", hidden: true });
  const element = h("section", { class: "stage", "aria-label": "Picture" }, boxes, bar, h("div", { class: "state-row" }, line, actions), warnings);
  let pictures = [];
  let request = null;
  let began = 0;
  let told = 0; // quarters that users of screen readers have heard of

  function lay() {
    const card = studio.card();
    request = studio.whole();
    const count = Math.min(Math.max(Number(request.num_images ?? 1), 1), card.max_images) || 1;
    const [width, height] = [request.width ?? card.sizes.default[0], request.height ?? card.sizes.default[1]];
    pictures = Array.from({ length: count }, (_, index) => pictureBox({ width, height, label: `Picture ${index + 1}` }));
    boxes.style.setProperty("--columns", Math.ceil(Math.sqrt(count)));
    boxes.replaceChildren(...pictures.map((one) => one.element));
    pictures.forEach((one, index) => one.blank(request.seed + index));
  }
  const stage = {
    element,
    reset() {
      lay();
      bar.value = 0;
      line.textContent = "";
      actions.replaceChildren();
    },
    noise() {
      const count = Number(studio.request.num_images ?? 1);
      if (!pictures.length || (!pictures[0].image.hidden && pictures.length === count && request.seed === studio.seed)) return;
      if (pictures[0].image.hidden || pictures.length !== count) stage.reset();
    },
    begin() {
      lay();
      [bar.value, began, told] = [0, performance.now(), 0];
      actions.replaceChildren();
      line.textContent = "Sending";
      element.setAttribute("aria-busy", "true");
    },
    status(job) {
      bar.value = job.progress;
      if (job.status === "queued") {
        const ahead = job.queue_position ? `${job.queue_position} ahead` : "next";
        line.textContent = `Queued, ${ahead}${job.eta_seconds === null ? "" : `, done in about ${duration(job.eta_seconds)}`}`;
      } else if (job.status === "running") {
        began = performance.now();
        line.textContent = `Drawing${job.eta_seconds === null ? "" : `, ${duration(job.eta_seconds)} left`}`;
      }
      say(line.textContent);
    },
    progress({ evaluations_done: done, evaluations }) {
      bar.value = done / evaluations;
      const leftS = ((performance.now() - began) / 1000) * (evaluations / done - 1);
      line.textContent = `${figure(done)} of ${figure(evaluations)} evaluations${leftS > 0.5 && done / evaluations > 0.02 ? `, ${duration(leftS)} left` : ""}`;
      const quarter = Math.floor((4 * done) / evaluations);
      if (quarter > told && quarter < 4) say(`${25 * quarter} %`);
      told = Math.max(told, quarter);
    },
    preview({ image, png }) {
      pictures[image]?.show(`data:image/png;base64,${png}`);
    },
    async done(job) {
      element.removeAttribute("aria-busy");
      if (job.status !== "succeeded") return stage.fail(job.status === "cancelled" ? "Cancelled." : job.error.message);
      const subject = subjectOf(job.request, studio.card(job.request.model));
      await Promise.all(job.images.map(async ({ index }) => {
        pictures[index]?.describe(`${subject}, picture ${index + 1} of ${job.images.length}`);
        pictures[index]?.show(await pictureUrl(job.id, index));
      }));
      bar.value = 1;
      line.textContent = job.cached ? "Drawn before: from the cache" : `Drawn in ${duration((new Date(job.finished_at) - new Date(job.started_at)) / 1000)}`;
      say(`${subject}: ${line.textContent}.`);
      stage.warn(job.warnings);
      actions.replaceChildren(
        h("button", { type: "button", class: "quiet", onclick: () => saveAll(job, subject) }, job.images.length > 1 ? "Save all" : "Save"),
        copyButton(() => new URL(linkTo(request), document.baseURI).href, "Copy link"),
      );
    },
    fail(text) {
      element.removeAttribute("aria-busy");
      bar.value = 0;
      line.textContent = text;
      say(text);
    },
    warn(texts) {
      warnings.hidden = !texts.length;
      warnings.replaceChildren(...texts.map((text) => h("li", {}, text)));
    },
  };
  return stage;
}

async function saveAll(job, subject) {
  for (const { index, seed } of job.images) save(await api.picture(job.id, index), `${fileStem(subject)}-${seed}-${index}.png`);
}
