from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from html.parser import HTMLParser
from http.client import HTTPConnection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

pytest.importorskip("fastapi")
import uvicorn
from hypothesis import given, settings
from hypothesis import strategies as st

from bert.errors import DataError, UsageError
from bert.server.app import MAX_BODY_BYTES, MAX_CHARACTERS, MAX_TEXTS, create_app
from bert.server.run import bind, serve

HOSTILE_LABEL = "<img src=x onerror=alert(1)>"
JSON_TYPE = {"Content-Type": "application/json"}


class FakePredictor:
    """Answers at once, and does what a text tells it to."""

    def __init__(self, texts_per_row: int = 1) -> None:
        self.task = SimpleNamespace(name="classification")
        self.labels = [HOSTILE_LABEL, "体育"]
        self.texts_per_row = texts_per_row
        self.max_length = 128
        self.calls: list[list[Any]] = []
        self.threads: set[int] = set()
        self.running = threading.Semaphore(0)
        self.release = threading.Event()

    def __call__(self, texts: Sequence[str | tuple[str, str]]) -> list[dict[str, Any]]:
        self.calls.append(list(texts))
        self.threads.add(threading.get_ident())
        if "wait" in texts:
            self.running.release()
            assert self.release.wait(10)
        if "refuse" in texts:
            raise DataError("the text is refused", where="text 1", fix="write another")
        if "fail" in texts:
            raise RuntimeError("secret path /home/somebody")
        if "too few" in texts:
            return []
        probability = float("nan") if "nan" in texts else 0.75
        if "surrogate" in texts:
            return [{"label": "\ud800"} for _ in texts]
        return [
            {
                "label": self.labels[0],
                "probabilities": {self.labels[0]: probability, self.labels[1]: 0.25},
                "truncated": False,
            }
            for _ in texts
        ]


@contextmanager
def serving(predictor: FakePredictor, **options: Any) -> Iterator[httpx.Client]:
    """A client of a real server on a real socket of this machine."""
    app = create_app(predictor, name="my model", **options)
    with bind("127.0.0.1", 0) as listener:
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, ws="none"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        port = listener.getsockname()[1]
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:
                yield client
        finally:
            predictor.release.set()
            server.should_exit = True
            thread.join(10)
    assert not thread.is_alive()


@pytest.fixture(scope="module")
def client() -> Iterator[httpx.Client]:
    with serving(FakePredictor()) as client:
        yield client


def error_of(response: httpx.Response) -> dict[str, str]:
    """The error of an answer, once its shape is checked."""
    assert response.headers["content-type"] == "application/json"
    assert set(response.json()) == {"error"}
    error = response.json()["error"]
    assert {"message", "type"} <= set(error) <= {"message", "type", "fix"}
    assert all(isinstance(value, str) and value for value in error.values())
    assert "Traceback" not in response.text
    return dict(error)


def post(client: httpx.Client, texts: object) -> httpx.Response:
    return client.post("/predict", json={"texts": texts})


# ---------------------------------------------------------------- answers


def test_predictions_come_back_in_order_one_for_each_text() -> None:
    predictor = FakePredictor()
    with serving(predictor) as client:
        response = post(client, ["one", "二 🙂", ""])
    assert response.status_code == 200
    assert len(response.json()["predictions"]) == 3
    assert predictor.calls == [["one", "二 🙂", ""]]


def test_a_pair_model_takes_lists_of_two_and_nothing_else() -> None:
    predictor = FakePredictor(texts_per_row=2)
    with serving(predictor) as client:
        assert post(client, [["a", "b"], ["c", "d"]]).status_code == 200
        assert predictor.calls == [[("a", "b"), ("c", "d")]]
        for texts in (["a"], [["a"]], [["a", "b", "c"]], [["a", "b"], "c"], [["a", 1]]):
            assert error_of(response := post(client, texts))["type"] == "invalid_request"
            assert response.status_code == 422
        response = post(client, [["a", "b\x00"]])
        assert response.status_code == 400
        assert "offset 1 of its second text" in error_of(response)["message"]
        assert len(predictor.calls) == 1


def test_a_single_text_model_refuses_a_pair(client: httpx.Client) -> None:
    response = post(client, ["a", ["b", "c"]])
    assert response.status_code == 422
    assert error_of(response)["message"] == "texts[1] must be a string for this model."


