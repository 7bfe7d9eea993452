"""``bert pretrain``: masked words and next sentences from one's own text."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import nn

from bert import __version__, log
from bert.checkpoint import Checkpoint, write_model
from bert.config import Settings
from bert.data.batches import Batch, step_samples
from bert.data.instances import Spans, pair_batch, split_held_out
from bert.data.shards import build_shards
from bert.families.family import load_family
from bert.model.precision import arithmetic, default_device, resolve_precision
from bert.objectives.mlm import MaskedLM
from bert.objectives.objective import Objective
from bert.objectives.pairs import NextSentence
from bert.recipes.reporting import pretraining_report
from bert.recipes.tokenizer import corpus_tokenizer
from bert.run import choose_folder, open_run
from bert.text.corpus import corpus_files
from bert.text.tokenizer import Tokenizer
from bert.training.loop import LoopSettings, train
from bert.training.optim import Budget, build_optimizer
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
EVALUATION_SEED = 0  # held-out masks are the same for every run


class PretrainSettings(Settings):
    """All of ``bert pretrain``; lengths in tokens, rates as shares."""

    corpus: list[str]
    size: Literal["tiny", "mini", "small", "medium", "base", "large"] = "mini"
    steps: int | None = Field(None, gt=0)
    minutes: float | None = Field(None, gt=0)
    tokenizer: str | None = None
    text_column: str = "text"
    vocab_size: int = Field(30522, gt=5)
    lowercase: bool = True
    sequence_length: int = Field(128, ge=8, le=512)
    batch_size: int = Field(64, gt=0)
    micro_batch_tokens: int = Field(8192, gt=0)
    learning_rate: float | None = Field(None, gt=0)
    warmup: float = Field(0.1, ge=0, lt=1)
    optimizer: Literal["adamw", "muon"] = "adamw"
    weight_decay: float = Field(0.01, ge=0)
    clip_norm: float = Field(1.0, gt=0)
    dropout_rate: float = Field(0.1, ge=0, lt=1)
    mask_rate: float = Field(0.15, gt=0, lt=1)
    positions: Literal["learned", "sinusoidal"] = "learned"
    held_out: float = Field(0.05, gt=0, lt=1)
    held_out_samples: int = Field(1024, gt=0)
    seed: int = Field(1, ge=0, lt=2**32)
    deterministic: bool = False
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    log_every: int = Field(10, gt=0)
    evaluations: int = Field(5, gt=0)
    checkpoint_minutes: float = Field(5.0, gt=0)


def pretrain(
    settings: PretrainSettings, out: Path | None, *, resume: bool = False, overwrite: bool = False
) -> Path:
    """Pretrain a BERT on a corpus and leave a run folder.

    Returns:
        The run folder; ``model/`` in it is the model.

    Raises:
        UsageError, DataError, ModelError: as their names say.
        Interrupted: the checkpoint is saved, ``resume`` goes on from it.
    """
    budget = Budget(settings.steps, settings.minutes)
    corpus = corpus_files([Path(path) for path in settings.corpus])
    device = default_device()
    settings = settings.model_copy(
        update={
            "precision": resolve_precision(settings.precision, device),
            "learning_rate": settings.learning_rate or RATES[settings.size],
        }
    )
    assert settings.learning_rate is not None
    folder = choose_folder(out, "pretrain", resume=resume, overwrite=overwrite)

    tokenizer = _tokenizer(settings, corpus)
    shards = build_shards(corpus, settings.text_column, tokenizer)
    room = settings.sequence_length - 3  # [CLS] and two [SEP]
    spans, held_out = split_held_out(shards, room, settings.held_out, settings.seed)
    facts = {
        **shards.facts,
        "sequences": len(spans),
        "held_out_sequences": len(held_out),
        "held_out_tokens": held_out.token_count(),
        "vocabulary": tokenizer.vocab_size,
    }
    run = open_run(
        folder, "pretrain", settings, shards.directory.name, resume=resume, overwrite=overwrite
    )
    torch.use_deterministic_algorithms(settings.deterministic)
    log.write_json(run / "data_report.json", facts)
    log.say("  ".join(f"{name.replace('_', ' ')} {value:,}" for name, value in facts.items()))

    family = load_family("bert")
    torch.manual_seed(settings.seed)
    config = family.size(
        settings.size,
        vocab_size=tokenizer.vocab_size,
        dropout_rate=settings.dropout_rate,
        positions=settings.positions,
        pad_token_id=tokenizer.pad_id,
    )
    model = family.build("pretraining", config).to(device)
    optimizer = build_optimizer(
        model, settings.optimizer, settings.learning_rate, settings.weight_decay
    )
    objective = _objective(settings, tokenizer, settings.seed)
    metrics = log.MetricsFile(run / "metrics.jsonl")
    state = TrainingState()
    if resume and (checkpoint := latest_checkpoint(run / "checkpoints")):
        state = load_checkpoint(checkpoint, model, optimizer)
        log.say(f"Going on from step {state.step:,}.")
    metrics.keep_until(state.step)

    train(
        model,
        objective,
        lambda step: _step(spans, settings, tokenizer, step),
        optimizer,
        budget,
        LoopSettings(
            learning_rate=settings.learning_rate,
            warmup=settings.warmup,
            clip_norm=settings.clip_norm,
            seed=settings.seed,
            precision=settings.precision,
            log_every=settings.log_every,
            evaluations=settings.evaluations,
            checkpoint_minutes=settings.checkpoint_minutes,
        ),
        state,
        metrics,
        save=lambda: save_checkpoint(run / "checkpoints", model, optimizer, state),
        evaluate=lambda: _evaluate(
            model, held_out, settings, tokenizer, device, settings.held_out_samples // 4
        ),
        device=device,
        label="Pretraining",
    )
    figures = _evaluate(model, held_out, settings, tokenizer, device, settings.held_out_samples)
    metrics.write(
        step=state.step, seconds=round(state.seconds, 3), learning_rate=0.0, final=True, **figures
    )
    summary = {"steps": state.step, "seconds": round(state.seconds, 1), **figures}
    log.write_json(run / "metrics.json", summary)
    write_model(
        run / "model",
        Checkpoint(
            model,
            "pretraining",
            family,
            tokenizer=tokenizer,
            facts={"version": __version__, "task": "fill_mask", "corpus": shards.directory.name},
        ),
    )
    pretraining_report(run, settings, facts, summary, metrics.read())
    log.say(
        f"Held out: masked words {figures['held_out_mlm_accuracy']:.1%} right "
        f"(loss {figures['held_out_mlm_loss']:.3f}), next sentence "
        f"{figures['held_out_nsp_accuracy']:.1%} right (loss {figures['held_out_nsp_loss']:.3f})"
    )
    log.say(f"Model: {run / 'model'}   Report: {run / 'report.html'}")
    return run


def _tokenizer(settings: PretrainSettings, corpus: list[Path]) -> Tokenizer:
    if settings.tokenizer is not None:
        return Tokenizer.load(Path(settings.tokenizer))
    return corpus_tokenizer(
        corpus,
        text_column=settings.text_column,
        vocab_size=settings.vocab_size,
        lowercase=settings.lowercase,
        max_length=512,
    )


def _objective(settings: PretrainSettings, tokenizer: Tokenizer, seed: int) -> Objective:
    masked = MaskedLM(tokenizer.mask_id, tokenizer.vocab_size, seed, settings.mask_rate)
    return Objective([masked, NextSentence()])


def _batch(
    spans: Spans,
    samples: Any,
    settings: PretrainSettings,
    tokenizer: Tokenizer,
    epoch: int,
    seed: int,
) -> Batch:
    return pair_batch(
        spans,
        samples,
        epoch=epoch,
        seed=seed,
        room=settings.sequence_length - 3,
        cls_id=tokenizer.cls_id,
        sep_id=tokenizer.sep_id,
    )


def _step(spans: Spans, settings: PretrainSettings, tokenizer: Tokenizer, step: int) -> list[Batch]:
    """The micro-batches of one optimiser step."""
    epoch, samples = step_samples(step, len(spans), settings.batch_size, settings.seed)
    parts = -(-len(samples) * settings.sequence_length // settings.micro_batch_tokens)
    return [
        _batch(spans, part, settings, tokenizer, epoch, settings.seed)
        for part in np.array_split(samples, min(parts, len(samples)))
    ]


def _evaluate(
    model: nn.Module,
    spans: Spans,
    settings: PretrainSettings,
    tokenizer: Tokenizer,
    device: torch.device,
    most: int,
) -> dict[str, float]:
    """Loss and accuracy of both objectives on held-out spans, the same masks every time."""
    objective = _objective(settings, tokenizer, EVALUATION_SEED)
    totals: dict[str, float] = defaultdict(float)
    model.eval()
    for start in range(0, min(len(spans), most), EVALUATION_BATCH):
        samples = np.arange(start, min(start + EVALUATION_BATCH, len(spans), most))
        batch = objective.prepare(_batch(spans, samples, settings, tokenizer, 0, EVALUATION_SEED))
        with torch.no_grad(), arithmetic(settings.precision, device):
            outcome = objective.losses(model, batch, device)
        for name, asked in objective.counts(batch).items():
            totals[f"{name}_count"] += asked
            totals[f"{name}_loss"] += outcome.losses[name].item()
            totals[f"{name}_correct"] += outcome.correct[name].item()
    figures: dict[str, float] = {}
    for name in ("mlm", "nsp"):
        count = max(totals[f"{name}_count"], 1.0)
        figures[f"held_out_{name}_loss"] = totals[f"{name}_loss"] / count
        figures[f"held_out_{name}_accuracy"] = totals[f"{name}_correct"] / count
        figures[f"held_out_{name}_answers"] = totals[f"{name}_count"]
    return figures
