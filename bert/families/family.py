"""What a family is, and all the code that every family shares.

A family is a table. Its entries map our weight names to the names on disk, ``{layer}``
standing for each layer's number. A tuple of names on disk means that we hold them as one
matrix, stacked in that order (query, key and value are one product in memory).
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bert.errors import ModelError
from bert.model.config import STANDS_FOR, BertConfig
from bert.model.encoder import BERT
from bert.model.heads import HEADS
from bert.text.tokenizer import WORDPIECE, TokenizerForm

Names = str | tuple[str, ...]
ENCODER = "encoder"
REQUIRED = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")
# Fields of any config.json that are written anew, or that say nothing of the network.
_OF_THE_FILE = {
    "_name_or_path",
    "architectures",
    "auto_map",
    "dtype",
    "id2label",
    "label2id",
    "model_type",
    "num_labels",
    "torch_dtype",
    "transformers_version",
}


def linear(ours: str, theirs: str) -> dict[str, Names]:
    """The two names of a linear map or a norm: its weight and its bias."""
    return {f"{ours}.{part}": f"{theirs}.{part}" for part in ("weight", "bias")}


def stacked(ours: str, *theirs: str) -> dict[str, Names]:
    """The names of a linear map that lies on disk in several parts."""
    return {
        f"{ours}.{part}": tuple(f"{name}.{part}" for name in theirs) for part in ("weight", "bias")
    }


def under(first: str, weights: Mapping[str, Names]) -> dict[str, Names]:
    """The same names on disk with another first part: ``bert.x`` -> ``roberta.x``."""

    def moved(name: str) -> str:
        return f"{first}.{name.split('.', 1)[1]}"

    return {
        ours: moved(theirs) if isinstance(theirs, str) else tuple(map(moved, theirs))
        for ours, theirs in weights.items()
    }


@dataclass(frozen=True)
class HeadSpec:
    """How one kind of head is called on disk, and what is the family's own about it.

    Args:
        architecture: the class name in ``architectures`` of ``config.json``.
        weights: our weight names -> names on disk, without the encoder's.
        tied: names on disk that repeat other weights; never written, ignored when read.
        pooler: whether it uses the encoder's pooler.
        options: what the head's class is given.
    """

    architecture: str
    weights: Mapping[str, Names] = field(default_factory=dict)
    tied: tuple[str, ...] = ()
    pooler: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Family:
    """A table that says what a family is and how it is called on disk.

    Args:
        name: the name of the family's file; with ``-`` for ``_`` the ``model_type``.
        prefix: what encoder weights begin with on disk, absent in checkpoints without a head.
        config: our configuration field -> the field in ``config.json``, or several that have
            the same value.
        weights: the encoder's weight names, ours -> on disk.
        heads: head kind -> its names.
        sizes: size name -> configuration, apart from the vocabulary.
        defaults: our fields whose value where ``config.json`` is silent is not ``BertConfig``'s.
        fixed: fields of ``config.json`` that must have this value where they are given,
            because another value means arithmetic that this family does not have; they are
            written too.
        ignored: names on disk that carry no weights of ours.
        renamed: parts of other names on disk -> today's.
        tokenizer: what a directory without ``tokenizer.json`` means.
        encoder: the network, ``BERT`` unless the family has a mechanism of its own.
        spelled: ``config.json`` -> the same with the fields that ``config`` names, where a
            plain name is not enough.
        respelled: the way back.
    """

    name: str
    prefix: str
    config: Mapping[str, Names]
    weights: Mapping[str, Names]
    heads: Mapping[str, HeadSpec]
    sizes: Mapping[str, BertConfig]
    defaults: Mapping[str, Any] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()
    renamed: Mapping[str, str] = field(default_factory=dict)
    tokenizer: TokenizerForm = WORDPIECE
    encoder: type[BERT] = BERT
    spelled: Callable[[Mapping[str, Any]], Mapping[str, Any]] = dict
    respelled: Callable[[Mapping[str, Any]], Mapping[str, Any]] = dict

    @property
    def model_type(self) -> str:
        """The family's name in ``config.json``."""
        return self.name.replace("_", "-")

    def head(self, kind: str) -> HeadSpec:
        """The names of a kind of head.

        Raises:
            ModelError: the family has none.
        """
        if kind not in self.heads:
            raise ModelError(
                f"{self.name} has no {kind} head.", fix=f"its heads: {', '.join(self.heads)}"
            )
        return self.heads[kind]

    def head_of(self, architecture: str) -> str | None:
        """The head kind that has this class name on disk."""
        for kind, spec in self.heads.items():
            if spec.architecture == architecture:
                return kind
        return None

    def build(self, kind: str, config: BertConfig, labels: int = 2) -> nn.Module:
        """A new network of this kind with random weights; ``labels`` where it has labels.

        Raises:
            ModelError: the family has no such head.
        """
        spec = self.head(kind)
        encoder = self.encoder(replace(config, pooler=spec.pooler))
        if kind == ENCODER:
            return encoder
        head: Callable[..., nn.Module] = HEADS[kind]
        if HEADS[kind].labelled:
            return head(encoder, num_labels=labels, **spec.options)
        return head(encoder, **spec.options)

    def size(self, name: str, **changes: Any) -> BertConfig:
        """The configuration of a size, with these fields changed.

        Raises:
            ModelError: the family has no such size.
        """
        if name not in self.sizes:
            raise ModelError(
                f"{self.name} has no size {name!r}.", fix=f"its sizes: {', '.join(self.sizes)}"
            )
        return replace(self.sizes[name], **changes)

    def read_config(self, stored: Mapping[str, Any], where: str) -> BertConfig:
        """``config.json`` as a configuration.

        Raises:
            ModelError: a field is missing, of the wrong type, or means another arithmetic.
        """
        try:
            stored = self.spelled(stored)
            for name, value in self.fixed.items():
                if stored.get(name, value) != value:
                    raise ModelError(
                        f"{name} = {stored[name]!r:.60} is not supported; it must be {value!r}.",
                        fix="use a checkpoint with the standard setting",
                    )
            values = {**self.defaults, **self._values(stored)}
            for required in REQUIRED:
                if required not in values:
                    raise ModelError(f"{self.config[required]} is missing.")
            for name, other in STANDS_FOR.items():
                default = self.defaults.get(other, getattr(BertConfig, other))
                if values.get(name) == values.get(other, default):
                    values.pop(name, None)
            return self.encoder.config_class(**values)
        except ModelError as error:
            raise ModelError(error.what, where=where, fix=error.fix) from None

    def _values(self, stored: Mapping[str, Any]) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for ours in fields(self.encoder.config_class):
            theirs = _names(self.config.get(ours.name, ()))
            given = [name for name in theirs if stored.get(name) is not None]
            if not given:
                continue
            value = stored[given[0]]
            if ours.default is None:
                kind: type = float if ours.name.endswith("_rate") else int
            else:
                kind = type(ours.default)
            if kind is float and isinstance(value, int) and not isinstance(value, bool):
                value = float(value) if abs(value) < 2**53 else float("inf")
            if type(value) is not kind:
                raise ModelError(
                    f"{given[0]} is {value!r:.60}, which is not of type {kind.__name__}."
                )
            values[ours.name] = value
        return values

    def write_config(self, config: BertConfig, kind: str) -> dict[str, Any]:
        """What ``config.json`` says about this configuration and head."""
        stored: dict[str, Any] = {
            "architectures": [self.head(kind).architecture],
            "model_type": self.model_type,
            **self.fixed,
        }
        for ours, theirs in self.config.items():
            value = getattr(config, ours)
            if value is None and ours in STANDS_FOR:
                value = getattr(config, STANDS_FOR[ours])
            stored |= dict.fromkeys(_names(theirs), value)
        return dict(self.respelled(stored))

    def foreign(self, stored: Mapping[str, Any], config: BertConfig) -> dict[str, Any]:
        """The fields of ``config.json`` that this family does not read and would not write."""
        known = _OF_THE_FILE | set(self.write_config(config, ENCODER))
        known |= {name for theirs in self.config.values() for name in _names(theirs)}
        spelled = self.spelled(stored)
        return {
            name: value for name, value in stored.items() if name not in known and name in spelled
        }

    def table(self, config: BertConfig, kind: str) -> Iterator[tuple[str, tuple[str, ...]]]:
        """Every weight that a model with this head may have: our name, its names on disk."""
        for ours, theirs in self.weights.items():
            for layer in range(config.num_hidden_layers if "{layer}" in ours else 1):
                number = str(layer)
                yield (
                    ours.replace("{layer}", number),
                    tuple(name.replace("{layer}", number) for name in _names(theirs)),
                )
        for ours, theirs in self.heads[kind].weights.items():
            yield ours, _names(theirs)

    def to_disk(
        self, state: Mapping[str, Tensor], config: BertConfig, kind: str
    ) -> dict[str, Tensor]:
        """Our weights under their names on disk; those of a bare encoder without the prefix."""
        bare = self.prefix if kind == ENCODER else ""
        stored: dict[str, Tensor] = {}
        table = dict(self.table(config, kind))
        for ours, value in state.items():
            theirs = _names_of(ours, table)
            if theirs is None:
                continue
            shared = is_shared(ours)
            parts = [value.clone() for _ in theirs] if shared else value.chunk(len(theirs))
            for name, part in zip(theirs, parts, strict=True):
                stored[name.removeprefix(bare)] = part.contiguous()
        return stored

    def on_disk(
        self, names: Iterable[str], config: BertConfig, kind: str, wanted: Iterable[str]
    ) -> tuple[dict[str, tuple[str, ...]], list[str], list[str]]:
        """Where the wanted weights are among these names on disk.

        What lies beside a matrix, such as its scales, is called after it.

        Returns:
            Our names -> the names on disk to be stacked, our names for which nothing was
            found, and names on disk left over.

        Raises:
            ModelError: some but not all parts of a stacked matrix are there.
        """
        today = {self._today(name): name for name in names}
        table = dict(self.table(config, kind))
        found: dict[str, tuple[str, ...]] = {}
        missing: list[str] = []
        for ours in wanted:
            theirs = _names_of(ours, table)
            assert theirs is not None
            parts = [today.pop(name) for name in theirs if name in today]
            if len(parts) == len(theirs):
                found[ours] = tuple(parts)
            elif parts:
                raise ModelError(f"The weights hold only a part of {', '.join(theirs)}.")
            else:
                missing.append(ours)
        skipped = {*self.ignored, *(name for head in self.heads.values() for name in head.tied)}
        return found, missing, [name for name in today if name not in skipped]

    def _today(self, name: str) -> str:
        for old, new in self.renamed.items():
            name = name.replace(old, new)
        first = name.split(".", 1)[0]
        encoder_parts = {
            _names(theirs)[0].removeprefix(self.prefix).split(".", 1)[0]
            for theirs in self.weights.values()
        }
        return self.prefix + name if first in encoder_parts else name


