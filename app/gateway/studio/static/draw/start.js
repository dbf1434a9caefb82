// From a picture: one to start from, a mask over it, or the request that is inside one.

import { lackingPictures, LISTS } from "../lib/adapters.js";
import { api, Refused } from "../lib/api.js";
import { h, say } from "../lib/dom.js";
import * as fields from "../lib/fields.js";
import { fieldName, shortened } from "../lib/requests.js";
import { studio } from "../lib/state.js";
import { base64Of, faultOf, madeFrom, PICTURES } from "./files.js";

/** The part of the form: `set(name)` gives what is told of a value, `taken(file)` what is told of a file. */
export function startFields({ card, set, add, taken }) {
  const file = h("input", { type: "file", accept: [...PICTURES, ".csv", ".ndjson", ".jsonl"].join(), class: "hidden", onchange: () => file.files[0] && taken(file.files[0]) });
  const drop = fields.field({
    name: "init_image", label: "From a picture or a list", group: true,
    control: h("label", { class: "drop" }, file, h("span", {}, "Choose a file, or drop one on the page")),
    hint: "A picture drawn by Cynosure gives its request back; any other is what the drawing starts from. A CSV or NDJSON file with one request per line becomes a batch.",
  });
  if (!card.takes_init_image || !studio.request.init_image) return [add(drop)];

  const picture = h("img", { alt: "The picture to start from", src: `data:image/*;base64,${studio.request.init_image}` });
  const slot = h("div", { class: "start-picture" }, picture);
  const note = h("p", { class: "hint", hidden: true });
  picture.addEventListener("load", () => {
    const [width, height] = [studio.request.width ?? card.sizes.default[0], studio.request.height ?? card.sizes.default[1]];
    note.hidden = Math.abs((picture.naturalWidth * height) / (picture.naturalHeight * width) - 1) < 0.02;
    note.textContent = `It has another shape, and is stretched to ${width}×${height}.`;
  });
  const paint = h("button", { type: "button", class: "quiet", onclick: startPainting }, "Paint a mask");
  const another = h("button", { type: "button", class: "quiet", onclick: () => file.click() }, "Replace");
  const remove = h("button", { type: "button", class: "quiet", onclick: () => taken(null) }, "Remove");
  const shown = fields.field({ name: "init_image", label: "Starts from", group: true, control: h("div", {}, slot, note), aside: h("span", { class: "row" }, paint, another, remove) });
  const mask = fields.field({ name: "mask_image", label: "Mask", group: true, control: h("div", { class: "hint" }, "What is painted is redrawn, the rest is kept.") });
  mask.element.hidden = !studio.request.mask_image;
  const strength = fields.fraction({ name: "strength", label: "Strength", min: 0.05, hint: "How far to depart from the picture.", changed: set("strength") });
  strength.show = ((own) => (value) => own(value ?? (studio.request.mask_image ? 1 : 0.8)))(strength.show);

  async function startPainting() {
    const { maskEditor } = await import("./mask.js");
    paint.remove();
    slot.replaceChildren((await maskEditor(picture, (encoded) => {
      mask.element.hidden = !encoded;
      set("mask_image")(encoded);
    })).element);
    slot.querySelector("canvas").focus();
  }
  return [add(shown), add(mask), add(strength)];
}

/** What a dropped file is: `batch`, `request` (it is in the form now) or `start` (it is the picture to start from). */
export async function takeFile(file) {
  const fault = faultOf(file);
  if (fault && file.type.startsWith("image/")) throw new Error(fault);
  if (fault) return "batch";
  const encoded = await base64Of(file);
  try {
    const { request } = await api.plan({ from_image: encoded });
    studio.take({ ...shortened(request, studio.card(request.model)), seed: request.seed });
    say("The picture's request is in the form.");
    return "request";
  } catch (error) {
    if (!(error instanceof Refused) || error.status >= 500 || error.status === 401) throw error;
    if (LISTS.includes(fieldName(error.field))) return takeWithoutFiles(file, error);
  }
  studio.take({ ...studio.request, init_image: encoded, mask_image: undefined });
  say("The drawing starts from the picture.");
  return "start";
}

/** Take the request of a picture that can't be drawn as it was: its LoRAs are others now, or it steered by pictures. */
async function takeWithoutFiles(file, refused) {
  const made = await madeFrom(file);
  if (!made) throw refused;
  const { init_image_sha256: start, mask_image_sha256: mask, strength: _, ...drawn } = made.request;
  const request = { ...shortened(drawn, studio.card(drawn.model)), first_image: made.image_index || undefined };
  const lacking = [...lackingPictures(request), start && "the start", mask && "the mask"].filter(Boolean);
  studio.take(request, lacking.length ? `A file holds no pictures that it was made from: give again ${lacking.map((one) => `that of ${one}`).join(", ")}.` : refused.message);
  return "request";
}
