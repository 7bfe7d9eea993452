"""``bert demo``: the whole path on the documentation that every Python carries.

The corpus is the docstrings of the standard library and the language topics of ``pydoc``,
about 2 MB of English. The task is to tell from a docstring which part of the library it
documents, learnt from a few hundred labelled ones. The same network is fine-tuned with and
without pretraining, so that one sees what pretraining is worth.
"""

from __future__ import annotations

import ast
import csv
import json
import shutil
import sys
import sysconfig
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch

from bert import log
from bert.checkpoint import Checkpoint, read_model, write_model
from bert.data.draws import uniform
from bert.errors import UsageError
from bert.predictor import Predictor
from bert.recipes.finetune import FinetuneSettings, finetune
from bert.recipes.pretrain import PretrainSettings, pretrain

MINUTES = 2.75
TRAINING_ROWS = 400
HELD_OUT_SHARE = 0.35
SHORTEST = 40  # characters; shorter docstrings say too little
SEED = 1
# A few minutes and 400,000 tokens: a tiny network, an optimiser that learns fast, more masks.
PRETRAINING = {
    "size": "tiny",
    "vocab_size": 8000,
    "batch_size": 32,
    "learning_rate": 2e-3,
    "optimizer": "muon",
    "mask_rate": 0.3,
    "dropout_rate": 0.0,
}
EPOCHS = 30
LEARNING_RATE = 1e-3  # without pretraining 5e-4 to 2e-3 are alike: docs/results.md

# The parts of the library, after the chapters of its reference.
PARTS = {
    "data types": "array bisect calendar collections copy datetime decimal enum fractions "
    "graphlib heapq ipaddress numbers operator pprint random reprlib statistics types uuid "
    "weakref zoneinfo _collections_abc _pydatetime _pydecimal _strptime _weakrefset",
    "files": "bz2 _compression configparser csv dbm filecmp fileinput fnmatch genericpath glob "
    "gzip lzma netrc ntpath os pathlib pickle pickletools plistlib posixpath shelve shutil "
    "sqlite3 stat tarfile tempfile tomllib zipfile _pyio",
    "internet": "base64 cgi email ftplib hmac html http imaplib json mailbox mailcap mimetypes "
    "nntplib poplib quopri secrets smtplib socket socketserver ssl telnetlib urllib webbrowser "
    "wsgiref xml xmlrpc",
    "concurrency": "asynchat asyncio asyncore concurrent contextlib contextvars multiprocessing "
    "queue sched selectors signal subprocess threading _threading_local",
    "text": "codecs difflib encodings gettext locale re sre_compile sre_parse string stringprep "
    "textwrap tokenize unicodedata",
    "interfaces": "argparse cmd code codeop colorsys curses getopt getpass optparse pty "
    "readline rlcompleter shlex tkinter tty turtle",
    "language": "abc ast bdb cProfile compileall ctypes dataclasses dis distutils doctest "
    "functools importlib inspect linecache logging modulefinder pdb pkgutil platform profile "
    "pstats py_compile pyclbr pydoc runpy site symtable sysconfig timeit trace traceback "
    "tracemalloc typing unittest venv warnings zipapp zipimport",
}
SENTENCES = (
    "Open a connection to the mail server and log in with a user name and password.",
    "Return the arithmetic mean of the numbers.",
    "Wait until the lock is released by the thread that holds it.",
    "Draw a circle with the given radius on the canvas.",
    "Copy a directory tree, keeping the permission bits of each file.",
)


def run_demo(out: Path, minutes: float) -> Path:
    """Tokenizer, pretraining, fine-tuning with and without it, evaluation, predictions.

    Args:
        out: folder for the demo; an earlier demo there is replaced.
        minutes: for pretraining.

    Raises:
        UsageError: the folder holds something else.
    """
    started = time.monotonic()
    if out.exists() and not (out / "data" / "corpus.txt").is_file() and any(out.iterdir()):
        raise UsageError("The folder holds something else.", where=str(out), fix="--out FOLDER")
    shutil.rmtree(out, ignore_errors=True)
    data = out / "data"
    data.mkdir(parents=True)
    train_rows, held_out_rows = write_data(data)
    log.say(
        f"Data from this Python's documentation, in {data}: {train_rows:,} labelled docstrings to "
        f"learn from, {held_out_rows:,} held out.\n"
    )

    log.say(f"1. Pretraining on the text, {minutes:g} minutes, without the held-out docstrings.")
    pretrained = pretrain(
        PretrainSettings.of(
            {
                "corpus": [str(data / "corpus.txt")],
                "minutes": minutes,
                "seed": SEED,
                **PRETRAINING,
            }
        ),
        out / "pretrained",
    )
    words = Predictor(pretrained)("Return the [MASK] of the file.")["masks"][0]
    log.say('"Return the [MASK] of the file.": ' + ", ".join(word["token"] for word in words))

    log.say("\n2. Fine-tuning the pretrained network.")
    tuned = _finetune(data, pretrained / "model", out / "finetuned")
    log.say("\n3. Fine-tuning the same network without pretraining, for comparison.")
    checkpoint = read_model(pretrained / "model")
    torch.manual_seed(SEED)
    untrained = checkpoint.family.build(checkpoint.kind, checkpoint.config)
    fresh = Checkpoint(
        untrained, checkpoint.kind, checkpoint.family, tokenizer=checkpoint.tokenizer
    )
    write_model(out / "untrained" / "model", fresh)
    plain = _finetune(data, out / "untrained" / "model", out / "finetuned_untrained")

    log.say(f"\n4. Accuracy on {held_out_rows:,} held-out docstrings, with 95% intervals.")
    for title, run in (("with pretraining", tuned), ("without", plain)):
        log.say(f"   {title:18}{_accuracy(run)}")

    log.say("\n5. A few sentences that nobody labelled.")
    answers = Predictor(tuned)(list(SENTENCES))
    for sentence, answer in zip(SENTENCES, answers, strict=True):
        chance = answer["probabilities"][answer["label"]]
        log.say(f"   {answer['label']:12} {chance:4.0%}  {sentence}")

    log.say(f"\nDone in {(time.monotonic() - started) / 60:.1f} minutes.")
    log.say(f"Report: {tuned / 'report.html'}")
    # In an environment that is not activated the command is not on the path.
    beside = Path(sys.executable).with_name("bert")
    command = beside if shutil.which("bert") is None and beside.exists() else "bert"
    log.say(f"Serve:  {command} serve {tuned}")
    return tuned


