"""``bert serve`` as a process: real models behind a real socket, and how it ends."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import httpx
import pytest
import torch

pytest.importorskip("fastapi")
from served import serving

import bert
from bert.checkpoint import Checkpoint, write_model
from bert.families.family import load_family
from bert.model.config import BertConfig
from bert.text.tokenizer import Tokenizer

TEXTS = ["the small bird sings", "a cold wind", "今天天气很好。", "", "stone " * 200, "a"]
KINDS = {
    "films": ("classification", "sequence", ["good", "bad", "<b>neither</b>"], 1),
    "pairs": ("regression", "sequence", ["score"], 2),
    "names": ("tagging", "token", ["O", "B-PER", "I-PER"], 1),
    "questions": ("question_answering", "span", [], 2),
    "choices": ("multiple_choice", "choice", [], 4),
    "vectors": ("embedding", "encoder", [], 1),
    "words": ("fill_mask", "pretraining", [], 1),
    "topics": ("multilabel", "sequence", ["x", "y"], 1),
}
ROOT = Path(bert.__file__).parents[1]


@pytest.fixture(scope="module")
def models(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model of each kind."""
    torch.manual_seed(0)
    config = BertConfig(tokenizer.vocab_size, 32, 2, 2, 64, 64)
    family = load_family("bert")
    folder = tmp_path_factory.mktemp("served")
    for name, (task, kind, labels, texts) in KINDS.items():
        head = family.build(kind, config, max(1, len(labels)))
        facts = {"task": task, "texts_per_row": texts}
        write_model(folder / name, Checkpoint(head, kind, family, labels, tokenizer, facts))
    return folder


class Process:
    """A server, its address, and what it says."""

    def __init__(self, command: Sequence[str], environment: dict[str, str]) -> None:
        self.process = subprocess.Popen(
            command, stderr=subprocess.PIPE, text=True, env=os.environ | environment, cwd=ROOT
        )
        assert self.process.stderr is not None
        self.pipe: IO[str] = self.process.stderr
        self.lines: list[str] = []
        self.address = ""
        while not self.address and (line := self.pipe.readline()):
            self.lines.append(line)
            if found := re.search(r"http://\S+:\d+", line):
                self.address = found.group()
        assert self.address, self.lines
        self._reader = threading.Thread(target=lambda: self.lines.extend(self.pipe))
        self._reader.start()

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def code(self, seconds: float = 30) -> int:
        code = self.process.wait(seconds)
        self._reader.join(5)
        return code


@contextmanager
def running(command: Sequence[str], **environment: str) -> Iterator[Process]:
    server = Process(command, environment)
    try:
        yield server
    finally:
        server.process.kill()
        server.process.wait()
        server._reader.join(5)
        server.pipe.close()


# A server of a predictor that needs no torch, and takes its time where a text says so.
SLOW = """
import sys, time, types
sys.path.insert(0, {here!r})
from served import FakePredictor
class Slow(FakePredictor):
    def __init__(self, *arguments):
        super().__init__()
    def scores(self, encoded):
        found = super().scores(encoded)
        words = [window.input_ids[0] for row in encoded for window in row.windows]
        if "slow" in words:
            time.sleep(1.5)
        while "hang" in words:
            time.sleep(1)
        return found
sys.modules["bert.predictor"] = types.SimpleNamespace(Predictor=Slow)
from bert.cli import main
main(["serve", "runs/films", "--port", "0", *sys.argv[1:]])
"""


def slow(*options: str) -> list[str]:
    return [sys.executable, "-c", SLOW.format(here=str(Path(__file__).parent)), *options]


def ask(address: str, *texts: str) -> int:
    return httpx.post(f"{address}/predict", json={"texts": texts}, timeout=30).status_code


# ---------------------------------------------------------------- answers


