// Jobs: your own, newest first, with their pictures.

import { api } from "../lib/api.js";
import { duration, h, save, say } from "../lib/dom.js";
import { isFinal, poll } from "../lib/follow.js";
import { thumbnail } from "../lib/picture.js";
import { linkTo, shortened, subjectOf } from "../lib/requests.js";
import { studio } from "../lib/state.js";
import { virtualList } from "../lib/virtual.js";

const ROW = 76;
const PAGE = 50;
const LOOK_MS = 3000;
const MOST_WATCHED = 8; // open jobs beyond the newest page, of those in view: an API key's rate is limited
const STATES = ["queued", "running", "succeeded", "failed", "cancelled"];

export async function mount(root, signal) {
  let jobs = [];
  let cursor = null;
  let isLoading = false;
  let listing = 0;
  const status = h("select", { id: "status", onchange: restart }, h("option", { value: "" }, "All states"), STATES.map((one) => h("option", { value: one }, one)));
  const model = h("select", { id: "model", onchange: () => (show(), more()) }, h("option", { value: "" }, "All models"), studio.cards.map((one) => h("option", { value: one.name }, one.name)));
  const nothing = h("p", { class: "lead", hidden: true });
  const error = h("p", { class: "error", role: "alert", hidden: true });
  const list = virtualList({
    label: "Jobs", rowHeight: ROW, row, signal, nearEnd: more,
    key: (job) => `${job.id} ${job.status} ${job.queue_position} ${Math.round(job.progress * 20)}`,
  });

  const shown = () => jobs.filter((job) => !model.value || job.request.model === model.value);
  function show() {
    const now = shown();
    list.show(now);
    nothing.hidden = now.length > 0 || cursor !== null;
    nothing.textContent = status.value || model.value ? "No such jobs." : "No jobs yet. What you draw is listed here as long as the server keeps it.";
  }

  async function restart() {
    listing++;
    [jobs, cursor] = [[], null];
    await load();
  }
  async function load() {
    const mine = listing;
    isLoading = true;
    try {
      const page = await api.jobs({ status: status.value, cursor, limit: PAGE });
      if (mine !== listing || signal.aborted) return;
      const known = new Set(jobs.map((job) => job.id));
      jobs.push(...page.jobs.filter((job) => !known.has(job.id)));
      cursor = page.next_cursor;
      show();
    } finally {
      isLoading = false;
    }
  }
  /** Load the next page, if there is one. */
  function more() {
    if (cursor !== null && !isLoading) load().catch(() => {});
  }
  /** Look at the newest page again: new jobs come on top, known ones are brought up to date. */
  async function look() {
    if (document.hidden) return false;
    const mine = listing;
    const page = await api.jobs({ status: status.value, limit: PAGE });
    if (mine !== listing || signal.aborted) return false;
    const fresh = new Map(page.jobs.map((job) => [job.id, job]));
    const oldest = page.jobs.at(-1)?.created_at ?? "";
    const isOlder = (job) => !fresh.has(job.id) && job.created_at < oldest;
    const watched = list.visible().filter((job) => !isFinal(job) && isOlder(job)).slice(0, MOST_WATCHED);
    const now = new Map(await Promise.all(watched.map(async (job) => [job.id, await api.job(job.id).catch(() => job)])));
    if (mine !== listing || signal.aborted) return false;
    const hasGap = page.next_cursor !== null && !jobs.some((job) => fresh.has(job.id)); // more new ones than a page holds
    const older = hasGap ? [] : jobs.filter(isOlder);
    if (hasGap) cursor = page.next_cursor;
    jobs = [...page.jobs, ...older.map((job) => now.get(job.id) ?? job)].filter((job) => !status.value || job.status === status.value);
    show();
    return false;
  }

  async function act(work, told) {
    error.hidden = true;
    try {
      await work();
      say(told);
      await look();
    } catch (refused) {
      error.hidden = false;
      error.textContent = refused.message;
    }
  }

  async function erase(job) {
    await api.erase(job.id);
    jobs = jobs.filter((one) => one.id !== job.id);
    show();
  }

  function row(job) {
    const { request } = job;
    const card = studio.card(request.model);
    const subject = subjectOf(request, card);
    const count = request.num_images;
    const again = { ...shortened(request, card), seed: request.seed };
    const canOpen = !request.sweep && !request.inputs;
    return [
      h("div", { class: "thumb" }, thumbnail(job, `${subject}, first picture`)),
      h("div", { class: "job-text" },
        canOpen ? h("a", { href: linkTo(again), class: "job-subject" }, subject) : h("span", { class: "job-subject" }, subject),
        h("span", { class: "job-facts" }, facts(job, count))),
      h("div", { class: `job-state ${job.status}` }, h("span", {}, stateOf(job)), h("time", { dateTime: job.created_at, title: new Date(job.created_at).toLocaleString() }, ago(job.created_at))),
      h("div", { class: "job-actions" },
        request.sweep && job.status === "succeeded" ? h("button", { type: "button", class: "quiet sheet", title: "Save the contact sheet", onclick: () => act(() => saveSheet(job), "Saved.") }, "Sheet") : null,
        isFinal(job) ? h("button", { type: "button", class: "quiet", title: "Post the same request again", onclick: () => act(() => api.retry(job.id), "Posted again.") }, "Again") : null,
        h("button", { type: "button", class: "quiet", title: "The same request with another seed", onclick: () => act(() => api.vary(job.id), "Posted with another seed.") }, "Vary"),
        isFinal(job)
          ? h("button", { type: "button", class: "quiet", title: "Delete it with its pictures", onclick: (event) => sure(event.currentTarget) && act(() => erase(job), "Deleted.") }, "Delete")
          : h("button", { type: "button", class: "quiet", onclick: () => act(() => api.cancel(job.id), "Cancelled.") }, "Cancel")),
    ];
  }

  root.append(
    h("h1", {}, "Jobs"),
    h("div", { class: "filters" },
      h("label", { class: "hidden", htmlFor: "status" }, "State"), status,
      h("label", { class: "hidden", htmlFor: "model" }, "Model"), model),
    error, nothing, list.element,
  );
  await restart().catch(() => {});
  poll(look, signal, LOOK_MS);
}

