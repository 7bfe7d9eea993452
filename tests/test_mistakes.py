"""The mistakes people make: each gets one screen that says what, where and how to fix it."""

from __future__ import annotations

import gzip
import json
import math
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from bert.checkpoint import Checkpoint, write_model
from bert.cli import main
from bert.families.family import load_family
from bert.model.config import BertConfig
from bert.text.tokenizer import train_wordpiece
from bert.training.state import latest_checkpoint

SCREEN = (15, 100)  # lines, columns
SENTENCES = [
    "A warm and funny film, one of the best of the year.",
    "Nobody laughed, and the story goes nowhere.",
    "The cook adds salt and water to the bread.",
    "In the morning the train leaves for the north.",
    "The best film of the year leaves nobody cold.",
    "Salt and water, and the bread of the morning.",
    "The story of the train is warm and funny.",
    "A cold morning in the north of the year.",
]
ROWS = "text,label\n" + "".join(
    f'"{text}",{"good" if i % 2 else "bad"}\n' for i, text in enumerate(SENTENCES)
)
CORPUS = "\n\n".join("\n".join(SENTENCES[i:] + SENTENCES[:i]) for i in range(8)) + "\n"
LONG = "the film of the year " * 300
PAIRS = "text_a,text_b,label\n" + "".join(
    f"{text} {i},{text},{label}\n"
    for i, (text, label) in enumerate([("fine", "good"), ("dull", "bad")] * 4 + [(LONG, "bad")] * 2)
)


@dataclass
class Mistake:
    """A command, what is there when it is given, and what must be said.

    Args:
        name: of the case.
        command: without ``bert``.
        code: the exit code.
        what: a pattern found in the message.
        where: text found in the line where, or None where there is no place to name.
        fix: a pattern found in the line fix.
        files: name -> content in the current folder.
        prepare: does in the current folder what ``files`` cannot.
        notice: the command goes on; what, where and fix are those of a note.
        writes: the files that may be new or changed afterwards, as a pattern.
    """

    name: str
    command: str
    code: int
    what: str
    where: str | None
    fix: str | None
    files: dict[str, str | bytes] = field(default_factory=dict)
    prepare: Callable[[Path], object] | None = None
    notice: bool = False
    writes: str | None = None


def finetune(file: str = "w/rows.csv", rest: str = "", *, model: str = "w/pretrained") -> str:
    return f"finetune {file} --model {model} --out run epochs=1 {rest}"


def pretrain(corpus: str = "w/corpus.txt", rest: str = "") -> str:
    return f"pretrain {corpus} --size tiny --steps 1 --out run vocab_size=200 {rest}"


def copied(name: str, change: Callable[[Path], object]) -> Callable[[Path], object]:
    """Copy a model or run of the world to ``bad`` and damage it."""

    def prepare(here: Path) -> None:
        shutil.copytree(here / "w" / name, here / "bad")
        change(here / "bad")

    return prepare


def cut_in_half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def changed_json(name: str, **values: Any) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        path = folder / name
        path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | values), "utf-8")

    return change


def only_a_pickle(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x02}q\x00.")


def larger_vocabulary(folder: Path) -> None:
    words = " ".join(f"w{i} w{i}" for i in range(300))
    train_wordpiece(lambda: [words], vocab_size=900, lowercase=True).save(folder)


def checkpoints(folder: Path) -> list[Path]:
    return sorted((folder / "checkpoints").glob("step-*"))


def all_checkpoints_cut(folder: Path) -> None:
    for path in checkpoints(folder):
        cut_in_half(path / "tensors")


def no_tokenizer(folder: Path) -> None:
    for path in [*folder.glob("tokenizer*"), folder / "vocab.txt"]:
        path.unlink()


def zipped(here: Path) -> None:
    for name in ("corpus.docx", "corpus.zip", "corpus.txt"):
        with zipfile.ZipFile(here / name, "w") as file:
            file.writestr("word/document.xml", "<text>" + "\n".join(SENTENCES) + "</text>")


def in_use(here: Path) -> None:
    (here / "run").mkdir()
    (here / "run" / "thesis.txt").write_text("years of work", "utf-8")


