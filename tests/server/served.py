"""A predictor that does what a text tells it to, and a real server around it."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import uvicorn

from bert.errors import DataError
from bert.server.app import create_app
from bert.server.run import bind
from bert.server.settings import ServerSettings
from bert.text.windows import Window, Windowed

SECRET = "secret path /home/somebody, secret text: "
HOSTILE_LABEL = "<img src=x onerror=alert(1)>"
JSON_TYPE = {"Content-Type": "application/json"}
NOWHERE = np.zeros((0, 2), dtype=np.int64)
NO_WORDS = np.zeros(0, dtype=np.int64)


class FakePredictor:
    """A token is a word; ``max_length`` of them are a window."""

    def __init__(self, texts_per_row: int = 1, task: str = "classification") -> None:
        backend = SimpleNamespace(
            no_truncation=lambda: None,
            encode=lambda text: Tokens(text.split()),
        )
        self.task = SimpleNamespace(
            name=task,
            tokenizer=SimpleNamespace(mask_token="[MASK]", backend=backend),
            written=lambda answer: answer,
        )
        self.facts = {"task": task}
        self.device = SimpleNamespace(type="cpu")
        self.precision = "fp32"
        self.labels = [HOSTILE_LABEL, "体育"]
        self.texts_per_row = texts_per_row
        self.max_length = 128
        self.batches: list[list[str]] = []  # the first word of each window
        self.sizes: list[int] = []  # tokens of each batch
        self.threads: set[int] = set()
        self.running = threading.Semaphore(0)
        self.release = threading.Event()
        self.failures: list[str] = []  # texts of batches that failed
        self.broken = False
        self.probe: list[Windowed] | None = None  # what is encoded first

    def encode(self, texts: Sequence[Any]) -> list[Windowed]:
        found = []
        for number, text in enumerate(texts, start=1):
            parts = (text,) if isinstance(text, str) else text
            if len(parts) != self.texts_per_row:
                raise DataError("The model takes another number of texts.", where=f"text {number}")
            if "refuse" in parts:
                raise DataError("the text is refused", where=f"text {number}", fix="write another")
            words = " ".join(parts).split(" ")
            starts = range(0, len(words), self.max_length)
            windows = [
                Window(words[start : start + self.max_length], [], start)  # type: ignore[arg-type]
                for start in starts
            ]
            found.append(Windowed(windows, NOWHERE, NO_WORDS))
        self.probe = self.probe or found
        return found

    def scores(self, encoded: Sequence[Windowed]) -> list[Any]:
        windows: list[Any] = [window for row in encoded for window in row.windows]
        words = [window.input_ids[0] for window in windows]
        if encoded is self.probe and not self.broken:
            return [np.zeros(1)]
        self.batches.append(words)
        self.sizes.append(sum(len(window.input_ids) for window in windows))
        self.threads.add(threading.get_ident())
        if "wait" in words:
            self.running.release()
            assert self.release.wait(20)
        if self.broken or "fail" in words:
            self.failures.append(" ".join(words))
            raise RuntimeError(SECRET + words[0])
        return [np.zeros(1) for _ in windows if words != ["short"]]

    def answer(self, text: Any, encoded: Windowed, scores: Sequence[Any]) -> dict[str, Any]:
        if text == "undecodable":
            raise RuntimeError(SECRET + text)
        if text == "surrogate":
            return {"label": "\ud800"}
        if self.task.name == "embedding":
            return {"embedding": [float(len(text)), 1.0]}
        chance = float("nan") if text == "nan" else 0.75
        return {
            "label": self.labels[0],
            "probabilities": {self.labels[0]: chance, self.labels[1]: 0.25},
            "windows": encoded.pieces,
            "truncated": encoded.truncated,
        }


class Tokens(list[str]):
    """What a tokenizer makes of a text."""

    @property
    def ids(self) -> list[int]:
        return list(range(len(self)))

    @property
    def tokens(self) -> list[str]:
        return list(self)

    @property
    def offsets(self) -> list[tuple[int, int]]:
        return [(0, len(word)) for word in self]


@contextmanager
def serving(
    predictors: FakePredictor | Mapping[str, Any], **options: Any
) -> Iterator[httpx.Client]:
    """A client of a real server on a real socket of this machine."""
    several = {"my model": predictors} if isinstance(predictors, FakePredictor) else predictors
    app = create_app(several, ServerSettings.of(options))
    with bind("127.0.0.1", 0) as listener:
        config = uvicorn.Config(app, log_config=None, ws="none", timeout_graceful_shutdown=5)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        port = listener.getsockname()[1]
        try:
            with httpx.Client(
                base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=20
            ) as client:
                yield client
        finally:
            for predictor in several.values():
                if isinstance(predictor, FakePredictor):
                    predictor.release.set()
            server.should_exit = True
            thread.join(20)
            for model in app.state.models.values():
                model.worker.stop(5)
    assert not thread.is_alive()


def error_of(response: httpx.Response) -> dict[str, str]:
    """The error of an answer, once its shape is checked."""
    assert response.headers["content-type"] == "application/json"
    assert set(response.json()) == {"error"}
    error = response.json()["error"]
    assert {"message", "type"} <= set(error) <= {"message", "type", "fix", "param", "code"}
    assert all(value is None or (isinstance(value, str) and value) for value in error.values())
    assert "Traceback" not in response.text
    assert "secret" not in response.text
    return dict(error)


def post(client: httpx.Client, texts: object, **more: object) -> httpx.Response:
    return client.post("/predict", json={"texts": texts, **more})
