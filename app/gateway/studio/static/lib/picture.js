// Pictures in boxes that keep their place: small ones are enlarged pixel by pixel, by a whole number.

import { pictureUrl } from "./api.js";
import { h, wantsLessMotion } from "./dom.js";

const SMALL = 128;
const isSmall = (width, height) => Math.max(width, height) <= SMALL;
const FRAME_MS = 70;
const STAYS_MS = 150; // a list scrolled past fetches nothing

/** A box for one picture of `width` × `height` pixels. */
export function pictureBox({ width, height, label = "" }) {
  const image = h("img", { alt: label, width, height, draggable: true, hidden: true });
  const noise = h("canvas", { class: "noise", width: 32, height: 32, "aria-hidden": "true" });
  const element = h("div", { class: `picture${isSmall(width, height) ? " small" : ""}`, style: { "aspect-ratio": `${width} / ${height}` } }, noise, image);
  const frames = [];
  let timer = null;

  function set(url) {
    image.src = url;
    image.hidden = false;
    noise.hidden = true;
  }
  /** Show frames one after the other, also if several arrive at once. */
  function play() {
    const next = frames.shift();
    if (next === undefined) {
      timer = null;
      return;
    }
    set(next);
    timer = setTimeout(play, FRAME_MS);
  }
  return {
    element, image,
    /** Resolves when the last frame is shown and decoded. */
    async settled() {
      while (timer !== null) await new Promise((resolve) => setTimeout(resolve, FRAME_MS));
      await image.decode();
    },
    describe: (text) => (image.alt = text),
    blank(seed) {
      frames.length = 0;
      image.hidden = true;
      noise.hidden = false;
      paintNoise(noise, seed);
    },
    /** Show a picture at once, and drop frames that wait. */
    at(url) {
      frames.length = 0;
      set(url);
    },
    show(url) {
      if (wantsLessMotion()) frames.length = 0;
      frames.push(url);
      if (timer === null) play();
    },
  };
}

/** A job's first picture, fetched if it stays on the page for a moment. */
export function thumbnail(job, alt) {
  const { width, height } = job.request;
  const image = h("img", { alt: job.images.length ? alt : "", width, height, class: isSmall(width, height) ? "small" : "", hidden: true });
  if (job.images.length) {
    setTimeout(() => image.isConnected && pictureUrl(job.id).then((url) => Object.assign(image, { src: url, hidden: false })).catch(() => {}), STAYS_MS);
  }
  return image;
}

/** Grey noise from a seed, in place of a picture that is not there yet. */
function paintNoise(canvas, seed) {
  const context = canvas.getContext("2d");
  const pixels = context.createImageData(canvas.width, canvas.height);
  let state = (Number(seed) % 4294967296) >>> 0 || 1;
  for (let i = 0; i < pixels.data.length; i += 4) {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0; // Numerical Recipes' generator
    const value = 96 + ((state >>> 24) & 63);
    pixels.data.set([value, value, value, 255], i);
  }
  context.putImageData(pixels, 0, 0);
}
