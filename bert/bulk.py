"""Answers to files of any size, kept as they come, so that a second start goes on from the first.

Answers are appended to a file as soon as a chunk of rows has them. Beside it lies the key of what
they are answers to: another model, other data or other columns, and they are made anew. A line
that a kill cut in two does not count.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from bert import __version__, log
from bert.cache import key_of
from bert.data.rows import Example
from bert.errors import BertError, DataError, Interrupted, UsageError
from bert.predictor import TEXTS_AT_ONCE, Predictor
from bert.tasks.task import Answer

_BLOCK = 2**20  # bytes looked through at once


@dataclass(frozen=True)
class Kept:
    """Answers that are being made.

    Args:
        path: the file of them, one JSON object a line.
        rows: how many rows already had theirs.
        answered: every row with its answer, from the first on. It must be read to its end.
    """

    path: Path
    rows: int
    answered: Iterator[tuple[Example, Answer]]


@contextmanager
def kept_answers(
    predictor: Predictor, file: Path, examples: Iterator[Example], path: Path, *key: object
) -> Iterator[Kept]:
    """The answers to the rows of a file, going on where an earlier start was interrupted.

    What is kept is removed when the block ends well or with an error of ours, and stays when it
    is interrupted.

    Args:
        predictor: answers.
        file: of the rows.
        examples: the rows.
        path: where the answers are kept; its folder is there.
        key: what else the answers depend on, JSON-ready.

    Raises:
        UsageError: another process is at work on this path.
        DataError: a row that the model cannot take.
    """
    beside = path.with_name(path.name + ".key")
    lock = FileLock(path.with_name(path.name + ".lock"))
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise UsageError(
            "Another process is writing these answers.", where=str(path), fix="wait for it"
        ) from None
    wanted = key_of(__version__, _facts(predictor.directory), _facts(file), *key)
    try:
        if not (beside.is_file() and beside.read_text(encoding="utf-8") == wanted):
            path.unlink(missing_ok=True)
            path.touch()
            beside.write_text(wanted, encoding="utf-8")
        size, rows = _whole_chunks(path)
        with path.open("r+b") as done:
            done.truncate(size)
        if rows:
            log.say(f"Going on after {rows:,} rows that have their answers.")
        yield Kept(path, rows, _answered(predictor, examples, path, rows))
    except Interrupted:  # a second start goes on from here
        raise
    except (BertError, OSError):  # a second start would end like this one, or has no room
        _remove(path, beside)
        raise
    else:
        _remove(path, beside)
    finally:
        lock.release()
        Path(lock.lock_file).unlink(missing_ok=True)


def _remove(*paths: Path) -> None:
    for path in paths:
        path.unlink(missing_ok=True)


def _facts(path: Path) -> list[list[object]]:
    """What changes when a file, or one in a folder, does."""
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    found = [(item, item.stat()) for item in files]
    return [[str(item.resolve()), stat.st_size, stat.st_mtime_ns] for item, stat in found]


def _whole_chunks(path: Path) -> tuple[int, int]:
    """Bytes and rows of the answers at the start of a file that are whole chunks.

    Rows are answered in the chunks of the first start, so that their numbers are the same.
    """
    size = rows = whole = 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            place = -1
            while (place := block.find(b"\n", place + 1)) >= 0:
                rows += 1
                if rows % TEXTS_AT_ONCE == 0:
                    whole = size + place + 1
            size += len(block)
    return whole, rows // TEXTS_AT_ONCE * TEXTS_AT_ONCE


def _answered(
    predictor: Predictor, examples: Iterator[Example], path: Path, rows: int
) -> Iterator[tuple[Example, Answer]]:
    """Rows with the answers that are there, then with those that are made."""
    with path.open(encoding="utf-8") as done:
        for example, line in zip(islice(examples, rows), done, strict=False):
            yield example, json.loads(line)
    with path.open("a", encoding="utf-8") as file:
        while chunk := list(islice(examples, TEXTS_AT_ONCE)):
            answers = _answers(predictor, chunk)
            for answer in answers:
                file.write(json.dumps(answer, ensure_ascii=False, default=_listed) + "\n")
            file.flush()
            yield from zip(chunk, answers, strict=True)


def _listed(value: Any) -> Any:
    """An array as JSON has it."""
    return value.tolist()


def _answers(predictor: Predictor, chunk: list[Example]) -> list[dict[str, Any]]:
    try:
        return predictor([example.texts for example in chunk])
    except DataError as error:
        # The predictor counts texts from the start of the chunk; a person counts rows.
        number = (error.where or "").removeprefix("text ")
        if number.isdecimal():
            error.where = chunk[int(number) - 1].where
        raise
