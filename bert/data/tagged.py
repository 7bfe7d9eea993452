"""Texts in which spans are marked: spans in rows, tags of tokens in rows or in columns of lines.

Whatever the file looks like, a row becomes a text, or its tokens, and the spans in it as
(start, end, type) in characters of the text, ``end`` exclusive. The text of tokens is made by
``join_tokens``.
"""

from __future__ import annotations

import json
import re
import shlex
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bert.data.rows import Example, Examples, no_rows, read_examples, text_of
from bert.errors import DataError, UsageError
from bert.metrics.spans import OUTSIDE, Span, spans_of_tags
from bert.text.files import COMPRESSIONS, Row, columns, format_of, lines, open_raw, rows

# Columns taken when none is named: the first of these that is there.
TEXT_NAMES = ("text", "sentence")
TOKEN_NAMES = ("tokens", "words")
SPAN_NAMES = ("entities", "spans")
TAG_NAMES = ("tags", "ner_tags")
# Files of one token a line, by the ends of their names; the last ones are those of CoNLL-2003.
COLUMN_FILES = (
    *(".conll", ".txt", ".bio", ".iob", ".iob2", ".bioes"),
    *(".train", ".dev", ".test", ".testa", ".testb"),
)

_DOCUMENT = "-DOCSTART-"
# A tag whose letter says where in its span a token stands.
_PLACED = re.compile(r"[BILUESM](-.*)?", re.DOTALL)
# What would be taken for the name of a type, and is a letter written another way.
_FOREIGN = re.compile(r"[oO0_-]|[BILUESMbiluesm][_:/|. ].*|[biluesm](-.*)?|.*[-_][BIES]", re.DOTALL)
_SPACELESS = ("THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN")


class Joined(NamedTuple):
    """The text of tokens, and where in it each of them begins and ends: [n]."""

    text: str
    starts: NDArray[np.int64]
    ends: NDArray[np.int64]


def join_tokens(tokens: Sequence[str]) -> Joined:
    """Tokens as one text: joined by a space, but not where both sides write none.

    Between two tokens of a script without spaces (Chinese, Japanese, Thai ...) there is none,
    and none at all where every token is a character of such a text, as in most Chinese data.
    """
    bare = any(map(_spaceless, tokens)) and all(len(token) <= 2 for token in tokens)
    parts, starts, place = [], [], 0
    for i, token in enumerate(tokens):
        if i and not bare and not (_spaceless(tokens[i - 1][-1:]) and _spaceless(token[:1])):
            parts.append(" ")
            place += 1
        parts.append(token)
        starts.append(place)
        place += len(token)
    begins = np.array(starts, dtype=np.int64)
    sizes = np.array([len(token) for token in tokens], dtype=np.int64)
    return Joined("".join(parts), begins, begins + sizes)


def _spaceless(text: str) -> bool:
    return bool(text) and spaceless(text[0])


@cache
def spaceless(character: str) -> bool:
    """Whether a character is of a script that puts no spaces between words."""
    if unicodedata.category(character) in ("So", "Sk", "Zs"):  # emoji are wide too
        return False
    name = unicodedata.name(character, "")
    wide = unicodedata.east_asian_width(character) in ("W", "F", "H")
    return (wide and "HANGUL" not in name) or name.startswith(_SPACELESS)


def file_kind(path: Path) -> Literal["lines", "rows", "table"]:
    """How a file is laid out: a token a line, rows that can hold lists, or a table of texts.

    Raises:
        DataError: no file of this name is read.
    """
    name = Path(path.name.lower())
    suffix = Path(name.stem).suffix if name.suffix in COMPRESSIONS else name.suffix
    if suffix in COLUMN_FILES:
        return "lines"
    return "table" if format_of(path) in (".csv", ".tsv") else "rows"