USAGE = [
    Mistake("no-train", "finetune", 2, "Missing argument 'train'", None, "bert finetune --help"),
    Mistake(
        "no-model-option", "finetune w/rows.csv", 2, "Missing option '--model'", None,
        "bert finetune --help",
    ),
    Mistake("no-corpus-argument", "pretrain", 2, "Missing argument", None, "bert pretrain --help"),
    Mistake("only-settings", "pretrain steps=3", 2, "No corpus is given", None, "name a file"),
    Mistake("empty-name", "pretrain '' --steps 1 --out run", 2, "corpus is empty", None, "unset"),
    Mistake("misspelt-version", "--verison", 2, "no option --verison", None, "--version"),
    Mistake("unknown-command", "pretrian x.txt", 2, "pretrian", None, r"did you mean pretrain\?"),
    Mistake("foreign-command", "translate x.txt", 2, "translate", None, r"bert --help"),
    Mistake(
        "setting-as-option", finetune(rest="--epochs 3"), 2, "no option --epochs", None,
        "write it as a setting: epochs=3$",
    ),
    Mistake(
        "setting-as-option-with-equals", finetune(rest="--learning-rate=1e-4"), 2,
        "no option --learning-rate", None, "write it as a setting: learning_rate=1e-4$",
    ),
    Mistake(
        "setting-as-short-option", finetune(rest="-batch_size 4"), 2, "-batch_size", None,
        "write it as a setting: batch_size=4$",
    ),
    Mistake(
        "setting-as-flag", pretrain(rest="--deterministic"), 2, "no option", None,
        "write it as a setting: deterministic=true$",
    ),
    Mistake(
        "misspelt-setting-as-option", pretrain(rest="--batchsize 8"), 2, "no option", None,
        "write it as a setting: batch_size=8$",
    ),
    Mistake(
        "misspelt-option", "finetune w/rows.csv --modle w/pretrained", 2,
        "no option --modle", None, r"did you mean --model\?",
    ),
    Mistake(
        "option-of-nothing", "predict w/classifier w/rows.csv -o out.jsonl --frobnicate", 2,
        "no option --frobnicate", None, "bert predict --help",
    ),
    Mistake(
        "no-value-of-option", "finetune w/rows.csv --model", 2, "--model", None,
        "bert finetune --help",
    ),
    Mistake("stray-word", finetune(rest="fast"), 2, "'fast' is neither", "fast", "key=value"),
    Mistake("misspelt-setting", finetune(rest="epoch=3"), 2, "'epoch'", "", "epochs"),
    Mistake("setting-of-nothing", finetune(rest="zzz=3"), 2, "'zzz'", "", "epochs, batch_size"),
    Mistake("setting-of-wrong-type", finetune(rest="seed=many"), 2, "seed: .*many", "", "seed=1"),
    Mistake("fraction-of-a-batch", finetune(rest="batch_size=2.5"), 2, "2.5", "", "batch_size=32"),
    Mistake("setting-out-of-range", finetune(rest="warmup=7"), 2, "warmup: .*7", "", "warmup=0.1"),
    Mistake("not-a-number", finetune(rest="warmup=nan"), 2, "warmup", "", "warmup=0.1"),
    Mistake("setting-of-no-choice", finetune(rest="precision=fp8"), 2, "precision: .*fp8", "", ""),
    Mistake("setting-without-value", finetune(rest="seed="), 2, "seed", "seed=", "seed=1"),
    Mistake("setting-no-yaml", finetune(rest="'text=[a'"), 2, "text cannot be read", "text=",
            "quote"),
    Mistake("key-twice", finetune(rest="epochs=3"), 2, "epochs is given twice", "epochs=3",
            "only once"),
    Mistake(
        "option-and-setting", finetune(rest="label=x --label label"), 2, "label is given twice",
        "label=x", "only once",
    ),
    Mistake("size-of-none", "pretrain w/corpus.txt --steps 1 --out run size=huge", 2,
            "no size 'huge'", "size=huge", "mini"),
    Mistake("option-size-of-none", "pretrain w/corpus.txt --size huge --steps 1", 2, "huge", "",
            "mini"),
    Mistake("no-budget", "pretrain w/corpus.txt --out run", 2, "steps|minutes", None, "--minutes"),
    Mistake(
        "two-budgets", pretrain(rest="--minutes 3"), 2, "steps|minutes", None, "--minutes|--steps"
    ),
    Mistake("no-steps", "pretrain w/corpus.txt --steps 0 --out run", 2, "steps: .*0",
            "--steps", "another"),
    Mistake(
        "negative-minutes", "pretrain w/corpus.txt --minutes -1 --out run", 2, "minutes: .*-1",
        "--minutes", "another",
    ),
    Mistake(
        "steps-in-words", "pretrain w/corpus.txt --steps many", 2, "--steps.*got 'many'", None,
        "bert pretrain --help",
    ),
    Mistake(
        "config-missing", finetune(rest="--config no.yaml"), 2, "cannot be read: No such file",
        "no.yaml", "check the name",
    ),
    Mistake(
        "config-broken", finetune(rest="--config c.yaml"), 2, "is no YAML", "c.yaml:3:1", "YAML",
        {"c.yaml": "seed: 2\nwarmup: [1\n"},
    ),
    Mistake(
        "config-no-table", finetune(rest="--config c.yaml"), 2, "not a table", "c.yaml",
        "seed: 1", {"c.yaml": "- 3\n"},
    ),
    Mistake(
        "config-misspelt", finetune(rest="--config c.yaml"), 2, "'warm_up'", "c.yaml", "warmup",
        {"c.yaml": "warm_up: 0.1\n"},
    ),
    Mistake(
        "task-of-none", finetune(rest="--task translation"), 2, "translation", "",
        "classification",
    ),
    Mistake("check-task-of-none", "check w/rows.csv --task translation", 2, "translation", None,
            "classification"),
]  # fmt: skip

