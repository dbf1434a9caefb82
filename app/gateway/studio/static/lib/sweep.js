// Sweeps: many pictures in one job, each in its own box.

import { api, pictureUrl } from "./api.js";
import { follow } from "./follow.js";
import { tidy } from "./requests.js";

const USED_BY = {
  classifier_scale: ["combined"],
  classifier_base: ["classifier", "combined"],
  classifier_condition: ["classifier", "combined"],
  negative_prompt: ["classifier_free", "combined"],
  guidance_interval: ["classifier", "classifier_free", "combined"],
};

/** The part of a request that its pictures share in another mode: without what that mode does not take. */
export function sharedBy(request, mode) {
  const { guidance_scale: _, num_images: __, seed: ___, ...rest } = tidy(request);
  const kept = Object.entries(rest).filter(([name]) => !(name in USED_BY) || USED_BY[name].includes(mode));
  return { ...Object.fromEntries(kept), guidance_mode: mode };
}

/**
 * Post a sweep, or a request for one picture, and fill the boxes in the order of its pictures as they form.
 *
 * `on.progress(share)` hears how far it is. The answer is the job as it ended.
 */
export async function fill(boxes, grid, on, signal) {
  const posted = await ("request" in grid ? api.sweep(grid) : api.generate(grid));
  const cancel = () => api.cancel(posted.id).catch(() => {});
  signal.addEventListener("abort", cancel, { once: true });
  const job = await follow(posted, {
    progress: (one) => on.progress?.(one.evaluations_done / one.evaluations),
    preview: ({ image, png }) => boxes[image]?.show(`data:image/png;base64,${png}`),
  }, signal);
  signal.removeEventListener("abort", cancel);
  if (job.status !== "succeeded") throw new Error(job.error?.message ?? "Cancelled.");
  await Promise.all(job.images.map(async ({ index }) => boxes[index].show(await pictureUrl(job.id, index))));
  on.progress?.(1);
  return job;
}
