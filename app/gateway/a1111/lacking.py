"""Routes below /sdapi/v1 for what there is nothing of here, or one thing: clients ask them as they start."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from fastapi import APIRouter

from app.gateway.door.auth import Reader
from app.gateway.errors.problems import A1111_PREFIX
from app.gateway.json_bodies import JSONRoute

_ANSWERS: Mapping[str, Any] = {
    "cmd-flags": {"api": True, "nowebui": True},
    "embeddings": {"loaded": {}, "skipped": {}},
    "face-restorers": [],
    "hypernetworks": [],
    "latent-upscale-modes": [],
    "memory": {"ram": {}, "cuda": {}},
    "prompt-styles": [],
    "realesrgan-models": [],
    "script-info": [],
    "scripts": {"txt2img": [], "img2img": []},
    "sd-vae": [],
    "upscalers": [{"name": "None", "model_name": None, "model_path": None, "model_url": None, "scale": 1}],
}
router = APIRouter(prefix=A1111_PREFIX.rstrip("/"), tags=["a1111"], route_class=JSONRoute)


def _answering(content: Any) -> Callable[..., Awaitable[Any]]:
    async def answer(caller: Reader) -> Any:
        """Always the same: this server has none, or no other."""
        return content

    return answer


for _name, _content in _ANSWERS.items():
    router.add_api_route(
        f"/{_name}", _answering(_content), methods=["GET"], summary=f"List {_name} (A1111's format)", name=_name
    )
for _name in ("refresh-checkpoints", "refresh-loras"):
    router.add_api_route(
        f"/{_name}", _answering({}), methods=["POST"], summary="Nothing to do (A1111's format)", name=_name
    )
