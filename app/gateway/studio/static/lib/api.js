// The API client: every call of the studio goes through here. Addresses are relative to the page, so that a
// server behind a path prefix is reached as well.

const BASE = new URL(".", document.baseURI);
const KEY = "cynosure.key";
const MOST_TRIES = 8;
const LONGEST_WAIT_S = 5;

/** The server's address, without a slash at the end, as snippets show it. */
export const SERVER = BASE.href.replace(/\/$/, "");

/** An answer that refuses: `code`, `detail`, `field` and `faults` (each with `field` and `detail`). */
export class Refused extends Error {
  constructor(problem) {
    super(problem.detail);
    Object.assign(this, problem);
    this.faults = problem.errors ?? (problem.field ? [{ field: problem.field, detail: problem.detail }] : []);
  }
}

/** No answer: the server is away, or the network. */
export class Unreachable extends Error {}

/** Events of the connection: `away`, `back`, `key` (one is needed, or it was refused). */
export const connection = Object.assign(new EventTarget(), { isAway: false });

function report(isAway) {
  if (connection.isAway === isAway) return;
  connection.isAway = isAway;
  connection.dispatchEvent(new Event(isAway ? "away" : "back"));
}

export const apiKey = {
  get: () => sessionStorage.getItem(KEY) ?? "",
  set: (value) => (value ? sessionStorage.setItem(KEY, value) : sessionStorage.removeItem(KEY)),
};

const address = (path) => new URL(path, BASE).href;

/** Send a request; the answer if it is one of success. */
async function send(path, { method = "GET", body, headers = {}, signal } = {}, tries = 1) {
  const sent = { ...headers };
  if (apiKey.get()) sent.Authorization = `Bearer ${apiKey.get()}`;
  if (body !== undefined && !sent["Content-Type"]) sent["Content-Type"] = "application/json";
  const content = body === undefined || typeof body === "string" || body instanceof Blob ? body : JSON.stringify(body);
  let answer;
  try {
    answer = await fetch(address(path), { method, body: content, headers: sent, signal });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    report(true);
    throw new Unreachable("The server does not answer.");
  }
  report([502, 504].includes(answer.status)); // a proxy's word for the same
  if (answer.ok) return answer;
  const retryAfter = Number(answer.headers.get("Retry-After")) || null;
  if (answer.status === 429 && method === "GET" && tries < MOST_TRIES) { // many pictures at once are over a key's rate
    await new Promise((resolve) => setTimeout(resolve, 1000 * Math.min(retryAfter ?? 1, LONGEST_WAIT_S)));
    return send(path, { method, headers, signal }, tries + 1);
  }
  const problem = await answer.json().catch(() => ({ code: "http_error", detail: `${method} ${path}: ${answer.status}` }));
  if (answer.status === 401) connection.dispatchEvent(new CustomEvent("key", { detail: problem.detail }));
  throw new Refused({ ...problem, retryAfter });
}

const json = async (path, options) => (await send(path, options)).json();
const blob = async (path) => (await send(path)).blob();

/** A key that makes a repeated POST the same job. */
export const newKey = () => Array.from(crypto.getRandomValues(new Uint8Array(16)), (one) => one.toString(16).padStart(2, "0")).join("");

const post = (path, body, headers = {}, signal) =>
  json(path, { method: "POST", body, headers: { "Idempotency-Key": newKey(), ...headers }, signal });

export const api = {
  models: async () => (await json("models")).models,
  loras: async () => (await json("loras")).loras,
  status: () => json("status"),
  root: () => json("", { headers: { Accept: "application/json" } }),
  plan: (request, signal) => json("plan", { method: "POST", body: request, signal }),
  generate: (request) => post("generate", request),
  sweep: (grid) => post("sweeps", grid),
  job: (id) => json(`jobs/${id}`),
  jobs: ({ status, cursor, limit = 50 } = {}) => {
    const query = new URLSearchParams({ limit, ...(status && { status }), ...(cursor && { cursor }) });
    return json(`jobs?${query}`);
  },
  cancel: (id) => json(`jobs/${id}`, { method: "DELETE" }),
  erase: (id) => json(`jobs/${id}?erase=true`, { method: "DELETE" }),
  vary: (id) => post(`jobs/${id}/vary`),
  retry: (id) => post(`jobs/${id}/retry`),
  batch: (ndjson, key) => post("batches", ndjson, { "Content-Type": "application/x-ndjson", "Idempotency-Key": key }),
  batchState: (id) => json(`batches/${id}`),
  cancelBatch: (id) => json(`batches/${id}`, { method: "DELETE" }),
  batchZip: (id) => blob(`batches/${id}/images.zip`),
  events: (id, lastEventId, signal) =>
    send(`jobs/${id}/events`, { headers: lastEventId ? { "Last-Event-ID": lastEventId } : {}, signal }),
  sheet: (id) => blob(`jobs/${id}/sheet.png`),
  picture: (id, index = 0) => blob(`jobs/${id}/images/${index}.png`),
};

/** The address of a job's picture for an `<img>`: the server's own, or with an API key, which `<img>` can't send, a copy. */
export async function pictureUrl(id, index = 0) {
  const path = `jobs/${id}/images/${index}.png`;
  return apiKey.get() ? URL.createObjectURL(await blob(path)) : address(path);
}