def read_tagged(
    path: Path, text: Sequence[str], label: str | None, *, labelled: bool
) -> Iterator[Example]:
    """The rows of a file, one by one.

    Args:
        path: the file.
        text: the column of texts or of tokens: a name, or in a file of lines a number from 1.
        label: the column of spans or of tags, likewise.
        labelled: whether the spans are wanted.

    Returns:
        ``texts`` is a text or a tuple of tokens; ``truth`` is a tuple of spans from left to
        right, None where the row does not say or none are wanted.

    Raises:
        DataError: the file or a row cannot be read; the message names the row.
        UsageError: more than one column of texts is named.
    """
    if len(text) > 1:
        raise UsageError("A row has one text.", where="--text", fix="give --text once")
    kind = file_kind(path)
    if kind == "lines":
        return _read_lines(path, text, label, labelled)
    if kind == "rows":
        return _read_rows(path, text, label, labelled)
    if labelled:
        raise DataError(
            "A table has one value in a field, not the spans of a text.",
            where=str(path),
            fix="give .jsonl, or one token and its tag a line; if it is that already: "
            + shlex.join(["cp", str(path), f"{path}.conll"]),
        )
    return read_examples(path, text, None, None)


def checked_spans(spans: Iterable[Span], text: str, where: str) -> tuple[Span, ...]:
    """Spans from left to right, without the blanks at their ends.

    Raises:
        DataError: a span that is empty, lies outside the text or overlaps another.
    """
    found = []
    for start, end, kind in spans:
        if not 0 <= start < end <= len(text):
            raise DataError(
                f"The span {start} to {end} ({kind}) does not lie in a text of {len(text)} "
                "characters.",
                where=where,
                fix="count characters from 0; end is the one after the last",
            )
        begin, stop = trimmed(text, start, end)
        if begin == stop:
            raise DataError(
                f"The span {start} to {end} ({kind}) holds nothing but blanks.",
                where=where,
                fix="correct it, or leave it out",
            )
        found.append((begin, stop, kind))
    found.sort()
    for one, other in pairwise(found):
        if other[0] < one[1]:
            raise DataError(
                f"The spans {one[0]} to {one[1]} ({one[2]}) and {other[0]} to {other[1]} "
                f"({other[2]}) overlap.",
                where=where,
                fix="keep one of them: a word has one tag",
            )
    return tuple(found)


def trimmed(text: str, start: int, end: int) -> tuple[int, int]:
    """A place of a text without the blanks at its ends."""
    while start < end and text[start].isspace():
        start += 1
    while start < end and text[end - 1].isspace():
        end -= 1
    return start, end


# Tags -------------------------------------------------------------------------------------------


class _Scheme:
    """Whether the tags of a file agree on what a tag looks like.

    B-PER and I-PER say where in a span a token stands, PER alone does not; in a file with both,
    one of them is a slip of which one can only guess what it means.
    """

    def __init__(self) -> None:
        self.placed: bool | None = None

    def check(self, tag: Any, where: str) -> str:
        """The tag.

        Raises:
            DataError: it is not of the kind of those before it, or of none that is known.
        """
        if tag == OUTSIDE:
            return OUTSIDE
        if isinstance(tag, str) and tag.strip():
            placed = bool(_PLACED.fullmatch(tag))
            if self.placed is None and (placed or not _FOREIGN.fullmatch(tag)):
                self.placed = placed
            if self.placed is placed:
                return tag
        raise DataError(
            f"The tag {tag!r:.60} is not one of a known scheme"
            + (", or not of that of the tags before it." if self.placed is not None else "."),
            where=where,
            fix="write B-PER for the first token of a person, I-PER for the others, and O outside"
            if isinstance(tag, str)
            else "write the names of tags, such as B-PER, I-PER and O",
        )


def _tagged(
    tokens: Sequence[str], tags: Sequence[str], where: str
) -> tuple[tuple[str, ...], tuple[Span, ...]]:
    """Tokens, and the spans that their tags mean, in characters of the joined text."""
    text, starts, ends = join_tokens(tokens)
    spans = [
        (int(starts[first]), int(ends[last - 1]), kind) for first, last, kind in spans_of_tags(tags)
    ]
    return tuple(tokens), checked_spans(spans, text, where)


# One token a line -------------------------------------------------------------------------------


