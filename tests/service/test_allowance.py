"""Rate limits and quotas: what a key may use, however many gateways it asks."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import pytest
import redis
from fastapi.testclient import TestClient

from cynosure.errors import QuotaExceeded, RateLimited
from jobs.accounts.allowance import Allowance, Limits
from jobs.accounts.api_keys import KeyRing, Scope
from jobs.settings import StoreSettings

pytestmark = pytest.mark.anyio
Open = Callable[..., TestClient]
BOTH = (Scope.SUBMIT, Scope.READ)
RARELY = 0.001  # requests a second: none comes back while a test runs


async def test_a_burst_passes_and_then_the_rate_alone(store_settings: StoreSettings, raw: redis.Redis) -> None:
    limits = Limits(requests_per_s=20, burst=5)
    async with Allowance.connect(store_settings) as here, Allowance.connect(store_settings) as there:

        def milliseconds() -> float:
            seconds, microseconds = raw.time()
            return float(seconds * 1000 + microseconds / 1000)

        passed, began = 0, milliseconds()
        while (now := milliseconds()) - began < 500:
            for gateway in (here, there):
                with contextlib.suppress(RateLimited):
                    await gateway.take("owner", limits)
                    passed += 1
        assert 5 <= passed <= 5 + 20 * (milliseconds() - began) / 1000 + 1
        assert now > began
        assert 0 < raw.pttl(f"{store_settings.key_prefix}:bucket:owner") <= 2000
        assert await here.take("another", limits) is not None, "owners have buckets of their own"
        assert await here.take("free", Limits()) is None


async def test_a_day_holds_its_quota_whatever_is_refused_or_given_back(
    store_settings: StoreSettings, raw: redis.Redis
) -> None:
    limits = Limits(pictures_per_day=10, evaluations_per_day=100)
    async with Allowance.connect(store_settings) as allowance:

        async def post(pictures: int, evaluations: int, *, stands: bool = True) -> None:
            async with allowance.charged("owner", limits, pictures, evaluations) as bill:
                bill.stands = stands

        await post(6, 10)
        with pytest.raises(QuotaExceeded, match="4 pictures left") as refusal:
            await post(5, 1)
        assert refusal.value.retry_after_s is not None
        assert 0 < refusal.value.retry_after_s <= 86_400
        with pytest.raises(QuotaExceeded, match="90 evaluations left"):
            await post(1, 91)
        await post(4, 90, stands=False)
        with pytest.raises(ValueError, match="boom"):
            async with allowance.charged("owner", limits, 4, 90):
                raise ValueError("boom")
        await post(4, 90)
        with pytest.raises(QuotaExceeded, match="0 pictures left"):
            await post(1, 1)
    used = list(raw.scan_iter(f"{store_settings.key_prefix}:used:*"))
    assert len(used) == 2
    assert all(raw.ttl(name) > 0 for name in used)


async def test_a_charge_that_is_repeated_counts_once(
    store_settings: StoreSettings, raw: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client whose connection broke before the answer asks again."""
    limits = Limits(pictures_per_day=10)
    monkeypatch.setattr("jobs.accounts.allowance.secrets.token_hex", lambda size: "the same call")
    async with Allowance.connect(store_settings) as allowance:
        for _ in range(2):
            async with allowance.charged("owner", limits, 6, 1) as bill:
                bill.stands = True
    [name] = raw.scan_iter(f"{store_settings.key_prefix}:used:*:pictures")
    assert raw.get(name) == b"6"
    assert raw.ttl(f"{store_settings.key_prefix}:charge:the same call") > 0


async def test_a_gateway_says_what_is_left_and_refuses_what_is_over(ring: KeyRing, open_gateway: Open) -> None:
    _, token = await ring.create("a", BOTH, days=1, limits=Limits(requests_per_s=RARELY, burst=2))
    _, other = await ring.create("b", BOTH, days=1, limits=Limits(requests_per_s=RARELY, burst=2))
    gateway, second = open_gateway(auth="required"), open_gateway(auth="required")
    headers = {"Authorization": f"Bearer {token}"}
    first = gateway.get("/models", headers=headers)
    assert first.headers["RateLimit"] == '"requests";r=1;t=1000'
    assert first.headers["RateLimit-Policy"] == '"requests";q=2;w=2000'
    assert second.get("/models", headers=headers).status_code == 200
    refused = gateway.get("/models", headers=headers)
    assert (refused.status_code, refused.json()["code"]) == (429, "rate_limited")
    assert int(refused.headers["Retry-After"]) > 900
    assert gateway.get("/models", headers={"Authorization": f"Bearer {other}"}).status_code == 200


async def test_a_job_counts_once_and_only_if_it_is_drawn(ring: KeyRing, open_gateway: Open) -> None:
    _, token = await ring.create("a", BOTH, days=1, limits=Limits(pictures_per_day=3))
    gateway, headers = open_gateway(auth="required"), {"Authorization": f"Bearer {token}"}

    def post(pictures: int, key: str) -> tuple[int, str | None]:
        body = {"class_label": 1, "steps": 4, "num_images": pictures}
        answer = gateway.post("/generate", json=body, headers={**headers, "Idempotency-Key": key})
        return answer.status_code, answer.json().get("code")

    assert post(2, "a") == (202, None)
    assert post(2, "a") == (202, None), "the same job again"
    assert post(2, "b") == (429, "quota_exceeded")
    assert post(1, "a") == (409, "idempotency_conflict")
    assert post(1, "c") == (202, None)
    assert post(1, "d") == (429, "quota_exceeded")
