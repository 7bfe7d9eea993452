"""``bert serve``: models over HTTP."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bert.errors import UsageError
from bert.predictor import Predictor


def serve_models(
    runs: Sequence[str],
    host: str,
    port: int,
    precision: str | None,
    *,
    insecure: bool,
    allowed_hosts: Sequence[str] = (),
    **options: Any,
) -> None:
    """Serve until Ctrl-C or SIGTERM.

    Args:
        runs: run folders, model directories or hub ids.
        host: a name or address of this machine.
        port: 0 takes any free one.
        precision: of the arithmetic; none: the predictor's usual one.
        insecure: whether other machines may ask without a key.
        allowed_hosts: further names that the Host header may have.
        options: those of ``ServerSettings``; None stands for what is usual.

    Raises:
        ModelError: there is no model.
        UsageError: the port is taken, or the extra ``serve`` is not installed.
        Interrupted: by SIGTERM.
    """
    from bert.server.run import bind, serve
    from bert.server.settings import LOOPBACK_HOSTS, ServerSettings

    given = {name: value for name, value in options.items() if value is not None}
    given["allowed_hosts"] = (*LOOPBACK_HOSTS, *allowed_hosts)
    places = {name: f"--{name.replace('_', '-')} (or BERT_{name.upper()})" for name in given}
    settings = ServerSettings.of(given, places)
    # Told before a large model is read.
    bind(host, port, guarded=insecure or settings.api_key is not None).close()
    names = names_of(runs)
    if len(set(names)) < len(names):
        raise UsageError("A model is named twice.", where=" ".join(runs), fix="name it once")
    how = {} if precision is None else {"precision": precision}
    predictors = {name: Predictor(run, **how) for name, run in zip(names, runs, strict=True)}
    serve(predictors, settings, host, port, insecure=insecure)


def names_of(runs: Sequence[str]) -> list[str]:
    """What models are called: by their folders, or as they were given if two are the same."""
    last = [run.rstrip("/").rpartition("/")[2] or run for run in runs]
    return list(last if len(set(last)) == len(last) else runs)