def test_health_and_info(client: httpx.Client) -> None:
    assert client.get("/health").json() == {"status": "ok"}
    assert client.get("/info").json() == {
        "name": "my model",
        "task": "classification",
        "labels": [HOSTILE_LABEL, "体育"],
        "max_length": 128,
        "texts_per_row": 1,
    }


def test_openapi_describes_the_request_and_no_page_needs_a_cdn(client: httpx.Client) -> None:
    schema = client.get("/openapi.json").json()
    texts = schema["components"]["schemas"]["PredictRequest"]["properties"]["texts"]
    assert (texts["minItems"], texts["maxItems"]) == (1, MAX_TEXTS)
    assert {each["type"] for each in texts["items"]["anyOf"]} == {"string", "array"}
    for path in ("/docs", "/redoc"):
        assert client.get(path).status_code == 404


# ---------------------------------------------------------------- limits


def test_the_number_of_texts_is_limited(client: httpx.Client) -> None:
    assert len(post(client, ["a"] * MAX_TEXTS).json()["predictions"]) == MAX_TEXTS
    response = post(client, ["a"] * (MAX_TEXTS + 1))
    assert response.status_code == 413
    assert str(MAX_TEXTS) in error_of(response)["message"]


def test_the_length_of_a_text_is_limited(client: httpx.Client) -> None:
    assert post(client, ["é" * MAX_CHARACTERS]).status_code == 200
    response = post(client, ["a", "é" * (MAX_CHARACTERS + 1)])
    assert response.status_code == 413
    message = error_of(response)["message"]
    assert message == "texts[1] has 100001 characters; the limit is 100000."


def body_of(size: int) -> bytes:
    body = json.dumps({"texts": ["a" * 90_000] * 20}).encode()
    return body + b" " * (size - len(body))


@pytest.mark.parametrize("chunked", [False, True])
def test_the_body_is_limited_to_the_byte(client: httpx.Client, chunked: bool) -> None:
    def send(size: int) -> httpx.Response:
        body = body_of(size)
        pieces = (body[start : start + 65_536] for start in range(0, size, 65_536))
        return client.post("/predict", content=pieces if chunked else body, headers=JSON_TYPE)

    assert send(MAX_BODY_BYTES).status_code == 200
    response = send(MAX_BODY_BYTES + 1)
    assert response.status_code == 413
    assert str(MAX_BODY_BYTES) in error_of(response)["message"]


def test_a_client_that_sends_everything_before_it_reads_still_gets_the_refusal(
    client: httpx.Client,
) -> None:
    connection = HTTPConnection("127.0.0.1", client.base_url.port, timeout=10)
    with closing(connection):
        connection.request("POST", "/predict", body_of(5 * MAX_BODY_BYTES), JSON_TYPE)
        assert connection.getresponse().status == 413


def test_an_endless_body_is_answered_and_cut_off(client: httpx.Client) -> None:
    with socket.create_connection(("127.0.0.1", client.base_url.port), 10) as connection:
        head = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
        connection.sendall(head)
        chunks = 1_000 * (b"10000\r\n" + b"a" * 65_536 + b"\r\n")
        with pytest.raises(ConnectionError):
            connection.sendall(chunks)
    assert client.get("/health").status_code == 200


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("text", "kind", "offset"),
    [("ab\ud800c", "lone surrogate", 2), ("\udc00", "lone surrogate", 0), ("🙂a\x00", "NUL", 2)],
)
def test_a_character_that_is_no_text_is_refused_with_its_place(
    client: httpx.Client, text: str, kind: str, offset: int
) -> None:
    body = json.dumps({"texts": ["fine", text]})
    response = client.post("/predict", content=body, headers=JSON_TYPE)
    assert response.status_code == 400
    error = error_of(response)
    assert error["type"] == "bad_character"
    assert error["message"].startswith(f"texts[1] has a {kind}")
    assert error["message"].endswith(f"at offset {offset}.")


