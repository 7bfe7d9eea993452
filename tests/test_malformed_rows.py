"""1,000 malformed files of rows, each by one damage of a good one: refused, and told where."""

from __future__ import annotations

import copy
import csv
import gzip
import io
import json
import lzma
import os
import random
import re
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import cycle
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import typer.main

from bert.checkpoint import Checkpoint, write_model
from bert.cli import main
from bert.families.bert import FAMILY
from bert.tasks.task import load_task, task_names
from bert.text.tokenizer import train_wordpiece

FILES = 1000
COPIES = 3  # of the demo rows in a file
TASKS = [name for name in task_names() if load_task(name).primary_metric]
TABLES = (".csv", ".tsv")
ROWS = (".jsonl", ".csv", ".tsv", ".parquet")
WITH_TYPES = (".jsonl", ".parquet", ".json")
TEXT_FILES = (".jsonl", ".csv", ".tsv", ".conll", ".json")
SCREEN = 15  # lines

Row = dict[str, Any]


# Good files -------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Layout:
    """One way to write the rows of a task.

    Args:
        task: its name.
        form: which of its ways.
        rows: as JSON has them.
        formats: the suffixes of files that can hold them.
        texts: columns of texts.
        label: the column of answers; empty where there is none.
    """

    task: str
    form: str
    rows: tuple[Row, ...]
    formats: tuple[str, ...]
    texts: tuple[str, ...]
    label: str

    def __str__(self) -> str:
        return f"{self.task}-{self.form}"


def demo(task: str) -> list[Row]:
    return [copy.deepcopy(row) for _ in range(COPIES) for row in load_task(task).demo_rows]


def layouts() -> Iterator[Layout]:
    for task in ("classification", "few_shot", "multilabel", "regression"):
        label = {"multilabel": "labels", "regression": "score"}.get(task, "label")
        rows = demo(task)
        for row in rows if task == "regression" else ():
            row["score"] = float(row["score"])
        yield Layout(task, "text", tuple(rows), ROWS, ("text",), label)
        pairs = [{"text_a": row["text"], "text_b": "so it is", label: row[label]} for row in rows]
        yield Layout(task, "pair", tuple(pairs), ROWS, ("text_a", "text_b"), label)
    pairs = demo("embedding")
    yield Layout("embedding", "pairs", tuple(pairs), ROWS, ("anchor", "positive"), "")
    triplets = [{**row, "negative": "a boat at sea"} for row in pairs]
    texts = ("anchor", "positive", "negative")
    yield Layout("embedding", "triplets", tuple(triplets), ROWS, texts, "")
    scored = [
        {"sentence1": row["anchor"], "sentence2": row["positive"], "score": i % 6 + 0.5}
        for i, row in enumerate(pairs)
    ]
    yield Layout("embedding", "scored", tuple(scored), ROWS, ("sentence1", "sentence2"), "score")
    asked = [
        {"context": "", "question": "", **row, "label": str(row["label"])}
        for row in demo("multiple_choice")
    ]
    yield Layout("multiple_choice", "list", tuple(asked), ROWS, ("question", "context"), "label")
    numbered = [
        {
            "question": row["question"] or row["context"],
            **{f"choice{i}": (row["choices"] + [""] * 4)[i] for i in range(4)},
            "label": row["label"],
        }
        for row in asked
    ]
    yield Layout("multiple_choice", "numbered", tuple(numbered), ROWS, ("question",), "label")
    spans = demo("tagging")
    yield Layout("tagging", "spans", tuple(spans), (".jsonl", ".parquet"), ("text",), "entities")
    tagged = [
        row
        for city in ("Rome", "Oslo", "Paris", "Lima", "Bern", "Kiev", "Riga", "上海")
        for row in (
            {"tokens": ["Ada", "Lee", "lives", "in", city],
             "tags": ["B-PER", "I-PER", "O", "O", "B-LOC"]},
            {"tokens": [city, "is", "far"], "tags": ["B-LOC", "O", "O"]},
            {"tokens": ["Nobody", "called"], "tags": ["O", "O"]},
        )
    ]  # fmt: skip
    yield Layout(
        "tagging", "tokens", tuple(tagged), (".jsonl", ".parquet", ".conll"), ("tokens",), "tags"
    )
    questions = demo("question_answering")
    texts = ("question", "context")
    yield Layout("question_answering", "short", tuple(questions), ROWS, texts, "answer")
    hub = [
        {
            "id": f"q{number}",
            "question": row["question"],
            "context": row["context"],
            "answers": {
                "text": [row["answer"]], "answer_start": [row["context"].index(row["answer"])]
            },
        }
        for number, row in enumerate(questions, 1)
    ]  # fmt: skip
    formats = (".jsonl", ".parquet", ".json")
    yield Layout("question_answering", "hub", tuple(hub), formats, texts, "answers")


LAYOUTS = list(layouts())
TOKENS = next(layout for layout in LAYOUTS if layout.form == "tokens")


def lines_of(layout: Layout, rows: Sequence[Row], suffix: str) -> tuple[list[str], list[int]]:
    """The lines of a text file, and of each row the number of its first line, from 1."""
    if suffix == ".jsonl":
        return [json.dumps(row, ensure_ascii=False) for row in rows], [*range(1, len(rows) + 1)]
    if suffix == ".conll":
        lines: list[str] = []
        starts = []
        for row in rows:
            starts.append(len(lines) + 1)
            lines += [" ".join(pair) for pair in zip(row["tokens"], row["tags"], strict=True)]
            lines.append("")
        return lines, starts
    if suffix == ".json":
        articles = [json.dumps(article(row), ensure_ascii=False) for row in rows]
        commas = [*[","] * (len(rows) - 1), ""]
        lines = [line + comma for line, comma in zip(articles, commas, strict=True)]
        return ['{"version": "1.1", "data": [', *lines, "]}"], [*range(2, len(rows) + 2)]
    names = list(rows[0])
    table = [[field(row[name]) for name in names] for row in rows]
    if suffix == ".tsv":
        return ["\t".join(row) for row in (names, *table)], [*range(2, len(rows) + 2)]
    return [written(row) for row in (names, *table)], [*range(2, len(rows) + 2)]


