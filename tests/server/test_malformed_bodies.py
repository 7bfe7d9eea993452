"""Whatever is sent, the server answers it: by the schema, and by thousands of broken bodies."""

from __future__ import annotations

import asyncio
import json
import random
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable

pytest.importorskip("fastapi")
pytest.importorskip("schemathesis")
import schemathesis
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi import checks
from served import FakePredictor, serving

from bert.server.app import create_app
from bert.server.settings import ServerSettings

ROUTES = ["/predict", "/embed", "/similarity", "/rerank", "/fill-mask", "/tokenize"]
ROUTES += ["/v1/embeddings", "/health", "/ready", "/info", "/metrics", "/v1/models", "/nothing"]
KEY = "the-key"
FEW, MANY = 1000, 10_000


def models() -> dict[str, FakePredictor]:
    return {"films": FakePredictor(), "vectors": FakePredictor(task="embedding")}


# ---------------------------------------------------------------- by the schema


def schema() -> object:
    app = create_app(models(), ServerSettings.of({"api_key": KEY}))  # type: ignore[arg-type]
    return schemathesis.openapi.from_dict(app.openapi())


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with serving(models(), api_key=KEY) as client:
        yield str(client.base_url)


CHECKS = [
    not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
    checks.negative_data_rejection,
    checks.ignored_auth,
]
OPERATIONS = [each.ok() for each in schema().get_all_operations()]  # type: ignore[attr-defined]


def fuzz(operation: object, address: str, examples: int) -> None:
    """Ask one route with what its schema allows, and with what it does not."""
    strategies = [
        operation.as_strategy(generation_mode=mode)  # type: ignore[attr-defined]
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)
    ]

    def ask(case: object) -> None:
        headers = {"Authorization": f"Bearer {KEY}"}
        case.call_and_validate(  # type: ignore[attr-defined]
            base_url=address, checks=CHECKS, headers=headers, timeout=20
        )

    for strategy in strategies:
        # A route that takes nothing cannot be asked wrongly.
        with suppress(Unsatisfiable):
            settings(
                max_examples=examples,
                deadline=None,
                derandomize=True,
                database=None,
                phases=[Phase.explicit, Phase.generate],
                suppress_health_check=list(HealthCheck),
            )(given(case=strategy)(ask))()


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda each: each.label)
def test_every_route_keeps_to_its_schema(operation: object, address: str) -> None:
    fuzz(operation, address, 25)


@pytest.mark.slow
@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda each: each.label)
def test_every_route_keeps_to_its_schema_at_length(operation: object, address: str) -> None:
    fuzz(operation, address, 500)


# ---------------------------------------------------------------- broken bodies

PIECES = [
    b'"', b"[", b"]", b"{", b"}", b",", b":", b"null", b"true", b"NaN", b"1e999", b"-1", b"\\",
    b"\\ud800", b"\\u0000", b"\xff", b"\xc3", b"\x00", b"\xed\xa0\x80", b'"model"', b'"texts"',
]  # fmt: skip
VALUES: list[object] = [
    None, True, 0, -1.5, 10**400, "", "a", "\ud800", "a\x00b", "🙂\udfff", [], {}, [[]], ["a"],
    [["a", "b"]], [["a"]], {"a": "b"}, "[MASK]", "fail", "refuse", ["a"] * 40, "films", "vectors",
]  # fmt: skip
FIELDS = ["texts", "pairs", "rows", "query", "input", "model", "encoding_format", "dimensions", "x"]


def body(draw: random.Random) -> bytes:
    """A body that is wrong in one way or another, or perhaps right."""
    kind = draw.randrange(100)
    if kind == 0:
        return json.dumps({"texts": ["." * 1_000_000]}).encode()
    if kind == 1:
        return b'{"texts":' + b"[" * draw.randrange(100_000)
    if kind == 2:
        return b'{"a":' * draw.randrange(50_000) + b"1" + b"}" * draw.randrange(50_000)
    if kind == 3:
        return json.dumps({"texts": ["a" * 99_999]}).encode()
    if kind < 12:
        return draw.randbytes(draw.randrange(200))
    if kind < 60:
        chosen = draw.sample(FIELDS, draw.randrange(4))
        return json.dumps({name: draw.choice(VALUES) for name in chosen}).encode()
    whole = bytearray(json.dumps({"texts": ["one", "two"], "model": "films"}).encode())
    for _ in range(draw.randint(1, 6)):
        place = draw.randrange(len(whole) + 1)
        whole[place : place + draw.randint(0, 3)] = draw.choice(PIECES)
    return bytes(whole)


def request(draw: random.Random, port: int) -> bytes:
    """A whole request: mostly the right headers around a wrong body."""
    content = body(draw)
    host = "evil.example" if draw.random() < 0.03 else f"127.0.0.1:{port}"
    key = draw.choice(["wrong", "", "é", KEY[:-1]]) if draw.random() < 0.05 else KEY
    kind = draw.choice(["text/plain", "", "json"]) if draw.random() < 0.05 else "application/json"
    method = draw.choice(["GET", "PUT", "DELETE"]) if draw.random() < 0.05 else "POST"
    head = (
        f"{method} {draw.choice(ROUTES)} HTTP/1.1\r\nHost: {host}\r\nContent-Type: {kind}\r\n"
        f"Authorization: Bearer {key}\r\nContent-Length: {len(content)}\r\n\r\n"
    )
    return head.encode() + content


async def ask_all(port: int, count: int, seed: int) -> tuple[Counter[int], list[str]]:
    """The statuses of many requests over eight connections, and what no answer may have."""
    found: Counter[int] = Counter()
    wrong: list[str] = []
    numbers = iter(range(count))

    async def client(seed: int) -> None:
        draw = random.Random(seed)
        reader = writer = None
        for _ in numbers:
            if writer is None:
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
            assert reader is not None
            sent = request(draw, port)
            writer.write(sent)
            head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 30)
            size = re.search(rb"content-length: (\d+)", head)
            if size is not None:
                answer = await reader.readexactly(int(size[1]))
            else:
                answer = await reader.read()
            status = int(head[9:12])
            found[status] += 1
            expected = b"fail" in sent  # a model that raises is a 500 by right
            if (status >= 500 and not expected) or b"Traceback" in answer or b"secret" in answer:
                wrong.append(f"{status} {sent[:300]!r} {answer[:300]!r}")
            if size is None or b"connection: close" in head:
                writer.close()
                writer = None
        if writer is not None:
            writer.close()

    await asyncio.gather(*(client(100 * seed + number) for number in range(8)))
    return found, wrong


def resident() -> float:
    """MiB of this process, which the server is in too."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(re.findall(r"VmRSS:\s+(\d+)", status)[0]) / 1024


def send_malformed(count: int) -> None:
    with serving(models(), api_key=KEY) as client:
        port = client.base_url.port
        assert port is not None
        asyncio.run(ask_all(port, 200, 1))
        before = resident()
        found, wrong = asyncio.run(ask_all(port, count, 2))
        assert wrong == []
        assert sum(found.values()) == count
        assert {200, 400, 401, 404, 405, 413, 415, 422} <= found.keys()
        assert resident() - before < 150
        headers = {"Authorization": f"Bearer {KEY}"}
        answered = client.post("/predict", json={"texts": ["a"]}, headers=headers)
        assert answered.status_code == 200
        figures = client.get("/metrics", headers=headers).text
        assert 'bert_queue_tokens{model="films"} 0.0' in figures


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
def test_malformed_bodies_are_answered() -> None:
    send_malformed(FEW)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
def test_ten_thousand_malformed_bodies_are_answered() -> None:
    send_malformed(MANY)
