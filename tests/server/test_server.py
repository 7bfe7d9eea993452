from __future__ import annotations

import base64
import json
import random
import re
import socket
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from html.parser import HTMLParser
from http.client import HTTPConnection
from typing import Any

import httpx
import numpy as np
import pytest

pytest.importorskip("fastapi")
from hypothesis import given, settings
from hypothesis import strategies as st
from served import HOSTILE_LABEL, JSON_TYPE, SECRET, FakePredictor, error_of, post, serving

import bert
from bert.errors import UsageError
from bert.server.run import bind, serve
from bert.server.settings import ServerSettings

USUAL = ServerSettings.of({})
MAX_TEXTS, MAX_CHARACTERS = USUAL.max_client_batch_size, USUAL.max_text_chars
MAX_BODY_BYTES = USUAL.max_body_bytes


@pytest.fixture(scope="module")
def client() -> Iterator[httpx.Client]:
    with serving(FakePredictor()) as client:
        yield client


# ---------------------------------------------------------------- answers


def test_predictions_come_back_in_order_one_for_each_text() -> None:
    predictor = FakePredictor()
    with serving(predictor) as client:
        response = post(client, ["one", "二 🙂", ""])
    assert response.status_code == 200
    assert response.json()["model"] == "my model"
    assert len(response.json()["predictions"]) == 3
    assert predictor.batches == [["one", "二", ""]]


def test_a_pair_model_takes_lists_of_two_and_nothing_else() -> None:
    predictor = FakePredictor(texts_per_row=2)
    with serving(predictor) as client:

        def ask(pairs: object) -> httpx.Response:
            return client.post("/predict", json={"pairs": pairs})

        assert ask([["a", "b"], ["c", "d"]]).status_code == 200
        assert predictor.batches == [["a", "c"]]
        for pairs in (["a"], [["a"]], [["a", "b", "c"]], [["a", "b"], "c"], [["a", 1]]):
            assert error_of(response := ask(pairs))["type"] == "invalid_request"
            assert response.status_code == 422
        response = ask([["a", "b\x00"]])
        assert response.status_code == 400
        assert "offset 1 of its second text" in error_of(response)["message"]
        assert error_of(post(client, ["a"]))["type"] == "data_error"
        assert len(predictor.batches) == 1


def test_rows_have_as_many_texts_as_the_model_takes() -> None:
    with serving(FakePredictor(4, "multiple_choice")) as client:
        rows = [["a", "b", "c", "d"]]
        assert client.post("/predict", json={"rows": rows}).status_code == 200
        for bad in ([[]], ["a"], [[1]], [["a"] * 65]):
            response = client.post("/predict", json={"rows": bad})
            assert response.status_code == 422
            assert error_of(response)["message"] == "rows[0] must be a list of 1 to 64 strings."
        body = json.dumps({"rows": [["a", "b", "c\udfff", "d"]]})
        response = client.post("/predict", content=body, headers=JSON_TYPE)
        assert "offset 1 of its text 3" in error_of(response)["message"]


def test_a_single_text_model_refuses_a_pair(client: httpx.Client) -> None:
    response = post(client, ["a", ["b", "c"]])
    assert response.status_code == 422
    assert error_of(response)["message"] == "texts[1] must be a string."


def test_health_and_info(client: httpx.Client) -> None:
    assert client.get("/health").json() == {"status": "ok"}
    assert client.get("/ready").json() == {"status": "ready"}
    model = {
        "id": "my model",
        "object": "model",
        "task": "classification",
        "labels": [HOSTILE_LABEL, "体育"],
        "texts_per_row": 1,
        "max_length": 128,
        "precision": "fp32",
        "routes": ["/predict", "/tokenize"],
    }
    assert client.get("/v1/models").json() == {"object": "list", "data": [model]}
    info = client.get("/info").json()
    assert info["version"] == bert.__version__
    assert info["models"] == [model]
    assert info["limits"]["max_client_batch_size"] == MAX_TEXTS
    assert "api_key" not in info["limits"]


def test_several_models_are_asked_by_name() -> None:
    first, second = FakePredictor(), FakePredictor(task="embedding")
    with serving({"a": first, "b": second}) as client:
        assert post(client, ["x"]).json()["model"] == "a"
        assert post(client, ["x"], model="b").json()["model"] == "b"
        assert [len(each.batches) for each in (first, second)] == [1, 1]
        response = post(client, ["x"], model="c")
        assert response.status_code == 404
        assert error_of(response)["type"] == "model_not_found"
        assert error_of(response)["fix"] == "Models: a, b."
        response = client.post("/embed", json={"texts": ["x"]})
        assert response.status_code == 422
        assert error_of(response)["fix"] == "Name one that has: b."
        assert client.post("/embed", json={"texts": ["x"], "model": "b"}).json() == {
            "model": "b",
            "embeddings": [[1.0, 1.0]],
        }


