"""Packed sequences: B sequences in one array of T real tokens, without padding.

Padding is removed once before the first layer and put back once at the end, so all
linear algebra runs on real tokens only::

    padded [B, S]          packed [T]                 lines of attention
    a b c . .              a b c d e f g h i j        d e f g h | i j | a b c .
    d e f g h      ->      lengths 3 5 2        ->    (none sees across a bar)
    i j . . .

Only attention needs to know where a sequence ends. It takes sequences of like length together,
padded to the longest among them; short ones lie several in a line, none seeing another.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from bert.errors import ModelError

# A sequence joins a group when it is at least this share of the group's longest, which
# bounds the padded part of attention's work.
GROUP_SHARE = 0.65
# Tokens that sequences of one length must have, on average, for each length to be taken alone.
RUN_TOKENS = 96
# Sequences up to this length share lines, of half of it where they fit: so the padding is small
# and the shapes are few. A fine-tuning step with sentences takes a sixth less time for it.
SHORT = 64
# On a CPU a matrix product is compiled for its shape and then kept, up to about a thousand of
# them. Rows and lengths are rounded up to these, so that few shapes come again and again: training
# steps of 400 tokens take a seventh less time and 700 MiB less (``benchmarks/shapes.py``).
ROWS_STEP, LENGTH_STEP = 32, 8
MOST_FILL = 1 / 8  # of the rows; so few texts are computed as they are


@dataclass(frozen=True)
class Group:
    """What attention takes together: ``count`` lines, each ``length`` wide."""

    count: int
    length: int
    rows: slice | Tensor  # of the T rows: a view, or [count * length] with padding repeated
    mask: Tensor | None  # [count, 1, 1 or length, length], True where a token may be seen

    def of(self, rows: Tensor) -> Tensor:
        """The rows of this group: [T, ...] -> [count, length, ...]."""
        return rows[self.rows].view(self.count, self.length, *rows.shape[1:])


def _lines(lengths: Sequence[int]) -> list[tuple[int, list[list[int]]]]:
    """Groups as (length, the sequences of each line), without the empty ones.

    A long sequence has a line of its own, beside its like. Short ones fill lines: the longest
    that is left, then the shortest ones that still fit.
    """
    left = deque(sorted((i for i, n in enumerate(lengths) if n), key=lambda i: (-lengths[i], i)))
    found: list[tuple[int, list[list[int]]]] = []
    while left:
        longest = lengths[left[0]]
        wide = -(-longest // LENGTH_STEP) * LENGTH_STEP
        lines: list[list[int]] = []
        if longest > SHORT:
            while left and lengths[left[0]] >= GROUP_SHARE * longest:
                lines.append([left.popleft()])
            alike = lengths[lines[-1][0]] == longest
            found.append((longest if alike else wide, lines))
            continue
        half = SHORT // 2
        wide = half if longest <= half else wide
        while left and (wide == half or lengths[left[0]] > half):
            line = [left.popleft()]
            room = wide - lengths[line[0]]
            while left and lengths[left[-1]] <= room:
                line.append(left.pop())
                room -= lengths[line[-1]]
            lines.append(line)
        found.append((wide, lines))
    return found


class _Spread(torch.autograd.Function):
    """Rows [T, W] -> the rows of all groups with their padding [P, W].

    Every row has one place among the P, the others are padding, whose gradient is zero: no key
    of padding is ever seen. So the way back is a choice of rows too, not a sum into them, which
    on a CPU took 5% of a training step.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, spread: Tensor, restore: Tensor) -> Tensor:
        """[T, W] -> [P, W]."""
        ctx.save_for_backward(restore)
        return rows.index_select(0, spread)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        """[P, W] -> [T, W]."""
        (restore,) = ctx.saved_tensors
        return gradients[0].index_select(0, restore), None, None