CORPORA = [
    Mistake(
        "no-corpus", pretrain("w/corups.txt"), 3, "There is no file corups.txt", "w/corups.txt",
        r"did you mean w/corpus.txt\?",
    ),
    Mistake("no-corpus-folder", pretrain("a/b"), 3, "no folder a", "a/b", "ls"),
    Mistake("empty-corpus", pretrain("c.txt"), 3, "no text|no words", "c.txt", "text",
            {"c.txt": ""}),
    Mistake("blank-corpus", pretrain("c.txt"), 3, "no text|no words", "c.txt", "text",
            {"c.txt": "\n \n"}),
    Mistake("tiny-corpus", pretrain("c.txt"), 3, "only 6 tokens", None, "more text",
            {"c.txt": "Hello.\n"}),
    Mistake(
        "folder-without-text", pretrain("."), 3, "no text files", ".", "name a file",
        {"a.bin": b"\0", "b.md": "# title"},
    ),
    Mistake(
        "latin-1", pretrain("c.txt"), 3, "probably Latin-1", "c.txt:2:4", "iconv -f LATIN1",
        {"c.txt": b"word\ncaf\xe9 cr\xe8me\n"},
    ),
    Mistake(
        "gb18030", pretrain("c.txt"), 3, "probably GB18030", "c.txt:1:1", "iconv -f GB18030",
        {"c.txt": "这部电影很好看，我们都喜欢。\n".encode("gb18030")},
    ),
    Mistake(
        "utf-16", pretrain("c.txt"), 3, "probably UTF-16", "c.txt:1:1", "iconv -f UTF-16",
        {"c.txt": CORPUS.encode("utf-16")},
    ),
    Mistake("nul", pretrain("c.txt"), 3, "NUL", "c.txt:1:5", "UTF-8", {"c.txt": b"word\0word\n"}),
    Mistake(
        "cut-gz", pretrain("c.txt.gz"), 3, "cut short", "c.txt.gz", "gzip -t c.txt.gz",
        {"c.txt.gz": gzip.compress(CORPUS.encode())[:-20]},
    ),
    Mistake(
        "no-gz", pretrain("c.txt.gz"), 3, "damaged or not gzip", "c.txt.gz", "gzip -t",
        {"c.txt.gz": CORPUS},
    ),
    Mistake("docx", pretrain("corpus.docx"), 3, r"\.docx are not read", "corpus.docx",
            "save .*text", prepare=zipped),
    Mistake("zip", pretrain("corpus.zip"), 3, r"\.zip are not read", "corpus.zip", "unzip",
            prepare=zipped),
    Mistake("zip-named-txt", pretrain("corpus.txt"), 3, "not text but a zip", "corpus.txt:",
            "save it as text", prepare=zipped),
    Mistake(
        "corpus-without-column", pretrain("c.jsonl"), 3, 'no column "text".*body', "c.jsonl:1",
        "text_column=body", {"c.jsonl": json.dumps({"body": CORPUS}) + "\n"},
    ),
    Mistake(
        "tokenizer-corpus-without-column", "tokenizer c.jsonl --out out", 3, 'no column "text"',
        "c.jsonl:1", "text_column=body", {"c.jsonl": json.dumps({"body": CORPUS}) + "\n"},
    ),
    Mistake(
        "tokenizer-missing", pretrain(rest="--tokenizer no"), 4, "no (folder|tokenizer)", "no",
        "bert tokenizer",
    ),
    Mistake(
        "tokenizer-folder-empty", pretrain(rest="--tokenizer folder"), 4, "no tokenizer", "folder",
        "bert tokenizer", {"folder/a.txt": "a"},
    ),
    Mistake(
        "tokenizer-broken", pretrain(rest="--tokenizer folder"), 4, "cannot be read", "folder",
        "copy", {"folder/tokenizer.json": "{"},
    ),
    Mistake(
        "tokenizer-vocabulary-of-five", "tokenizer w/corpus.txt --out out --vocab-size 5", 2,
        "vocab_size: .*5", "--vocab-size", "vocab_size=30522",
    ),
    Mistake("vocabulary-of-all-words", f"tokenizer w/corpus.txt --out out vocab_size={10**30}", 2,
            "vocab_size", "vocab_size=1", "vocab_size=30522"),
    Mistake("seed-too-large", finetune(rest=f"seed={10**30}"), 2, "seed: ", "seed=1", "seed=1"),
    Mistake("seed-too-large-pretrain", pretrain(rest=f"seed={10**30}"), 2, "seed: ", "seed=1",
            "seed=1"),
    Mistake("vocabulary-of-five", "pretrain w/corpus.txt --steps 1 --out run vocab_size=5", 2,
            "vocab_size: .*5", "", "vocab_size=30522"),
    Mistake("tokenizer-missing-corpus", "tokenizer no.txt --out out", 3, "no file no.txt",
            "no.txt", "ls"),
    Mistake("tokenizer-setting", "tokenizer w/corpus.txt --out out vocabulary_size=9", 2,
            "'vocabulary_size'", "vocabulary_size=9", "vocab_size"),
    Mistake("tokenizer-in-use", "tokenizer w/corpus.txt --out run", 2, "in use", "run",
            "another --out", prepare=in_use),
]  # fmt: skip

