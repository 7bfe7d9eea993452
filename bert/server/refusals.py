"""What is answered in place of a success, always in one form.

``{"error": {"message", "type", "fix"}}``, where ``fix`` is left out when there is none. Below
``/v1`` it has what clients of OpenAI look for too: ``param`` and ``code``.
"""

from __future__ import annotations

import json
from typing import Any

from pydantic import BaseModel
from pydantic_core import to_json
from starlette.responses import Response


class ErrorDetail(BaseModel):
    """What is wrong, its kind for a program, and what to do about it."""

    message: str
    type: str
    fix: str | None = None
    param: str | None = None
    code: str | None = None


class ErrorAnswer(BaseModel):
    """Every answer that is not a success."""

    error: ErrorDetail


class Refusal(Exception):
    """A request that gets no answer.

    Args:
        status: of HTTP.
        kind: what a program can match on.
        message: what is wrong.
        fix: what to do about it.
        retry_after: seconds after which another try has a chance.
    """

    def __init__(
        self,
        status: int,
        kind: str,
        message: str,
        fix: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind
        self.message = message
        self.fix = fix
        self.retry_after = retry_after

    def response(self, path: str) -> Response:
        """The answer to a request for ``path``, which decides no more than the form."""
        detail = {"message": self.message, "type": self.kind}
        if self.fix is not None:
            detail["fix"] = self.fix
        error: dict[str, Any] = dict(detail)
        if path.startswith("/v1/"):
            error |= {"param": None, "code": self.kind}
        response = answer({"error": error}, self.status)
        if self.retry_after is not None:
            response.headers["retry-after"] = str(self.retry_after)
        if self.status == 401:
            response.headers["www-authenticate"] = "Bearer"
        return response


def answer(content: object, status: int = 200) -> Response:
    """A JSON answer; a lone surrogate from a label becomes ``?``. The numbers are finite."""
    try:
        body = to_json(content)
    except ValueError:
        text = json.dumps(content, ensure_ascii=False, allow_nan=False)
        body = text.encode("utf-8", "replace")
    return Response(body, status, media_type="application/json")
