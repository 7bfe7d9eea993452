"""``bert summarize``: the sentences of a text that say most of it, in its own words."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bert.errors import DataError
from bert.predictor import Predictor
from bert.text.files import lines
from bert.text.sentences import sentences

# What being near the whole counts for, against being unlike what is already chosen.
RELEVANCE = 0.5


def summarize_file(name: str, file: str, count: int) -> list[str]:
    """Print the sentences that are chosen, one a line, in the order of the text.

    Args:
        name: a run folder, a model directory or a hub id; of a model with a head the encoder.
        file: a text, or ``-`` for standard input.
        count: how many sentences.

    Raises:
        ModelError, DataError: as their names say.
    """
    found = sentences(_standard_input() if file == "-" else _text(Path(file)))
    if not found:
        raise DataError("There is no text.", where=file, fix="give a file with sentences")
    chosen = range(len(found))
    if count < len(found):
        predictor = Predictor(name, task="embedding")
        table = np.array([answer["embedding"] for answer in predictor.stream(found)])
        chosen = choose(table, count)  # type: ignore[assignment]
    summary = [found[place] for place in chosen]
    for sentence in summary:
        print("".join(c if c.isprintable() else " " for c in sentence))
    return summary


def choose(table: NDArray[np.float64], count: int) -> list[int]:
    """Sentences near the mean of all, and unlike each other, in the order of the text.

    A sentence counts by its cosine with the centroid of all (Radev et al. 2004; of embeddings:
    Rossiello et al. 2017). They are taken one by one, the next being the one with the highest
    ``relevance - likeness``, the latter its largest cosine with one already taken (maximal
    marginal relevance, Carbonell & Goldstein 1998), so that nothing is said twice.

    Args:
        table: the vectors of the sentences [N, H].
        count: how many, at most N.
    """
    unit = table / np.maximum(np.linalg.norm(table, axis=1, keepdims=True), 1e-12)
    centre = unit.mean(axis=0)
    relevance = unit @ centre / max(float(np.linalg.norm(centre)), 1e-12)
    likeness = np.zeros(len(unit))
    free = np.ones(len(unit), dtype=bool)
    for step in range(min(count, len(unit))):
        worth = RELEVANCE * relevance - (1 - RELEVANCE) * likeness
        best = int(np.where(free, worth, -np.inf).argmax())
        free[best] = False
        cosines = unit @ unit[best]
        likeness = cosines if step == 0 else np.maximum(likeness, cosines)
    return np.flatnonzero(~free).tolist()


def _text(path: Path) -> str:
    return "\n".join(line for _, line in lines(path))


def _standard_input() -> str:
    try:
        return sys.stdin.buffer.read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"Byte {error.start + 1} is not UTF-8.",
            where="standard input",
            fix="convert it: iconv -f ENCODING -t UTF-8",
        ) from None
