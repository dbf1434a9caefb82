"""Cynosure with its own clients: `python with_sdk.py http://127.0.0.1:8000 FOLDER`."""

import asyncio
import sys
from pathlib import Path

from cynosure import AsyncClient, Client, Job, Preview, Progress
from cynosure.errors import InvalidRequest, JobCancelled

url, folder = sys.argv[1], Path(sys.argv[2])


def tell(event: Job | Progress | Preview) -> None:
    if isinstance(event, Progress):
        print(f"{event.evaluations_done} of {event.evaluations}")
    elif isinstance(event, Preview):
        print(f"a preview of picture {event.image}")
    else:
        print(event.status)


with Client(url) as client:
    # Pictures, as PIL images. (`client.image` has the file itself, with the request inside.)
    for number, picture in enumerate(client.generate(class_label="sneaker", scale=3, steps=10, num_images=2)):
        picture.save(folder / f"sneaker-{number}.png")

    # Progress.
    job = client.wait(client.submit(class_label="bag", steps=30, preview_every=10).id, on_event=tell)
    (folder / "bag.png").write_bytes(client.image(job.id))

    # Cancelling.
    job = client.submit(class_label="coat", steps=1000, num_images=8)
    client.cancel(job.id)
    try:
        client.wait(job.id)
    except JobCancelled:
        print("cancelled")

    # Recovering: errors are classes, and say which field is at fault.
    try:
        client.submit(class_label="sneker")
    except InvalidRequest as error:
        print("refused:", error.field, error.detail)
        [picture] = client.generate(class_label="sneaker", steps=4)
        picture.save(folder / "recovered.png")


async def main() -> None:
    async with AsyncClient(url) as client:
        # Many at once, at most four of them in flight; one that fails leaves the others alone.
        requests = [{"class_label": label, "steps": 6} for label in ("dress", "sneker", "shirt", "sandal")]
        async for drawn in client.batch(requests, concurrency=4):
            if drawn.error is not None:
                print("refused:", drawn.error)
            for picture in drawn.pictures:
                picture.save(folder / f"batch-{drawn.index}.png")

        job = await client.submit(class_label="pullover", steps=30, preview_every=15)
        async for event in client.stream(job.id):
            tell(event)
        await client.cancel((await client.submit(class_label="coat", steps=1000, num_images=8)).id)


asyncio.run(main())
