"""A model directory: the Hugging Face layout, read and written and checked.

``config.json``, ``model.safetensors`` and the tokenizer's files carry Hugging Face names, so
that ``transformers`` loads them too; ``bert.json`` holds what those files have no place for.
Reading a download and reading our own is the same call. Nothing here runs code that a file
names, and no pickle is ever opened.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bert import log
from bert.errors import ModelError
from bert.families.family import Family, load_family
from bert.model.config import BertConfig
from bert.model.encoder import BERT
from bert.model.heads import HEADS, BertForSequenceClassification, BertForTokenClassification
from bert.text.tokenizer import Tokenizer

CONFIG, WEIGHTS, INDEX, FACTS = (
    "config.json",
    "model.safetensors",
    "model.safetensors.index.json",
    "bert.json",
)
ENCODER = "encoder"
PRETRAINED_PARTS = ("words.", "next_sentence.")  # heads that mean the same in every model
_MOST_JSON_BYTES = 64 * 2**20
_COPY = "copy the model again from where it came from"
_FACT_TYPES = {
    "task": str,
    "text_columns": list,
    "label_column": str,
    "texts_per_row": int,
    "max_length": int,
}
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


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
    """

    model: nn.Module
    kind: str
    family: Family
    labels: list[str] = field(default_factory=list)
    tokenizer: Tokenizer | None = None
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def config(self) -> BertConfig:
        """The encoder's configuration."""
        encoder = self.model if isinstance(self.model, BERT) else self.model.bert
        assert isinstance(encoder, BERT)
        return encoder.config


def build(kind: str, config: BertConfig, labels: int = 2) -> nn.Module:
    """A new network of this kind with random weights."""
    encoder = BERT(config)
    if kind == ENCODER:
        return encoder
    head = HEADS[kind]
    if issubclass(head, BertForSequenceClassification | BertForTokenClassification):
        return head(encoder, labels)
    return head(encoder)


def find_model(name: str | Path) -> Path:
    """The model directory that a person means: itself, ``model`` in a run folder, or a hub id.

    Raises:
        ModelError: there is none, or the hub cannot be reached.
    """
    path = Path(name)
    for candidate in (path, path / "model"):
        if (candidate / CONFIG).is_file():
            return candidate
    if path.is_dir():
        checkpoints = list(path.glob("checkpoints/step-*"))
        raise ModelError(
            f"There is no {CONFIG} in this directory or in model/ below it.",
            where=str(path),
            fix="the run has not finished: repeat its command with --resume"
            if checkpoints
            else "give the folder of a run, or a directory with config.json and model.safetensors",
        )
    if path.exists() or not _HUB_ID.fullmatch(str(name)) or str(name).startswith("."):
        raise ModelError(
            "There is no such model directory.",
            where=str(name),
            fix="give a run folder, a model directory, or a hub id such as "
            "google-bert/bert-base-uncased",
        )
    return _download(str(name))


