"""Rows of text and labels: which columns, which labels, what was left out and why."""

from __future__ import annotations

import difflib
import hashlib
import math
import shlex
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bert.data.draws import uniform
from bert.errors import DataError, RowError, UsageError
from bert.text.files import Row, columns, rows
from bert.text.tokenizer import Texts

# Columns taken for text when none is named, in this order.
TEXT_COLUMNS = (
    ("text",),
    ("question", "sentence"),
    ("sentence",),
    ("text_a", "text_b"),
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
)
LABEL_COLUMN = "label"


@dataclass(frozen=True)
class Example:
    """A row as a task sees it.

    Args:
        texts: a text, a pair of texts, or as many as the task takes.
        truth: what the right answer is, in the task's own form; None where the row does not say.
        where: the file and row it came from.
        columns: the other values of the row, for figures over parts of the data.
    """

    texts: Texts | tuple[str, ...]
    truth: Any
    where: str
    columns: Mapping[str, Any] = field(default_factory=dict)

    @property
    def parts(self) -> tuple[str, ...]:
        """The texts, also where there is only one."""
        return (self.texts,) if isinstance(self.texts, str) else self.texts


@dataclass
class DataReport:
    """What was read and what became of it.

    Args:
        rows: rows read.
        kept: rows kept.
        dropped: reason -> rows left out, as file:row, the first hundred of each.
        dropped_counts: reason -> how many.
        labels: label -> how often it is the answer, or a part of it, in kept rows.
        duplicates: kept rows whose text and label appeared before.
        contradictions: kept rows whose text appeared before with another label.
        half_empty: kept pairs of which one text is empty, as file:row.
        characters: length of each kept text.
    """

    rows: int = 0
    kept: int = 0
    dropped: dict[str, list[str]] = field(default_factory=dict)
    dropped_counts: Counter[str] = field(default_factory=Counter)
    labels: Counter[str] = field(default_factory=Counter)
    duplicates: int = 0
    contradictions: int = 0
    half_empty: list[str] = field(default_factory=list)
    characters: list[int] = field(default_factory=list)

    def summary(self) -> dict[str, Any]:
        """The report as JSON; lengths in characters."""
        lengths = np.array(self.characters or [0])
        return {
            "rows": self.rows,
            "kept": self.kept,
            "dropped": {
                reason: {"rows": self.dropped_counts[reason], "first": where}
                for reason, where in self.dropped.items()
            },
            "labels": dict(self.labels.most_common()),
            "duplicates": self.duplicates,
            "contradictions": self.contradictions,
            "half_empty": {"rows": len(self.half_empty), "first": self.half_empty[:100]},
            "characters": {
                "median": float(np.median(lengths)),
                "95%": float(np.percentile(lengths, 95)),
                "longest": int(lengths.max()),
            },
        }


def choose_columns(
    path: Path, text: Sequence[str], label: str | None, *, labelled: bool
) -> tuple[tuple[str, ...], str | None]:
    """The columns of texts (one or two) and of labels.

    Args:
        path: the file.
        text: the names given for text; empty for the usual ones.
        label: the name given for labels, or None for ``label``.
        labelled: whether labels are needed.

    Raises:
        DataError: the file has no such columns; the message names those it has.
        UsageError: more than two text columns are named.
    """
    there = columns(path)
    if len(text) > 2:
        raise UsageError("A row has one text or two.", fix="give --text once or twice")
    for name in text:
        if name not in there:
            raise _no_column(path, f"There is no column {name!r}", there, "--text", name)
    if labelled:
        label = label or LABEL_COLUMN
        if label not in there:
            raise _no_column(path, f"There is no column {label!r}", there, "--label", label)
    if not text:
        for usual in TEXT_COLUMNS:
            if all(name in there for name in usual):
                text = usual
                break
        else:
            raise _no_column(path, "No column is called text", there, "--text", "text")
    return tuple(text), label


