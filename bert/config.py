"""Settings: one strict table for the command line, a YAML file, Python and ``config.yaml``."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from bert.errors import UsageError

_EXPONENT = re.compile(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+")


class Settings(BaseModel):
    """Named values with types, none of which may be misspelt."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @classmethod
    def of(cls, values: Mapping[str, Any], places: Mapping[str, str] | None = None) -> Self:
        """Settings from values.

        Args:
            values: by name.
            places: where each was given, for messages: ``seed=x``, ``settings.yaml``.

        Raises:
            UsageError: an unknown name (with the nearest known one) or an impossible value.
        """
        places = places or {}
        for name in values:
            if name not in cls.model_fields:
                near = cls.nearest(str(name))
                raise UsageError(
                    f"There is no setting {name!r}.",
                    where=places.get(name),
                    fix=f"did you mean {near}?"
                    if near
                    else f"settings: {', '.join(cls.model_fields)}",
                )
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            first = error.errors()[0]
            name = str(first["loc"][0]) if first["loc"] else "settings"
            field = cls.model_fields.get(name)
            fix = "give another value"
            if field and not field.is_required():
                fix += ", or leave it out"
                fix += f" for {name}={field.default}" if field.default is not None else ""
            raise UsageError(
                f"{name}: {first['msg'].removeprefix('Value error, ')}"
                + (f" (got {first['input']!r})" if first["loc"] else ""),
                where=places.get(name),
                fix=fix,
            ) from None

    @classmethod
    def nearest(cls, name: str) -> str | None:
        """The setting whose name is most like this one, if any is."""
        near = difflib.get_close_matches(name, cls.model_fields, n=1)
        return near[0] if near else None

    def to_yaml(self) -> str:
        """All values, in the order in which they are declared."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def parse_assignments(arguments: Sequence[str]) -> dict[str, Any]:
    """``key=value`` arguments as values, read as YAML: ``true``, ``0.1``, ``[a, b]``.

    Raises:
        UsageError: an argument without "=", a value that is no YAML, a key given twice.
    """
    values: dict[str, Any] = {}
    for argument in arguments:
        key, equals, text = argument.partition("=")
        if not equals or not key:
            raise UsageError(
                f"{argument!r} is neither an option nor key=value.",
                where=argument,
                fix="write a setting as key=value, such as seed=1",
            )
        if key in values:
            raise UsageError(f"{key} is given twice.", where=argument, fix="give it only once")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError:
            raise UsageError(
                f"The value of {key} cannot be read.",
                where=argument,
                fix=f"""quote it for YAML and for the shell: {key}='"..."'""",
            ) from None
        if isinstance(value, str):  # YAML 1.1 takes 5e-5 for a word
            value = float(value) if _EXPONENT.fullmatch(value) else value
        values[key] = value
    return values


def read_yaml(path: Path) -> dict[str, Any]:
    """The values in a YAML file.

    Raises:
        UsageError: it cannot be read, or is not a table of names and values.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(
            f"The configuration cannot be read: {error.strerror}.",
            where=str(path),
            fix="check the name",
        ) from None
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        mark = getattr(error, "problem_mark", None)
        raise UsageError(
            f"The configuration is no YAML: {getattr(error, 'problem', None) or error}.",
            where=f"{path}:{mark.line + 1}:{mark.column + 1}" if mark else str(path),
            fix="write one line for each setting, as YAML in UTF-8: seed: 1",
        ) from None
    if not isinstance(values, dict):
        raise UsageError(
            "The configuration is not a table of names and values.",
            where=str(path),
            fix="write one line for each setting: seed: 1",
        )
    return values
