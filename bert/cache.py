"""Results that are worth keeping between runs, named by the hash of what they came from."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path


def cache_directory() -> Path:
    """``$BERT_CACHE``, or ``bertsmith`` in the user's cache directory."""
    if directory := os.environ.get("BERT_CACHE"):
        return Path(directory)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bertsmith"


def key_of(*parts: object) -> str:
    """A name for what follows from these JSON-ready parts alone."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode("utf-8")).hexdigest()[:32]


def cached(kind: str, key: str, build: Callable[[Path], None]) -> Path:
    """The folder that ``build`` fills, built only when it is not there yet.

    It is built elsewhere and moved into place whole, so that neither a crash nor two runs
    at once can leave half of it.
    """
    target = cache_directory() / kind / key
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    stage = Path(tempfile.mkdtemp(prefix=f".{key}-", dir=target.parent))
    try:
        build(stage)
        try:
            stage.replace(target)
        except OSError:
            if not target.is_dir():  # else another run was first, with the same content
                raise
    finally:
        shutil.rmtree(stage, ignore_errors=True)
    return target