TABLES = [
    Mistake(
        "no-file", finetune("w/row.csv"), 3, "no file row.csv", "w/row.csv",
        r"did you mean w/rows.csv\?",
    ),
    Mistake("folder-as-file", finetune("folder.csv"), 3, "folder", "folder.csv", "name one file",
            {"folder.csv/a.csv": ROWS}),
    Mistake("folder-without-suffix", finetune("folder"), 3, "folder", "folder", "name one file",
            {"folder/a.csv": ROWS}),
    Mistake("wrong-text-column", finetune(rest="--text txt"), 3, "no column 'txt'.*text, label",
            "w/rows.csv", "--text text"),
    Mistake("wrong-label-column", finetune(rest="--label lable"), 3, "no column 'lable'",
            "w/rows.csv", "--label label"),
    Mistake("three-texts", finetune(rest="--text text --text label --text text"), 2, "one text",
            None, "--text once or twice"),
    Mistake("no-text-column", finetune("a.csv"), 3, "No column is called text", "a.csv",
            "--text COLUMN", {"a.csv": "review,label\nfine,1\nbad,0\n"}),
    Mistake("no-label-column", finetune("a.csv"), 3, "no column 'label'", "a.csv",
            "--label COLUMN", {"a.csv": "text,sentiment\nfine,1\nbad,0\n"}),
    Mistake("one-label", finetune("a.csv"), 3, "same label 'good'", "a.csv", "--label COLUMN",
            {"a.csv": "text,label\nfine,good\nwell,good\n"}),
    Mistake("labels-empty", finetune("a.csv"), 3, "None of the 2 rows", "a.csv", "--label",
            {"a.csv": "text,label\nfine,\nwell,\n"}),
    Mistake("texts-as-labels", finetune(rest="--label text"), 3, "too few", "w/rows.csv",
            "--label COLUMN"),
    Mistake("one-row-a-label", finetune("a.csv"), 3, "too few", "a.csv", "--dev",
            {"a.csv": "text,label\nfine,1\nwell,0\n"}),
    Mistake("label-outside-dev", finetune(rest="--dev d.csv"), 3, "'ugly'.*bad, good", "d.csv:3",
            "correct the label", {"d.csv": "text,label\nfine,good\nso,ugly\n"}),
    Mistake("dev-without-column", finetune(rest="--dev d.csv"), 3, "no column", "d.csv", "",
            {"d.csv": "review,label\nfine,good\n"}),
    Mistake("no-dev", finetune(rest="--dev d.csv"), 3, "no file d.csv", "d.csv", "ls"),
    Mistake("empty-csv", finetune("a.csv"), 3, "no rows", "a.csv", "give a file", {"a.csv": ""}),
    Mistake("header-only", finetune("a.csv"), 3, "no rows", "a.csv", "give a file",
            {"a.csv": "text,label\n"}),
    Mistake("ragged-csv", finetune("a.csv"), 3, "Expected 2 fields.*found 3", "a.csv:3", "comma",
            {"a.csv": "text,label\nfine,1\nwell, well,0\n"}),
    Mistake("semicolons", finetune("a.csv"), 3, "columns are text;label", "a.csv", "comma",
            {"a.csv": "text;label\nfine;1\n"}),
    Mistake("unclosed-quote", finetune("a.csv"), 3, "never closed", "a.csv:2", "quote twice",
            {"a.csv": 'text,label\n"fine,1\nwell,0\n'}),
    Mistake("columns-twice", finetune("a.csv"), 3, "more than once: text", "a.csv:1", "own",
            {"a.csv": "text,text,label\na,b,1\n"}),
    Mistake("broken-json", finetune("a.jsonl"), 3, "Not valid JSON", "a.jsonl:2:", "object",
            {"a.jsonl": '{"text": "a", "label": 1}\n{"text": "b", label: 1}\n'}),
    Mistake("json-array", finetune("a.jsonl"), 3, "array|JSON", "a.jsonl:1", "jq",
            {"a.jsonl": '[{"text": "a", "label": 1},\n{"text": "b", "label": 1}]\n'}),
    Mistake("json-file", finetune("a.json"), 3, r"\.json are not read", "a.json", "jq",
            {"a.json": '[{"text": "a", "label": 1}]\n'}),
    Mistake("lone-surrogate", finetune("a.jsonl"), 3, "surrogate", "a.jsonl:1", "source",
            {"a.jsonl": '{"text": "a \\ud83d", "label": 1}\n'}),
    Mistake("number-as-text", finetune("a.jsonl"), 3, "holds 3, which is not text", "a.jsonl:1",
            "--text", {"a.jsonl": '{"text": 3, "label": 1}\n'}),
    Mistake("list-as-label", finetune("a.jsonl"), 3, "not a single name", "a.jsonl:1",
            "one label a row", {"a.jsonl": '{"text": "a", "label": [1, 2]}\n'}),
    Mistake("no-parquet", finetune("a.parquet"), 3, "Parquet", "a.parquet", "again",
            {"a.parquet": ROWS}),
    Mistake("excel", finetune("a.xlsx"), 3, r"\.xlsx are not read", "a.xlsx", "CSV UTF-8",
            {"a.xlsx": b"PK\x03\x04"}),
    Mistake("txt-as-rows", finetune("w/corpus.txt"), 3, "no columns", "w/corpus.txt",
            "named columns"),
    Mistake("latin-1-rows", finetune("a.csv"), 3, "Latin-1", "a.csv:2:4", "iconv",
            {"a.csv": b"text,label\ncaf\xe9,1\n"}),
    Mistake("check-one-label", "check a.csv", 3, "same label", "a.csv", "--label",
            {"a.csv": "text,label\nfine,good\nwell,good\n"}),
    Mistake("check-wrong-column", "check w/rows.csv --text body", 3, "no column 'body'",
            "w/rows.csv", "--text"),
]  # fmt: skip

RUNS = [
    Mistake("run-in-use", "finetune w/rows.csv --model w/pretrained --out bad", 2, "not empty",
            "bad", "--resume.*--overwrite", prepare=copied("run", lambda folder: None)),
    Mistake("foreign-folder", finetune(), 2, "not empty", "run", "another --out", prepare=in_use),
    Mistake("foreign-folder-overwrite", finetune(rest="--overwrite"), 2, "not empty", "run",
            "left alone", prepare=in_use),
    Mistake("foreign-folder-pretrain", pretrain(rest="--overwrite"), 2, "not empty", "run",
            "left alone", prepare=in_use),
    Mistake("foreign-folder-resume", finetune(rest="--resume"), 2, "no run to resume", "run",
            "--out|leave out --resume", prepare=in_use),
    Mistake("foreign-folder-demo", "demo --out run", 2, "something else|not empty", "run", "--out",
            prepare=in_use),
    Mistake("out-is-a-file", finetune(), 2, "a file, not a folder", "run", "--out",
            {"run": "text"}),
    Mistake("out-below-a-file", "finetune w/rows.csv --model w/pretrained --out run/a", 2,
            "file|folder|directory", "run", "--out", {"run": "text"}),
    Mistake("resume-and-overwrite", finetune(rest="--resume --overwrite"), 2,
            "--resume.*--overwrite", None, "one of"),
    Mistake("resume-nothing", finetune(rest="--resume"), 2, "no run to resume", "run",
            "leave out --resume"),
    Mistake("resume-without-out", "finetune w/rows.csv --model w/pretrained --resume", 2,
            "--resume needs", None, "--out"),
    Mistake("resume-other-settings",
            "finetune w/rows.csv --model w/pretrained --out bad --resume epochs=9", 2,
            "epochs=1, not 9", "bad/config.yaml", "command.txt",
            prepare=copied("run", lambda folder: None)),
    Mistake("all-checkpoints-damaged", "finetune RUN --resume", 4, "Every checkpoint",
            "bad/checkpoints", "--overwrite", writes="bad/command.txt|bad/env.json",
            prepare=copied("run", all_checkpoints_cut)),
    Mistake("checkpoint-damaged", "finetune RUN --resume", 0, "damaged checkpoint", "bad/checkp",
            None, notice=True, writes="bad/.*",
            prepare=copied("run", lambda folder: cut_in_half(checkpoints(folder)[-1] / "tensors"))),
    Mistake("long-pairs-finetune", finetune("a.csv"), 0, "2 pairs both texts are long", None,
            "shorten the texts", {"a.csv": PAIRS}, notice=True, writes="run"),
]  # fmt: skip

