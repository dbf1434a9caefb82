// Follows a job by its event stream. `fetch` and not EventSource, which can't send an API key.

import { api, Refused } from "./api.js";

const FIRST_PAUSE_MS = 500;
const LONGEST_PAUSE_MS = 15_000;
export const isFinal = (job) => ["succeeded", "failed", "cancelled"].includes(job.status);

/** Wait; longer the more often it was in vain. */
export function pause(failures, signal) {
  const ms = Math.min(LONGEST_PAUSE_MS, FIRST_PAUSE_MS * 2 ** failures);
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, ms);
    signal?.addEventListener("abort", () => (clearTimeout(timer), reject(signal.reason)), { once: true });
  });
}

/** The events of a stream, as `{id, name, data}`. */
async function* eventsOf(answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    text += value.replaceAll("\r", "");
    const blocks = text.split("\n\n");
    text = blocks.pop();
    for (const block of blocks) {
      const fields = Object.fromEntries(block.split("\n").map((line) => /^(\w*): ?(.*)$/.exec(line)?.slice(1) ?? ["", ""]));
      if (fields.data) yield { id: fields.id, name: fields.event, data: JSON.parse(fields.data) };
    }
  }
}

/**
 * Call `on.status(job)`, `on.progress(progress)` and `on.preview(preview)` as they happen, and return the job as it
 * ended. A stream that breaks is taken up again where it stopped.
 */
export async function follow(job, on = {}, signal) {
  let seen = null;
  let failures = 0;
  if (isFinal(job)) return job;
  for (;;) {
    try {
      for await (const event of eventsOf(await api.events(job.id, seen, signal))) {
        failures = 0;
        seen = event.id ?? seen;
        if (event.name === "done") return event.data;
        on[event.name]?.(event.data);
      }
      const now = await api.job(job.id);
      if (isFinal(now)) return now;
    } catch (error) {
      if (signal?.aborted || (error instanceof Refused && error.status < 500 && error.status !== 429)) throw error;
    }
    await pause(failures++, signal);
  }
}

/** Call `look` until it answers true; less often while nothing changes or the server is away. */
export async function poll(look, signal, everyMs = 1000) {
  let failures = 0;
  while (!signal.aborted) {
    try {
      if (await look()) return;
      failures = 0;
      await new Promise((resolve) => setTimeout(resolve, everyMs));
    } catch (error) {
      if (signal.aborted) return;
      await pause(++failures, signal).catch(() => {});
    }
  }
}
