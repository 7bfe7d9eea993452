"""Micro-batches that the memory does not hold are halved; the allocator really refuses."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from bert.distributed import ALONE
from bert.errors import OutOfMemoryError
from bert.training.probe import fitting_tokens


class Hungry(nn.Module):
    """Asks for 64 TiB for each token beyond what it can take."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.most = most
        self.asked: list[int] = []

    def forward(self, batch: int) -> Any:
        self.asked.append(batch)
        torch.empty(max(batch - self.most, 0) * 2**46, dtype=torch.uint8)
        return SimpleNamespace(losses={"loss": self.weight.sum() * batch})


@pytest.mark.parametrize(
    ("most", "found"), [(8192, 8192), (10**6, 8192), (5000, 4096), (1000, 1000), (300, 256)]
)
def test_halved_until_it_fits(most: int, found: int, capsys: pytest.CaptureFixture[str]) -> None:
    module = Hungry(most)
    tokens = 1000 if most == 1000 else 8192
    assert fitting_tokens(module, lambda n: n, tokens, 128, "fp32", ALONE) == found
    assert module.asked == [tokens // 2**i for i in range(len(module.asked))]
    assert module.weight.grad is None
    assert ("in more parts" in capsys.readouterr().err) == (found < tokens)


def test_a_single_sequence_that_does_not_fit_is_told() -> None:
    with pytest.raises(OutOfMemoryError, match="single sequence") as caught:
        fitting_tokens(Hungry(100), lambda n: n, 8192, 128, "fp32", ALONE)
    assert caught.value.exit_code == 5


def test_other_errors_are_not_taken_for_a_lack_of_memory() -> None:
    class Broken(Hungry):
        def forward(self, batch: int) -> Any:
            raise RuntimeError("shapes do not agree")

    with pytest.raises(RuntimeError, match="shapes"):
        fitting_tokens(Broken(1), lambda n: n, 8192, 128, "fp32", ALONE)