MODELS = [
    Mistake("no-model", finetune(model="./no"), 4, "no such model directory", "no", "hub id"),
    Mistake("model-is-a-file", finetune(model="w/rows.csv"), 4, "no such model", "w/rows.csv",
            "directory"),
    Mistake("folder-without-model", finetune(model="folder"), 4, "no config.json", "folder",
            "folder of a run", {"folder/a": "a"}),
    Mistake("run-not-finished", "predict bad w/rows.csv -o out.jsonl", 4, "no config.json", "bad",
            "--resume", prepare=copied("run", lambda folder: shutil.rmtree(folder / "model"))),
    Mistake("no-network", finetune(model="google-bert/bert-base-uncased"), 4,
            "HF_HUB_OFFLINE is set", "hub", "unset HF_HUB_OFFLINE"),
    Mistake("misspelt-local-model", "info no", 4, "'no' is no directory here", "hub", "path"),
    Mistake("no-weights", "info bad", 4, "no model.safetensors", "bad", "safetensors",
            prepare=copied("classifier", lambda folder: (folder / "model.safetensors").unlink())),
    Mistake("only-a-pickle", finetune(model="bad"), 4, "pickle", "bad", "bert convert bad",
            prepare=copied("pretrained", only_a_pickle)),
    Mistake("weights-cut", "predict bad w/rows.csv -o out.jsonl", 4, "damaged",
            "bad/model.safetensors", "copy the file again",
            prepare=copied("classifier", lambda at: cut_in_half(at / "model.safetensors"))),
    Mistake("weights-empty", "info bad", 4, "damaged", "bad/model.safetensors", "copy",
            prepare=copied("classifier", lambda at: (at / "model.safetensors").write_bytes(b""))),
    Mistake("config-json-broken", "info bad", 4, "config.json cannot be read", "bad/config.json",
            "copy", prepare=copied("classifier", lambda at: cut_in_half(at / "config.json"))),
    Mistake("other-family", "info bad", 4, "'gpt2' is not known", "bad/config.json", "families: ",
            prepare=copied("classifier", changed_json("config.json", model_type="gpt2"))),
    Mistake("no-family", "info bad", 4, "does not name", "bad/config.json", "model_type",
            prepare=copied("classifier", changed_json("config.json", model_type=None))),
    Mistake("other-sizes", "info bad", 4, "shape", "bad", "different models",
            prepare=copied("classifier", changed_json("config.json", hidden_size=32))),
    Mistake("bert-json-broken", "info bad", 4, "bert.json cannot be read", "bad/bert.json", "copy",
            prepare=copied("classifier", lambda at: cut_in_half(at / "bert.json"))),
    Mistake("model-without-tokenizer", "fill-mask bad '[MASK]'", 4, "no tokenizer", "bad",
            "tokenizer.json", prepare=copied("pretrained", no_tokenizer)),
    Mistake("tokenizer-of-another-model", "predict bad w/rows.csv -o out.jsonl", 4, "tokens",
            "bad", "tokenizer", prepare=copied("classifier", larger_vocabulary)),
    Mistake("settings-of-another-program", "predict bad w/rows.csv -o out.jsonl", 4, "max_length",
            "bad/bert.json", None,
            prepare=copied("classifier", changed_json("bert.json", max_length="long"))),
    Mistake("columns-of-another-program", "predict bad w/rows.csv -o out.jsonl", 4, "text_columns",
            "bad/bert.json", None,
            prepare=copied("classifier", changed_json("bert.json", text_columns=7))),
    Mistake("architecture-no-list", "info bad", 4, "architectures", "bad/config.json", None,
            prepare=copied("classifier", changed_json("config.json", architectures=7))),
    Mistake("labels-no-table", "info bad", 4, "id2label", "bad/config.json", None,
            prepare=copied("classifier", changed_json("config.json", id2label=7))),
    Mistake("task-of-later-version", "info bad", 0, "", None, None, notice=True,
            prepare=copied("classifier", changed_json("bert.json", task="rhyming"))),
    Mistake("predict-task-of-later-version", "predict bad w/rows.csv -o out.jsonl", 4, "rhyming",
            "bad", "classification",
            prepare=copied("classifier", changed_json("bert.json", task="rhyming"))),
]  # fmt: skip

