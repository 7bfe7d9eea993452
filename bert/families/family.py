"""What a family is, and all the code that every family shares.

A family is a table. Its entries map our weight names to the names on disk, ``{layer}``
standing for each layer's number. A tuple of names on disk means that we hold them as one
matrix, stacked in that order (query, key and value are one product in memory).
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bert.errors import ModelError
from bert.model.config import BertConfig

Names = str | tuple[str, ...]


@dataclass(frozen=True)
class HeadSpec:
    """How one kind of head is called on disk.

    Args:
        architecture: the class name in ``architectures`` of ``config.json``.
        weights: our weight names -> names on disk, without the encoder's.
        tied: names on disk that repeat other weights; never written, ignored when read.
    """

    architecture: str
    weights: Mapping[str, Names]
    tied: tuple[str, ...] = ()


@dataclass(frozen=True)
class Family:
    """A table that says how a family is called on disk.

    Args:
        name: ``model_type`` in ``config.json``, and the name of the family's file.
        prefix: what encoder weights begin with on disk, absent in checkpoints without a head.
        config: our configuration field -> the field in ``config.json``.
        fixed: fields of ``config.json`` that must have this value where they are given,
            because another value means arithmetic that this family does not have.
        written: fields that are written to ``config.json`` as they stand.
        weights: the encoder's weight names, ours -> on disk.
        ignored: names on disk that carry no weights of ours.
        renamed: endings of older names on disk -> today's.
        heads: head kind -> its names.
        sizes: size name -> configuration, apart from the vocabulary.
    """

    name: str
    prefix: str
    config: Mapping[str, str]
    weights: Mapping[str, Names]
    heads: Mapping[str, HeadSpec]
    sizes: Mapping[str, BertConfig]
    fixed: Mapping[str, Any] = field(default_factory=dict)
    written: Mapping[str, Any] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()
    renamed: Mapping[str, str] = field(default_factory=dict)

    def read_config(self, stored: Mapping[str, Any], where: str) -> BertConfig:
        """``config.json`` as a ``BertConfig``.

        Raises:
            ModelError: a field is missing, of the wrong type, or means another arithmetic.
        """
        for name, value in self.fixed.items():
            if stored.get(name, value) != value:
                raise ModelError(
                    f"{name} = {stored[name]!r} is not supported; it must be {value!r}.",
                    where=where,
                    fix="use a checkpoint with the standard setting",
                )
        values: dict[str, Any] = {}
        for ours in fields(BertConfig):
            theirs = self.config.get(ours.name)
            if theirs is None or stored.get(theirs) is None:
                continue
            value = stored[theirs]
            kind = type(ours.default) if ours.default is not None else float
            if kind is float and isinstance(value, int) and not isinstance(value, bool):
                value = float(value)
            if not isinstance(value, kind) or isinstance(value, bool):
                raise ModelError(
                    f"{theirs} is {value!r}, which is not of type {kind.__name__}.", where=where
                )
            values[ours.name] = value
        for required in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads"):
            if required not in values:
                raise ModelError(f"{self.config[required]} is missing.", where=where)
        if values.get("attention_dropout_rate") == values.get("dropout_rate"):
            values.pop("attention_dropout_rate", None)
        try:
            return BertConfig(**values)
        except ModelError as error:
            raise ModelError(error.what, where=where, fix=error.fix) from None

    def write_config(self, config: BertConfig, kind: str) -> dict[str, Any]:
        """What ``config.json`` says about this configuration and head."""
        if kind not in self.heads:
            raise ModelError(
                f"{self.name} has no {kind} head.", fix=f"heads: {', '.join(self.heads)}"
            )
        stored: dict[str, Any] = {
            "architectures": [self.heads[kind].architecture],
            "model_type": self.name,
            **self.written,
        }
        for ours, theirs in self.config.items():
            stored[theirs] = getattr(config, ours)
        if config.attention_dropout_rate is None:
            stored[self.config["attention_dropout_rate"]] = config.dropout_rate
        return stored

    def table(self, config: BertConfig, kind: str) -> Iterator[tuple[str, Names]]:
        """Every weight of a model with this head: our name, its name or names on disk."""
        for ours, theirs in self.weights.items():
            if "{layer}" not in ours:
                yield ours, theirs
                continue
            for layer in range(config.num_hidden_layers):
                number = str(layer)
                yield (
                    ours.replace("{layer}", number),
                    theirs.replace("{layer}", number)
                    if isinstance(theirs, str)
                    else tuple(name.replace("{layer}", number) for name in theirs),
                )
        yield from self.heads[kind].weights.items()

    def to_disk(
        self, state: Mapping[str, Tensor], config: BertConfig, kind: str
    ) -> dict[str, Tensor]:
        """Our weights under their names on disk."""
        stored: dict[str, Tensor] = {}
        for ours, theirs in self.table(config, kind):
            if isinstance(theirs, str):
                stored[theirs] = state[ours].contiguous()
            else:
                for name, part in zip(theirs, state[ours].chunk(len(theirs)), strict=True):
                    stored[name] = part.contiguous()
        return stored

    def from_disk(
        self, stored: Mapping[str, Tensor], config: BertConfig, kind: str
    ) -> tuple[dict[str, Tensor], list[str], list[str]]:
        """Weights on disk under our names.

        Returns:
            The weights, our names for which nothing was found, and names on disk left over.

        Raises:
            ModelError: some but not all parts of a stacked matrix are there.
        """
        known = {self._today(name): tensor for name, tensor in stored.items()}
        state: dict[str, Tensor] = {}
        missing: list[str] = []
        for ours, theirs in self.table(config, kind):
            names = (theirs,) if isinstance(theirs, str) else theirs
            found = [known.pop(name) for name in names if name in known]
            if len(found) == len(names):
                state[ours] = found[0] if len(found) == 1 else torch.cat(found)
            elif found:
                raise ModelError(f"The weights hold only a part of {', '.join(names)}.")
            else:
                missing.append(ours)
        skipped = {*self.ignored, *(name for head in self.heads.values() for name in head.tied)}
        left = [name for name in known if name not in skipped]
        return state, missing, left

    def _today(self, name: str) -> str:
        for old, new in self.renamed.items():
            if name.endswith(old):
                name = name[: -len(old)] + new
        first = name.split(".", 1)[0]
        encoder_parts = {self._first_part(theirs) for theirs in self.weights.values()}
        return self.prefix + name if first in encoder_parts else name

    def _first_part(self, theirs: Names) -> str:
        name = theirs if isinstance(theirs, str) else theirs[0]
        return name.removeprefix(self.prefix).split(".", 1)[0]

    def head_of(self, architecture: str) -> str | None:
        """The head kind that has this class name on disk."""
        for kind, spec in self.heads.items():
            if spec.architecture == architecture:
                return kind
        return None


def family_names() -> list[str]:
    """The families there are: one for each file beside this one."""
    here = Path(__file__)
    return sorted(
        path.stem for path in here.parent.glob("*.py") if path.stem not in ("__init__", here.stem)
    )


def load_family(name: str, where: str = "config.json") -> Family:
    """The family of this name. The name may come from an untrusted file.

    Raises:
        ModelError: there is no such family; nothing is imported then.
    """
    names = family_names()
    if name not in names:
        raise ModelError(
            f"The model family {name!r} is not known.",
            where=where,
            fix=f"families: {', '.join(names)}",
        )
    family: Family = importlib.import_module(f"bert.families.{name}").FAMILY
    return family
