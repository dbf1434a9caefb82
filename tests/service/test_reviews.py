"""Reviews of pictures: a classifier looks at them before they are stored."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import pipeline

from app.gateway.settings import GatewaySettings
from app.main import create_app
from cynosure.contract import GenerateRequest, JobStatus, Review
from cynosure.errors import JobFailed
from cynosure.metadata import encoded_picture, read
from cynosure.resolving import resolve
from jobs.fleet import FleetRegistry
from jobs.queue.doorbell import Doorbell
from jobs.queue.gateway import JobStore
from jobs.queue.record import ANONYMOUS, EVERYONE, JobRecord, Submission, new_job_id
from jobs.queue.worker import WorkerStore
from jobs.settings import StoreSettings
from models.engine import Engine
from models.reviewing.folder import InvalidReview, ReviewFolder, open_review
from models.reviewing.reviewer import Reviewer
from tests.small_classifier import write_small_classifier
from workers.drawing.reviews import GREY, Reviews
from workers.drawing.warnings import NO_PREVIEWS
from workers.host import EngineHost

pytestmark = pytest.mark.anyio
ASKED = {"class_label": 1, "steps": 3, "num_images": 4}
Action = Literal["flag", "grey", "refuse"]
MakeHost = Callable[[Reviews | None], EngineHost]


@pytest.fixture(scope="module")
def engine(small_pack: Path) -> Iterator[Engine]:
    with Engine([str(small_pack)]) as engine:
        yield engine


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> ReviewFolder:
    return open_review(str(write_small_classifier(tmp_path_factory.mktemp("review") / "brightness")), ["bright"])


@pytest.fixture
def host_with(engine: Engine, worker_store: WorkerStore, doorbell: Doorbell) -> MakeHost:
    def host(reviews: Reviews | None) -> EngineHost:
        return EngineHost(
            engine,
            worker_store,
            doorbell,
            worker_name="w",
            slots=4,
            heartbeat_s=1,
            job_timeout_s=60,
            reviews=reviews,
        )

    return host


def reviews_by(classifier: ReviewFolder, action: Action, **thresholds: float) -> Reviews:
    card = Review(action=action, thresholds=thresholds, digest=classifier.digest())
    return Reviews(Reviewer(classifier, thresholds, "cpu"), card)


async def drawn(store: JobStore, host: EngineHost, **more: object) -> JobRecord:
    request = resolve(GenerateRequest.model_validate({**ASKED, **more}), host.cards["fashion"], seed=1)
    submission = Submission.of(request)
    accepted = await store.accept(new_job_id(), submission, owner=ANONYMOUS, evaluations=12)
    host.run("fashion")
    return await store.get(accepted.id, EVERYONE)


@pytest.fixture
async def plain(store: JobStore, host_with: MakeHost) -> list[bytes]:
    """The pictures as no review has seen them."""
    return await store.images((await drawn(store, host_with(None))).id, EVERYONE)


@pytest.fixture
def oracle(plain: list[bytes], classifier: ReviewFolder) -> list[float]:
    """How bright they are, by transformers' own pipeline."""
    look: Any = pipeline("image-classification", model=str(classifier.folder))
    found = [look(Image.open(io.BytesIO(png))) for png in plain]
    return [next(one["score"] for one in scores if one["label"] == "bright") for scores in found]


@pytest.fixture
def threshold(oracle: list[float]) -> float:
    """One that two of the four pictures reach."""
    low, high = sorted(oracle)[1:3]
    assert high - low > 1e-4, "the pictures differ"
    return (low + high) / 2


async def test_flagged_pictures_are_marked_and_stay_as_they_are(
    store: JobStore,
    host_with: MakeHost,
    classifier: ReviewFolder,
    plain: list[bytes],
    oracle: list[float],
    threshold: float,
) -> None:
    record = await drawn(store, host_with(reviews_by(classifier, "flag", bright=threshold)))
    assert await store.images(record.id, EVERYONE) == plain
    found = [[(flag.label, flag.score) for flag in flags] for flags in record.flagged]
    assert found == [[("bright", round(score, 4))] if score >= threshold else [] for score in oracle]


