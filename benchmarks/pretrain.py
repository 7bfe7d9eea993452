"""Tokens a second in pretraining: ours beside transformers' Trainer, on the same lines of text.

python benchmarks/pretrain.py TEXT [--tokenizer DIR] [--size mini] [--batch-size 64]
                              [--seconds 60] [--rounds 3]

TEXT has one document a line, or is a corpus file that bert reads. Every contender runs in a
process of its own, in turn, for so many rounds:

    ours            bert's loop in its own precision, packed, logits at masked places only
    peer            run_mlm --line_by_line as it stands: fp32, batches padded to their longest
    peer-best       the same in bf16, batches grouped by length
    ceiling         one large matrix product in bf16 and in fp32: what the machine can do

A token is useful when it is not padding. Time is that of whole steps, from reading a batch to
the weights' update, without the first steps. FLOPs are those of useful tokens: 6 for every
weight of a matrix that a token meets, and attention over its own document.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

LENGTH, VOCABULARY, MASK_RATE = 128, 30522, 0.15
WARM_UP = 1  # steps that are not counted
WARM_UP_SHARE = 0.1  # of the schedule
RUNS = ("ours", "peer", "peer-best", "ceiling")


def documents_of(arguments: argparse.Namespace) -> tuple[list[list[int]], Any]:
    """Token numbers of each document, cut to LENGTH with its special tokens, and the tokenizer."""
    from bert.text.corpus import documents
    from bert.text.tokenizer import Tokenizer, train_wordpiece

    texts = [
        line
        for document in documents([Path(arguments.text)], "text")
        for line in document.text.splitlines()
        if line.strip()
    ]
    folder = Path(arguments.tokenizer)
    if not folder.is_dir():
        train_wordpiece(lambda: texts, vocab_size=VOCABULARY, lowercase=True).save(folder)
    tokenizer = Tokenizer.load(folder)
    return [ids[: LENGTH - 2] for ids in tokenizer.pieces(texts) if ids], tokenizer


def network(size: str) -> Any:
    """The configuration, with as many words as the published tokenizers have."""
    from bert.families.bert import FAMILY

    return FAMILY.size(size, vocab_size=VOCABULARY)


def ours(arguments: argparse.Namespace) -> dict[str, float]:
    """Our own loop, as bert pretrain calls it."""
    from bert import log
    from bert.checkpoint import Checkpoint, write_model
    from bert.data.batches import step_samples
    from bert.data.instances import Spans, text_batch
    from bert.families.bert import FAMILY
    from bert.model.precision import default_device, resolve_precision
    from bert.objectives.mlm import MaskedLM
    from bert.objectives.objective import Objective
    from bert.training.loop import LoopSettings, Step, train
    from bert.training.optim import Budget, build_optimizer
    from bert.training.state import TrainingState

    texts, tokenizer = documents_of(arguments)
    starts = np.cumsum([0, *map(len, texts)])
    number = np.arange(len(texts))
    spans = Spans(np.concatenate(texts), starts, number, number + 1, starts[1:])
    device = default_device()
    torch.manual_seed(arguments.seed)
    model = FAMILY.build("masked_lm", network(arguments.size)).to(device)
    masked = MaskedLM(tokenizer.mask_id, tokenizer.vocab_size, arguments.seed, MASK_RATE)
    objective = Objective([masked])
    useful: dict[int, int] = {}

    def steps(step: int) -> list[Any]:
        epoch, samples = step_samples(
            step, len(spans), arguments.batch_size, arguments.seed, full=True
        )
        batch = text_batch(
            spans, samples, epoch=epoch, cls_id=tokenizer.cls_id, sep_id=tokenizer.sep_id
        )
        useful[step] = len(batch.input_ids)
        return [batch]

    with tempfile.TemporaryDirectory() as folder:
        metrics = log.MetricsFile(Path(folder) / "metrics.jsonl")
        train(
            Step(model, objective, device),
            objective,
            steps,
            build_optimizer(model, "adamw", arguments.learning_rate, 0.01),
            Budget(minutes=arguments.seconds / 60),
            LoopSettings(
                arguments.learning_rate,
                WARM_UP_SHARE,
                1.0,
                arguments.seed,
                resolve_precision("auto", device),
                1,
                0,
                1e9,
            ),
            TrainingState(),
            metrics,
            save=dict,
            evaluate=dict,
            label="ours",
        )
        clock = [row["seconds"] for row in metrics.read()]
    if arguments.keep:
        kept = Checkpoint(model, "masked_lm", FAMILY, tokenizer=tokenizer)
        write_model(Path(arguments.keep), kept)
    done = sum(useful[step] for step in range(WARM_UP, len(clock)))
    return {"tokens_per_second": done / (clock[-1] - clock[WARM_UP - 1]), "steps": len(clock)}


def peer(arguments: argparse.Namespace, best: bool) -> dict[str, float]:
    """BertForMaskedLM under the Trainer, as run_mlm --line_by_line sets it up."""
    import transformers
    from torch.utils.data import Dataset

    class Lines(Dataset[dict[str, list[int]]]):
        def __init__(self, texts: list[list[int]], cls_id: int, sep_id: int) -> None:
            self.rows = [[cls_id, *ids, sep_id] for ids in texts]

        def __len__(self) -> int:
            return len(self.rows)

        def __getitem__(self, index: int) -> dict[str, list[int]]:
            ids = self.rows[index]
            special = [1, *[0] * (len(ids) - 2), 1]
            return {"input_ids": ids, "special_tokens_mask": special, "length": len(ids)}  # type: ignore[dict-item]

    class Clock(transformers.TrainerCallback):  # type: ignore[misc]
        def __init__(self) -> None:
            self.times: list[float] = []
            self.began = time.perf_counter()

        def rate(self, _: int) -> float:
            """Our schedule: linear up and down, by the clock."""
            share = (time.perf_counter() - self.began) / arguments.seconds
            return max(min(share / WARM_UP_SHARE, (1 - share) / (1 - WARM_UP_SHARE)), 0.0)

        def on_train_begin(self, *_: Any, **__: Any) -> None:
            self.began = time.perf_counter()

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.times.append(time.perf_counter())
            control.should_training_stop = self.times[-1] - self.began > arguments.seconds

    texts, tokenizer = documents_of(arguments)
    fast = transformers.AutoTokenizer.from_pretrained(arguments.tokenizer)
    mask = transformers.DataCollatorForLanguageModeling(fast, mlm_probability=MASK_RATE)
    useful: list[int] = []

    def collate(rows: list[dict[str, Any]]) -> Any:
        rows = [{k: v for k, v in row.items() if k != "length"} for row in rows]
        batch = mask(rows)
        useful.append(int(batch["attention_mask"].sum()))
        return batch

    sizes = network(arguments.size)
    model = transformers.BertForMaskedLM(
        transformers.BertConfig(
            vocab_size=VOCABULARY,
            hidden_size=sizes.hidden_size,
            num_hidden_layers=sizes.num_hidden_layers,
            num_attention_heads=sizes.num_attention_heads,
            intermediate_size=sizes.intermediate_size,
        )
    )
    clock = Clock()
    optimizer = torch.optim.AdamW(model.parameters(), arguments.learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, clock.rate)
    with tempfile.TemporaryDirectory() as folder:
        transformers.Trainer(
            model=model,
            args=transformers.TrainingArguments(
                folder,
                per_device_train_batch_size=arguments.batch_size,
                max_steps=10**6,
                seed=arguments.seed,
                bf16=best,
                use_cpu=not torch.cuda.is_available(),
                save_strategy="no",
                report_to=[],
                remove_unused_columns=False,
                disable_tqdm=True,
                logging_strategy="no",
                **(
                    {"train_sampling_strategy": "group_by_length", "length_column_name": "length"}
                    if best
                    else {}
                ),
            ),
            train_dataset=Lines(texts, tokenizer.cls_id, tokenizer.sep_id),
            data_collator=collate,
            callbacks=[clock],
            optimizers=(optimizer, schedule),
        ).train()
    if arguments.keep:
        model.save_pretrained(arguments.keep)
    done = sum(useful[WARM_UP : len(clock.times)])
    elapsed = clock.times[-1] - clock.times[WARM_UP - 1]
    return {"tokens_per_second": done / elapsed, "steps": len(clock.times)}


def ceiling() -> dict[str, float]:
    """FLOP/s of a product of two matrices of 4096 x 4096 (CPU: 2048), the best of ten."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    size = 8192 if device.type == "cuda" else 2048
    figures = {}
    for name, kind in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        a = torch.randn(size, size, device=device).to(kind)
        times = []
        for _ in range(10):
            begin = time.perf_counter()
            (a @ a).flatten()[0].item()
            times.append(time.perf_counter() - begin)
        figures[name] = 2 * size**3 / min(times)
    return figures