ANSWERS = [
    Mistake("no-mask", "fill-mask w/pretrained 'The film is warm.'", 3, r"no \[MASK\]", "text",
            r"write \[MASK\]"),
    Mistake("no-words-of-a-classifier", "fill-mask w/classifier 'The [MASK].'", 2,
            "guesses no words", "w/classifier", "pretrained model"),
    Mistake("evaluate-pretrained", "evaluate w/pretrained w/rows.csv", 2, "cannot be evaluated",
            "w/pretrained", "bert finetune TRAIN --model w/pretrained"),
    Mistake("evaluate-bare-encoder", "evaluate w/encoder w/rows.csv", 3, "two columns",
            "w/rows.csv", "--text COLUMN --text COLUMN"),
    Mistake("task-of-another-head", "predict bad w/rows.csv -o out.jsonl", 4,
            "tagging does not go with a sequence head", "bad", "bert finetune",
            prepare=copied("classifier", changed_json("bert.json", task="tagging"))),
    Mistake("label-outside-evaluate", "evaluate w/classifier a.csv", 3, "'ugly'.*bad, good",
            "a.csv:2", "correct the label", {"a.csv": "text,label\nso,ugly\n"}),
    Mistake("no-label-evaluate", "evaluate w/classifier a.csv", 3, "no label", "a.csv:2",
            "fill it in", {"a.csv": "text,label\nso,\n"}),
    Mistake("evaluate-no-label-column", "evaluate w/classifier a.csv", 3, "no column 'label'",
            "a.csv", "--label", {"a.csv": "text\nso\n"}),
    Mistake("evaluate-empty", "evaluate w/classifier a.csv", 3, "no rows", "a.csv", "give",
            {"a.csv": "text,label\n"}),
    Mistake("predict-no-out", "predict w/classifier w/rows.csv", 2, "--out", None, "--help"),
    Mistake("predict-over", "predict w/classifier w/rows.csv -o out.jsonl", 2, "exists",
            "out.jsonl", "--overwrite", {"out.jsonl": "precious"}),
    Mistake("predict-over-itself", "predict w/classifier a.csv -o a.csv --overwrite", 2,
            "is the input", "a.csv", "another -o", {"a.csv": ROWS}),
    Mistake("predict-into-folder", "predict w/classifier w/rows.csv -o folder --overwrite", 2,
            "folder", "folder", "-o", {"folder/a": "a"}),
    Mistake("predict-into-pipe", "predict w/classifier w/rows.csv -o pipe --overwrite", 2,
            "device or pipe", "pipe", "-o", prepare=lambda here: os.mkfifo(here / "pipe")),
    Mistake("predict-into-nowhere", "predict w/classifier w/rows.csv -o a/b/out.jsonl", 2,
            "no such folder", "a/b", "mkdir -p a/b"),
    Mistake("predict-no-file", "predict w/classifier w/row.csv -o out.jsonl", 3, "no file row.csv",
            "w/row.csv", "w/rows.csv"),
    Mistake("predict-column", "predict w/classifier a.csv -o out.jsonl", 3, "no column 'text'",
            "a.csv", "--text review", {"a.csv": "review\nfine\n"}),
    Mistake("predict-ragged-late", "predict w/classifier a.csv -o out.jsonl --strict", 3,
            "found 1", "a.csv:2502", "comma",
            {"a.csv": "text,label\n" + "so,1\n" * 2500 + "broken\n"}),
    Mistake("predict-ragged-rows", "predict w/classifier a.csv -o out.jsonl", 3,
            "1 of 3 rows have none", "out.errors.jsonl", "mend.*--overwrite",
            {"a.csv": "text,label\nso,1\nbroken\nfine,1\n"}, writes=r"out\.(errors\.)?jsonl"),
    Mistake("predict-all-ragged", "predict w/classifier a.csv -o out.jsonl", 3, "found 1",
            "a.csv:2", "comma", {"a.csv": "text,label\nbroken\nbroken\n"}),
    Mistake("predict-errors-over-input", "predict w/classifier a.errors.jsonl -o a.jsonl", 2,
            "is the input", "a.errors.jsonl", "another -o",
            {"a.errors.jsonl": '{"text": "so"}\n'}),
    Mistake("predict-folder-into-file", "predict w/classifier rows -o out.jsonl", 2,
            "are a folder", "out.jsonl", "another -o", {"rows/a.csv": ROWS, "out.jsonl": "mine"}),
    Mistake("predict-folder-into-other", "predict w/classifier rows -o out", 2,
            "something else", "out", "--overwrite", {"rows/a.csv": ROWS, "out/a": "mine"}),
    Mistake("predict-folder-of-nothing", "predict w/classifier rows -o out", 3,
            "no files of rows", "rows", "name a file", {"rows/a.md": ROWS}),
    Mistake("predict-pattern-of-nothing", "predict w/classifier rows/*.csv -o out", 3,
            "no files of rows", "rows/*.csv", "name a file"),
    Mistake("predict-same-names", "predict w/classifier x/a.csv y/a.csv -o out", 2,
            "same name", "x/a.csv and y/a.csv", "one of them", {"x/a.csv": ROWS, "y/a.csv": ROWS}),
    Mistake("predict-one-file-on-ray", "predict w/classifier w/rows.csv -o o.jsonl --engine ray",
            2, "this is one", "w/rows.csv", "give a folder"),
    Mistake("predict-unknown-engine", "predict w/classifier w/rows.csv -o o.jsonl --engine dask",
            2, "dask", None, "--help"),
    Mistake("predict-unknown-url", "predict w/classifier gopher://a/b.csv -o o.jsonl", 2,
            "cannot be read", "gopher://a/b.csv", "check it"),
    Mistake("pairs-on-one-column", "predict w/pairs w/rows.csv -o out.jsonl --text text", 3,
            "pair of texts", "w/rows.csv", "--text COLUMN --text COLUMN"),
    Mistake("pairs-on-other-columns", "predict w/pairs w/rows.csv -o out.jsonl", 3,
            "no column 'text_a'", "w/rows.csv", "--text"),
    Mistake("one-text-on-pairs", "evaluate w/classifier a.csv --text text_a --text text_b", 3,
            "one text", "a.csv", "--text COLUMN",
            {"a.csv": "text_a,text_b,label\na,b,good\n"}),
    Mistake("predict-pretrained", "predict w/pretrained w/rows.csv -o out.jsonl", 3,
            r"no \[MASK\]", "w/rows.csv:2", r"\[MASK\]"),
    Mistake("serve-nothing", "serve", 2, "Missing argument 'RUN...'", None, "bert serve --help"),
    Mistake("serve-no-model", "serve ./no --port 0", 4, "no such model", "no", "run folder"),
    Mistake("serve-everyone", "serve w/classifier --host 0.0.0.0 --port 0", 2,
            "reached from other machines", "--host 0.0.0.0", "reverse proxy"),
    Mistake("serve-elsewhere", "serve w/classifier --host no.invalid --port 0", 2,
            "not an address", "--host no.invalid", "--host 127.0.0.1"),
    Mistake("serve-port-70000", "serve w/classifier --port 70000", 2, "70000", None, "--help"),
    Mistake("info-nothing", "info", 2, "Missing argument", None, "bert info --help"),
]  # fmt: skip

