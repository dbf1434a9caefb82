// Image prompts: pictures that are a part of the prompt.

import { isList } from "../lib/adapters.js";
import { h } from "../lib/dom.js";
import { studio } from "../lib/state.js";
import { addButton } from "./lines.js";
import { pictureLines } from "./pictures.js";

const MOST = 4;
const USUAL = 0.6; // at 1 the picture leaves the words little say

/** The section of the form; null for a model without an IP-Adapter. */
export function imagePromptSection({ card, set, add }) {
  const items = studio.request.image_prompts ?? [];
  if (!card.ip_adapter || !isList(items)) return null;
  return h("section", {}, add(pictureLines({
    name: "image_prompts", label: "Pictures as prompts", noun: "Image prompt", most: MOST, items, changed: set("image_prompts"),
    scale: { min: 0, max: 1.5, least: 0, most: 10, usual: 1 },
    adder: addButton("Add a picture to the prompt", () => ({ scale: USUAL })),
  })));
}
