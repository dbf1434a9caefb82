// LoRAs: a line for each that is drawn with, and a choice of those that the model can use.

import { api } from "../lib/api.js";
import { isList, usable } from "../lib/adapters.js";
import { h, say } from "../lib/dom.js";
import * as fields from "../lib/fields.js";
import { studio } from "../lib/state.js";
import { lines } from "./lines.js";

const MOST = 4;
const MOST_WORDS = 8;

/** The section of the form: null for a model that takes none, hidden as long as there are none. */
export function loraSection({ card, set, add }) {
  const items = studio.request.loras ?? [];
  if (!card.takes_loras || !isList(items)) return null;
  const made = lines({
    name: "loras", label: "LoRAs", most: MOST, items, changed: set("loras"),
    line: (item, tell) => line(item, tell, wordsOf(card, item.name), set("prompt")),
    adder: (put) => adder(put, () => usable(card.loras)),
  });
  const section = h("section", {}, add(made));
  const look = () => (section.hidden = !usable(card.loras).length && !studio.request.loras?.length);
  look();
  refresh(card).then(() => (made.offer(), look())).catch(() => {}); // the card has those of when the page was loaded
  return section;
}

/** Ask again for what the model can use: files come and go. */
async function refresh(card) {
  card.loras = (await api.loras()).filter((one) => one.models.includes(card.name));
}

const wordsOf = (card, name) => card.loras.find((one) => one.name === name)?.trigger_words.slice(0, MOST_WORDS) ?? [];

function line(item, tell, words, prompt) {
  const scale = fields.factor({
    name: "scale", label: item.name, spoken: `Scale of ${item.name}`, min: -2, max: 2, least: -10, most: 10, usual: 1,
    changed: (value) => tell({ scale: value === 1 ? undefined : value }),
  });
  scale.show(item.scale);
  const chips = words.map((word) => triggerChip(word, prompt));
  const offered = words.length ? h("div", { class: "words", role: "group", "aria-label": `Trigger words of ${item.name}` }, chips.map((one) => one.element)) : null;
  return { title: `LoRA ${item.name}`, parts: [scale.element, offered], fields: { scale }, look: () => chips.forEach((one) => one.look()) };
}

/** A trigger word, which goes into the prompt when it is pressed, unless it is there. */
function triggerChip(word, prompt) {
  const isThere = () => (studio.request.prompt ?? "").toLowerCase().includes(word.toLowerCase());
  const element = h("button", { type: "button", class: "quiet word", title: "Add it to the prompt", onclick() {
    if (!isThere()) prompt([studio.request.prompt, word].filter(Boolean).join(", "));
    say(`${word} is in the prompt.`);
    look();
  } });
  function look() {
    element.textContent = `${isThere() ? "✓" : "+"} ${word}`;
  }
  look();
  return { element, look };
}

/** A choice of those that are not in the list yet, and a button. */
function adder(put, offered) {
  const select = h("select", { "aria-label": "LoRA to add" });
  const element = h("div", { class: "adder" }, select, h("button", { type: "button", class: "quiet", onclick: () => put({ name: select.value }) }, "Add a LoRA"));
  return {
    element,
    offer(items) {
      const left = offered().filter((one) => !items.some((item) => item.name === one.name));
      const chosen = select.value;
      select.replaceChildren(...left.map(({ name, trigger_words: words }) =>
        h("option", { value: name }, words.length ? `${name} (${words.slice(0, 3).join(", ")})` : name)));
      if (left.some((one) => one.name === chosen)) select.value = chosen;
      return left.length > 0;
    },
  };
}
