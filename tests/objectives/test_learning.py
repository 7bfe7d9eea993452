"""Every objective learns under the loop, and however its steps are divided."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import nn

from bert import log
from bert.data.batches import Batch, pack_sequences
from bert.data.instances import NO_LABEL, Spans, cut_spans, ordered_batch, text_batch
from bert.data.shards import Shards
from bert.families.family import load_family
from bert.model.config import BertConfig
from bert.model.encoder import BERT
from bert.model.heads import BertForMaskedLM
from bert.objectives.distill import Distillation, Student
from bert.objectives.masking import Words
from bert.objectives.mlm import MaskedLM
from bert.objectives.objective import Objective
from bert.objectives.pairs import NextSentence
from bert.objectives.rtd import ReplacedTokens, new_electra
from bert.training.loop import LoopSettings, Step, train
from bert.training.optim import Budget, build_optimizer
from bert.training.state import TrainingState

CPU = torch.device("cpu")
V, ROOM, BATCH, CLS, SEP, MASK = 48, 24, 16, 1, 2, 4
CONFIG = BertConfig(
    vocab_size=V,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=64,
    max_position_embeddings=32,
    dropout_rate=0.0,
)


def corpus() -> Spans:
    """Documents that count upwards, in sentences of 2 to 7: every word and order is known."""
    draw = np.random.default_rng(0)
    lengths = [draw.integers(2, 8, 8) for _ in range(60)]
    flat = np.concatenate(lengths)
    tokens = [5 + np.arange(sum(part)) % (V - 5) for part in lengths]
    shards = Shards(
        Path(),
        np.concatenate(tokens),
        np.cumsum([0, *flat]),
        np.cumsum([0, *map(len, lengths)]),
    )
    return cut_spans(shards, ROOM, np.arange(60))


SPANS = corpus()


class Setting(NamedTuple):
    model: Callable[[], nn.Module]
    objective: Any
    batch: Callable[[Any], Batch]
    losses: dict[str, float]  # by how much each falls at least


def text(samples: Any) -> Batch:
    return text_batch(SPANS, samples, epoch=0, cls_id=CLS, sep_id=SEP)


def pairs(samples: Any) -> Batch:
    return ordered_batch(SPANS, samples, epoch=0, seed=1, cls_id=CLS, sep_id=SEP)


def network(kind: str = "masked_lm", family: str = "bert", **changes: Any) -> Any:
    torch.manual_seed(0)
    return load_family(family).build(kind, replace(CONFIG, **changes))


def student() -> Student:
    torch.manual_seed(1)
    return Student(
        BertForMaskedLM(BERT(CONFIG, num_hidden_layers=1, hidden_size=24, pooler=False)), 32
    )


def pair() -> nn.Module:
    torch.manual_seed(0)
    return new_electra(CONFIG)


WORDS = Words(np.arange(V) % 2 == 0)
MASKED = MaskedLM(MASK, V, 1)
SETTINGS = {
    "mlm": Setting(network, Objective([MASKED]), text, {"mlm": 0.4}),
    "word": Setting(
        network, Objective([MaskedLM(MASK, V, 1, kind="word", words=WORDS)]), text, {"mlm": 0.4}
    ),
    "span": Setting(
        network,
        Objective([MaskedLM(MASK, V, 1, 0.3, rate_end=0.15, kind="span", words=WORDS)]),
        text,
        {"mlm": 0.4},
    ),
    "mlm+sop": Setting(
        lambda: network("pretraining", "albert", embedding_size=16, shared_layers=True),
        Objective([MASKED, NextSentence("sop")]),
        pairs,
        {"mlm": 0.25, "sop": 0.25},
    ),
    "rtd": Setting(
        pair, ReplacedTokens(MaskedLM(MASK, V, 1, only_mask=True)), text, {"mlm": 0.2, "rtd": 0.2}
    ),
    "distill": Setting(
        student,
        Distillation(MASKED, network()),
        text,
        {"soft": 0.4, "mlm": 0.3, "cosine": 0.4},
    ),
}


def run(
    setting: Setting, folder: Path, steps: int, parts: int, optimizer: str = "adamw"
) -> tuple[nn.Module, list[dict[str, Any]]]:
    """Train, and give the model and the lines of its figures."""
    model = setting.model()
    metrics = log.MetricsFile(folder / f"{parts}.jsonl")

    def batches(step: int) -> list[Batch]:
        samples = (np.arange(BATCH) + step * BATCH) % len(SPANS)
        return [setting.batch(part) for part in np.array_split(samples, parts)]

    train(
        Step(model, setting.objective, CPU),
        setting.objective,
        batches,
        torch.optim.SGD(model.parameters(), lr=0.0)
        if optimizer == "sgd"
        else build_optimizer(model, optimizer, 0.0, 0.01),
        Budget(steps=steps),
        LoopSettings(
            learning_rate=0.01,
            warmup=0.1,
            clip_norm=1.0,
            seed=1,
            precision="fp32",
            log_every=1,
            evaluations=0,
            checkpoint_minutes=60.0,
        ),
        TrainingState(),
        metrics,
        save=dict,
        evaluate=dict,
        label="Test",
    )
    return model, metrics.read()


@pytest.mark.parametrize("name", SETTINGS)
def test_every_loss_falls(name: str, tmp_path: Path) -> None:
    setting = SETTINGS[name]
    if name == "distill":  # a teacher that knows something
        teacher, _ = run(SETTINGS["mlm"], tmp_path, 140, 2)
        setting.objective.teacher.load_state_dict(teacher.state_dict())
    _, lines = run(setting, tmp_path, 140, 1)
    for loss, least in setting.losses.items():
        values = [line[f"{loss}_loss"] for line in lines]
        assert np.mean(values[-8:]) < (1 - least) * np.mean(values[:4]), loss


@pytest.mark.parametrize("name", SETTINGS)
def test_micro_batches_change_nothing(name: str, tmp_path: Path) -> None:
    setting = SETTINGS[name]
    (one, lines), (other, more) = (run(setting, tmp_path, 4, parts, "sgd") for parts in (1, 3))
    for mine, its in zip(lines, more, strict=True):
        for key in mine:
            if key not in ("seconds", "tokens_per_second"):
                assert mine[key] == pytest.approx(its[key], rel=1e-4, abs=1e-6), key
    start = setting.model().state_dict()
    for key, value in one.state_dict().items():
        torch.testing.assert_close(value, other.state_dict()[key], atol=2e-6, rtol=0, msg=key)
    assert any(not torch.equal(value, start[key]) for key, value in one.state_dict().items())


@pytest.mark.parametrize("name", SETTINGS)
def test_every_weight_takes_part_when_nothing_is_asked(name: str) -> None:
    setting = SETTINGS[name]
    model, objective = setting.model(), setting.objective
    empty = pack_sequences(
        [[CLS, SEP]] * 2, [[0, 0]] * 2, [0, 1], {"next_sentence": np.array([NO_LABEL] * 2)}
    )
    empty.targets["special"] = np.ones(4, dtype=np.int64)
    nothing, something = (objective.prepare(b) for b in (empty, setting.batch(np.arange(3))))
    counts = objective.counts(nothing)
    assert list(counts) == list(objective.counts(something))
    assert set(counts.values()) <= {0, 4}  # of all tokens something is asked always
    losses = objective.losses(model, nothing, CPU).losses
    sum(losses.values()).backward()  # type: ignore[union-attr]
    for loss, value in losses.items():
        assert counts[loss] or value.item() == 0.0
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
