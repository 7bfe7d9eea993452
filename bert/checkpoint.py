"""A model directory: the Hugging Face layout, read and written and checked.

``config.json``, ``model.safetensors`` and the tokenizer's files carry Hugging Face names, so
that ``transformers`` loads them too; ``bert.json`` holds what those files have no place for.
Reading a download and reading our own is the same call. Nothing here runs code that a file
names, and no pickle is ever opened.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from bert import log
from bert.errors import ModelError
from bert.families.family import ENCODER, Family, is_shared, load_family, stack
from bert.hub import CONFIG, find_model
from bert.inference import int8
from bert.model.config import BertConfig
from bert.model.encoder import BERT
from bert.model.heads import HEADS
from bert.pooling import FILES, NORMALIZE, Pooling, read_pooling, write_pooling
from bert.text.tokenizer import TOKENIZER_FILES, Tokenizer
from bert.untrusted import read_json
from bert.weights import (
    INDEX,
    WEIGHTS,
    Stored,
    read_headers,
    read_tensors,
    write_tensors,
)

FACTS = "bert.json"
QUANTIZATION = "quantization_config"  # of config.json
PRETRAINED_PARTS = ("words.", "next_sentence.")  # heads that mean the same in every model
_COPY = "copy the model again from where it came from"
_FACT_TYPES = {
    "task": str,
    "text_columns": list,
    "label_column": str,
    "texts_per_row": int,
    "max_length": int,
    "options": dict,
    "calibration": dict,
    "precision": str,
}
# Labels that a person could tell apart; more would be a mistake or a trap.
_MOST_LABELS = 100_000


@dataclass
class Checkpoint:
    """A network and everything that lies beside it.

    Args:
        model: a head, or the bare encoder.
        kind: the head's kind, or ``encoder``.
        family: the table of names it was read with.
        labels: label names by number, for heads that have labels.
        tokenizer: None where the directory has none and none was asked for.
        facts: content of ``bert.json``.
        foreign: fields of ``config.json`` that mean nothing here and are kept.
        others: files of the directory that are not carried into another one.
        pooling: how a text's vector is made, where the directory says so; it is written with a
            bare encoder only.
    """

    model: nn.Module
    kind: str
    family: Family
    labels: list[str] = field(default_factory=list)
    tokenizer: Tokenizer | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    foreign: dict[str, Any] = field(default_factory=dict)
    others: list[str] = field(default_factory=list)
    pooling: Pooling | None = None

    @property
    def config(self) -> BertConfig:
        """The encoder's configuration."""
        encoder = self.model if isinstance(self.model, BERT) else self.model.bert
        assert isinstance(encoder, BERT)
        return encoder.config


