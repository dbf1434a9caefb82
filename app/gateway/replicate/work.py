"""Jobs as predictions: what takes the store to tell."""

from __future__ import annotations

from app.gateway.addresses import Address, public_address
from app.gateway.answers import picture_urls
from app.gateway.replicate.shapes import Prediction, prediction_of
from app.gateway.state import State
from jobs.queue.record import JobRecord


async def prediction(state: State, record: JobRecord, address: Address | None) -> Prediction:
    """The job as Replicate shows it; its pictures' addresses are signed if they need an API key."""
    cards = await state["store"].fleet.cards()
    card = cards.get(record.request.model)
    base = address.base if address else ""
    urls = await picture_urls(state, record, base)
    if state["store"].jobs.places.redirects:  # which Replicate's client does not follow
        urls = [f"{url}{'&' if '?' in url else '?'}redirect=false" for url in urls]
    return prediction_of(record, card.digest if card else "", urls, base)


async def webhook_body(state: State, record: JobRecord) -> str:
    """What a webhook of a prediction that has ended is sent."""
    return (await prediction(state, record, public_address(state["settings"]))).model_dump_json()
