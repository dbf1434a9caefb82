// Pictures with a scale, in a list of a request: each is chosen, dropped on its line, or pasted there.

import { base64Of, faultOf, PICTURES } from "../draw/files.js";
import { h } from "../lib/dom.js";
import * as fields from "../lib/fields.js";
import { lines } from "./lines.js";

const takers = new WeakMap(); // by a line's element: what takes a pasted file

addEventListener("paste", (event) => {
  const [file] = event.clipboardData.files;
  const line = document.querySelector(".picture-line:focus-within") ?? document.querySelector(".picture-line:hover");
  if (!file || !line) return;
  event.preventDefault();
  takers.get(line)(file);
});

/**
 * A field of lines with a picture and a scale each, as `lines` makes it.
 *
 * `noun` is what one is called, `scale` what `fields.factor` is told of it, and `more(item, tell)` makes further
 * fields: `{above, below, fields}`, with elements over and under the scale.
 */
export function pictureLines({ noun, scale, more = () => ({}), ...list }) {
  return lines({
    ...list,
    line(item, tell, number) {
      const title = `${noun} ${number}`;
      const { above = [], below = [], fields: others = {} } = more(item, tell);
      const factor = fields.factor({ name: "scale", label: "Scale", ...scale, changed: (value) => tell({ scale: value === scale.usual ? undefined : value }) });
      factor.show(item.scale);
      const image = pictureField(item.image, title, (encoded) => tell({ image: encoded }));
      const part = h("div", { class: "picture-line" }, image.element, h("div", { class: "line-fields" }, above, factor.element, below));
      part.addEventListener("drop", (event) => {
        if (!event.dataTransfer.files.length) return;
        event.preventDefault(); // of the page, which takes a picture to start from
        image.take(event.dataTransfer.files[0]);
      });
      takers.set(part, image.take);
      return { title, parts: [part], fields: { image, scale: factor, ...others } };
    },
  });
}

function pictureField(encoded, title, changed) {
  const file = h("input", { type: "file", accept: PICTURES.join(), class: "hidden", onchange: () => file.files[0] && take(file.files[0]) });
  const content = h("span", {});
  const made = fields.field({ name: "image", label: "Picture", group: true, control: h("label", { class: "drop" }, file, content) });
  function show(picture) {
    content.replaceChildren(...(picture
      ? [h("img", { alt: `Picture of ${title}`, src: `data:image/*;base64,${picture}` }), h("span", { class: "hidden" }, ", choose another")]
      : [h("span", { class: "hidden" }, `Picture of ${title}: `), "Choose, drop or paste"]));
  }
  async function take(chosen) {
    file.value = "";
    const fault = faultOf(chosen);
    made.refuse(fault);
    if (fault) return;
    const picture = await base64Of(chosen);
    show(picture);
    changed(picture);
  }
  show(encoded);
  return { ...made, take };
}
