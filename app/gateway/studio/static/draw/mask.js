// A mask painted over a picture: white where it is redrawn.

import { h, save } from "../lib/dom.js";
import * as fields from "../lib/fields.js";

const MOST_SIDE = 1024;
const TINT = "rgb(243 210 122 / 0.65)";

/** The editor over `picture`; `changed(encoded)` hears of each stroke: base64 PNG, or `undefined` if nothing is painted. */
export async function maskEditor(picture, changed) {
  await picture.decode();
  const shrink = Math.min(1, MOST_SIDE / Math.max(picture.naturalWidth, picture.naturalHeight));
  const [width, height] = [picture.naturalWidth, picture.naturalHeight].map((side) => Math.max(1, Math.round(side * shrink)));
  const canvas = h("canvas", { width, height, tabIndex: 0, class: "mask", role: "application", "aria-label": "Mask. Arrow keys move the brush, space paints." });
  const view = canvas.getContext("2d");
  const mask = new OffscreenCanvas(width, height);
  const paint = mask.getContext("2d", { willReadFrequently: true });
  let size = 0.12;
  let at = [width / 2, height / 2];
  let last = null;
  let isFocused = false;

  const radius = () => Math.max(0.5, (size * Math.max(width, height)) / 2);
  function show() {
    view.clearRect(0, 0, width, height);
    view.globalCompositeOperation = "source-over";
    view.drawImage(mask, 0, 0);
    view.globalCompositeOperation = "source-in";
    view.fillStyle = TINT;
    view.fillRect(0, 0, width, height);
    view.globalCompositeOperation = "source-over";
    if (!isFocused) return;
    view.beginPath();
    view.arc(...at, radius(), 0, 2 * Math.PI);
    view.lineWidth = Math.max(1, width / 300);
    view.strokeStyle = "#fff";
    view.stroke();
  }
  function stroke(from, to) {
    paint.lineCap = "round";
    paint.lineWidth = 2 * radius();
    paint.strokeStyle = "#fff";
    paint.beginPath();
    paint.moveTo(...from);
    paint.lineTo(to[0] + 0.01, to[1]);
    paint.stroke();
    show();
  }
  /** The mask as PNG, white where something is painted; null if nothing is. */
  async function white() {
    const { data } = paint.getImageData(0, 0, width, height);
    if (!data.some((value, index) => index % 4 === 3 && value > 0)) return null;
    const whole = new OffscreenCanvas(width, height);
    const context = whole.getContext("2d");
    context.fillStyle = "#000";
    context.fillRect(0, 0, width, height);
    context.drawImage(mask, 0, 0);
    return whole.convertToBlob({ type: "image/png" });
  }
  async function tell() {
    const png = await white();
    if (!png) return changed(undefined);
    const bytes = new Uint8Array(await png.arrayBuffer());
    changed(btoa(Array.from(bytes, (one) => String.fromCharCode(one)).join("")));
  }
  const place = (event) => [(event.offsetX * width) / canvas.clientWidth, (event.offsetY * height) / canvas.clientHeight];
  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    at = last = place(event);
    stroke(last, last);
  });
  canvas.addEventListener("pointermove", (event) => {
    at = place(event);
    if (last === null) return show();
    stroke(last, at);
    last = at;
  });
  canvas.addEventListener("pointerup", () => ((last = null), tell()));
  canvas.addEventListener("focus", () => ((isFocused = true), show()));
  canvas.addEventListener("blur", () => ((isFocused = false), show()));
  canvas.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (event.key === " ") stroke(at, at), tell();
    else if (step) at = [Math.min(width, Math.max(0, at[0] + step[0] * radius())), Math.min(height, Math.max(0, at[1] + step[1] * radius()))], show();
    else return;
    event.preventDefault();
  });
  function clear() {
    paint.clearRect(0, 0, width, height);
    show();
    tell();
  }
  function invert() {
    paint.globalCompositeOperation = "xor";
    paint.fillStyle = "#fff";
    paint.fillRect(0, 0, width, height);
    paint.globalCompositeOperation = "source-over";
    show();
    tell();
  }
  async function keep() {
    const encoded = await white();
    if (encoded) save(encoded, "mask.png");
  }
  const brush = fields.fraction({ name: "brush", label: "Brush", min: 0.02, changed: (value) => ((size = value), show()) });
  brush.show(size);
  return {
    element: h("div", { class: "mask-editor" },
      h("div", { class: "mask-layers" }, picture, canvas),
      brush.element,
      h("div", { class: "row" }, h("button", { type: "button", class: "quiet", onclick: clear }, "Clear"), h("button", { type: "button", class: "quiet", onclick: invert }, "Invert"), h("button", { type: "button", class: "quiet", onclick: keep }, "Save mask"))),
  };
}
