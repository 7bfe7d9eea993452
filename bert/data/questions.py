"""Questions about a text, and the answers that stand in it.

Three forms are read. SQuAD's JSON (Rajpurkar et al. 2016, 2018; CMRC 2018 has it too), one
article in memory at a time::

    {"data": [{"title": ..., "paragraphs": [{"context": ..., "qas": [
        {"id": ..., "question": ..., "answers": [{"text": ..., "answer_start": ...}]}]}]}]}

The same as rows, as the hub has it, in JSONL or Parquet::

    {"question": ..., "context": ..., "answers": {"text": [...], "answer_start": [...]}}

And the shortest one, where the answer is the first place of the context that reads like it::

    {"question": ..., "context": ..., "answer": "..."}
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bert.data.rows import Example, Examples, choose_columns, no_rows, text_of
from bert.errors import DataError
from bert.text.files import COMPRESSIONS, Row, check_strings, distinct, open_binary, rows

Spans = tuple[tuple[int, str], ...]

QUESTION, CONTEXT = "question", "context"
ANSWERS = ("answers", "answer")  # columns of answers, the first that a row has
NEAR = 16  # characters: an answer that stands so close to its start is meant

_BLOCK = 2**16  # characters read at a time, or as many as are waiting
_LONGEST = 2**26  # characters of one article
_MARGIN = 16  # characters at the end of a block in which any word of JSON may be cut


def is_json(path: Path) -> bool:
    """Whether the name is that of one JSON value, which itself says what is what."""
    name = path.name.lower()
    for suffix in COMPRESSIONS:
        name = name.removesuffix(suffix)
    return name.endswith(".json")


def question_columns(path: Path, text: Sequence[str]) -> tuple[str, ...]:
    """The columns of questions and of contexts; none for SQuAD's JSON.

    Args:
        path: the file.
        text: the names given, the question first; empty for ``question`` and ``context``.

    Raises:
        DataError: the file has no such columns.
    """
    if is_json(path):
        return ()
    if len(text) == 1:
        raise DataError(
            "A question and a context are two columns.",
            where=str(path),
            fix=f"--text COLUMN --text {text[0]}, the column of questions first",
        )
    return choose_columns(path, tuple(text) or (QUESTION, CONTEXT), None, labelled=False)[0]


def read_questions(
    path: Path, text: Sequence[str], label: str | None, *, labelled: bool
) -> Iterator[Example]:
    """Questions one by one; ``texts`` is the question and the context.

    ``truth`` is a tuple of (start, text), the places of the context that answer the question:
    none for a question without an answer, and None in place of the tuple where the row does
    not say. ``context.startswith(text, start)`` holds for each. ``where`` names the file, and
    the row or the question's id.

    Args:
        path: the file.
        text: names of the columns of questions and contexts, as ``question_columns`` takes them.
        label: name of the column of answers; None for ``answers``, else ``answer``.
        labelled: whether the truth is wanted.

    Raises:
        DataError: the file or a row cannot be read, or an answer is not in its context.
    """
    if is_json(path):
        return _of_json(path, labelled)
    question, context = question_columns(path, text)
    if label is not None:
        choose_columns(path, (question, context), label, labelled=True)  # whether it is there

    def example(row: Row) -> Example:
        return _example(_row(row.values, question, context, label, row.where), labelled)

    return Examples(path, rows(path), example)


def _example(row: _Row, labelled: bool) -> Example:
    truth = _truth(row) if labelled else None
    return Example((row.question, row.context), truth, row.where, row.columns)


class _Row(NamedTuple):
    question: str
    context: str
    answers: Any
    impossible: Any  # SQuAD 2.0: there is no answer, whatever else is said
    where: str
    columns: Mapping[str, Any]


# Rows -------------------------------------------------------------------------------------------


def _row(
    values: Mapping[str, Any], question: str, context: str, label: str | None, where: str
) -> _Row:
    for name in (question, context):
        if values.get(name) is None:
            raise DataError(
                f"The row has no {name}.",
                where=where,
                fix="fill it in, or leave the row out",
            )
    known = {question, context, "is_impossible", *(ANSWERS if label is None else (label,))}
    given = next((n for n in ANSWERS if n in values), ANSWERS[0]) if label is None else label
    return _Row(
        text_of(values[question], question, where),
        text_of(values[context], context, where),
        values.get(given),
        values.get("is_impossible"),
        where,
        {name: value for name, value in values.items() if name not in known},
    )


# SQuAD's JSON -----------------------------------------------------------------------------------


def _of_json(path: Path, labelled: bool) -> Iterator[Example]:
    found = False
    for row in _questions(path):
        found = True
        yield _example(row, labelled)
    if not found:
        raise no_rows(path)


def _questions(path: Path) -> Iterator[_Row]:
    number = 0  # of the question
    with io.TextIOWrapper(open_binary(path), "utf-8-sig", newline="") as source:
        for count, article in enumerate(_Articles(path, source).read(), start=1):
            where = f"{path}:article {count}"
            if isinstance(article, dict) and "paragraphs" not in article and QUESTION in article:
                number += 1
                where = f"{path}:{_name(article, number)}"
                check_strings(article, where)
                yield _row(article, QUESTION, CONTEXT, None, where)
                continue
            title = _member(article, "title", str, where, optional=True)
            for place, paragraph in enumerate(_member(article, "paragraphs", list, where), 1):
                where = f"{path}:article {count}, paragraph {place}"
                context = _member(paragraph, CONTEXT, str, where)
                check_strings(context, where)
                for question in _member(paragraph, "qas", list, where):
                    number += 1
                    where = f"{path}:{_name(question, number)}"
                    _member(question, QUESTION, str, where)
                    check_strings(question, where)
                    values = {**question, CONTEXT: context}
                    values.pop("plausible_answers", None)
                    row = _row(values, QUESTION, CONTEXT, None, where)
                    columns = row.columns if title is None else {"title": title, **row.columns}
                    yield row._replace(columns=columns)


def _name(question: Any, number: int) -> str:
    """How to find a question again: by its id, else by its number from 1."""
    known = question.get("id") if isinstance(question, dict) else None
    if isinstance(known, str | int) and str(known).isprintable() and str(known):
        return f"{known:.80}" if isinstance(known, str) else str(known)
    return f"question {number}"


def _member(table: Any, name: str, kind: type, where: str, *, optional: bool = False) -> Any:
    """A member of a JSON object that must be of a kind."""
    words = "text" if kind is str else "a list"
    if not isinstance(table, dict):
        raise DataError(
            f"Here stands {table!r:.40}, not an object with {name!r}.", where=where, fix=_SHAPE
        )
    value = table.get(name)
    if isinstance(value, kind) or (optional and value is None):
        return value
    what = f"{name!r} is missing" if value is None else f"{name!r} is {value!r:.40}, not {words}"
    raise DataError(f"{what}.", where=where, fix=_SHAPE)


_SHAPE = (
    'write it as SQuAD does: {"data": [{"paragraphs": [{"context": "...", "qas": [{"id": "...", '
    '"question": "...", "answers": [{"text": "...", "answer_start": 0}]}]}]}]}'
)


class _Articles:
    """The items of the list ``data`` of a JSON file, or of the list that the file is.

    A window moves over the text: what was read is forgotten, so that memory is that of the
    longest item, and an error is placed by line and column.
    """

    def __init__(self, path: Path, source: io.TextIOWrapper) -> None:
        self.path = path
        self.source = source
        self.text = ""
        self.at = 0  # in the text
        self.line, self.column = 1, 1  # of the text's first character
        self.ended = False
        self.decoder = json.JSONDecoder(object_pairs_hook=distinct)

    def read(self) -> Iterator[Any]:
        """The items, one by one."""
        first = self._next()
        if first == "[":
            yield from self._list()
        elif first == "{":
            yield from self._table()
        else:
            raise self._wrong("Here should stand an object with a list named data", self.at)
        if self._next():
            raise self._wrong("More follows after the end of the JSON", self.at)

    def _table(self) -> Iterator[Any]:
        names: list[str] = []
        self.at += 1
        while self._next() != "}":
            if names:
                self._take(",")
            if self._next() != '"':
                raise self._wrong("Here should stand a name in double quotes", self.at)
            names.append(str(self._value()))
            self._take(":")
            if names[-1] == "data":
                if self._next() != "[":
                    raise self._wrong("data is not a list", self.at)
                yield from self._list()
            else:
                self._value()
        self.at += 1
        if "data" not in names:
            lines = QUESTION in names or CONTEXT in names
            raise DataError(
                f"There is no list named data; there is {', '.join(names)[:80] or 'nothing'}.",
                where=str(self.path),
                fix="one question a line is .jsonl: give the file that suffix" if lines else _SHAPE,
            )

    def _list(self) -> Iterator[Any]:
        self.at += 1
        some = False
        while self._next() != "]":
            if some:
                self._take(",")
            some = True
            yield self._value()
        self.at += 1

    def _take(self, wanted: str) -> None:
        if self._next() != wanted:
            raise self._wrong(f"Here should stand {wanted!r}", self.at)
        self.at += 1

    def _next(self) -> str:
        """The next character that is no space, which stays; none at the end."""
        while True:
            while self.at < len(self.text) and self.text[self.at] in " \t\r\n":
                self.at += 1
            if self.at < len(self.text):
                return self.text[self.at]
            if not self._more():
                return ""

    def _value(self) -> Any:
        self._next()
        while True:
            try:
                value, end = self.decoder.raw_decode(self.text, self.at)
            except json.JSONDecodeError as error:
                cut = error.pos >= len(self.text) - _MARGIN or error.msg.startswith("Unterminated")
                if cut and self._more():
                    continue
                raise self._wrong(error.msg, error.pos) from None
            except RecursionError:
                raise self._wrong("The JSON is nested too deeply", self.at) from None
            except DataError as error:
                raise self._wrong(error.what.removesuffix("."), self.at) from None
            except ValueError as error:  # a number of thousands of digits
                raise self._wrong(str(error), self.at) from None
            if end < len(self.text) - _MARGIN or not self._more():  # a number may go on
                self.at = end
                return value

    def _more(self) -> bool:
        """Forget what was read, and read on; False at the end."""
        waiting = len(self.text) - self.at
        if self.ended:
            return False
        if waiting > _LONGEST:
            raise self._wrong(f"One article is longer than {_LONGEST:,} characters", self.at)
        try:
            piece = self.source.read(max(_BLOCK, waiting))
        except UnicodeDecodeError as error:
            raise DataError(
                f"Not UTF-8: byte 0x{error.object[error.start]:02x} cannot be decoded.",
                where=f"{self.path}:{self._place(len(self.text))[0]}",
                fix="save the file as UTF-8",
            ) from None
        if not piece:  # places in the text stay what they are
            self.ended = True
            return False
        self.line, self.column = self._place(self.at)
        self.text = self.text[self.at :] + piece
        self.at = 0
        return True

    def _place(self, position: int) -> tuple[int, int]:
        """Line and column of a place of the text."""
        lines = self.text.count("\n", 0, position)
        if not lines:
            return self.line, self.column + position
        return self.line + lines, position - self.text.rfind("\n", 0, position)

    def _wrong(self, what: str, position: int) -> DataError:
        line, column = self._place(position)
        where = f"{self.path}:{line}:{column}"
        read = self.text.rstrip()
        open_string = what.startswith("Unterminated")
        if self.ended and (open_string or position >= len(read) or read[-1] not in "}]"):
            return DataError(
                f"The JSON is cut short: {what}.", where=where, fix="download or write it again"
            )
        return DataError(f"Not valid JSON: {what}.", where=where, fix=_SHAPE)


# Answers ----------------------------------------------------------------------------------------


def _truth(row: _Row) -> Spans | None:
    """The answers of a row, each at a place of the context where it stands."""
    if row.impossible is True:
        return ()
    given = row.answers
    if given is None:
        return None
    if isinstance(given, dict):
        given = _side_by_side(given, row.where)
    elif isinstance(given, str):
        given = [given]
    if not isinstance(given, list):
        raise DataError(
            f"The answers are {given!r:.60}.", where=row.where, fix="give a text or a list"
        )
    spans = []
    for answer in given:
        text, start = answer, None
        if isinstance(answer, dict):
            text = answer.get("text")
            start = answer.get("answer_start", answer.get("start"))
        if not isinstance(text, str) or not (start is None or type(start) is int):
            raise DataError(
                f"An answer is {answer!r:.80}.",
                where=row.where,
                fix='write {"text": "...", "answer_start": 0}: a part of the context, and the '
                "number of its first character, counted from 0",
            )
        if text.strip():  # nothing is no answer
            spans.append((_start(text, start, row), text))
    return tuple(dict.fromkeys(spans))


def _side_by_side(answers: Mapping[str, Any], where: str) -> list[Any]:
    """The hub's two lists as one of answers."""
    texts = answers.get("text")
    starts = answers.get("answer_start", answers.get("start"))
    if isinstance(texts, str):
        return [answers]
    if not isinstance(texts, list) or not isinstance(starts, list | None):
        raise DataError(
            f"The answers are {dict(answers)!r:.80}.",
            where=where,
            fix='write {"text": ["..."], "answer_start": [0]}',
        )
    if starts is None:
        return texts
    if len(starts) != len(texts):
        raise DataError(
            f"There are {len(texts)} answers and {len(starts)} starts.",
            where=where,
            fix="give each answer its answer_start",
        )
    return [{"text": t, "start": s} for t, s in zip(texts, starts, strict=True)]


def _start(text: str, start: int | None, row: _Row) -> int:
    """Where an answer stands: at its start, or as near to it as files are wrong by."""
    context = row.context
    first = context.find(text)
    if first < 0:
        raise DataError(
            f"The answer {text!r:.80} is not in the context.",
            where=row.where,
            fix="write it as it stands there, letter for letter",
        )
    if start is None or start == -1:  # some files say so where they do not know
        return first
    if start >= 0 and context.startswith(text, start):
        return start
    before = context.rfind(text, max(0, start - NEAR), max(0, start + len(text)))
    after = context.find(text, max(0, start), max(0, start + NEAR + len(text)))
    near = [place for place in (before, after) if place >= 0]
    if not near:
        raise DataError(
            f"The answer {text!r:.80} does not stand at character {start:,} of the context, nor "
            f"within {NEAR} of it.",
            where=row.where,
            fix=f"it stands at {first:,}; correct its start, or leave the start out",
        )
    return min(near, key=lambda place: abs(place - start))
