"""Rows are added on a CPU so that few shapes come again; nothing may come from them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bert.families.family import load_family
from bert.model import packing
from bert.model.packing import MOST_FILL, ROWS_STEP, Packed, Tokens, pack

LENGTHS = (70, 3, 41, 90, 40, 71, 70)  # 385 rows in several groups


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


def test_short_sequences_share_lines_and_long_ones_are_with_their_like() -> None:
    short = Packed.of((3, 50, 9, 20, 30, 2))
    # 50 takes up the shortest up to the next multiple of 8; the others fit in half of SHORT.
    assert [(group.count, group.length) for group in short.groups] == [(1, 56), (2, 32)]
    long = Packed.of((300, 100, 290, 90))
    assert [(group.count, group.length) for group in long.groups] == [(2, 304), (2, 104)]
    equal = Packed.of((50, 50))
    assert [(group.length, group.mask) for group in equal.groups] == [(50, None)]


@given(st.lists(st.integers(0, 150), max_size=40))
def test_every_row_sees_its_own_sequence_and_no_other(lengths: list[int]) -> None:
    packed = Packed.of(tuple(lengths))
    owner = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths).long())
    place = torch.cat([torch.arange(length) for length in [0, *lengths]])
    met = 0

    def look(part: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        nonlocal met
        met += part.shape[0] * part.shape[1]
        own = part[..., 0]
        same = own[:, :, None] == own[:, None, :]
        if mask is None:
            assert same.all()
            return part
        seen = mask[:, 0].expand(same.shape)
        # Each real query sees its sequence once, every place of it, and nothing else.
        found = torch.where(seen, part[:, None, :, 1], -1)
        whole = seen.sum(-1)
        for line in range(len(part)):
            for query in range(part.shape[1]):
                if not seen[line, query, query]:
                    continue  # padding
                assert same[line, query][seen[line, query]].all()
                assert whole[line, query] == lengths[int(own[line, query])]
                told = found[line, query][seen[line, query]]
                assert told.sort().values.tolist() == list(range(len(told)))
        return part

    rows = torch.stack((owner, place), dim=-1)
    back = packed.by_group(look, rows, 2)
    assert torch.equal(back, rows)
    assert met <= 2 * len(rows) + 64 or max(lengths) > packing.SHORT


def test_a_padded_batch_is_filled_too() -> None:
    tokens, _ = pack(torch.randint(0, 9, (3, 100)), None, None)
    assert len(tokens.filled().input_ids) == 320
