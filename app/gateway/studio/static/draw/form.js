// The form of a request: what the model's card says that the model takes, and nothing else.

import { LISTS } from "../lib/adapters.js";
import { h } from "../lib/dom.js";
import * as fields from "../lib/fields.js";
import { defaultScale, inShort, MODE_NAMES, modeOf, pathOf } from "../lib/requests.js";
import { newSeed, studio } from "../lib/state.js";
import { controlSection } from "../lists/controls.js";
import { loraSection } from "../lists/loras.js";
import { imagePromptSection } from "../lists/prompts.js";
import { subjectFields } from "../views/subject.js";
import { startFields } from "./start.js";

const MODE_HINTS = {
  none: "The plain conditional model",
  classifier_free: "Away from the unconditional prediction",
  classifier: "Along the gradient of a classifier",
  combined: "Both terms, each with its own scale",
};
const SCALE_HINTS = {
  classifier_free: "0 ignores the label or prompt, 1 is the plain model.",
  combined: "0 ignores the label or prompt, 1 is the plain model.",
  classifier: "0 is no guidance.",
};

/**
 * Build the form for the model of `studio.request`.
 *
 * `changed()` is called after each change, `remade()` when the form must be built anew, for another model, and
 * `taken(file)` with a chosen file, or null to leave the picture out. The answer has `element`, `refuse(faults)`
 * (returns those whose field is not here), `focus(field)` and `showSeed()`.
 */
export function requestForm({ changed, remade, taken }) {
  const card = studio.card();
  const made = new Map();
  const set = (name) => (value) => {
    if (value === undefined) delete studio.request[name];
    else studio.request[name] = value;
    update();
    changed();
  };
  const add = (one) => {
    made.set(one.name, one);
    return one.element;
  };

  const element = h("form", { class: "form", novalidate: true, "aria-label": "Request" },
    h("section", {}, subjectFields({ set, add, remade })),
    imagePromptSection({ card, set, add }),
    loraSection({ card, set, add }),
    h("section", {}, h("h2", {}, "Guidance"), guidance(card, set, add)),
    h("section", {}, h("h2", {}, "Sampling"), sampling(card, set, add)),
    more(card, set, add),
    controlSection({ card, set, add }),
    h("section", { class: "start" }, startFields({ card, set, add, taken })),
    others(made, () => (changed(), remade("others"))),
  );

  function update() {
    const { request } = studio;
    const mode = modeOf(request, card);
    for (const [name, one] of made) {
      const isBeingEdited = one.element.contains(document.activeElement); // what is half typed stays as it is
      if (name !== "seed" && !isBeingEdited) one.show?.(shown(name, request, card, mode));
    }
    made.get("seed").show(studio.seed);
    const isClassified = mode === "classifier" || mode === "combined";
    made.get("guidance_scale").hide(mode === "none");
    made.get("classifier_scale")?.hide(mode !== "combined");
    made.get("guidance_interval").hide(mode === "none");
    made.get("classifier_base")?.hide(!isClassified);
    made.get("negative_prompt")?.hide(!["classifier_free", "combined"].includes(mode));
    for (const name of ["guidance_scale", "classifier_scale"]) if (made.get(name)?.element.hidden && name in request) delete request[name];
    if (mode === "none") delete request.guidance_interval;
    if (!isClassified) delete request.classifier_base;
    made.get("eta")?.hide(!card.eta_samplers.includes(request.sampler ?? card.defaults.sampler));
  }
  update();
  return {
    element,
    refuse(faults) {
      for (const one of made.values()) one.refuse(null);
      return faults.filter(({ field, detail }) => {
        const [name, ...rest] = pathOf(field);
        const one = made.get(name);
        if (!one || one.element.hidden) return true;
        one.refuse(detail, rest);
        one.element.closest("details")?.setAttribute("open", "");
        return false;
      });
    },
    focus(field) {
      const [name, ...rest] = pathOf(field);
      made.get(name)?.focus(rest);
    },
    showSeed: () => made.get("seed").show(studio.seed),
  };
}

