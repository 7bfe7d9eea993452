"""A million rows through bert predict and bert embed: memory, kills, and what a row costs.

python benchmarks/bulk.py --out DIR [--rows 1000000] [--kills 10] [--model RUN] [--compare]

Without --model a network of one layer of 64 with random weights and a vocabulary of 512 is made,
so that what is not the network weighs more than it ever will. Rows are short made-up texts, one in
10,000 of which is not text. Each command is run once with ten rows, which shows what Python, torch
and the model take; and once with all, killed (SIGKILL) so many times at moments drawn between the
first and the last row, and started again; with --compare first without a kill.

Printed: seconds, also of the processor, which is what counts on a busy machine; peak resident
memory above that of ten rows, over all starts; resident memory as rows went by; with --compare
whether the killed run gave byte for byte what the other one gave; and whether every row has its
answer once and in order, checked by asking the predictor again for some of them. Then what each
step costs a row, in microseconds of one core.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bert.bulk import Item, passing_over
from bert.checkpoint import Checkpoint, write_model
from bert.data.rows import Example, read_examples
from bert.families.bert import FAMILY
from bert.model.config import BertConfig
from bert.predictor import TEXTS_AT_ONCE, Predictor
from bert.text.tokenizer import train_wordpiece

WORDS = "the film was a warm and long story of old friends in their town by the sea".split()  # noqa: SIM905
EVERY_BAD = 10_000  # row is no text
LOOK_SECONDS = 0.2


def text_of(i: int) -> str:
    """A text that no other row has, of six to fourteen words."""
    words = [WORDS[(i * k + k * k) % len(WORDS)] for k in range(1, 6 + i % 8)]
    return f"{i} {' '.join(words)}"


def is_bad(i: int) -> bool:
    return i % EVERY_BAD == EVERY_BAD - 1


def write_rows(path: Path, rows: int) -> None:
    with path.open("w", encoding="utf-8") as file:
        for i in range(rows):
            file.write(json.dumps({"text": i if is_bad(i) else text_of(i)}) + "\n")


def write_small_model(path: Path) -> Path:
    """A classifier of one layer of 64 that was never trained."""
    tokenizer = train_wordpiece(
        lambda: (text_of(i) for i in range(20_000)), vocab_size=512, lowercase=True
    )
    config = BertConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=64,
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=256,
        max_position_embeddings=128,
        pad_token_id=tokenizer.pad_id,
    )
    torch.manual_seed(0)
    model = FAMILY.build("sequence", config, 3)
    facts = {"task": "classification", "max_length": 128}
    labels = ["one", "other", "third"]
    write_model(path, Checkpoint(model, "sequence", FAMILY, labels, tokenizer, facts))
    return path


def kept_bytes(out: Path) -> int:
    try:
        return out.with_name(f".{out.name}.part").stat().st_size
    except FileNotFoundError:
        return 0


def resident(process: int) -> float:
    """MiB that a process holds now."""
    try:
        pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    except (FileNotFoundError, IndexError):
        return 0.0
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


class Start:
    """One start of a command: ``seconds``, of them ``busy`` ones, ``peak`` MiB, ``code``, ``said``.

    Args:
        command: of bert.
        out: what it writes.
        kill_at: bytes of answers at which it is killed, or none.
    """

    def __init__(self, command: list[str], out: Path, kill_at: int | None = None) -> None:
        began = time.monotonic()
        self.resident: list[tuple[int, float]] = []
        with subprocess.Popen(
            [sys.executable, "-m", "bert", *command], stderr=subprocess.PIPE
        ) as child:
            ended = None
            while ended is None or not ended[0]:
                time.sleep(LOOK_SECONDS)
                self.resident.append((kept_bytes(out), resident(child.pid)))
                if kill_at is not None and self.resident[-1][0] >= kill_at:
                    time.sleep(random.random() * LOOK_SECONDS)
                    child.send_signal(signal.SIGKILL)
                    kill_at = None
                ended = os.wait4(child.pid, os.WNOHANG)
            child.returncode = self.code = os.waitstatus_to_exitcode(ended[1])
            self.said = child.stderr.read().decode() if child.stderr else ""
        self.seconds = time.monotonic() - began
        self.busy = ended[2].ru_utime + ended[2].ru_stime
        self.peak = ended[2].ru_maxrss / 1024


def report(what: str, starts: list[Start], base: Start) -> None:
    peak, busy = (max(start.peak for start in starts), sum(start.busy for start in starts))
    print(
        f"{what}: {sum(start.seconds for start in starts):,.0f} s, {busy:,.0f} of the processor; "
        f"peak {peak:,.0f} MiB, {peak - base.peak:,.0f} above ten rows\n"
        f"  resident MiB in each fifth of the rows: {flatness(starts)}",
        flush=True,
    )


def costs(model: str, file: Path, rows: int) -> None:
    """Microseconds of one core that each step takes for a row."""
    torch.set_num_threads(1)
    os.environ["RAYON_NUM_THREADS"] = "1"  # of the tokenizer
    predictor = Predictor(model)
    seconds: dict[str, float] = {}

    def timed(name: str, step: Callable[[], Any]) -> Any:
        best = float("inf")
        for _ in range(3):
            began = time.process_time()
            result = step()
            best = min(best, time.process_time() - began)
        seconds[name] = best
        return result

    def read() -> list[Item]:
        source = read_examples(file, ["text"], None, None)
        return list(islice(passing_over(source, file, file), rows))

    items = timed("read", read)
    texts = [item.texts for item in items if isinstance(item, Example)]
    encoded = timed("encode", lambda: predictor.encode(texts))
    chunks = [encoded[i : i + TEXTS_AT_ONCE] for i in range(0, len(encoded), TEXTS_AT_ONCE)]
    scores = timed("network", lambda: [s for chunk in chunks for s in predictor.scores(chunk)])

    def decode() -> list[Any]:
        return [
            predictor.answer(text, row, [score])
            for text, row, score in zip(texts, encoded, scores, strict=True)
        ]

    answers = timed("decode", decode)
    timed("write", lambda: [json.dumps(answer, ensure_ascii=False) for answer in answers])
    told = ", ".join(f"{name} {value / rows * 1e6:.1f}" for name, value in seconds.items())
    tokens = sum(len(window.input_ids) for row in encoded for window in row.windows) / rows
    print(f"microseconds a row of {tokens:.1f} tokens: {told}")


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def flatness(starts: list[Start]) -> str:
    """The most resident memory in each fifth of what was written."""
    seen = [pair for start in starts for pair in start.resident]
    whole = max(size for size, _ in seen) + 1
    fifths = [
        max((m for size, m in seen if k <= 5 * size / whole < k + 1), default=0.0) for k in range(5)
    ]
    return ", ".join(f"{value:,.0f}" for value in fifths)


def check_answers(out: Path, rows: int, predictor: Predictor) -> int:
    count = 0
    with out.open(encoding="utf-8") as lines:
        for i, line in enumerate(lines):
            answer = json.loads(line)
            assert ("error" in answer) == is_bad(i), i
            if i % (rows // 50 or 1) == 0 and not is_bad(i):
                wanted = predictor(text_of(i))
                assert answer["label"] == wanted["label"], i
                assert np.allclose(
                    list(answer["probabilities"].values()),
                    list(wanted["probabilities"].values()),
                    atol=1e-5,
                ), i
            count += 1
    assert count == rows, count
    return count


def check_vectors(out: Path, rows: int, predictor: Predictor) -> int:
    table = np.load(out, mmap_mode="r")
    assert len(table) == rows
    bad = np.isnan(table[:, 0])
    assert np.array_equal(np.flatnonzero(bad), [i for i in range(rows) if is_bad(i)])
    for i in range(0, rows, rows // 50 or 1):
        if not is_bad(i):
            assert np.allclose(table[i], predictor(text_of(i))["embedding"], atol=1e-4), i
    return rows


def check_errors(out: Path, rows: int) -> None:
    path = out.with_suffix(".errors.jsonl")
    found: Iterator[int] = iter(())
    if path.exists():
        found = (json.loads(line)["row"] - 1 for line in path.read_text("utf-8").splitlines())
    assert list(found) == [i for i in range(rows) if is_bad(i)]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--compare", action="store_true")
    parser.add_argument("--verbs", nargs="+", default=["predict", "embed"])
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    model = arguments.model or str(write_small_model(arguments.out / "model"))
    few, many = arguments.out / "few.jsonl", arguments.out / "many.jsonl"
    write_rows(few, 10)
    write_rows(many, arguments.rows)
    draw = random.Random(0)
    for verb in arguments.verbs:
        ending = "jsonl" if verb == "predict" else "npy"
        out, killed = arguments.out / f"whole.{ending}", arguments.out / f"killed.{ending}"
        for path in (out, killed):
            path.unlink(missing_ok=True)

        def command(file: Path, path: Path, verb: str = verb) -> list[str]:
            return [verb, model, str(file), "-o", str(path), "--overwrite"]

        base = Start(command(few, out), out)
        assert base.code == 0, base.said
        bad = sum(is_bad(i) for i in range(arguments.rows))
        code = 3 if bad else 0
        size = out.stat().st_size * arguments.rows // 10  # about
        if arguments.compare:
            whole = Start(command(many, out), out)
            assert whole.code == code, whole.said
            report(f"{verb}, without a kill", [whole], base)
        starts = []
        for share in sorted(draw.uniform(0.05, 0.9) for _ in range(arguments.kills)):
            start = Start(command(many, killed), killed, kill_at=max(int(share * size), 1))
            assert start.code == -signal.SIGKILL, start.said
            told = [line for line in start.said.splitlines() if "Going on" in line]
            print(f"  killed at about {share:.0%}.", *told, flush=True)
            starts.append(start)
        starts.append(Start(command(many, killed), killed))
        assert starts[-1].code == code, starts[-1].said
        report(f"{verb}, killed {arguments.kills} times", starts, base)
        if arguments.compare:
            assert digest(out) == digest(killed)
            print("  byte for byte what it is without a kill")
        predictor = Predictor(model, task=None if verb == "predict" else "embedding")
        check = check_answers if verb == "predict" else check_vectors
        count = check(killed, arguments.rows, predictor)
        check_errors(killed, arguments.rows)
        left = [path.name for path in arguments.out.iterdir() if path.name.startswith(".")]
        assert not left, left
        print(
            f"{verb}: {count:,} answers, one for each row and in order, {bad:,} of them errors",
            flush=True,
        )
    costs(model, many, min(arguments.rows, 20_480))


if __name__ == "__main__":
    main()
