// The pictures drawn last: each opens its request in the form.

import { api, pictureUrl } from "../lib/api.js";
import { h } from "../lib/dom.js";
import { linkTo, shortened, subjectOf } from "../lib/requests.js";
import { studio } from "../lib/state.js";

const MOST = 9;

export function recentPictures() {
  const list = h("ul", { class: "recent-pictures" });
  const element = h("section", { class: "recent", hidden: true }, h("h2", {}, "Recent"), list);

  function add(job, atEnd = false) {
    const card = studio.card(job.request.model);
    const request = { ...shortened(job.request, card), seed: job.request.seed };
    const { width, height } = job.request;
    const image = h("img", { alt: subjectOf(job.request, card), width, height, class: Math.max(width, height) <= 128 ? "small" : "" });
    pictureUrl(job.id).then((url) => (image.src = url)).catch(() => {});
    const entry = h("li", {}, h("a", { href: linkTo(request), title: subjectOf(job.request, card) }, image));
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
