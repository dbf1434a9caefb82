// A long list of which only what is in view is in the page. Rows have one height, and scroll with the window.

import { h } from "./dom.js";

const BEYOND = 6; // rows above and below the view that are there already

/**
 * A list of rows of `rowHeight` pixels: `key(item)` tells rows apart, `row(item)` builds one, and `nearEnd()` is called
 * when the last rows come into view.
 */
export function virtualList({ label, rowHeight, key, row, nearEnd, signal }) {
  const element = h("ul", { class: "virtual", "aria-label": label });
  const built = new Map();
  let items = [];
  let inView = [];
  let frame = null;

  function paint() {
    frame = null;
    const top = -element.getBoundingClientRect().top;
    const first = Math.max(0, Math.floor(top / rowHeight) - BEYOND);
    const last = Math.min(items.length, Math.ceil((top + innerHeight) / rowHeight) + BEYOND);
    inView = items.slice(first, last);
    const wanted = new Set();
    for (let index = first; index < last; index++) {
      const id = key(items[index]);
      wanted.add(id);
      if (!built.has(id)) built.set(id, h("li", { class: "virtual-row" }, row(items[index])));
      const one = built.get(id);
      one.style.transform = `translateY(${index * rowHeight}px)`;
      one.setAttribute("aria-posinset", index + 1);
      one.setAttribute("aria-setsize", items.length);
      if (!one.isConnected) element.append(one);
    }
    for (const [id, one] of built) {
      if (wanted.has(id)) continue;
      one.remove();
      built.delete(id);
    }
    if (last >= items.length - BEYOND) nearEnd();
  }
  const schedule = () => (frame ??= requestAnimationFrame(paint));
  addEventListener("scroll", schedule, { signal, passive: true });
  addEventListener("resize", schedule, { signal });
  return {
    element,
    /** The items in view, and a few beyond. */
    visible: () => inView,
    show(all) {
      items = all;
      element.style.height = `${all.length * rowHeight}px`;
      schedule();
    },
  };
}
