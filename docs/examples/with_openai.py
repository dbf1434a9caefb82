"""Cynosure with OpenAI's own package and nothing else: `python with_openai.py http://127.0.0.1:8000 FOLDER`."""

import base64
import sys
from pathlib import Path

import openai

url, folder = sys.argv[1], Path(sys.argv[2])
client = openai.OpenAI(base_url=f"{url}/v1", api_key="any, where the server asks for none")
model = "fashion"  # client.models.list() has them all


def save(name: str, b64_json: str | None) -> None:
    (folder / name).write_bytes(base64.b64decode(b64_json or ""))
    print("saved", name)


# Pictures. On a class model the prompt is the name of a label; `extra_body` takes every field of POST /generate.
answer = client.images.generate(
    model=model,
    prompt="sneaker",
    n=2,
    output_format="webp",
    extra_body={"guidance_mode": "classifier_free", "guidance_scale": 3, "steps": 10, "seed": 7},
)
for number, picture in enumerate(answer.data or ()):
    save(f"sneaker-{number}.webp", picture.b64_json)

# Progress: what the picture looks like so far.
for event in client.images.generate(
    model=model, prompt="bag", stream=True, partial_images=2, extra_body={"steps": 30, "use_cache": False}
):
    if event.type == "image_generation.partial_image":
        save(f"bag-partial-{event.partial_image_index}.png", event.b64_json)
    elif event.type == "image_generation.completed":
        save("bag.png", event.b64_json)

# Cancelling: a client that closes the stream cancels its job.
stream = client.images.generate(model=model, prompt="coat", n=4, stream=True, extra_body={"steps": 1000})
stream.close()
print("cancelled")

# Recovering: an error says which parameter is at fault and what would be right.
try:
    client.images.generate(model=model, prompt="sneker", extra_body={"steps": 4})
except openai.BadRequestError as error:
    print("refused:", error.param, error.message)
    suggested = error.message.partition("Did you mean '")[2].partition("'")[0]
    answer = client.images.generate(model=model, prompt=suggested, extra_body={"steps": 4})
    save("recovered.png", (answer.data or [])[0].b64_json)
