// Form fields. Each is `{element, name, show(value), refuse(detail), hide(is)}` and tells `changed(value)` what was
// entered; `undefined` is the model's default.

import { h, newId } from "./dom.js";

/** A field around a control, with its label, a hint and a place for what is wrong with it. */
export function field({ name, label, control, hint, aside, group = false }) {
  const errorId = newId("error");
  const error = h("p", { class: "error", id: errorId, hidden: true });
  const labelId = newId("label");
  const focusable = control.matches("input, select, textarea") ? control : control.querySelector("input, select, textarea");
  const title = group
    ? h("span", { class: "label", id: labelId }, label)
    : h("label", { class: "label", htmlFor: (focusable.id ||= newId(name)) }, label);
  const element = h("div", { class: `field field-${name.replaceAll("_", "-")}`, data: { field: name } },
    h("div", { class: "label-row" }, title, aside), control, hint ? h("p", { class: "hint" }, hint) : null, error);
  if (group && control.tagName === "DIV") {
    if (!control.hasAttribute("role")) control.setAttribute("role", "group");
    control.setAttribute("aria-labelledby", labelId);
  }
  return {
    element, name,
    hide: (is) => (element.hidden = is),
    refuse(detail) {
      error.hidden = !detail;
      error.textContent = detail ?? "";
      element.classList.toggle("wrong", Boolean(detail));
      for (const one of element.querySelectorAll("input, select, textarea")) {
        if (detail) one.setAttribute("aria-describedby", errorId);
        else one.removeAttribute("aria-describedby");
        one.setAttribute("aria-invalid", String(Boolean(detail)));
      }
    },
    focus: () => (element.querySelector("input, select, textarea") ?? element).focus(),
  };
}

/** One of a few: radio buttons that look like one bar (`chips`: like separate ones). */
export function choice({ name, label, options, changed, chips = false, hint }) {
  const id = newId(name);
  const inputs = options.map(([value, text, title]) => {
    const input = h("input", { type: "radio", name: id, value: String(value), onchange: () => changed(value) });
    return [value, input, h("label", { title: title ?? text }, input, h("span", {}, text))];
  });
  const control = h("div", { class: chips ? "chips" : "segments", role: "radiogroup" }, inputs.map(([, , one]) => one));
  const made = field({ name, label, control, hint, group: true });
  return {
    ...made,
    show: (value) => inputs.forEach(([own, input]) => (input.checked = own === value)),
  };
}

/** One of a list of `[value, text]`; one with a third entry can't be chosen, and that says why. */
export function select({ name, label, options, changed, hint }) {
  const control = h("select", { onchange: () => changed(control.value) }, options.map(([value, text, fault]) => h("option", { value, disabled: Boolean(fault), title: fault }, text)));
  return { ...field({ name, label, control, hint }), show: (value) => (control.value = value) };
}

export function text({ name, label, changed, rows = 1, placeholder = "", hint, maxLength, suggestions }) {
  const listId = suggestions ? newId("list") : null;
  const props = { placeholder, maxLength: maxLength ?? 2000, spellcheck: false, oninput: () => changed(control.value || undefined) };
  const control = rows > 1 ? h("textarea", { ...props, rows }) : h("input", { type: "text", autocomplete: "off", list: listId, ...props });
  const made = field({ name, label, control, hint });
  if (suggestions) made.element.append(h("datalist", { id: listId }, suggestions.map((value) => h("option", { value }))));
  return { ...made, show: (value) => (control.value = value ?? "") };
}

const read = (input) => (input.value === "" ? undefined : Number(input.value));

export function number({ name, label, changed, min, max, step = 1, placeholder, hint, aside }) {
  const control = h("input", { type: "number", inputMode: "numeric", min, max, step, placeholder, oninput: () => changed(read(control)) });
  return { ...field({ name, label, control, hint, aside }), show: (value) => (control.value = value ?? ""), suggest: (value) => (control.placeholder = value) };
}

/**
 * A slider, and a number from `least` to `most`, which may be beyond the slider's ends: `place(number)` is where that is
 * on the slider, and `value(place)` the number there.
 */
