"""``bert finetune``: a pretrained network learns one's own labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, Self, cast

import numpy as np
import torch
from pydantic import Field, create_model
from torch import nn

from bert import __version__, log
from bert.checkpoint import FACTS, Checkpoint, read_model, write_model
from bert.compress.distil import TaskDistillation, check_teacher
from bert.config import Settings
from bert.data.batches import Batch, step_samples
from bert.data.rows import (
    DataReport,
    Example,
    fingerprint,
    stratified_split,
    training_examples,
)
from bert.distributed import World, joined, wrap
from bert.errors import UsageError
from bert.evaluation import calibrated, measure, primary
from bert.hub import find_model
from bert.inference.int8 import encoder_of
from bert.model.embeddings import FewRowsEmbedding
from bert.model.precision import default_device, resolve_precision
from bert.predictor import Predictor, answers
from bert.recipes.gate import choose_precision
from bert.recipes.reporting import finetuning_report
from bert.run import choose_folder, open_run, resumable
from bert.tasks.task import Sample, Task, load_task
from bert.text.corpus import hash_of_files
from bert.training.loop import LoopSettings, Step, Trainable, train
from bert.training.optim import Budget, build_optimizer
from bert.training.state import TrainingState, latest_checkpoint, load_checkpoint, save_checkpoint

# Held-out rows that evaluations during training look at.
MOST_EVALUATED = 2000
# How often a run that learnt nothing is started again (Mosbach et al. 2021: such runs lose
# their gradient early on, which a longer warm-up helps).
RESTARTS = 2
FEWEST_STEPS = 150  # for which more epochs are taken, up to 10
FEWEST_TO_JUDGE = 20  # held-out rows; fewer may well have one answer
SPLIT_SEED = 1  # the same rows are held out whatever the seed of the training


class FinetuneSettings(Settings):
    """All of ``bert finetune``; lengths in tokens, rates as shares.

    The batch is in the range of Devlin et al. 2018, appendix A.3, and so are the epochs unless
    rows are few; warm-up over a tenth, then linear decay, as in their code. The rate is theirs
    (5e-5) for 768 wide models and grows as 768 / width for smaller ones. A task adds settings
    of its own.
    """

    train: str
    model: str
    dev: str | None = None
    test: str | None = None
    task: str = "classification"
    text: list[str] = Field(default_factory=list)
    label: str | None = None
    epochs: int | None = Field(None, gt=0)
    batch_size: int = Field(32, gt=0)
    micro_batch_tokens: int = Field(8192, gt=0)
    learning_rate: float | None = Field(None, gt=0)
    layer_decay: float = Field(1.0, gt=0, le=1)
    frozen_layers: int = Field(0, ge=0)
    warmup: float = Field(0.1, ge=0, lt=1)
    schedule: Literal["linear", "cosine", "trapezoidal"] = "linear"
    weight_decay: float = Field(0.01, ge=0)
    clip_norm: float = Field(1.0, gt=0)
    max_length: int | None = Field(None, ge=8)
    held_out: float = Field(0.1, gt=0, lt=1)
    slices: str = ""
    evaluations: int | None = Field(None, gt=0)
    patience: int | None = Field(None, gt=0)
    teacher: str | None = None
    seed: int = Field(1, ge=0, lt=2**32)
    deterministic: bool = False
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    log_every: int = Field(10, gt=0)
    checkpoint_minutes: float = Field(5.0, gt=0)

    @classmethod
    def of(cls, values: Mapping[str, Any], places: Mapping[str, str] | None = None) -> Self:
        """Settings from values, among which may be those of the task."""
        try:
            task = load_task(str(values.get("task") or cls.model_fields["task"].default))
        except UsageError as error:
            raise UsageError(error.what, where=(places or {}).get("task"), fix=error.fix) from None
        return cast(Self, super(FinetuneSettings, _with(task.Options)).of(values, places))

    def options(self, kind: type[Settings]) -> Settings:
        """The part of the settings that is the task's own."""
        mine = {name: getattr(self, name) for name in kind.model_fields if hasattr(self, name)}
        return kind.of(mine)