@dataclass(frozen=True)
class Packed:
    """Where each of B sequences lies among T packed rows."""

    lengths: tuple[int, ...]
    groups: tuple[Group, ...]
    spread: Tensor | None  # [P] rows of all groups one after the other; None: in order already
    restore: Tensor | None  # [T] where each row lies among those P; None: in order already
    starts: Tensor  # [B] first row of each sequence
    gapless: bool = True  # whether every sequence's positions follow each other

    @classmethod
    def of(
        cls,
        lengths: tuple[int, ...],
        device: torch.device | None = None,
        gapless: bool = True,
    ) -> Packed:
        """Plan the groups for sequences of these lengths (tokens), in any order."""
        sizes = np.array(lengths, np.int64)
        begins = np.cumsum(sizes) - sizes
        total = int(sizes.sum())
        starts = torch.from_numpy(begins).to(device)
        if total and len(set(lengths)) == 1:  # one group, in order
            group = Group(len(lengths), lengths[0], slice(0, total), None)
            return cls(lengths, (group,), None, None, starts, gapless)
        groups: list[Group] = []
        spreads: list[NDArray[np.int64]] = []
        offset = 0
        places = np.empty(total, np.int64)
        for length, lines in _lines(lengths):
            members = np.array([i for line in lines for i in line])
            line_of = np.repeat(np.arange(len(lines)), [len(line) for line in lines])
            size = sizes[members]
            before = np.cumsum(size) - size  # tokens of the sequences before, of this group
            first = before[np.searchsorted(line_of, line_of)]  # and of the lines before
            inside = np.arange(size.sum()) - np.repeat(before, size)
            source = np.repeat(begins[members], size) + inside
            target = np.repeat(line_of * length + before - first, size) + inside
            rows = np.repeat(begins[[line[0] for line in lines]], length)  # for padding
            rows[target] = source
            places[source] = offset + target
            offset += len(rows)
            spreads.append(rows)
            full, alone = len(source) == len(rows), len(members) == len(lines)
            mask = None
            if not (full and alone):
                owner = np.full(len(rows), -1)
                owner[target] = np.repeat(np.arange(len(members)), size)
                key = owner.reshape(len(lines), 1, 1, length)
                seen = key >= 0 if alone else (key == key.swapaxes(2, 3)) & (key >= 0)
                mask = torch.from_numpy(seen).to(device)
            if mask is None and np.array_equal(rows, np.arange(rows[0], rows[0] + len(rows))):
                view = slice(int(rows[0]), int(rows[0]) + len(rows))
                groups.append(Group(len(lines), length, view, None))
            else:
                chosen = torch.from_numpy(rows).to(device)
                groups.append(Group(len(lines), length, chosen, mask))
        spread = np.concatenate(spreads) if spreads else places
        in_order = np.array_equal(spread, np.arange(total))
        return cls(
            lengths,
            tuple(groups),
            None if in_order else torch.from_numpy(spread).to(device),
            None if in_order else torch.from_numpy(places).to(device),
            starts,
            gapless,
        )

    @cached_property
    def runs(self) -> tuple[tuple[int, int, int], ...] | None:
        """Neighbours of one length: (first row, sequences, length) of each run; None if short."""
        found, start = [], 0
        for length, members in groupby(self.lengths):
            count = sum(1 for _ in members)
            if length:
                found.append((start, count, length))
            start += count * length
        alone = len(found) == 1
        return tuple(found) if alone or start >= RUN_TOKENS * len(found) else None

    def by_group(
        self, function: Callable[[Tensor, Tensor | None], Tensor], rows: Tensor, width: int
    ) -> Tensor:
        """Apply a function of [b, s, W] and a mask -> [b, s, width] to each group of rows [T, W].

        Returns [T, width].
        """
        if not self.groups:  # every sequence is empty: no rows, but a part of the graph
            return rows[:, :width]
        if self.spread is not None and self.restore is not None:
            if rows.requires_grad and not torch.compiler.is_compiling():
                rows = _Spread.apply(rows, self.spread, self.restore)  # type: ignore[no-untyped-call]
            else:  # the compiler does not take such functions
                rows = rows.index_select(0, self.spread)
        sizes = [group.count * group.length for group in self.groups]
        # The gradient of a split is a copy, even if there is one part.
        parts = torch.split(rows, sizes) if len(sizes) > 1 else (rows,)
        outputs = [
            function(part.view(group.count, group.length, -1), group.mask).flatten(0, 1)
            for group, part in zip(self.groups, parts, strict=True)
        ]
        joined = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
        return joined if self.restore is None else joined.index_select(0, self.restore)

    def within(self, position_ids: Tensor, window: int) -> Packed:
        """The same sequences, each token seeing ``window`` positions to each side only."""
        groups = []
        for group in self.groups:
            if group.length <= window + 1 and self.gapless:
                groups.append(group)  # nothing lies further apart
                continue
            places = group.of(position_ids)  # [b, s]
            near = (places[:, :, None] - places[:, None, :]).abs() <= window  # [b, s, s]
            mask = near[:, None] if group.mask is None else near[:, None] & group.mask
            groups.append(replace(group, mask=mask))
        return replace(self, groups=tuple(groups))

    def counted(self, input_ids: Tensor, pad_token_id: int) -> Tensor:
        """Positions counted from ``pad_token_id + 1`` over tokens that are not padding: [T].

        Padding among the tokens stands at ``pad_token_id`` (RoBERTa's way of counting).
        """
        real = input_ids != pad_token_id
        so_far = real.cumsum(0)
        before = torch.cat((so_far.new_zeros(1), so_far))[self.starts]  # [B]
        lengths = torch.tensor(self.lengths, device=input_ids.device)
        place = so_far - before.repeat_interleave(lengths, output_size=len(input_ids))
        return place * real + pad_token_id

    def mean(self, hidden: Tensor) -> Tensor:
        """The mean of each sequence's rows: [T, H] -> [B, H]; zeros where it is empty."""
        counts = torch.tensor(self.lengths, device=hidden.device)
        owner = torch.repeat_interleave(counts, output_size=len(hidden))
        sums = hidden.new_zeros(len(self.lengths), hidden.shape[-1], dtype=torch.float32)
        sums = sums.index_add(0, owner, hidden.float())
        return (sums / counts.clamp(min=1)[:, None]).to(hidden.dtype)

    def first(self, hidden: Tensor) -> Tensor:
        """The row of each sequence's first token: [T, H] -> [B, H]; zeros where it is empty."""
        if all(self.lengths):
            return hidden[self.starts]
        filled = [i for i, length in enumerate(self.lengths) if length]
        result = hidden.new_zeros(len(self.lengths), hidden.shape[-1])
        result[filled] = hidden[self.starts[filled]]
        return result


