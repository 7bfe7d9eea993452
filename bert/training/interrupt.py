"""Ctrl-C and SIGTERM, taken at a moment when nothing is lost."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from bert.errors import Interrupted

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """Which signal asked to stop, if any."""

    signal_number: int | None = None


@contextmanager
def deferred_signals() -> Iterator[StopRequest]:
    """Note the first signal instead of stopping; a second one stops at once.

    Raises:
        Interrupted: a second signal arrived.
    """
    request = StopRequest()

    def note(number: int, frame: FrameType | None) -> None:
        if request.signal_number is not None:
            raise Interrupted(number, where="before the checkpoint was complete")
        request.signal_number = number

    if threading.current_thread() is not threading.main_thread():
        yield request  # only the main thread may take signals
        return
    before = {number: signal.signal(number, note) for number in SIGNALS}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