def _download(hub_id: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        HfHubHTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
    )

    try:
        return Path(
            snapshot_download(
                hub_id,
                allow_patterns=["*.json", "*.safetensors", "vocab.txt"],
                ignore_patterns="*/*",
            )
        )
    except (HfHubHTTPError, OSError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        if isinstance(error, LocalEntryNotFoundError | OfflineModeIsEnabled):
            reason = "the hub cannot be reached."
        elif isinstance(error, RepositoryNotFoundError):
            reason = "the hub has no such model, or it is private."
        raise ModelError(
            f"{hub_id!r} is no directory here, and it cannot be downloaded: {reason}",
            where=hub_id,
            fix="check the path; without a network, copy config.json, model.safetensors and "
            "tokenizer.json into a directory and give its path",
        ) from None


def read_model(
    directory: Path,
    *,
    kind: str | None = None,
    labels: Sequence[str] | None = None,
    tokenizer: bool = True,
) -> Checkpoint:
    """Read a model directory.

    Args:
        directory: as ``find_model`` gives it.
        kind: the head that is wanted; without it, the one that the directory has.
        labels: names of the labels that a new head is to tell apart.
        tokenizer: whether the tokenizer is wanted too.

    Returns:
        The network in evaluation mode, in fp32. A head that the directory does not have is
        new, and one sentence says so.

    Raises:
        ModelError: anything in the directory that is damaged, foreign or contradictory.
    """
    where = str(directory / CONFIG)
    stored = _json(directory / CONFIG)
    if not isinstance(stored.get("model_type"), str):
        raise ModelError(
            f"{CONFIG} does not name the model's family.",
            where=where,
            fix='write it down: "model_type": "bert"',
        )
    family = load_family(stored["model_type"], where)
    config = family.read_config(stored, where)
    architectures = stored.get("architectures") or [None]
    if not isinstance(architectures, list):
        raise ModelError(
            f"architectures is {architectures!r}, which is not a list.", where=where, fix=_COPY
        )
    found_kind = family.head_of(str(architectures[0])) or ENCODER
    kind = kind or found_kind
    stored_labels = _labels(stored, where)
    labels = stored_labels if labels is None else list(labels)
    # A head for other labels or of another task is never mistaken for the wanted one.
    same_head = kind == found_kind and labels == stored_labels
    facts = _facts(directory)

    weights = _weights(directory)
    with torch.device("meta"):
        model = build(kind, config, len(labels))
    prefix = "bert." if kind == ENCODER else ""
    expected = {prefix + name: value.shape for name, value in model.state_dict().items()}
    try:
        state, missing, left = family.from_disk(weights, config, kind)
    except ModelError as error:
        raise ModelError(error.what, where=str(directory), fix=_COPY) from None
    if not same_head:
        for name in family.heads[kind].weights:
            if name in state and not name.startswith(PRETRAINED_PARTS):
                del state[name]
                missing.append(name)
    for name, value in state.items():
        if value.shape != expected[name]:
            raise ModelError(
                f"{name} has shape {list(value.shape)}, but {CONFIG} implies "
                f"{list(expected[name])}.",
                where=str(directory),
                fix="config.json and the weights belong to different models",
            )
        if not value.is_floating_point():
            raise ModelError(
                f"{name} holds {value.dtype}, not floating-point numbers.",
                where=str(directory),
                fix="give the model as it was before it was quantised",
            )
    lost = [name for name in missing if name.startswith("bert.") and "pooler" not in name]
    if lost:
        raise ModelError(
            f"The weights lack {len(lost)} parts of the encoder, the first being {lost[0]}.",
            where=str(directory),
            fix="copy the weights again from where the model came from",
        )
    if missing:
        fresh = build(kind, config, len(labels)).state_dict()
        for name in missing:
            state[name] = fresh[name.removeprefix(prefix)]
        new = sorted({name.removeprefix("bert.").split(".")[0] for name in missing})
        used = [part for part in new if part != "pooler" or kind in ("sequence", "choice")]
        if used:
            log.say(f"New and untrained in this model: {', '.join(used)}.")
    if left and same_head:
        log.say(f"Not used from this model: {len(left)} weights, the first being {left[0]}.")
    model.load_state_dict(
        {name.removeprefix(prefix): value.float() for name, value in state.items()}, assign=True
    )
    model.eval()
    words = Tokenizer.load(directory) if tokenizer else None
    if words is not None and words.vocab_size > config.vocab_size:
        raise ModelError(
            f"The tokenizer has {words.vocab_size:,} tokens, but the model only "
            f"{config.vocab_size:,}.",
            where=str(directory),
            fix="copy the tokenizer files that belong to this model",
        )
    labels = labels if kind in ("sequence", "token") else []
    return Checkpoint(model, kind, family, labels, words, facts)


def write_model(directory: Path, checkpoint: Checkpoint) -> None:
    """Write a model directory, whole or not at all; one that was there is replaced."""
    from safetensors.torch import save_file

    config, family, kind = checkpoint.config, checkpoint.family, checkpoint.kind
    stored = family.write_config(config, kind)
    if checkpoint.labels:
        stored["id2label"] = {str(i): label for i, label in enumerate(checkpoint.labels)}
        stored["label2id"] = {label: i for i, label in enumerate(checkpoint.labels)}
    prefix = "bert." if kind == ENCODER else ""
    state = {
        prefix + name: value.detach().cpu() for name, value in checkpoint.model.state_dict().items()
    }
    directory.parent.mkdir(parents=True, exist_ok=True)
    stage = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=directory.parent))
    try:
        stage.chmod(0o755)
        log.write_json(stage / CONFIG, stored)
        log.write_json(stage / FACTS, checkpoint.facts)
        save_file(family.to_disk(state, config, kind), stage / WEIGHTS, metadata={"format": "pt"})
        (stage / WEIGHTS).chmod(0o644)
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


def _json(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > _MOST_JSON_BYTES:
            raise ModelError(f"{path.name} is implausibly large.", where=str(path), fix=_COPY)
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(
            f"{path.name} cannot be read: {str(error).splitlines()[0]}",
            where=str(path),
            fix=_COPY,
        ) from None
    if not isinstance(value, dict):
        raise ModelError(
            f"{path.name} is not a table of names and values.", where=str(path), fix=_COPY
        )
    return value


def _facts(directory: Path) -> dict[str, Any]:
    """What ``bert.json`` says, if there is one."""
    path = directory / FACTS
    facts = _json(path) if path.is_file() else {}
    for name, kind in _FACT_TYPES.items():
        if not isinstance(facts.get(name), kind | None):
            raise ModelError(
                f"{name} is {facts[name]!r}, which is not of type {kind.__name__}.",
                where=str(path),
                fix=_COPY,
            )
    return facts


def _labels(stored: dict[str, Any], where: str) -> list[str]:
    """Label names by number; two unnamed ones where the configuration gives none."""
    names = stored.get("id2label")
    if names is None:
        return ["LABEL_0", "LABEL_1"]
    try:
        labels = [str(names[str(i)]) for i in range(len(names))]
    except (KeyError, TypeError):
        raise ModelError(
            "id2label does not number its labels from 0.",
            where=where,
            fix='write it as {"0": "first label", "1": "second label"}',
        ) from None
    return labels


def _weights(directory: Path) -> dict[str, Tensor]:
    """All tensors on disk, from one file or from the shards that the index names."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    files = [directory / WEIGHTS]
    if not files[0].is_file() and (directory / INDEX).is_file():
        shards = _json(directory / INDEX).get("weight_map")
        names = set(shards.values()) if isinstance(shards, dict) else {""}
        if any(not isinstance(name, str) or Path(name).name != name for name in names):
            raise ModelError(
                "The index names files elsewhere.", where=str(directory / INDEX), fix=_COPY
            )
        files = [directory / name for name in sorted(names)]
    elif not files[0].is_file():
        pickles = sorted(path.name for path in directory.glob("*.bin"))
        raise ModelError(
            f"There is no {WEIGHTS} here"
            + (
                f"; {pickles[0]} is a pickle, which can run code, and is not opened."
                if pickles
                else "."
            ),
            where=str(directory),
            fix="save the model as safetensors: model.save_pretrained(DIR) in transformers",
        )
    tensors: dict[str, Tensor] = {}
    for file in files:
        try:
            tensors.update(load_file(file))
        except (SafetensorError, OSError) as error:
            raise ModelError(
                f"{file.name} is damaged: {str(error).splitlines()[0]}",
                where=str(file),
                fix=_COPY,
            ) from None
    return tensors


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