/** What a control shows for a field: what the request has, or what it would get. */
function shown(name, request, card, mode) {
  if (name === "guidance_mode") return mode;
  if (name === "model") return card.name;
  if (name === "guidance_scale") return request.guidance_scale ?? defaultScale(mode, card);
  if (name === "classifier_scale") return request.classifier_scale ?? card.defaults.classifier_scale;
  if (name === "classifier_base") return request.classifier_base ?? card.classifier_bases[0];
  if (name === "sampler") return request.sampler ?? card.defaults.sampler;
  if (name === "eta") return request.eta ?? 0;
  if (name === "cache") return request.cache ? JSON.stringify(request.cache) : "";
  if (name === "size") return `${request.width ?? card.sizes.default[0]}×${request.height ?? card.sizes.default[1]}`;
  if (name === "class_label" && typeof request.class_label === "number") return card.labels[request.class_label];
  return request[name];
}

function guidance(card, set, add) {
  const modes = card.guidance_modes.map((name) => [name, MODE_NAMES[name], MODE_HINTS[name]]);
  const usualOfClassifier = card.defaults.classifier_scale;
  /** A scale means another thing for a classifier: it does not go over from one to the other. */
  function changeMode(mode) {
    if ([mode, modeOf(studio.request, card)].includes("classifier")) delete studio.request.guidance_scale;
    set("guidance_mode")(mode);
  }
  const parts = [
    add(fields.choice({ name: "guidance_mode", label: "Mode", options: modes, changed: changeMode })),
    add(scales(card, set)),
  ];
  if (usualOfClassifier !== null) {
    parts.push(add(fields.scale({ name: "classifier_scale", label: "Classifier scale", changed: set("classifier_scale"), usual: usualOfClassifier, hint: "0 is no guidance by the classifier." })));
  }
  parts.push(add(fields.interval({
    name: "guidance_interval", label: "Guide during",
    changed: (value) => set("guidance_interval")(value[0] === 0 && value[1] === 1 ? undefined : value),
  })));
  if (card.takes_prompt) {
    parts.push(add(fields.text({ name: "negative_prompt", label: "Negative prompt", placeholder: "what to steer away from", changed: set("negative_prompt") })));
  }
  return parts;
}

/** The scale's slider, which spans what is usual in the mode: a classifier's may be ten times another's. */
function scales(card, set) {
  const slot = h("div", {});
  let now = null;
  let mode = null;
  let refused = null;
  return {
    name: "guidance_scale",
    element: slot,
    hide: (is) => (slot.hidden = is),
    refuse: (detail) => ((refused = detail), now?.refuse(detail)),
    focus: () => now?.focus(),
    show(value) {
      const wanted = modeOf(studio.request, card);
      if (wanted !== mode && wanted !== "none") {
        mode = wanted;
        now = fields.scale({ name: "guidance_scale", label: "Scale", changed: set("guidance_scale"), usual: defaultScale(mode, card), hint: SCALE_HINTS[mode] });
        now.refuse(refused);
        slot.replaceChildren(now.element);
      }
      if (now && document.activeElement !== now.element.querySelector(".figure")) now.show(value);
    },
  };
}

