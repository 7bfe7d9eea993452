"""``bert search``: the rows of a file whose texts are nearest to a question."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bert import __version__
from bert.cache import cached, key_of
from bert.checkpoint import FACTS
from bert.errors import UsageError
from bert.hub import CONFIG
from bert.pooling import FILES
from bert.predictor import Predictor
from bert.recipes.embed import append_vectors, text_column, texts_of
from bert.text.corpus import content_hash
from bert.text.tokenizer import TOKENIZER_FILES

VECTORS_AT_ONCE = 65_536


def search_file(
    name: str, file: Path, query: str, text: Sequence[str], top: int, *, as_json: bool
) -> list[dict[str, Any]]:
    """Print the rows with the highest cosine, the best first.

    The vectors of the file are computed once and kept in the cache, under a name made of the
    contents of the file and of the model.

    Args:
        name: a run folder, a model directory or a hub id.
        file: rows, or a .txt file with a text on each line.
        query: the question.
        text: the column of texts, or none for the usual ones.
        top: how many rows.
        as_json: whether each is printed as a JSON object.

    Returns:
        ``score``, the cosine; ``where``, ``text``, and ``row``, the other columns.

    Raises:
        ModelError, DataError, UsageError: as their names say.
    """
    if not query.strip():
        raise UsageError("The question is empty.", fix='bert search RUN FILE "a question"')
    column = text_column(file, text)
    predictor = Predictor(name, task="embedding")
    key = key_of(__version__, content_hash([file]), column, _model_hash(predictor.directory))
    folder = cached(
        "vectors",
        key,
        lambda stage: _build(stage / "vectors.npy", predictor, file, column),
    )
    table = np.load(folder / "vectors.npy", mmap_mode="r")
    asked = np.array(predictor(query)["embedding"], dtype=np.float32)
    places, cosines = nearest(table, asked, top)
    wanted = {int(place): float(cosine) for place, cosine in zip(places, cosines, strict=True)}
    found: dict[int, dict[str, Any]] = {}
    for number, example in enumerate(texts_of(file, column)):
        if number in wanted:
            found[number] = {
                "score": round(wanted[number], 6),
                "where": example.where,
                "text": example.parts[0],
                "row": dict(example.columns),
            }
            if len(found) == len(wanted):
                break
    answers = [found[place] for place in wanted]
    for answer in answers:
        if as_json:
            print(json.dumps(answer, ensure_ascii=False, default=str))
        else:
            # Texts come from a file: none may move the cursor of the terminal.
            shown = "".join(c if c.isprintable() else " " for c in answer["text"])
            print(f"{answer['score']:.4f}  {answer['where']}  {shown}")
    return answers


def nearest(
    table: NDArray[np.float32], query: NDArray[np.float32], top: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The rows with the highest cosine, the best first; of equal ones the earlier.

    Args:
        table: vectors [N, H], which may be mapped from a file.
        query: [H].
        top: how many.

    Returns:
        Places and cosines, [min(top, N)] each.
    """
    unit = query / max(float(np.linalg.norm(query)), 1e-12)
    places, best = np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.float32)
    for begin in range(0, len(table), VECTORS_AT_ONCE):
        block = np.asarray(table[begin : begin + VECTORS_AT_ONCE])
        cosines = block @ unit / np.maximum(np.linalg.norm(block, axis=1), 1e-12)
        places = np.concatenate((places, np.arange(begin, begin + len(block))))
        best = np.concatenate((best, cosines))
        order = np.argsort(-best, kind="stable")[:top]
        places, best = places[order], best[order]
    return places, best


def _build(path: Path, predictor: Predictor, file: Path, column: str | None) -> None:
    path.touch()
    append_vectors(predictor, texts_of(file, column), path)


def _model_hash(directory: Path) -> str:
    """SHA-256 of the files of a model on which vectors depend."""
    names = {CONFIG, FACTS, *TOKENIZER_FILES, *FILES}
    names |= {path.name for path in directory.glob("*.safetensors")}
    digest = hashlib.sha256()
    for path in sorted(directory / name for name in names):
        if path.is_file():
            with path.open("rb") as file:
                part = hashlib.file_digest(file, "sha256").hexdigest()
            digest.update(f"{path.relative_to(directory)} {part}\n".encode())
    return digest.hexdigest()
