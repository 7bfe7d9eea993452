"""Serve predictors until Ctrl-C or SIGTERM, and end well."""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

from bert.errors import BertError, Interrupted, UsageError
from bert.heap import return_freed_memory
from bert.log import say

if TYPE_CHECKING:
    from fastapi import FastAPI

    from bert.predictor import Predictor
    from bert.server.settings import ServerSettings

# After SIGTERM new requests are still taken for so long: a balancer learns of it by and by.
LINGER_SECONDS = 1.0
# Connections that were made just before may send their request for so long.
LAST_SECONDS = 0.25
# A connection may be silent for so long. A client whose request meets the end of its connection
# counts it as lost: with the usual 5 seconds those were 4 of 3,519 at a few requests a minute each.
KEEP_ALIVE_SECONDS = 75
# How often the threads that compute are looked at.
WATCH_SECONDS = 1.0
# And how often memory that is held and not used is given back, which stops them for a moment.
TIDY_SECONDS = 20.0

logger = logging.getLogger("bert.server")


def serve(
    predictors: Mapping[str, Predictor],
    settings: ServerSettings,
    host: str = "127.0.0.1",
    port: int = 8000,
    *,
    insecure: bool = False,
) -> None:
    """Answer requests until Ctrl-C or SIGTERM; what was accepted is then finished.

    Args:
        predictors: by the names that requests have for them.
        settings: limits and so on.
        host: a name or address of this machine.
        port: 0 takes any free one.
        insecure: whether other machines may ask without a key.

    Raises:
        UsageError: for an address that cannot be used, or without the ``serve`` extra.
        Interrupted: by SIGTERM.
    """
    try:
        import uvicorn  # noqa: F401

        from bert.server.app import create_app
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in ("fastapi", "starlette", "uvicorn", "prometheus_client"):
            raise
        raise UsageError(
            f"Serving needs the package {error.name}, which is not installed.",
            fix="pip install 'bertsmith[serve]'",
        ) from None

    listener = bind(host, port, guarded=settings.api_key is not None or insecure)
    with listener:
        shown = f"[{host}]" if ":" in host else host
        address = ipaddress.ip_address(listener.getsockname()[0].partition("%")[0])
        names = [shown]
        if not address.is_loopback:
            names.append(socket.gethostname())
        settings = settings.model_copy(
            update={
                "allowed_hosts": (*settings.allowed_hosts, *names),
                "any_address": not address.is_loopback,
            }
        )
        _log(settings)
        app = create_app(predictors, settings)
        bound_port = listener.getsockname()[1]
        told = ", ".join(predictors)
        url = f"http://{shown}:{bound_port}"
        ended_by = _run(app, settings, listener, f"Serving {told} at {url}  (Ctrl-C stops)")
    if ended_by == signal.SIGTERM:
        raise Interrupted(signal.SIGTERM)
    say("Stopped.")


def _run(app: FastAPI, settings: ServerSettings, listener: socket.socket, ready: str) -> int:
    """Run the application; the signal that ended it, 0 if none did."""
    import uvicorn

    class Server(uvicorn.Server):
        """One that ends in steps: not ready, no new connections, what was accepted, out."""

        ended_by = 0

        def handle_exit(self, sig: int, frame: object) -> None:
            """Begin to end at the first signal, and end at once at the second."""
            if self.ended_by:
                self.force_exit = True
                logger.warning("stopped at once")
            else:
                self.ended_by = sig
                app.state.draining = True
            self.should_exit = True

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            if not self.should_exit:
                say(ready)

        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            waits = LINGER_SECONDS if self.ended_by == signal.SIGTERM else 0.0
            await self.wait(waits)
            for server in self.servers:
                server.close()
            await self.wait(LAST_SECONDS if self.server_state.connections else 0.0)
            await super().shutdown(sockets)

        async def wait(self, seconds: float) -> None:
            """Go on answering for a while, or until the second signal."""
            until = asyncio.get_running_loop().time() + seconds
            while not self.force_exit and asyncio.get_running_loop().time() < until:
                await asyncio.sleep(0.02)

    config = uvicorn.Config(
        app,
        log_config=None,
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        ws="none",
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=max(1, round(settings.drain_seconds)),
    )
    server = Server(config)
    watch = threading.Event()
    workers = [model.worker for model in app.state.models.values()]

    def watchdog() -> None:
        tidied = time.monotonic()
        while not watch.wait(WATCH_SECONDS):
            if time.monotonic() - tidied > TIDY_SECONDS:
                return_freed_memory()
                tidied = time.monotonic()
            for worker in workers:
                if worker.stuck(settings.stuck_seconds):
                    logger.critical("%s: the model computes no more; ending", worker.name)
                    say(f"Error: The model {worker.name} computes no more.")
                    os._exit(BertError.exit_code)

    for worker in workers:
        worker.start()
    threading.Thread(target=watchdog, name="watchdog", daemon=True).start()
    try:
        server.run(sockets=[listener])
    finally:
        watch.set()
    if server.force_exit or not all(worker.stop(1.0) for worker in workers):
        # A thread that computes cannot be stopped; the interpreter would wait for its end.
        sys.stderr.flush()
        os._exit(128 + (server.ended_by or signal.SIGTERM))
    return server.ended_by


def _log(settings: ServerSettings) -> None:
    """Where the log goes: standard error."""
    from bert.server.gate import JsonLines

    handler = logging.StreamHandler()
    if settings.log_format == "json":
        handler.setFormatter(JsonLines())
    else:
        handler.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
    for name in ("bert.server", "uvicorn.error"):
        log = logging.getLogger(name)
        log.handlers = [handler]
        log.propagate = False
    level = logging.INFO if settings.log_format == "json" else logging.WARNING
    logging.getLogger("bert.server").setLevel(level)


def bind(host: str, port: int, *, guarded: bool = False) -> socket.socket:
    """A listening socket.

    Args:
        host: a name or address of this machine.
        port: 0 takes any free one.
        guarded: whether other machines may reach it, because a key is asked for.

    Raises:
        UsageError: for an address that others reach, unless it is guarded, or a port that is
            taken or cannot be.
    """
    where = f"--host {host} --port {port}"
    if not 0 <= port <= 65535:
        raise UsageError("A port is a number from 0 to 65535.", where=where, fix="--port 8000")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM
        )[0]
    except (OSError, UnicodeError):
        raise UsageError(
            f"{host!r} is not an address of this machine.", where=where, fix="--host 127.0.0.1"
        ) from None
    if not guarded and not ipaddress.ip_address(str(address[0]).partition("%")[0]).is_loopback:
        raise UsageError(
            f"{host} can be reached from other machines, and no key is asked for.",
            where=where,
            fix="set BERT_API_KEY, or --insecure behind a reverse proxy that asks for one",
        )
    listener = socket.socket(family, kind, protocol)
    try:
        if os.name == "posix":  # a restart need not wait for the connections of the last run
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(2048)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            other = port + 1 if port < 65535 else port - 1
            raise UsageError(
                f"Port {port} is in use.", where=where, fix=f"bert serve RUN --port {other}"
            ) from None
        raise UsageError(
            f"Cannot listen there: {error.strerror}.",
            where=where,
            fix="bert serve RUN --host 127.0.0.1 --port 8000",
        ) from None
    return listener
