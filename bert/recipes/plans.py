"""What each pretraining objective needs: a network, what it is asked, and what is kept of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from bert import __version__
from bert.checkpoint import Checkpoint, read_model
from bert.data.batches import Batch, Ints
from bert.data.instances import Spans, ordered_batch, pair_batch, text_batch
from bert.errors import UsageError
from bert.families.family import Family, load_family
from bert.hub import find_model
from bert.model.config import BertConfig
from bert.model.heads import BertForMaskedLM
from bert.objectives.distill import Distillation, Student, student_of
from bert.objectives.masking import vocabulary_words
from bert.objectives.mlm import MaskedLM
from bert.objectives.objective import Objective
from bert.objectives.pairs import NextSentence
from bert.objectives.rtd import FAMILY as RTD_FAMILY
from bert.objectives.rtd import ReplacedTokens, new_electra
from bert.text.tokenizer import Tokenizer
from bert.training.loop import Trainable

if TYPE_CHECKING:
    from bert.recipes.pretrain import PretrainSettings

# Name of a figure -> what it is called in reports.
TITLES = {
    "mlm": "masked words",
    "nsp": "next sentence",
    "sop": "sentence order",
    "rtd": "replaced tokens",
    "soft": "the teacher's words",
    "cosine": "the teacher's hidden states",
}
EVALUATION_SEED = 0  # held-out masks are the same for every run
SPECIAL_TOKENS = {"mlm": 2, "rtd": 2, "distill": 2, "mlm+nsp": 3, "mlm+sop": 3}


@dataclass(frozen=True)
class Plan:
    """What is trained, on what, for what.

    Args:
        model: what is trained.
        family: of what is kept.
        objective: what is asked in training.
        measured: what is asked of held-out text: the same at the rate of the paper and with
            masks over single tokens, so that figures of different settings compare.
        batch: spans, samples of them, epoch and seed -> a batch.
        kept: folder name -> what is written there in the end.
    """

    model: nn.Module
    family: Family
    objective: Trainable[Batch]
    measured: Trainable[Batch]
    batch: Callable[[Spans, Ints, int, int], Batch]
    kept: Callable[[], Mapping[str, Checkpoint]]


def plan_for(settings: PretrainSettings, tokenizer: Tokenizer, device: torch.device) -> Plan:
    """The plan that these settings ask for, with its networks on the device.

    Raises:
        UsageError: settings that do not go together.
        ModelError: the model to start from cannot be read.
    """
    words = None
    if settings.masking != "token":
        words = vocabulary_words(tokenizer, chinese_words=settings.chinese_words)

    vocabulary = (tokenizer.mask_id, tokenizer.vocab_size)
    masked = MaskedLM(
        *vocabulary,
        settings.seed,
        settings.mask_rate,
        rate_end=settings.mask_rate_end,
        kind=settings.masking,
        words=words,
        only_mask=settings.objective == "rtd",
    )
    plain = MaskedLM(*vocabulary, EVALUATION_SEED, only_mask=masked.only_mask)
    batch = _batches(settings, tokenizer)
    if settings.objective == "rtd":
        family = load_family(RTD_FAMILY)
        pair = new_electra(_config(settings, family, tokenizer)).to(device)

        def both() -> Mapping[str, Checkpoint]:
            generator, discriminator = pair.parts()
            return {
                "model": _kept(discriminator, "replaced_token", family, tokenizer),
                "generator": _kept(generator, "masked_lm", family, tokenizer),
            }

        return Plan(pair, family, ReplacedTokens(masked), ReplacedTokens(plain), batch, both)
    if settings.objective == "distill":
        checkpoint = _start(settings, settings.teacher or "", "masked_lm", tokenizer)
        teacher = checkpoint.model.to(device)
        assert isinstance(teacher, BertForMaskedLM)
        small, family = student_of(teacher, checkpoint.family)
        student = Student(small, checkpoint.config.hidden_size).to(device)
        return Plan(
            student,
            family,
            Distillation(masked, teacher),
            Distillation(plain, teacher),
            batch,
            lambda: {"model": _kept(small, "masked_lm", family, tokenizer)},
        )
    second = settings.objective.removeprefix("mlm").removeprefix("+")
    kind = "pretraining" if second else "masked_lm"
    if settings.start:
        checkpoint = _start(settings, settings.start, kind, tokenizer)
        model, family = checkpoint.model, checkpoint.family
    else:
        family = load_family(settings.family)
        if kind not in family.heads:
            raise UsageError(
                f"The family {family.name} has no head for {settings.objective}.",
                fix="objective=mlm",
            )
        model = family.build(kind, _config(settings, family, tokenizer))
    model = model.to(device)
    pairs = [NextSentence(second)] if second else []
    return Plan(
        model,
        family,
        Objective([masked, *pairs]),
        Objective([plain, *pairs]),
        batch,
        lambda: {"model": _kept(model, kind, family, tokenizer)},
    )


def _config(settings: PretrainSettings, family: Family, tokenizer: Tokenizer) -> BertConfig:
    changes: dict[str, Any] = {
        "vocab_size": tokenizer.vocab_size,
        "pad_token_id": tokenizer.pad_id,
    }
    if settings.dropout_rate is not None:
        changes["dropout_rate"] = settings.dropout_rate
    if settings.positions == "sinusoidal":
        changes["positions"] = settings.positions
    config = family.size(settings.size, **changes)
    _check_length(settings, config)
    return config


def _check_length(settings: PretrainSettings, config: BertConfig) -> None:
    if settings.sequence_length > config.longest_text:
        raise UsageError(
            f"sequence_length={settings.sequence_length} is more than the {config.longest_text} "
            "tokens that the network takes.",
            fix=f"sequence_length={config.longest_text}",
        )


def _start(settings: PretrainSettings, name: str, kind: str, tokenizer: Tokenizer) -> Checkpoint:
    """The model to start or to learn from, which must have the words of the tokenizer."""
    checkpoint = read_model(find_model(name), kind=kind, trainable=True)
    assert checkpoint.tokenizer is not None
    if checkpoint.tokenizer.backend.get_vocab() != tokenizer.backend.get_vocab():
        raise UsageError(
            "The model has another vocabulary than the corpus is cut into.",
            where=name,
            fix=f"--tokenizer {name}",
        )
    _check_length(settings, checkpoint.config)
    return checkpoint


def _batches(
    settings: PretrainSettings, tokenizer: Tokenizer
) -> Callable[[Spans, Ints, int, int], Batch]:
    room = settings.sequence_length - SPECIAL_TOKENS[settings.objective]
    cls, sep = tokenizer.cls_id, tokenizer.sep_id

    def follows(spans: Spans, samples: Ints, epoch: int, seed: int) -> Batch:
        return pair_batch(spans, samples, epoch=epoch, seed=seed, room=room, cls_id=cls, sep_id=sep)

    def ordered(spans: Spans, samples: Ints, epoch: int, seed: int) -> Batch:
        return ordered_batch(spans, samples, epoch=epoch, seed=seed, cls_id=cls, sep_id=sep)

    def text(spans: Spans, samples: Ints, epoch: int, seed: int) -> Batch:
        return text_batch(spans, samples, epoch=epoch, cls_id=cls, sep_id=sep)

    return {"mlm+nsp": follows, "mlm+sop": ordered}.get(settings.objective, text)


def _kept(model: nn.Module, kind: str, family: Family, tokenizer: Tokenizer) -> Checkpoint:
    facts: dict[str, Any] = {"version": __version__}
    if kind != "replaced_token":
        facts["task"] = "fill_mask"
    foreign = {
        "bos_token_id": tokenizer.cls_id,
        "eos_token_id": tokenizer.sep_id,
        "cls_token_id": tokenizer.cls_id,
        "sep_token_id": tokenizer.sep_id,
    }
    return Checkpoint(model, kind, family, tokenizer=tokenizer, facts=facts, foreign=foreign)
