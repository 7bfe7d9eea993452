"""``bert finetune``: a pretrained network learns one's own labels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field

from bert import __version__, log
from bert.checkpoint import read_model, write_model
from bert.config import Settings
from bert.data.batches import Batch, pack_sequences, step_samples
from bert.data.rows import (
    DataReport,
    Example,
    choose_columns,
    fingerprint,
    sorted_labels,
    stratified_split,
    training_examples,
)
from bert.distributed import World
from bert.evaluation import check_label, evaluate
from bert.hub import find_model
from bert.model.precision import default_device, resolve_precision
from bert.predictor import Predictor
from bert.recipes.reporting import finetuning_report
from bert.run import choose_folder, open_run, resumable
from bert.tasks.classification import Classification
from bert.tasks.task import load_task
from bert.text.corpus import content_hash
from bert.text.tokenizer import Encoded
from bert.training.loop import LoopSettings, Step, train
from bert.training.optim import Budget, build_optimizer
from bert.training.state import TrainingState, latest_checkpoint, load_checkpoint, save_checkpoint


class FinetuneSettings(Settings):
    """All of ``bert finetune``; lengths in tokens, rates as shares.

    Epochs and batch are in the ranges of Devlin et al. 2018, appendix A.3; warm-up over a
    tenth, then linear decay, as in their code. The rate is theirs (5e-5) for 768 wide models
    and grows as 768 / width for smaller ones.
    """

    train: str
    model: str
    dev: str | None = None
    task: Literal["classification"] = "classification"
    text: list[str] = Field(default_factory=list)
    label: str | None = None
    epochs: int = Field(3, gt=0)
    batch_size: int = Field(32, gt=0)
    micro_batch_tokens: int = Field(8192, gt=0)
    learning_rate: float | None = Field(None, gt=0)
    warmup: float = Field(0.1, ge=0, lt=1)
    weight_decay: float = Field(0.01, ge=0)
    clip_norm: float = Field(1.0, gt=0)
    max_length: int | None = Field(None, ge=8)
    held_out: float = Field(0.1, gt=0, lt=1)
    seed: int = Field(1, ge=0, lt=2**32)
    deterministic: bool = False
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    log_every: int = Field(10, gt=0)
    checkpoint_minutes: float = Field(5.0, gt=0)


@resumable()
def finetune(
    settings: FinetuneSettings, out: Path | None, *, resume: bool = False, overwrite: bool = False
) -> Path:
    """Fine-tune a model on labelled rows and leave a run folder.

    Returns:
        The run folder; ``model/`` in it is the model.

    Raises:
        UsageError, DataError, ModelError: as their names say.
        Interrupted: the checkpoint is saved, ``resume`` goes on from it.
    """
    device = default_device()
    load_task(settings.task)
    folder = choose_folder(out, "finetune", resume=resume, overwrite=overwrite)
    path = Path(settings.train)
    text, label = choose_columns(path, settings.text, settings.label, labelled=True)
    examples, report = training_examples(path, text, label)
    labels = sorted_labels([example.label or "" for example in examples], settings.train)
    if settings.dev is not None:
        held_out, dev_report = training_examples(Path(settings.dev), text, label)
        for example in held_out:
            check_label(example, labels)
    else:
        examples, held_out = stratified_split(examples, settings.held_out, settings.seed)
        dev_report = None
    facts = _data_facts(report, dev_report, examples, held_out)

    data = content_hash([Path(file) for file in (settings.train, settings.dev) if file])
    directory = find_model(settings.model)
    torch.manual_seed(settings.seed)  # a new head is drawn from it
    checkpoint = read_model(directory, kind=Classification.kind, labels=labels)
    checkpoint.foreign.pop("problem_type", None)  # what is learnt here is one label a text
    longest = checkpoint.config.longest_text
    settings = settings.model_copy(
        update={
            "text": list(text),
            "label": label,
            "precision": resolve_precision(settings.precision, device),
            "max_length": min(settings.max_length or longest, longest),
            "learning_rate": settings.learning_rate
            or 5e-5 * max(1.0, 768 / checkpoint.config.hidden_size),
        }
    )
    assert settings.learning_rate is not None
    run = open_run(folder, "finetune", settings, data, resume=resume, overwrite=overwrite)
    torch.use_deterministic_algorithms(settings.deterministic)

    checkpoint.facts = {
        "version": __version__,
        "task": settings.task,
        "text_columns": list(text),
        "label_column": label,
        "texts_per_row": len(text),
        "max_length": settings.max_length,
        "base_model": settings.model,
        "data": data,
    }
    model = checkpoint.model.to(device)
    task = Classification(checkpoint)
    encoded = task.encode([example.texts for example in examples])
    number = {name: i for i, name in enumerate(labels)}
    truth = [number[example.label or ""] for example in examples]
    lengths = [len(row.input_ids) for row in encoded]
    facts["tokens"] = {
        "median": float(np.median(lengths)),
        "95%": float(np.percentile(lengths, 95)),
        "longest": max(lengths),
        "limit": settings.max_length,
        "truncated": sum(row.truncated for row in encoded),
    }
    log.write_json(run / "data_report.json", facts)
    _tell(facts)

    steps = settings.epochs * -(-len(encoded) // settings.batch_size)
    optimizer = build_optimizer(model, "adamw", settings.learning_rate, settings.weight_decay)
    metrics = log.MetricsFile(run / "metrics.jsonl")
    state = TrainingState()
    if resume and (latest := latest_checkpoint(run / "checkpoints")):
        state = load_checkpoint(latest, model, optimizer)
        log.say(f"Going on from step {state.step:,}.")
    metrics.keep_until(state.step)
    train(
        Step(model, task, device),
        task,
        lambda step: _step(encoded, truth, settings, step),
        optimizer,
        Budget(steps=steps),
        LoopSettings(
            learning_rate=settings.learning_rate,
            warmup=settings.warmup,
            clip_norm=settings.clip_norm,
            seed=settings.seed,
            precision=settings.precision,
            log_every=settings.log_every,
            evaluations=0,
            checkpoint_minutes=settings.checkpoint_minutes,
        ),
        state,
        metrics,
        save=lambda: save_checkpoint(run / "checkpoints", model, optimizer, state),
        evaluate=dict,
        world=World(device=device),
        label="Fine-tuning",
    )
    write_model(run / "model", checkpoint)
    # Measured as it will be used: the model that was written, read again.
    figures = evaluate(Predictor(run / "model"), held_out, run)
    most_wrong = figures.pop("most_wrong")
    log.write_json(run / "metrics.json", figures)
    finetuning_report(run, settings, facts, figures, most_wrong, metrics.read(), lengths)
    accuracy, macro = figures["accuracy"], figures["macro"]["f1"]
    log.say(
        f"Held out ({figures['rows']:,} rows): accuracy {_interval(accuracy)}, "
        f"macro F1 {_interval(macro)}"
    )
    log.say(f"Model: {run / 'model'}   Report: {run / 'report.html'}")
    return run


def _step(
    encoded: Sequence[Encoded], truth: Sequence[int], settings: FinetuneSettings, step: int
) -> list[Batch]:
    """The micro-batches of one optimiser step."""
    _, samples = step_samples(step, len(encoded), settings.batch_size, settings.seed)
    tokens = sum(len(encoded[i].input_ids) for i in samples)
    parts = min(-(-tokens // settings.micro_batch_tokens), len(samples))
    return [
        pack_sequences(
            [encoded[i].input_ids for i in part],
            [encoded[i].token_type_ids for i in part],
            part,
            label=[truth[i] for i in part],
        )
        for part in np.array_split(samples, parts)
    ]


def _data_facts(
    report: DataReport,
    dev_report: DataReport | None,
    examples: Sequence[Example],
    held_out: Sequence[Example],
) -> dict[str, Any]:
    """What was read and how it was divided."""
    seen = {fingerprint(example) for example in examples}
    return {
        "train": report.summary(),
        "dev": dev_report.summary() if dev_report else "a stratified share of train",
        "rows_to_train_on": len(examples),
        "rows_held_out": len(held_out),
        "held_out_also_in_train": sum(fingerprint(example) in seen for example in held_out),
    }


def _tell(facts: dict[str, Any]) -> None:
    log.say(
        f"{facts['rows_to_train_on']:,} rows to train on, {facts['rows_held_out']:,} held out, "
        f"{len(facts['train']['labels'])} labels"
    )
    for reason, dropped in facts["train"]["dropped"].items():
        log.notice(
            f"{dropped['rows']} rows were left out: {reason}.",
            where=", ".join(dropped["first"][:3]),
        )
    if facts["held_out_also_in_train"]:
        log.notice(
            f"{facts['held_out_also_in_train']} of the held-out rows have texts that are trained "
            "on too, so the figures flatter.",
            fix="remove them from one of the files",
        )
    tokens = facts["tokens"]
    if tokens["truncated"]:
        log.notice(
            f"{tokens['truncated']} texts are longer than {tokens['limit']} tokens; the model "
            "sees only their beginning.",
            fix="raise max_length, if the model has the positions, or split the texts",
        )


def _interval(figure: dict[str, float]) -> str:
    return f"{figure['value']:.1%} [{figure['low']:.1%}, {figure['high']:.1%}]"
