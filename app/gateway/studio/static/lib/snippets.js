// The request on screen for three kinds of people: curl, Python, the command line.

import { apiKey, SERVER } from "./api.js";
import { fileStem } from "./requests.js";

const FILES = { init_image: "photo.png", mask_image: "mask.png" };
const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;
const word = (text) => (/^[\w./:@%+,=-]+$/.test(text) ? text : quoted(text));
const filesIn = (request) => Object.keys(FILES).filter((name) => name in request);

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
  const body = JSON.stringify({ ...request, ...Object.fromEntries(files.map((name) => [name, "\u0000"])) });
  const format = body.replaceAll("\\u0000", "\u0000").replaceAll("\\", "\\\\").replaceAll("%", "%%").replaceAll("\u0000", "%s");
  const contents = files.map((name) => `"$(base64 < ${FILES[name]} | tr -d '\\n')"`);
  return [`printf ${quoted(format)} \\\n  ${contents.join(" ")} |\n  curl -s ${SERVER}/generate`, ...headers, "--data @-", ...target].join(" \\\n  ");
}

function literal(value) {
  if (value === true) return "True";
  if (value === false) return "False";
  if (Array.isArray(value)) return `[${value.map(literal).join(", ")}]`;
  if (value && typeof value === "object") return `{${Object.entries(value).map(([key, one]) => `${JSON.stringify(key)}: ${literal(one)}`).join(", ")}}`;
  return JSON.stringify(value);
}

export function python(request) {
  const files = filesIn(request);
  const names = Object.entries(request).map(([name, value]) => [name, files.includes(name) ? `base64.b64encode(Path("${FILES[name]}").read_bytes()).decode()` : literal(value)]);
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

export function cli(request) {
  const { width, height, ...rest } = request;
  const parts = Object.entries(rest).map(([name, value]) => {
    if (name in FILES) return `--${OPTIONS[name]} ${FILES[name]}`;
    if (name in OPTIONS) return `--${OPTIONS[name]}${String(value).startsWith("-") ? "=" : " "}${word(String(value))}`;
    return `--set ${word(`${name}=${typeof value === "string" ? value : JSON.stringify(value)}`)}`;
  });
  if (width && height) parts.push(`--size ${width}x${height}`);
  const server = SERVER === "http://127.0.0.1:8000" ? "" : ` --url ${SERVER}`;
  return [`cynosure generate${server}`, ...parts].join(" \\\n  ");
}
