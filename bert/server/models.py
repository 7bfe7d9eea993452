"""The models of a server: what each takes, and the way of a request through one."""

from __future__ import annotations

import asyncio
import copy
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from starlette.requests import Request

from bert.errors import DataError, UsageError
from bert.server.batching import Answer, Job, Rows, Worker
from bert.server.metrics import Metrics
from bert.server.refusals import Refusal
from bert.server.settings import ServerSettings

if TYPE_CHECKING:
    from bert.predictor import Predictor
    from bert.text.windows import Windowed

# Tokens computed at once. On a CPU more bring no speed, and others wait longer.
CPU_TOKENS, ACCELERATOR_TOKENS = 2048, 16_384
# Characters that are tokenised where the request is read: a thread of its own would cost more.
FEW_CHARACTERS = 2000
# Characters that are tokenised before it is looked how many tokens there are.
CHARACTERS_AT_ONCE = 50_000


class Result(NamedTuple):
    """Answers, and how many tokens it took."""

    answers: list[Answer]
    tokens: int


class Model:
    """One model that is served.

    Args:
        name: by which requests ask for it.
        predictor: does the work.
        settings: of the server.
        metrics: count what happens.
    """

    def __init__(
        self, name: str, predictor: Predictor, settings: ServerSettings, metrics: Metrics
    ) -> None:
        self.name = name
        self.predictor = predictor
        self.settings = settings
        self.metrics = metrics
        self.task = predictor.task.name
        self.routes = _routes(self.task, predictor)
        accelerator = getattr(predictor.device, "type", "cpu") != "cpu"
        usual = ACCELERATOR_TOKENS if accelerator else CPU_TOKENS
        batch_tokens = settings.max_batch_tokens or max(usual, predictor.max_length)
        for option, tokens in (
            ("--max-batch-tokens", batch_tokens),
            ("--max-queue-tokens", settings.max_queue_tokens),
        ):
            if tokens < predictor.max_length:
                raise UsageError(
                    f"The model {name} reads up to {predictor.max_length} tokens at once.",
                    where=f"{option} {tokens}",
                    fix=f"{option} {predictor.max_length}, or leave it out",
                )
        self._pairs = _for_pairs(predictor)
        self.worker = Worker(
            name,
            predictor,
            predictor.encode([_probe(predictor)]),
            metrics,
            batch_tokens=batch_tokens,
            batch_requests=settings.max_batch_requests,
            queue_tokens=settings.max_queue_tokens,
            queue_seconds=settings.queue_timeout_ms / 1000,
        )

    def facts(self) -> dict[str, Any]:
        """What can be told of it."""
        predictor = self.predictor
        return {
            "id": self.name,
            "object": "model",
            "task": self.task,
            "labels": list(predictor.labels),
            "texts_per_row": predictor.texts_per_row,
            "max_length": predictor.max_length,
            "precision": str(predictor.precision),
            "routes": list(self.routes),
        }

    async def ask(
        self,
        request: Request,
        rows: Rows,
        field: str,
        pool: ThreadPoolExecutor,
        *,
        extra: int = 0,
    ) -> Result:
        """The answers to the rows of a request.

        Args:
            request: where it is noticed when the client goes.
            rows: texts, or tuples of them.
            field: what the request calls them, for messages.
            pool: tokenises what is long.
            extra: rows above the limit that are not the client's.

        Raises:
            Refusal: whatever comes between.
        """
        facts = request.scope["facts"]
        facts |= {"model": self.name, "rows": len(rows)}
        begin = time.monotonic()
        self._check_size(rows, field, extra)
        rows, encoded = await self._encode(rows, field, pool, facts["deadline"])
        now = time.monotonic()
        loop = asyncio.get_running_loop()
        job = Job(rows, encoded, field, loop.create_future(), now)
        facts["tokens"] = job.tokens
        self.metrics.encode_seconds.labels(self.name).observe(now - begin)
        self.worker.submit(job)
        gone = asyncio.ensure_future(request.receive())
        try:
            await asyncio.wait(
                (job.future, gone),
                timeout=max(0.0, facts["deadline"] - now),
                return_when=asyncio.FIRST_COMPLETED,
            )
            if job.future.done():
                answers = job.future.result()
            elif gone.done():
                self.metrics.dropped.labels(self.name).inc()
                raise Refusal(499, "client_gone", "The client did not wait.")
            else:
                raise timed_out(self.settings)
        finally:
            gone.cancel()
            self.worker.drop(job)
            job.future.cancel()
        facts["timing"] = {
            "tokenize": now - begin,
            "queue": job.started - now,
            "compute": job.computed - job.started,
        }
        return Result(answers, job.tokens)

    async def tokens(
        self, request: Request, texts: Sequence[str], pool: ThreadPoolExecutor
    ) -> list[list[dict[str, Any]]]:
        """The tokens of texts, the special ones too, and where they stand in characters.

        Raises:
            Refusal: as `ask`.
        """
        facts = request.scope["facts"]
        facts |= {"model": self.name, "rows": len(texts)}
        self._check_size(texts, "texts")
        loop = asyncio.get_running_loop()
        found = await loop.run_in_executor(pool, self._tokens_now, texts, facts["deadline"])
        facts["tokens"] = sum(map(len, found))
        return found

    def _tokens_now(self, texts: Sequence[str], deadline: float) -> list[list[dict[str, Any]]]:
        tokenizer = self.predictor.task.tokenizer
        found: list[list[dict[str, Any]]] = []
        total = 0
        for text in texts:
            if time.monotonic() > deadline:
                raise timed_out(self.settings)
            tokenizer.backend.no_truncation()
            encoding = tokenizer.backend.encode(text)
            total += len(encoding)
            if total > self.settings.max_queue_tokens:
                raise self._too_many_tokens()
            found.append(
                [
                    {"id": number, "text": token, "start": start, "end": end}
                    for number, token, (start, end) in zip(
                        encoding.ids, encoding.tokens, encoding.offsets, strict=True
                    )
                ]
            )
        return found

    def _too_many_tokens(self) -> Refusal:
        return Refusal(
            413,
            "too_large",
            f"The request has more than {self.settings.max_queue_tokens:,} tokens, the limit.",
            "Send several requests, or shorter texts.",
        )

    async def _encode(
        self, rows: Rows, field: str, pool: ThreadPoolExecutor, deadline: float
    ) -> tuple[Rows, list[Windowed]]:
        if sum(map(_characters, rows)) <= FEW_CHARACTERS:
            return self._encode_now(rows, field, deadline)
        loop = asyncio.get_running_loop()
        work = loop.run_in_executor(pool, self._encode_now, rows, field, deadline)
        return await work

    def _check_size(self, rows: Rows, field: str, extra: int = 0) -> None:
        settings = self.settings
        limit = settings.max_client_batch_size
        if len(rows) - extra > limit:
            raise Refusal(
                413,
                "too_large",
                f"{field} has {len(rows) - extra:,} items; the limit is {limit:,} a request.",
                "Send several requests.",
            )
        for number, row in enumerate(rows):
            for text in (row,) if isinstance(row, str) else row:
                if len(text) > settings.max_text_chars:
                    raise Refusal(
                        413,
                        "too_large",
                        f"{field}[{number}] has {len(text):,} characters; "
                        f"the limit is {settings.max_text_chars:,}.",
                        "Split or shorten the text.",
                    )

    def _encode_now(self, rows: Rows, field: str, deadline: float) -> tuple[Rows, list[Windowed]]:
        """Rows as the model reads them, as soon as it is clear that they are not too many."""
        found: list[Windowed] = []
        read: list[Any] = []
        tokens = 0
        for begin, end in _chunks(rows):
            if time.monotonic() > deadline:
                raise timed_out(self.settings)
            chunk = list(rows[begin:end])
            for number, encoded in enumerate(self._encoded(chunk, field, begin)):
                row = chunk[number]
                how = self.settings.on_too_long
                if encoded.pieces > 1 or encoded.truncated:
                    if how == "error":
                        raise Refusal(
                            413,
                            "too_large",
                            f"{field}[{begin + number}] has more than the "
                            f"{self.predictor.max_length} tokens that the model takes.",
                            "Split or shorten the text.",
                        )
                    if how == "truncate":
                        row, encoded = self._truncated(row, encoded, field, begin + number)
                    self.metrics.long_rows.labels(self.name, how).inc()
                self.metrics.row_tokens.labels(self.name).observe(encoded.tokens)
                tokens += encoded.tokens
                read.append(row)
                found.append(encoded)
            if tokens > self.settings.max_queue_tokens:
                raise self._too_many_tokens()
        return read, found

    def _encoded(self, chunk: Rows, field: str, begin: int) -> list[Windowed]:
        pairs = all(not isinstance(row, str) and len(row) == 2 for row in chunk)
        encoder = self._pairs if pairs and self._pairs else self.predictor
        try:
            return encoder.encode(chunk)
        except DataError as error:
            number = (error.where or "").removeprefix("text ")
            place = f"{field}[{begin + int(number) - 1}]: " if number.isdecimal() else ""
            raise Refusal(400, "data_error", f"{place}{error.what}", error.fix) from None

    def _truncated(
        self, row: Any, encoded: Windowed, field: str, number: int
    ) -> tuple[Any, Windowed]:
        """The row with the end of its longest text cut until it fits into one window."""
        single = isinstance(row, str)
        texts = [row] if single else list(row)
        while encoded.pieces > 1 or encoded.truncated:
            longest = max(range(len(texts)), key=lambda i: len(texts[i]))
            # What is too much in tokens is about as much too much in characters.
            share = self.predictor.max_length / max(encoded.tokens, self.predictor.max_length + 1)
            texts[longest] = texts[longest][: int(len(texts[longest]) * max(share, 0.5))]
            row = texts[0] if single else tuple(texts)
            encoded = self._encoded([row], field, number)[0]
        return row, replace(encoded, truncated=True)


