// What is on screen as a request of your own: curl, Python, the command line.

import { copyButton, h, newId } from "../lib/dom.js";
import * as snippets from "../lib/snippets.js";

const KINDS = { curl: ["curl", snippets.curl], python: ["Python", snippets.python], cli: ["Command line", snippets.cli] };

/** Tabs with code for `request()`; `update()` writes it anew. */
export function codeTabs(request) {
  let chosen = "curl";
  const code = h("code", {});
  const panelId = newId("code");
  const tabs = Object.entries(KINDS).map(([kind, [title]]) =>
    h("button", { type: "button", role: "tab", id: newId("tab"), data: { kind }, "aria-controls": panelId, onclick: () => choose(kind) }, title));
  const panel = h("pre", { role: "tabpanel", id: panelId, tabIndex: 0 }, code);
  const list = h("div", { role: "tablist", class: "code-tabs", "aria-label": "The request as code" }, tabs);
  list.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    const next = tabs[(tabs.findIndex((tab) => tab.dataset.kind === chosen) + step + tabs.length) % tabs.length];
    choose(next.dataset.kind);
    next.focus();
  });

  function choose(kind) {
    chosen = kind;
    for (const tab of tabs) {
      const is = tab.dataset.kind === kind;
      tab.setAttribute("aria-selected", String(is));
      tab.tabIndex = is ? 0 : -1;
      if (is) panel.setAttribute("aria-labelledby", tab.id);
    }
    update();
  }
  const files = h("p", { class: "hint files" });
  function update() {
    const asked = request();
    code.textContent = KINDS[chosen][1](asked);
    const pictures = snippets.filesIn(asked).filter((file) => file !== "mask.png");
    files.hidden = !pictures.length;
    files.textContent = `${pictures.join(", ")}: your ${pictures.length > 1 ? "pictures" : "picture"}${asked.mask_image ? "; save the mask beside it" : ""}.`;
  }
  choose(chosen);
  return { element: h("section", { class: "code" }, h("div", { class: "code-head" }, list, copyButton(() => code.textContent)), panel, files), update };
}
