// Controls: pictures that ControlNets steer by.

import { isList, usable } from "../lib/adapters.js";
import { h } from "../lib/dom.js";
import * as fields from "../lib/fields.js";
import { studio } from "../lib/state.js";
import { addButton } from "./lines.js";
import { pictureLines } from "./pictures.js";

const MOST = 3;
const PREPROCESSORS = [["", "as it is"], ["canny", "its edges (canny)"], ["tile", "without details (tile)"], ["gray", "in grey"], ["invert", "inverted"]];

/** The section of the form; null for a model whose card lists none. */
export function controlSection({ card, set, add }) {
  const items = studio.request.controls ?? [];
  if (!card.takes_controls || !card.controls.length || !isList(items)) return null;
  const able = usable(card.controls);
  const unable = card.controls.filter((one) => one.fault !== null);
  const made = pictureLines({
    name: "controls", label: "Controls", noun: "Control", most: MOST, items, changed: set("controls"),
    scale: { min: 0, max: 2, least: 0, most: 10, usual: 1 },
    more: (item, tell) => more(item, tell, card),
    adder: (put) => ({ ...addButton("Add a control", () => ({ model: able[0].name }))(put), offer: () => able.length > 0 }),
  });
  return h("section", {}, add(made), unable.length ? h("details", { class: "unable" },
    h("summary", {}, `${unable.length} that ${card.name} can't use`),
    h("dl", {}, unable.map((one) => h("div", {}, h("dt", {}, one.name), h("dd", {}, one.fault))))) : null);
}

function more(item, tell, card) {
  const options = card.controls.map(({ name, fault }) => [name, fault === null ? name : `${name}: can't be used`, fault]);
  const isKnown = card.controls.some((one) => one.name === item.model);
  const model = fields.select({
    name: "model", label: "Control", changed: (name) => tell({ model: name }),
    options: isKnown ? options : [[item.model, `${item.model}: not here`, "It is not on the model's card."], ...options],
  });
  model.show(item.model);
  const preprocess = fields.select({ name: "preprocess", label: "Use the picture", options: PREPROCESSORS, changed: (name) => tell({ preprocess: name || undefined }) });
  preprocess.show(item.preprocess ?? "");
  const during = fields.interval({
    name: "start", label: "Steer during", from: "Steer from", to: "Steer until",
    changed: ([start, end]) => tell({ start: start || undefined, end: end === 1 ? undefined : end }),
  });
  during.show([item.start ?? 0, item.end ?? 1]);
  return { above: [model.element], below: [preprocess.element, during.element], fields: { model, preprocess, start: during, end: during } };
}
