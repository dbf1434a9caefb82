// The pictures drawn last: each opens its request in the form.

import { api } from "../lib/api.js";
import { h } from "../lib/dom.js";
import { thumbnail } from "../lib/picture.js";
import { linkTo, shortened, subjectOf } from "../lib/requests.js";
import { studio } from "../lib/state.js";

const MOST = 9;

export function recentPictures() {
  const list = h("ul", { class: "recent-pictures" });
  const element = h("section", { class: "recent", hidden: true }, h("h2", {}, "Recent"), list);

  function add(job, atEnd = false) {
    const card = studio.card(job.request.model);
    const request = { ...shortened(job.request, card), seed: job.request.seed };
    const subject = subjectOf(job.request, card);
    const entry = h("li", {}, h("a", { href: linkTo(request), title: subject }, thumbnail(job, subject)));
    if (atEnd) list.append(entry);
    else list.prepend(entry);
    while (list.children.length > MOST) list.lastChild.remove();
    element.hidden = false;
  }
  return {
    element, add,
    async load() {
      const { jobs } = await api.jobs({ status: "succeeded", limit: MOST });
      for (const job of jobs) if (!job.request.sweep && !job.request.inputs) add(job, true);
    },
  };
}
