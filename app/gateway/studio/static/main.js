// The frame: which view is shown, the API key, the theme, and the banner of a server that is away.

import { withPictures } from "./lib/adapters.js";
import { apiKey, api, connection } from "./lib/api.js";
import { h, say } from "./lib/dom.js";
import { poll } from "./lib/follow.js";
import { fromLink } from "./lib/requests.js";
import { studio } from "./lib/state.js";
import { sharedBy } from "./lib/sweep.js";
import * as draw from "./views/draw.js";

/** Views by name: their title, and their module, loaded when it is first needed. */
const VIEWS = {
  draw: ["Draw", async () => draw],
  compare: ["Compare", () => import("./views/compare.js")],
  explain: ["Explain", () => import("./views/explain.js")],
  jobs: ["Jobs", () => import("./views/jobs.js")],
  server: ["Server", () => import("./views/server.js")],
};

const WITHOUT_MODELS = ["jobs", "server"];
const KEPT = ["compare", "explain"]; // what they show took time to draw: it stays as long as the request is of the same

const main = document.getElementById("main");
const banner = document.getElementById("banner");
let leaving = new AbortController();
let opened = null;
const left = new Map(); // of the kept views: what they showed, and of what

function paintTabs() {
  document.querySelector(".tabs").replaceChildren(
    ...Object.entries(VIEWS).map(([name, [title]]) => h("a", { href: `#${name}`, data: { view: name } }, title)),
  );
}

/** What the kept views draw: the request apart from its guidance and its steps, of which they have their own. */
function subject() {
  const { steps: _, ...shared } = sharedBy(studio.request, "none");
  return JSON.stringify([Object.entries(shared).sort(), studio.seed]);
}

async function open() {
  let name = location.hash.slice(1);
  const before = subject();
  if (name.startsWith("request=")) {
    try {
      const asked = fromLink(location.hash);
      studio.take(withPictures(asked, studio.request)); // of those that another view drew with
      const { model } = studio.request;
      if (asked.model && model && asked.model !== model) tell(`No model here is called '${asked.model}'; the form has ${model}.`);
    } catch {
      tell("The address holds no request that can be read.");
    }
    name = "draw";
  }
  if (!(name in VIEWS)) name = "draw";
  for (const tab of document.querySelectorAll(".tabs a")) {
    if (tab.dataset.view === name) tab.setAttribute("aria-current", "page");
    else tab.removeAttribute("aria-current");
  }
  if (!studio.cards.length && !WITHOUT_MODELS.includes(name)) return; // opened once there are some
  const [title, load] = VIEWS[name];
  document.title = `${title} · Cynosure`;
  if (opened === name) return; // the same view with another request: it hears of that itself
  if (opened !== null) say(title);
  if (KEPT.includes(opened)) left.set(opened, { nodes: [...main.childNodes], of: before, leaving });
  else leaving.abort();
  const kept = left.get(name);
  left.delete(name);
  if (kept?.of === subject()) {
    [leaving, opened] = [kept.leaving, name];
    main.dataset.view = name;
    main.replaceChildren(...kept.nodes);
    return;
  }
  kept?.leaving.abort();
  leaving = new AbortController();
  const { signal } = leaving;
  opened = name;
  try {
    const view = await load();
    if (signal.aborted) return;
    main.dataset.view = name;
    main.replaceChildren();
    await view.mount(main, signal);
  } catch (error) {
    if (signal.aborted) return;
    opened = null; // the next try loads it again
    tell(`${title} could not be opened: ${error.message}`);
  }
}

/** Say something above the view; `null` takes it back. */
function tell(text, kind = "note") {
  banner.hidden = !text;
  banner.className = `banner ${kind}`;
  banner.textContent = text ?? "";
}

let asking = null;
let hasDeclined = false; // then the key is asked for no more, until the button is pressed
connection.addEventListener("away", () => {
  tell("The server is away. What you entered is kept; this page goes on as soon as it answers.", "away");
  asking = new AbortController();
  poll(async () => Boolean(await api.root()), asking.signal);
});
connection.addEventListener("back", () => {
  asking?.abort();
  tell(null);
  say("The server is back.");
});
connection.addEventListener("key", (event) => {
  tell(apiKey.get() ? event.detail : "This server requires an API key: enter one with the button at the top.");
  if (!hasDeclined && !document.querySelector("dialog.key")) askForKey(apiKey.get() ? event.detail : "This server requires an API key.");
});

function askForKey(reason) {
  const input = h("input", { type: "password", id: "api-key", autocomplete: "off", placeholder: "cyn_…", value: apiKey.get() });
  const decline = () => {
    hasDeclined = true;
    dialog.close();
  };
  const keep = (event) => {
    event.preventDefault();
    apiKey.set(input.value.trim());
    hasDeclined = false;
    dialog.close();
    start();
  };
  const dialog = h("dialog", { class: "key", "aria-labelledby": "key-title" },
    h("form", { method: "dialog", onsubmit: keep },
      h("h2", { id: "key-title" }, "API key"),
      reason ? h("p", { class: "error" }, reason) : h("p", { class: "hint" }, "Needed only if the server requires one."),
      h("label", { class: "hidden", htmlFor: "api-key" }, "API key"), input,
      h("p", { class: "hint" }, "It is kept until this tab is closed. The operator makes keys with ", h("code", {}, "cynosure keys create"), "."),
      h("div", { class: "row end" }, h("button", { type: "button", class: "quiet", onclick: decline }, "Cancel"), h("button", { type: "submit", class: "primary" }, "Use"))),
  );
  dialog.addEventListener("cancel", () => (hasDeclined = true));
  dialog.addEventListener("close", () => dialog.remove());
  document.body.append(dialog);
  dialog.showModal();
}

document.getElementById("key-button").addEventListener("click", () => askForKey());
document.getElementById("theme-button").addEventListener("click", () => {
  const root = document.documentElement;
  const isDark = (root.dataset.theme ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
  root.dataset.theme = isDark ? "light" : "dark";
  localStorage.setItem("cynosure.theme", root.dataset.theme);
});

/** Load the models and open the view; until a worker has some, ask again. */
async function start() {
  await poll(async () => {
    try {
      await studio.load();
    } catch (error) {
      if (error.status === 401) return true; // with a key it starts anew
      if (error.status) tell(error.message);
      throw error;
    }
    tell(studio.cards.length ? null : "No worker has loaded a model yet.");
    await open();
    return studio.cards.length > 0;
  }, new AbortController().signal);
}

paintTabs();
addEventListener("hashchange", open);
start();