async def test_flagged_pictures_are_replaced_by_grey(
    store: JobStore,
    host_with: MakeHost,
    classifier: ReviewFolder,
    plain: list[bytes],
    oracle: list[float],
    threshold: float,
) -> None:
    record = await drawn(store, host_with(reviews_by(classifier, "grey", bright=threshold)))
    pngs = await store.images(record.id, EVERYONE)
    assert [bool(flags) for flags in record.flagged] == [score >= threshold for score in oracle]
    for png, before, flags in zip(pngs, plain, record.flagged, strict=True):
        if not flags:
            assert png == before
            continue
        pixels, drawn_pixels = (np.array(Image.open(io.BytesIO(one))) for one in (png, before))
        assert pixels.shape == drawn_pixels.shape
        assert (pixels == GREY).all()
        assert read(encoded_picture(png)).replaced == ("bright",)


async def test_a_job_with_a_flagged_picture_is_refused_as_a_whole(
    store: JobStore, host_with: MakeHost, classifier: ReviewFolder, threshold: float
) -> None:
    record = await drawn(store, host_with(reviews_by(classifier, "refuse", bright=threshold)))
    assert record.status is JobStatus.FAILED
    assert record.error is not None
    assert record.error.code == "picture_refused"
    assert "bright (0." in record.error.message
    assert JobFailed("", job_code=record.error.code).status == 422, "no fault of the server"
    assert await store.images(record.id, EVERYONE) == []
    harmless = await drawn(store, host_with(reviews_by(classifier, "refuse", bright=1.0)))
    assert harmless.status is JobStatus.SUCCEEDED


