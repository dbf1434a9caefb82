// Small helpers to build elements. Text is always set as text: nothing here parses HTML.

const SVG = "http://www.w3.org/2000/svg";

/** Set properties of an element: `class`, `on…` handlers, `style` and `data` objects, attributes, properties. */
function assign(element, props) {
  for (const [name, value] of Object.entries(props)) {
    if (value === undefined || value === null || value === false) continue;
    if (name === "class") element.setAttribute("class", value);
    else if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "style") for (const [key, one] of Object.entries(value)) element.style.setProperty(key, one);
    else if (name === "data") Object.assign(element.dataset, value);
    else if (name in element && !(element instanceof SVGElement) && name !== "list") element[name] = value;
    else element.setAttribute(name, value === true ? "" : value);
  }
}

/** An HTML element with its properties and children (nodes, texts, arrays of them; null is left out). */
export function h(tag, props = {}, ...children) {
  const element = document.createElement(tag);
  assign(element, props);
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

/** An SVG element. */
export function s(tag, props = {}, ...children) {
  const element = document.createElementNS(SVG, tag);
  assign(element, props);
  element.append(...children.flat(Infinity));
  return element;
}

let count = 0;
/** An id that no other element has. */
export const newId = (what) => `${what}-${++count}`;

/** Tell users of screen readers what happened. */
export function say(text) {
  document.getElementById("said").textContent = text;
}

/** Call `work` once, `ms` after the last of a series of calls. */
export function debounced(work, ms) {
  let timer;
  return (...args) => {
    clearTimeout(timer);
    timer = setTimeout(() => work(...args), ms);
  };
}

export const wantsLessMotion = () => matchMedia("(prefers-reduced-motion: reduce)").matches;

/** 3 → "3", 0.25 → "0.25", 12345 → "12,345". */
export const figure = (value, digits = 3) => value.toLocaleString("en", { maximumSignificantDigits: Math.max(digits, String(Math.trunc(Math.abs(value))).length) });

/** A duration for people: "80 ms", "0.4 s", "12 s", "3 min". */
export function duration(seconds) {
  if (seconds < 0.095) return `${Math.max(1, Math.round(1000 * seconds))} ms`;
  if (seconds < 9.95) return `${seconds.toFixed(1)} s`;
  return seconds < 90 ? `${Math.round(seconds)} s` : `${Math.round(seconds / 60)} min`;
}

/** A button that copies what `text()` gives. */
export function copyButton(text, label = "Copy") {
  const button = h("button", { type: "button", class: "quiet copy" }, label);
  button.addEventListener("click", async () => {
    await copy(text());
    button.textContent = "Copied";
    say("Copied.");
    setTimeout(() => (button.textContent = label), 1500);
  });
  return button;
}

async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch { // not over plain http, except on this machine
    const area = h("textarea", { value: text, class: "hidden" });
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
}

/** Offer bytes as a file. */
export function save(blob, name) {
  const url = URL.createObjectURL(blob);
  h("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}