def test_reranking_puts_the_nearest_first_and_counts_the_texts_as_the_request_does() -> None:
    with serving(FakePredictor(task="embedding")) as client:
        body = {"query": "abc", "texts": ["a", "abcd", "xyz"]}
        results = client.post("/rerank", json=body).json()["results"]
        assert [each["index"] for each in results] == [2, 1, 0]
        assert results[0]["score"] == pytest.approx(1)
        most = {"query": "a", "texts": ["a"] * MAX_TEXTS}
        assert client.post("/rerank", json=most).status_code == 200
        response = client.post("/rerank", json={"query": "a", "texts": ["b"] * (MAX_TEXTS + 1)})
        assert error_of(response)["message"].startswith(f"texts has {MAX_TEXTS + 1} items")
        response = client.post("/rerank", json={"query": "a", "texts": ["b", "refuse"]})
        assert error_of(response)["message"] == "texts[1]: the text is refused"


def test_tokens_are_shown_with_their_places(client: httpx.Client) -> None:
    response = client.post("/tokenize", json={"texts": ["one two", ""]})
    assert response.json()["tokens"] == [
        [
            {"id": 0, "text": "one", "start": 0, "end": 3},
            {"id": 1, "text": "two", "start": 0, "end": 3},
        ],
        [],
    ]


def test_embeddings_as_openai_has_them() -> None:
    with serving(FakePredictor(task="embedding")) as client:

        def ask(**body: object) -> httpx.Response:
            return client.post("/v1/embeddings", json=body)

        found = ask(input="abc", model="my model").json()
        assert found == {
            "object": "list",
            "data": [{"object": "embedding", "index": 0, "embedding": [3.0, 1.0]}],
            "model": "my model",
            "usage": {"prompt_tokens": 1, "total_tokens": 1},
        }
        found = ask(input=["abc", "d e"], encoding_format="base64", user="me", dimensions=2).json()
        packed = [base64.b64decode(each["embedding"]) for each in found["data"]]
        assert np.frombuffer(b"".join(packed), "<f4").tolist() == [3.0, 1.0, 3.0, 1.0]
        assert found["usage"]["total_tokens"] == 3
        for body, message in (
            ({"input": 1}, "input must be a list."),
            ({"input": []}, "input is empty."),
            ({"input": [[1, 2]]}, "input[0] must be a string."),
            ({"input": "a", "encoding_format": "x"}, "encoding_format must be"),
            ({"input": "a", "dimensions": 1}, "dimensions must be 2"),
            ({}, "input is missing."),
        ):
            response = ask(**body)  # type: ignore[arg-type]
            assert response.status_code == 422
            error = error_of(response)
            assert error["message"].startswith(message)
            assert (error["param"], error["code"]) == (None, "invalid_request")


def test_openapi_describes_the_request_and_no_page_needs_a_cdn(client: httpx.Client) -> None:
    schema = client.get("/openapi.json").json()
    fields = schema["components"]["schemas"]["PredictBody"]["properties"]
    pairs = next(each for each in fields["pairs"]["anyOf"] if each["type"] == "array")
    assert pairs["minItems"] == 1
    assert (pairs["items"]["minItems"], pairs["items"]["maxItems"]) == (2, 2)
    page = client.get("/docs")
    assert page.headers["content-type"].startswith("text/html")
    for path in schema["paths"]:
        assert f" {path}</code>" in page.text
    assert "query" in page.text
    assert not re.search(r"<script|(src|href)=.?(https?:)?//", page.text)
    assert client.get("/redoc").status_code == 404


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
    assert message == "texts[1] has 100,001 characters; the limit is 100,000."


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
    assert f"{MAX_BODY_BYTES:,}" in error_of(response)["message"]


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
    "unknown field": (b'{"texts": ["a"], "name": "other"}', 422),
    "model a number": (b'{"texts": ["a"], "model": 1}', 422),
    "texts and pairs": (b'{"texts": ["a"], "pairs": [["a", "b"]]}', 422),
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
        (["a", 5], "texts[1] must be a string."),
    ],
)
def test_refusals_name_the_place(client: httpx.Client, texts: object, message: str) -> None:
    assert error_of(post(client, texts))["message"] == message


def test_an_unknown_field_is_named(client: httpx.Client) -> None:
    response = client.post("/predict", json={"texts": ["a"], "text": "a"})
    expected = 'The body does not know the field "text"; it knows: model, pairs, rows, texts.'
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
    response = post(client, ["fine", "refuse"])
    assert response.status_code == 400
    assert error_of(response) == {
        "message": "texts[1]: the text is refused",
        "type": "data_error",
        "fix": "write another",
    }