/** Whether the button was pressed twice: what it does can't be undone. */
function sure(button) {
  if (button.dataset.asked) return true;
  button.dataset.asked = "yes";
  button.textContent = "Sure?";
  say("Press again to delete it.");
  button.addEventListener("blur", () => (delete button.dataset.asked, (button.textContent = "Delete")), { once: true });
  return false;
}

function facts(job, count) {
  const { request } = job;
  const parts = [request.model, request.guidance_mode.replace("_", "-")];
  if (request.sweep) parts.push(`sweep of ${count}`);
  else if (request.guidance_scale !== null) parts.push(`scale ${request.guidance_scale}`);
  parts.push(`${request.steps} ${request.steps === 1 ? "step" : "steps"}`, request.sampler);
  if (!request.sweep && count > 1) parts.push(`${count} pictures`);
  return parts.join(" · ");
}

function stateOf(job) {
  if (job.status === "queued") return job.queue_position ? `queued, ${job.queue_position} ahead` : "queued";
  if (job.status === "running") return `${Math.round(100 * job.progress)} %`;
  if (job.status === "failed") return job.error?.message ?? "failed";
  if (job.cached) return "from the cache";
  return job.status === "succeeded" && job.started_at ? `${duration((new Date(job.finished_at) - new Date(job.started_at)) / 1000)}` : job.status;
}

function ago(moment) {
  const seconds = Math.max(0, (Date.now() - new Date(moment)) / 1000);
  if (seconds < 60) return "just now";
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ago`;
  return seconds < 86_400 ? `${Math.floor(seconds / 3600)} h ago` : new Date(moment).toLocaleDateString();
}

async function saveSheet(job) {
  save(await api.sheet(job.id), `sweep-${job.id}.png`);
}