def _no_column(path: Path, what: str, there: list[str], option: str, wanted: str) -> DataError:
    """The error for a column that is not there, with the nearest one that is."""
    near = difflib.get_close_matches(wanted, there, n=1)
    fix = f"name the column of {'labels' if option == '--label' else 'texts'}: {option} COLUMN"
    if near or (len(there) == 1 and option == "--text"):
        fix = f"{option} {shlex.quote((near or there)[0])}"
    if len(there) == 1 and (separator := next((s for s in ";\t|" if s in there[0]), None)):
        fix = f"write the file with commas between the columns instead of {separator!r}"
    return DataError(f"{what}; the columns are {', '.join(there)}.", where=str(path), fix=fix)


def read_examples(
    path: Path,
    text: Sequence[str],
    label: str | None,
    parse: Callable[[Any, str], Any] | None,
) -> Iterator[Example]:
    """The rows of a file as examples, one by one.

    Args:
        path: the file.
        text: names of the columns of texts, as ``choose_columns`` takes them.
        label: name of the column of answers.
        parse: the value of that column and its row -> the truth; None where it is not needed.

    Raises:
        DataError: the file or a row cannot be read; the message names the row.
    """
    text, label = choose_columns(path, text, label, labelled=parse is not None)

    def example(row: Row) -> Example:
        texts = tuple(text_of(row.values.get(name), name, row.where) for name in text)
        others = {k: v for k, v in row.values.items() if k != label and k not in text}
        return Example(
            texts[0] if len(texts) == 1 else texts,
            parse(row.values.get(label), row.where) if parse and label else None,
            row.where,
            others,
        )

    return Examples(path, rows(path), example)


class Examples(Iterator[Example]):
    """The rows of a file as a task sees them, one by one.

    A row that is bad raises a ``RowError``, after which the next one can be asked for. A file
    without any raises a ``DataError``.

    Args:
        path: the file, for the message.
        rows: its rows.
        example: what a task makes of a row; a ``DataError`` that it raises is about this row.
    """

    def __init__(self, path: Path, rows: Iterator[Row], example: Callable[[Row], Example]) -> None:
        self._path = path
        self._rows = rows
        self._example = example
        self._some = False

    def __next__(self) -> Example:
        try:
            row = next(self._rows)
        except StopIteration:
            if not self._some:
                raise no_rows(self._path) from None
            raise
        except RowError:
            self._some = True
            raise
        self._some = True
        try:
            return self._example(row)
        except DataError as error:
            raise RowError(error.what, where=error.where, fix=error.fix) from None


def no_rows(path: Path) -> DataError:
    """The error for a file that is empty."""
    return DataError("The file has no rows.", where=str(path), fix="give a file with rows")


def text_of(value: Any, name: str, where: str) -> str:
    """The text in a column; none is an empty one.

    Raises:
        DataError: it holds something else.
    """
    if value is None:
        return ""
    if not isinstance(value, str):
        raise DataError(
            f"Column {name!r} holds {value!r:.60}, which is not text.",
            where=where,
            fix="name the column of texts: --text COLUMN",
        )
    return value


def label_name(value: Any, where: str) -> str | None:
    """The name in a column of labels; None where it is empty, or not-a-number as pandas writes it.

    Raises:
        DataError: it holds more than one value.
    """
    if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, list | dict):
        raise DataError(
            f"The label is {value!r:.60}, not a single name or number.",
            where=where,
            fix="give one label a row",
        )
    return str(value)


