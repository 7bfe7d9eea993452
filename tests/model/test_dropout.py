"""Dropout: the share, the scale, the seed, and nothing at all in evaluation."""

from __future__ import annotations

import pytest
import torch

from bert.model.dropout import Dropout, dropout


@pytest.mark.parametrize("rate", [0.1, 0.3, 0.5])
def test_the_share_and_the_mean_are_those_of_the_rate(rate: float) -> None:
    torch.manual_seed(0)
    out = dropout(torch.ones(2001, 501), rate)  # not a multiple of eight
    exact = round(rate * 256) / 256
    assert (out == 0).float().mean().item() == pytest.approx(exact, abs=2e-3)
    assert out.mean().item() == pytest.approx(1, abs=5e-3)
    assert out.unique().tolist() == pytest.approx([0, 1 / (1 - exact)])


def test_neighbours_are_dropped_independently() -> None:
    torch.manual_seed(0)
    kept = (dropout(torch.ones(1_000_000), 0.5) != 0).float()
    for distance in (1, 2, 4, 7, 8, 64):
        both = (kept[:-distance] * kept[distance:]).mean().item()
        assert both == pytest.approx(0.25, abs=3e-3)


def test_the_gradient_passes_where_the_value_did() -> None:
    torch.manual_seed(0)
    hidden = torch.randn(64, 33, requires_grad=True)
    out = dropout(hidden, 0.2)
    out.sum().backward()
    assert hidden.grad is not None
    assert torch.equal(hidden.grad == 0, out == 0)


def test_the_seed_decides_and_evaluation_changes_nothing() -> None:
    layer, hidden = Dropout(0.1), torch.randn(50, 40)
    torch.manual_seed(3)
    first = layer(hidden)
    torch.manual_seed(3)
    assert torch.equal(layer(hidden), first)
    assert not torch.equal(layer(hidden), first)
    assert torch.equal(layer.eval()(hidden), hidden)
    assert torch.equal(dropout(hidden, 0.0), hidden)
