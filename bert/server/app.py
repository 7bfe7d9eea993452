"""The HTTP application: texts in, predictions out, and a page to type into.

Every request passes the `Gate` (host, size, content type, security headers), then a
route. Every refusal is the same JSON: ``{"error": {"message", "type", "fix"}}``, where
``fix`` is left out when there is none.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Annotated, Any, Protocol

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field, PlainValidator, model_validator
from pydantic_core import PydanticCustomError
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bert.errors import DataError

MAX_TEXTS = 64
MAX_CHARACTERS = 100_000
MAX_BODY_BYTES = 2_000_000
LOOPBACK_HOSTS = ("localhost", "127.0.0.1", "[::1]")

logger = logging.getLogger(__name__)


class Task(Protocol):
    """What the server needs of a task."""

    @property
    def name(self) -> str:
        """What it is called."""


class Predictor(Protocol):
    """What the server needs of a model."""

    @property
    def task(self) -> Task:
        """What the model is used for."""

    labels: list[str]
    texts_per_row: int
    max_length: int

    def __call__(self, texts: Sequence[str | tuple[str, ...]]) -> list[dict[str, Any]]:
        """One dictionary for each row: a text, or a pair where ``texts_per_row`` is 2.

        Raises:
            DataError: for a text that the model cannot take.
        """


# ---------------------------------------------------------------- what comes in


def read_text(text: str, place: str = "") -> str:
    """One text as it may go to the tokenizer: not too long, and every character is text.

    Args:
        text: as the request has it.
        place: added to the message, where one row has several texts.

    Raises:
        PydanticCustomError: named ``too_large`` or ``bad_character``.
    """
    if len(text) > MAX_CHARACTERS:
        raise PydanticCustomError(
            "too_large",
            "has {count} characters{place}; the limit is {limit}",
            {"count": len(text), "place": place, "limit": MAX_CHARACTERS},
        )
    # JSON can spell half of a surrogate pair, which no UTF-8 text can hold.
    bad = re.search("[\x00\ud800-\udfff]", text)
    if bad:
        kind = "NUL" if bad[0] == "\x00" else "lone surrogate"
        raise PydanticCustomError(
            "bad_character",
            "has a {kind} character (U+{code}) at offset {offset}{place}",
            {"kind": kind, "code": f"{ord(bad[0]):04X}", "offset": bad.start(), "place": place},
        )
    return text


def read_row(value: object) -> str | tuple[str, str]:
    """One row: a string, or a list of two strings, which becomes a pair.

    Raises:
        PydanticCustomError: named ``wrong_type``, or as `read_text`.
    """
    if isinstance(value, str):
        return read_text(value)
    if isinstance(value, list) and len(value) == 2 and all(isinstance(each, str) for each in value):
        first, second = value
        return read_text(first, " of its first text"), read_text(second, " of its second text")
    raise PydanticCustomError("wrong_type", "must be a string, or a list of two strings")


Row = Annotated[
    str | tuple[str, str], PlainValidator(read_row, json_schema_input_type=str | tuple[str, str])
]


class RequestBody(BaseModel):
    """A request in JSON: exact types, and no field that nobody reads."""

    model_config = ConfigDict(strict=True, extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def stop_at_first_unknown_field(cls, value: Any) -> Any:
        """Refuse at the first unknown field: a body can name a hundred thousand of them."""
        for name in value if isinstance(value, dict) else ():
            if name not in cls.model_fields:
                raise PydanticCustomError(
                    "unknown_field",
                    "does not know the field {name}; it knows: {known}",
                    {"name": json.dumps(name[:80]), "known": ", ".join(cls.model_fields)},
                )
        return value


class PredictRequest(RequestBody):
    """The body of ``POST /predict``."""

    texts: Annotated[list[Row], Field(min_length=1, max_length=MAX_TEXTS)]


# ---------------------------------------------------------------- what goes out


class ErrorDetail(BaseModel):
    """What is wrong, its kind for a program, and what to do about it."""

    message: str
    type: str
    fix: str | None = None


class ErrorAnswer(BaseModel):
    """Every answer that is not a success."""

    error: ErrorDetail


class PredictAnswer(BaseModel):
    """One prediction for each text, in the same order."""

    predictions: list[dict[str, Any]]


def answer(content: object, status: int = 200) -> Response:
    """A JSON answer: no NaN, and a lone surrogate from a label becomes ``?``."""
    text = json.dumps(content, ensure_ascii=False, allow_nan=False)
    return Response(text.encode("utf-8", "replace"), status, media_type="application/json")


def refuse(status: int, kind: str, message: str, fix: str | None = None) -> Response:
    """An error answer; ``kind`` is what a program can match on."""
    detail = ErrorDetail(message=message, type=kind, fix=fix)
    return answer({"error": detail.model_dump(exclude_none=True)}, status)


def refuse_invalid(error: Mapping[str, Any]) -> Response:
    """Put the first thing that FastAPI or a model above found wrong in words."""
    kind, where = error["type"], error["loc"][1:]  # loc starts with "body"
    if kind == "json_invalid":
        reason = error["ctx"]["error"]
        message = f"The body is not JSON: {reason} at character {where[0]}."
        return refuse(400, "malformed_json", message)
    if kind == "missing" and not where:
        return refuse(400, "malformed_json", "The body is empty.", 'Send {"texts": ["..."]}.')
    place = "".join(f"[{step}]" if isinstance(step, int) else step for step in where)
    subject = place or "The body"
    if kind == "too_long":
        limit = error["ctx"]["max_length"]
        return refuse(
            413,
            "too_large",
            f"{subject} has more than {limit} items; the limit is {limit} a request.",
            "Send several requests.",
        )
    if kind == "too_large":
        return refuse(413, kind, f"{subject} {error['msg']}.", "Split or shorten the text.")
    if kind == "bad_character":
        return refuse(400, kind, f"{subject} {error['msg']}.", "Remove the character.")
    message = {"missing": "is missing", "too_short": "is empty", "list_type": "must be a list"}.get(
        kind, error["msg"] if kind in ("wrong_type", "unknown_field") else "must be a JSON object"
    )
    return refuse(422, "invalid_request", f"{subject} {message}.")


def is_finite(value: object) -> bool:
    """Whether every number inside an answer is a number."""
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, dict):
        return all(map(is_finite, value.values()))
    return all(map(is_finite, value)) if isinstance(value, (list, tuple)) else True


# ---------------------------------------------------------------- the gate

SECURITY_HEADERS = [
    (
        b"content-security-policy",
        b"default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
        b"img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cache-control", b"no-store"),
]


class Gate:
    """ASGI middleware that every request passes before any route is looked up.

    It reads the body up to the limit and hands it on whole, refuses foreign hosts and
    anything posted that is not JSON, puts the security headers on every answer, and turns
    an unexpected failure into an answer that says nothing about the inside.

    A page of another site cannot post here: JSON makes its browser ask first, and no
    CORS header allows it. Nor can a name that its owner points at this machine (DNS
    rebinding), because that name is not among ``allowed_hosts``.
    """

    def __init__(self, app: ASGIApp, allowed_hosts: Sequence[str]) -> None:
        self.app = app
        self.allowed_hosts = {host.lower() for host in allowed_hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or pass on whatever is not HTTP."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = False

        async def send_with_headers(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                message = {**message, "headers": [*message["headers"], *SECURITY_HEADERS]}
            await send(message)

        try:
            await self.pass_on(scope, receive, send_with_headers)
        except Exception:
            logger.exception("%s %s failed", scope["method"], scope["path"])
            if started:
                raise
            response = refuse(500, "internal", "internal error")
            await response(scope, receive, send_with_headers)

    async def pass_on(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse the request, or call the application with the body that was read."""
        body = bytearray()
        more = True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message.get("body", b"")
            more = message.get("more_body", False)
            if len(body) > MAX_BODY_BYTES:
                await refuse_body(receive, send, more)
                return
        refusal = self.refusal(scope)
        if refusal is not None:
            await refusal(scope, receive, send)
            return
        unread: list[Message] = [{"type": "http.request", "body": bytes(body), "more_body": False}]

        async def receive_again() -> Message:
            return unread.pop() if unread else await receive()

        await self.app(scope, receive_again, send)

    def refusal(self, scope: Scope) -> Response | None:
        """What is wrong with the headers, if anything."""
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        host = re.fullmatch(r"(\[[^\]]*\]|[^:]*)(:\d*)?", headers.get(b"host", ""))
        if host is None or host[1].lower() not in self.allowed_hosts:
            return refuse(
                400,
                "host_not_allowed",
                "This server does not answer to the host name of the request.",
                f"Use one of: {', '.join(sorted(self.allowed_hosts))}.",
            )
        media_type = headers.get(b"content-type", "").partition(";")[0].strip().lower()
        if scope["method"] == "POST" and media_type != "application/json":
            return refuse(
                415,
                "not_json",
                "The content type must be application/json.",
                "Send the header Content-Type: application/json.",
            )
        return None


