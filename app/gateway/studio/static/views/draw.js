// Draw: the form, the picture as it forms, and the request as code.

import { api, connection } from "../lib/api.js";
import { debounced, duration, figure, h } from "../lib/dom.js";
import { follow, isFinal } from "../lib/follow.js";
import { linkTo } from "../lib/requests.js";
import { newSeed, studio } from "../lib/state.js";
import { codeTabs } from "../draw/code.js";
import { requestForm } from "../draw/form.js";
import { recentPictures } from "../draw/recent.js";
import { makeStage } from "../draw/stage.js";
import { takeFile } from "../draw/start.js";

const PREVIEWS = 12;
const JOB = "cynosure.job"; // the one being drawn: a page that is loaded again goes on with it

export async function mount(root, signal) {
  const stage = makeStage();
  const code = codeTabs(() => studio.whole());
  const recent = recentPictures();
  const controls = h("div", { class: "controls" });
  const plan = h("p", { class: "plan", role: "status" });
  const general = h("p", { class: "error", role: "alert", hidden: true });
  const button = h("button", { type: "submit", class: "primary draw" }, "Draw");
  const bar = h("div", { class: "draw-bar" }, general, h("div", { class: "row" }, button, plan));
  let form = null;
  let drawing = null;

  function build(why) {
    const place = document.activeElement?.closest?.("[data-field]")?.dataset.field;
    form = requestForm({ changed, remade: (what) => (build(what), changed()), taken });
    form.element.append(bar);
    form.element.addEventListener("submit", (event) => (event.preventDefault(), drawing ? cancel() : draw()));
    controls.replaceChildren(form.element);
    if (why) form.focus(place);
    if (!drawing) stage.reset();
  }

  function refuse(error) {
    const rest = form.refuse(error?.faults ?? []);
    const text = error && !error.faults?.length ? error.message : rest.map((one) => one.detail).join(" ");
    general.hidden = !text;
    general.textContent = text;
  }

  /** Take a file in: a picture, or a list of requests; null leaves the picture out. */
  async function taken(file) {
    if (file === null) {
      const { init_image: _, mask_image: __, strength: ___, ...rest } = studio.request;
      return studio.take(rest);
    }
    try {
      if ((await takeFile(file)) !== "batch") return;
      const { batchPanel } = await import("../draw/batch.js");
      column.querySelector(".batch")?.remove();
      column.prepend(batchPanel(file, signal));
      column.firstChild.scrollIntoView({ block: "nearest" });
    } catch (error) {
      refuse(error);
    }
  }

  let asked = new AbortController();
  const look = debounced(async () => {
    asked.abort();
    asked = new AbortController();
    try {
      const answer = await api.plan(studio.whole(), asked.signal);
      refuse(null);
      plan.textContent = planned(answer);
      plan.title = answer.warnings.join("\n");
      stage.warn(answer.warnings);
    } catch (error) {
      if (error.name === "AbortError" || signal.aborted) return;
      plan.textContent = "";
      if (error.code === "no_worker" && await waitsForWorker()) {
        refuse(null);
        plan.textContent = "No worker holds this model at present: a picture waits for the next one.";
      } else if (error.code) refuse(error);
    }
  }, 250);
  function changed() {
    code.update();
    if (!drawing) stage.noise();
    look();
  }

  async function draw() {
    if (studio.wasDrawn && !studio.isPinned) {
      studio.seed = newSeed();
      form.showSeed();
      code.update();
    }
    const request = studio.whole();
    const card = studio.card();
    const every = Math.max(1, Math.round((request.steps ?? card.defaults.steps) / PREVIEWS));
    refuse(null);
    history.replaceState(null, "", linkTo(request));
    await finish(() => api.generate({ preview_every: every, ...request }));
  }
  /** Show a job until it has ended. */
  async function finish(posted) {
    drawing = { id: null, isCancelled: false };
    button.textContent = "Cancel";
    button.classList.add("busy");
    stage.begin();
    stage.element.scrollIntoView({ block: "nearest" }); // on a phone the button stays in view, the picture may not
    try {
      const job = await posted();
      drawing.id = job.id;
      sessionStorage.setItem(JOB, job.id);
      if (drawing.isCancelled) cancel();
      stage.status(job);
      const done = await follow(job, stage, signal);
      studio.wasDrawn = true;
      await stage.done(done);
      if (done.status === "succeeded" && !done.request.inputs) recent.add(done);
    } catch (error) {
      if (signal.aborted) return;
      stage.fail(connection.isAway ? "Not drawn." : "Not accepted.");
      refuse(connection.isAway ? null : error);
      const field = error.faults?.[0]?.field;
      if (field) form.focus(field);
    } finally {
      if (!signal.aborted) sessionStorage.removeItem(JOB);
      drawing = null;
      button.textContent = "Draw";
      button.classList.remove("busy");
    }
  }
  async function resume() {
    const id = sessionStorage.getItem(JOB);
    if (!id || drawing) return;
    const job = await api.job(id).catch(() => null);
    if (job === null || isFinal(job) || job.request.seed !== studio.seed) return sessionStorage.removeItem(JOB);
    await finish(async () => job);
  }
  function cancel() {
    drawing.isCancelled = true;
    if (drawing.id) api.cancel(drawing.id).catch((error) => refuse(error));
  }

  studio.on("request", () => (build(), changed()), signal);
  connection.addEventListener("back", () => look(), { signal });
  const column = h("div", { class: "stage-column" }, stage.element, recent.element, code.element);
  root.append(h("h1", { class: "hidden" }, "Draw"), controls, column);
  const carriesFile = (event) => event.dataTransfer?.types.includes("Files");
  addEventListener("dragover", (event) => carriesFile(event) && (event.preventDefault(), root.classList.add("dropping")), { signal });
  addEventListener("dragleave", (event) => event.relatedTarget ?? root.classList.remove("dropping"), { signal });
  addEventListener("drop", (event) => {
    if (!carriesFile(event)) return;
    const isTaken = event.defaultPrevented; // by a line of the form
    event.preventDefault();
    root.classList.remove("dropping");
    if (!isTaken) taken(event.dataTransfer.files[0]);
  }, { signal });
  addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && !drawing && !document.querySelector("dialog[open]")) form.element.requestSubmit();
  }, { signal });
  build();
  changed();
  recent.load().catch(() => {}); // the view works without; the banner says that the server is away
  resume();
}

/** Whether the server accepts jobs for the model although no worker holds it. */
async function waitsForWorker() {
  const cards = await api.models().catch(() => []);
  return cards.some((card) => card.name === studio.request.model && !card.served);
}

function planned(answer) {
  const rows = answer.rows.denoiser + answer.rows.guide_model + answer.rows.classifier;
  const cost = answer.seconds === null ? null : `about ${duration(answer.seconds)}`;
  return [cost, `${figure(rows)} network evaluations`].filter(Boolean).join(" · ");
}
