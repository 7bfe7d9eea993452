"""A corpus as token numbers on disk, memory-mapped and named by the hash of its content."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from bert import log
from bert.cache import cached, key_of
from bert.errors import DataError
from bert.text.corpus import Document, content_hash, documents
from bert.text.sentences import sentences
from bert.text.tokenizer import Tokenizer

VERSION = 1
DOCUMENTS_AT_ONCE = 512


@dataclass(frozen=True)
class Shards:
    """The tokens of a corpus.

    Arrays: ``tokens`` [T]; ``sentence_starts`` [sentences + 1] in tokens;
    ``document_starts`` [documents + 1] in sentences.
    """

    directory: Path
    tokens: NDArray[Any]
    sentence_starts: NDArray[np.int64]
    document_starts: NDArray[np.int64]

    @property
    def facts(self) -> dict[str, int]:
        """Counts of documents, sentences and tokens."""
        return {
            "documents": len(self.document_starts) - 1,
            "sentences": len(self.sentence_starts) - 1,
            "tokens": len(self.tokens),
        }


def build_shards(paths: Sequence[Path], text_column: str, tokenizer: Tokenizer) -> Shards:
    """The token shards of these files; built at most once for the same content and tokenizer.

    Raises:
        DataError: a file cannot be read, or there is no text in any.
    """
    key = key_of(VERSION, content_hash(paths), text_column, tokenizer.backend.to_str(pretty=False))
    directory = cached("shards", key, lambda stage: _write(stage, paths, text_column, tokenizer))
    kind = json.loads((directory / "shards.json").read_text("utf-8"))["dtype"]
    return Shards(
        directory,
        np.memmap(directory / "tokens.bin", dtype=kind, mode="r"),
        np.fromfile(directory / "sentences.bin", dtype=np.int64),
        np.fromfile(directory / "documents.bin", dtype=np.int64),
    )


def _write(stage: Path, paths: Sequence[Path], text_column: str, tokenizer: Tokenizer) -> None:
    kind = np.uint16 if tokenizer.vocab_size <= 2**16 else np.uint32
    source = documents(paths, text_column)
    counts = {"documents": 0, "sentences": 0, "tokens": 0}
    with (
        (stage / "tokens.bin").open("wb") as token_file,
        (stage / "sentences.bin").open("wb") as sentence_file,
        (stage / "documents.bin").open("wb") as document_file,
        log.Progress("Tokenizing") as progress,
    ):
        _append(sentence_file, [0])
        _append(document_file, [0])
        while chunk := list(islice(source, DOCUMENTS_AT_ONCE)):
            for pieces in _encoded(chunk, tokenizer):
                lengths = [len(ids) for ids in pieces]
                tokens = np.concatenate([np.asarray(ids, dtype=kind) for ids in pieces])
                token_file.write(tokens.tobytes())  # tofile() would pass over a full disk
                _append(sentence_file, counts["tokens"] + np.cumsum(lengths))
                counts["tokens"] += sum(lengths)
                counts["sentences"] += len(lengths)
                counts["documents"] += 1
                _append(document_file, [counts["sentences"]])
            progress.update(counts["documents"], f"{counts['tokens']:,} tokens")
    if not counts["tokens"]:
        raise DataError(
            "The corpus holds no text.",
            where=", ".join(str(path) for path in paths),
            fix="give a file or folder with text in it",
        )
    (stage / "shards.json").write_text(json.dumps({"dtype": kind.__name__, **counts}) + "\n")


def _append(file: BinaryIO, values: Any) -> None:
    file.write(np.asarray(values, dtype=np.int64).tobytes())


def _encoded(chunk: list[Document], tokenizer: Tokenizer) -> Iterator[list[list[int]]]:
    """The sentences of each document as token numbers, documents without any left out."""
    split = [sentences(document.text) for document in chunk]
    pieces = iter(tokenizer.pieces([sentence for parts in split for sentence in parts]))
    for parts in split:
        encoded = [ids for ids in islice(pieces, len(parts)) if ids]
        if encoded:
            yield encoded
