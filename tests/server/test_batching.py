"""What breaks servers in the field: overflow, poison, clients that go, models that hang."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import httpx
import pytest

pytest.importorskip("fastapi")
from served import FakePredictor, error_of, post, serving

from bert.errors import DataError, UsageError
from bert.server import batching
from bert.server.app import create_app
from bert.server.settings import ServerSettings
from bert.text.windows import Windowed


def figure(client: httpx.Client, name: str) -> float:
    """A figure of the only model."""
    found = re.search(rf"^bert_{name}(?:{{.*}})? ([\d.]+)$", client.get("/metrics").text, re.M)
    assert found is not None, name
    return float(found[1])


def wait_for(client: httpx.Client, name: str, value: float) -> None:
    until = time.monotonic() + 10
    while figure(client, name) != value:
        assert time.monotonic() < until, (name, figure(client, name))
        time.sleep(0.02)


@contextmanager
def busy(predictor: FakePredictor, client: httpx.Client) -> Iterator[ThreadPoolExecutor]:
    """While it lasts, the model computes one request and others wait."""
    with ThreadPoolExecutor(64) as pool:
        slow = pool.submit(post, client, ["wait"])
        assert predictor.running.acquire(timeout=10)
        try:
            yield pool
        finally:
            predictor.release.set()
        assert slow.result().status_code == 200


def words(count: int, first: str = "w") -> str:
    return " ".join([first] * count)


# ---------------------------------------------------------------- admission


def test_a_full_queue_refuses_at_once_and_says_when_to_come_back() -> None:
    predictor = FakePredictor()
    with serving(predictor, max_queue_tokens=200) as client:
        with busy(predictor, client) as pool:
            waiting = [pool.submit(post, client, [words(60)]) for _ in range(3)]
            wait_for(client, "queue_requests", 4)
            begin = time.monotonic()
            response = post(client, [words(60)])
            assert time.monotonic() - begin < 2
            assert response.status_code == 429
            assert error_of(response)["type"] == "overloaded"
            assert int(response.headers["retry-after"]) >= 1
            assert post(client, [words(20)], model="my model").status_code == 429
            last = pool.submit(post, client, [words(19)])  # as many as there is room for
            wait_for(client, "queue_tokens", 200)
        assert [each.result().status_code for each in [*waiting, last]] == [200] * 4
        assert figure(client, "queue_tokens") == 0
        assert post(client, [words(60)]).status_code == 200
        assert 'bert_refused_total{type="overloaded"} 2.0' in client.get("/metrics").text


@pytest.mark.parametrize(("tokens", "status"), [(299, 200), (300, 200), (301, 413)])
def test_a_request_may_have_as_many_tokens_as_are_admitted(tokens: int, status: int) -> None:
    with serving(FakePredictor(), max_queue_tokens=300) as client:
        response = post(client, [words(100), words(100), words(tokens - 200)])
        assert response.status_code == status
        if status != 200:
            assert "300 tokens" in error_of(response)["message"]


@pytest.mark.parametrize("option", ["max_batch_tokens", "max_queue_tokens"])
def test_a_budget_below_one_text_is_refused_at_the_start(option: str) -> None:
    create_app({"m": FakePredictor()}, ServerSettings.of({option: 128}))  # type: ignore[dict-item]
    with pytest.raises(UsageError, match="up to 128 tokens") as caught:
        create_app({"m": FakePredictor()}, ServerSettings.of({option: 127}))  # type: ignore[dict-item]
    assert caught.value.where == f"--{option.replace('_', '-')} 127"


@pytest.mark.parametrize("tokens", [127, 128, 129, 1000])
def test_a_text_above_below_and_at_the_size_of_a_batch_is_answered(tokens: int) -> None:
    predictor = FakePredictor()
    with serving(predictor, max_batch_tokens=128) as client:
        (answer,) = post(client, [words(tokens)]).json()["predictions"]
    assert sum(predictor.sizes) == tokens
    assert max(predictor.sizes) <= 128
    assert answer["windows"] == -(-tokens // 128)


def test_batches_are_filled_up_to_their_tokens() -> None:
    predictor = FakePredictor()
    with serving(predictor, max_batch_tokens=128) as client:
        with busy(predictor, client) as pool:
            each = [pool.submit(post, client, [words(30)] * 2) for _ in range(6)]
            wait_for(client, "queue_requests", 7)
        assert [one.result().status_code for one in each] == [200] * 6
    assert predictor.sizes == [1, 120, 120, 120]


def test_the_number_of_requests_in_a_batch_can_be_bounded() -> None:
    predictor = FakePredictor()
    with serving(predictor, max_batch_requests=2) as client:
        with busy(predictor, client) as pool:
            each = [pool.submit(post, client, ["a", "b"]) for _ in range(4)]
            wait_for(client, "queue_requests", 5)
        assert [one.result().status_code for one in each] == [200] * 4
    assert predictor.sizes == [1, 4, 4]


def test_a_long_text_does_not_hold_up_short_ones() -> None:
    predictor = FakePredictor()
    with serving(predictor, max_batch_tokens=128) as client:
        with busy(predictor, client) as pool:
            long = pool.submit(post, client, [words(1280, "long")])
            wait_for(client, "queue_requests", 2)
            short = pool.submit(post, client, ["short-one"])
            wait_for(client, "queue_requests", 3)
        assert long.result().json()["predictions"][0]["windows"] == 10
        assert short.result().status_code == 200
    places = [number for number, batch in enumerate(predictor.batches) if "short-one" in batch]
    assert places[0] <= 2


def test_more_requests_than_may_be_at_once_are_refused() -> None:
    predictor = FakePredictor()
    with serving(predictor, max_concurrent_requests=2) as client:
        with busy(predictor, client) as pool:
            second = pool.submit(post, client, ["second"])
            wait_for(client, "queue_requests", 2)
            response = post(client, ["third"])
            assert response.status_code == 429
            assert response.headers["retry-after"] == "1"
            assert "connection" not in response.headers
            large = client.post("/predict", json={"texts": ["a" * 90_000]})
            assert large.status_code == 429
            assert client.get("/health").status_code == 200  # those who ask are never refused
            assert client.get("/metrics").status_code == 200
        assert second.result().status_code == 200
        assert post(client, ["fourth"]).status_code == 200


def test_what_waits_too_long_is_refused_as_too_much() -> None:
    predictor = FakePredictor()
    with serving(predictor, queue_timeout_ms=200) as client:
        with busy(predictor, client) as pool:
            late = pool.submit(post, client, ["late"])
            time.sleep(0.4)
        assert late.result().status_code == 429
        assert late.result().headers["retry-after"]
        assert post(client, ["next"]).status_code == 200
    assert predictor.batches == [["wait"], ["next"]]


def test_an_answer_that_takes_too_long_is_given_up() -> None:
    predictor = FakePredictor()
    with serving(predictor, request_timeout_ms=300) as client:
        response = post(client, ["wait"])
        assert response.status_code == 504
        assert error_of(response)["type"] == "timeout"
        predictor.release.set()
        assert post(client, ["next"]).status_code == 200
        assert figure(client, "queue_tokens") == 0


def test_a_body_that_does_not_come_is_given_up() -> None:
    def slow() -> Iterator[bytes]:
        yield b'{"texts":'
        time.sleep(0.6)
        yield b' ["a"]}'

    with serving(FakePredictor(), request_timeout_ms=200) as client:
        headers = {"Content-Type": "application/json"}
        response = client.post("/predict", content=slow(), headers=headers)
        assert response.status_code == 408
        assert error_of(response)["type"] == "slow_body"
        assert figure(client, "requests_in_flight") == 0


def test_nothing_is_tokenised_before_it_is_small_enough() -> None:
    predictor = FakePredictor()
    with serving(predictor, max_text_chars=10) as client:
        predictor.encode = None  # type: ignore[assignment, method-assign]
        assert post(client, ["." * 11]).status_code == 413
        assert post(client, ["."] * 33).status_code == 413
        response = client.post("/tokenize", json={"texts": ["." * 11]})
        assert response.status_code == 413


def test_a_first_slow_text_tells_nothing_of_the_rate() -> None:
    class Slow(FakePredictor):
        def scores(self, encoded: Sequence[Windowed]) -> list[Any]:
            time.sleep(0.2)
            return super().scores(encoded)

    with serving(Slow(), queue_timeout_ms=1500) as client, ThreadPoolExecutor(20) as pool:
        assert post(client, ["w"]).status_code == 200
        asked = [pool.submit(post, client, ["w"]) for _ in range(20)]
        assert {each.result().status_code for each in asked} == {200}


# ---------------------------------------------------------------- texts that are too long


def test_a_long_text_is_read_in_windows_cut_or_refused() -> None:
    text = words(300)
    found = {}
    for how in ("split", "truncate", "error"):
        with serving(FakePredictor(), on_too_long=how) as client:
            response = post(client, ["a", text])
            found[how] = response
            if how != "error":
                counted = f'bert_long_rows_total{{how="{how}",model="my model"}} 1.0'
                assert counted in client.get("/metrics").text
    split, cut = (found[how].json()["predictions"][1] for how in ("split", "truncate"))
    assert (split["windows"], split["truncated"]) == (3, False)
    assert (cut["windows"], cut["truncated"]) == (1, True)
    assert found["error"].status_code == 413
    assert "texts[1] has more than the 128 tokens" in error_of(found["error"])["message"]


def test_a_text_that_is_refused_after_the_cut_is_the_one_that_is_named() -> None:
    class Picky(FakePredictor):
        def encode(self, texts: Sequence[Any]) -> list[Windowed]:
            for number, text in enumerate(texts, start=1):
                if text.startswith("a") and not text.endswith("end"):
                    raise DataError("The text has no end.", where=f"text {number}")
            return super().encode(texts)

    with serving(Picky(), on_too_long="truncate") as client:
        response = post(client, ["a end", "a " + words(300) + " end"])
    assert response.status_code == 400
    assert "texts[1]: The text has no end." in error_of(response)["message"]


# ---------------------------------------------------------------- failures


def test_of_a_batch_that_fails_only_the_poison_does() -> None:
    predictor = FakePredictor()
    with serving(predictor) as client:
        with busy(predictor, client) as pool:
            texts = [["one"], ["two", "fail", "three"], ["four"], ["five", "six"]]
            each = [pool.submit(post, client, some) for some in texts]
            wait_for(client, "queue_requests", 5)
        statuses = [one.result().status_code for one in each]
        assert statuses == [200, 500, 200, 200]
        error = error_of(each[1].result())
        assert error == {"message": "The model failed at texts[1].", "type": "inference_failed"}
        assert figure(client, "failed_batches_total") == 1
        assert figure(client, "failed_rows_total") == 1
        assert figure(client, "queue_tokens") == 0
        assert post(client, ["next"]).status_code == 200


def test_a_model_that_breaks_and_recovers() -> None:
    predictor = FakePredictor()
    with serving(predictor) as client:
        predictor.broken = True
        for _ in range(3):
            assert post(client, ["a", "b"]).status_code == 500
        predictor.broken = False
        assert post(client, ["a"]).status_code == 200


def test_it_is_ready_only_if_the_model_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batching, "PROBE_SECONDS", 0.05)
    monkeypatch.setattr(batching, "READY_SECONDS", 0.3)
    predictor = FakePredictor()
    with serving(predictor) as client:
        time.sleep(0.5)  # nobody asks: the model is asked by itself
        assert client.get("/ready").status_code == 200
        predictor.broken = True
        until = time.monotonic() + 10
        while (response := client.get("/ready")).status_code == 200:
            assert time.monotonic() < until
            time.sleep(0.02)
        assert response.status_code == 503
        assert error_of(response)["type"] == "not_ready"
        assert client.get("/health").status_code == 200
        predictor.broken = False
        while client.get("/ready").status_code != 200:
            assert time.monotonic() < until
            time.sleep(0.02)


# ---------------------------------------------------------------- clients that go


def test_most_clients_hang_up_and_the_others_are_answered() -> None:
    predictor = FakePredictor()

    def ask(number: int) -> int | None:
        patience = 20 if number % 5 == 0 else 0.3
        address = str(client.base_url)
        try:
            with httpx.Client(base_url=address, trust_env=False, timeout=patience) as own:
                return post(own, [f"text{number}"]).status_code
        except httpx.TimeoutException:
            return None

    with serving(predictor) as client:
        with busy(predictor, client) as pool:
            each: list[Future[int | None]] = [pool.submit(ask, number) for number in range(50)]
            wait_for(client, "dropped_requests_total", 40)
        assert [one.result() for one in each] == [
            None if number % 5 else 200 for number in range(50)
        ]
        assert figure(client, "queue_tokens") == 0
        assert figure(client, "queue_requests") == 0
        assert post(client, ["next"]).status_code == 200
    computed = {first for batch in predictor.batches for first in batch}
    assert computed == {"wait", "next", *(f"text{number}" for number in range(0, 50, 5))}