MALFORMED = {
    "empty": (b"", 400),
    "null": (b"null", 422),
    "not json": (b"texts=hello", 400),
    "cut off": (b'{"texts": ["a"', 400),
    "two values": (b'{"texts": ["a"]} {}', 400),
    "not utf-8": (b'{"texts": ["\xff"]}', 400),
    "deep list": (b"[" * 500_000, 400),
    "deep object": (b'{"texts":' * 200_000, 400),
    "nested in depth": (b'{"texts": ' + b"[" * 200 + b"]" * 200 + b"}", 422),
    "huge number": (b'{"texts": ' + b"9" * 10_000 + b"}", 400),
    "not a number": (b'{"texts": [NaN]}', 422),
    "list": (b'["a"]', 422),
    "string": (b'"a"', 422),
    "number": (b"1", 422),
    "no texts": (b"{}", 422),
    "texts null": (b'{"texts": null}', 422),
    "texts a string": (b'{"texts": "a"}', 422),
    "texts an object": (b'{"texts": {"0": "a"}}', 422),
    "empty list": (b'{"texts": []}', 422),
    "text a number": (b'{"texts": ["a", 1]}', 422),
    "text null": (b'{"texts": [null]}', 422),
    "text an object": (b'{"texts": [{"text": "a"}]}', 422),
    "text true": (b'{"texts": [true]}', 422),
    "one of a pair": (b'{"texts": [["a"]]}', 422),
    "unknown field": (b'{"texts": ["a"], "model": "other"}', 422),
    "unknown field with a surrogate": (b'{"texts": ["a"], "\\ud800": 1}', 422),
    "unknown fields by the thousand": (
        json.dumps({"texts": ["a"]} | {f"k{number}": 0 for number in range(100_000)}).encode(),
        422,
    ),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_a_malformed_body_is_refused(client: httpx.Client, case: str) -> None:
    body, status = MALFORMED[case]
    response = client.post("/predict", content=body, headers=JSON_TYPE)
    assert response.status_code == status
    error = error_of(response)
    assert error["type"] == ("malformed_json" if status == 400 else "invalid_request")
    assert len(error["message"]) < 300


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ("a", "texts must be a list."),
        ([], "texts is empty."),
        (["a", 5], "texts[1] must be a string, or a list of two strings."),
    ],
)
def test_refusals_name_the_place(client: httpx.Client, texts: object, message: str) -> None:
    assert error_of(post(client, texts))["message"] == message


def test_an_unknown_field_is_named(client: httpx.Client) -> None:
    response = client.post("/predict", json={"texts": ["a"], "text": "a"})
    expected = 'The body does not know the field "text"; it knows: texts.'
    assert error_of(response)["message"] == expected


def test_random_bodies_never_break_the_server(client: httpx.Client) -> None:
    choose = random.Random(20)
    seeds = [b'{"texts": ["one", "two"]}', b'{"texts": [["a", "b"]], "x": 1e999}', b"[[{}]]"]
    for _ in range(200):
        body = bytearray(choose.choice(seeds))
        for _ in range(choose.randint(1, 6)):
            place = choose.randrange(len(body) + 1)
            body[place : place + choose.randint(0, 3)] = choose.choice(
                [
                    choose.randbytes(2),
                    b'"',
                    b"[",
                    b"}",
                    b"\\ud800",
                    b"\\u0000",
                    b"-1",
                    b"null",
                    b",",
                ]
            )
        response = client.post("/predict", content=bytes(body), headers=JSON_TYPE)
        assert response.status_code < 500, bytes(body)
        if response.status_code != 200:
            error_of(response)


ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(st.characters(codec=None)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=60, deadline=None)
@given(value=ANY_JSON | st.fixed_dictionaries({"texts": ANY_JSON | st.lists(ANY_JSON)}))
def test_any_json_gets_predictions_or_a_refusal(client: httpx.Client, value: object) -> None:
    response = client.post("/predict", content=json.dumps(value), headers=JSON_TYPE)
    if response.status_code == 200:
        assert isinstance(value, dict)
        assert len(response.json()["predictions"]) == len(value["texts"])
    else:
        assert response.status_code in (400, 413, 422)
        error_of(response)


