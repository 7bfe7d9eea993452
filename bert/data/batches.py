"""A batch of packed sequences, and the order in which an epoch's samples come."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bert.data.draws import permutation

Ints = NDArray[np.int64]
Numbers = NDArray[Any]


@dataclass
class Batch:
    """B sequences packed into T tokens, and what the objective wants of them.

    Arrays: ``input_ids``, ``token_type_ids``, ``position_ids`` [T]; ``lengths`` [B];
    ``samples``, the number of each sample in its data set, [B] where a sample is one sequence;
    ``targets`` by name. ``epoch``
    and ``share``, how much of the training is over (0 to 1), are those of the whole batch.
    """

    input_ids: Ints
    token_type_ids: Ints
    lengths: Ints
    samples: Ints
    epoch: int = 0
    targets: dict[str, Numbers] = field(default_factory=dict)
    share: float = 0.0

    @property
    def position_ids(self) -> Ints:
        """[T], counted from 0 in every sequence."""
        return ranges(np.zeros_like(self.lengths), self.lengths)


def ranges(starts: Ints, lengths: Ints) -> Ints:
    """``start, start + 1, ...`` for each start and length, one after the other."""
    ends = np.cumsum(lengths)
    total = int(ends[-1]) if len(ends) else 0
    result: Ints = np.arange(total) + np.repeat(starts - (ends - lengths), lengths)
    return result


def pack_sequences(
    input_ids: Sequence[Sequence[int]],
    token_type_ids: Sequence[Sequence[int]],
    samples: Sequence[int] | Ints,
    targets: Mapping[str, Numbers] = MappingProxyType({}),
) -> Batch:
    """A batch of encoded texts and what is wanted of them."""
    return Batch(
        np.concatenate([np.asarray(ids, dtype=np.int64) for ids in input_ids]),
        np.concatenate([np.asarray(types, dtype=np.int64) for types in token_type_ids]),
        np.array([len(ids) for ids in input_ids], dtype=np.int64),
        np.asarray(samples, dtype=np.int64),
        targets=dict(targets),
    )


def step_samples(
    step: int, count: int, batch_size: int, seed: int, *, full: bool = False
) -> tuple[int, Ints]:
    """Which samples optimiser step ``step`` (from 0) trains on: (epoch, sample numbers).

    Every epoch takes each of ``count`` samples once, in an order of its own. Its batches are
    as equal as they can be, so that no step goes by a few samples that happened to be left;
    with ``full`` they have exactly ``batch_size`` and what is left at an epoch's end is left
    out, unless there is no full batch at all.
    """
    steps = max(count // batch_size, 1) if full else -(-count // batch_size)
    epoch, index = divmod(step, steps)
    order = permutation(count, seed, epoch)
    if full:
        return epoch, order[index * batch_size : (index + 1) * batch_size]
    return epoch, order[index * count // steps : (index + 1) * count // steps]