def article(row: Row) -> Row:
    """A question as SQuAD has it: two lists become one of answers."""
    answers: Any = row["answers"]
    if isinstance(answers, dict) and all(isinstance(part, list) for part in answers.values()):
        pairs = zip(*answers.values(), strict=False)
        answers = [dict(zip(answers, pair, strict=True)) for pair in pairs]
    question = {**row, "answers": answers}
    return {"title": "a title", "paragraphs": [{"context": question.pop("context"),
                                                "qas": [question]}]}  # fmt: skip


def field(value: Any) -> str:
    """A value in a table, where a list is JSON."""
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def written(fields: Sequence[str]) -> str:
    """A line of CSV."""
    line = io.StringIO()
    csv.writer(line, lineterminator="").writerow(fields)
    return line.getvalue()


def parquet(rows: Sequence[Row]) -> bytes:
    target = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(list(rows)), target)
    return target.getvalue()


def packed(data: bytes, compression: str) -> bytes:
    if compression == ".gz":
        return gzip.compress(data, mtime=0)
    if compression == ".xz":
        return lzma.compress(data)
    return pa.Codec("zstd").compress(data, asbytes=True) if compression == ".zst" else data


# Damages ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Damage:
    """One thing that is wrong.

    Args:
        name: of it.
        at: what it is done to: a row before it is written, a line, the whole text, the bytes
            as they are stored, or the file's suffix.
        do: what it is done to, and random numbers -> what becomes of it.
        place: what follows the file's name where the damage is told: ``row`` and ``line`` stand
            for the number of the row or line it was done to; None for anything.
        formats: suffixes of files that can have it.
        fits: the layouts that can.
        last: the file ends there.
        answers: it is in an answer, which prediction does not read.
        packed: it is one of compressed files.
    """

    name: str
    at: Literal["row", "line", "text", "stored", "suffix"]
    do: Callable[[Any, random.Random], Any]
    place: str | None = "row"
    formats: tuple[str, ...] = TEXT_FILES
    fits: Callable[[Layout], bool] = lambda layout: True
    last: bool = False
    answers: bool = False
    packed: bool = False


def inserted(*pieces: bytes) -> Callable[[bytes, random.Random], bytes]:
    """Bytes somewhere inside a line, between two characters."""

    def do(line: bytes, draw: random.Random) -> bytes:
        text = line.decode()
        at = draw.randint(1, len(text) - 1)
        return text[:at].encode() + draw.choice(pieces) + text[at:].encode()

    return do


def becomes(*lines: bytes) -> Callable[[bytes, random.Random], bytes]:
    return lambda line, draw: draw.choice(lines)


def changed(old: bytes, *new: bytes) -> Callable[[bytes, random.Random], bytes]:
    """The first of some bytes in a line replaced."""

    def do(line: bytes, draw: random.Random) -> bytes:
        assert old in line, (old, line)
        return line.replace(old, draw.choice(new), 1)

    return do


def cut(line: bytes, draw: random.Random) -> bytes:
    """The begin of an object, without its end."""
    text = line.decode()
    return text[: draw.randint(1, len(text.rstrip(",")) - 1)].encode()


