"""Does an answer depend on the texts beside it? Labels and probabilities, together and alone.

python benchmarks/batch_mates.py MODEL FILE [--texts 10000] [--precisions fp32 bf16]

MODEL is a classifier, FILE has a column ``text``. All texts are answered together, as ``bert
predict`` does it, and one by one; printed are the labels that changed and the largest difference
of a probability. A model in int8 takes ``--precisions int8``.
"""

from __future__ import annotations

import argparse
import itertools
import time
from pathlib import Path

from bert.predictor import Predictor
from bert.text.files import rows


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("file", type=Path)
    parser.add_argument("--texts", type=int, default=10000)
    parser.add_argument("--precisions", nargs="+", default=["fp32", "bf16"])
    arguments = parser.parse_args()
    found = itertools.islice(rows(arguments.file), arguments.texts)
    texts = [str(row.values["text"]) for row in found]
    for precision in arguments.precisions:
        predictor = Predictor(arguments.model, precision)
        begun = time.perf_counter()
        together = predictor(texts)
        between = time.perf_counter()
        alone = [predictor(text) for text in texts]
        ended = time.perf_counter()
        flips, most = 0, 0.0
        for one, other in zip(together, alone, strict=True):
            flips += one["label"] != other["label"]
            both = one["probabilities"], other["probabilities"]
            most = max(most, *(abs(both[0][label] - both[1][label]) for label in both[0]))
        print(
            f"{precision}: {len(texts):,} texts together ({between - begun:.0f} s) and alone "
            f"({ended - between:.0f} s): {flips} labels changed, largest difference of a "
            f"probability {most:.1e}",
            flush=True,
        )


if __name__ == "__main__":
    main()
