"""Serve one predictor on this machine until Ctrl-C or SIGTERM."""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
from typing import TYPE_CHECKING

from bert.errors import UsageError
from bert.log import say

if TYPE_CHECKING:
    from bert.server.app import Predictor

DRAIN_SECONDS = 30


def serve(predictor: Predictor, name: str, host: str = "127.0.0.1", port: int = 8000) -> None:
    """Answer requests until Ctrl-C; requests that are running then get 30 s to finish.

    Args:
        predictor: the model, called for one request at a time.
        name: of the model, for the page.
        host: a name or address of this machine, reachable from this machine only.
        port: 0 takes any free one.

    Raises:
        UsageError: for an address that cannot be used, or without the ``serve`` extra.
    """
    try:
        import uvicorn

        from bert.server.app import LOOPBACK_HOSTS, create_app
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("fastapi", "starlette", "uvicorn"):
            raise
        raise UsageError(
            f"Serving needs the package {error.name}, which is not installed.",
            fix="pip install 'bertsmith[serve]'",
        ) from None

    listener = bind(host, port)
    with listener:
        shown = f"[{host}]" if ":" in host else host
        app = create_app(predictor, name=name, allowed_hosts=(*LOOPBACK_HOSTS, shown))
        config = uvicorn.Config(
            app,
            log_config=None,
            log_level="warning",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            ws="none",
            timeout_graceful_shutdown=DRAIN_SECONDS,
        )
        bound_port = listener.getsockname()[1]
        say(f"Serving {name} at http://{shown}:{bound_port}  (Ctrl-C stops)")
        try:
            uvicorn.Server(config).run(sockets=[listener])
        except KeyboardInterrupt:
            say("Stopped.")


def bind(host: str, port: int) -> socket.socket:
    """A listening socket on a loopback address.

    Raises:
        UsageError: for another address, or a port that is taken or cannot be.
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
    if not ipaddress.ip_address(address[0]).is_loopback:
        raise UsageError(
            f"{host} can be reached from other machines, and this server asks for no password.",
            where=where,
            fix="keep --host 127.0.0.1 and put a reverse proxy with authentication before it",
        )
    listener = socket.socket(family, kind, protocol)
    try:
        if os.name == "posix":  # a restart need not wait for the connections of the last run
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(128)
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
