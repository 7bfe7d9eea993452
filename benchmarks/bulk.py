"""A million rows through bert predict and bert evaluate: memory, and going on after a kill.

python benchmarks/bulk.py RUN --out DIR [--rows 1000000]

RUN is a model that classifies single texts. Rows are short made-up texts with the labels of the
model. Each command is run once with ten rows, which shows what Python, torch and the model take,
and once with all; in the middle it is killed and started again. Printed: peak resident memory
above that of ten rows, rows a second, and whether every row has its answer once and in order.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import resource
import signal
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path

from bert.predictor import Predictor

WORDS = ("the film was a warm and long story of old friends in their town by the sea").split()  # noqa: SIM905


def write_rows(path: Path, rows: int, labels: list[str]) -> None:
    """Rows that differ, of five to twelve words."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        for i in range(rows):
            words = [WORDS[(i * k + k * k) % len(WORDS)] for k in range(1, 6 + i % 8)]
            writer.writerow([f"{i} {' '.join(words)}", labels[i % len(labels)]])


def run(command: list[str], kill_after: float | None = None) -> tuple[float, float]:
    """Seconds and peak memory (MiB) of a command; with a kill, those of the second start."""
    while True:
        began = time.monotonic()
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as child:
            if kill_after is not None:
                time.sleep(kill_after)
                child.send_signal(signal.SIGKILL)
            _, status, usage = os.wait4(child.pid, 0)
            child.returncode = os.waitstatus_to_exitcode(status)
            told = child.stderr.read().decode() if child.stderr else ""
        print("  ", *(line for line in told.splitlines() if "Going on" in line), flush=True)
        if kill_after is None:
            assert child.returncode == 0, told
            return time.monotonic() - began, usage.ru_maxrss / 1024
        kill_after = None


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--kill-after", type=float, default=60.0, help="seconds")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    labels = Predictor(arguments.model).labels
    few, many = arguments.out / "few.csv", arguments.out / "many.csv"
    write_rows(few, 10, labels)
    write_rows(many, arguments.rows, labels)
    answers = arguments.out / "answers.jsonl"
    for verb in ("predict", "evaluate"):
        start = [sys.executable, "-m", "bert", verb, arguments.model]
        text = ["--text", "text", *(["--label", "label", "--json"] if verb == "evaluate" else [])]
        more = ["-o", str(answers), "--overwrite"] if verb == "predict" else []
        _, base = run([*start, str(few), *text, *more])
        seconds, peak = run([*start, str(many), *text, *more], arguments.kill_after)
        print(
            f"{verb}: {peak - base:,.0f} MiB above the {base:,.0f} MiB of ten rows; "
            f"{seconds:,.0f} seconds after the kill",
            flush=True,
        )
    predictor = Predictor(arguments.model)
    with many.open(encoding="utf-8") as rows, answers.open(encoding="utf-8") as lines:
        count = 0
        for row, line in zip(csv.DictReader(rows), lines, strict=True):
            if count % (arguments.rows // 50 or 1) == 0:
                wanted = next(iter(predictor.stream(islice([row["text"]], 1))))
                assert json.loads(line)["label"] == wanted["label"], row
            count += 1
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{count:,} answers, one for each row, in order (checked in {own:,.0f} MiB)")


if __name__ == "__main__":
    main()
