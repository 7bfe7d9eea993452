"""Text to tokens: ``bert prepare`` against ``datasets.map`` with the same fast tokenizer.

    python benchmarks/prepare.py CORPUS... --tokenizer DIR

CORPUS is text in files that ``bert prepare`` reads. All of it, and the first quarter of it, are
written as plain text to a temporary folder, and both sides work on that in turn, each in a
process of its own with two worker processes:

- ours: everything ``bert prepare`` does, duplicates and sentences too;
- bare: the same without cleaning and search for duplicates;
- peer: ``load_dataset("text")`` and ``map(batched=True, num_proc=2)`` without special tokens,
  masks and types, each line on its own.

Seconds are those of the whole process, with all imports; processor seconds, summed over all
processes, depend less on what else the machine does. Memory is the largest sum of the
proportional set sizes of the process and its children, seen every 0.1 s. Needs ``datasets``,
``transformers`` and Linux.
"""

from __future__ import annotations

import argparse
import itertools
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PEER = """
import sys
from datasets import load_dataset
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

file, tokenizer, cache = sys.argv[1:]
backend = Tokenizer.from_file(tokenizer + "/tokenizer.json")
backend.no_truncation()
backend.no_padding()
fast = PreTrainedTokenizerFast(tokenizer_object=backend)

def encode(rows):
    return fast(rows["text"], add_special_tokens=False, return_attention_mask=False,
                return_token_type_ids=False)

if __name__ == "__main__":
    text = load_dataset("text", data_files=file, split="train", cache_dir=cache)
    text.map(encode, batched=True, num_proc=2, remove_columns=["text"])
"""


def family(pid: int) -> list[int]:
    """A process and all that come from it."""
    found = [pid]
    for number in found:
        for task in Path(f"/proc/{number}/task").glob("*/children"):
            try:
                found += map(int, task.read_text().split())
            except OSError:
                continue
    return found


def proportional_bytes(pid: int) -> int:
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0


def processor_seconds() -> float:
    """Used so far by all processes that have ended below this one."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def measured(command: list[str]) -> tuple[float, float, int]:
    """Seconds, seconds of processor time and peak bytes of a command."""
    used, began = processor_seconds(), time.perf_counter()
    quiet = {"HF_DATASETS_DISABLE_PROGRESS_BARS": "1", "TRANSFORMERS_VERBOSITY": "error"}
    process = subprocess.Popen(
        command, env=os.environ | quiet, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    peak = 0
    while True:
        peak = max(peak, sum(map(proportional_bytes, family(process.pid))))
        try:
            process.wait(0.1)
            break
        except subprocess.TimeoutExpired:
            continue
    seconds = time.perf_counter() - began
    if process.returncode:
        raise SystemExit(process.stderr.read().decode() if process.stderr else "failed")
    return seconds, processor_seconds() - used, peak


def run(side: str, file: Path, tokenizer: str, workspace: Path) -> tuple[float, float, int]:
    out = workspace / "out"
    try:
        if side == "peer":
            script = workspace / "peer.py"
            script.write_text(PEER)
            return measured([sys.executable, str(script), str(file), tokenizer, str(out)])
        command = [sys.executable, "-m", "bert", "prepare", str(file), "--out", str(out)]
        command += ["--tokenizer", tokenizer, "workers=2"]
        return measured(command + ["clean=false", "deduplicate=false"] * (side == "bare"))
    finally:
        shutil.rmtree(out, ignore_errors=True)


def main() -> None:
    from bert.text.corpus import documents

    parser = argparse.ArgumentParser()
    parser.add_argument("corpus", nargs="+", type=Path)
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("--rounds", type=int, default=3, help="with a quarter of the corpus")
    parser.add_argument("--whole-rounds", type=int, default=1, help="with all of it")
    options = parser.parse_args()
    print(f"{platform.platform()}, Python {platform.python_version()}, {os.cpu_count()} cores")
    print(f"load before: {os.getloadavg()[0]:.1f}")
    with tempfile.TemporaryDirectory() as folder:
        workspace = Path(folder)
        whole, quarter = workspace / "whole.txt", workspace / "quarter.txt"
        with whole.open("w", encoding="utf-8") as file:
            for document in documents(options.corpus):
                file.write(document.text + "\n\n")
        size, limit = 0, whole.stat().st_size / 4
        with quarter.open("w", encoding="utf-8") as file:
            for document in documents([whole]):
                if size < limit:
                    size += file.write(document.text + "\n\n")
        for path, rounds in ((quarter, options.rounds), (whole, options.whole_rounds)):
            megabytes = path.stat().st_size / 1e6
            rates: dict[str, list[float]] = {}
            works: dict[str, list[float]] = {}
            for _ in range(rounds):
                for side in ("ours", "bare", "peer"):
                    seconds, used, peak = run(side, path, options.tokenizer, workspace)
                    rates.setdefault(side, []).append(megabytes / seconds)
                    works.setdefault(side, []).append(megabytes / used)
                    print(
                        f"{megabytes:6.1f} MB  {side:5} {seconds:6.1f} s  "
                        f"{megabytes / seconds:5.2f} MB/s  "
                        f"processors {used:6.1f} s  {peak / 2**20:6.0f} MiB",
                        flush=True,
                    )
            kinds = (("time", rates), ("processor time", works))
            for side, (what, values) in itertools.product(("ours", "bare"), kinds):
                ratios = [a / b for a, b in zip(values[side], values["peer"], strict=True)]
                print(
                    f"{megabytes:6.1f} MB  {side} / peer by {what}: "
                    f"median {statistics.median(ratios):.2f}, "
                    f"from {min(ratios):.2f} to {max(ratios):.2f}",
                    flush=True,
                )
    print(f"load after: {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