CASES = [*USAGE, *CORPORA, *TABLES, *RUNS, *MODELS, *ANSWERS]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files and tiny models that are right: what the mistakes are made with."""
    folder = tmp_path_factory.mktemp("world")
    (folder / "rows.csv").write_text(ROWS, "utf-8")
    (folder / "corpus.txt").write_text(CORPUS, "utf-8")
    tokenizer = train_wordpiece(lambda: SENTENCES, vocab_size=120, lowercase=True)
    config = BertConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
    )
    classifies = {"task": "classification", "text_columns": ["text"], "label_column": "label"}
    torch.manual_seed(0)
    for name, kind, facts in (
        ("pretrained", "pretraining", {"task": "fill_mask"}),
        ("encoder", "encoder", {}),
        ("classifier", "sequence", classifies),
        ("pairs", "sequence",
         {**classifies, "text_columns": ["text_a", "text_b"], "texts_per_row": 2}),
    ):  # fmt: skip
        labels = ["bad", "good"] if kind == "sequence" else []
        model = load_family("bert").build(kind, config)
        write_model(
            folder / name,
            Checkpoint(model, kind, load_family("bert"), labels, tokenizer, facts),
        )
    return folder


@pytest.fixture(scope="module")
def finished_run(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fine-tuning run with a checkpoint after each of its steps."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("run"))
        Path("w").symlink_to(world)
        before = signal.getsignal(signal.SIGTERM)
        try:
            with pytest.raises(SystemExit) as ended:
                main(shlex.split(RUN.replace("bad", "w/run")))
        finally:
            signal.signal(signal.SIGTERM, before)
        assert ended.value.code == 0
    return world / "run"


RUN = (
    "finetune w/rows.csv --model w/pretrained --out bad epochs=1 batch_size=4"
    " checkpoint_minutes=0.000001"
)


@pytest.fixture
def here(
    world: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Path]:
    """An empty current folder from which ``w`` leads to the world; nothing outlives a command."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "w").symlink_to(world)
    before = signal.getsignal(signal.SIGTERM)
    yield tmp_path
    signal.signal(signal.SIGTERM, before)
    torch.use_deterministic_algorithms(False)


def everything_below(folder: Path) -> dict[str, bytes | None]:
    """Every file with its content, every folder with None; links are not followed."""
    found: dict[str, bytes | None] = {}
    for where, folders, names in os.walk(folder):
        for name in [*folders, *names]:
            path = Path(where, name)
            found[str(path.relative_to(folder))] = path.read_bytes() if path.is_file() else None
    return found


def block(text: str, first: str) -> dict[str, str]:
    """The lines of an error or note: what, and where and fix if they are there."""
    pattern = rf"^{first}: (?P<what>.+)(?:\n  where: (?P<where>.+))?(?:\n  fix:   (?P<fix>.+))?$"
    found = re.search(pattern, text, re.MULTILINE)
    assert found, f"no {first} in what was said:\n{text}"
    return {key: value for key, value in found.groupdict().items() if value is not None}


def one_screen(text: str) -> None:
    lines, columns = SCREEN
    assert sum(max(1, math.ceil(len(line) / columns)) for line in text.splitlines()) <= lines
    assert "Traceback" not in text
    assert "unforeseen" not in text


