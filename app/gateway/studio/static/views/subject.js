// What is drawn: the model, and the label or prompt that it takes.

import { carried } from "../lib/adapters.js";
import { h, say } from "../lib/dom.js";
import * as fields from "../lib/fields.js";
import { fieldName, shownLabel } from "../lib/requests.js";
import { newSeed, studio } from "../lib/state.js";

const MOST_CHIPS = 12;

/** The fields for it: `set(name)` gives what is told of a value, `add` keeps a field, `remade` builds all anew. */
export function subjectFields({ set, add, remade }) {
  const card = studio.card();
  const parts = [];
  if (studio.cards.length > 1) {
    parts.push(add(fields[studio.cards.length > 3 ? "select" : "choice"]({
      name: "model", label: "Model", options: studio.cards.map((one) => [one.name, one.name, one.title]),
      changed(name) {
        studio.changeModel(name);
        remade("model");
      },
    })));
  }
  if (studio.note) {
    parts.push(h("p", { class: "remark" }, studio.note));
    say(studio.note);
    studio.note = null; // once
  }
  if (card.takes_prompt) {
    parts.push(add(fields.text({ name: "prompt", label: "Prompt", rows: 2, placeholder: "a happy cat", changed: set("prompt") })));
  }
  if (card.labels.length) {
    const label = card.takes_prompt ? "Style or label" : "Label";
    const names = card.labels.map((one) => [one, shownLabel(one), one]);
    if (card.labels.length > MOST_CHIPS) parts.push(add(fields.text({ name: "class_label", label, changed: set("class_label"), suggestions: card.labels })));
    else parts.push(add(fields.choice({ name: "class_label", label, chips: true, options: [...names, [undefined, "any"]], changed: set("class_label") })));
  }
  return parts;
}

/** The bar above the views that draw one subject several times: subject, seed, steps, and a button. */
export function subjectBar({ changed, action, run, defaultSteps }) {
  const made = new Map();
  const bar = h("form", { class: "subject-bar", novalidate: true, "aria-label": "What to draw" });
  const general = h("p", { class: "error", role: "alert", hidden: true });
  const button = h("button", { type: "submit", class: "primary" }, action);
  let steps;

  function build(why) {
    const place = document.activeElement?.closest?.("[data-field]")?.dataset.field;
    made.clear();
    steps = defaultSteps(studio.card());
    const add = (one) => (made.set(one.name, one), one.element);
    const set = (name) => (value) => {
      if (value === undefined) delete studio.request[name];
      else studio.request[name] = value;
      changed();
    };
    const dice = h("button", { type: "button", class: "quiet icon", title: "Another seed", "aria-label": "Another seed" }, "⚄");
    const seed = fields.number({ name: "seed", label: "Seed", min: 0, max: Number.MAX_SAFE_INTEGER, changed: (value) => ((studio.seed = value ?? newSeed()), changed()) });
    seed.element.querySelector("input").after(dice);
    dice.addEventListener("click", () => {
      studio.seed = newSeed();
      seed.show(studio.seed);
      changed();
    });
    const lists = carried(studio.request);
    bar.replaceChildren(
      h("div", { class: "subject-fields" }, subjectFields({ set, add, remade: (what) => (build(what), changed()) })),
      h("div", { class: "subject-numbers" }, add(seed),
        add(fields.number({ name: "steps", label: "Steps", min: 1, max: studio.card().max_steps, placeholder: String(steps), changed: (value) => (steps = value ?? defaultSteps(studio.card())) })),
        button),
      h("p", { class: "hint carried", hidden: !lists }, lists),
      general,
    );
    made.get("model")?.show(studio.card().name);
    made.get("prompt")?.show(studio.request.prompt);
    const label = studio.request.class_label;
    made.get("class_label")?.show(typeof label === "number" ? studio.card().labels[label] : label);
    seed.show(studio.seed);
    if (why) made.get(place)?.focus();
  }
  bar.addEventListener("submit", async (event) => {
    event.preventDefault();
    button.disabled = true;
    try {
      await run();
    } finally {
      button.disabled = false;
    }
  });
  build();
  return {
    element: bar,
    steps: () => steps,
    refuse(error) {
      for (const one of made.values()) one.refuse(null);
      const rest = (error?.faults ?? []).filter(({ field, detail }) => {
        made.get(fieldName(field))?.refuse(detail);
        return !made.has(fieldName(field));
      });
      const text = error && !error.faults?.length ? error.message : rest.map((one) => one.detail).join(" ");
      general.hidden = !text;
      general.textContent = text;
    },
  };
}
