"""Texts of many requests, computed together: one queue and one thread for each model.

A batch is what is there when the thread is free, up to a number of tokens; nothing waits for
company. A request has its place in the queue by tokens before it is queued. One with more
tokens than a batch takes its turn with the others, a part at a time.
"""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
import traceback
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from bert.errors import DataError
from bert.server.metrics import Metrics
from bert.server.refusals import Refusal

if TYPE_CHECKING:
    from bert.data.batches import Numbers
    from bert.text.windows import Windowed

Answer = dict[str, Any]
Rows = Sequence[str | tuple[str, ...]]

PROBE_SECONDS = 5.0  # an idle model is asked for a forward pass this often
READY_SECONDS = 30.0  # a model is ready if one succeeded within these

logger = logging.getLogger(__name__)


class Network(Protocol):
    """What is asked of a predictor, in the one thread that computes."""

    def scores(self, encoded: Sequence[Windowed]) -> list[Numbers]:
        """What the network says of every window, in order."""

    def answer(
        self, text: str | tuple[str, ...], encoded: Windowed, scores: Sequence[Numbers]
    ) -> Answer:
        """The answer to a text from that."""


@dataclass(eq=False)
class Job:
    """The rows of one request on their way through a model.

    Args:
        rows: as the request has them.
        encoded: and as the model reads them.
        called: what the request calls them, for messages.
        future: of the event loop, which gets the answers or a ``Refusal``.
        arrived: by the monotonic clock.
    """

    rows: Rows
    encoded: Sequence[Windowed]
    called: str
    future: asyncio.Future[list[Answer]]
    arrived: float
    started: float = 0.0  # when the first of it was computed
    computed: float = 0.0  # when the last was
    ended: bool = False
    row: int = 0  # the next to be computed
    window: int = 0  # of that row
    left: int = 0  # windows that have no scores yet
    tokens: int = 0
    scores: list[list[Numbers]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.left = sum(len(row.windows) for row in self.encoded)
        self.tokens = sum(row.tokens for row in self.encoded)
        self.scores = [[] for _ in self.encoded]


class Piece(NamedTuple):
    """Windows of one row that are computed at once."""

    job: Job
    row: int
    part: Windowed
    tokens: int


class Worker:
    """The thread that computes for one model, and the queue before it.

    Args:
        name: of the model.
        network: does the work.
        probe: a row that it certainly can answer, to see that it still can.
        metrics: count what happens.
        batch_tokens: computed at once; one window may have more.
        batch_requests: whose windows are computed at once, if that is bounded.
        queue_tokens: admitted and not answered.
        queue_seconds: the longest wait.
    """

    def __init__(
        self,
        name: str,
        network: Network,
        probe: Sequence[Windowed],
        metrics: Metrics,
        *,
        batch_tokens: int,
        batch_requests: int | None,
        queue_tokens: int,
        queue_seconds: float,
    ) -> None:
        self.name = name
        self.network = network
        self.probe = probe
        self.metrics = metrics
        self.batch_tokens = batch_tokens
        self.batch_requests = batch_requests
        self.queue_tokens = queue_tokens
        self.queue_seconds = queue_seconds
        self.waiting_tokens = 0  # admitted and not answered
        self.last_success = -math.inf
        self.busy_since: float | None = None
        self._rate = math.inf  # tokens a second of the best batch of late
        self._jobs: deque[Job] = deque()
        self._changed = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name=f"compute {name}", daemon=True)

    # ---- in the thread of the event loop

    def start(self) -> None:
        """Compute once, so that a model that cannot is told at once, and begin; once is enough.

        Raises:
            Exception: whatever the model raises.
        """
        if self._thread.is_alive():
            return
        self.network.scores(self.probe)
        self.last_success = time.monotonic()
        self._thread.start()

    def stop(self, seconds: float) -> bool:
        """End the thread after the batch it is at; whether it ended within the time."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def ready(self) -> bool:
        """Whether a forward pass succeeded recently."""
        return time.monotonic() - self.last_success < READY_SECONDS

    def stuck(self, seconds: float) -> bool:
        """Whether it has been at one batch for so long, or has failed all that time."""
        now = time.monotonic()
        busy = self.busy_since
        return now - self.last_success > seconds + PROBE_SECONDS or (
            busy is not None and now - busy > seconds
        )

    def submit(self, job: Job) -> None:
        """Queue a job.

        Raises:
            Refusal: 413 if there never is room for it, 429 if there is none now.
        """
        if job.tokens > self.queue_tokens:
            raise Refusal(
                413,
                "too_large",
                f"The request has {job.tokens:,} tokens; the limit is {self.queue_tokens:,}.",
                "Send several requests.",
            )
        with self._changed:
            if (
                self.waiting_tokens + job.tokens > self.queue_tokens
                or self.waiting_tokens / self._rate > self.queue_seconds
            ):
                raise self.overloaded()
            self.waiting_tokens += job.tokens
            self._jobs.append(job)
            self._changed.notify()
        self.metrics.queue_tokens.labels(self.name).set(self.waiting_tokens)
        self.metrics.queue_requests.labels(self.name).inc()

    def drop(self, job: Job) -> None:
        """Compute no more of a job that nobody waits for."""
        with self._changed:
            self._end(job)

    def overloaded(self) -> Refusal:
        """The refusal of what there is no room for."""
        seconds = self.waiting_tokens / self._rate
        return Refusal(
            429,
            "overloaded",
            "The model has more to compute than it can in time.",
            "Try again after the seconds in Retry-After.",
            retry_after=max(1, math.ceil(min(seconds, self.queue_seconds))),
        )

    def _end(self, job: Job) -> None:
        if not job.ended:
            job.ended = True
            self.waiting_tokens -= job.tokens
            self.metrics.queue_tokens.labels(self.name).set(self.waiting_tokens)
            self.metrics.queue_requests.labels(self.name).dec()

    # ---- in its own thread

    def _run(self) -> None:
        while True:
            with self._changed:
                if not self._jobs and not self._stopping:
                    self._changed.wait(PROBE_SECONDS)
                if self._stopping and not self._jobs:
                    return
                pieces, late = self._take()
            for job in late:
                self._deliver([(job, self.overloaded())])
            self.busy_since = time.monotonic()
            try:
                if pieces:
                    self._compute(pieces)
                elif time.monotonic() - self.last_success > PROBE_SECONDS:
                    self.network.scores(self.probe)
                    self.last_success = time.monotonic()
            except Exception as error:
                self._log("a forward pass of the model failed", error)
            finally:
                self.busy_since = None
            self.metrics.ready.labels(self.name).set(self.ready())

    def _take(self) -> tuple[list[Piece], list[Job]]:
        """What is computed next, and jobs that have waited too long."""
        pieces: list[Piece] = []
        late: list[Job] = []
        room, requests = self.batch_tokens, 0
        now = time.monotonic()
        while self._jobs and room > 0 and requests != self.batch_requests:
            job = self._jobs.popleft()
            if job.ended:
                continue
            if not job.started and now - job.arrived > self.queue_seconds:
                late.append(job)
                continue
            taken = self._pieces(job, room, any_size=not pieces)
            if taken and not job.started:
                job.started = now
                self.metrics.queue_seconds.labels(self.name).observe(now - job.arrived)
            pieces += taken
            requests += 1
            room -= sum(piece.tokens for piece in taken)
            if job.row < len(job.encoded):  # it did not fit: the others first, then the rest
                if taken:
                    self._jobs.append(job)
                else:
                    self._jobs.appendleft(job)
                break
        return pieces, late

    def _pieces(self, job: Job, room: int, any_size: bool) -> list[Piece]:
        """Of one job what has room, and at least one window if ``any_size``."""
        found: list[Piece] = []
        while job.row < len(job.encoded):
            encoded, begin = job.encoded[job.row], job.window
            end, size = begin, 0
            while end < len(encoded.windows):
                more = len(encoded.windows[end].input_ids)
                if size + more > room and not (any_size and not found and end == begin):
                    break
                size += more
                end += 1
            if end > begin:
                whole = end - begin == len(encoded.windows)
                part = encoded if whole else replace(encoded, windows=encoded.windows[begin:end])
                found.append(Piece(job, job.row, part, size))
                room -= size
            if end < len(encoded.windows):
                job.window = end
                break
            job.row, job.window = job.row + 1, 0
        return found

    def _compute(self, pieces: list[Piece]) -> None:
        begin = time.monotonic()
        tokens = sum(piece.tokens for piece in pieces)
        try:
            scores = self.network.scores([piece.part for piece in pieces])
            if len(scores) != sum(len(piece.part.windows) for piece in pieces):
                raise RuntimeError("the model answered another number of texts than it was asked")
        except Exception as error:
            self.metrics.failed_batches.labels(self.name).inc()
            self._log(f"a batch of {len(pieces)} texts failed", error)
            finished = self._one_by_one(pieces)
        else:
            self.last_success = time.monotonic()
            rest = iter(scores)
            finished = [
                done
                for piece in pieces
                if (done := self._add(piece, [next(rest) for _ in piece.part.windows]))
            ]
            took = max(self.last_success - begin, 1e-6)
            # A few tokens alone, or the very first, take much longer each than those of a queue.
            requests = len({id(piece.job) for piece in pieces})
            full = 2 * tokens >= self.batch_tokens or requests == self.batch_requests
            if full or self._rate < math.inf:
                before = self._rate if self._rate < math.inf else 0.0
                self._rate = max(tokens / took, 0.95 * before)
            self.metrics.batch_seconds.labels(self.name).observe(took)
            self.metrics.batch_tokens.labels(self.name).observe(tokens)
            self.metrics.batch_requests.labels(self.name).observe(requests)
            self.metrics.tokens.labels(self.name).inc(tokens)
        self._deliver(finished)

    def _one_by_one(self, pieces: list[Piece]) -> list[tuple[Job, list[Answer] | Refusal]]:
        """The same again, so that only that fails which fails alone."""
        finished: list[tuple[Job, list[Answer] | Refusal]] = []
        for piece in pieces:
            if piece.job.ended or any(job is piece.job for job, _ in finished):
                continue
            try:
                scores = self.network.scores([piece.part])
                if len(scores) != len(piece.part.windows):
                    raise RuntimeError("the model answered another number of texts")
                self.last_success = time.monotonic()
            except Exception as error:
                finished.append((piece.job, self._failed(piece.job, piece.row, error)))
            else:
                if done := self._add(piece, scores):
                    finished.append(done)
        return finished

    def _add(
        self, piece: Piece, scores: Sequence[Numbers]
    ) -> tuple[Job, list[Answer] | Refusal] | None:
        """Keep the scores; if they were the last of their job, its answers."""
        job = piece.job
        job.scores[piece.row].extend(scores)
        job.left -= len(scores)
        return None if job.left or job.ended else (job, self._answers(job))

    def _answers(self, job: Job) -> list[Answer] | Refusal:
        answers = []
        for row, (text, encoded, scores) in enumerate(
            zip(job.rows, job.encoded, job.scores, strict=True)
        ):
            try:
                answer = self.network.answer(text, encoded, scores)
            except DataError as error:
                return Refusal(400, "data_error", f"{job.called}[{row}]: {error.what}", error.fix)
            except Exception as error:
                return self._failed(job, row, error)
            if not is_finite(answer):
                self.metrics.nonfinite.labels(self.name).inc()
                return Refusal(
                    500,
                    "nonfinite_output",
                    f"The model's answer for {job.called}[{row}] is not a finite number.",
                )
            answers.append(answer)
        self.metrics.rows.labels(self.name).inc(len(answers))
        return answers

    def _failed(self, job: Job, row: int, error: Exception) -> Refusal:
        self.metrics.failed_rows.labels(self.name).inc()
        self._log("a text failed on its own", error)
        return Refusal(500, "inference_failed", f"The model failed at {job.called}[{row}].")

    def _deliver(self, finished: Sequence[tuple[Job, list[Answer] | Refusal]]) -> None:
        """Hand results to the event loop, all at once, and make room in the queue."""
        now = time.monotonic()
        with self._changed:
            for job, _ in finished:
                job.computed = now
                self._end(job)
        if finished:
            # A loop that is closed has nobody left who waits.
            with suppress(RuntimeError):
                finished[0][0].future.get_loop().call_soon_threadsafe(_settle, finished)

    def _log(self, what: str, error: Exception) -> None:
        """Log a failure without its message, which may have a text in it."""
        where = "".join(traceback.format_tb(error.__traceback__))
        logger.error("%s: %s: %s\n%s", self.name, what, type(error).__name__, where)


def _settle(finished: Sequence[tuple[Job, list[Answer] | Refusal]]) -> None:
    for job, result in finished:
        if job.future.done():
            continue
        if isinstance(result, Refusal):
            job.future.set_exception(result)
        else:
            job.future.set_result(result)


def is_finite(value: object) -> bool:
    """Whether every number inside an answer is a number."""
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, dict):
        return all(map(is_finite, value.values()))
    if isinstance(value, list) and value and isinstance(value[0], float):
        return all(map(math.isfinite, value))
    return all(map(is_finite, value)) if isinstance(value, (list, tuple)) else True
