"""What every request passes before any route is looked up.

The gate reads the body up to the limit and hands it on whole, refuses foreign hosts, anything
posted that is not JSON, and more requests than the server may have at once. It puts security
headers and a request id on every answer, counts and logs it, and turns an unexpected failure
into an answer that says nothing about the inside.

A page of another site cannot post here: JSON makes its browser ask first, and no CORS header
allows it. Nor can a name that its owner points at this machine (DNS rebinding), because that
name is not among the allowed hosts.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import logging
import re
import secrets
import time
import traceback
from contextlib import suppress
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bert.server.metrics import Metrics
from bert.server.models import timed_out
from bert.server.refusals import Refusal
from bert.server.settings import ServerSettings

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
# Bodies of this many bytes are read before they are refused, so that the connection lives on.
SMALL_BODY = 65_536
# Bodies of the largest size that are in memory at once.
LARGE_BODIES = 32

requests_log = logging.getLogger("bert.server.requests")
logger = logging.getLogger(__name__)


class Disconnected(Exception):
    """The client went before its request was whole."""


class Gate:
    """ASGI middleware around the application.

    Args:
        app: the application.
        settings: of the server.
        metrics: count what happens.
    """

    def __init__(self, app: ASGIApp, settings: ServerSettings, metrics: Metrics) -> None:
        self.app = app
        self.settings = settings
        self.metrics = metrics
        self.allowed_hosts = {host.lower() for host in settings.allowed_hosts}
        self.in_flight = 0  # requests with a body
        self.bytes = 0  # of their bodies
        self.logs_requests = settings.log_format == "json"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or pass on whatever is not HTTP."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begin = time.monotonic()
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        given = headers.get(b"x-request-id", "")
        identity = given if re.fullmatch(r"[\w.-]{1,64}", given, re.ASCII) else secrets.token_hex(8)
        facts: dict[str, Any] = {"deadline": begin + self.settings.request_timeout_ms / 1000}
        scope["facts"] = facts
        status = 0

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                more = [*SECURITY_HEADERS, (b"x-request-id", identity.encode())]
                if timing := facts.get("timing"):
                    steps = (f"{name};dur={1000 * took:.1f}" for name, took in timing.items())
                    more.append((b"server-timing", ", ".join(steps).encode()))
                if getattr(scope["app"].state, "draining", False):
                    more.append((b"connection", b"close"))
                message = {**message, "headers": [*message["headers"], *more]}
            await send(message)

        # A request that only asks has no body to be read, and is never refused for others.
        computes = scope["method"] not in ("GET", "HEAD", "OPTIONS")
        self.in_flight += computes
        self.metrics.in_flight.set(self.in_flight)
        try:
            await self.pass_on(scope, headers, receive, send_with_headers)
        except Disconnected:
            status = 499
        except Exception as error:
            where = "".join(traceback.format_tb(error.__traceback__))
            logger.error("%s: a request failed: %s\n%s", identity, type(error).__name__, where)
            if status:
                raise
            refusal = Refusal(500, "internal", "internal error")
            await refusal.response(scope["path"])(scope, receive, send_with_headers)
        finally:
            self.in_flight -= computes
            self.metrics.in_flight.set(self.in_flight)
            self.bytes -= facts.pop("bytes", 0)
            self.count(scope, facts, status, time.monotonic() - begin, identity)

    def count(
        self, scope: Scope, facts: dict[str, Any], status: int, seconds: float, identity: str
    ) -> None:
        """Count an answer and, if it is wanted, log it: never with a text or an address in it."""
        route = getattr(scope.get("route"), "path", "other")
        self.metrics.requests.labels(route, status).inc()
        self.metrics.request_seconds.labels(route).observe(seconds)
        if self.logs_requests:
            entry: dict[str, Any] = {
                "id": identity,
                "method": scope["method"] if scope["method"] in METHODS else "other",
                "route": route,
                "status": status,
                "ms": round(1000 * seconds, 1),
                **{name: facts[name] for name in ("model", "rows", "tokens") if name in facts},
            }
            if timing := facts.get("timing"):
                entry |= {f"{name}_ms": round(1000 * took, 1) for name, took in timing.items()}
            requests_log.info("request", extra={"facts": entry})

    async def pass_on(
        self, scope: Scope, headers: dict[bytes, str], receive: Receive, send: Send
    ) -> None:
        """Refuse the request, or call the application with the body that was read."""
        length = headers.get(b"content-length", "")
        size = int(length) if re.fullmatch(r"\d{1,18}", length, re.ASCII) else None
        refusal = self.refusal(scope, headers, size)
        body = b""
        if b"content-length" in headers or b"transfer-encoding" in headers:
            if refusal is not None and (size is None or size > SMALL_BODY):
                await self.refuse_unread(refusal, scope, receive, send)
                return
            try:
                async with asyncio.timeout_at(
                    asyncio.get_running_loop().time() + self.settings.request_timeout_ms / 1000
                ):
                    body = await self.read(receive, scope["facts"])
            except TimeoutError:
                refusal = refusal or Refusal(
                    408, "slow_body", timed_out(self.settings).message.replace("answer", "body")
                )
                await self.refuse_unread(refusal, scope, None, send)
                return
            except Refusal as too_large:
                await self.refuse_unread(refusal or too_large, scope, receive, send)
                return
        if refusal is not None:
            self.metrics.refused.labels(refusal.kind).inc()
            await refusal.response(scope["path"])(scope, receive, send)
            return
        unread: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive_again() -> Message:
            return unread.pop() if unread else await receive()

        await self.app(scope, receive_again, send)

    async def read(self, receive: Receive, facts: dict[str, Any]) -> bytes:
        """The whole body.

        Raises:
            Refusal: it is larger than the limit.
            Disconnected: the client went.
        """
        body = bytearray()
        more = True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise Disconnected
            piece = message.get("body", b"")
            body += piece
            self.bytes += len(piece)
            facts["bytes"] = len(body)
            more = message.get("more_body", False)
            if len(body) > self.settings.max_body_bytes:
                raise self.too_large()
            if self.bytes > LARGE_BODIES * self.settings.max_body_bytes:
                raise overloaded()
        return bytes(body)

    def too_large(self) -> Refusal:
        """The refusal of a body above the limit."""
        return Refusal(
            413,
            "too_large",
            f"The body is larger than {self.settings.max_body_bytes:,} bytes, "
            "the limit of a request.",
            "Send several requests.",
        )

    def refusal(self, scope: Scope, headers: dict[bytes, str], size: int | None) -> Refusal | None:
        """What is wrong with a request before its body is read, if anything."""
        if not self.answers_to(headers.get(b"host", "")):
            return Refusal(
                400,
                "host_not_allowed",
                "This server does not answer to the host name of the request.",
                f"Use one of: {', '.join(sorted(self.allowed_hosts))}.",
            )
        media_type = headers.get(b"content-type", "").partition(";")[0].strip().lower()
        if scope["method"] == "POST" and media_type != "application/json":
            return Refusal(
                415,
                "not_json",
                "The content type must be application/json.",
                "Send the header Content-Type: application/json.",
            )
        if size is not None and size > self.settings.max_body_bytes:
            return self.too_large()
        if self.in_flight > self.settings.max_concurrent_requests:
            return overloaded()
        return None

    def answers_to(self, host: str) -> bool:
        """Whether a Host header is that of this server."""
        found = re.fullmatch(r"(\[[^\]]*\]|[^:]*)(:\d*)?", host, re.ASCII)
        if found is None:
            return False
        if found[1].lower() in self.allowed_hosts:
            return True
        if self.settings.any_address:
            with suppress(ValueError):
                ipaddress.ip_address(found[1].strip("[]"))
                return True
        return False

    async def refuse_unread(
        self, refusal: Refusal, scope: Scope, receive: Receive | None, send: Send
    ) -> None:
        """Answer at once, then let a client that is still sending read it.

        Closing while it sends would reset the connection, and most clients would report that
        instead of the answer. So up to ten times the limit is read and dropped first.
        """
        self.metrics.refused.labels(refusal.kind).inc()
        response = refusal.response(scope["path"])
        headers = [*response.raw_headers, (b"connection", b"close")]
        start = {"type": "http.response.start", "status": refusal.status, "headers": headers}
        await send(start)
        await send({"type": "http.response.body", "body": response.body, "more_body": True})
        dropped = 0
        with suppress(TimeoutError):
            async with asyncio.timeout(5):
                while receive is not None and dropped < 10 * self.settings.max_body_bytes:
                    message = await receive()
                    dropped += len(message.get("body", b""))
                    if not message.get("more_body", False):
                        break
        await send({"type": "http.response.body", "body": b""})


METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")


def overloaded() -> Refusal:
    """The refusal of more requests than the server may have at once."""
    return Refusal(
        429,
        "overloaded",
        "The server has as many requests as it may have at once.",
        "Try again after the seconds in Retry-After.",
        retry_after=1,
    )


class JsonLines(logging.Formatter):
    """One JSON object for each record."""

    def format(self, record: logging.LogRecord) -> str:
        """The record in one line."""
        entry = {
            "time": round(record.created, 3),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **getattr(record, "facts", {}),
        }
        return json.dumps(entry, ensure_ascii=False)
