// Server: workers, queues, pace, and what each model can do.

import { usable } from "../lib/adapters.js";
import { api, SERVER } from "../lib/api.js";
import { figure, h } from "../lib/dom.js";
import { poll } from "../lib/follow.js";
import { shownLabel } from "../lib/requests.js";
import { studio } from "../lib/state.js";

const LOOK_MS = 2000;
const MOST_LABELS = 24;

export async function mount(root, signal) {
  const totals = h("dl", { class: "totals" });
  const models = h("div", { class: "models" });
  const live = new Map();

  function lay() {
    live.clear();
    models.replaceChildren(...studio.cards.map((card) => {
      const now = h("dl", { class: "totals small" });
      const absent = h("p", { class: "hint", hidden: card.served }, "No worker holds this model at present: its jobs wait for the next one.");
      live.set(card.name, { now, absent });
      return h("section", { class: "model", "aria-label": card.name }, h("div", { class: "model-head" }, h("h2", { class: "title" }, card.name), h("p", { class: "hint" }, card.title)), absent, now, abilities(card));
    }));
  }
  async function look() {
    if (document.hidden) return false;
    const status = await api.status();
    if (status.models.map((one) => one.name).join() !== studio.cards.map((one) => one.name).join()) {
      await studio.load();
      lay();
    }
    const waiting = status.models.reduce((sum, one) => sum + one.waiting, 0);
    fill(totals, [["Workers", status.workers], ["Running", status.running], ["Waiting", waiting], ["Version", status.version]]);
    for (const one of status.models) {
      const { now, absent } = live.get(one.name);
      absent.hidden = one.workers > 0;
      fill(now, [
        ["Workers", one.workers], ["Waiting", one.waiting],
        ["Pictures a second", pace(one.pictures_per_second)], ["Evaluations a second", pace(one.evaluations_per_second)],
      ]);
    }
    return false;
  }
  root.append(
    h("h1", {}, "Server"),
    h("p", { class: "lead" }, SERVER, " · ", h("a", { href: "docs" }, "API"), " · ", h("a", { href: "docs/errors" }, "errors")),
    totals, models,
  );
  fill(totals, ["Workers", "Running", "Waiting", "Version"].map((name) => [name, "–"]));
  lay();
  for (const { now } of live.values()) fill(now, ["Workers", "Waiting", "Pictures a second", "Evaluations a second"].map((name) => [name, "–"]));
  poll(look, signal, LOOK_MS);
}

const pace = (value) => (value === null ? "–" : figure(value, 2));

function fill(list, pairs) {
  list.replaceChildren(...pairs.map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, String(value)))));
}

/** What a model's card says, for people. */
function abilities(card) {
  const { sizes, defaults } = card;
  const labels = card.labels.slice(0, MOST_LABELS).map(shownLabel).join(", ") + (card.labels.length > MOST_LABELS ? `, and ${card.labels.length - MOST_LABELS} more` : "");
  const size = sizes.min_side === sizes.max_side ? `${sizes.default.join(" × ")} pixels` : `${sizes.default.join(" × ")} pixels; sides ${sizes.min_side} to ${sizes.max_side}`;
  const takes = [card.takes_prompt ? "prompts" : null, card.labels.length ? "labels" : null, card.takes_init_image ? "pictures to start from" : null].filter(Boolean).join(", ");
  return h("dl", { class: "abilities" }, Object.entries({
    Takes: takes,
    Labels: labels || "none",
    Modes: card.guidance_modes.map((mode) => mode.replace("_", "-")).join(", "),
    Samplers: card.samplers.join(", "),
    Size: size,
    Defaults: `${defaults.guidance_mode.replace("_", "-")} at ${defaults.guidance_scale}, ${defaults.sampler}, ${defaults.steps} steps`,
    Parameters: `${figure(card.num_parameters / 1e6)} million, ${card.precision}; ${figure(card.memory.total_bytes / 2 ** 20)} MiB in a worker`,
    Licence: card.license ?? "not stated",
    LoRAs: usable(card.loras).map((one) => one.name).join(", "),
    Controls: usable(card.controls).map((one) => one.name).join(", "),
    "Image prompts": card.ip_adapter ? `IP-Adapter, ${card.ip_adapter.kind}` : "",
  }).filter(([, value]) => value).map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value))));
}