async def refuse_body(receive: Receive, send: Send, more: bool) -> None:
    """Answer 413 at once, then let a client that is still sending read it.

    Closing while it sends would reset the connection, and most clients would report that
    instead of the answer. So up to ten times the limit is read and dropped first.
    """
    response = refuse(
        413,
        "too_large",
        f"The body is larger than {MAX_BODY_BYTES} bytes, the limit of a request.",
        "Send several requests.",
    )
    headers = [*response.raw_headers, (b"connection", b"close")]
    await send({"type": "http.response.start", "status": 413, "headers": headers})
    await send({"type": "http.response.body", "body": response.body, "more_body": True})
    dropped = 0
    with suppress(TimeoutError):
        async with asyncio.timeout(5):
            while more and dropped < 10 * MAX_BODY_BYTES:
                message = await receive()
                more = message.get("more_body", False)
                dropped += len(message.get("body", b""))
    await send({"type": "http.response.body", "body": b""})


# ---------------------------------------------------------------- the application


def create_app(
    predictor: Predictor, *, name: str, allowed_hosts: Sequence[str] = LOOPBACK_HOSTS
) -> FastAPI:
    """The application that serves one predictor.

    Args:
        predictor: called from one worker thread, never twice at the same time.
        name: of the model, for the page and ``/info``.
        allowed_hosts: names, without a port, that the Host header may have.
    """
    # Always the same thread, because every new one would start its own pool of torch threads.
    # The lock is where requests wait, since a client that left can be dropped there.
    worker = ThreadPoolExecutor(1, thread_name_prefix="predict")
    turn = asyncio.Lock()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        worker.shutdown(wait=False, cancel_futures=True)

    error_answers: dict[int | str, dict[str, Any]] = {
        status: {"model": ErrorAnswer} for status in (400, 413, 415, 422, 500)
    }
    # The documentation pages of FastAPI load their scripts from a CDN.
    app = FastAPI(
        title="bert",
        version="1",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        lifespan=lifespan,
    )
    app.add_middleware(Gate, allowed_hosts=allowed_hosts)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        return refuse_invalid(error.errors()[0])

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> Response:
        if error.status_code == 404:
            return refuse(404, "not_found", "There is nothing at this address.")
        if error.status_code == 405:
            response = refuse(405, "method_not_allowed", "This address takes another method.")
            response.headers.update(error.headers or {})
            return response
        # What is left is a body that FastAPI could not read: nested too deep, not UTF-8.
        return refuse(400, "malformed_json", "The body cannot be read as JSON.")

    @app.exception_handler(DataError)
    async def data_error(request: Request, error: DataError) -> Response:
        message = f"{error.what} ({error.where})" if error.where else error.what
        return refuse(400, "data_error", message, error.fix)

    @app.post("/predict", response_model=PredictAnswer, responses=error_answers)
    async def predict(body: PredictRequest, request: Request) -> Response:
        for index, row in enumerate(body.texts):
            if isinstance(row, str) != (predictor.texts_per_row == 1):
                wanted = "a string" if predictor.texts_per_row == 1 else "a list of two strings"
                message = f"texts[{index}] must be {wanted} for this model."
                return refuse(422, "invalid_request", message)
        async with turn:
            if await request.is_disconnected():
                return Response(status_code=499)  # nobody reads it
            loop = asyncio.get_running_loop()
            predictions = await loop.run_in_executor(worker, predictor, body.texts)
        for index, (_, prediction) in enumerate(zip(body.texts, predictions, strict=True)):
            if not is_finite(prediction):
                message = f"The model's answer for texts[{index}] is not a finite number."
                return refuse(500, "nonfinite_output", message)
        return answer({"predictions": predictions})

    @app.get("/health")
    async def health() -> Response:
        return answer({"status": "ok"})

    @app.get("/info")
    async def info() -> Response:
        return answer(
            {
                "name": name,
                "task": predictor.task.name,
                "labels": list(predictor.labels),
                "max_length": predictor.max_length,
                "texts_per_row": predictor.texts_per_row,
            }
        )

    for path, file, media_type in (
        ("/", "page.html", "text/html"),
        ("/page.css", "page.css", "text/css"),
        ("/page.js", "page.js", "text/javascript"),
    ):
        page = Response((Path(__file__).parent / file).read_bytes(), media_type=media_type)
        add_page(app, path, page)
    return app


def add_page(app: FastAPI, path: str, page: Response) -> None:
    """Serve one file that never changes."""

    @app.get(path, include_in_schema=False)
    async def static() -> Response:
        return page
