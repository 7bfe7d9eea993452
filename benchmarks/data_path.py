"""How fast one process makes pretraining batches, and when the data path would break first.

python benchmarks/data_path.py SHARDS [--length 512] [--batch-size 256] [--seconds 10]

SHARDS is what bert prepare wrote. Batches are cut, packed and masked as in training, on one
core and without a network. Beside the rate stand the bytes that a step sends between processes,
and what they and the text on disk come to for 100 billion tokens, at a rate of the network that
is given or assumed: --gpu-rate, tokens a second of one GPU.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from bert.data.batches import step_samples
from bert.data.instances import split_held_out, text_batch
from bert.data.shards import open_shards
from bert.families.bert import FAMILY
from bert.objectives.mlm import MaskedLM
from bert.objectives.objective import Objective

TOKENS = 100e9
WORLDS = (1, 8, 64)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("shards", type=Path)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--size", default="base")
    parser.add_argument("--gpu-rate", type=float, default=600_000.0)
    arguments = parser.parse_args()
    shards, tokenizer = open_shards(arguments.shards)
    spans, _ = split_held_out(shards, arguments.length - 2, 0.01, 1)
    objective = Objective([MaskedLM(tokenizer.mask_id, tokenizer.vocab_size, 1)])
    tokens, step, began = 0, 0, time.perf_counter()
    while (elapsed := time.perf_counter() - began) < arguments.seconds:
        epoch, samples = step_samples(step, len(spans), arguments.batch_size, 1, full=True)
        batch = text_batch(
            spans, samples, epoch=epoch, cls_id=tokenizer.cls_id, sep_id=tokenizer.sep_id
        )
        tokens += len(objective.prepare(batch).input_ids)
        step += 1
    rate = tokens / elapsed
    config = FAMILY.size(arguments.size, vocab_size=tokenizer.vocab_size)
    with_weights = FAMILY.build("masked_lm", config)
    weights = sum(parameter.numel() for parameter in with_weights.parameters())
    tokens_a_step = tokens / step
    print(f"one process makes {rate:,.0f} tokens/s ({tokens_a_step:,.0f} a step)")
    print(f"{arguments.size}: {weights / 1e6:.1f} million weights")
    print(f"at {arguments.gpu_rate:,.0f} tokens/s a GPU, which is {arguments.gpu_rate / rate:.2f}")
    print("of what one process makes, for 100 billion tokens:")
    for world in WORLDS:
        seconds = TOKENS / (world * arguments.gpu_rate)
        reading = world * arguments.gpu_rate * shards.tokens.itemsize
        # A ring sends and receives twice the gradients, less one part in the world's size.
        sent = 2 * (world - 1) / world * weights * 4
        step_seconds = tokens_a_step / arguments.gpu_rate
        print(
            f"{world:>3} GPUs: {seconds / 3600:6.1f} hours, shards read at "
            f"{reading / 1e6:7.1f} MB/s, {sent / step_seconds / 1e9:5.2f} GB/s to and from each GPU"
        )


if __name__ == "__main__":
    main()
