"""Macro-F1 on rows of 1:50 imbalance: what one option changes.

python benchmarks/imbalance.py TRAIN TEST --model MODEL [--seeds 5]

TRAIN and TEST are files of rows with two labels, such as SST-2. For each seed other rows of
TRAIN are drawn: 2,000 of one label and 40 of the other to train on, 500 and 10 held out, by which
the best epoch is chosen. Every contender learns from the same rows in the same order, once. The
figures are those of all rows of TEST: as they are, and with the rare label's rows weighted so
that they are one to fifty of the others.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np

from bert.metrics.classify import confusion_matrix
from bert.metrics.intervals import mean_interval
from bert.predictor import Predictor
from bert.recipes.finetune import FinetuneSettings, finetune
from bert.text.files import rows

PLAIN = "plain cross-entropy"
CONTENDERS: dict[str, dict[str, object]] = {
    PLAIN: {},
    "logit_adjustment=1": {"logit_adjustment": 1.0},
    "class_weights=balanced": {"class_weights": "balanced"},
    "focal=2": {"focal": 2.0},
}
RATIO, RARE, RARE_HELD_OUT = 50, 40, 10


def read(path: str) -> list[tuple[str, str]]:
    """(text, label) of each row."""
    return [(row.values["text"], str(row.values["label"])) for row in rows(Path(path))]


def macro_f1(confusion: np.ndarray) -> float:
    """The mean F1 of both labels: counts [2, 2], rows true, columns predicted."""
    return float(np.mean(2 * confusion.diagonal() / (confusion.sum(0) + confusion.sum(1))))


def one_to_fifty(confusion: np.ndarray) -> np.ndarray:
    """The confusion matrix with the second label's rows weighted down."""
    scale = confusion[0].sum() / RATIO / confusion[1].sum()
    return confusion * np.array([[1.0], [scale]])


def write(path: Path, chosen: list[tuple[str, str]]) -> Path:
    lines = [json.dumps({"text": text, "label": label}) for text, label in chosen]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("train")
    parser.add_argument("test")
    parser.add_argument("--model", required=True)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--only", nargs="*", choices=CONTENDERS, help="beside plain cross-entropy")
    arguments = parser.parse_args()
    pool, test = read(arguments.train), read(arguments.test)
    names = sorted({label for _, label in test})
    truth = [names.index(label) for _, label in test]
    chosen = {name: CONTENDERS[name] for name in (PLAIN, *(arguments.only or list(CONTENDERS)[1:]))}
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in chosen}
    for seed in range(1, arguments.seeds + 1):
        draw = np.random.default_rng(seed)
        mine = [pool[i] for i in draw.permutation(len(pool))]
        common, rare = ([row for row in mine if row[1] == name] for name in names)
        sizes = (RARE * RATIO, RARE_HELD_OUT * RATIO)
        with tempfile.TemporaryDirectory() as folder:
            at = Path(folder)
            train = write(at / "train.jsonl", common[: sizes[0]] + rare[:RARE])
            held_out = write(
                at / "dev.jsonl",
                common[sizes[0] : sum(sizes)] + rare[RARE : RARE + RARE_HELD_OUT],
            )
            for number, (name, options) in enumerate(chosen.items()):
                settings = FinetuneSettings.of(
                    {
                        "train": str(train),
                        "dev": str(held_out),
                        "model": arguments.model,
                        "epochs": arguments.epochs,
                        "seed": seed,
                        **options,
                    }
                )
                run = finetune(settings, at / f"run-{number}", restarts=0)
                answers = Predictor(run)([text for text, _ in test])
                given = [names.index(answer["label"]) for answer in answers]
                confusion = confusion_matrix(truth, given, 2)
                found[name].append((macro_f1(one_to_fifty(confusion)), macro_f1(confusion)))
                figures = json.loads((run / "metrics.json").read_text("utf-8"))
                print(
                    f"seed {seed} {name}: macro-F1 at 1:{RATIO} {found[name][-1][0]:.3f}, as it is "
                    f"{found[name][-1][1]:.3f}, held out {figures['macro']['f1']['value']:.3f}, "
                    f"{confusion.tolist()}",
                    flush=True,
                )
    print("\n| | macro-F1 at 1:50 | points above plain | as it is | points above plain |")
    print("| --- | --- | --- | --- | --- |")
    for name, scores in found.items():
        cells = [name]
        for column in (0, 1):
            values = [100 * score[column] for score in scores]
            plain = [100 * score[column] for score in found[PLAIN]]
            cells.append(interval(values))
            gain = [value - other for value, other in zip(values, plain, strict=True)]
            cells.append("" if name == PLAIN else interval(gain))
        print(f"| {' | '.join(cells)} |")


def interval(values: list[float]) -> str:
    """Mean over seeds and its 95% interval."""
    if len(values) < 2:
        return f"{values[0]:.1f}"
    found = mean_interval(values)
    return f"{found['value']:.1f} [{found['low']:.1f}, {found['high']:.1f}]"


if __name__ == "__main__":
    main()
