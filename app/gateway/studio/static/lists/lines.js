// A field that is a list: a line for each of its objects, and what adds one.

import { h, newId, say } from "../lib/dom.js";
import { field } from "../lib/fields.js";

/**
 * A field of at most `most` lines.
 *
 * `line(item, tell, number)` makes one: `{title, parts, fields}`, with its elements and the fields that can be refused,
 * by their names in the object. `tell({scale: 2})` changes the object; `undefined` takes a name out. `adder(add)` makes
 * what adds one: `{element, offer(items)}`, which answers whether anything is left to add. `changed(items)` hears of
 * each change; `undefined` is an empty list.
 */
export function lines({ name, label, hint, most, items, changed, line, adder }) {
  const list = h("div", { class: "lines" });
  const more = adder((item) => put([...items, item], items.length));
  const made = field({ name, label, hint, control: h("div", { class: "list" }, list, more.element), group: true });
  let shown = [];

  function row(item, index) {
    const one = line(item, (change) => {
      const changes = Object.entries({ ...items[index], ...change }).filter(([, value]) => value !== undefined);
      items = items.with(index, Object.fromEntries(changes));
      changed(items);
    }, index + 1);
    const error = h("p", { class: "error", id: newId("error"), hidden: true });
    const remove = h("button", { type: "button", class: "quiet remove", title: "Remove", "aria-label": `Remove ${one.title}`, onclick: () => {
      put(items.toSpliced(index, 1), Math.min(index, items.length - 2));
      say(`${one.title} is removed.`);
    } }, "×");
    return {
      ...one, remove,
      element: h("div", { class: "line", role: "group", "aria-label": one.title, "aria-describedby": error.id }, h("div", { class: "line-parts" }, one.parts, error), remove),
      refuse(detail, part) {
        for (const own of Object.values(one.fields)) own.refuse(null);
        const own = one.fields[part];
        own?.refuse(detail);
        error.hidden = Boolean(own) || !detail;
        error.textContent = error.hidden ? "" : detail;
      },
      focus: (part) => (one.fields[part] ?? Object.values(one.fields)[0]).focus(),
    };
  }
  function lay() {
    shown = items.map(row);
    list.replaceChildren(...shown.map((one) => one.element));
    offer();
  }
  function offer() {
    const isLeft = more.offer(items);
    more.element.hidden = !isLeft || items.length >= most;
  }
  /** Have other items, and the focus in line `at`: in what was added, or at the button of the next to remove. */
  function put(now, at) {
    const isAdded = now.length > items.length;
    items = now;
    lay();
    changed(items.length ? items : undefined);
    if (isAdded) shown[at].focus();
    else (shown[at]?.remove ?? more.element.querySelector("select, button"))?.focus();
  }
  lay();
  return {
    ...made, offer,
    /** Have each line look at the rest of the request. */
    show: () => shown.forEach((one) => one.look?.()),
    refuse(detail, [index, part] = []) {
      const one = shown[index];
      if (detail && one) return one.refuse(detail, part);
      for (const each of shown) each.refuse(null);
      made.refuse(detail);
    },
    focus: ([index, part] = []) => (shown[index] ? shown[index].focus(part) : made.focus()),
  };
}

/** What adds a line at once: a button. */
export const addButton = (text, fresh) => (add) => {
  const element = h("button", { type: "button", class: "quiet", onclick: () => add(fresh()) }, text);
  return { element: h("div", { class: "row" }, element), offer: () => true };
};
