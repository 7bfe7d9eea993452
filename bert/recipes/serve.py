"""``bert serve``: a model over HTTP."""

from __future__ import annotations

from pathlib import Path

from bert.predictor import Predictor


def serve_model(name: str, host: str, port: int) -> None:
    """Serve until Ctrl-C or SIGTERM.

    Raises:
        ModelError: there is no model.
        UsageError: the port is taken, or the extra ``serve`` is not installed.
    """
    from bert.server.run import serve

    serve(Predictor(name), Path(name).name, host, port)
