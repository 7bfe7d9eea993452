"""The loss over a large vocabulary against torch's."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from torch import Tensor

from bert.objectives import mlm
from bert.objectives.mlm import word_loss


def case(
    count: int, width: int, vocabulary: int, kind: torch.dtype = torch.float64
) -> list[Tensor]:
    """Hidden states, embeddings, biases and words."""
    torch.manual_seed(count * 7 + width)
    shapes = ((count, width), (vocabulary, width), (vocabulary,))
    values = [torch.randn(shape, dtype=kind, requires_grad=True) for shape in shapes]
    return [*values, torch.randint(0, vocabulary, (count,))]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 80), st.integers(1, 12), st.integers(1, 50), st.floats(-3, 3))
def test_equals_cross_entropy(count: int, width: int, vocabulary: int, factor: float) -> None:
    *mine, words = case(count, width, vocabulary)
    *theirs, _ = case(count, width, vocabulary)
    loss, correct = word_loss(F.linear(*mine), words)
    logits = F.linear(*theirs)
    expected = F.cross_entropy(logits, words, reduction="sum")
    torch.testing.assert_close(loss, expected, atol=1e-9, rtol=1e-9)
    assert int(correct) == int((logits.argmax(-1) == words).sum())
    (loss * factor).backward()
    (expected * factor).backward()
    for one, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(one.grad, other.grad, atol=1e-9, rtol=1e-9)


def test_a_second_backward_is_refused() -> None:
    *values, words = case(5, 3, 7)
    loss, _ = word_loss(F.linear(*values), words)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError):  # the logits and their gradient are gone
        loss.backward()


def test_close_in_half_precision() -> None:
    *values, words = case(200, 64, 500, torch.float32)
    *others, _ = case(200, 64, 500, torch.float32)
    exact = F.cross_entropy(F.linear(*others), words, reduction="sum")
    exact.backward()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = F.linear(*values)
        assert logits.dtype == torch.bfloat16
        loss, _ = word_loss(logits, words)
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(exact.item(), rel=5e-3)
    for one, other in zip(values, others, strict=True):
        assert one.grad is not None
        assert other.grad is not None
        assert (one.grad - other.grad).norm() < 0.02 * other.grad.norm()


def test_a_chance_too_small_for_a_float() -> None:
    logits = torch.tensor([[300.0, -300.0], [0.0, 0.0]])
    loss, correct = word_loss(logits, torch.tensor([1, 0]))
    assert loss.item() == pytest.approx(600.0 + 0.6931472)
    assert int(correct) == 1


def test_the_size_of_a_part_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    results = []
    for rows in (1, 7, 1000):
        monkeypatch.setattr(mlm, "ROWS", rows)
        *values, words = case(40, 8, 30)
        loss, correct = word_loss(F.linear(*values), words)
        loss.backward()
        results.append((loss, correct, *(value.grad for value in values)))
    for other in results[1:]:
        for one, two in zip(results[0], other, strict=True):
            torch.testing.assert_close(one, two, atol=1e-12, rtol=1e-12)


def test_nothing_asked_is_still_a_part_of_the_graph() -> None:
    *values, words = case(0, 4, 9)
    loss, correct = word_loss(F.linear(*values), words)
    loss.backward()
    assert (loss.item(), int(correct)) == (0.0, 0)
    for value in values:
        assert value.grad is not None
        assert not value.grad.any()


def test_what_is_not_finite_is_shown() -> None:
    logits = torch.tensor([[1.0, float("nan")], [1.0, 2.0]])
    loss, _ = word_loss(logits, torch.tensor([0, 1]))
    assert not loss.isfinite()
