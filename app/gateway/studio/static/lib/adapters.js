// What changes a model or steers it: lists in a request, of LoRAs, of controls and of image prompts.

/** Whether a request's value is a list of objects: an address may hold anything. */
export const isList = (value) => Array.isArray(value) && value.every((one) => one !== null && typeof one === "object" && !Array.isArray(one));

/** Those of a card's list that its model can use. */
export const usable = (known) => known.filter((one) => one.fault === null);

const has = (known, name) => usable(known).some((one) => one.name === name);

/** By field: what people call one, with its name; what it has if that is left out; whether a model can use it. */
const KINDS = {
  loras: { called: (one) => `the LoRA ${one.name}`, plain: { scale: 1 }, fits: (card, one) => has(card.loras, one.name) },
  controls: {
    called: (one) => `the control ${one.model}`, plain: { scale: 1, start: 0, end: 1, preprocess: null }, hasPicture: true,
    fits: (card, one) => has(card.controls, one.model),
  },
  image_prompts: { called: (_, index) => `image prompt ${index + 1}`, plain: { scale: 1 }, hasPicture: true, fits: (card) => card.ip_adapter !== null },
};

export const LISTS = Object.keys(KINDS);

/** The request with another list in place of each that it has. */
function mapped(request, change) {
  const lists = Object.entries(request).filter(([, value]) => isList(value));
  return { ...request, ...Object.fromEntries(lists.map(([field, list]) => [field, change(field, list)])) };
}

/** A resolved request's lists as a person would write them: of whatever files are there now. */
export const asWritten = (request) => mapped(request, (field, list) => list.map(({ digest: _, image_sha256: __, ...one }) => {
  const plain = KINDS[field]?.plain ?? {};
  return Object.fromEntries(Object.entries(one).filter(([name, value]) => !(name in plain) || value !== plain[name]));
}));

/** The request without the pictures in its lists. */
export const withoutPictures = (request) => mapped(request, (_, list) => list.map(({ image: _, ...one }) => one));

/** The request with the pictures that `present` has for the same in the same place. */
export const withPictures = (request, present) => mapped(request, (field, list) => list.map((one, index) => {
  const same = isList(present[field]) ? present[field][index] : null;
  return one.image === undefined && same?.image !== undefined && same.model === one.model ? { ...one, image: same.image } : one;
}));

function each(request) {
  return Object.entries(KINDS).flatMap(([field, kind]) => (isList(request[field]) ? request[field] : []).map((one, index) => ({ ...kind, field, one, name: kind.called(one, index) })));
}

/** What of the request's lists needs a picture and has none, in words. */
export const lackingPictures = (request) => each(request).filter(({ hasPicture, one }) => hasPicture && one.image === undefined).map(({ name }) => name);

/** What a model can use of the present request's lists, and a line about what it can't, or null. */
export function takenAlong(request, card) {
  const [kept, left] = [{}, []];
  for (const { field, name, fits, one } of each(request)) {
    if (fits(card, one)) (kept[field] ??= []).push(one);
    else left.push(name);
  }
  return { kept, note: left.length ? `Left out, since ${card.name} can't use ${left.length > 1 ? "them" : "it"}: ${left.join(", ")}.` : null };
}

/** The request's lists in words; null if it has none. */
export function carried(request) {
  const parts = each(request).map(({ name, one }) => `${name}${(one.scale ?? 1) === 1 ? "" : ` at ${one.scale}`}`);
  return parts.length ? `With ${parts.join(", ")}.` : null;
}