def read_model(
    directory: Path,
    *,
    kind: str | None = None,
    labels: Sequence[str] | None = None,
    tokenizer: bool = True,
    trainable: bool = False,
) -> Checkpoint:
    """Read a model directory.

    Args:
        directory: as ``find_model`` gives it.
        kind: the head that is wanted; without it, the one that the directory has.
        labels: names of the labels that a new head is to tell apart.
        tokenizer: whether the tokenizer is wanted too.
        trainable: whether it is to be trained, so that 8-bit weights become fp32 ones.

    Returns:
        The network in evaluation mode, in fp32, or with the 8-bit products that it was written
        with (``inference.int8``). A head that the directory does not have is new, and one
        sentence says so.

    Raises:
        ModelError: anything in the directory that is damaged, foreign or contradictory.
    """
    where = str(directory / CONFIG)
    stored = read_json(directory / CONFIG)
    if not isinstance(stored.get("model_type"), str):
        raise ModelError(
            f"{CONFIG} does not name the model's family.",
            where=where,
            fix='write it down: "model_type": "bert"',
        )
    family = load_family(stored["model_type"], where)
    config = family.read_config(stored, where)
    found_kind = _stored_kind(stored, family, where)
    kind = kind or found_kind
    stored_labels = _labels(stored, where)
    labels = stored_labels if labels is None else list(labels)
    # A head for other labels or of another task is never mistaken for the wanted one.
    same_head = kind == found_kind and labels == stored_labels
    facts = _facts(directory)

    headers = read_headers(directory)
    with torch.device("meta"), _Shapes():
        model = family.build(kind, config, len(labels))
        kept = _kept(stored, where)
        if kept is not None:
            try:
                int8.empty_int8(model, kept)
            except ModelError as error:
                raise ModelError(error.what, where=where, fix=_COPY) from None
    prefix = "bert." if kind == ENCODER else ""
    wanted = {prefix + name: value for name, value in model.state_dict().items()}
    expected = {name: value.shape for name, value in wanted.items()}
    try:
        found, missing, left = family.on_disk(headers, config, kind, expected)
    except ModelError as error:
        raise ModelError(error.what, where=str(directory), fix=_COPY) from None
    if not same_head:
        new_head = [name for name in found if not name.startswith(("bert.", *PRETRAINED_PARTS))]
        for name in new_head:
            del found[name]
            missing.append(name)
    for name, parts in found.items():
        count = 1 if is_shared(name) else len(parts)
        shapes = [headers[part] for part in parts]
        _check_shape(name, shapes, list(expected[name]), count, directory)
    lost = [name for name in missing if name.startswith("bert.") and "pooler" not in name]
    if lost:
        raise ModelError(
            f"The weights lack {len(lost)} parts of the encoder, the first being {lost[0]}.",
            where=str(directory),
            fix="config.json and the weights belong to different models, or the weights were not "
            "copied whole",
        )
    # A pooler may be there that this head does not use; anything else is another arithmetic.
    if odd := [name for name in left if name.startswith(family.prefix) and "pooler" not in name]:
        raise ModelError(
            f"The weights hold {len(odd)} parts of an encoder that {CONFIG} does not describe, the "
            f"first being {odd[0]}.",
            where=str(directory),
            fix="config.json and the weights belong to different models",
        )
    if left and same_head:
        log.say(f"Not used from this model: {len(left)} weights, the first being {left[0]}.")
    tensors = read_tensors(
        {part: headers[part] for parts in found.values() for part in parts},
        {part for name in found if wanted[name].dtype == torch.int8 for part in found[name]},
    )
    state = {}
    for name, parts in found.items():
        read = [tensors[part] for part in parts]
        if is_shared(name) and not all(torch.equal(read[0], other) for other in read):
            raise ModelError(
                f"{parts[0]} and {parts[-1]} differ, though they scale the same input.",
                where=str(directory),
                fix=_COPY,
            )
        state[name] = read[0] if is_shared(name) else stack(read)
    if missing:
        fresh = family.build(kind, config, len(labels)).state_dict()
        state |= {name: fresh[name.removeprefix(prefix)] for name in missing}
        new = sorted({name.removeprefix("bert.").split(".")[0] for name in missing})
        if kind != ENCODER:
            log.say(f"New and untrained in this model: {', '.join(new)}.")
    if "auto_map" in stored:
        log.say("The model's auto_map names code, which is not run here.")
    model.load_state_dict(
        {name.removeprefix(prefix): value for name, value in state.items()}, assign=True
    )
    model.eval()
    for name, module in int8.products(model).items():
        if isinstance(module, int8.Int8Linear):
            try:
                module.check(name)
            except ModelError as error:
                raise ModelError(error.what, where=str(directory), fix=_COPY) from None
    if kept is not None and trainable:
        model = int8.dequantize(model)
    words = Tokenizer.load(directory, family.tokenizer) if tokenizer else None
    if words is not None and words.vocab_size > config.vocab_size:
        raise ModelError(
            f"The tokenizer has {words.vocab_size:,} tokens, but the model only "
            f"{config.vocab_size:,}.",
            where=str(directory),
            fix="copy the tokenizer files that belong to this model",
        )
    labels = labels if kind != ENCODER and HEADS[kind].labelled else []
    foreign = family.foreign(stored, config)
    if kept is not None:
        del foreign[QUANTIZATION]
    if not same_head:
        foreign.pop("problem_type", None)
    return Checkpoint(
        model,
        kind,
        family,
        labels,
        words,
        facts,
        foreign,
        _others(directory, headers),
        read_pooling(directory) if kind == ENCODER else None,
    )


