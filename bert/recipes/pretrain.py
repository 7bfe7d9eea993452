"""``bert pretrain``: a network from one's own text, without labels."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from pydantic import Field

from bert import log
from bert.checkpoint import read_tokenizer, write_model
from bert.config import Settings
from bert.data.batches import Batch, step_samples
from bert.data.instances import Spans, split_held_out
from bert.data.shards import Shards, build_shards, is_shards, open_shards
from bert.distributed import World, joined, whole, wrap
from bert.errors import UsageError
from bert.families.family import family_names, load_family
from bert.model.precision import arithmetic, default_device, resolve_precision
from bert.objectives.rtd import FAMILY as RTD_FAMILY
from bert.recipes.plans import EVALUATION_SEED, SPECIAL_TOKENS, TITLES, Plan, plan_for
from bert.recipes.reporting import pretraining_report
from bert.recipes.tokenizer import corpus_tokenizer
from bert.run import choose_folder, open_run, resumable
from bert.text.corpus import corpus_files
from bert.text.tokenizer import Tokenizer
from bert.training.loop import LoopSettings, Step, train
from bert.training.optim import Budget, build_optimizer
from bert.training.probe import fitting_tokens
from bert.training.state import TrainingState, latest_checkpoint, load_checkpoint, save_checkpoint

# Peak learning rate by size, for the default batch.
RATES = {
    "tiny": 1e-3,
    "mini": 1e-3,
    "small": 5e-4,
    "medium": 5e-4,
    "base": 2e-4,
    "large": 1e-4,
}
EVALUATION_BATCH = 64


class PretrainSettings(Settings):
    """All of ``bert pretrain``; lengths in tokens, rates as shares."""

    corpus: list[str]
    objective: Literal["mlm+nsp", "mlm+sop", "mlm", "rtd", "distill"] = "mlm+nsp"
    family: str = "bert"
    size: str = "mini"
    start: str | None = None
    teacher: str | None = None
    steps: int | None = Field(None, gt=0)
    minutes: float | None = Field(None, gt=0)
    tokenizer: str | None = None
    text_column: str = "text"
    vocab_size: int = Field(30522, gt=5)
    lowercase: bool = True
    sequence_length: int = Field(128, ge=8, le=8192)
    batch_size: int = Field(64, gt=0)
    micro_batch_tokens: int = Field(8192, gt=0)
    learning_rate: float | None = Field(None, gt=0)
    warmup: float = Field(0.1, ge=0, lt=1)
    schedule: Literal["linear", "cosine", "trapezoidal"] = "linear"
    optimizer: Literal["adamw", "muon"] = "adamw"
    weight_decay: float = Field(0.01, ge=0)
    clip_norm: float = Field(1.0, gt=0)
    dropout_rate: float | None = Field(None, ge=0, lt=1)
    masking: Literal["token", "word", "span"] = "token"
    chinese_words: bool = False
    mask_rate: float = Field(0.15, gt=0, lt=1)
    mask_rate_end: float | None = Field(None, gt=0, lt=1)
    positions: Literal["learned", "sinusoidal"] | None = None
    held_out: float = Field(0.05, gt=0, lt=1)
    held_out_samples: int = Field(1024, gt=0)
    strategy: Literal["ddp", "fsdp"] = "ddp"
    seed: int = Field(1, ge=0, lt=2**32)
    deterministic: bool = False
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    log_every: int = Field(10, gt=0)
    evaluations: int = Field(5, gt=0)
    checkpoint_minutes: float = Field(5.0, gt=0)


@resumable()
def pretrain(
    settings: PretrainSettings, out: Path | None, *, resume: bool = False, overwrite: bool = False
) -> Path:
    """Pretrain a network on a corpus and leave a run folder.

    Started by ``torchrun``, the processes train as one.

    Returns:
        The run folder; ``model/`` in it is the model.

    Raises:
        UsageError, DataError, ModelError: as their names say.
        Interrupted: the checkpoint is saved, ``resume`` goes on from it.
    """
    with joined(default_device()) as world:
        return _pretrain(settings, out, world, resume=resume, overwrite=overwrite)


def _pretrain(
    settings: PretrainSettings, out: Path | None, world: World, *, resume: bool, overwrite: bool
) -> Path:
    budget = Budget(settings.steps, settings.minutes)
    _check(settings)
    folder: Path = world.told(
        choose_folder(out, "pretrain", resume=resume, overwrite=overwrite) if world.first else None
    )
    with world.first_before_others():
        shards, tokenizer = _corpus(settings)
    room = settings.sequence_length - SPECIAL_TOKENS[settings.objective]
    spans, held_out = split_held_out(shards, room, settings.held_out, settings.seed)
    facts = {
        **shards.facts,
        "sequences": len(spans),
        "held_out_sequences": len(held_out),
        "held_out_tokens": held_out.token_count(),
        "vocabulary": tokenizer.vocab_size,
    }
    if min(len(spans), settings.batch_size) < world.size:
        raise UsageError(
            f"There are {world.size} processes, more than the sequences of a step.",
            fix="use fewer processes, a larger batch_size or more text",
        )
    torch.manual_seed(settings.seed)
    plan = plan_for(settings, tokenizer, world.device)
    settings = settings.model_copy(
        update={
            "precision": resolve_precision(settings.precision, world.device),
            "learning_rate": settings.learning_rate or _rate(settings),
        }
    )
    assert settings.learning_rate is not None
    with world.first_before_others():
        run = folder
        if world.first:
            run = open_run(
                folder, "pretrain", settings, shards.key, resume=resume, overwrite=overwrite
            )
            log.write_json(run / "data_report.json", facts)
    torch.use_deterministic_algorithms(settings.deterministic)
    log.say("  ".join(f"{name.replace('_', ' ')} {value:,}" for name, value in facts.items()))

    step = wrap(Step(plan.model, plan.objective, world.device), world, settings.strategy)
    optimizer = build_optimizer(
        plan.model, settings.optimizer, settings.learning_rate, settings.weight_decay
    )
    step.train()
    metrics = log.MetricsFile(run / "metrics.jsonl")
    state = TrainingState()
    if resume and (checkpoint := latest_checkpoint(run / "checkpoints")):
        state = load_checkpoint(checkpoint, plan.model, optimizer)
        log.say(f"Going on from step {state.step:,}.")
    metrics.keep_until(state.step)

    def batches(number: int, micro_batch_tokens: int) -> list[Batch]:
        """This process's micro-batches of one step; all processes have equally many."""
        epoch, samples = step_samples(
            number, len(spans), settings.batch_size, settings.seed, full=True
        )
        most = len(samples) // world.size
        parts = -(-most * settings.sequence_length // micro_batch_tokens)
        made = [
            plan.batch(spans, part, epoch, settings.seed)
            for part in np.array_split(world.share(samples), max(min(parts, most), 1))
        ]
        for batch in made:
            batch.share = budget.progress(number, state.seconds)
        return made

    tokens = fitting_tokens(
        step,
        lambda most: plan.objective.prepare(max(batches(0, most), key=lambda b: len(b.input_ids))),
        settings.micro_batch_tokens,
        settings.sequence_length,
        settings.precision,
        world,
    )
    train(
        step,
        plan.objective,
        lambda number: batches(number, tokens),
        optimizer,
        budget,
        LoopSettings(
            learning_rate=settings.learning_rate,
            warmup=settings.warmup,
            schedule=settings.schedule,
            clip_norm=settings.clip_norm,
            seed=settings.seed,
            precision=settings.precision,
            log_every=settings.log_every,
            evaluations=settings.evaluations,
            checkpoint_minutes=settings.checkpoint_minutes,
        ),
        state,
        metrics,
        save=lambda: save_checkpoint(run / "checkpoints", plan.model, optimizer, state, world),
        evaluate=lambda: _evaluate(plan, step, held_out, settings, settings.held_out_samples // 4),
        world=world,
        label="Pretraining",
    )
    figures = _evaluate(plan, step, held_out, settings, settings.held_out_samples)
    if settings.strategy == "fsdp" and world.size > 1:
        # What is written is a network in one piece.
        weights = {name: whole(value).cpu() for name, value in plan.model.state_dict().items()}
        plan = plan_for(settings, tokenizer, torch.device("cpu"))
        plan.model.load_state_dict(weights)
    if not world.first:
        return run
    metrics.write(
        step=state.step, seconds=round(state.seconds, 3), learning_rate=0.0, final=True, **figures
    )
    summary = {"steps": state.step, "seconds": round(state.seconds, 1), **figures}
    log.write_json(run / "metrics.json", summary)
    for name, kept in plan.kept().items():
        kept.facts["corpus"] = shards.key
        write_model(run / name, kept)
    names = [name for name in TITLES if figures.get(f"held_out_{name}_answers")]
    titles = {name: TITLES[name] for name in names}
    pretraining_report(run, settings, facts, summary, metrics.read(), titles)
    told = (
        f"{title} {figures[f'held_out_{name}_accuracy']:.1%} right "
        f"(loss {figures[f'held_out_{name}_loss']:.3f})"
        for name, title in titles.items()
    )
    log.say("Held out: " + ", ".join(told))
    log.say(f"Model: {run / 'model'}   Report: {run / 'report.html'}")
    return run


def _check(settings: PretrainSettings) -> None:
    """Raise a UsageError where settings do not go together."""
    given = settings.model_fields_set
    if settings.family not in family_names():
        raise UsageError(
            f"There is no family {settings.family!r}.", fix=f"one of {', '.join(family_names())}"
        )
    family = load_family(RTD_FAMILY if settings.objective == "rtd" else settings.family)
    if settings.size not in family.sizes:
        raise UsageError(
            f"The family {family.name} has no size {settings.size!r}.",
            where=f"size={settings.size}",
            fix=f"one of {', '.join(family.sizes)}",
        )
    if settings.start and settings.objective in ("rtd", "distill"):
        raise UsageError(
            f"--from goes with masked words, not with objective={settings.objective}.",
            fix="objective=mlm",
        )
    own = given & {"size", "family", "dropout_rate", "positions"}
    if own and (settings.start or settings.teacher):
        raise UsageError(
            f"The network is made from a model that is there, so {min(own)} cannot be chosen.",
            fix=f"leave out {min(own)}",
        )
    if settings.objective == "rtd" and "family" in given and settings.family != RTD_FAMILY:
        raise UsageError(
            f"objective=rtd makes a network of the family {RTD_FAMILY}.", fix="leave out family"
        )
    if (settings.objective == "distill") != bool(settings.teacher):
        raise UsageError(
            "objective=distill and teacher=MODEL belong together.", fix="give both or neither"
        )
    if settings.chinese_words and settings.masking == "token":
        raise UsageError("chinese_words is for masks of whole words.", fix="masking=word")
    if settings.strategy == "fsdp" and settings.optimizer == "muon":
        raise UsageError("strategy=fsdp goes with AdamW only.", fix="optimizer=adamw")
    if settings.tokenizer and len(settings.corpus) == 1 and is_shards(Path(settings.corpus[0])):
        raise UsageError(
            "Prepared shards hold their tokenizer.",
            where=settings.corpus[0],
            fix="leave out --tokenizer",
        )


def _rate(settings: PretrainSettings) -> float:
    """The peak learning rate where none is given."""
    if settings.start:
        return 1e-4
    if settings.teacher:
        return 5e-4  # Sanh et al. 2019
    return RATES.get(settings.size, 2e-4)


def _corpus(settings: PretrainSettings) -> tuple[Shards, Tokenizer]:
    """The tokens of the corpus and the tokenizer that they are of."""
    if len(settings.corpus) == 1 and is_shards(Path(settings.corpus[0])):
        return open_shards(Path(settings.corpus[0]))
    corpus = corpus_files([Path(path) for path in settings.corpus])
    if given := settings.tokenizer or settings.start or settings.teacher:
        tokenizer = read_tokenizer(given)
    else:
        tokenizer = corpus_tokenizer(
            corpus,
            text_column=settings.text_column,
            vocab_size=settings.vocab_size,
            lowercase=settings.lowercase,
            max_length=512,
        )
    return build_shards(corpus, settings.text_column, tokenizer), tokenizer


def _evaluate(
    plan: Plan, step: torch.nn.Module, spans: Spans, settings: PretrainSettings, most: int
) -> dict[str, float]:
    """Loss and accuracy on held-out spans, with the same masks every time."""
    device = next(plan.model.parameters()).device
    totals: dict[str, float] = defaultdict(float)
    step.eval()
    for start in range(0, min(len(spans), most), EVALUATION_BATCH):
        samples = np.arange(start, min(start + EVALUATION_BATCH, len(spans), most))
        batch = plan.measured.prepare(plan.batch(spans, samples, 0, EVALUATION_SEED))
        with torch.no_grad(), arithmetic(settings.precision, device):
            outcome = step(batch)
        for name, asked in plan.measured.counts(batch).items():
            totals[f"{name}_count"] += asked
            totals[f"{name}_loss"] += outcome.losses[name].item()
            totals[f"{name}_correct"] += outcome.correct[name].item()
    figures: dict[str, float] = {}
    for name in (key.removesuffix("_count") for key in totals if key.endswith("_count")):
        count = max(totals[f"{name}_count"], 1.0)
        figures[f"held_out_{name}_loss"] = totals[f"{name}_loss"] / count
        figures[f"held_out_{name}_accuracy"] = totals[f"{name}_correct"] / count
        figures[f"held_out_{name}_answers"] = totals[f"{name}_count"]
    return figures
