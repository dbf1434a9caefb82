// The official `openai` package of npm, unchanged: what each call answers, as JSON for the test that starts this.
import OpenAI, { toFile } from "openai";

const client = new OpenAI({ baseURL: `${process.env.CYNOSURE_URL}/v1`, apiKey: "unused", maxRetries: 0 });
const small = { model: "fashion", steps: 6, seed: 3 };

const models = [];
for await (const model of client.models.list()) models.push(model.id);

const made = await client.images.generate({ ...small, prompt: "bag", n: 2 });
const events = [];
const stream = { ...small, prompt: "sneaker", stream: true, partial_images: 2, steps: 30, use_cache: false };
for await (const event of await client.images.generate(stream)) events.push(event.type);

const start = await toFile(Buffer.from(made.data[0].b64_json, "base64"), "start.png", { type: "image/png" });
const edited = await client.images.edit({ ...small, image: start, prompt: "coat" });
const varied = await client.images.createVariation({ image: start, model: "fashion", n: 2 });

let refusal;
try {
  await client.images.generate({ model: "fashion", prompt: "a corgi in space" });
} catch (error) {
  refusal = [error instanceof OpenAI.BadRequestError, error.param, error.code];
}
const pictures = [made, edited, varied].map((answer) => answer.data.map((one) => one.b64_json));
console.log(JSON.stringify({ models, events, refusal, pictures }));