@pytest.mark.parametrize("mistake", CASES, ids=lambda mistake: mistake.name)
def test_mistake(
    mistake: Mistake,
    here: Path,
    request: pytest.FixtureRequest,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if mistake in RUNS or "run" in mistake.name:
        request.getfixturevalue("finished_run")
    for name, content in mistake.files.items():
        (here / name).parent.mkdir(parents=True, exist_ok=True)
        (here / name).write_bytes(content.encode() if isinstance(content, str) else content)
    if mistake.prepare is not None:
        mistake.prepare(here)
    before = everything_below(here)

    with pytest.raises(SystemExit) as ended:
        main(shlex.split(mistake.command.replace("finetune RUN", RUN)))

    said = capsys.readouterr().err
    assert ended.value.code == mistake.code, said
    one_screen(said)
    after = everything_below(here)
    changed = {
        name
        for name in before.keys() | after.keys()
        if before.get(name, b"not there") != after.get(name, b"not there")
    }
    allowed = re.compile(mistake.writes or "nothing")
    assert not {name for name in changed if not allowed.match(name)}
    if mistake.notice and not mistake.what:
        return
    message = block(said, "Note" if mistake.notice else "Error")
    assert re.search(mistake.what, message["what"]), said
    if mistake.where is None:
        assert "where" not in message
    else:
        assert mistake.where in message["where"], said
    assert re.search(mistake.fix or "", message["fix"] if not mistake.notice else said), said


def test_no_arguments_show_the_help(capsys: pytest.CaptureFixture[str], here: Path) -> None:
    with pytest.raises(SystemExit) as ended:
        main([])
    assert ended.value.code == 2
    said = capsys.readouterr().out
    for command in ("tokenizer", "pretrain", "finetune", "evaluate", "predict", "serve"):
        assert re.search(rf"^  {command} ", said, re.MULTILINE)


def test_port_in_use(capsys: pytest.CaptureFixture[str], here: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(SystemExit) as ended:
            main(["serve", "w/classifier", "--port", str(port)])
    said = capsys.readouterr().err
    assert ended.value.code == 2
    message = block(said, "Error")
    assert message["what"] == f"Port {port} is in use."
    assert re.search(r"--port \d+", message["fix"])
    one_screen(said)


# Processes: what only a whole one shows -----------------------------------------------------------


def start(*arguments: str, **options: Any) -> subprocess.Popen[str]:
    root = str(Path(__file__).parents[1])
    return subprocess.Popen(
        [sys.executable, "-m", "bert", *arguments],
        env={**os.environ, "PYTHONPATH": root},
        stderr=subprocess.PIPE,
        text=True,
        **{"stdout": subprocess.PIPE, **options},
    )


def wait_for(found: Callable[[], object], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 60
    while not found():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted_training_can_go_on(here: Path, number: int, code: int) -> None:
    arguments = shlex.split(
        "pretrain w/corpus.txt --size tiny --minutes 5 --out run vocab_size=200 log_every=1"
        " sequence_length=32 batch_size=4"
    )
    with start(*arguments) as process:
        metrics = here / "run" / "metrics.jsonl"
        wait_for(lambda: metrics.exists() and metrics.stat().st_size, process)
        process.send_signal(number)
        said = process.communicate(timeout=60)[1]
    assert process.returncode == code, said
    assert re.search(r"--resume", block(said, "Error")["fix"])
    one_screen(said)
    assert latest_checkpoint(here / "run" / "checkpoints") is not None
    assert not list((here / "run").rglob("*.partial"))


def test_interrupted_prediction_goes_on(here: Path) -> None:
    texts = [f"the {word} film of {i} years" for i in range(6000) for word in ("best", "dull")]
    (here / "many.csv").write_text("text\n" + "\n".join(texts) + "\n", "utf-8")
    command = ("predict", "w/classifier", "many.csv", "-o", "out.jsonl")
    part = here / ".out.jsonl.part"
    with start(*command) as process:
        wait_for(lambda: part.exists() and part.read_bytes().count(b"\n") >= 2048, process)
        process.send_signal(signal.SIGTERM)
        said = process.communicate(timeout=60)[1]
    assert process.returncode == 143, said
    one_screen(said)
    kept = part.read_bytes()
    assert not (here / "out.jsonl").exists()
    with part.open("ab") as file:
        file.write(b'{"label": "go')  # as a kill leaves it
    with start(*command) as process:
        said = process.communicate(timeout=120)[1]
    assert process.returncode == 0, said
    assert re.search(r"Going on after [\d,]+ rows", said)
    assert sorted(path.name for path in here.iterdir()) == ["many.csv", "out.jsonl", "w"]
    with start("predict", "w/classifier", "many.csv", "-o", "again.jsonl") as process:
        process.communicate(timeout=120)
    whole = (here / "again.jsonl").read_bytes()
    assert (here / "out.jsonl").read_bytes() == whole
    assert whole.startswith(kept[: kept.rindex(b"\n") + 1])
    assert whole.count(b"\n") == len(texts)


def test_kept_answers_of_other_rows_are_not_used(here: Path) -> None:
    (here / "a.csv").write_text("text\nfine\n", "utf-8")
    (here / ".out.jsonl.part").write_text('{"label": "x"}\n' * 2048, "utf-8")
    (here / ".out.jsonl.part.key").write_text("of another file", "utf-8")
    with start("predict", "w/classifier", "a.csv", "-o", "out.jsonl") as process:
        said = process.communicate(timeout=60)[1]
    assert process.returncode == 0, said
    assert len((here / "out.jsonl").read_text("utf-8").splitlines()) == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no /dev/full")
def test_no_room_for_the_answer() -> None:
    with Path("/dev/full").open("w") as full, start("--help", stdout=full) as process:
        said = process.communicate(timeout=60)[1]
    assert process.returncode == 1
    assert block(said, "Error")["what"] == "The disk is full."
    one_screen(said)


def test_reader_gone() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with start("--help", stdout=writing) as process:
        os.close(writing)
        said = process.communicate(timeout=60)[1]
    assert process.returncode == 1
    assert "Exception" not in said
    one_screen(said)


# The machine --------------------------------------------------------------------------------------


def run(command: str, capsys: pytest.CaptureFixture[str]) -> tuple[object, str]:
    with pytest.raises(SystemExit) as ended:
        main(shlex.split(command))
    return ended.value.code, capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "size", "left"),
    [
        ("predict w/classifier w/rows.csv -o out.jsonl", 500, None),
        ("tokenizer w/corpus.txt --out out vocab_size=150", 1000, None),
        ("pretrain w/corpus.txt --steps 1 --out run --tokenizer w/pairs", 1000, None),
        (finetune(), 50_000, "run/model"),
        (finetune(rest="checkpoint_minutes=0.000001"), 50_000, "run/checkpoints"),
    ],
    ids=["predict", "tokenizer", "shards", "model", "checkpoint"],
)
def test_file_larger_than_there_is_room(
    command: str, size: int, left: str | None, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    resource = pytest.importorskip("resource", reason="file sizes cannot be limited here")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        code, said = run(command, capsys)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert code == 1, said
    assert re.search("larger than|disk is full", block(said, "Error")["what"])
    one_screen(said)
    if left is None:
        assert [path.name for path in here.iterdir()] == ["w"]
    else:
        assert not list((here / left).parent.glob(".*"))
        assert not (here / left).exists() or not list((here / left).iterdir())


@pytest.mark.parametrize(
    "command",
    [
        "finetune w/rows.csv --model w/pretrained --out locked/run",
        "predict w/classifier w/rows.csv -o locked/out.jsonl",
        "tokenizer w/corpus.txt --out locked/out",
    ],
)
def test_folder_that_may_not_be_written(
    command: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "locked").mkdir(mode=0o500)
    if os.access(here / "locked", os.W_OK):
        pytest.skip("root may write everywhere")
    code, said = run(command, capsys)
    assert code == 2
    message = block(said, "Error")
    assert "may not be written" in message["what"]
    assert "locked" in message["where"]
    assert "another folder" in message["fix"]
    one_screen(said)
    assert not list((here / "locked").iterdir())


def test_out_of_memory(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bert.recipes.info.read_model", lambda _: torch.empty(2**60))
    code, said = run("info w/classifier", capsys)
    assert code == 5
    assert "memory is used up" in block(said, "Error")["what"]
    assert "batch_size=" in block(said, "Error")["fix"]
    one_screen(said)


def test_fault_of_ours(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(name: str) -> None:
        raise KeyError(name)

    monkeypatch.setattr("bert.recipes.info.read_model", fail)
    code, said = run("info w/classifier", capsys)
    assert code == 1
    assert "unforeseen" in block(said, "Error")["what"]
    assert "--debug" in block(said, "Error")["fix"]
    assert "Traceback" not in said
    with pytest.raises(KeyError):
        main(["info", "w/classifier", "--debug"])


@pytest.mark.parametrize("command", ["tokenizer", "pretrain", "finetune"])
def test_help_lists_the_settings(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    wanted = {
        "tokenizer": ["lowercase +true"],
        "pretrain": ["batch_size +64", "mask_rate +0.15"],
        "finetune": ["epochs +automatic", "batch_size +32"],
    }
    for line in wanted[command]:
        assert re.search(rf"^  {line}$", said, re.MULTILINE)
