"""Scores of retrieval with one relevant item for each query, from its rank.

The mean reciprocal rank is the mean of 1 / rank, or 0 beyond the tenth (MRR@10); recall@k
is the share of queries whose item is among the first k; NDCG@10 is the mean of
1 / log2(1 + rank), or 0 beyond the tenth (Järvelin and Kekäläinen 2002, one relevant item).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bert.errors import DataError
from bert.metrics.intervals import quality, resample_counts, share

CUT = 10
RECALLS = (1, 5, 10, 100)


def ranks_of(scores: ArrayLike, relevant: ArrayLike) -> NDArray[np.int64]:
    """The rank of each query's relevant item, from 1.

    Items of an equal score stand before it, so that a model that gives every item the same
    score finds nothing.

    Args:
        scores: of each item for each query [n, m]; not-a-number stands before all others.
        relevant: the place of the relevant item [n].
    """
    table = np.asarray(scores, dtype=np.float64)
    own = np.take_along_axis(table, np.asarray(relevant, dtype=np.int64)[:, None], axis=1)  # [n, 1]
    return np.asarray((~(table < own)).sum(axis=1), dtype=np.int64)


class RankingTally:
    """MRR@10, recall@k and NDCG@10 with 95% intervals; memory flat in the queries."""

    def __init__(self, seed: int = 0) -> None:
        # How often each rank occurred; 0 holds those beyond the last one that counts.
        self._counts = np.zeros(max(RECALLS) + 1, dtype=np.int64)
        self._seed = seed

    def add(self, ranks: ArrayLike) -> None:
        """Add queries: the rank of the relevant item of each [n], from 1; 0 if not found.

        Raises:
            DataError: a rank that is no whole number from 0 up.
        """
        array = np.atleast_1d(np.asarray(ranks))
        if array.size and (array.dtype.kind not in "iu" or array.min() < 0):
            raise DataError(
                "A rank must be a whole number: 1 for the first, 0 for not found.",
                fix="Give ranks as ranks_of does.",
            )
        counted = np.where(array < len(self._counts), array, 0).astype(np.int64)
        self._counts += np.bincount(counted, minlength=len(self._counts))

    def figures(self) -> dict[str, Any]:
        """``rows``, ``mrr@10``, ``ndcg@10`` and ``recall@1``, ``@5``, ``@10``, ``@100``.

        Raises:
            DataError: no queries were added.
        """
        rows = int(self._counts.sum())
        if not rows:
            raise DataError("There are no queries to score.", fix="Give at least one.")
        rank = np.arange(1, CUT + 1)
        gains = np.stack([1 / rank, 1 / np.log2(1 + rank)])  # [2, 10]
        values = gains @ self._counts[1 : CUT + 1] / rows
        draws = np.concatenate(
            [
                counts[:, 1 : CUT + 1] @ gains.T / rows  # [s, 2]
                for counts in resample_counts(self._counts, seed=self._seed)
            ]
        )
        return {
            "rows": rows,
            f"mrr@{CUT}": quality(float(values[0]), draws[:, 0]),
            f"ndcg@{CUT}": quality(float(values[1]), draws[:, 1]),
            **{f"recall@{k}": share(int(self._counts[1 : k + 1].sum()), rows) for k in RECALLS},
        }