def _read_lines(
    path: Path, text: Sequence[str], label: str | None, labelled: bool
) -> Iterator[Example]:
    token_at = next((int(name) - 1 for name in text if name.isdecimal()), 0)
    if label is not None and not label.isdecimal():
        raise DataError(
            f"The columns of a file of one token a line have no names such as {label!r}.",
            where=str(path),
            fix="give the number of the column of tags, counted from 1, such as --label 4",
        )
    scheme = _Scheme()
    found = False
    for begin, sentence in _sentences(path, labelled):
        found = True
        width = len(sentence[0][1])
        where = f"{path}:{begin}"
        tag_at = int(label) - 1 if label else width - 1
        for at in (token_at, tag_at):
            if not 0 <= at < width:
                raise DataError(
                    f"There is no column {at + 1}; the lines have {width}.",
                    where=where,
                    fix=f"count the columns from 1: --text 1 --label {width}",
                )
        tokens = [fields[token_at] for _, fields in sentence]
        if not labelled:
            yield Example(tuple(tokens), None, where)
            continue
        tags = [scheme.check(fields[tag_at], f"{path}:{number}") for number, fields in sentence]
        texts, truth = _tagged(tokens, tags, where)
        yield Example(texts, truth, where)
    if not found:
        raise no_rows(path)


def _sentences(path: Path, labelled: bool) -> Iterator[tuple[int, list[tuple[int, list[str]]]]]:
    """Sentences: the line each begins at, and its lines as their numbers and columns."""
    sentence: list[tuple[int, list[str]]] = []
    tabs, width = False, 0
    for number, line in lines(path):
        if not line.strip(" \t") or line.startswith(_DOCUMENT):
            if sentence:
                yield sentence[0][0], sentence
            sentence = []
            continue
        tabs = tabs if width else "\t" in line
        # Not at any blank: those of other scripts can be tokens.
        fields = line.split("\t") if tabs else re.split("[ \t]+", line.strip(" \t"))
        if sentence or not _is_comment(fields, width):
            width = width or len(fields)
            _check_width(fields, width, f"{path}:{number}", tabs, labelled)
            sentence.append((number, fields))
    if sentence:
        yield sentence[0][0], sentence


def _is_comment(fields: Sequence[str], width: int) -> bool:
    """Whether a line before a sentence says something about it and is no token itself."""
    if not fields[0].startswith("#"):
        return False
    if len(fields) == 1 and width <= 1:
        return False
    last = fields[-1]
    tag = last == OUTSIDE or (len(last) > 1 and _PLACED.fullmatch(last) is not None)
    return not tag or len(fields) != (width or len(fields))


def _check_width(fields: list[str], width: int, where: str, tabs: bool, labelled: bool) -> None:
    if len(fields) == width and (width > 1 or not labelled):
        return
    between = "tabs" if tabs else "blanks"
    if len(fields) == width:
        what = "The line has a token and no tag."
    elif len(fields) == 1:
        what = f"The line has one column, those before it {width}: a token without a tag?"
    else:
        what = f"The line has {len(fields)} columns between {between}, those before it {width}."
    raise DataError(
        what,
        where=where,
        fix=f"give each line a token and its tag, with {between} between the columns, and "
        'put a blank line after each sentence; whole texts belong in .jsonl: {"text": "..."}',
    )


# Rows -------------------------------------------------------------------------------------------


def _read_rows(
    path: Path, text: Sequence[str], label: str | None, labelled: bool
) -> Iterator[Example]:
    there = columns(path)
    answers = _choose(path, there, label, (*SPAN_NAMES, *TAG_NAMES), "--label") if labelled else ""
    usual = (*TOKEN_NAMES, *TEXT_NAMES)
    if answers in SPAN_NAMES or any(name in there for name in SPAN_NAMES):
        usual = (*TEXT_NAMES, *TOKEN_NAMES)  # spans count the characters of a text
    name = _choose(path, there, text[0] if text else None, usual, "--text")
    names = _tag_names(path, answers) if labelled else []
    scheme = _Scheme()

    def example(row: Row) -> Example:
        value, where = row.values.get(name), row.where
        others = {
            key: item
            for key, item in row.values.items()
            if key not in (name, answers, *SPAN_NAMES, *TAG_NAMES)
        }
        truth = row.values.get(answers) if labelled else None
        if isinstance(value, list):
            tokens = _strings(value, name, where)
            if truth is None:
                return Example(tokens, None, where, others)
            tags = _tags(truth, len(tokens), names, scheme, answers, where)
            return Example(*_tagged(tokens, tags, where), where, others)
        words = text_of(value, name, where)
        spans = None if truth is None else _spans(truth, words, answers, where)
        return Example(words, spans, where, others)

    return Examples(path, rows(path), example)


