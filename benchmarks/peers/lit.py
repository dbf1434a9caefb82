"""The same loop in LitServe: dynamic batching of whole requests; requests that can share a batch do."""

import sys
from collections.abc import Sequence

import litserve
import torch

from benchmarks.peers.drawing import PeerSettings, PlainPipeline
from benchmarks.stream import Asked


class Drawing(litserve.LitAPI):
    def setup(self, device: str) -> None:
        self.pipeline = PlainPipeline()

    def decode_request(self, request: dict) -> Asked:  # type: ignore[type-arg]
        return Asked(**request)

    def predict(self, batch: Sequence[Asked]) -> list[list[str]]:
        alike: dict[tuple[str, str, int], list[int]] = {}
        for index, asked in enumerate(batch):
            alike.setdefault((asked.mode, asked.sampler, asked.steps), []).append(index)
        drawn: dict[int, list[str]] = {}
        for indices in alike.values():
            drawn |= dict(zip(indices, self.pipeline.draw([batch[index] for index in indices]), strict=True))
        return [drawn[index] for index in range(len(batch))]

    def encode_response(self, output: list[str]) -> list[str]:
        return output


if __name__ == "__main__":
    api = Drawing(max_batch_size=32, batch_timeout=0.02, api_path="/draw")
    accelerator = torch.device(PeerSettings().device).type
    server = litserve.LitServer(api, accelerator=accelerator, devices=1, timeout=False)
    server.run(host="127.0.0.1", port=int(sys.argv[1]), log_level="warning", generate_client_file=False)
