"""Held-out loss of masked words after equal wall-clock time: ours beside the Trainer at its best.

python benchmarks/held_out_loss.py TRAIN HELD_OUT [--tokenizer DIR] [--minutes 10] [--seeds 1 2 3]

Both contenders of benchmarks/pretrain.py train from the same seeds on the same lines with the
same size, batch, peak rate and schedule by the clock; the Trainer in bf16 with batches grouped
by length. They run at the same time, each on one half of the processor's cores, so that
whatever else the machine does falls on both. Both models are judged by transformers, in fp32,
on the same masked places of HELD_OUT.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pretrain
import torch
import torch.nn.functional as F

CONTENDERS = ("ours", "peer-best")
ROWS = 32


def held_out_loss(model_folder: Path, texts: list[list[int]], tokenizer_folder: str) -> float:
    """Mean loss in nats over the masked places of all texts; the masks are the same each time."""
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(tokenizer_folder)
    model = transformers.AutoModelForMaskedLM.from_pretrained(model_folder).eval()
    generator = torch.Generator().manual_seed(0)
    total, count = 0.0, 0
    order = sorted(texts, key=len)
    for start in range(0, len(order), ROWS):
        rows = [
            [tokenizer.cls_token_id, *ids, tokenizer.sep_token_id]
            for ids in order[start : start + ROWS]
        ]
        padded = tokenizer.pad({"input_ids": rows}, return_tensors="pt")
        ids, seen = padded["input_ids"], padded["attention_mask"].bool()
        special = (ids == tokenizer.cls_token_id) | (ids == tokenizer.sep_token_id)
        masked = seen & ~special & (torch.rand(ids.shape, generator=generator) < pretrain.MASK_RATE)
        with torch.inference_mode():
            logits = model(
                ids.masked_fill(masked, tokenizer.mask_token_id), attention_mask=seen.long()
            ).logits
        total += F.cross_entropy(logits[masked].float(), ids[masked], reduction="sum").item()
        count += int(masked.sum())
    return total / count


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("train")
    parser.add_argument("held_out")
    parser.add_argument("--tokenizer", default="benchmark-tokenizer")
    parser.add_argument("--size", default="mini")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    arguments = parser.parse_args()

    source = {"tokenizer": arguments.tokenizer}
    pretrain.documents_of(SimpleNamespace(text=arguments.train, **source))  # type: ignore[arg-type]
    texts, _ = pretrain.documents_of(SimpleNamespace(text=arguments.held_out, **source))  # type: ignore[arg-type]
    cores = sorted(os.sched_getaffinity(0))
    half = max(len(cores) // 2, 1)
    won = 0
    for seed in arguments.seeds:
        with tempfile.TemporaryDirectory() as folder:
            runs = {}
            for name, mine in zip(CONTENDERS, (cores[:half], cores[-half:]), strict=True):
                command = [
                    *("taskset", "-c", ",".join(map(str, mine)), sys.executable),
                    *(pretrain.__file__, arguments.train, "--tokenizer", arguments.tokenizer),
                    *("--size", arguments.size, "--batch-size", str(arguments.batch_size)),
                    *("--learning-rate", str(arguments.learning_rate), "--seed", str(seed)),
                    *("--seconds", str(60 * arguments.minutes), "--run", name),
                    *("--keep", f"{folder}/{name}"),
                ]
                runs[name] = subprocess.Popen(
                    command,
                    stdout=subprocess.PIPE,
                    text=True,
                    env={**os.environ, "OMP_NUM_THREADS": str(half)},
                )
            loss = {}
            for name, process in runs.items():
                told, _ = process.communicate()
                if process.returncode:
                    raise SystemExit(f"{name} ended with {process.returncode}")
                figures = json.loads(told.splitlines()[-1])
                loss[name] = held_out_loss(Path(folder) / name, texts, arguments.tokenizer)
                print(
                    f"seed {seed} {name:>9}: held-out loss {loss[name]:.3f}, "
                    f"{figures['steps']:,.0f} steps, "
                    f"{figures['tokens_per_second']:,.0f} useful tokens/s",
                    flush=True,
                )
        won += loss["ours"] < loss["peer-best"]
    print(f"ours is lower in {won} of {len(arguments.seeds)} seeds")


if __name__ == "__main__":
    main()