class Tokens(NamedTuple):
    """What the encoder reads: T packed tokens and where each sequence lies among them."""

    input_ids: Tensor  # [T]
    token_type_ids: Tensor  # [T]
    position_ids: Tensor  # [T]
    packed: Packed

    @classmethod
    def of(
        cls,
        input_ids: NDArray[np.int64],
        token_type_ids: NDArray[np.int64],
        position_ids: NDArray[np.int64],
        lengths: Sequence[int] | NDArray[np.int64],
        device: torch.device,
    ) -> Tokens:
        """Tokens on a device from arrays: three of [T], and the B lengths."""
        return cls(
            torch.as_tensor(input_ids).to(device, non_blocking=True),
            torch.as_tensor(token_type_ids).to(device, non_blocking=True),
            torch.as_tensor(position_ids).to(device, non_blocking=True),
            Packed.of(tuple(int(length) for length in lengths), device),
        )

    def filled(self) -> Tokens:
        """On a CPU with rows up to the next ``ROWS_STEP``: one more sequence, of token 0.

        No other sees it, and as nothing is made of its rows, no gradient comes from them.
        """
        if torch.compiler.is_compiling() or self.input_ids.device.type != "cpu":
            return self  # compiled for any number of rows
        rows = len(self.input_ids)
        more = -rows % ROWS_STEP
        padded = sum(self.packed.lengths) != rows  # its padding is among the rows already
        if padded or not 0 < more <= MOST_FILL * rows:
            return self
        ids, types, positions = (F.pad(array, (0, more)) for array in self[:3])
        lengths = (*self.packed.lengths, more)
        return Tokens(ids, types, positions, Packed.of(lengths, gapless=self.packed.gapless))


def pack(
    input_ids: Tensor, token_type_ids: Tensor | None, attention_mask: Tensor | None
) -> tuple[Tokens, Tensor]:
    """Take the real tokens out of a padded batch.

    Args:
        input_ids: [B, S] token numbers.
        token_type_ids: [B, S] segment numbers, or None for all zero.
        attention_mask: [B, S], non-zero where a token is real, or None if all are.

    Returns:
        The packed tokens, and their places [T] in the flattened [B * S] batch, which
        ``unpack`` takes. A token keeps the position of its column, wherever the padding is.

    Raises:
        ModelError: the shapes do not agree.
    """
    if input_ids.dim() != 2:
        raise ModelError(f"input_ids has shape {list(input_ids.shape)}, not [batch, length].")
    for name, value in (("token_type_ids", token_type_ids), ("attention_mask", attention_mask)):
        if value is not None and value.shape != input_ids.shape:
            raise ModelError(
                f"{name} has shape {list(value.shape)}, input_ids {list(input_ids.shape)}."
            )
    batch, length = input_ids.shape
    if attention_mask is None:
        lengths = (length,) * batch
        places = torch.arange(batch * length, device=input_ids.device)
        gapless = True
    else:
        real = attention_mask != 0
        lengths = tuple(real.sum(dim=1).tolist())
        places = real.flatten().nonzero().flatten()
        begun = (real[:, 1:] & ~real[:, :-1]).sum(dim=1) + real[:, :1].sum(dim=1)
        gapless = max(begun.tolist(), default=0) <= 1
    types = torch.zeros_like(input_ids) if token_type_ids is None else token_type_ids
    tokens = Tokens(
        input_ids.flatten()[places],
        types.flatten()[places],
        places % length,
        Packed.of(lengths, input_ids.device, gapless),
    )
    return tokens, places


def unpack(hidden: Tensor, places: Tensor, batch: int, length: int) -> Tensor:
    """Put packed rows back into a padded batch: [T, H] -> [B, S, H], zeros where it is padded."""
    padded = hidden.new_zeros(batch * length, hidden.shape[-1])
    return padded.index_copy(0, places, hidden).view(batch, length, hidden.shape[-1])