def read_tokenizer(name: str) -> Tokenizer:
    """The tokenizer in a folder of its own, or that of a model.

    Raises:
        ModelError: there is none, or it cannot be read.
    """
    path = Path(name)
    if path.is_dir() and not any((at / CONFIG).is_file() for at in (path, path / "model")):
        return Tokenizer.load(path)
    if not path.exists() and "/" not in name:
        raise ModelError(
            "There is no folder with a tokenizer.",
            where=name,
            fix=f"bert tokenizer CORPUS --out {name}, or give a model",
        )
    directory = find_model(name)
    kind = str(read_json(directory / CONFIG).get("model_type"))
    return Tokenizer.load(directory, load_family(kind, str(directory / CONFIG)).tokenizer)


def write_model(directory: Path, checkpoint: Checkpoint) -> None:
    """Write a model directory, whole or not at all; one that was there is replaced."""
    config, family, kind = checkpoint.config, checkpoint.family, checkpoint.kind
    stored = {**checkpoint.foreign, **family.write_config(config, kind)}
    if checkpoint.labels:
        stored["id2label"] = {str(i): label for i, label in enumerate(checkpoint.labels)}
        stored["label2id"] = {label: i for i, label in enumerate(checkpoint.labels)}
    if int8.is_int8(checkpoint.model):
        kept = int8.kept_of(checkpoint.model)
        stored[QUANTIZATION] = {"quant_method": int8.METHOD, "modules_to_not_convert": kept}
    prefix = "bert." if kind == ENCODER else ""
    state = {
        prefix + name: value.detach().cpu() for name, value in checkpoint.model.state_dict().items()
    }
    if checkpoint.others:
        log.say(f"Files of the model that are not carried over: {', '.join(checkpoint.others)}.")
    directory.parent.mkdir(parents=True, exist_ok=True)
    stage = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=directory.parent))
    try:
        stage.chmod(0o755)
        log.write_json(stage / CONFIG, stored)
        log.write_json(stage / FACTS, checkpoint.facts)
        write_tensors(stage / WEIGHTS, family.to_disk(state, config, kind))
        if checkpoint.pooling is not None and kind == ENCODER:
            write_pooling(stage, checkpoint.pooling, config.hidden_size)
        if checkpoint.tokenizer is not None:
            checkpoint.tokenizer.save(stage)
        if directory.exists():
            old = stage.with_name(stage.name + "-old")
            directory.rename(old)
            try:
                stage.rename(directory)
            except OSError:
                old.rename(directory)
                raise
            shutil.rmtree(old)
        else:
            stage.rename(directory)
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def _stored_kind(stored: Mapping[str, Any], family: Family, where: str) -> str:
    """The head that ``architectures`` names, or the bare encoder."""
    architectures = stored.get("architectures") or [None]
    if not isinstance(architectures, list):
        raise ModelError(
            f"architectures is {architectures!r:.60}, which is not a list.", where=where, fix=_COPY
        )
    return family.head_of(str(architectures[0])) or ENCODER


