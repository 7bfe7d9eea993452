"""Few labels: how much of SST-2 is learnt from eight rows a label, in three ways.

The same eight rows of each label, drawn from the training sentences by a seed, are given to

- ``few_shot``: ``bert finetune --task few_shot``;
- ``plain``: ``bert finetune``, the same settings but for the rate, which is its own, and so many
  epochs that it sees the rows as often;
- ``regression``: the embeddings as they are, and logistic regression of scikit-learn, which is
  the recipe of SetFit without its first step.

The held-out rows choose nothing: each run is measured once, at its end::

    OMP_NUM_THREADS=1 python benchmarks/few_shot.py TRAIN.jsonl DEV.jsonl MODEL [--seeds 5]

It prints the accuracy of each seed, its mean and Student's 95% interval, and the seconds.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegression

from bert import log
from bert.metrics.intervals import mean_interval
from bert.predictor import Predictor
from bert.recipes.finetune import FinetuneSettings, finetune
from bert.tasks.few_shot import SHOWN
from bert.text.files import rows

EPOCHS = 3
WAYS: dict[str, dict[str, Any]] = {
    "few_shot": {"task": "few_shot", "epochs": EPOCHS},
    "plain": {"epochs": EPOCHS * SHOWN},
    "regression": {},
}


def drawn(path: Path, each: int, seed: int) -> list[dict[str, Any]]:
    """So many rows of every label."""
    by_label: dict[Any, list[dict[str, Any]]] = {}
    for row in rows(path):
        by_label.setdefault(row.values["label"], []).append(dict(row.values))
    draw = np.random.default_rng(seed)
    return [
        by_label[label][i]
        for label in sorted(by_label, key=str)
        for i in draw.choice(len(by_label[label]), each, replace=False)
    ]


def tuned(train: Path, dev: Path, model: str, out: Path, seed: int, **settings: Any) -> float:
    """The accuracy of a run on the held-out rows."""
    given = {"train": str(train), "dev": str(dev), "model": model, "seed": seed, "evaluations": 1}
    run = finetune(FinetuneSettings.of({**given, **settings}), out)
    figures = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    return float(figures["accuracy"]["value"])


def regressed(train: Path, held_out: tuple[np.ndarray, list[str]], predictor: Predictor) -> float:
    """The accuracy of logistic regression on embeddings."""
    table, labels = vectors(train, predictor)
    fitted = LogisticRegression(max_iter=1000).fit(table, labels)
    return float(np.mean(fitted.predict(held_out[0]) == np.array(held_out[1])))


def vectors(path: Path, predictor: Predictor) -> tuple[np.ndarray, list[str]]:
    """Embeddings and labels of the rows of a file."""
    found = [row.values for row in rows(path)]
    answers = predictor([row["text"] for row in found])
    return np.array([a["embedding"] for a in answers]), [str(row["label"]) for row in found]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("train", type=Path)
    parser.add_argument("dev", type=Path)
    parser.add_argument("model")
    parser.add_argument("--seeds", type=int, default=5, help="at least two")
    parser.add_argument("--each", type=int, default=8, help="rows of every label")
    arguments = parser.parse_args()
    log.speak(False)
    predictor = Predictor(arguments.model, task="embedding")
    held_out = vectors(arguments.dev, predictor)
    scores: dict[str, list[float]] = {}
    seconds: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as place:
        for seed in range(1, arguments.seeds + 1):
            train = Path(place) / f"{seed}.jsonl"
            lines = [json.dumps(row) for row in drawn(arguments.train, arguments.each, seed)]
            train.write_text("\n".join(lines) + "\n", encoding="utf-8")
            for name in WAYS:
                began = time.perf_counter()
                if name == "regression":
                    score = regressed(train, held_out, predictor)
                else:
                    out = Path(place) / f"{name}-{seed}"
                    score = tuned(train, arguments.dev, arguments.model, out, seed, **WAYS[name])
                scores.setdefault(name, []).append(score)
                seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - began
                print(f"seed {seed}  {name:10}  {score:.4f}", flush=True)
    for name, values in scores.items():
        mean = mean_interval(values)
        print(
            f"{name:10}  {mean['value']:.4f} [{mean['low']:.4f}, {mean['high']:.4f}]  "
            f"{seconds[name] / len(values):.0f} s a run"
        )


if __name__ == "__main__":
    main()