def timed_out(settings: ServerSettings) -> Refusal:
    """The refusal of what took longer than a request may."""
    return Refusal(
        504,
        "timeout",
        f"There was no answer within {settings.request_timeout_ms:,} ms.",
        "Send fewer or shorter texts in a request.",
    )


def _routes(task: str, predictor: Predictor) -> tuple[str, ...]:
    """What a model answers."""
    own: Mapping[str, tuple[str, ...]] = {
        "embedding": ("/embed", "/similarity", "/rerank", "/v1/embeddings"),
        "fill_mask": ("/fill-mask",),
        "regression": ("/similarity", "/rerank") if predictor.texts_per_row == 2 else (),
    }
    return ("/predict", *own.get(task, ()), "/tokenize")


def _probe(predictor: Predictor) -> Any:
    """A short row that the model can answer."""
    if predictor.task.name == "multiple_choice":
        return ("a", "", "b", "c")
    if predictor.task.name == "question_answering" or predictor.texts_per_row == 2:
        return ("a", "b")
    return predictor.task.tokenizer.mask_token


def _for_pairs(predictor: Predictor) -> Predictor | None:
    """The same model for pairs, if it does not say itself what it takes."""
    if predictor.facts or predictor.task.name not in (
        "classification",
        "multilabel",
        "regression",
    ):
        return None
    twin = copy.copy(predictor)
    twin.task = copy.copy(predictor.task)
    twin.take_pairs()
    return twin


def _characters(row: str | tuple[str, ...]) -> int:
    return len(row) if isinstance(row, str) else sum(map(len, row))


def _chunks(rows: Rows) -> Iterator[tuple[int, int]]:
    """Ends of runs of rows that are tokenised at once."""
    begin = characters = 0
    for number, row in enumerate(rows):
        if number > begin and characters + _characters(row) > CHARACTERS_AT_ONCE:
            yield begin, number
            begin, characters = number, 0
        characters += _characters(row)
    yield begin, len(rows)