function sampling(card, set, add) {
  const pin = h("input", { type: "checkbox", id: "pin", checked: studio.isPinned, onchange: () => (studio.isPinned = pin.checked) });
  const dice = h("button", { type: "button", class: "quiet icon", title: "Another seed", "aria-label": "Another seed" }, "⚄");
  const seed = fields.number({
    name: "seed", label: "Seed", min: 0, max: Number.MAX_SAFE_INTEGER,
    aside: h("label", { class: "pin", title: "Keep this seed for the next picture" }, pin, "pin"),
    changed(value) {
      studio.seed = value ?? newSeed();
      pin.checked = studio.isPinned = value !== undefined;
      set("seed")(undefined);
    },
  });
  dice.addEventListener("click", () => {
    studio.seed = newSeed();
    studio.wasDrawn = false;
    set("seed")(undefined);
  });
  const input = seed.element.querySelector("input[type=number]");
  input.after(dice);
  const show = seed.show;
  seed.show = (value) => document.activeElement !== input && show(value);
  const [width, height] = card.sizes.default;
  const asked = [studio.request.width ?? width, studio.request.height ?? height];
  const isSuggested = card.sizes.suggested.some((size) => size.join() === asked.join());
  const sizes = isSuggested ? card.sizes.suggested : [asked, ...card.sizes.suggested];
  return [
    h("div", { class: "pair" },
      add(fields.number({ name: "steps", label: "Steps", min: 1, max: card.max_steps, placeholder: String(card.defaults.steps), changed: set("steps") })),
      add(fields.select({ name: "sampler", label: "Sampler", options: card.samplers.map((one) => [one, one]), changed: (value) => set("sampler")(value === card.defaults.sampler ? undefined : value) }))),
    h("div", { class: "pair" },
      add(seed),
      add(fields.number({ name: "num_images", label: "Pictures", min: 1, max: card.max_images, placeholder: "1", changed: set("num_images") }))),
    sizes.length > 1 ? add(fields.select({
      name: "size", label: "Size", options: sizes.map(([wide, high]) => [`${wide}×${high}`, `${wide} × ${high}`]),
      changed(value) {
        const [wide, high] = value.split("×").map(Number);
        const isUsual = wide === width && high === height;
        studio.request.height = isUsual ? undefined : high;
        set("width")(isUsual ? undefined : wide);
      },
    })) : null,
  ];
}

const CACHES = [2, 3, 5].map((every) => ({ every, until: 0.8 }));

/** Step caches to choose from, that of the request among them. */
function caches() {
  const own = JSON.stringify(studio.request.cache);
  const all = !own || CACHES.some((one) => JSON.stringify(one) === own) ? CACHES : [...CACHES, studio.request.cache];
  const named = ({ every, until }) => `every ${every}, until ${Math.round(100 * (until ?? 1))} %`;
  return [["", "always"], ...all.map((one) => [JSON.stringify(one), named(one)])];
}

/** What is seldom changed, folded away. */
function more(card, set, add) {
  const parts = [];
  if (card.eta_samplers.length) {
    parts.push(add(fields.fraction({ name: "eta", label: "Fresh noise (eta)", hint: "0 is deterministic, 1 as much as the ancestral sampler adds.", changed: (value) => set("eta")(value || undefined) })));
  }
  if (card.classifier_bases.length > 1) {
    parts.push(add(fields.choice({ name: "classifier_base", label: "The classifier steers the prediction that is", options: card.classifier_bases.map((one) => [one, one]), changed: set("classifier_base") })));
  }
  if (card.takes_cache) {
    parts.push(add(fields.select({ name: "cache", label: "Deep blocks run", options: caches(), hint: "Seldom is faster, and a little different.", changed: (value) => set("cache")(value ? JSON.parse(value) : undefined) })));
  }
  return parts.length ? h("details", { class: "more" }, h("summary", {}, "More"), h("div", { class: "more-fields" }, parts)) : null;
}

const SHOWN_ELSEWHERE = ["init_image", "mask_image", "strength", "width", "height"];

/** Fields of a deep link or a picture that have no control here: each can be taken out. */
function others(made, changed) {
  const known = ["model", "prompt", "negative_prompt", "class_label", "guidance_mode", "guidance_scale", "classifier_scale", "classifier_base", "guidance_interval", "steps", "sampler", "seed", "num_images", "eta", ...(made.has("cache") ? ["cache"] : []), ...SHOWN_ELSEWHERE, ...LISTS.filter((name) => made.has(name))];
  const extra = Object.keys(studio.request).filter((name) => !known.includes(name));
  if (!extra.length) return null;
  return h("section", {}, h("h2", {}, "Also set"), h("ul", { class: "extras" }, extra.map((name) => h("li", {},
    h("code", {}, `${name} = ${inShort(studio.request[name])}`),
    h("button", { type: "button", class: "quiet", "aria-label": `Leave ${name} out`, onclick: () => (delete studio.request[name], changed()) }, "×")))));
}