def flops_per_token(size: str, length: float) -> float:
    """Forward and backward of one useful token in a document of ``length`` tokens."""
    config = network(size)
    hidden, inner = config.hidden_size, config.intermediate_size
    layer = 4 * hidden**2 + 2 * hidden * inner + 2 * length * hidden
    head = MASK_RATE * (hidden**2 + hidden * config.vocab_size)
    return 6.0 * (config.num_hidden_layers * layer + head)


def run(name: str, arguments: argparse.Namespace) -> dict[str, float]:
    """One contender in a process of its own."""
    command = [sys.executable, __file__, *sys.argv[1:], "--run", name]
    told = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    figures: dict[str, float] = json.loads(told.splitlines()[-1])
    print(name, {key: f"{value:,.0f}" for key, value in figures.items()}, flush=True)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("text")
    parser.add_argument("--tokenizer", default="benchmark-tokenizer")
    parser.add_argument("--size", default="mini")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", help="a folder for the model that was trained")
    parser.add_argument("--run", choices=RUNS)
    arguments = parser.parse_args()
    if arguments.run:
        figures = (
            ceiling()
            if arguments.run == "ceiling"
            else ours(arguments)
            if arguments.run == "ours"
            else peer(arguments, best=arguments.run == "peer-best")
        )
        print(json.dumps(figures))
        return
    texts, _ = documents_of(arguments)  # the tokenizer is trained before the clock runs
    lengths = [len(ids) + 2 for ids in texts]
    mean = sum(n * n for n in lengths) / sum(lengths)  # of the document a token is in
    print(
        f"torch {torch.__version__}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, "
        f"{len(texts):,} documents, mean length {statistics.mean(lengths):.0f}, "
        f"{arguments.size}, batches of {arguments.batch_size}"
    )
    rounds = [{name: run(name, arguments) for name in RUNS} for _ in range(arguments.rounds)]
    speed = {
        name: statistics.median(each[name]["tokens_per_second"] for each in rounds)
        for name in RUNS[:-1]
    }
    top = statistics.median(each["ceiling"]["bf16"] for each in rounds)
    needed = flops_per_token(arguments.size, mean)
    for name, value in speed.items():
        ratios = sorted(
            each["ours"]["tokens_per_second"] / each[name]["tokens_per_second"] for each in rounds
        )
        print(
            f"{name:>10}: {value:9,.0f} useful tokens/s, {value * needed / 1e9:7.1f} GFLOP/s, "
            f"{value * needed / top:5.1%} of the bf16 ceiling; ours is "
            f"{statistics.median(ratios):.2f}x [{ratios[0]:.2f}, {ratios[-1]:.2f}]"
        )


if __name__ == "__main__":
    main()
