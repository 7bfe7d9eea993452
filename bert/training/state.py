"""What resuming needs, on disk: weights, optimiser moments and where training stood.

A checkpoint exists only when its manifest does. It is staged under another name, every file
is flushed to the disk, the manifest with sizes and SHA-256 comes last, and then the folder
is renamed. The latest checkpoint is found by checking, never by a name alone.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from bert import log
from bert.distributed import ALONE, World, laid_out, whole
from bert.errors import ModelError

MANIFEST = "manifest.json"
FILES = ("state.json", "tensors")  # those that it tells of
KEPT = 2


@dataclass
class TrainingState:
    """Where training stands.

    Args:
        step: optimiser steps taken.
        seconds: time spent in the loop, over all sittings.
        evaluations: evaluations on held-out data so far.
        skipped: steps in a row whose loss or gradient was not finite.
        window: sums since the last line in ``metrics.jsonl``.
        usual_loss: a running mean of the loss over the last hundred steps or so.
        best: the best score of an evaluation, larger being better.
        stale: evaluations since then.
        learnt: whether the model of that evaluation gives different answers.
    """

    step: int = 0
    seconds: float = 0.0
    evaluations: int = 0
    skipped: int = 0
    window: dict[str, float] = field(default_factory=dict)
    usual_loss: float | None = None
    best: float | None = None
    stale: int = 0
    learnt: bool = True


def save_checkpoint(
    directory: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    state: TrainingState,
    world: World = ALONE,
) -> Path:
    """Write ``step-N`` below ``directory`` and remove all but the two newest.

    Every rank must call it; rank 0 writes, and the others wait until it has.
    """
    tensors = {f"model.{name}": whole(value) for name, value in model.state_dict().items()}
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"optimizer.{key}.{name}"] = whole(value)
    target = directory / _name(state.step)
    if world.first:
        _write(target, tensors, state)
    world.told(None)
    return target


def _name(step: int) -> str:
    return f"step-{step:08d}"


def _write(target: Path, tensors: dict[str, torch.Tensor], state: TrainingState) -> None:
    from safetensors.torch import save_file

    directory = target.parent
    if target.is_symlink() or target.exists():
        if _faults(target) is None:
            return
        _remove(target)
    for old in directory.glob(".step-*.partial"):  # of a save that was killed
        _remove(old)
    stage = directory / f".{target.name}.partial"
    stage.mkdir(parents=True)
    try:
        save_file({name: value.contiguous() for name, value in tensors.items()}, stage / "tensors")
        (stage / "state.json").write_text(json.dumps(asdict(state)) + "\n", encoding="utf-8")
        for name in FILES:
            flush(stage / name)
        sizes = {name: (stage / name).stat().st_size for name in FILES}
        digests = {name: _sha256(stage / name) for name in FILES}
        (stage / MANIFEST).write_bytes(_manifest(sizes, digests))
        flush(stage / MANIFEST)
        stage.rename(target)
    finally:  # a full disk is not kept full by half a checkpoint
        shutil.rmtree(stage, ignore_errors=True)
    flush(directory)
    found = sorted(directory.glob("step-*"))
    end = found.index(target) + 1
    # Later ones are damaged, or this run would have gone on from them.
    for old in [*found[: max(end - KEPT, 0)], *found[end:]]:
        with suppress(OSError):
            _remove(old)


def _remove(path: Path) -> None:
    """Remove what has this name, whatever it is."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def latest_checkpoint(directory: Path) -> Path | None:
    """The newest checkpoint that is whole, or None where there is none at all.

    Raises:
        ModelError: there are checkpoints, but every one is damaged.
    """
    found = sorted(directory.glob("step-*"), reverse=True)
    for path in found:
        fault = _faults(path)
        if fault is None:
            return path
        log.notice(f"A damaged checkpoint is passed over: {fault}.", where=str(path))
    if found:
        raise ModelError(
            "Every checkpoint of this run is damaged.",
            where=str(directory),
            fix="start again with --overwrite",
        )
    return None


def load_checkpoint(
    path: Path, model: nn.Module, optimizer: torch.optim.Optimizer
) -> TrainingState:
    """Put weights and optimiser moments back, and return where training stood.

    Raises:
        ModelError: the checkpoint belongs to another model.
    """
    from safetensors.torch import load_file

    tensors = load_file(path / "tensors")
    weights = {
        name.removeprefix("model."): value
        for name, value in tensors.items()
        if name.startswith("model.")
    }
    try:
        now = model.state_dict()
        model.load_state_dict(
            {name: laid_out(value, now.get(name, value)) for name, value in weights.items()}
        )
    except RuntimeError as error:
        raise ModelError(
            "The checkpoint belongs to another model: " + str(error).splitlines()[-1].strip(),
            where=str(path),
            fix="use the settings in config.yaml of the run, or --overwrite",
        ) from None
    parameters = dict(model.named_parameters())
    for entry, value in tensors.items():
        part, key, name = entry.split(".", 2)
        if part == "optimizer":
            # The count of steps stays on the CPU, where torch keeps it.
            placed = laid_out(value, parameters[name]) if value.dim() else value
            optimizer.state[parameters[name]][key] = placed
    state = json.loads((path / "state.json").read_text(encoding="utf-8"))
    return TrainingState(**state)


def keep_batches(directory: Path, batches: Sequence[Any]) -> str:
    """Write the arrays of batches down, to find out later what was in them: the file's name."""
    path = directory / "not_finite.npz"
    arrays = {
        f"{name}_{i}": value
        for i, batch in enumerate(batches)
        for name, value in {**vars(batch), **vars(batch).get("targets", {})}.items()
        if isinstance(value, np.ndarray)
    }
    np.savez(path, allow_pickle=False, **arrays)
    return str(path)


def flush(path: Path) -> None:
    """Force a file's content, or a folder's entries, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _faults(path: Path) -> str | None:
    """What is wrong with a checkpoint, or None."""
    try:
        for name in (MANIFEST, *FILES):
            if not stat.S_ISREG((path / name).lstat().st_mode):
                return f"{name} is not a file"
        told = (path / MANIFEST).read_bytes()
        manifest = json.loads(told)
        sizes = {name: (path / name).stat().st_size for name in FILES}
        for name, size in sizes.items():
            if size != manifest[name]["bytes"]:
                return f"{name} has {size} bytes instead of {manifest[name]['bytes']}"
        digests = {name: _sha256(path / name) for name in FILES}
        for name, digest in digests.items():
            if digest != manifest[name]["sha256"]:
                return f"{name} has changed"
        if told != _manifest(sizes, digests):
            return f"{MANIFEST} has changed"
        step = json.loads((path / "state.json").read_bytes())["step"]
        if path.name != _name(step):
            return f"it is of step {step}"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except OSError as error:
        return f"{error.filename}: {error.strerror}"
    except (ValueError, KeyError, TypeError, RecursionError):
        return f"{MANIFEST} cannot be read"
    return None


def _manifest(sizes: dict[str, int], digests: dict[str, str]) -> bytes:
    """The one text of a manifest of these files, so that any other one is damaged."""
    facts = {name: {"bytes": sizes[name], "sha256": digests[name]} for name in sizes}
    return (json.dumps(facts, indent=2) + "\n").encode()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