@pytest.mark.parametrize("text", ["fail", "short", "undecodable"])
def test_a_failure_of_the_model_tells_nothing_and_the_server_goes_on(
    client: httpx.Client, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    response = post(client, ["fine", text] if text != "short" else [text])
    assert response.status_code == 500
    number = 0 if text == "short" else 1
    assert error_of(response) == {
        "message": f"The model failed at texts[{number}].",
        "type": "inference_failed",
    }
    assert response.headers["x-content-type-options"] == "nosniff"
    assert "RuntimeError" in caplog.text
    assert "secret text" not in caplog.text
    assert post(client, ["fine"]).status_code == 200


def test_an_unforeseen_failure_tells_nothing_either(
    client: httpx.Client, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: FakePredictor, texts: object) -> None:
        raise RuntimeError(SECRET)

    monkeypatch.setattr(FakePredictor, "encode", fail)
    response = post(client, ["fine"])
    assert response.status_code == 500
    assert error_of(response) == {"message": "internal error", "type": "internal"}
    assert response.headers["x-content-type-options"] == "nosniff"
    assert "RuntimeError" in caplog.text
    assert "secret" not in caplog.text
    monkeypatch.undo()
    assert post(client, ["fine"]).status_code == 200


def test_nan_is_never_an_answer_and_is_counted() -> None:
    with serving(FakePredictor()) as client:
        response = post(client, ["nan"])
        assert response.status_code == 500
        assert error_of(response)["type"] == "nonfinite_output"
        assert "texts[0]" in error_of(response)["message"]
        figures = client.get("/metrics").text
    assert 'bert_nonfinite_outputs_total{model="my model"} 1.0' in figures


def test_a_label_that_is_no_text_still_gets_an_answer(client: httpx.Client) -> None:
    assert post(client, ["surrogate"]).json()["predictions"] == [{"label": "?"}]


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
        client.post("/predict", content=b" " * (MAX_BODY_BYTES + 1), headers=JSON_TYPE),
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


# ---------------------------------------------------------------- keys, figures, ids


OPEN = ["/", "/page.css", "/page.js", "/docs", "/openapi.json", "/health", "/ready"]
GUARDED = ["/info", "/v1/models", "/metrics"]
COMPUTES = ["/predict", "/embed", "/similarity", "/rerank", "/fill-mask", "/tokenize"]
COMPUTES += ["/v1/embeddings"]


def test_the_key_is_asked_for_wherever_something_is_computed_or_told() -> None:
    predictor = FakePredictor()
    with serving(predictor, api_key="right") as client:
        schema = client.get("/openapi.json").json()["paths"]
        assert {*schema} == {*GUARDED, *COMPUTES, "/health", "/ready"}
        right = {"Authorization": "Bearer right"}
        for header in (
            None,
            "Bearer wrong",
            "Bearer right right",
            "Basic right",
            "right",
            "Bearer é",
        ):
            headers: Any = {} if header is None else {"Authorization": header.encode()}
            for path in COMPUTES:
                response = client.post(path, json={"texts": ["a"]}, headers=headers)
                assert response.status_code == 401, (path, header)
                assert error_of(response)["type"] == "wrong_key"
                assert response.headers["www-authenticate"] == "Bearer"
            for path in GUARDED:
                assert client.get(path, headers=headers).status_code == 401
        assert predictor.batches == []
        for path in OPEN:
            assert client.get(path).status_code == 200
        assert client.post("/predict", json={"texts": ["a"]}, headers=right).status_code == 200
        for path in GUARDED:
            assert client.get(path, headers=right).status_code == 200
        assert "right" not in client.get("/info", headers=right).text


@pytest.mark.parametrize("path", ["//predict", "/predict/", "/./predict", "/Predict", "/%70redict"])
def test_no_spelling_of_an_address_gets_around_the_key(path: str) -> None:
    predictor = FakePredictor()
    with serving(predictor, api_key="right") as client:
        with socket.create_connection(("127.0.0.1", client.base_url.port or 0), 5) as connection:
            head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json"
            connection.sendall(f"{head}\r\nContent-Length: 15\r\n\r\n".encode())
            connection.sendall(b'{"texts":["a"]}')
            assert connection.recv(100).split()[1] in (b"401", b"404")
        assert predictor.batches == []


def test_requests_have_ids_and_tell_what_took_long(client: httpx.Client) -> None:
    response = post(client, ["a"])
    assert re.fullmatch("[0-9a-f]{16}", response.headers["x-request-id"])
    assert re.fullmatch(
        r"tokenize;dur=[\d.]+, queue;dur=[\d.]+, compute;dur=[\d.]+",
        response.headers["server-timing"],
    )
    for name, kept in (("abc-1", True), ("a b", False), ("x" * 65, False), ("é", False)):
        headers: Any = {"X-Request-ID": name.encode()}
        answered = client.get("/health", headers=headers).headers["x-request-id"]  # type: ignore[arg-type]
        assert (answered == name) is kept


def test_the_figures_tell_what_happened() -> None:
    with serving(FakePredictor()) as client:
        post(client, ["one two", "three"])
        post(client, ["fail"])
        client.get("/secret")
        figures = client.get("/metrics")
    assert figures.headers["content-type"].startswith("text/plain; version=0.0.4")
    for line in (
        'bert_requests_total{route="/predict",status="200"} 1.0',
        'bert_requests_total{route="/predict",status="500"} 1.0',
        'bert_requests_total{route="other",status="404"} 1.0',
        'bert_refused_total{type="inference_failed"} 1.0',
        'bert_tokens_total{model="my model"} 3.0',
        'bert_rows_total{model="my model"} 2.0',
        'bert_failed_batches_total{model="my model"} 1.0',
        'bert_failed_rows_total{model="my model"} 1.0',
        'bert_queue_tokens{model="my model"} 0.0',
        'bert_queue_requests{model="my model"} 0.0',
        'bert_batch_tokens_sum{model="my model"} 3.0',
    ):
        assert line in figures.text, line
    assert "secret" not in figures.text


# ---------------------------------------------------------------- many at once


def test_health_answers_while_a_prediction_runs_and_those_that_wait_share_a_batch() -> None:
    predictor = FakePredictor()
    with serving(predictor) as client, ThreadPoolExecutor(5) as pool:
        slow = pool.submit(post, client, ["wait"])
        assert predictor.running.acquire(timeout=5)
        others = [pool.submit(post, client, [f"after{number}"]) for number in range(4)]
        start = time.monotonic()
        assert client.get("/health", timeout=2).status_code == 200
        assert client.get("/info", timeout=2).status_code == 200
        assert time.monotonic() - start < 2
        assert len(predictor.batches) == 1
        assert not slow.done()
        wait_for(client, 'bert_queue_requests{model="my model"} 5.0')
        predictor.release.set()
        assert [each.result().status_code for each in [slow, *others]] == [200] * 5
    assert predictor.batches[0] == ["wait"]
    assert sorted(predictor.batches[1]) == [f"after{number}" for number in range(4)]
    assert len(predictor.threads) == 1


def wait_for(client: httpx.Client, line: str) -> None:
    """Until the figures have this line."""
    until = time.monotonic() + 5
    while line not in client.get("/metrics").text:
        assert time.monotonic() < until, line
        time.sleep(0.02)


def test_a_client_that_left_the_queue_costs_no_prediction() -> None:
    predictor = FakePredictor()
    with serving(predictor) as client, ThreadPoolExecutor(1) as pool:
        slow = pool.submit(post, client, ["wait"])
        assert predictor.running.acquire(timeout=5)
        with pytest.raises(httpx.ReadTimeout):
            client.post("/predict", json={"texts": ["given up"]}, timeout=0.2)
        wait_for(client, 'bert_dropped_requests_total{model="my model"} 1.0')
        predictor.release.set()
        assert slow.result().status_code == 200
        assert post(client, ["last"]).status_code == 200
    assert predictor.batches == [["wait"], ["last"]]


# ---------------------------------------------------------------- serve


def test_a_port_in_use_is_told_with_the_next_one() -> None:
    with bind("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UsageError, match="in use") as caught:
            serve({"m": FakePredictor()}, USUAL, port=port)  # type: ignore[dict-item]
    other = port + 1 if port < 65535 else port - 1
    assert caught.value.fix == f"bert serve RUN --port {other}"
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1"])
def test_other_machines_are_not_served(host: str) -> None:
    with pytest.raises(UsageError, match="other machines") as caught:
        serve({"m": FakePredictor()}, USUAL, host=host)  # type: ignore[dict-item]
    assert "reverse proxy" in str(caught.value)
    assert "BERT_API_KEY" in str(caught.value)


@pytest.mark.parametrize(("host", "port"), [("", 0), ("a" * 100, 0), ("localhost", 65536)])
def test_an_address_that_cannot_be_is_refused(host: str, port: int) -> None:
    with pytest.raises(UsageError):
        serve({"m": FakePredictor()}, USUAL, host=host, port=port)  # type: ignore[dict-item]


@pytest.mark.parametrize("missing", ["uvicorn", "fastapi", "prometheus_client"])
def test_without_the_extra_the_fix_is_an_install(
    monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    # None in sys.modules raises ModuleNotFoundError, with the name, as a missing package does.
    monkeypatch.setitem(sys.modules, missing, None)
    for name in ("app", "metrics", "gate"):
        monkeypatch.delitem(sys.modules, f"bert.server.{name}")
    with pytest.raises(UsageError, match=missing) as caught:
        serve({"m": FakePredictor()}, USUAL)  # type: ignore[dict-item]
    assert caught.value.fix == "pip install 'bertsmith[serve]'"
