"""What it costs on a CPU when every training step has its own shapes, and gives memory back.

python benchmarks/shapes.py [--steps 150] [--rounds 3]

The network is 6 layers x 384; a step learns from 32 texts of 4 to 30 tokens, in bf16 where the
machine has it. Each way runs in a process of its own, in turn:

    plain       rows and lengths as they come
    rounded     rows and lengths rounded up (``bert/model/packing.py``)
    kept        rounded, and large blocks that are freed stay with the process

Time is the median of the steps after the first third; memory is the largest resident size.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time

import numpy as np
import torch

WAYS = ("plain", "rounded", "kept")


def measure(way: str, steps: int) -> dict[str, float]:
    from bert.heap import keep_freed_memory
    from bert.model import packing
    from bert.model.encoder import BERT
    from bert.model.heads import BertForSequenceClassification
    from bert.model.packing import Tokens
    from bert.model.precision import arithmetic, resolve_precision
    from bert.training.optim import build_optimizer

    if way == "plain":
        packing.ROWS_STEP = packing.LENGTH_STEP = 1
        packing.SHORT = 0
    if way == "kept":
        keep_freed_memory()
    cpu = torch.device("cpu")
    precision = resolve_precision("auto", cpu)
    torch.manual_seed(0)
    model = BertForSequenceClassification(
        BERT(hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536)
    )
    optimizer = build_optimizer(model, "adamw", 1e-4, 0.01)
    generator = np.random.default_rng(0)
    seconds = []
    for _ in range(steps):
        lengths = np.clip(generator.gamma(2.5, 5.0, 32), 4, 30).astype(np.int64)
        count = int(lengths.sum())
        zeros = np.zeros(count, np.int64)
        places = np.concatenate([np.arange(length) for length in lengths])
        words = generator.integers(5, 30000, count)
        begun = time.perf_counter()
        with arithmetic(precision, cpu):
            tokens = Tokens.of(words, zeros, places, lengths, cpu)
            loss = model.logits(tokens).float().logsumexp(-1).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        seconds.append(time.perf_counter() - begun)
    return {
        "milliseconds": 1000 * statistics.median(seconds[steps // 3 :]),
        "MiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--way", choices=WAYS)
    arguments = parser.parse_args()
    if arguments.way:
        print(json.dumps(measure(arguments.way, arguments.steps)))
        return
    found: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    for _ in range(arguments.rounds):
        for way in WAYS:
            command = [sys.executable, __file__, "--way", way, "--steps", str(arguments.steps)]
            text = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            found[way].append(json.loads(text.splitlines()[-1]))
    for way, rounds in found.items():
        middle = {key: statistics.median(one[key] for one in rounds) for key in rounds[0]}
        print(f"{way:>8}: " + ", ".join(f"{value:,.0f} {key}" for key, value in middle.items()))


if __name__ == "__main__":
    main()
