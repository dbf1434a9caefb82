// What the views share: the models' cards, and the request that is on screen.

import { api } from "./api.js";
import { takenAlong } from "./adapters.js";
import { tidy } from "./requests.js";

const events = new EventTarget();

export const studio = {
  /** Cards of the models, in the server's order. */
  cards: [],
  /** The request on screen, without what is left to the model's defaults. */
  request: {},
  /** The seed that a request without one gets here, so that the views show one picture. */
  seed: newSeed(),
  /** Whether the seed stays for the next picture. */
  isPinned: false,
  /** A line about the request that the next form shows. */
  note: null,
  /** Whether a picture of this seed was drawn: if it is not pinned, the next gets another. */
  wasDrawn: false,

  async load() {
    this.cards = await api.models();
    if (!this.card() && this.cards.length) this.request = firstRequest(this.cards[0]);
  },
  card(name = this.request.model) {
    return this.cards.find((one) => one.name === name);
  },
  /** The request as it is sent and shown, seed included. */
  whole() {
    return { ...tidy(this.request), seed: this.seed };
  },
  /** Go over to another model, with what it can use of the present one's LoRAs and controls. */
  changeModel(name) {
    const card = this.card(name);
    const { kept, note } = takenAlong(this.request, card);
    this.request = { ...firstRequest(card), ...kept };
    this.note = note;
  },
  /** Replace the request. */
  take(request, note = null) {
    this.note = note;
    const asked = { model: undefined, ...tidy(request) };
    const card = this.card(asked.model) ?? chosenFor(asked, this.cards);
    this.request = card ? { ...asked, model: card.name } : asked;
    if (this.request.seed !== undefined) [this.seed, this.isPinned] = [this.request.seed, true];
    delete this.request.seed;
    events.dispatchEvent(new Event("request"));
  },
  on: (name, listener, signal) => events.addEventListener(name, listener, { signal }),
};

/** A seed as the server draws them: read exactly by every language. */
export function newSeed() {
  return crypto.getRandomValues(new Uint32Array(1))[0];
}

/** A first request, so that one click draws something. */
export function firstRequest(card) {
  const label = card.takes_prompt ? card.labels[0] : card.labels.at(-1);
  return { model: card.name, ...(card.takes_prompt && { prompt: "a happy cat" }), ...(label && { class_label: label }) };
}

function chosenFor(request, cards) {
  const fits = (card) => request.class_label === undefined || card.labels.some((label) => label.split(", ").includes(String(request.class_label)));
  const wanted = cards.filter((card) => (request.prompt === undefined || card.takes_prompt) && fits(card));
  return wanted[0] ?? cards[0];
}