function slidable({ name, label, spoken, changed, usual, hint, ends, least, most, place, value }) {
  const slider = h("input", { type: "range", ...ends, class: "slider", "aria-label": `${spoken ?? label}, slider` });
  const input = h("input", { type: "number", min: least, max: most, step: "any", class: "figure", "aria-label": spoken });
  const share = (at) => (100 * (at - ends.min)) / (ends.max - ends.min);
  function paint() {
    const [low, high] = [share(Math.max(0, ends.min)), share(slider.value)].sort((a, b) => a - b);
    slider.style.setProperty("--low", `${low}%`);
    slider.style.setProperty("--filled", `${high}%`);
  }
  const made = field({ name, label, control: h("div", { class: "slider-row" }, slider), hint, aside: input });
  input.id = newId(name);
  made.element.querySelector("label").htmlFor = input.id;
  slider.addEventListener("input", () => {
    input.value = value(slider.value);
    paint();
    changed(read(input));
  });
  input.addEventListener("input", () => {
    slider.value = place(read(input) ?? usual);
    paint();
    changed(read(input));
  });
  return {
    ...made,
    show(number) {
      input.value = number ?? usual;
      slider.value = place(number ?? usual);
      paint();
    },
    focus: () => input.focus(),
  };
}

const CURVE = 2; // fine at small scales, where they matter most

/** A guidance scale: a slider that is finer at small scales, and a number that takes any. */
export function scale(given) {
  const most = Math.max(20, given.usual);
  const rounded = (value) => (value < 10 ? Math.round(value * 10) / 10 : Math.round(value));
  return slidable({
    ...given, ends: { min: 0, max: 1000, step: 1 }, least: -100, most: 100,
    place: (value) => 1000 * Math.sign(value) * (Math.min(Math.abs(value), most) / most) ** (1 / CURVE),
    value: (at) => rounded(most * (at / 1000) ** CURVE),
  });
}

/** A factor: a slider from `min` to `max`, and a number from `least` to `most`. */
export const factor = ({ min, max, ...given }) => slidable({ ...given, ends: { min, max, step: 0.05 }, place: Number, value: Number });

/** A fraction with a slider, from `min` to 1. */
export function fraction({ name, label, changed, hint, min = 0 }) {
  const output = h("output", { class: "figure" });
  const slider = h("input", { type: "range", min, max: 1, step: 0.01, class: "slider" });
  const show = (value) => {
    slider.value = value;
    output.textContent = Number(slider.value).toFixed(2);
    slider.style.setProperty("--filled", `${((slider.value - min) / (1 - min)) * 100}%`);
  };
  slider.addEventListener("input", () => (show(slider.value), changed(Number(slider.value))));
  return { ...field({ name, label, control: slider, hint, aside: output }), show };
}

/** The part of the trajectory from noise to the picture between two handles. */
export function interval({ name, label, changed, from: first = "Guide from", to: last = "Guide until" }) {
  const handle = (text) => h("input", { type: "range", min: 0, max: 1, step: 0.01, id: newId(name), "aria-label": text });
  const from = handle(first);
  const to = handle(last);
  const output = h("output", { class: "figure" });
  const track = h("div", { class: "trajectory" }, h("div", { class: "trajectory-track" }, h("div", { class: "trajectory-part" })), from, to);
  const ends = h("div", { class: "ends", "aria-hidden": "true" }, h("span", {}, "noise"), h("span", {}, "picture"));
  const made = field({ name, label, control: h("div", {}, track, ends), group: true, aside: output });

  function paint() {
    const [low, high] = [Number(from.value), Number(to.value)];
    track.style.setProperty("--from", `${low * 100}%`);
    track.style.setProperty("--to", `${high * 100}%`);
    output.textContent = low === 0 && high === 1 ? "all steps" : `${low.toFixed(2)} – ${high.toFixed(2)}`;
    // Where the handles meet, the one that can still move lies above.
    from.style.zIndex = low > 0.5 ? 3 : 2;
    to.style.zIndex = low > 0.5 ? 2 : 3;
  }
  from.addEventListener("input", () => {
    if (Number(from.value) > Number(to.value)) from.value = to.value;
    paint();
    changed([Number(from.value), Number(to.value)]);
  });
  to.addEventListener("input", () => {
    if (Number(to.value) < Number(from.value)) to.value = from.value;
    paint();
    changed([Number(from.value), Number(to.value)]);
  });
  return {
    ...made,
    show(value) {
      const [low, high] = value ?? [0, 1];
      from.value = low;
      to.value = high;
      paint();
    },
  };
}