def _finetune(data: Path, model: Path, out: Path) -> Path:
    return finetune(
        FinetuneSettings.of(
            {
                "train": str(data / "train.csv"),
                "dev": str(data / "held_out.csv"),
                "model": str(model),
                "epochs": EPOCHS,
                "learning_rate": LEARNING_RATE,
                "max_length": 128,
                "seed": SEED,
            }
        ),
        out,
    )


def _accuracy(run: Path) -> str:
    score = json.loads((run / "metrics.json").read_text(encoding="utf-8"))["accuracy"]
    return f"{score['value']:.1%}  [{score['low']:.1%}, {score['high']:.1%}]"


def write_data(folder: Path) -> tuple[int, int]:
    """Write ``corpus.txt``, ``train.csv`` and ``held_out.csv``.

    A docstring that stands in several places is used once, and not at all for the task where
    those places belong to different parts. Held-out docstrings are not in the corpus, not
    even within longer ones.

    Returns:
        How many rows there are to learn from, and how many are held out.
    """
    part_of = {module: part for part, modules in PARTS.items() for module in modules.split()}
    files = list(docstrings())
    parts: dict[str, set[str]] = {}
    for module, texts in files:
        for text in texts:
            parts.setdefault(text, set()).add(part_of.get(module, ""))
    rows = [
        (text, next(iter(found)))
        for text, found in parts.items()
        if len(found) == 1 and "" not in found and len(text) >= SHORTEST
    ]
    draws = uniform(SEED, range(len(rows)))
    shuffled = [rows[i] for i in draws.argsort(kind="stable")]
    out = int(len(rows) * HELD_OUT_SHARE)
    held_out = shuffled[:out]
    hidden: dict[str, list[str]] = {}  # first line -> held-out docstrings
    for text, _ in held_out:
        hidden.setdefault(text.splitlines()[0], []).append(text)
    train = [row for row in shuffled[out:] if not _repeats(row[0], hidden)][:TRAINING_ROWS]
    _write_rows(folder / "train.csv", train)
    _write_rows(folder / "held_out.csv", held_out)
    seen: set[str] = set()
    with (folder / "corpus.txt").open("w", encoding="utf-8") as corpus:
        for _, texts in [*files, *topics()]:
            kept = [text for text in texts if text not in seen and not _repeats(text, hidden)]
            seen.update(kept)
            if kept:  # a file is a document
                corpus.write("\n".join(kept) + "\n\n")
    return len(train), len(held_out)


def _repeats(text: str, hidden: Mapping[str, Sequence[str]]) -> bool:
    """Whether a held-out docstring stands in a text, alone or within a longer one."""
    return any(other in text for line in text.splitlines() for other in hidden.get(line, ()))


def _write_rows(path: Path, rows: Sequence[tuple[str, str]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("text", "label"))
        writer.writerows(rows)


def docstrings() -> Iterator[tuple[str, list[str]]]:
    """Each file of the standard library: its top module, and its docstrings in order.

    The source is parsed, not imported, so nothing runs.
    """
    library = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(library.rglob("*.py")):
        place = path.relative_to(library)
        if any("test" in part or part == "site-packages" for part in place.parts[:-1]):
            continue
        try:
            tree = ast.parse(path.read_bytes())
        except (SyntaxError, ValueError):  # templates and deliberately broken files
            continue
        found = [
            text
            for node in ast.walk(tree)
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
            and (text := _clean(ast.get_docstring(node)))
        ]
        if found:
            yield place.parts[0].removesuffix(".py"), found


def topics() -> Iterator[tuple[str, list[str]]]:
    """The chapters on the language that ``help()`` shows."""
    from pydoc_data.topics import topics as chapters

    for name, text in sorted(chapters.items()):
        yield name, [_clean(text)]


def _clean(text: str | None) -> str:
    """Without empty lines, which end a document, and what UTF-8 or a corpus cannot hold."""
    kept = (text or "").encode("utf-8", "ignore").decode("utf-8").replace("\0", "")
    return "\n".join(line.rstrip() for line in kept.splitlines() if line.strip())
