// Requests: what is in one, how it is written into an address and read from one.

import { asWritten, withoutPictures } from "./adapters.js";

/** What fields have if a request leaves them out, besides what a model's card says. */
const PLAIN = {
  guidance_rule: "standard", guidance_interval: [0, 1], guidance_interval_unit: "fraction", guidance_rescale: 0,
  eta: 0, num_images: 1, first_image: 0, use_cache: true, preview_every: 0, priority: "normal", telemetry: false,
  output_format: "png", long_prompt: null, prompt_syntax: null, clip_skip: null,
};
const OTHER_NAMES = { scale: "guidance_scale", num_inference_steps: "steps" };
const DELIVERY = ["use_cache", "preview_every", "priority", "webhook_url", "telemetry", "inputs", "sweep"];

/** The guidance modes by the names that people know. */
export const MODE_NAMES = { none: "None", classifier_free: "Classifier-free", classifier: "Classifier", combined: "Combined" };

/** The way to a field, which refusals name as it was written: `request.loras[1].scale` is loras, 1, scale. */
export function pathOf(field) {
  const [name, ...rest] = (field ?? "").replace(/^request\./, "").replaceAll(/\[(\w+)\]/g, ".$1").split(".");
  return [OTHER_NAMES[name] ?? name, ...rest];
}

/** The field's first name. */
export const fieldName = (field) => pathOf(field)[0];

const same = (a, b) => JSON.stringify(a) === JSON.stringify(b);

/** A request without what is unset. */
export function tidy(request) {
  const kept = Object.entries(request).filter(([, value]) => value !== undefined && value !== null && value !== "");
  return Object.fromEntries(kept.map(([name, value]) => [OTHER_NAMES[name] ?? name, value]));
}

/** The mode of a request that names none. */
export function modeOf(request, card) {
  const hasCondition = request.class_label !== undefined || Boolean(request.prompt);
  return request.guidance_mode ?? (hasCondition ? card.defaults.guidance_mode : "none");
}

/** The scale of a mode that a request leaves out. */
export const defaultScale = (mode, card) => (mode === "classifier" ? card.defaults.classifier_scale : card.defaults.guidance_scale);

/** A resolved request as a person would write it: without what is the default anyway. */
export function shortened(resolved, card) {
  const request = asWritten(tidy(resolved));
  if (!card) return request;
  const mode = request.guidance_mode;
  const usual = {
    ...PLAIN, width: card.sizes.default[0], height: card.sizes.default[1], profile: card.defaults.profile,
    sampler: card.defaults.sampler, steps: card.defaults.steps, clip: card.defaults.clip,
    guidance_scale: defaultScale(mode, card), classifier_scale: card.defaults.classifier_scale,
    classifier_base: card.classifier_bases[0],
  };
  for (const [name, value] of Object.entries(request)) {
    if (DELIVERY.includes(name) || (name in usual && same(value, usual[name]))) delete request[name];
  }
  if (typeof request.class_label === "number") request.class_label = labelName(card, request.class_label);
  if (modeOf({ ...request, guidance_mode: undefined }, card) === mode) delete request.guidance_mode;
  return request;
}

/** A label's name if it is the only one of that name, otherwise its index. */
export function labelName(card, index) {
  const name = card.labels[index];
  const namesakes = card.labels.filter((one) => one.split(", ").some((part) => name.split(", ").includes(part)));
  return namesakes.length === 1 && name.length < 200 ? name : index;
}

/** A label for people: of several names the first. */
export const shownLabel = (label) => label.split(", ")[0];

/** A file's name, without its ending, from what is drawn. */
export const fileStem = (subject) => subject.toLowerCase().replaceAll(/[^a-z0-9]+/g, "-").replaceAll(/^-|-$/g, "").slice(0, 40) || "picture";

const PICTURES = ["image", "init_image", "mask_image"];

/** A value of a request as JSON for people, without its pictures. */
export const inShort = (value) => JSON.stringify(value, (name, one) => (PICTURES.includes(name) ? "…" : one));

/** What a request draws, in a few words. */
export function subjectOf(request, card) {
  const label = typeof request.class_label === "number" ? card?.labels[request.class_label] : request.class_label;
  const parts = [request.prompt, label !== undefined && label !== null ? shownLabel(String(label)) : null];
  return parts.filter(Boolean).join(", ") || "no label";
}

/** The part of an address behind `#` that opens a request in the studio; pictures are too long for it. */
export function linkTo(request) {
  const { init_image: _, mask_image: __, strength: ___, ...rest } = request;
  const text = JSON.stringify(withoutPictures(_ === undefined ? request : rest));
  const bytes = new TextEncoder().encode(text);
  const base64 = btoa(Array.from(bytes, (one) => String.fromCharCode(one)).join(""));
  return `#request=${base64.replaceAll("+", "-").replaceAll("/", "_").replace(/=+$/, "")}`;
}

/** The request in such an address; JSON may also be written as it is, or with percent signs. */
export function fromLink(hash) {
  const value = unescaped(hash.replace(/^#request=/, ""));
  const plain = value.trim().startsWith("{")
    ? value
    : new TextDecoder().decode(Uint8Array.from(atob(value.replaceAll("-", "+").replaceAll("_", "/")), (one) => one.charCodeAt(0)));
  const request = JSON.parse(plain);
  if (typeof request !== "object" || request === null || Array.isArray(request)) throw new SyntaxError("not an object");
  return tidy(request);
}

function unescaped(text) {
  try {
    return decodeURIComponent(text);
  } catch { // JSON as it is, with a percent sign in a prompt
    return text;
  }
}