class _Shapes(TorchFunctionMode):
    """While it lasts, numbers are not drawn: on the device ``meta`` there are none.

    PyTorch would draw them by code for which it imports its compiler, which takes seconds.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """The tensor itself, where it would be filled."""
        if func.__name__ in _FILLS:
            return args[0] if args else (kwargs or {})["tensor"]
        return func(*args, **(kwargs or {}))


_FILLS = ("uniform_", "normal_", "erfinv_", "kaiming_uniform_", "trunc_normal_")


def _kept(stored: Mapping[str, Any], where: str) -> list[str] | None:
    """The linear maps that stay as they are in a network of 8-bit products; None for another."""
    said = stored.get(QUANTIZATION)
    if not isinstance(said, dict) or said.get("quant_method") != int8.METHOD:
        return None
    kept = said.get("modules_to_not_convert", [])
    if not isinstance(kept, list) or not all(isinstance(name, str) for name in kept):
        raise ModelError(
            f"modules_to_not_convert in {QUANTIZATION} is no list of names.", where=where, fix=_COPY
        )
    return kept


def _check_shape(
    name: str, parts: list[Stored], wanted: list[int], count: int, directory: Path
) -> None:
    """What lies on disk must be what the configuration implies, to the unit.

    ``count`` is of how many that are stacked each part is one.
    """
    shapes = [list(part.shape) for part in parts]
    each = [wanted[0] // count, *wanted[1:]] if wanted else []
    if any(shape != each for shape in shapes):
        raise ModelError(
            f"{name} has shape {shapes[0]}, but {CONFIG} implies {each}.",
            where=str(directory),
            fix="config.json and the weights belong to different models",
        )


def _others(directory: Path, headers: Mapping[str, Stored]) -> list[str]:
    """The files of a directory that mean nothing here; hidden ones do not count."""
    known = {CONFIG, FACTS, WEIGHTS, INDEX, *TOKENIZER_FILES, NORMALIZE}
    known |= {name.split("/")[0] for name in FILES}
    known |= {item.file.name for item in headers.values()}
    return sorted(
        path.name
        for path in directory.iterdir()
        if path.name not in known and not path.name.startswith(".")
    )


def _facts(directory: Path) -> dict[str, Any]:
    """What ``bert.json`` says, if there is one."""
    path = directory / FACTS
    facts = read_json(path) if os.path.lexists(path) else {}
    for name, kind in _FACT_TYPES.items():
        if not isinstance(facts.get(name), kind | None):
            raise ModelError(
                f"{name} is {facts[name]!r:.60}, which is not of type {kind.__name__}.",
                where=str(path),
                fix=_COPY,
            )
    return facts


def _labels(stored: Mapping[str, Any], where: str) -> list[str]:
    """Label names by number; two unnamed ones where the configuration gives none."""
    names = stored.get("id2label")
    if names is None:
        count = stored.get("num_labels", 2)
        if type(count) is not int or not 1 <= count <= _MOST_LABELS:
            raise ModelError(
                f"num_labels is {count!r:.60}; it must be 1 to {_MOST_LABELS:,}.",
                where=where,
                fix=_COPY,
            )
        return [f"LABEL_{i}" for i in range(count)]
    try:
        labels = [names[str(i)] for i in range(min(len(names), _MOST_LABELS + 1))]
        if not all(isinstance(label, str | int) for label in labels):
            raise TypeError
        labels = [str(label) for label in labels]
    except (KeyError, TypeError):
        raise ModelError(
            "id2label does not number its labels from 0.",
            where=where,
            fix='write it as {"0": "first label", "1": "second label"}',
        ) from None
    if not 1 <= len(labels) <= _MOST_LABELS:
        raise ModelError(
            f"id2label names {len(labels):,} labels; it must be 1 to {_MOST_LABELS:,}.",
            where=where,
            fix=_COPY,
        )
    return labels


def load(name: str | Path, kind: str | None = None) -> nn.Module:
    """The network in a run folder, a model directory or a hub id, in evaluation mode.

    Args:
        name: where it is.
        kind: the head that is wanted: ``masked_lm``, ``sequence``, ``encoder`` ...; without
            it, the one that was saved.

    Raises:
        ModelError: there is none, or it cannot be read.
    """
    return read_model(find_model(name), kind=kind, tokenizer=False).model