def test_every_kind_of_model_answers_as_its_predictor_does(models: Path) -> None:
    rows = {
        "films": ("texts", TEXTS),
        "pairs": ("pairs", [["a bird", "a cold wind"], ["", "x"]]),
        "names": ("texts", TEXTS),
        "questions": ("pairs", [["who sings?", "the small bird sings under the tree " * 20]]),
        "choices": ("rows", [["the bird", "what?", "sings", "falls"], ["the bird", "", "a", "b"]]),
        "vectors": ("texts", TEXTS),
        "words": ("texts", ["the [MASK] sings", "a [MASK] [MASK]"]),
        "topics": ("texts", TEXTS),
    }
    predictors = {name: bert.Predictor(models / name) for name in KINDS}
    with serving(predictors) as client, ThreadPoolExecutor(16) as pool:
        asked = []
        for name, (field, given) in rows.items():
            # All at once and one by one: the mates of a text in its batch change nothing.
            for part in (given, *([row] for row in given)):
                body = {"model": name, field: part}
                asked.append((name, part, pool.submit(client.post, "/predict", json=body)))
        for name, part, answered in asked:
            assert answered.result().status_code == 200, (name, answered.result().text)
            said = answered.result().json()["predictions"]
            for one, row in zip(said, part, strict=True):
                (wanted,) = predictors[name]([row if isinstance(row, str) else tuple(row)])
                same(one, json.loads(json.dumps(wanted)), name)
        names = [each["id"] for each in client.get("/v1/models").json()["data"]]
        assert names == [*KINDS]


def same(given: object, wanted: object, name: str) -> None:
    """Two answers, up to the last digits of their numbers."""
    if isinstance(wanted, dict):
        assert isinstance(given, dict)
        assert given.keys() == wanted.keys()
        for key in wanted:
            same(given[key], wanted[key], f"{name}.{key}")
    elif isinstance(wanted, list):
        assert isinstance(given, list)
        for one, other in zip(given, wanted, strict=True):
            same(one, other, name)
    else:
        assert given == (pytest.approx(wanted, abs=1e-5) if isinstance(wanted, float) else wanted)


def test_options_come_from_the_environment_and_other_machines_need_a_key() -> None:
    environment = {"BERT_API_KEY": "k", "BERT_MAX_CLIENT_BATCH_SIZE": "2", "BERT_HOST": "0.0.0.0"}
    with running(slow(), **environment) as server:
        address = server.address.replace("0.0.0.0", "127.0.0.1")
        assert httpx.get(f"{address}/health").status_code == 200
        assert httpx.get(f"{address}/info").status_code == 401
        headers = {"Authorization": "Bearer k"}
        info = httpx.get(f"{address}/info", headers=headers).json()
        assert info["limits"]["max_client_batch_size"] == 2
        # By the number of any address, as a page of another site cannot.
        for host, status in (("192.0.2.7:80", 200), ("[2001:db8::1]", 200), ("evil.example", 400)):
            assert httpx.get(f"{address}/health", headers={"Host": host}).status_code == status
    with running(slow("--host", "0.0.0.0", "--insecure")) as server:
        assert ask(server.address.replace("0.0.0.0", "127.0.0.1"), "a") == 200


