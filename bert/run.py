"""The run folder: opened, described and never overwritten by accident."""

from __future__ import annotations

import json
import platform
import shlex
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from bert import log
from bert.config import Settings, read_yaml
from bert.errors import Interrupted, UsageError

CONFIG = "config.yaml"
ENVIRONMENT = "env.json"
_PARTIAL = ".partial"  # ends the name of what is not yet written
# What a run that was killed may have been writing.
_UNFINISHED = (f"*{_PARTIAL}", ".*.tmp", ".model-*", ".generator-*")
# What a resumed run may be given anew, because no figure depends on it so far.
CHANGEABLE = {"checkpoint_minutes"}


def choose_folder(out: Path | None, name: str, *, resume: bool, overwrite: bool) -> Path:
    """The folder that a run may have; nothing is written or removed yet.

    Args:
        out: the folder, or None for the first free ``runs/NAME-1``, ``runs/NAME-2`` ...
        name: of the recipe.
        resume: go on in a folder that holds a run.
        overwrite: a folder that holds a run may be emptied.

    Raises:
        UsageError: the folder is in use, or holds no run to resume.
    """
    if resume and overwrite:
        raise UsageError(
            "--resume goes on with a run and --overwrite removes it.", fix="give one of the two"
        )
    if out is None:
        if resume:
            raise UsageError("--resume needs the folder to go on in.", fix="--out RUN --resume")
        number = 1
        while Path("runs", f"{name}-{number}").exists():
            number += 1
        out = Path("runs", f"{name}-{number}")
    there = next(path for path in (out, *out.parents) if path.exists())
    if not there.is_dir():
        raise UsageError(
            "The output is a file, not a folder.", where=str(there), fix="choose another --out"
        )
    holds_run = (out / CONFIG).is_file()
    if resume and not holds_run:
        raise UsageError(
            "There is no run to resume here.",
            where=str(out),
            fix="leave out --resume, or name the run folder: --out RUN",
        )
    in_use = out.is_dir() and any(not path.name.endswith(_PARTIAL) for path in out.iterdir())
    if in_use and not resume and not (overwrite and holds_run):
        raise UsageError(
            "The output folder is not empty.",
            where=str(out),
            fix="choose another --out, or --resume, or --overwrite"
            if holds_run
            else "choose another --out: this folder holds no run, so it is left alone",
        )
    return out


@contextmanager
def resumable() -> Iterator[None]:
    """Tell how to go on where a run is interrupted before or after its loop."""
    try:
        yield
    except Interrupted as error:
        error.fix = error.fix or "repeat the command, with --resume if its folder is there"
        raise


def open_run(
    out: Path | None,
    name: str,
    settings: Settings,
    data: str,
    *,
    resume: bool,
    overwrite: bool,
) -> Path:
    """Make or reopen the folder of a run and write down what is run in it.

    Args:
        out: as ``choose_folder`` takes it.
        name: of the recipe.
        settings: fully resolved, written to ``config.yaml``.
        data: hash of what is learnt from, written to ``env.json``.
        resume: go on in a folder that holds the same run.
        overwrite: empty the folder first, if it is a run folder.

    Raises:
        UsageError: the folder is in use, or holds another run.
    """
    out = choose_folder(out, name, resume=resume, overwrite=overwrite)
    if resume:
        _same_run(out, settings, data)
        gone = [old for pattern in _UNFINISHED for old in out.glob(pattern)]
    else:
        gone = list(out.iterdir()) if out.is_dir() else []
    # The settings last: without them the folder holds no run, and would be left alone.
    for old in sorted(gone, key=lambda path: path.name == CONFIG):
        shutil.rmtree(old) if old.is_dir() and not old.is_symlink() else old.unlink()
    out.mkdir(parents=True, exist_ok=True)
    facts = {"data": data, **environment()}
    _write(out / CONFIG, settings.to_yaml())
    _write(out / "command.txt", shlex.join(sys.argv) + "\n")
    _write(out / ENVIRONMENT, json.dumps(facts, indent=2, ensure_ascii=False) + "\n")
    log.say(f"Run folder: {out}")
    return out


def _write(path: Path, text: str) -> None:
    """Write a file whole or not at all, also where one was: a run may be killed at any time."""
    stage = path.with_name(path.name + _PARTIAL)
    stage.write_text(text, encoding="utf-8")
    stage.replace(path)


def _same_run(out: Path, settings: Settings, data: str) -> None:
    before = read_yaml(out / CONFIG)
    now: dict[str, Any] = yaml.safe_load(settings.to_yaml())
    changed = [key for key in now if key not in CHANGEABLE and before.get(key) != now[key]]
    if changed:
        key = changed[0]
        raise UsageError(
            f"The run was started with {key}={before.get(key)}, not {now[key]}.",
            where=str(out / CONFIG),
            fix="repeat the command of command.txt with --resume, or choose another --out",
        )
    if not (out / ENVIRONMENT).exists() and not (out / "checkpoints").exists():
        return  # it was killed before it had learnt anything
    try:
        same_data = json.loads((out / ENVIRONMENT).read_text(encoding="utf-8"))["data"] == data
    except (OSError, ValueError, KeyError, TypeError):
        same_data = False
    if not same_data:
        raise UsageError(
            "The data has changed since the run was started.",
            where=str(out / ENVIRONMENT),
            fix="put the data back as it was, or choose another --out",
        )


def environment() -> dict[str, Any]:
    """Versions and machine, for a run to be understood later."""
    from importlib.metadata import version

    import torch

    from bert import __version__
    from bert.model.precision import default_device

    device = default_device()
    return {
        "bertsmith": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": version("numpy"),
        "tokenizers": version("tokenizers"),
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "threads": torch.get_num_threads(),
    }