@cache
def _with(options: type[Settings]) -> type[FinetuneSettings]:
    """The settings together with those of a task."""
    bases: Any = (FinetuneSettings, options)
    return cast(type[FinetuneSettings], create_model("FinetuneSettings", __base__=bases))


@dataclass(frozen=True)
class Rows:
    """What is learnt from, and what is measured on."""

    train: list[Example]
    held_out: list[Example]
    test: list[Example]
    facts: dict[str, Any]
    hash: str


@resumable()
def finetune(
    settings: FinetuneSettings,
    out: Path | None,
    *,
    resume: bool = False,
    overwrite: bool = False,
    restarts: int = RESTARTS,
) -> Path:
    """Fine-tune a model on rows with answers and leave a run folder.

    Started by ``torchrun``, the processes train as one.

    Args:
        settings: of the run.
        out: the run folder, or None for the first free ``runs/finetune-N``.
        resume: go on in a folder that holds the same run.
        overwrite: empty the folder first, if it is a run folder.
        restarts: how often a run that learnt nothing is started again.

    Returns:
        The run folder; ``model/`` in it is the model.

    Raises:
        UsageError, DataError, ModelError: as their names say.
        Interrupted: the checkpoint is saved, ``resume`` goes on from it.
    """
    with joined(default_device()) as world:
        return _finetune(settings, out, world, restarts, resume=resume, overwrite=overwrite)


def _finetune(
    settings: FinetuneSettings,
    out: Path | None,
    world: World,
    restarts: int,
    *,
    resume: bool,
    overwrite: bool,
) -> Path:
    kind = load_task(settings.task)
    folder: Path = world.told(
        choose_folder(out, "finetune", resume=resume, overwrite=overwrite) if world.first else None
    )
    rows = read_rows(settings, kind)
    labels = kind.labels_of(rows.train, settings.train)
    epochs = settings.epochs or kind.epochs or usual_epochs(len(rows.train), settings.batch_size)
    settings = settings.model_copy(update={"epochs": epochs})
    attempt = _last_attempt(folder) if resume else 0
    settings, checkpoint, task = _begin(settings, kind, labels, attempt, rows.hash, world)
    for example in (*rows.held_out, *rows.test):
        task.check(example)
    objective = _objective(settings, checkpoint, task, rows, world)
    with world.first_before_others():
        run = folder
        if world.first:
            run = open_run(
                folder, "finetune", settings, rows.hash, resume=resume, overwrite=overwrite
            )
    torch.use_deterministic_algorithms(settings.deterministic)
    samples = task.samples(rows.train)
    lengths = [sample.encoded.tokens for sample in samples]
    tokens = _token_facts(samples, lengths, task.max_length)
    facts = {**rows.facts, **task.remarks, "tokens": tokens}
    if world.first:
        log.write_json(run / "data_report.json", facts)
    _tell(facts)

    metrics = log.MetricsFile(run / "metrics.jsonl")

    def fitted() -> TrainingState:
        return _fit(
            settings, attempt, checkpoint, samples, task, objective, rows, run, metrics, world,
            resume=resume,
        )  # fmt: skip

    while not (state := fitted()).learnt and attempt < restarts:
        attempt += 1
        resume = False
        log.notice(
            "The model has learnt nothing, it answers every row alike; it is trained again, "
            "from another seed and with a longer warm-up."
        )
        _, checkpoint, task = _begin(settings, kind, labels, attempt, rows.hash, world)
        samples = task.samples(rows.train)
        objective = _objective(settings, checkpoint, task, rows, world)
    if not world.first:
        return run
    figures = {
        **_measured(run, settings, rows),
        "primary_metric": task.primary_metric,
        "evaluations": settings.evaluations,
        "restarts": attempt,
        "learnt": state.learnt,
        "steps": state.step,
        "seconds": round(state.seconds, 1),
    }
    if not state.learnt:
        log.notice(
            f"The model has learnt nothing in {attempt + 1} attempts; the figures are those of "
            "one constant answer.",
            fix="look at the data with bert check, give more rows or epochs, or logit_adjustment=1 "
            "where a label is rare",
        )
    most_wrong = figures.pop("most_wrong")
    log.write_json(run / "metrics.json", figures)
    finetuning_report(run, settings, task, facts, figures, most_wrong, metrics.read(), lengths)
    score = primary(task, figures)
    log.say(
        f"Held out ({figures['rows']:,} rows): {task.primary_metric.replace('.', ' ')} "
        f"{score['value']:.4f} [{score['low']:.4f}, {score['high']:.4f}]"
    )
    log.say(f"Model: {run / 'model'}   Report: {run / 'report.html'}")
    return run


