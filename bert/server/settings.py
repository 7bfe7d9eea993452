"""What a server may be told: how much it takes, how long it waits, whom it answers."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from bert.config import Settings

LOOPBACK_HOSTS = ("localhost", "127.0.0.1", "[::1]")


class ServerSettings(Settings):
    """Each is an option of ``bert serve`` and a variable of the environment.

    Args:
        api_key: what ``Authorization: Bearer`` must hold; none: nothing is asked for.
        allowed_hosts: names, without a port, that the Host header may have.
        any_address: whether the Host header may also be the number of an address. A page of
            another site, whose name was pointed at this machine, comes with the name.
        max_concurrent_requests: requests that compute; one more is refused with 429.
        max_client_batch_size: texts, or rows of them, in a request.
        max_text_chars: of a text.
        max_body_bytes: of a request.
        max_batch_tokens: computed at once; none: 16,384 on an accelerator, 2,048 on a CPU, and
            as many as the longest text of a model.
        max_batch_requests: whose texts are computed at once; none: any number.
        max_queue_tokens: admitted and not yet answered, by model; a request that brings more
            than there is room for is refused with 429, one that never would fit with 413.
        queue_timeout_ms: the longest wait before a text is computed; a request that would wait
            longer is refused with 429.
        request_timeout_ms: the longest time from a request to its answer.
        on_too_long: what becomes of a text with more tokens than the model takes: ``split``, it
            is read in windows that overlap; ``truncate``, its beginning; ``error``, 413.
        drain_seconds: the longest time to finish what was accepted once it is told to end.
        stuck_seconds: the process ends with an error if a model computes longer than this, or
            has failed all that time.
        log_format: ``text`` logs failures only; ``json`` an object a line, requests too.
    """

    api_key: str | None = Field(None, min_length=1, pattern=r"^[\x21-\x7e]+$")
    allowed_hosts: tuple[str, ...] = LOOPBACK_HOSTS
    any_address: bool = False
    max_concurrent_requests: int = Field(512, ge=1)
    max_client_batch_size: int = Field(32, ge=1)
    max_text_chars: int = Field(100_000, ge=1)
    max_body_bytes: int = Field(2_000_000, ge=1)
    max_batch_tokens: int | None = Field(None, ge=1)
    max_batch_requests: int | None = Field(None, ge=1)
    max_queue_tokens: int = Field(65_536, ge=1)
    queue_timeout_ms: int = Field(2_000, ge=1)
    request_timeout_ms: int = Field(30_000, ge=1)
    on_too_long: Literal["split", "truncate", "error"] = "split"
    drain_seconds: float = Field(30, ge=0)
    stuck_seconds: float = Field(120, gt=0)
    log_format: Literal["text", "json"] = "text"
