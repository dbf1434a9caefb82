"""A pack of the shape of Stable Diffusion XL draws the sizes that people ask for, in every way they can ask."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
from PIL import Image

from cynosure import Client, SweepRequest
from cynosure.batches import BatchStatus
from cynosure.errors import InvalidRequest
from harness.processes import wait_until
from tests.acceptance.test_cli import cynosure
from tests.acceptance.test_survival import Up
from tests.small_pack import write_small_xl

QUICK = {"steps": 2}


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("sizes")
    with Up(folder / "data", models=str(write_small_xl(folder / "xl", side=1024))) as server:
        yield server.url


def test_openais_client_asks_for_a_size(url: str) -> None:
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none")
    answer = client.images.generate(model="xl", prompt="a", size="1536x1024", extra_body=QUICK)
    assert answer.size == "1536x1024"
    assert answer.data
    assert answer.data[0].b64_json
    with Image.open(io.BytesIO(base64.b64decode(answer.data[0].b64_json))) as picture:
        assert picture.size == (1536, 1024)


def test_the_command_line_asks_for_a_size(url: str, tmp_path: Path) -> None:
    answer = cynosure(
        *("generate", "--prompt", "a", "--steps", "2", "--size", "832x1216", "--seed", "3", "-o", str(tmp_path)),
        url=url,
    )
    assert answer.returncode == 0, answer.stderr
    with Image.open(tmp_path / "3-00.png") as picture:
        assert picture.size == (832, 1216)


def test_sweeps_and_batches_ask_for_sizes(url: str) -> None:
    with Client(url) as client:
        request = {**QUICK, "prompt": "a", "width": 256, "height": 384}
        job = client.submit_sweep(SweepRequest.model_validate({"seeds": [1, 2], "request": request}))
        batch = client.submit_batch({**request, "width": width} for width in (320, 512))
        assert [picture.size for picture in client.images(client.wait(job.id))] == [(256, 384)] * 2
        wait_until(lambda: client.batch_status(batch.id).status is BatchStatus.FINISHED, what="the batch ends")
        jobs = [client.job(result.job_id) for result in client.batch_results(batch.id) if result.job_id]
        assert [picture.size for job in jobs for picture in client.images(job)] == [(320, 384), (512, 384)]


@pytest.mark.parametrize(
    ("size", "told"),
    [
        ({"width": 1000, "height": 1001}, "width 1000, height 1000"),
        ({"width": 7}, "width 256"),
        ({"width": 0}, "width"),
        ({"width": 100_000}, "width"),
    ],
)
def test_a_size_that_can_not_be_is_refused_with_the_nearest_that_can(size: dict[str, int], told: str, url: str) -> None:
    with Client(url) as client, pytest.raises(InvalidRequest, match=told):
        client.submit(prompt="a", **size)