async def test_a_review_without_memory_is_tried_again_and_one_that_breaks_stores_nothing(
    store: JobStore, host_with: MakeHost, classifier: ReviewFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    reviews = reviews_by(classifier, "flag", bright=0.5)
    for error, status in ((torch.OutOfMemoryError("full"), JobStatus.QUEUED), (RuntimeError("bad"), JobStatus.FAILED)):
        model = Mock(side_effect=error)
        monkeypatch.setattr(reviews.reviewer, "_model", model)
        record = await drawn(store, host_with(reviews))
        assert record.status is status
        assert await store.images(record.id, EVERYONE) == []
        assert model.called


@pytest.mark.parametrize(("action", "are_shown"), [("flag", True), ("grey", False), ("refuse", False)])
async def test_no_preview_shows_what_a_review_would_hide(
    store: JobStore, host_with: MakeHost, classifier: ReviewFolder, action: Action, are_shown: bool
) -> None:
    record = await drawn(store, host_with(reviews_by(classifier, action, bright=1.0)), preview_every=1)
    events = await store.happenings(record.id, after="0")
    assert ("preview" in {event.name for event in events}) is are_shown
    assert (NO_PREVIEWS in record.warnings) is not are_shown


async def test_clients_see_that_pictures_are_reviewed_and_what_was_found_also_from_the_cache(
    store: JobStore,
    store_settings: StoreSettings,
    host_with: MakeHost,
    classifier: ReviewFolder,
    threshold: float,
) -> None:
    host = host_with(reviews_by(classifier, "grey", bright=threshold))
    FleetRegistry(store_settings).publish("w", host.published())
    with TestClient(create_app(GatewaySettings(auth="off"), store_settings), "http://127.0.0.1") as gateway:
        first = gateway.post("/generate", json={**ASKED, "seed": 1}).json()
        host.run("fashion")
        again = gateway.post("/generate", json={**ASKED, "seed": 1}).json()
        jobs = [gateway.get(f"/jobs/{job['id']}").json() for job in (first, again)]
        assert [job["cached"] for job in jobs] == [False, True]
        flagged = [[image["flagged"] for image in job["images"]] for job in jobs]
        assert flagged[0] == flagged[1]
        assert sum(bool(flags) for flags in flagged[0]) == 2
        assert gateway.get("/models/fashion").json()["review"]["action"] == "grey"
        assert gateway.get("/status").json()["models"][0]["reviewed"] is True


def test_results_are_kept_apart_by_everything_that_decides_a_review(
    host_with: MakeHost, classifier: ReviewFolder
) -> None:
    every = [None, reviews_by(classifier, "flag", bright=0.5), reviews_by(classifier, "grey", bright=0.5)]
    every += [reviews_by(classifier, "grey", bright=0.6), reviews_by(classifier, "grey", dark=0.5)]
    other = every[1]
    assert other is not None
    every.append(Reviews(other.reviewer, other.card.model_copy(update={"digest": "another"})))
    keys = {host_with(reviews).cards["fashion"].drawn_by for reviews in every}
    assert len(keys) == len(every)


def test_what_cannot_review_is_refused_by_name(classifier: ReviewFolder, tmp_path: Path) -> None:
    def copied(name: str, *but_not: str) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        for path in classifier.folder.iterdir():
            if path.name not in but_not:
                (folder / path.name).write_bytes(path.read_bytes())
        return folder

    for wanted, reason in (
        ("nowhere", "'nowhere' is neither a folder nor owner/name@COMMIT"),
        ("owner/name@main", "'owner/name@main' is neither"),
        (str(copied("bare", "config.json")), "bare has no config.json"),
        (str(copied("raw", "preprocessor_config.json")), "raw has no preprocessor_config.json"),
        (str(copied("pickled", "model.safetensors")), "pickled has no weights in safetensors"),
    ):
        with pytest.raises(InvalidReview, match=reason):
            open_review(wanted, ["bright"])
    with pytest.raises(InvalidReview, match="no label 'nsfw', 'gore'; its labels are: bright, dark"):
        open_review(str(classifier.folder), ["nsfw", "bright", "gore"])
    poor = copied("poor")
    weights = load_file(poor / "model.safetensors")
    save_file(
        {name: weight for name, weight in weights.items() if "classifier" not in name}, poor / "model.safetensors"
    )
    strange = copied("strange")
    config = json.loads((strange / "config.json").read_text())
    (strange / "config.json").write_text(json.dumps(config | {"model_type": "unheard"}))
    for folder, reason in ((poor, "poor lacks weights.* classifier"), (strange, "strange can't be loaded")):
        with pytest.raises(InvalidReview, match=reason):
            Reviewer(open_review(str(folder), ["bright"]), {"bright": 0.5}, "cpu")


def test_a_score_depends_on_its_picture_alone_and_labels_may_be_apart(classifier: ReviewFolder, tmp_path: Path) -> None:
    reviewer = Reviewer(classifier, {"bright": 0.001, "dark": 0.001}, "cpu")
    grey = np.full((9, 13, 1), 99, np.uint8)
    alone = reviewer.flags(grey)
    reviewer.flags(np.zeros((40, 40, 3), np.uint8))
    threads = torch.get_num_threads()
    assert reviewer.flags(grey) == alone
    assert reviewer.flags(np.repeat(grey, 3, axis=2)) == alone, "grey is seen in colour"
    assert sum(alone.values()) == pytest.approx(1)
    assert torch.get_num_threads() == threads, "the engine's threads are its own"
    apart = tmp_path / "apart"
    apart.mkdir()
    for path in classifier.folder.iterdir():
        (apart / path.name).write_bytes(path.read_bytes())
    config = json.loads((apart / "config.json").read_text())
    (apart / "config.json").write_text(json.dumps(config | {"problem_type": "multi_label_classification"}))
    look: Any = pipeline("image-classification", model=str(apart))
    expected = {one["label"]: one["score"] for one in look(Image.fromarray(grey[..., 0]))}
    found = Reviewer(open_review(str(apart), []), {"bright": 0.001, "dark": 0.001}, "cpu").flags(grey)
    assert found == pytest.approx(expected)
