"""Jobs as predictions: what takes the store to tell."""

from __future__ import annotations

from app.gateway.addresses import Address, public_address
from app.gateway.door.links import signed
from app.gateway.replicate.shapes import Prediction, prediction_of
from app.gateway.shaping import image_paths
from app.gateway.state import State
from jobs.queue.record import ANONYMOUS, JobRecord


async def prediction(state: State, record: JobRecord, address: Address | None) -> Prediction:
    """The job as Replicate shows it; its pictures' addresses are signed if they need an API key."""
    cards = await state["store"].fleet.cards()
    card = cards.get(record.request.model)
    paths = list(image_paths(record))
    if record.owner != ANONYMOUS and paths:
        _, paths = await signed(state, record.owner, paths)
    base = address.base if address else ""
    return prediction_of(record, card.digest if card else "", [base + path for path in paths], base)


async def webhook_body(state: State, record: JobRecord) -> str:
    """What a webhook of a prediction that has ended is sent."""
    return (await prediction(state, record, public_address(state["settings"]))).model_dump_json()