def usual_rate(hidden_size: int) -> float:
    """The peak learning rate where none is given: that of Devlin et al. 2018, more if narrow."""
    return 5e-5 * max(1.0, 768 / hidden_size)


def usual_epochs(rows: int, batch_size: int) -> int:
    """Passes over the rows where none are given: 3, more where those are few steps.

    Models learn few rows better in more steps (Mosbach et al. 2021).
    """
    return min(10, max(3, -(-FEWEST_STEPS // -(-rows // batch_size))))


def read_rows(settings: FinetuneSettings, kind: type[Task]) -> Rows:
    """The rows of all files, and those held out where no file has them.

    Raises:
        DataError: a file cannot be read, or has nothing to learn from.
    """

    # The columns of the training file are wanted of the others too.
    text = kind.text_columns(Path(settings.train), settings.text)

    def of(file: str) -> tuple[list[Example], DataReport]:
        examples = kind.read(Path(file), text, settings.label, labelled=True)
        return training_examples(examples, kind.names, file)

    examples, report = of(settings.train)
    facts: dict[str, Any] = {"train": report.summary()}
    if settings.dev is not None:
        held_out, dev_report = of(settings.dev)
        facts["dev"] = dev_report.summary()
    else:
        examples, held_out = stratified_split(
            examples, kind.names, kind.group, settings.held_out, SPLIT_SEED
        )
        facts["dev"] = "a stratified share of train"
    test: list[Example] = []
    if settings.test is not None:
        test, test_report = of(settings.test)
        facts["test"] = test_report.summary()
    seen = {fingerprint(example) for example in examples}
    facts |= {
        "rows_to_train_on": len(examples),
        "rows_held_out": len(held_out),
        "held_out_also_in_train": sum(fingerprint(example) in seen for example in held_out),
    }
    files = [Path(file) for file in (settings.train, settings.dev, settings.test) if file]
    return Rows(examples, held_out, test, facts, hash_of_files(files))


def _begin(
    settings: FinetuneSettings,
    kind: type[Task],
    labels: Sequence[str],
    attempt: int,
    data: str,
    world: World,
) -> tuple[FinetuneSettings, Checkpoint, Task]:
    """The settings with nothing left open, and the model as an attempt begins with it."""
    torch.manual_seed(_seed(settings, attempt))  # a new head is drawn from it
    directory = find_model(settings.model)
    checkpoint = read_model(directory, kind=kind.kind, labels=labels or None, trainable=True)
    config = checkpoint.config
    settings = settings.model_copy(
        update={
            "precision": resolve_precision(settings.precision, world.device),
            "max_length": min(settings.max_length or config.longest_text, config.longest_text),
            "learning_rate": settings.learning_rate
            or kind.rate_share * usual_rate(config.hidden_size),
            "evaluations": settings.evaluations or settings.epochs,
            "text": list(kind.text_columns(Path(settings.train), settings.text)),
        }
    )
    options = settings.options(kind.Options)
    checkpoint.facts = {
        "version": __version__,
        "task": settings.task,
        "options": options.model_dump(mode="json"),
        "text_columns": list(settings.text),
        "label_column": settings.label,
        "texts_per_row": max(len(settings.text), 1),
        "max_length": settings.max_length,
        "base_model": settings.model,
        "data": data,
    }
    checkpoint.foreign.pop("problem_type", None)
    if kind.problem_type is not None:
        checkpoint.foreign["problem_type"] = kind.problem_type
    checkpoint.model.to(world.device)
    return settings, checkpoint, kind(checkpoint, options)


def _objective(
    settings: FinetuneSettings, checkpoint: Checkpoint, task: Task, rows: Rows, world: World
) -> Trainable[Batch]:
    """What is learnt: the task, from a teacher too where the settings name one."""
    if settings.teacher is None:
        return task
    teacher = read_model(find_model(settings.teacher))
    check_teacher(task, checkpoint, teacher, settings.teacher)
    if task.problem_type == "regression":
        # The teacher shall answer in the units in which numbers are learnt.
        type(task)(teacher, task.options).samples(rows.train)
    return TaskDistillation(task, teacher.model.to(world.device))


def _fit(
    settings: FinetuneSettings,
    attempt: int,
    checkpoint: Checkpoint,
    samples: Sequence[Sample],
    task: Task,
    objective: Trainable[Batch],
    rows: Rows,
    run: Path,
    metrics: log.MetricsFile,
    world: World,
    *,
    resume: bool,
) -> TrainingState:
    """Train once, and leave the best model of all evaluations in ``model/``.

    Returns:
        Where training ended; ``learnt`` tells whether that model answers different rows
        differently.

    Raises:
        UsageError: there are more processes than rows in a step.
    """
    assert settings.learning_rate is not None
    assert settings.evaluations is not None
    assert settings.epochs is not None
    model = checkpoint.model
    steps = -(-len(samples) // settings.batch_size)  # of an epoch
    if len(samples) // steps < world.size:
        raise UsageError(
            f"There are {world.size} processes, but a step has only {len(samples) // steps} rows.",
            fix="start fewer processes, or raise batch_size",
        )
    if not settings.frozen_layers:
        _train_used_words(model, samples)
    optimizer = build_optimizer(
        model,
        "adamw",
        settings.learning_rate,
        settings.weight_decay,
        layer_decay=settings.layer_decay,
        frozen_layers=settings.frozen_layers,
    )
    module = wrap(Step(model, objective, world.device), world)
    folder = _attempt_folder(run, attempt)
    state = TrainingState()
    if resume and (latest := latest_checkpoint(folder)):
        state = load_checkpoint(latest, model, optimizer)
        log.say(f"Going on from step {state.step:,}.")
    elif attempt and world.first:
        folder.mkdir(parents=True, exist_ok=True)
    metrics.keep_until(state.step)
    watched = rows.held_out[:: -(-len(rows.held_out) // MOST_EVALUATED)]

    def batches(step: int) -> list[Batch]:
        """This process's micro-batches of one optimiser step."""
        seed = _seed(settings, attempt)
        epoch, chosen = step_samples(step, len(samples), settings.batch_size, seed)
        tokens = sum(samples[i].encoded.tokens for i in chosen)
        parts = -(-tokens // (settings.micro_batch_tokens * world.size))
        parts = 1 if task.whole_batches else parts
        return [
            task.batch([samples[i] for i in part], part, epoch, seed)
            # Equally many in every process, and a row in each.
            for part in np.array_split(world.share(chosen), min(parts, len(chosen) // world.size))
        ]

    def evaluation() -> dict[str, float]:
        task.settle(model, world.device)
        texts = [example.texts for example in watched]
        given = list(answers(task, model, texts, settings.precision, world.device))
        # As it would be used: with temperature and thresholds.
        figures = measure(task, zip(watched, calibrated(task, watched, given)[1], strict=True))
        score = primary(task, figures)["value"]
        better = score if task.greater_is_better else -score
        state.stale += 1
        if state.best is None or better > state.best:
            state.stale = 0
        # Of equal ones the later is kept, which has learnt from more.
        if state.best is None or better >= state.best:
            state.best = better
            state.learnt = len(given) < FEWEST_TO_JUDGE or not task.constant(given)
            if world.first:
                with task.published(model):
                    write_model(run / "model", checkpoint)
                checkpoint.others = []  # they were named once
        return {f"held_out_{task.primary_metric}": score}

    train(
        module,
        objective,
        batches,
        optimizer,
        Budget(steps=settings.epochs * steps),
        LoopSettings(
            learning_rate=settings.learning_rate,
            warmup=min(settings.warmup * 2**attempt, 0.5),
            schedule=settings.schedule,
            clip_norm=settings.clip_norm,
            seed=_seed(settings, attempt),
            precision=settings.precision,
            log_every=settings.log_every,
            evaluations=settings.evaluations,
            patience=settings.patience,
            checkpoint_minutes=settings.checkpoint_minutes,
        ),
        state,
        metrics,
        save=lambda: save_checkpoint(folder, model, optimizer, state, world),
        evaluate=evaluation,
        world=world,
        label="Fine-tuning",
    )
    return state


def _train_used_words(model: nn.Module, samples: Sequence[Sample]) -> None:
    """Leave the embeddings of words that no row has as they are, where those are many.

    Memory that is passed over takes a good part of a step on a CPU. It is so on every device,
    that the same weights decay and a run can go on where it did not begin.
    """
    embeddings = encoder_of(model).embeddings
    ids = {0}  # with which batches are filled
    for sample in samples:
        for window in sample.encoded.windows:
            ids.update(window.input_ids)
    # With more rows their copies would take the memory that gradients and moments spare.
    if type(embeddings.word) is nn.Embedding and 4 * len(ids) < 3 * embeddings.word.num_embeddings:
        used = torch.tensor(sorted(ids), device=embeddings.word.weight.device)
        embeddings.word = FewRowsEmbedding(embeddings.word, used)  # type: ignore[assignment]


def _measured(run: Path, settings: FinetuneSettings, rows: Rows) -> dict[str, Any]:
    """The figures of the model as it will be used: written, read again, calibrated."""
    if settings.precision == "bf16":
        choose_precision(run / "model", rows.held_out)
    predictor = Predictor(run / "model")
    task = predictor.task
    texts = [example.texts for example in rows.held_out]
    given = list(answers(task, predictor.model, texts, predictor.precision, predictor.device))
    calibration, decided = calibrated(task, rows.held_out, given)
    if calibration:
        log.write_json(run / "model" / FACTS, {**predictor.facts, "calibration": calibration})
    figures = measure(task, zip(rows.held_out, decided, strict=True), run, settings.slices)
    figures["precision"] = predictor.precision
    if calibration:
        figures["calibration"] = calibration
    if rows.test:
        last = Predictor(run / "model")  # with its calibration
        given = last([example.texts for example in rows.test])
        answered = zip(rows.test, given, strict=True)
        figures["test"] = measure(last.task, answered, by=settings.slices)
        del figures["test"]["most_wrong"]
    return figures


def _seed(settings: FinetuneSettings, attempt: int) -> int:
    return settings.seed + 1_000_003 * attempt


def _attempt_folder(run: Path, attempt: int) -> Path:
    return run / "checkpoints" / f"restart-{attempt}" if attempt else run / "checkpoints"


def _last_attempt(run: Path) -> int:
    """The attempt in which a run was interrupted."""
    return max((n for n in range(RESTARTS + 1) if _attempt_folder(run, n).is_dir()), default=0)


def _token_facts(
    samples: Sequence[Sample], lengths: Sequence[int], limit: int
) -> dict[str, float | int]:
    return {
        "median": float(np.median(lengths)),
        "95%": float(np.percentile(lengths, 95)),
        "longest": max(lengths),
        "limit": limit,
        "in_windows": sum(sample.encoded.pieces > 1 for sample in samples),
        "truncated": sum(sample.encoded.truncated for sample in samples),
    }


def _tell(facts: dict[str, Any]) -> None:
    labels = len(facts["train"]["labels"])
    log.say(
        f"{facts['rows_to_train_on']:,} rows to train on, {facts['rows_held_out']:,} held out"
        + (f", {labels} label{'s' * (labels != 1)}" if labels else "")
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
    if tokens["in_windows"]:
        log.say(
            f"{tokens['in_windows']:,} texts are longer than {tokens['limit']} tokens and are "
            "read in overlapping windows."
        )
    if tokens["truncated"]:
        log.notice(
            f"Of {tokens['truncated']:,} pairs both texts are long; only the beginning of one "
            "of them is read.",
            fix="raise max_length, if the model has the positions, or shorten the texts",
        )
