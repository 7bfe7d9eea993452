"""The memory that is foretold, against what tensors of a real run take."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from bert.families.family import load_family
from bert.model.memory import _Alive, peak_memory
from bert.model.packing import Packed, Tokens
from bert.model.precision import arithmetic

SEQUENCES, LENGTH = 3, 24


def taken(model: nn.Module, precision: str, training: bool) -> int:
    """The most bytes of living tensors in a run that really computes."""
    cpu = torch.device("cpu")
    count = SEQUENCES * LENGTH
    tokens = Tokens(
        torch.randint(0, 300, (count,)),
        torch.zeros(count, dtype=torch.long),
        torch.arange(LENGTH).repeat(SEQUENCES),
        Packed.of((LENGTH,) * SEQUENCES),
    )
    model.train(training)
    with _Alive() as alive:
        for value in model.parameters():
            alive.count(value.untyped_storage())
        moments = [torch.zeros_like(p) for p in model.parameters() for _ in range(2 * training)]
        with torch.set_grad_enabled(training), arithmetic(precision, cpu):
            output = model.logits(tokens)  # type: ignore[operator]
        if training:
            output.float().sum().backward()
    del moments
    return alive.most


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", ["bert", "albert", "modernbert", "deberta_v2"])
def test_what_is_foretold_is_what_is_taken(name: str, precision: str, training: bool) -> None:
    family = load_family(name)
    config = family.size("tiny", vocab_size=300, pad_token_id=0)
    foretold = peak_memory(
        lambda: family.build("sequence", config), SEQUENCES, LENGTH, precision, training=training
    )
    real = taken(family.build("sequence", config), precision, training)
    assert 0.9 * real < foretold < 1.1 * real


def test_training_takes_four_times_the_weights_and_more() -> None:
    family = load_family("bert")
    config = family.size("mini")
    weights = 4 * sum(p.numel() for p in family.build("sequence", config).parameters())

    def peak(sequences: int, training: bool) -> int:
        return peak_memory(
            lambda: family.build("sequence", config), sequences, 128, "fp32", training=training
        )

    assert weights < peak(1, False) < 1.2 * weights
    assert peak(1, True) > 3 * weights
    assert peak(64, True) > peak(8, True) + 50 * 56 * 128 * 256