def test_models_are_called_by_their_folders_where_that_tells_them_apart() -> None:
    from bert.recipes.serve import names_of

    assert names_of(["runs/films", "runs/names/", "org/model"]) == ["films", "names", "model"]
    assert names_of(["a/model", "b/model"]) == ["a/model", "b/model"]
    assert names_of(["/"]) == ["/"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--host", "0.0.0.0"], "no key is asked for"),
        (["--on-too-long", "cut"], "'split', 'truncate' or 'error'"),
        (["--max-batch-tokens", "127"], "--max-batch-tokens 127"),
        (["--max-queue-tokens", "0"], "--max-queue-tokens (or BERT_MAX_QUEUE_TOKENS)"),
        (["--api-key", "a b"], "api_key"),
    ],
)
def test_what_cannot_be_is_refused_at_the_start(options: list[str], said: str) -> None:
    ended = subprocess.run(slow(*options), capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert ended.returncode == 2
    assert said in ended.stderr
    assert "Traceback" not in ended.stderr


def test_the_log_is_of_json_and_never_has_a_text() -> None:
    with running(slow("--log-format", "json")) as server:
        headers = {"X-Request-ID": "mine"}
        body = {"texts": ["a secret text"]}
        httpx.post(f"{server.address}/predict?secret=1", json=body, headers=headers, timeout=30)
        httpx.get(f"{server.address}/secret%0a", timeout=30)
        httpx.post(f"{server.address}/predict", json={"secret": 1}, timeout=30)
        ask(server.address, "fail")
        server.signal(signal.SIGTERM)
        assert server.code() == 143
    entries = [json.loads(line) for line in server.lines if line.startswith("{")]
    requests = [each for each in entries if each["event"] == "request"]
    assert [each["status"] for each in requests] == [200, 404, 422, 500]
    assert [each["route"] for each in requests] == ["/predict", "other", "/predict", "/predict"]
    first = requests[0]
    assert (first["id"], first["model"], first["rows"]) == ("mine", "films", 1)
    assert first["tokens"] == 3
    assert {"tokenize_ms", "queue_ms", "compute_ms", "ms", "time", "level"} <= first.keys()
    assert [each["level"] for each in entries].count("error") == 2
    assert "secret" not in "".join(server.lines)


def test_a_megabyte_of_dots_many_times_is_refused_while_others_are_served(models: Path) -> None:
    predictors = {"films": bert.Predictor(models / "films")}
    with serving(predictors) as client, ThreadPoolExecutor(20) as pool:
        body = {"texts": ["." * 99_000] * 10}
        for path in ("/tokenize", "/predict"):
            heavy = [pool.submit(client.post, path, json=body, timeout=60) for _ in range(20)]
            begin = time.monotonic()
            assert client.get("/health").status_code == 200
            assert time.monotonic() - begin < 5
            assert {each.result().status_code for each in heavy} <= {413, 429}
        assert client.post("/predict", json={"texts": ["a"]}).status_code == 200


# ---------------------------------------------------------------- how it ends


def test_a_connection_may_be_silent_for_a_while() -> None:
    kept = httpx.Limits(keepalive_expiry=None)  # by the client
    with running(slow()) as server, httpx.Client(base_url=server.address, limits=kept) as client:
        with client.stream("GET", "/health") as answer:
            answer.read()
            before = answer.extensions["network_stream"].get_extra_info("client_addr")
        time.sleep(6)  # the usual end of a connection is after 5 seconds
        with client.stream("GET", "/health") as answer:
            after = answer.extensions["network_stream"].get_extra_info("client_addr")
            assert answer.status_code == 200
        assert before == after


def test_sigterm_ends_it(models: Path) -> None:
    command = [sys.executable, "-m", "bert", "serve", str(models / "films"), "--port", "0"]
    with running(command) as server:
        assert ask(server.address, *TEXTS) == 200
        assert "films" in server.lines[-1]
        server.signal(signal.SIGTERM)
        assert server.code() == 143
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{server.address}/health")


def test_ctrl_c_ends_it_at_once() -> None:
    with running(slow()) as server:
        assert ask(server.address, "a") == 200
        begin = time.monotonic()
        server.signal(signal.SIGINT)
        assert server.code() == 0
        assert time.monotonic() - begin < 5
        assert server.lines[-1] == "Stopped.\n"


def test_what_was_accepted_before_sigterm_is_answered() -> None:
    with running(slow()) as server, ThreadPoolExecutor(40) as pool:
        first = pool.submit(ask, server.address, "slow")
        time.sleep(0.3)
        waiting = [pool.submit(ask, server.address, f"w{number}") for number in range(30)]
        time.sleep(0.3)
        server.signal(signal.SIGTERM)
        time.sleep(0.2)
        ready = httpx.get(f"{server.address}/ready")
        assert ready.status_code == 503
        assert ready.headers["connection"] == "close"
        late = pool.submit(ask, server.address, "late")  # a balancer that has not heard of it yet
        assert [each.result() for each in [first, *waiting, late]] == [200] * 32
        assert server.code() == 143


def test_what_does_not_end_in_time_is_cut_off() -> None:
    with running(slow("--drain-seconds", "1")) as server, ThreadPoolExecutor(1) as pool:
        hangs = pool.submit(ask, server.address, "hang")
        time.sleep(0.3)
        begin = time.monotonic()
        server.signal(signal.SIGTERM)
        assert server.code() == 143
        assert time.monotonic() - begin < 10
        assert isinstance(hangs.exception(), httpx.TransportError) or hangs.result() >= 500


def test_the_second_signal_ends_it_at_once() -> None:
    with running(slow()) as server, ThreadPoolExecutor(1) as pool:
        hangs = pool.submit(ask, server.address, "hang")
        time.sleep(0.3)
        server.signal(signal.SIGTERM)
        time.sleep(0.3)
        begin = time.monotonic()
        server.signal(signal.SIGTERM)
        assert server.code() == 143
        assert time.monotonic() - begin < 3
        assert isinstance(hangs.exception(), httpx.TransportError) or hangs.result() >= 500


def test_a_model_that_hangs_ends_the_process_with_an_error() -> None:
    with running(slow("--stuck-seconds", "1")) as server, ThreadPoolExecutor(1) as pool:
        assert ask(server.address, "a") == 200
        hangs = pool.submit(ask, server.address, "hang")
        assert server.code() == 1
        assert isinstance(hangs.exception(), httpx.TransportError)
        assert "computes no more" in "".join(server.lines)
