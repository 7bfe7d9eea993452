"""``bert serve`` as a process: a real model behind a real socket."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import torch

import bert
from bert.checkpoint import Checkpoint, write_model
from bert.families.family import load_family
from bert.model.config import BertConfig
from bert.text.tokenizer import Tokenizer

TEXTS = ["the small bird sings", "a cold wind", "今天天气很好。", ""]


@pytest.fixture(scope="module")
def model(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    config = BertConfig(tokenizer.vocab_size, 32, 2, 2, 64, 64)
    facts = {"task": "classification", "texts_per_row": 1}
    directory = tmp_path_factory.mktemp("served") / "model"
    labels = ["good", "bad", "<b>neither</b>"]
    head = load_family("bert").build("sequence", config, len(labels))
    write_model(
        directory, Checkpoint(head, "sequence", load_family("bert"), labels, tokenizer, facts)
    )
    return directory


@pytest.fixture
def server(model: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "bert", "serve", str(model), "--port", "0"],
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ,
    )
    assert process.stderr is not None
    found = None
    while found is None and (line := process.stderr.readline()):
        found = re.search(r"http://127\.0\.0\.1:\d+", line)
    assert found is not None
    yield process, found.group()
    process.kill()
    process.wait()
    process.stderr.close()


def test_it_answers_as_the_predictor_does(
    server: tuple[subprocess.Popen[str], str], model: Path
) -> None:
    _, address = server
    answered = httpx.post(f"{address}/predict", json={"texts": TEXTS}, timeout=30)
    assert answered.status_code == 200
    expected = bert.Predictor(model)(TEXTS)
    for given, wanted in zip(answered.json()["predictions"], expected, strict=True):
        assert given["label"] == wanted["label"]
        assert given["probabilities"] == pytest.approx(wanted["probabilities"], abs=1e-6)
    assert httpx.get(f"{address}/health").json() == {"status": "ok"}
    page = httpx.get(address)
    assert "<textarea" in page.text
    assert "script-src" in page.headers["content-security-policy"]


def test_sigterm_ends_it(server: tuple[subprocess.Popen[str], str]) -> None:
    process, address = server
    assert httpx.get(f"{address}/health").status_code == 200
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == 143
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{address}/health")
