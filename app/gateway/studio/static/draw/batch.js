// A batch from a file: a request a line as CSV or NDJSON, progress, and the pictures as a ZIP.

import { api, newKey } from "../lib/api.js";
import { figure, h, save, say } from "../lib/dom.js";
import { poll } from "../lib/follow.js";

const TEXTS = ["prompt", "negative_prompt", "custom_id", "class_label", "model", "sampler"];

/** The records of a CSV (RFC 4180): quotes may enclose commas, line breaks and doubled quotes. */
export function readCsv(text) {
  const records = [[]];
  for (const [, quoted, plain, end] of text.replace(/^\ufeff/, "").matchAll(/(?:"((?:[^"]|"")*)"|([^",\r\n]*))(,|\r\n|\n|\r|$)/g)) {
    records.at(-1).push(quoted === undefined ? plain : quoted.replaceAll('""', '"'));
    if (end === "") break;
    if (end !== ",") records.push([]);
  }
  return records.filter((record) => record.some(Boolean));
}

function valueOf(name, text) {
  if (TEXTS.includes(name)) return text;
  if (/^-?(\d+\.?\d*|\.\d+)$/.test(text)) return Number(text);
  if (text === "true" || text === "false") return text === "true";
  if (/^[[{]/.test(text)) {
    try {
      return JSON.parse(text);
    } catch {
      return text; // the server says what is wrong with it, and in which line
    }
  }
  return text;
}

/** CSV with the fields' names in its first line, as a request a line. */
export function ndjsonOf(csv) {
  const [names = [], ...records] = readCsv(csv);
  if (names.length === 1 && /[;\t]/.test(names[0])) throw new Error("Its columns must be separated by commas.");
  return records.map((record) => {
    const filled = names.map((name, index) => [name.trim(), (record[index] ?? "").trim()]).filter(([name, value]) => name && value !== "");
    return JSON.stringify(Object.fromEntries(filled.map(([name, value]) => [name, valueOf(name, value)])));
  }).join("\n");
}

/** A section that posts the file and follows the batch. */
export function batchPanel(file, signal) {
  const bar = h("progress", { max: 1, value: 0, "aria-label": "Progress of the batch" });
  const line = h("p", { class: "state", role: "status" }, "Sending");
  const error = h("p", { class: "error", role: "alert", hidden: true });
  const actions = h("div", { class: "row actions" });
  const close = h("button", { type: "button", class: "quiet", onclick: () => element.remove() }, "Close");
  const element = h("section", { class: "batch", "aria-label": "Batch" }, h("h2", { class: "title" }, file.name), bar, h("div", { class: "state-row" }, line, actions), error);
  actions.append(close);

  function show({ id, status, counts }) {
    const ended = counts.succeeded + counts.failed + counts.cancelled + counts.expired;
    bar.value = ended / counts.total;
    const parts = [`${figure(counts.succeeded)} of ${figure(counts.total)} drawn`];
    for (const state of ["running", "failed", "cancelled"]) if (counts[state]) parts.push(`${figure(counts[state])} ${state}`);
    line.textContent = parts.join(", ");
    const isOver = status !== "running";
    actions.replaceChildren(...[
      isOver ? null : h("button", { type: "button", class: "quiet", onclick: () => api.cancelBatch(id).then(show) }, "Cancel"),
      counts.succeeded ? h("button", { type: "button", class: "quiet", onclick: async () => save(await api.batchZip(id), `${id}.zip`) }, isOver ? "Save as ZIP" : "Save those as ZIP") : null,
      isOver ? close : null,
    ].filter(Boolean));
    return isOver;
  }
  async function run() {
    const isCsv = /\.csv$/i.test(file.name) || file.type === "text/csv";
    try {
      const text = await file.text();
      const lines = isCsv ? ndjsonOf(text) : text;
      const batch = await api.batch(lines, newKey());
      show(batch);
      await poll(async () => show(await api.batchState(batch.id)), signal);
      say(`${file.name}: ${line.textContent}.`);
    } catch (refused) {
      if (signal.aborted) return;
      line.textContent = "Not accepted";
      error.hidden = false;
      error.textContent = refused.message + (refused.line && isCsv ? " The line below the names is line 1." : "");
    }
  }
  run();
  return element;
}
