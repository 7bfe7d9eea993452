"""Reading files that may come from anyone: where they lie, how large they are, what JSON says."""

from __future__ import annotations

import json
import math
import shutil
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from bert.errors import ModelError

# JSON takes up to 12 times its size in memory, and 25 times where it is all empty lists.
_MOST_JSON_BYTES = 8 * 2**20
_MOST_LISTS = 1_000_000  # the tokenizers of today have 250,000 entries
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
CODE = (".py", ".pyc", ".pyd", ".so", ".dll", ".dylib", ".sh", ".ipynb")
OTHER_WEIGHTS = (".h5", ".msgpack", ".ot", ".onnx", ".npz")
_DEEPEST = 3  # folders within folders that are carried
_COPY = "copy the model again from where it came from"


def regular_file(path: Path) -> Path:
    """The file that a path of a model directory means.

    A link may lead only to a place in the same directory, or from a snapshot in the hub's cache
    to the blobs beside it, which is how the hub's cache is built.

    Raises:
        OSError: there is none.
        ModelError: it is a pipe, a device or a folder, or a link leads elsewhere.
    """
    directory = path.parent.resolve()
    try:
        target = path.resolve(strict=True)
    except RuntimeError:  # a link to itself, before Python 3.13
        raise OSError(f"{path.name} is a link to itself") from None
    allowed = [directory]
    for snapshot in (directory, directory.parent):  # the file may lie in a folder of the snapshot
        repository = snapshot.parent.parent
        if snapshot.parent.name == "snapshots" and repository.name.startswith("models--"):
            allowed.append(repository / "blobs")
    if not any(target.is_relative_to(place) for place in allowed):
        raise ModelError(
            f"{path.name} is a link that leads out of the model directory.",
            where=str(path),
            fix="copy the file itself there, if you know it",
        )
    if not stat.S_ISREG(target.stat().st_mode):  # opening a pipe would wait for ever
        raise ModelError(f"{path.name} is not a regular file.", where=str(path), fix=_COPY)
    return target


def read_bytes(path: Path, most_bytes: int) -> bytes:
    """The content of a file of a model directory.

    Raises:
        ModelError: it is missing, elsewhere or larger than ``most_bytes``.
    """
    try:
        with regular_file(path).open("rb") as file:
            content = file.read(most_bytes + 1)
    except OSError as error:
        raise ModelError(
            f"{path.name} cannot be read: {error.strerror or error}.", where=str(path), fix=_COPY
        ) from None
    if len(content) > most_bytes:
        raise ModelError(
            f"{path.name} is implausibly large: more than {most_bytes:,} bytes.",
            where=str(path),
            fix=_COPY,
        )
    return content


def read_json(path: Path, most_bytes: int = _MOST_JSON_BYTES) -> dict[str, Any]:
    """The table of names and values in a file of a model directory.

    Raises:
        ModelError: as ``read_bytes``, or it is no JSON table, is nested too deeply, gives a name
            twice or a number that JSON does not have.
    """
    content = read_bytes(path, most_bytes)
    try:
        return parse_table(content)
    except ValueError as error:
        raise ModelError(
            f"{path.name} cannot be read: {error}.", where=str(path), fix=_COPY
        ) from None


def parse_table(content: bytes) -> dict[str, Any]:
    """JSON as a table of names and values.

    Raises:
        ValueError: it is none, for a reason that can be printed.
    """
    if content.count(b"[") + content.count(b"{") > _MOST_LISTS:
        raise ValueError(f"it has more than {_MOST_LISTS:,} lists and tables")
    try:
        value = json.loads(
            content.decode("utf-8"),
            object_pairs_hook=_unique,
            parse_constant=_no_constant,
            parse_float=_finite,
        )
        if b"\\u" in content:  # half a character can be written so, but never printed or saved
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except UnicodeError:
        raise ValueError("it is not text in UTF-8") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{error.msg} (line {error.lineno}, column {error.colno})") from None
    except ValueError as error:
        if "integer string conversion" in str(error):
            raise ValueError("a number is too large") from None
        raise
    if not isinstance(value, dict):
        raise ValueError("it is not a table of names and values")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        raise ValueError("a name is given twice")
    return table


def _no_constant(text: str) -> float:
    raise ValueError(f"{text} is not a number of JSON")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError("a number is too large")
    return value


def begins_as_pickle(start: bytes) -> bool:
    """Whether these first bytes are those of a pickle, or of the zip in which PyTorch keeps one."""
    return start.startswith((b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"))


def carry_files(
    source: Path, destination: Path, names: Iterable[str], depth: int = _DEEPEST
) -> list[str]:
    """Copy files and folders of a model directory that are neither code nor other weights.

    Args:
        source: the directory.
        destination: where they go, under the same names.
        names: what is wanted of it.
        depth: folders within folders that are copied.

    Returns:
        What was left behind: code, pickles, weights in other forms, pipes, links elsewhere.
    """
    left = []
    for name in sorted(names):
        path = source / name
        if path.is_dir() and not path.is_symlink() and depth:
            (destination / name).mkdir()
            inside = [item.name for item in path.iterdir()]
            below = carry_files(path, destination / name, inside, depth - 1)
            left += [f"{name}/{item}" for item in below]
            if not any((destination / name).iterdir()):
                (destination / name).rmdir()
            continue
        try:
            file = regular_file(path)
        except (ModelError, OSError):
            left.append(name)
            continue
        with file.open("rb") as opened:
            start = opened.read(4)
        if name.endswith((*PICKLES, *CODE, *OTHER_WEIGHTS)) or begins_as_pickle(start):
            left.append(name)
        else:
            shutil.copyfile(file, destination / name)
    return left