def _names(theirs: Names) -> tuple[str, ...]:
    return (theirs,) if isinstance(theirs, str) else theirs


def _names_of(ours: str, table: Mapping[str, tuple[str, ...]]) -> tuple[str, ...] | None:
    """The names on disk of a weight, or of what lies beside a matrix: ``....weight_scale``."""
    stem, _, part = ours.rpartition(".")
    if ours in table or f"{stem}.weight" not in table:
        return table.get(ours)
    return tuple(name.removesuffix("weight") + part for name in table[f"{stem}.weight"])


def is_shared(ours: str) -> bool:
    """Whether it lies beside each part of a stacked matrix, as it belongs to their one input."""
    return ours.rpartition(".")[2].startswith("input_")


def stack(parts: list[Tensor]) -> Tensor:
    """The one matrix that we hold for these on disk."""
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def family_names() -> list[str]:
    """The families there are: one for each file beside this one."""
    here = Path(__file__)
    return sorted(
        path.stem for path in here.parent.glob("*.py") if path.stem not in ("__init__", here.stem)
    )


def load_family(name: str, where: str = "config.json") -> Family:
    """The family of this name or ``model_type``. The name may come from an untrusted file.

    Raises:
        ModelError: there is no such family; nothing is imported then.
    """
    names = family_names()
    if name.replace("-", "_") not in names:
        raise ModelError(
            f"The model family {name!r:.60} is not known.",
            where=where,
            fix=f"families: {', '.join(names)}",
        )
    family: Family = importlib.import_module(f"bert.families.{name.replace('-', '_')}").FAMILY
    return family
