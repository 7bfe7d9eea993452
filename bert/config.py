"""Settings: one strict table for the command line, a YAML file, Python and ``config.yaml``."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from bert.errors import UsageError


class Settings(BaseModel):
    """Named values with types, none of which may be misspelt."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @classmethod
    def of(cls, values: Mapping[str, Any], where: str = "settings") -> Self:
        """Settings from values.

        Raises:
            UsageError: an unknown name (with the nearest known one) or an impossible value.
        """
        for name in values:
            if name not in cls.model_fields:
                near = difflib.get_close_matches(str(name), cls.model_fields, n=1)
                raise UsageError(
                    f"There is no setting {name!r}.",
                    where=where,
                    fix=f"did you mean {near[0]}?"
                    if near
                    else f"settings: {', '.join(cls.model_fields)}",
                )
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            first = error.errors()[0]
            name = ".".join(str(part) for part in first["loc"]) or "settings"
            raise UsageError(
                f"{name}: {first['msg'].removeprefix('Value error, ')}"
                + (f" (got {first['input']!r})" if first["loc"] else ""),
                where=where,
                fix=f"{name}={cls.model_fields[name].default}"
                if name in cls.model_fields and not cls.model_fields[name].is_required()
                else None,
            ) from None

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
                f"{argument!r} is neither an option nor key=value.", fix="bert COMMAND --help"
            )
        if key in values:
            raise UsageError(f"{key} is given twice.", where=argument)
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError:
            raise UsageError(f"The value of {key} cannot be read.", where=argument) from None
        if isinstance(value, str):  # YAML 1.1 takes 5e-5 for a word
            try:
                value = float(value)
            except ValueError:
                pass
        values[key] = value
    return values


def read_yaml(path: Path) -> dict[str, Any]:
    """The values in a YAML file.

    Raises:
        UsageError: it cannot be read, or is not a table of names and values.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(
            "The configuration cannot be read: " + str(error).splitlines()[0], where=str(path)
        ) from None
    if not isinstance(values, dict):
        raise UsageError("The configuration is not a table of key: value.", where=str(path))
    return values
