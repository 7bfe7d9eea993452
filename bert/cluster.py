"""Ray, for work on files by many machines. Its readers need no torch, nor does this."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from bert.errors import UsageError


@contextmanager
def ray_cluster() -> Iterator[Any]:
    """The library ``ray`` with a cluster: the one of this process or, while it lasts, a local one.

    ``RAY_ADDRESS`` names another.

    Raises:
        UsageError: Ray is not installed.
    """
    try:
        import ray
        import ray.data
    except ImportError:
        raise UsageError("Ray is missing.", fix="pip install 'bertsmith[ray]'") from None

    started = not ray.is_initialized()
    if started:
        ray.init(log_to_driver=False, configure_logging=False, include_dashboard=False)
    try:
        yield ray
    finally:
        if started:
            ray.shutdown()