@pytest.mark.parametrize(
    "content_type",
    [None, "text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "json"],
)
def test_only_json_is_taken(client: httpx.Client, content_type: str | None) -> None:
    headers = {} if content_type is None else {"Content-Type": content_type}
    response = client.post("/predict", content=b'{"texts": ["a"]}', headers=headers)
    assert response.status_code == 415
    assert "application/json" in error_of(response)["fix"]


def test_a_charset_beside_the_content_type_is_fine(client: httpx.Client) -> None:
    headers = {"Content-Type": "Application/JSON; charset=utf-8"}
    response = client.post("/predict", content=b'{"texts": ["a"]}', headers=headers)
    assert response.status_code == 200


def test_unknown_addresses_and_methods(client: httpx.Client) -> None:
    assert error_of(client.get("/nothing"))["type"] == "not_found"
    assert client.get("/page.py").status_code == 404
    assert client.post("/predict/", json={}).status_code == 404
    response = client.get("/predict")
    assert response.status_code == 405
    assert response.headers["allow"] == "POST"
    assert error_of(response)["type"] == "method_not_allowed"


# ---------------------------------------------------------------- failures of the model


def test_a_text_the_model_cannot_take(client: httpx.Client) -> None:
    response = post(client, ["refuse"])
    assert response.status_code == 400
    assert error_of(response) == {
        "message": "the text is refused (text 1)",
        "type": "data_error",
        "fix": "write another",
    }


@pytest.mark.parametrize("text", ["fail", "too few"])
def test_an_unexpected_failure_tells_nothing_and_the_server_goes_on(
    client: httpx.Client, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    response = post(client, [text])
    assert response.status_code == 500
    assert error_of(response) == {"message": "internal error", "type": "internal"}
    assert response.headers["x-content-type-options"] == "nosniff"
    assert "POST /predict failed" in caplog.text
    assert post(client, ["fine"]).status_code == 200


def test_nan_is_never_an_answer(client: httpx.Client) -> None:
    response = post(client, ["nan"])
    assert response.status_code == 500
    assert error_of(response)["type"] == "nonfinite_output"
    assert "texts[0]" in error_of(response)["message"]


def test_a_label_that_is_no_text_still_gets_an_answer(client: httpx.Client) -> None:
    assert post(client, ["surrogate"]).json() == {"predictions": [{"label": "?"}]}


# ---------------------------------------------------------------- other sites and hostile labels


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:8000", "127.0.0.1", "127.0.0.1:1", "[::1]", "[::1]:8000"]
)
def test_names_of_this_machine_are_answered(client: httpx.Client, host: str) -> None:
    assert client.get("/health", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "host",
    ["evil.example", "localhost.evil.example", "evil.example:8000", "127.0.0.1.evil.example",
     "", "[::1", "[::1]x", "localhost:80:80", "0.0.0.0", "x@localhost", "localhost:80@evil"],
)  # fmt: skip
@pytest.mark.parametrize("path", ["/", "/health", "/nothing", "/openapi.json"])
def test_a_foreign_host_name_is_refused(client: httpx.Client, host: str, path: str) -> None:
    response = client.get(path, headers={"Host": host})
    assert response.status_code == 400
    assert error_of(response)["type"] == "host_not_allowed"
    assert "content-security-policy" in response.headers


def test_the_allowed_hosts_can_be_named() -> None:
    with serving(FakePredictor(), allowed_hosts=["bert.internal"]) as client:
        assert client.get("/health", headers={"Host": "bert.internal:80"}).status_code == 200
        assert client.get("/health").status_code == 400


def test_security_headers_are_on_every_answer_and_no_cors(client: httpx.Client) -> None:
    origin = {"Origin": "http://evil.example"}
    responses = [
        client.get("/", headers=origin),
        client.get("/info", headers=origin),
        client.get("/nothing"),
        client.post("/predict", json={"texts": ["a"]}, headers=origin),
        client.post("/predict", content=b"x"),
        client.post("/predict", content=b" " * (MAX_BODY_BYTES + 1)),
        client.options("/predict", headers=origin | {"Access-Control-Request-Method": "POST"}),
    ]
    assert [each.status_code for each in responses] == [200, 200, 404, 200, 415, 413, 405]
    for response in responses:
        policy = response.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'")
        assert "unsafe" not in policy
        assert "http" not in policy
        assert response.headers["x-content-type-options"] == "nosniff"
        assert response.headers["referrer-policy"] == "no-referrer"
        assert not [name for name in response.headers if name.startswith("access-control")]


def test_a_hostile_label_is_only_ever_json(client: httpx.Client) -> None:
    response = post(client, ["a"])
    assert response.json()["predictions"][0]["label"] == HOSTILE_LABEL
    assert response.headers["content-type"] == "application/json"
    for path in ("/", "/page.js", "/page.css"):
        assert HOSTILE_LABEL not in client.get(path).text


class Links(HTMLParser):
    """Everything in a page that makes a browser fetch or run something."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.inline: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        names = dict(attributes)
        self.found += [names[key] or "" for key in ("src", "href", "action") if key in names]
        self.inline += [key for key in names if key.startswith("on") or key == "style"]
        if tag == "style" or (tag == "script" and "src" not in names):
            self.inline.append(tag)


def test_the_page_brings_everything_along_and_obeys_its_policy(client: httpx.Client) -> None:
    page = client.get("/")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    links = Links()
    links.feed(page.text)
    assert links.inline == []
    own = [link for link in links.found if link != "data:,"]
    assert sorted(own) == ["page.css", "page.js"]
    kinds = [client.get(f"/{link}").headers["content-type"].split(";")[0] for link in sorted(own)]
    assert kinds == ["text/css", "text/javascript"]
    script = client.get("/page.js").text
    for unsafe in ("innerHTML", "outerHTML", "insertAdjacent", "document.write", "eval("):
        assert unsafe not in script


# ---------------------------------------------------------------- one at a time


def test_health_answers_while_a_prediction_runs_and_predictions_take_turns() -> None:
    predictor = FakePredictor()
    with serving(predictor) as client, ThreadPoolExecutor(5) as pool:
        slow = pool.submit(post, client, ["wait"])
        assert predictor.running.acquire(timeout=5)
        others = [pool.submit(post, client, [f"after {number}"]) for number in range(4)]
        start = time.monotonic()
        assert client.get("/health", timeout=2).status_code == 200
        assert client.get("/info", timeout=2).status_code == 200
        assert time.monotonic() - start < 2
        assert len(predictor.calls) == 1
        assert not slow.done()
        predictor.release.set()
        assert [each.result().status_code for each in [slow, *others]] == [200] * 5
    assert len(predictor.calls) == 5
    assert len(predictor.threads) == 1


def test_a_client_that_left_the_queue_costs_no_prediction() -> None:
    predictor = FakePredictor()
    with serving(predictor) as client, ThreadPoolExecutor(1) as pool:
        slow = pool.submit(post, client, ["wait"])
        assert predictor.running.acquire(timeout=5)
        with pytest.raises(httpx.ReadTimeout):
            client.post("/predict", json={"texts": ["given up"]}, timeout=0.2)
        time.sleep(0.1)  # for the closed connection to be noticed
        predictor.release.set()
        assert slow.result().status_code == 200
        assert post(client, ["last"]).status_code == 200
    assert predictor.calls == [["wait"], ["last"]]


# ---------------------------------------------------------------- serve


def test_a_port_in_use_is_told_with_the_next_one() -> None:
    with bind("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UsageError, match="in use") as caught:
            serve(FakePredictor(), "m", port=port)
    other = port + 1 if port < 65535 else port - 1
    assert caught.value.fix == f"bert serve RUN --port {other}"
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1"])
def test_other_machines_are_not_served(host: str) -> None:
    with pytest.raises(UsageError, match="other machines") as caught:
        serve(FakePredictor(), "m", host=host)
    assert "reverse proxy" in str(caught.value)


@pytest.mark.parametrize(("host", "port"), [("", 0), ("a" * 100, 0), ("localhost", 65536)])
def test_an_address_that_cannot_be_is_refused(host: str, port: int) -> None:
    with pytest.raises(UsageError):
        serve(FakePredictor(), "m", host=host, port=port)


@pytest.mark.parametrize("missing", ["uvicorn", "fastapi"])
def test_without_the_extra_the_fix_is_an_install(
    monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    # None in sys.modules raises ModuleNotFoundError, with the name, as a missing package does.
    monkeypatch.setitem(sys.modules, missing, None)
    monkeypatch.delitem(sys.modules, "bert.server.app")
    with pytest.raises(UsageError, match=missing) as caught:
        serve(FakePredictor(), "m")
    assert caught.value.fix == "pip install 'bertsmith[serve]'"


@pytest.mark.skipif(os.name != "posix", reason="sends SIGINT")
def test_serve_tells_its_address_answers_and_stops_at_ctrl_c() -> None:
    program = """
from types import SimpleNamespace
from bert.server.run import serve
class Fake:
    task, labels, texts_per_row, max_length = SimpleNamespace(name="classification"), ["a"], 1, 8
    def __call__(self, texts):
        return [{"label": "a"} for _ in texts]
serve(Fake(), "small model", port=0)
"""
    with subprocess.Popen(
        [sys.executable, "-c", program],
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    ) as process:
        assert process.stderr is not None
        line = process.stderr.readline()
        assert line.startswith("Serving small model at http://127.0.0.1:")
        assert line.endswith("  (Ctrl-C stops)\n")
        with httpx.Client(base_url=line.split()[4], trust_env=False) as client:
            assert post(client, ["x"]).json() == {"predictions": [{"label": "a"}]}
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 0
        assert process.stderr.read() == "Stopped.\n"
