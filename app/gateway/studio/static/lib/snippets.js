// The request on screen for three kinds of people: curl, Python, the command line.

import { isList } from "./adapters.js";
import { apiKey, SERVER } from "./api.js";
import { fileStem } from "./requests.js";

const FILES = { init_image: "photo.png", mask_image: "mask.png" };
const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;
const word = (text) => (/^[\w./:@%+,=-]+$/.test(text) ? text : quoted(text));

/** The request with `stand(file)` in place of each picture, with the name of a file for it. */
function standingIn(request, stand) {
  const taken = new Set(Object.values(FILES));
  function named(stem) {
    let file = `${stem}.png`;
    for (let number = 2; taken.has(file); number++) file = `${stem}-${number}.png`;
    taken.add(file);
    return stand(file);
  }
  return Object.fromEntries(Object.entries(request).map(([name, value]) => {
    if (name in FILES) return [name, stand(FILES[name])];
    if (!isList(value)) return [name, value];
    return [name, value.map((one) => ("image" in one ? { ...one, image: named(fileStem(String(one.model ?? name))) } : one))];
  }));
}

/** The names of the files that stand for the request's pictures in code. */
export function filesIn(request) {
  const files = [];
  standingIn(request, (file) => files.push(file));
  return files;
}

/** A name for the file, from what is drawn. */
function fileName(request) {
  return `${fileStem(String(request.prompt ?? request.class_label ?? "picture"))}.png`;
}

export function curl(request) {
  const files = filesIn(request);
  const several = (request.num_images ?? 1) > 1;
  const headers = ["-H 'Content-Type: application/json'", several ? "-H 'Prefer: wait=60'" : "-H 'Accept: image/png'"];
  if (apiKey.get()) headers.push('-H "Authorization: Bearer $CYNOSURE_API_KEY"');
  const target = several ? [] : [`-o ${fileName(request)}`];
  if (!files.length) {
    return [`curl -s ${SERVER}/generate`, ...headers, `-d ${quoted(JSON.stringify(request))}`, ...target].join(" \\\n  ");
  }
  // A picture is too long for an argument: printf, which the shell has built in, writes the body into the pipe.
  const body = JSON.stringify(standingIn(request, () => "\u0000"));
  const format = body.replaceAll("\\u0000", "\u0000").replaceAll("\\", "\\\\").replaceAll("%", "%%").replaceAll("\u0000", "%s");
  const contents = files.map((file) => `"$(base64 < ${file} | tr -d '\\n')"`);
  return [`printf ${quoted(format)} \\\n  ${contents.join(" ")} |\n  curl -s ${SERVER}/generate`, ...headers, "--data @-", ...target].join(" \\\n  ");
}

/** What Python reads from a file. */
class Content {
  constructor(file) {
    this.file = file;
  }
}

function literal(value) {
  if (value instanceof Content) return `base64.b64encode(Path("${value.file}").read_bytes()).decode()`;
  if (value === true) return "True";
  if (value === false) return "False";
  if (Array.isArray(value)) return `[${value.map(literal).join(", ")}]`;
  if (value && typeof value === "object") return `{${Object.entries(value).map(([key, one]) => `${JSON.stringify(key)}: ${literal(one)}`).join(", ")}}`;
  return JSON.stringify(value);
}

export function python(request) {
  const files = filesIn(request);
  const names = Object.entries(standingIn(request, (file) => new Content(file))).map(([name, value]) => [name, literal(value)]);
  const key = apiKey.get() ? ', api_key=os.environ["CYNOSURE_API_KEY"]' : "";
  const imports = [files.length ? "import base64" : null, key ? "import os" : null, files.length ? "from pathlib import Path" : null].filter(Boolean);
  const fields = names.map(([name, value]) => `        ${name}=${value},\n`).join("");
  return [
    imports.length ? `${imports.join("\n")}\n\n` : "",
    "from cynosure import Client\n\n",
    `with Client("${SERVER}"${key}) as client:\n`,
    `    pictures = client.generate(\n${fields}    )\n`,
    (request.num_images ?? 1) > 1
      ? `for number, picture in enumerate(pictures):\n    picture.save(f"${fileName(request).replace(".png", "")}-{number}.png")`
      : `pictures[0].save("${fileName(request)}")`,
  ].join("");
}

const OPTIONS = {
  guidance_mode: "guidance", guidance_scale: "scale", classifier_scale: "classifier-scale", sampler: "sampler",
  steps: "steps", seed: "seed", num_images: "count", model: "model", prompt: "prompt", negative_prompt: "negative-prompt",
  init_image: "init-image", strength: "strength", mask_image: "mask-image", class_label: "label",
};

/** Lists that have an option of their own, given once for each of their objects. */
const LISTED = {
  loras: ({ name, scale }) => `--lora ${word(scale === undefined && !String(name).includes(":") ? String(name) : `${name}:${scale ?? 1}`)}`,
  controls: ({ model, image, ...rest }) => `--control ${word([`${model}:${image ?? `${fileStem(String(model))}.png`}`, ...Object.entries(rest).map(([key, value]) => `${key}=${value}`)].join(","))}`,
  image_prompts: ({ image, scale }) => `--image-prompt ${word(`${image ?? "picture.png"}:${scale ?? 1}`)}`,
};

export function cli(request) {
  const { width, height, ...rest } = standingIn(request, (file) => file);
  const parts = Object.entries(rest).flatMap(([name, value]) => {
    if (name in LISTED && isList(value)) return value.map(LISTED[name]);
    if (name === "cache" && value.every) return `--cache ${word(`${value.every}:${value.until ?? 1}`)}`;
    if (name in OPTIONS) return `--${OPTIONS[name]}${String(value).startsWith("-") ? "=" : " "}${word(String(value))}`;
    return `--set ${word(`${name}=${typeof value === "string" ? value : JSON.stringify(value)}`)}`;
  });
  if (width && height) parts.push(`--size ${width}x${height}`);
  const server = SERVER === "http://127.0.0.1:8000" ? "" : ` --url ${SERVER}`;
  return [`cynosure generate${server}`, ...parts].join(" \\\n  ");
}
