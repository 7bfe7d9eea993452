"""What comes in: one strict model for each route's body, and one gate for every text."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainValidator, model_validator
from pydantic_core import PydanticCustomError

from bert.server.refusals import Refusal

MOST_TEXTS = 64  # of one row


def read_text(value: object, place: str = "") -> str:
    """One text as it may go to the tokenizer: every character of it is text.

    Args:
        value: as the request has it.
        place: added to the message, where one row has several texts.

    Raises:
        PydanticCustomError: named ``wrong_type`` or ``bad_character``.
    """
    if not isinstance(value, str):
        raise PydanticCustomError("wrong_type", "must be a string")
    # JSON can spell half of a surrogate pair, which no UTF-8 text can hold.
    bad = re.search("[\x00\ud800-\udfff]", value)
    if bad:
        kind = "NUL" if bad[0] == "\x00" else "lone surrogate"
        raise PydanticCustomError(
            "bad_character",
            "has a {kind} character (U+{code}) at offset {offset}{place}",
            {"kind": kind, "code": f"{ord(bad[0]):04X}", "offset": bad.start(), "place": place},
        )
    return value


def read_pair(value: object) -> tuple[str, str]:
    """Two texts: a question and its context, or two to be compared.

    Raises:
        PydanticCustomError: named ``wrong_type``, or as `read_text`.
    """
    if not isinstance(value, list) or [type(each) for each in value] != [str, str]:
        raise PydanticCustomError("wrong_type", "must be a list of two strings")
    first, second = value
    return read_text(first, " of its first text"), read_text(second, " of its second text")


def read_row(value: object) -> tuple[str, ...]:
    """A row of any number of texts, such as a context, a question and its choices.

    Raises:
        PydanticCustomError: named ``wrong_type``, or as `read_text`.
    """
    if (
        not isinstance(value, list)
        or not 1 <= len(value) <= MOST_TEXTS
        or not all(isinstance(each, str) for each in value)
    ):
        raise PydanticCustomError(
            "wrong_type", "must be a list of 1 to {most} strings", {"most": MOST_TEXTS}
        )
    return tuple(
        read_text(each, f" of its text {number}") for number, each in enumerate(value, start=1)
    )


Text = Annotated[str, PlainValidator(read_text, json_schema_input_type=str)]
_TWO = Annotated[list[str], Field(min_length=2, max_length=2)]
Pair = Annotated[tuple[str, str], PlainValidator(read_pair, json_schema_input_type=_TWO)]
_SOME = Annotated[list[str], Field(min_length=1, max_length=MOST_TEXTS)]
Row = Annotated[tuple[str, ...], PlainValidator(read_row, json_schema_input_type=_SOME)]
Texts = Annotated[list[Text], Field(min_length=1)]
Pairs = Annotated[list[Pair], Field(min_length=1)]
Rows = Annotated[list[Row], Field(min_length=1)]
# One text, as OpenAI has it, is a list of one.
_Input = str | Annotated[list[str], Field(min_length=1)]
Input = Annotated[
    Texts,
    BeforeValidator(
        lambda value: [value] if isinstance(value, str) else value, json_schema_input_type=_Input
    ),
]


class Body(BaseModel):
    """A request in JSON: exact types, and no field that nobody reads."""

    model_config = ConfigDict(strict=True, extra="forbid")

    model: Text | None = Field(None, description="A name of GET /v1/models; else the first.")

    @model_validator(mode="before")
    @classmethod
    def stop_at_first_unknown_field(cls, value: Any) -> Any:
        """Refuse at the first unknown field: a body can name a hundred thousand of them."""
        for name in value if isinstance(value, dict) else ():
            if name not in cls.model_fields:
                raise PydanticCustomError(
                    "unknown_field",
                    "does not know the field {name}; it knows: {known}",
                    {"name": json.dumps(name[:80]), "known": ", ".join(sorted(cls.model_fields))},
                )
        return value


class PredictBody(Body):
    """The body of ``POST /predict``: texts, or pairs, or rows, as the model takes them."""

    texts: Texts | None = None
    pairs: Pairs | None = None
    rows: Rows | None = None

    @model_validator(mode="after")
    def one_of_them(self) -> PredictBody:
        """Exactly one of the three is given."""
        if sum(value is not None for value in (self.texts, self.pairs, self.rows)) != 1:
            raise PydanticCustomError("wrong_type", "must have one of texts, pairs and rows")
        return self


class TextsBody(Body):
    """The body of the routes that take texts."""

    texts: Texts


class PairsBody(Body):
    """The body of ``POST /similarity``."""

    pairs: Pairs


class RerankBody(Body):
    """The body of ``POST /rerank``."""

    query: Text
    texts: Texts


class EmbeddingsBody(Body):
    """The body of ``POST /v1/embeddings``, as OpenAI has it; ``user`` is not looked at."""

    input: Input
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = None
    user: str | None = None


_PLAIN = {"missing": "is missing", "too_short": "is empty", "list_type": "must be a list"}


def refusal_of(error: Mapping[str, Any]) -> Refusal:
    """The first thing that FastAPI or a model above found wrong, in words."""
    kind, where = error["type"], error["loc"][1:]  # loc starts with "body"
    if kind == "json_invalid":
        reason = error["ctx"]["error"]
        return Refusal(
            400, "malformed_json", f"The body is not JSON: {reason} at character {where[0]}."
        )
    if kind == "missing" and not where:
        return Refusal(400, "malformed_json", "The body is empty.", 'Send {"texts": ["..."]}.')
    # Of a union pydantic tells which member it tried; a person knows fields and numbers.
    steps = [step for step in where if isinstance(step, int) or re.fullmatch("[a-z_]+", step)]
    place = "".join(f"[{step}]" if isinstance(step, int) else step for step in steps)
    subject = place or "The body"
    if kind == "bad_character":
        return Refusal(400, kind, f"{subject} {error['msg']}.", "Remove the character.")
    if kind in ("wrong_type", "unknown_field"):
        message = error["msg"]
    elif kind == "literal_error":
        message = f"must be {error['ctx']['expected']}"
    elif kind in ("string_type", "int_type"):
        message = f"must be {'a string' if kind == 'string_type' else 'a whole number'}"
    else:
        message = _PLAIN.get(kind, "must be a JSON object")
    return Refusal(422, "invalid_request", f"{subject} {message}.")