def _choose(
    path: Path, there: Sequence[str], named: str | None, usual: Sequence[str], option: str
) -> str:
    """The named column, or else the first usual one."""
    wanted = (named,) if named is not None else usual
    for name in wanted:
        if name in there:
            return name
    what = f"There is no column {named!r}" if named else f"No column is called {', '.join(usual)}"
    raise DataError(
        f"{what}; the columns are {', '.join(there)}.",
        where=str(path),
        fix=f"name the column: {option} COLUMN",
    )


def _strings(value: list[Any], name: str, where: str) -> tuple[str, ...]:
    for number, token in enumerate(value, 1):
        if not isinstance(token, str):
            raise DataError(
                f"Token {number} in the column {name!r} is {token!r:.60}, which is not text.",
                where=where,
                fix='write tokens as strings: {"tokens": ["In", "Paris"], "tags": ["O", "B-LOC"]}',
            )
    return tuple(value)


def _tags(
    value: Any, tokens: int, names: Sequence[str], scheme: _Scheme, column: str, where: str
) -> list[str]:
    if not isinstance(value, list) or any(isinstance(item, dict | list) for item in value):
        raise DataError(
            f"Column {column!r} holds {value!r:.60}, which is not a list of tags.",
            where=where,
            fix="give one tag for each token; spans that count characters need a text: --text "
            "COLUMN",
        )
    if len(value) != tokens:
        raise DataError(
            f"The row has {tokens} tokens and {len(value)} tags.",
            where=where,
            fix="give one tag for each token",
        )
    numbered = [names[tag] if type(tag) is int and 0 <= tag < len(names) else tag for tag in value]
    return [scheme.check(tag, where) for tag in numbered]


def _tag_names(path: Path, column: str) -> list[str]:
    """The names of tags that a Parquet file has as numbers, as ``datasets`` stores them."""
    if format_of(path) != ".parquet":
        return []
    import pyarrow.parquet

    with open_raw(path) as raw:
        stored = (pyarrow.parquet.read_schema(raw).metadata or {}).get(b"huggingface")
    try:
        feature = json.loads(stored or "")["info"]["features"][column]
        feature = feature.get("feature", feature) if isinstance(feature, dict) else feature[0]
        return [str(name) for name in feature["names"]]
    except (TypeError, KeyError, ValueError, IndexError):
        return []


def _spans(value: Any, text: str, column: str, where: str) -> tuple[Span, ...]:
    if not isinstance(value, list):
        raise DataError(
            f"Column {column!r} holds {value!r:.60}, which is not a list of spans.",
            where=where,
            fix=_SPAN_FIX,
        )
    return checked_spans([_span(item, text, where) for item in value], text, where)


_SPAN_FIX = 'write spans as [{"start": 0, "end": 5, "type": "PER"}], and [] where there are none'


def _span(item: Any, text: str, where: str) -> Span:
    if isinstance(item, Mapping):
        kind = item.get("type") if item.get("type") is not None else item.get("label")
        start, end, words = item.get("start"), item.get("end"), item.get("text")
    elif isinstance(item, list) and len(item) == 3:
        (start, end, kind), words = item, None
    else:
        start = end = kind = words = None
    if type(start) is not int or type(end) is not int or not isinstance(kind, str) or not kind:
        raise DataError(
            f"{item!r:.80} is not a span with start, end and type.", where=where, fix=_SPAN_FIX
        )
    if isinstance(words, str) and 0 <= start < end <= len(text) and text[start:end] != words:
        raise DataError(
            f"The span {start} to {end} holds {text[start:end]!r:.60}, but the row says "
            f"{words!r:.60}.",
            where=where,
            fix="count characters (Unicode code points, not bytes) from 0; end is the one after "
            "the last",
        )
    return start, end, kind