def some_of(data: bytes, draw: random.Random) -> bytes:
    return data[: draw.randint(len(data) // 4, len(data) - 9)]


def flipped(data: bytes, draw: random.Random) -> bytes:
    at = draw.randint(len(data) // 3, len(data) - 9)
    return data[:at] + bytes([data[at] ^ draw.randint(1, 255)]) + data[at + 1 :]


def utf16(data: bytes, draw: random.Random) -> bytes:
    return data.decode().encode(draw.choice(["utf-16", "utf-16-le", "utf-16-be", "utf-32"]))


def without(*names: str) -> Callable[[Row, random.Random], Row]:
    def do(row: Row, draw: random.Random) -> Row:
        name = draw.choice([name for name in names if name in row])
        return {key: value for key, value in row.items() if key != name}

    return do


def value(names: str | Sequence[str], *values: Any) -> Callable[[Row, random.Random], Row]:
    """Another value in one of the columns."""

    def do(row: Row, draw: random.Random) -> Row:
        among = [names] if isinstance(names, str) else [name for name in names if name in row]
        return {**row, draw.choice(among): draw.choice(values)}

    return do


def span(**changes: Any) -> Callable[[Row, random.Random], Row]:
    """The text's first span changed, or one more."""

    def do(row: Row, draw: random.Random) -> Row:
        first = {"start": 0, "end": 2, "type": "LOC", **changes}
        return {**row, "entities": [first]}

    return do


def spans(*values: Any) -> Callable[[Row, random.Random], Row]:
    return value("entities", *values)


def answer(**changes: Sequence[Any]) -> Callable[[Row, random.Random], Row]:
    """Lists of answers changed."""

    def do(row: Row, draw: random.Random) -> Row:
        drawn = {name: draw.choice(values) for name, values in changes.items()}
        return {**row, "answers": {**row["answers"], **drawn}}

    return do


def of(*tasks: str, form: str = "") -> Callable[[Layout], bool]:
    return lambda layout: layout.task in tasks and form in layout.form


def classifies(layout: Layout) -> bool:
    return layout.task in ("classification", "few_shot")


def has_score(layout: Layout) -> bool:
    return layout.label == "score"


def labelled(layout: Layout) -> bool:
    return bool(layout.label)


TEXT_NAMES = sorted({name for layout in LAYOUTS for name in layout.texts if name != "tokens"})
LABEL_NAMES = sorted({layout.label for layout in LAYOUTS if layout.label})


def has_text(layout: Layout) -> bool:
    return layout.form != "tokens"


JSONL = (".jsonl",)
ONE_JSON = (".json",)
CONLL = (".conll",)
CSV, TSV = (".csv",), (".tsv",)
PARQUET = (".parquet",)
TYPED = (".jsonl", ".parquet")
DEEP = b"[" * 100_000

DAMAGES = [
    # Bytes
    Damage("nul-byte", "line", inserted(b"\0"), "line"),
    Damage("not-utf8", "line", inserted(b"\xff", b"\xe9t\xe9", b"\xc3(", b"\xd6\xd0\xce\xc4"),
           "line"),
    Damage("surrogate-in-utf8", "line", inserted(b"\xed\xa0\x80"), "line"),
    Damage("utf-16", "text", utf16, ":1"),
    Damage("empty", "text", lambda data, draw: b"", ""),
    Damage("blank", "text", lambda data, draw: b"\n \n"[: draw.choice([1, 3])], "",
           (".jsonl", ".conll", ".json")),
    Damage("pdf", "text", lambda data, draw: b"%PDF-1.4\n%\xe2\xe3\xcf\xd3\n", None),
    Damage("compressed-cut", "stored", some_of, None, packed=True),
    Damage("compressed-changed", "stored", flipped, None, packed=True),
    Damage("compressed-empty", "stored", lambda data, draw: b"", "", packed=True),
    Damage("not-compressed", "stored", lambda data, draw: b"text,label\n" * 9, "", packed=True),
    Damage("page-for-a-login", "stored", lambda data, draw: b"<!DOCTYPE html>\n<html>", None),
    # Names
    Damage("suffix-unknown", "suffix",
           lambda suffix, draw: draw.choice([".xlsx", ".docx", ".pdf", "", ".rows", ".zip"]), ""),
    Damage("suffix-of-compression", "suffix",
           lambda suffix, draw: suffix + draw.choice([".gz", ".xz", ".zst"]), ""),
    Damage("suffix-of-another", "suffix",
           lambda suffix, draw: draw.choice(sorted({".jsonl", ".csv", ".tsv"} - {suffix})), None,
           fits=lambda layout: layout.task != "tagging"),
    Damage("suffix-of-parquet", "suffix", lambda suffix, draw: ".parquet", ""),
    Damage("parquet-by-another-name", "suffix",
           lambda suffix, draw: draw.choice([".jsonl", ".conll"]), ":1", PARQUET,
           of("tagging")),
    Damage("parquet-as-text", "suffix",
           lambda suffix, draw: draw.choice([".jsonl", ".csv", ".tsv"]), ":1", PARQUET,
           lambda layout: layout.task != "tagging"),
    # Lines of JSON
    Damage("json-cut", "line", cut, "line", JSONL, last=True),
    Damage("json-not-object", "line",
           becomes(b'["a", "b"]', b'"text"', b"null", b"3", b"true"), "line", JSONL),
    Damage("json-no-json", "line",
           becomes(b"{'text': 'single quotes'}", b"{text: 1}", b"{", b"}", b"text,label", b"{]}",
                   b'{"text": "a",}', b'{"text" "a"}', b'{"text": "a" "label": "b"}',
                   b'{"text": tru}'), "line", JSONL),
    Damage("json-two-objects", "line", lambda line, draw: line + b" " + line, "line", JSONL),
    Damage("json-quote-unclosed", "line", changed(b'": ', b": "), "line", JSONL),
    Damage("json-control-character", "line", inserted(b"\x01", b"\x1f"), "line", JSONL),
    Damage("json-byte-order-mark", "line", lambda line, draw: b"\xef\xbb\xbf\xef\xbb\xbf" + line,
           "line", JSONL),
    Damage("json-surrogate", "line", changed(b': "', rb': "\ud83d', rb': "\udc00'), "line", JSONL,
           has_text),
    Damage("json-surrogate-in-key", "line", changed(b"{", rb'{"\ud800": 1, '), "line", JSONL),
    Damage("json-nul", "line", changed(b': "', rb': "\u0000'), "line", JSONL, has_text),
    Damage("json-deep", "line", changed(b"{", b'{"more": ' + DEEP + b", "), "line", JSONL),
    Damage("json-long-number", "line", changed(b"{", b'{"more": ' + b"9" * 5000 + b", "), "line",
           JSONL),
    Damage("json-key-twice", "line", changed(b"{", b'{"a": 1, "a": 2, ', b'{"a": 1, "a": 1, '),
           "line", JSONL),
    Damage("json-array", "text",
           lambda data, draw: b"[" + b",\n".join(data.splitlines()) + b"]\n", ":1", JSONL),
    Damage("json-array-in-a-line", "text",
           lambda data, draw: b"[" + b",".join(data.splitlines()) + b"]\n", ":1", JSONL),
    Damage("json-indented", "text",
           lambda data, draw: json.dumps(json.loads(data.splitlines()[0]), indent=1).encode(),
           ":1", JSONL),
    # Tables
    Damage("fields-more", "line", lambda line, draw: line + b",more", "line", CSV),
    Damage("fields-fewer", "line", lambda line, draw: b"one", "line", TABLES),
    Damage("tabs-more", "line", lambda line, draw: line + b"\tmore", "line", TSV),
    Damage("cut-in-a-row", "line", lambda line, draw: b"the beg", "line", TABLES, last=True),
    Damage("quote-unclosed", "line", lambda line, draw: b'"never ends, ' + line, "line", CSV),
    Damage("quote-inside", "line", lambda line, draw: b'"he said "yes",a', "line", CSV),
    Damage("carriage-return", "line", lambda line, draw: b"one\rtwo" + line, "line", TABLES),
    Damage("header-only", "text", lambda data, draw: data.splitlines()[0] + b"\n", "", TABLES),
    Damage("header-missing", "text", lambda data, draw: data.partition(b"\n")[2], None, TABLES),
    Damage("header-name-twice", "text",
           lambda data, draw: b"text,text,label\na,b,c\n", ":1", CSV),
    Damage("header-name-empty", "text", lambda data, draw: b",text,label\n0,b,c\n", ":1", CSV),
    Damage("header-unlike", "text",
           lambda data, draw: b"x" + data.replace(b",", b",x", data.split(b"\n")[0].count(b",")),
           None, CSV),
    Damage("separator-unlike", "text",
           lambda data, draw: data.replace(b",", draw.choice([b";", b"|"])), None, CSV),
    # Parquet
    Damage("parquet-cut", "stored", some_of, "", PARQUET),
    Damage("parquet-footer", "stored",
           lambda data, draw: data[:-40] + draw.randbytes(40), "", PARQUET),
    Damage("parquet-no-rows", "row", None, "", PARQUET),  # type: ignore[arg-type]
    Damage("parquet-empty", "stored", lambda data, draw: b"", "", PARQUET),
    Damage("parquet-nul", "row", value(TEXT_NAMES, "a\0b"), "row", PARQUET, has_text),
    Damage("parquet-bytes", "row", value(TEXT_NAMES, b"\xff\xfe", b"abc"), "row", PARQUET,
           has_text),
    # One token a line
    Damage("token-without-tag", "line", lambda line, draw: line.split()[0], "line", CONLL),
    Damage("token-with-more", "line", lambda line, draw: line + b" O", "line", CONLL),
    Damage("token-cut", "line", lambda line, draw: line.split()[0][:2], "line", CONLL, last=True),
    Damage("tag-unknown", "line",
           lambda line, draw: line.split()[0] + b" " + draw.choice(
               [b"b-per", b"B_PER", b"0", b"o", b"PER", b"PER-B", b"-", b"B:PER"]),
           "line", CONLL, answers=True),
    Damage("tag-empty", "text", lambda data, draw: data.replace(b" O", b"\t").replace(b" ", b"\t"),
           None, CONLL, answers=True),
    Damage("one-column", "text", lambda data, draw: re.sub(rb" \S+", b"", data), ":1", CONLL,
           answers=True),
    Damage("documents-only", "text", lambda data, draw: b"-DOCSTART- -X- O\n\n" * 2, "", CONLL),
    # Texts
    Damage("text-a-number", "row", value(TEXT_NAMES, 3, 2.5, 10**15), "row", TYPED, has_text),
    Damage("text-a-truth", "row", value(TEXT_NAMES, True, False), "row", TYPED, has_text),
    Damage("text-a-list", "row", value(TEXT_NAMES, ["a"], [["a"]]), "row", TYPED, has_text),
    Damage("text-an-object", "row", value(TEXT_NAMES, {"a": "b"}), "row", TYPED, has_text),
    Damage("tokens-no-text", "row",
           value("tokens", [1, 2, 3, 4, 5], [["a"]], [{"a": 1}]), "row", TYPED,
           of("tagging", form="tokens")),
    Damage("tokens-an-object", "row", value("tokens", {"a": "b"}, 3), "row", TYPED,
           of("tagging", form="tokens")),
    Damage("text-null", "row", value(("question", "context"), None), "row", TYPED,
           of("question_answering")),
    Damage("text-missing", "row", without("question", "context"), "row", JSONL,
           of("question_answering")),
    # Labels
    Damage("label-a-list", "row", value("label", ["good"], [], [["good"]]), "row", TYPED,
           classifies, answers=True),
    Damage("label-an-object", "row", value("label", {"a": 1}), "row", TYPED, classifies,
           answers=True),
    Damage("labels-no-names", "row", value("labels", {"a": 1}, [["food"]], [None], [""],
           [{"a": 1}], "[food", '["food"'), "row", TYPED, of("multilabel"), answers=True),
    Damage("labels-no-list", "row", value("labels", "[food", '["food", ', "[food]"), "row", TABLES,
           of("multilabel"), answers=True),
    Damage("score-no-number", "row", value("score", "abc", "1,5", "five", "3.5.2", "0x10"), "row",
           ROWS, has_score, answers=True),
    Damage("score-not-finite", "row",
           value("score", float("nan"), float("inf"), float("-inf"), 1e39), "row",
           ROWS, has_score, answers=True),
    Damage("score-of-a-type", "row", value("score", [3], {"a": 1}, True, [], "nan", "inf"), "row",
           TYPED, has_score, answers=True),
    Damage("one-label", "text",
           lambda data, draw: b'{"text": "a", "label": "x"}\n{"text": "b", "label": "x"}\n', "",
           JSONL, lambda layout: classifies(layout) and layout.form == "text", answers=True),
    Damage("one-score", "text", lambda data, draw: b"text,score\na,3\nb,3.0\n", "", CSV,
           of("regression"), answers=True),
    Damage("labels-none", "text", lambda data, draw: b"text,labels\na,[]\nb,[]\n", "", CSV,
           of("multilabel"), answers=True),
    Damage("no-row-has-both", "text", lambda data, draw: b"text,label\na,\n,good\n", "", CSV,
           classifies, answers=True),
    Damage("label-column-missing", "text",
           lambda data, draw: re.sub(rb'"(labels?|score|answer|entities|tags)"', b'"x"', data),
           "", JSONL, lambda layout: labelled(layout) and layout.task in (
               "classification", "few_shot", "multilabel", "multiple_choice", "tagging"),
           answers=True),
    # Choices
    Damage("choice-out-of-range", "row", value("label", "99", "-1", "Z", "1.5", "not there", "b"),
           "row", ROWS, of("multiple_choice"), answers=True),
    Damage("choice-of-a-type", "row", value("label", 7, -1, 1.5, ["A"], {"a": 1}, True, [0]),
           "row", TYPED, of("multiple_choice"), answers=True),
    Damage("choices-too-few", "row", value("choices", [], ["one"], ["one", ""], ["a", " "]), "row",
           ROWS, of("multiple_choice", form="list")),
    Damage("choices-no-list", "row", value("choices", "one", "[1", 5, {"text": "x"}, {}, "{}"),
           "row", TYPED, of("multiple_choice", form="list")),
    Damage("choices-no-texts", "row",
           value("choices", [["a"], ["b"]], ["a", None, "b"], [{"a": 1}, {"a": 2}], [True, False]),
           "row", TYPED, of("multiple_choice", form="list")),
    Damage("choices-missing", "row", without("choices"), "row", JSONL,
           of("multiple_choice", form="list")),
    Damage("choice-in-the-middle-empty", "row",
           lambda row, draw: {**row, "choice0": "", "choice2": "a", "choice3": "b"}, "row",
           ROWS, of("multiple_choice", form="numbered")),
    # Spans and tags
    Damage("span-outside", "row", span(end=500), "row", TYPED, of("tagging", form="spans"),
           answers=True),
    Damage("span-before", "row", span(start=-1), "row", TYPED, of("tagging", form="spans"),
           answers=True),
    Damage("span-reversed", "row", span(start=2, end=1), "row", TYPED, of("tagging", form="spans"),
           answers=True),
    Damage("span-empty", "row", span(start=1, end=1), "row", TYPED, of("tagging", form="spans"),
           answers=True),
    Damage("spans-overlap", "row", spans([{"start": 0, "end": 2, "type": "A"},
           {"start": 1, "end": 3, "type": "B"}]), "row", TYPED, of("tagging", form="spans"),
           answers=True),
    Damage("span-of-blanks", "row", lambda row, draw: {**row, "text": "   " + row["text"],
           "entities": [{"start": 0, "end": 2, "type": "PER"}]}, "row", TYPED,
           of("tagging", form="spans"), answers=True),
    Damage("span-of-other-text", "row", span(text="??"), "row", JSONL,
           of("tagging", form="spans"), answers=True),
    Damage("span-without-type", "row", spans([{"start": 0, "end": 2}], [[0, 2]],
           [{"start": 0, "end": 2, "type": ""}], [{"start": 0, "end": 2, "type": 3}]), "row",
           JSONL, of("tagging", form="spans"), answers=True),
    Damage("span-of-a-type", "row", spans([{"start": "0", "end": 2, "type": "A"}],
           [{"start": 0.0, "end": 2, "type": "A"}], [{"start": True, "end": 2, "type": "A"}],
           [3], ["PER"], [None], {"start": 0, "end": 2, "type": "A"}, "PER", 3, [[0, 2, 3]]),
           "row", TYPED, of("tagging", form="spans"), answers=True),
    Damage("tags-of-another-number", "row", value("tags", ["O"], [], ["O"] * 9), "row", TYPED,
           of("tagging", form="tokens"), answers=True),
    Damage("tags-of-no-scheme", "row",
           lambda row, draw: {**row, "tags": [draw.choice(["b-per", "B_PER", "0", "", "o"])]
                              * len(row["tags"])}, "row", TYPED, of("tagging", form="tokens"),
           answers=True),
    Damage("tags-mixed", "row", lambda row, draw: {**row, "tags": ["PER"] + ["B-PER"]
           * (len(row["tags"]) - 1)}, "row", TYPED, of("tagging", form="tokens"), answers=True),
    Damage("tags-of-a-type", "row", lambda row, draw: {**row, "tags": draw.choice(
           ["O O", 3, {"a": 1}, [["O"]] * len(row["tags"]), [1] * len(row["tags"]),
            [None] * len(row["tags"])])}, "row", TYPED, of("tagging", form="tokens"),
           answers=True),
    Damage("tags-in-a-table", "suffix", lambda suffix, draw: draw.choice([".csv", ".tsv.gz"]), None,
           JSONL, of("tagging"), answers=True),
    # Answers
    Damage("answer-elsewhere", "row", value("answer", "not in there", "IN THE BARN "), "row",
           ROWS, of("question_answering", form="short"),
           answers=True),
    Damage("answer-of-a-type", "row", value("answer", 7, True, {"text": 5}, {"start": 3}, [3],
           [["a"]], [None]), "row", TYPED, of("question_answering", form="short"), answers=True),
    Damage("answers-elsewhere", "row", answer(text=[["not in there"], ["nor here"]]), "row",
           WITH_TYPES, of("question_answering", form="hub"), answers=True),
    Damage("answer-start-of-a-type", "row", answer(answer_start=[["3"], [1.5], [True], [[1]]]),
           "row", WITH_TYPES, of("question_answering", form="hub"), answers=True),
    Damage("answer-start-far-off", "row", answer(answer_start=[[900], [-900]]), "row",
           WITH_TYPES, of("question_answering", form="hub"), answers=True),
    Damage("answer-starts-too-many", "row", answer(answer_start=[[1, 2], []]), "row", TYPED,
           of("question_answering", form="hub"), answers=True),
    Damage("answers-no-list", "row", value("answers", 5, "not in there", True,
           {"text": 5, "answer_start": [1]}), "row", WITH_TYPES,
           of("question_answering", form="hub"), answers=True),
    # SQuAD's JSON
    Damage("squad-cut", "line", cut, "line", ONE_JSON, last=True),
    Damage("squad-no-paragraphs", "line", changed(b'"paragraphs"', b'"paragraf"'), "article",
           ONE_JSON),
    Damage("squad-no-context", "line", changed(b'"context"', b'"contxt"'), "article", ONE_JSON),
    Damage("squad-no-questions", "line", changed(b'"qas"', b'"qs"'), "article", ONE_JSON),
    Damage("squad-paragraphs-of-a-type", "line",
           changed(b'"paragraphs": [', b'"paragraphs": 3, "x": [', b'"paragraphs": ["a", '),
           "article", ONE_JSON),
    Damage("squad-article-of-a-type", "line",
           lambda line, draw: draw.choice([b"3", b'"text"', b"null", b"[]"])
           + (b"," if line.endswith(b",") else b""), "article", ONE_JSON),
    Damage("squad-comma", "line", lambda line, draw: line.rstrip(b",") + b",,", "line", ONE_JSON),
    Damage("squad-no-quote", "line", changed(b'": ', b": "), "line", ONE_JSON),
    Damage("squad-deep", "line", changed(b'"title"', b'"more": ' + DEEP + b', "title"'), "line",
           ONE_JSON),
    Damage("squad-name-twice", "line", changed(b'"title"', b'"a": 1, "a": 2, "title"'), "line",
           ONE_JSON),
    Damage("squad-more", "text", lambda data, draw: data + data, None, ONE_JSON),
    Damage("squad-no-data", "text", changed(b'"data"', b'"date"', b'"Data"'), "", ONE_JSON),
    Damage("squad-data-of-a-type", "text",
           lambda data, draw: b'{"data": {"a": 1}}', ":1", ONE_JSON),
    Damage("squad-no-rows", "text",
           lambda data, draw: draw.choice([b'{"data": []}', b"[]",
                                           b'{"data": [{"paragraphs": []}]}']), "", ONE_JSON),
    Damage("squad-text-null", "row", value(("question", "context"), None, 3, ["a"]), None,
           ONE_JSON),
]  # fmt: skip
NOTHING = Damage("nothing", "line", lambda line, draw: line)
LONG = Damage("long-line", "line", lambda line, draw: line[:9] + b"x" * (17 * 2**20), "line")


# What is no fault of a file to learn from, but of one to measure a model on.
UNMEASURED = [
    Damage("label-unknown", "row", value("label", "gud"), "row", (".jsonl", *TABLES), classifies),
    Damage("label-missing", "row", value("label", None, ""), "row", (".jsonl", *TABLES),
           classifies),
    Damage("labels-unknown", "row", value("labels", ["food", "fod"]), "row", TYPED,
           of("multilabel")),
    Damage("score-missing", "row", value("score", None), "row", (".jsonl", *TABLES), has_score),
    Damage("type-unknown", "row", span(type="PLACE"), "row", TYPED,
           of("tagging", form="spans")),
    Damage("entities-missing", "row", value("entities", None), "row", TYPED,
           of("tagging", form="spans")),
    Damage("answer-missing", "row", value("answer", None), "row", TYPED,
           of("question_answering", form="short")),
    Damage("choice-missing", "row", value("label", None, ""), "row", TYPED,
           of("multiple_choice")),
]  # fmt: skip


# What stops nobody: the data report tells it, or there is nothing to tell.
HARMLESS = [
    Damage("left out: no label", "row", value(LABEL_NAMES, None), fits=labelled, formats=TYPED),
    Damage("left out: no label", "row", value(LABEL_NAMES, None), formats=TABLES,
           fits=lambda layout: labelled(layout) and layout.task != "question_answering"),
    Damage("left out: no label", "row", value("label", float("nan")), fits=classifies,
           formats=JSONL),
    Damage("left out: no label", "row", without(*LABEL_NAMES), fits=labelled, formats=JSONL),
    Damage("left out: no text", "row", value("text", "", " ", "\u3000"), fits=of(
           "classification", "few_shot", "multilabel", "regression", form="text"),
           formats=ROWS),
    Damage("left out: no text", "row", without("text"), formats=JSONL, fits=of(
           "classification", "few_shot", "multilabel", "regression", form="text")),
    Damage("left out: no text", "row", value(("anchor", "positive"), None, " "),
           fits=lambda layout: layout.form in ("pairs", "triplets"), formats=TYPED),
    Damage("half empty", "row", value(("text_a", "text_b"), "", " "),
           fits=lambda layout: layout.form == "pair",
           formats=ROWS),
    Damage("half empty", "row", without("text_a", "text_b"),
           fits=lambda layout: layout.form == "pair", formats=JSONL),
    Damage("another label", "row", value("label", "gud"), fits=classifies),
    Damage("row twice", "line", lambda line, draw: line + b"\n" + line,
           formats=(".jsonl", ".csv", ".tsv")),
    Damage("nothing", "line", lambda line, draw: line + b"\n\n \n"[: draw.choice([1, 2])],
           formats=(".jsonl", ".csv", ".tsv"), fits=lambda layout: layout.form != "tokens"),
    Damage("nothing", "line", changed(b"{", b'{"more": [1], ', b'{"\xc3\xa9": null, '),
           formats=JSONL),
    Damage("nothing", "text", lambda data, draw: data.replace(b"\n", b"\r\n")),
    Damage("nothing", "text", lambda data, draw: b"\xef\xbb\xbf" + data),
    Damage("nothing", "text", lambda data, draw: data.rstrip(b"\n")),
]  # fmt: skip


@dataclass(frozen=True)
class Case:
    damage: Damage
    layout: Layout
    suffix: str
    compression: str
    seed: str

    def __str__(self) -> str:
        return f"{self.damage.name} {self.layout} {self.suffix}{self.compression} {self.seed}"

    def write(self, folder: Path) -> tuple[Path, str | None]:
        """The damaged file, and what follows its name where the damage is told."""
        damage, suffix = self.damage, self.suffix
        draw = random.Random(self.seed)
        rows = [copy.deepcopy(row) for row in self.layout.rows]
        number = draw.randrange(1, len(rows))
        place = damage.place
        if damage.at == "row":
            rows, number = self._rows(rows, number)
        if suffix == ".parquet":
            data = parquet(rows) if rows else _no_rows(self.layout)
            where = f":{number + 1}"
        else:
            lines, starts = lines_of(self.layout, rows, suffix)
            line = starts[number]
            if damage.at == "line":
                line = draw.choice(range(line, line + self._height(number)))
                done = damage.do(lines[line - 1].encode(), draw)
            else:
                done = lines[line - 1].encode()
            ends = [] if damage.last else [*lines[line:], ""]
            data = b"\n".join([*map(str.encode, lines[: line - 1]), done, *map(str.encode, ends)])
            where = f":{line}"
            if damage.at == "row" and suffix == ".json":
                where = f":q{number + 1}"
        if place == "article":
            place = f":article {number + 1}"
        elif place in ("row", "line"):
            place = where
        if damage.at == "text":
            data = damage.do(data, draw)
        data = packed(data, self.compression)
        if damage.at == "stored":
            data = damage.do(data, draw)
        name = suffix + self.compression
        if damage.at == "suffix":
            name = damage.do(name, draw)
        path = folder / f"rows{name}"
        path.write_bytes(data)
        return path, place

    def _height(self, number: int) -> int:
        return len(self.layout.rows[number]["tokens"]) if self.suffix == ".conll" else 1

    def _rows(self, rows: list[Row], number: int) -> tuple[list[Row], int]:
        """The rows of which one is damaged; all of them where their types must be alike."""
        damage = self.damage
        if damage.name == "parquet-no-rows":
            return [], 0

        def done(row: Row) -> Row:
            changed: Row = damage.do(row, random.Random(self.seed))
            return changed

        one = [*rows[:number], done(rows[number]), *rows[number + 1 :]]
        if self.suffix != ".parquet":
            return one, number
        try:
            if pa.Table.from_pylist(one).schema == pa.Table.from_pylist(rows).schema:
                return one, number
        except (pa.ArrowException, TypeError, ValueError):
            pass
        return [done(row) for row in rows], 0


def _no_rows(layout: Layout) -> bytes:
    target = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(list(layout.rows)).slice(0, 0), target)
    return target.getvalue()


def combinations(damages: Sequence[Damage]) -> dict[Damage, list[tuple[Layout, str]]]:
    return {
        damage: [
            (layout, suffix)
            for layout in LAYOUTS
            for suffix in layout.formats
            if suffix in damage.formats and damage.fits(layout)
        ]
        for damage in damages
    }


@cache
def cases() -> tuple[Case, ...]:
    """Every damage in turn, each with another layout and format than before."""
    draw = random.Random(5)
    assert all(combinations(DAMAGES).values()), "a damage fits nothing"
    waiting = {damage: cycle(draw.sample(places, len(places)))
               for damage, places in combinations(DAMAGES).items()}  # fmt: skip
    found = []
    while len(found) < FILES:
        for damage, places in waiting.items():
            layout, suffix = next(places)
            compressions = ["", "", ".gz", ".xz", ".zst"]
            if damage.packed:
                compressions = [".gz", ".xz"]
            if (
                suffix == ".parquet"
                or damage.at == "suffix"
                or (damage.at == "stored" and not damage.packed)
            ):
                compressions = [""]
            found.append(Case(damage, layout, suffix, draw.choice(compressions), str(len(found))))
    return tuple(found[:FILES])


# Commands ---------------------------------------------------------------------------------------


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty current folder."""
    monkeypatch.chdir(tmp_path)
    before = signal.getsignal(signal.SIGTERM)
    yield tmp_path
    signal.signal(signal.SIGTERM, before)


@pytest.fixture(autouse=True)
def parser(monkeypatch: pytest.MonkeyPatch) -> None:
    """The parser is built once, not for each of a thousand commands."""
    monkeypatch.setattr(typer.main, "get_command", cache(typer.main.get_command))


def below(*folders: Path) -> dict[str, bytes]:
    """Every file with its content."""
    return {
        str(path): path.read_bytes()
        for folder in folders
        for path in folder.rglob("*")
        if path.is_file()
    }


def run(arguments: Sequence[str], capsys: pytest.CaptureFixture[str]) -> tuple[object, str, str]:
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    said = capsys.readouterr()
    return ended.value.code, said.out, said.err


def faults(code: object, said: str, file: Path, place: str | None) -> Iterator[str]:
    """What is wrong with the way in which a file was refused."""
    if code != 3:
        yield f"exit code {code}"
    if "Traceback" in said or "unforeseen" in said or len(said.splitlines()) > SCREEN:
        yield "not one short error"
    found = re.search(r"^Error: (.+)\n  where: (.+)\n  fix:   (.+)$", said, re.MULTILINE)
    if not found:
        yield "no error with where and fix"
        return
    where = found[2]
    wanted = str(file) + (place or "")
    right = where.startswith(wanted) if place is None else (
        where == wanted or (place and re.match(re.escape(wanted) + "[:,]", where))
    )  # fmt: skip
    if not right:
        yield f"where should be {wanted}"


def refused(
    cases: Sequence[Case],
    command: Callable[[Case, Path], Sequence[str]],
    here: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Make sure that a command refuses every file, says where, and leaves nothing."""
    cache = Path(os.environ["BERT_CACHE"])
    wrong = []
    before = below(here, cache)
    for case in cases:
        file, place = case.write(Path())
        content = file.read_bytes()
        code, out, said = run(command(case, file), capsys)
        found = list(faults(code, said, file, place))
        if out:
            found.append(f"printed {out[:300]}")
        if file.read_bytes() != content:
            found.append("changed the file")
        file.unlink()
        after = below(here, cache)
        if after != before:
            found.append(f"left {sorted(after.keys() - before.keys())}")
        wrong += [f"{case}: {', '.join(found)}\n{said}"] if found else []
    assert not wrong, f"{len(wrong)} of {len(cases)}:\n" + "\n".join(wrong)


@pytest.mark.parametrize("task", TASKS)
def test_malformed_files_are_refused(
    task: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = [case for case in cases() if case.layout.task == task]
    refused(mine, lambda case, file: ["check", str(file), "--task", task], here, capsys)


@pytest.mark.parametrize("task", TASKS)
def test_harmless_damages_are_reported(
    task: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def report(file: Path) -> dict[str, Any]:
        code, out, said = run(["check", str(file), "--task", task, "--json"], capsys)
        assert (code, said) == (0, ""), said
        found: dict[str, Any] = json.loads(out)
        return found

    for damage, places in combinations(HARMLESS).items():
        for layout, suffix in places:
            if layout.task != task:
                continue
            case = Case(damage, layout, suffix, "", "3")
            file, place = case.write(Path())
            where = f"{file}{place}"
            told = report(file)
            good = report(Case(NOTHING, layout, suffix, "", "3").write(Path())[0])
            if damage.name.startswith("left out: "):
                reason = damage.name.removeprefix("left out: ")
                assert told["dropped"] == {reason: {"rows": 1, "first": [where]}}, case
                assert (told["rows"], told["kept"]) == (good["rows"], good["kept"] - 1)
                continue
            assert told["dropped"] == good["dropped"] == {}
            if damage.name == "half empty":
                assert told["half_empty"] == {"rows": 1, "first": [where]}, case
            elif damage.name == "another label":
                assert told["labels"]["gud"] == 1, case
            elif damage.name == "row twice":
                again = told["duplicates"] + told["contradictions"]
                assert again == good["duplicates"] + good["contradictions"] + 1, case
            else:
                assert told == good, case


def test_every_format_and_task_is_damaged() -> None:
    found = cases()
    assert len(found) == len({(case.damage.name, case.seed) for case in found}) == FILES
    assert {str(case.layout) for case in found} == {str(layout) for layout in LAYOUTS}
    files = {case.suffix + case.compression for case in found}
    packed = {suffix + end for suffix in TEXT_FILES for end in ("", ".gz", ".xz", ".zst")}
    assert files == {".parquet", *packed}


def test_lines_longer_than_memory_allows(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    long = [
        Case(LONG, layout, suffix, compression, "1")
        for layout, suffix, compression in (
            (LAYOUTS[0], ".jsonl", ".gz"), (LAYOUTS[0], ".csv", ""), (TOKENS, ".conll", "")
        )
    ]  # fmt: skip
    refused(long, lambda case, file: ["check", str(file), "--task", case.layout.task], here, capsys)


def sample(count: int, wanted: Callable[[Case], bool]) -> list[Case]:
    """Cases of different damages, from all tasks in turn."""
    waiting = {task: [case for case in cases() if case.layout.task == task and wanted(case)]
               for task in TASKS}  # fmt: skip
    found: list[Case] = []
    for task in cycle(TASKS):
        done = {case.damage for case in found}
        fresh = [case for case in waiting[task] if case.damage not in done]
        found.append((fresh or waiting[task])[0])
        waiting[task].remove(found[-1])
        if len(found) == count:
            return found
    raise AssertionError


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Layout], Path]:
    """A tiny model for each layout, as if it had been fine-tuned on its good rows."""
    folder = tmp_path_factory.mktemp("models")
    texts = [json.dumps(row, ensure_ascii=False) for layout in LAYOUTS for row in layout.rows]
    tokenizer = train_wordpiece(lambda: texts, vocab_size=300, lowercase=True)
    config = FAMILY.size("tiny", vocab_size=tokenizer.vocab_size, pad_token_id=tokenizer.pad_id)

    @cache
    def model(layout: Layout) -> Path:
        kind = load_task(layout.task)
        suffix = layout.formats[0]
        file = folder / f"{layout}{suffix}"
        file.write_text("\n".join(lines_of(layout, layout.rows, suffix)[0]), "utf-8")
        labels = kind.labels_of(list(kind.read(file, [], None, labelled=True)), "")
        torch.manual_seed(0)
        network = FAMILY.build(kind.kind, config, max(len(labels), 1))
        texts_per_row = 2 if layout.form == "pair" else 1
        facts = {"task": kind.name, "texts_per_row": texts_per_row, "max_length": 64}
        checkpoint = Checkpoint(network, kind.kind, FAMILY, labels, tokenizer, facts)
        kind(checkpoint)  # which may change the network
        write_model(folder / str(layout), checkpoint)
        return folder / str(layout)

    # Rows before the damage have their answers by then.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bert.bulk.TEXTS_AT_ONCE", 4)
        yield model


Models = Callable[[Layout], Path]


def test_predict_refuses_and_leaves_no_part(
    here: Path, models: Models, capsys: pytest.CaptureFixture[str]
) -> None:
    refused(
        sample(60, lambda case: not case.damage.answers),
        lambda case, file: [
            "predict",
            str(models(case.layout)),
            str(file),
            "-o",
            "out.jsonl",
            "--strict",
        ],
        here,
        capsys,
    )


def test_evaluate_refuses_and_leaves_no_part(
    here: Path, models: Models, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = sample(60, lambda case: not (case.damage.answers and case.damage.at == "text"))
    mine += [
        Case(damage, layout, suffix, "", "7")
        for damage, places in combinations(UNMEASURED).items()
        for layout, suffix in places
    ]
    refused(
        mine, lambda case, file: ["evaluate", str(models(case.layout)), str(file)], here, capsys
    )


@pytest.mark.parametrize("role", ["train", "dev", "test"])
def test_finetune_refuses_and_leaves_no_run(
    role: str, here: Path, models: Models, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file to measure on is refused before anything is learnt."""

    def command(case: Case, file: Path) -> list[str]:
        base = ["--model", str(models(LAYOUTS[0])), "--task", case.layout.task, "--out", "run"]
        good = str(models(case.layout)) + case.layout.formats[0]
        files = [str(file)] if role == "train" else [good, f"--{role}", str(file)]
        return ["finetune", *files, *base]

    whole = sample(30, lambda case: role == "train" or case.damage.at in ("row", "line"))
    refused(whole, command, here, capsys)
