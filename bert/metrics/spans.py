"""Named-entity spans: from tags and back, and their scores as conlleval counts them.

A span is (start, end, type), ``end`` exclusive, in any unit. It is right if all three are
equal to those of a true span of the same row (Tjong Kim Sang and De Meulder 2003).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from bert.errors import DataError
from bert.metrics.multilabel import LabelCounts

Span = tuple[int, int, str]
OUTSIDE = "O"
# Begin, inside, last or end, unit or single; M is the middle of BMES.
TAG = re.compile(r"([BILUESM])(?:-(.*))?", re.DOTALL)


def spans_of_tags(tags: Sequence[str]) -> list[Span]:
    """The spans that a sequence of tags means, in tokens.

    Reads IOB1, IOB2 (BIO), BIOES, BILOU, BMES and IO alike, also bare types (``PER PER O``)
    and bare letters (``B I O``, whose type is empty). Whatever is ill-formed means what it
    means to conlleval: a span begins at B, S or U, at the first token after O or after the
    end of a span, and wherever the type changes; it ends at E, L, S or U and before
    whatever begins. One difference: a B after an E of the same type begins a span, which
    conlleval, made before BIOES, joins to the one before.

    Args:
        tags: one for each token.

    Returns:
        (first token, last token + 1, type), from left to right.
    """
    spans: list[Span] = []
    inside = False  # the span at the end of the list goes on
    for place, tag in enumerate(tags):
        if tag in (OUTSIDE, ""):
            inside = False
            continue
        match = TAG.fullmatch(tag)
        letter, kind = (match[1], match[2] or "") if match else ("I", tag)
        if inside and letter not in "BSU" and spans[-1][2] == kind:
            spans[-1] = (spans[-1][0], place + 1, kind)
        else:
            spans.append((place, place + 1, kind))
        inside = letter not in "ELSU"
    return spans


def tags_of_spans(spans: Iterable[Span], length: int) -> list[str]:
    """The BIO tags of spans in tokens.

    Args:
        spans: not overlapping, in any order.
        length: how many tokens there are.

    Raises:
        DataError: a span that is empty, lies outside the tokens or overlaps another.
    """
    tags = [OUTSIDE] * length
    for start, end, kind in spans:
        if not 0 <= start < end <= length:
            raise DataError(
                f"The span {start} to {end} ({kind}) does not lie within {length} tokens.",
                fix="Give the first token and the one after the last, counted from 0.",
            )
        if any(tag != OUTSIDE for tag in tags[start:end]):
            raise DataError(
                f"The span {start} to {end} ({kind}) overlaps another.",
                fix="Keep one of them: a token has one tag.",
            )
        dash = f"-{kind}" if kind else ""
        tags[start:end] = [f"B{dash}"] + [f"I{dash}"] * (end - start - 1)
    return tags


class SpanTally:
    """Precision, recall and F1 of spans, in all and for each type; memory flat in the rows.

    Args:
        types: known ones, scored also if they never occur; others are added as they come.
        seed: of the bootstrap over rows.
    """

    def __init__(self, types: Sequence[str] = (), seed: int = 0) -> None:
        self._counts = LabelCounts(types, seed)
        self._number = {name: number for number, name in enumerate(self._counts.names)}

    def add(self, truth: Iterable[Span], predicted: Iterable[Span]) -> None:
        """Add one row (sentence or text) with its true and its predicted spans."""
        there = {(int(start), int(end), kind) for start, end, kind in truth}
        said = {(int(start), int(end), kind) for start, end, kind in predicted}
        for *_, kind in sorted(there | said):
            if kind not in self._number:
                self._number[kind] = len(self._number)
                self._counts.names.append(kind)
        counts = np.zeros((1, len(self._number), 3))
        for column, spans in enumerate((there & said, there, said)):
            for *_, kind in spans:
                counts[0, self._number[kind], column] += 1
        self._counts.add(counts)

    def figures(self) -> dict[str, Any]:
        """``rows``, ``micro`` (conlleval's overall figures), ``macro`` and ``per_label``.

        Each holds ``precision``, ``recall`` and ``f1`` as ``{"value", "low", "high"}``, from 0
        to 1, with 95% bootstrap intervals over rows; ``per_label`` is by type, in
        alphabetical order, and has ``support``, the number of true spans.

        Raises:
            DataError: no rows were added.
        """
        found = self._counts.figures()
        found["per_label"] = dict(sorted(found["per_label"].items()))
        return found
