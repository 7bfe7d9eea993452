"""Rows are added on a CPU so that few shapes come again; nothing may come from them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from bert.families.family import load_family
from bert.model import packing
from bert.model.packing import MOST_FILL, ROWS_STEP, Packed, Tokens, pack

LENGTHS = (70, 3, 41, 90, 40, 71, 70)  # of several groups; 385 rows


def tokens_of(lengths: tuple[int, ...]) -> Tokens:
    count = sum(lengths)
    generator = torch.Generator().manual_seed(0)
    return Tokens(
        torch.randint(5, 200, (count,), generator=generator),
        torch.zeros(count, dtype=torch.long),
        torch.cat([torch.arange(length) for length in lengths]),
        Packed.of(lengths),
    )


@pytest.mark.parametrize("family", ["bert", "roberta", "albert", "modernbert", "deberta_v2"])
def test_added_rows_change_neither_output_nor_gradient(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(1)
    kind = load_family(family)
    size = next(iter(kind.sizes))
    config = kind.size(
        size, vocab_size=200, hidden_size=32, num_hidden_layers=3, num_attention_heads=4,
        intermediate_size=48, max_position_embeddings=128,
    )  # fmt: skip
    model: Any = kind.build("encoder", config).eval()
    tokens = tokens_of(LENGTHS)
    assert len(tokens.filled().input_ids) % ROWS_STEP == 0
    found = []
    for step in (ROWS_STEP, 1):
        monkeypatch.setattr(packing, "ROWS_STEP", step)
        model.zero_grad()
        hidden = model.encode(tokens)
        (hidden * torch.linspace(-1, 1, hidden.numel()).view_as(hidden)).sum().backward()
        found.append(
            [hidden.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]
        )
    assert len(found[0][0]) == sum(LENGTHS)
    assert len(found[0]) > 15
    for filled, plain in zip(*found, strict=True):
        torch.testing.assert_close(filled, plain, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("count", [1, 16, 100, 255, 256, 257, 4095])
def test_few_rows_are_added(count: int) -> None:
    tokens = tokens_of((count,))
    filled = tokens.filled()
    more = len(filled.input_ids) - count
    assert 0 <= more <= min(MOST_FILL * count, ROWS_STEP - 1)
    assert filled.packed.lengths == (count, more) if more else filled is tokens


def test_short_sequences_share_a_group_and_long_ones_only_with_their_like() -> None:
    short = Packed.of((3, 50, 9, 20))
    assert [group.sequences for group in short.groups] == [4]
    assert short.groups[0].length == 56  # the next multiple of 8
    long = Packed.of((300, 100, 290, 90))
    assert [(group.sequences, group.length) for group in long.groups] == [(2, 304), (2, 104)]
    equal = Packed.of((50, 50))
    assert [(group.length, group.mask) for group in equal.groups] == [(50, None)]


def test_a_padded_batch_is_filled_too() -> None:
    tokens, _ = pack(torch.randint(0, 9, (3, 100)), None, None)
    assert len(tokens.filled().input_ids) == 320
