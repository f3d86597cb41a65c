"""How much is taken on, counted by hand."""

import asyncio
import threading

import pytest

from embedcam.app.limits import Gate, Limits, RateLimit, Refused
from embedcam.errors import EmbedcamError


def test_a_minutes_worth_may_come_at_once_and_the_rest_at_that_rate():
    now = 0.0
    rate = RateLimit(60, clock=lambda: now)
    for _ in range(60):
        rate.take("a")
    with pytest.raises(Refused, match=r"more than 60 requests per minute; wait 1 s") as refused:
        rate.take("a")
    assert refused.value.status == 429
    assert refused.value.headers == {"Retry-After": "1"}
    now = 0.9
    with pytest.raises(Refused):
        rate.take("a")
    now = 2.0
    rate.take("a")
    rate.take("a")
    with pytest.raises(Refused):
        rate.take("a")
    now = 1000.0
    for _ in range(60):  # no more is saved up than a minute's
        rate.take("a")
    with pytest.raises(Refused):
        rate.take("a")


def test_addresses_are_counted_apart_and_only_so_many_are_remembered(monkeypatch):
    monkeypatch.setattr("embedcam.app.limits._MAX_ADDRESSES", 2)
    rate = RateLimit(1, clock=lambda: 0.0)
    for address in ("a", "b"):
        rate.take(address)
        with pytest.raises(Refused):
            rate.take(address)
    rate.take("c")  # for which "a" is forgotten
    with pytest.raises(Refused):
        rate.take("b")
    rate.take("a")


def test_few_bodies_are_read_and_no_more_than_the_queue_waits():
    async def crowd():
        gate = Gate(Limits(queue=20, concurrency=2, batch=2))
        inside, most, refused = 0, 0, []

        async def one():
            nonlocal inside, most
            try:
                async with gate.entered():
                    inside += 1
                    most = max(most, inside)
                    await asyncio.sleep(0)
                    await gate.compute(lambda: None)
                    inside -= 1
            except Refused as error:
                refused.append(error)

        await asyncio.gather(*(one() for _ in range(30)))
        async with gate.entered():  # those who left have made room
            pass
        gate.close()
        return most, refused

    most, refused = asyncio.run(crowd())
    assert most == 2 * 2 * 2 + 3
    assert len(refused) == 10
    assert {error.status for error in refused} == {503}
    assert all("Retry-After" in error.headers for error in refused)


def test_only_so_many_computations_run_at_once():
    running, most, lock = 0, 0, threading.Lock()
    together = threading.Barrier(2, timeout=600)

    def work():
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        together.wait()
        with lock:
            running -= 1

    async def compute():
        gate = Gate(Limits(concurrency=2))
        await asyncio.gather(*(gate.compute(work) for _ in range(6)))
        gate.close()

    asyncio.run(compute())
    assert most == 2


@pytest.mark.parametrize("name", ["upload", "pixels", "rate", "queue", "concurrency", "batch", "timeout"])
def test_a_limit_that_lets_nothing_through_is_an_error(name):
    with pytest.raises(EmbedcamError, match=f"the limit {name} must be positive, got 0"):
        Limits(**{name: 0})


def test_more_pixels_than_any_picture_may_have_are_an_error():
    with pytest.raises(EmbedcamError, match="the limit pixels must be at most 89,478,485, got 1,000,000,000"):
        Limits(pixels=10**9)