def training_examples(
    examples: Iterable[Example], names: Callable[[Any], Iterable[str]], where: str
) -> tuple[list[Example], DataReport]:
    """All examples to learn from or to measure on; rows without text or truth are left out.

    Args:
        examples: of a file.
        names: the truth of a row -> labels to count.
        where: the file, for the message.

    Raises:
        DataError: the file cannot be read, or nothing is left.
    """
    report = DataReport()
    kept: list[Example] = []
    seen: dict[bytes, Any] = {}
    for example in examples:
        report.rows += 1
        reason = None
        if not any(part.strip() for part in example.parts):
            reason = "no text"
        elif example.truth is None:
            reason = "no label"
        if reason is not None:
            report.dropped_counts[reason] += 1
            rows = report.dropped.setdefault(reason, [])
            if len(rows) < 100:
                rows.append(example.where)
            continue
        if seen.setdefault(fingerprint(example), example.truth) != example.truth:
            report.contradictions += 1
        if len(example.parts) == 2 and not all(part.strip() for part in example.parts):
            report.half_empty.append(example.where)
        report.kept += 1
        report.labels.update(names(example.truth))
        report.characters.append(sum(len(part) for part in example.parts))
        kept.append(example)
    report.duplicates = len(kept) - len(seen) - report.contradictions
    if not kept:
        raise DataError(
            f"None of the {report.rows} rows has both text and label.",
            where=where,
            fix="name the columns: --text COLUMN --label COLUMN",
        )
    return kept, report


def fingerprint(example: Example) -> bytes:
    """What two rows of the same texts share."""
    return _mark("\0".join(example.parts))


def _mark(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def sorted_labels(names: Sequence[str], where: str | None = None) -> list[str]:
    """Label names in order: by number where all are whole numbers, else by name.

    Args:
        names: of the rows.
        where: the file, for the message.

    Raises:
        DataError: there is only one.
    """
    distinct = set(names)
    if len(distinct) < 2:
        only = next(iter(distinct), "")
        raise DataError(
            f"Every row has the same label {only!r}; there is nothing to tell apart.",
            where=where,
            fix="give rows of at least two labels, or name the right column: --label COLUMN",
        )
    if all(name.lstrip("-").isdecimal() for name in distinct):
        return sorted(distinct, key=lambda name: (int(name), name))
    return sorted(distinct)


def stratified_split(
    examples: Sequence[Example],
    names: Callable[[Any], Iterable[str]],
    group: Callable[[Example], str],
    share: float,
    seed: int,
) -> tuple[list[Example], list[Example]]:
    """Examples to train on and a share of every label held out.

    Args:
        examples: all.
        names: the truth of a row -> its labels; it counts for the first of them.
        group: what rows share that must stay on one side, such as their text.
        share: of the groups of each label that is held out.
        seed: of the draw.

    Raises:
        DataError: too few rows to hold any out.
    """
    texts: dict[str, dict[bytes, list[Example]]] = {}
    side: dict[bytes, str] = {}
    for example in examples:
        mark = _mark(group(example))
        owner = side.setdefault(mark, next(iter(names(example.truth)), ""))
        texts.setdefault(owner, {}).setdefault(mark, []).append(example)
    train: list[Example] = []
    out_groups: list[list[Example]] = []
    for groups in texts.values():
        marks = list(groups)
        draws = uniform(seed, [int.from_bytes(mark[:7], "little") for mark in marks])
        out = min(max(round(len(marks) * share), 1), len(marks) - 1)
        chosen = set(np.argsort(draws, kind="stable")[:out].tolist())
        for i, mark in enumerate(marks):
            if i in chosen:
                out_groups.append(groups[mark])
            else:
                train.extend(groups[mark])
    # A row may have rarer labels than the first, and nothing can be measured of one never seen.
    held_out: list[Example] = []
    known = {name for example in train for name in names(example.truth)}
    for rows_together in out_groups:
        found = {name for example in rows_together for name in names(example.truth)}
        if found <= known:
            held_out.extend(rows_together)
        else:
            train.extend(rows_together)
            known |= found
    if not held_out:
        raise DataError(
            f"{len(examples)} rows are too few to hold some out for measuring: no label has two "
            "texts.",
            where=examples[0].where.rpartition(":")[0] if examples else None,
            fix="give rows to measure on: --dev FILE, or name the right column: --label COLUMN",
        )
    return train, held_out
