"""A corpus as token numbers on disk, memory-mapped and named by the hash of its content.

A folder of shards holds ``tokens.bin``, ``sentences.bin`` (where sentences start, in tokens),
``documents.bin`` (where documents start, in sentences) and ``shards.json``, which is written
last. One that ``bert prepare`` made holds the tokenizer too.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bert import log
from bert.cache import cached, key_of
from bert.data.workers import EXAMPLES, Encoded, Job, cores, encode_all
from bert.errors import DataError
from bert.text.corpus import PREPARED, content_hash, documents
from bert.text.duplicates import PLACES
from bert.text.tokenizer import Tokenizer

VERSION = 2
_TOKENS, _SENTENCES, _DOCUMENTS = "tokens.bin", "sentences.bin", "documents.bin"
_HASHES, _SIGNATURES, _PLACES = "hashes.bin", "signatures.bin", "places.txt"
_BLOCK = 2**22  # numbers copied at a time


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
    key: str = ""  # says which content this is, wherever the folder lies

    @property
    def facts(self) -> dict[str, int]:
        """Counts of documents, sentences and tokens."""
        return {
            "documents": len(self.document_starts) - 1,
            "sentences": len(self.sentence_starts) - 1,
            "tokens": len(self.tokens),
        }


def is_shards(path: Path) -> bool:
    """Whether this is a folder that ``bert prepare`` made."""
    return (path / PREPARED).is_file()


def open_shards(directory: Path) -> tuple[Shards, Tokenizer]:
    """The shards that ``bert prepare`` wrote, and the tokenizer they were made with.

    Raises:
        DataError: a file is missing, cut short or says something else than the others.
        ModelError: the tokenizer cannot be read.
    """
    again = "prepare the corpus again: bert prepare CORPUS --out SHARDS"
    try:
        facts = json.loads((directory / PREPARED).read_text("utf-8"))
        if facts["version"] != VERSION:
            raise DataError(
                f"The shards are of version {facts['version']}; this program reads {VERSION}.",
                where=str(directory / PREPARED),
                fix=again,
            )
        shards = _mapped(directory, facts["key"])
        told = {name: facts[name] for name in shards.facts}
    except (OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"The shards cannot be read: {error}.", where=str(directory), fix=again
        ) from None
    agree = (
        shards.sentence_starts[-1] == len(shards.tokens)
        and shards.document_starts[-1] == len(shards.sentence_starts) - 1
    )
    if not agree or told != shards.facts:
        raise DataError(
            "The shards are damaged: their files do not fit together.",
            where=str(directory),
            fix=again,
        )
    return shards, Tokenizer.load(directory)


def _mapped(directory: Path, key: str) -> Shards:
    kind = json.loads((directory / PREPARED).read_text("utf-8"))["dtype"]
    if kind not in ("uint16", "uint32"):
        raise ValueError(f"{kind!r} is no type of tokens")
    return Shards(
        directory,
        np.memmap(directory / _TOKENS, dtype=kind, mode="r"),
        np.memmap(directory / _SENTENCES, dtype=np.int64, mode="r"),
        np.memmap(directory / _DOCUMENTS, dtype=np.int64, mode="r"),
        key,
    )


def build_shards(paths: Sequence[Path], text_column: str, tokenizer: Tokenizer) -> Shards:
    """The token shards of these files; built at most once for the same content and tokenizer.

    The text is taken as it is: nothing is cleaned and no document dropped.

    Raises:
        DataError: a file cannot be read, or there is no text in any.
    """
    key = key_of(VERSION, content_hash(paths), text_column, tokenizer.backend.to_str(pretty=False))

    def build(stage: Path) -> None:
        counts, _ = write_tokens(
            stage, encode_all(documents(paths, text_column), Job(tokenizer), cores())
        )
        if not counts["tokens"]:
            raise no_text([str(path) for path in paths])
        write_facts(stage, tokenizer, counts)

    return _mapped(cached("shards", key, build), key)


def no_text(names: Sequence[str]) -> DataError:
    """The error for a corpus of which nothing is left."""
    return DataError(
        "The corpus holds no text.",
        where=", ".join(names),
        fix="give a file or folder with text in it",
    )


def write_tokens(
    stage: Path, results: Iterable[Encoded]
) -> tuple[Counter[str], dict[str, list[str]]]:
    """Write the tokens of all documents, and beside them what ``drop_documents`` needs.

    Returns:
        Counts of what was read, dropped and written, and places of some that were dropped.
    """
    counts = Counter(documents=0, sentences=0, tokens=0)
    examples: dict[str, list[str]] = {}
    with ExitStack() as stack, log.Progress("Tokenizing") as progress:

        def file(name: str) -> Any:
            return stack.enter_context((stage / name).open("wb"))

        tokens, sentence_file, document_file = file(_TOKENS), file(_SENTENCES), file(_DOCUMENTS)
        hashes, signed, places = file(_HASHES), file(_SIGNATURES), file(_PLACES)
        _append(sentence_file, [0])
        _append(document_file, [0])
        for result in results:
            tokens.write(result.tokens.tobytes())  # tofile() would pass over a full disk
            _append(sentence_file, counts["tokens"] + np.cumsum(result.sentences))
            _append(document_file, counts["sentences"] + np.cumsum(result.documents))
            hashes.write(result.hashes.tobytes())
            signed.write(result.signatures.tobytes())
            if len(result.hashes):
                lines = (place.replace("\n", " ") for place in result.places)
                places.writelines(f"{line}\n".encode(errors="surrogateescape") for line in lines)
            counts["tokens"] += len(result.tokens)
            counts["sentences"] += len(result.sentences)
            counts["documents"] += len(result.documents)
            counts.update(result.counts)
            for reason, where in result.examples.items():
                examples[reason] = (examples.get(reason, []) + where)[:EXAMPLES]
            progress.update(counts["documents"], f"{counts['tokens']:,} tokens")
    return counts, examples


def write_facts(stage: Path, tokenizer: Tokenizer, counts: Counter[str]) -> str:
    """Write ``shards.json``, without which the other files are no shards, and give its key."""
    digest = hashlib.sha256(tokenizer.backend.to_str(pretty=False).encode())
    for name in (_TOKENS, _SENTENCES, _DOCUMENTS):
        with (stage / name).open("rb") as file:
            while block := file.read(_BLOCK):
                digest.update(block)
            os.fsync(file.fileno())
    for name in (_HASHES, _SIGNATURES, _PLACES):
        (stage / name).unlink(missing_ok=True)
    facts = {
        "version": VERSION,
        "dtype": "uint16" if tokenizer.vocab_size <= 2**16 else "uint32",
        "key": digest.hexdigest()[:32],
        **{name: counts[name] for name in ("documents", "sentences", "tokens")},
    }
    log.write_json(stage / PREPARED, facts)
    return str(facts["key"])


def compared(stage: Path) -> tuple[NDArray[np.uint64], NDArray[np.uint16]]:
    """Hashes [documents] and memory-mapped signatures [documents, PLACES] of what was written."""
    hashes = np.fromfile(stage / _HASHES, np.uint64)
    if not len(hashes):
        return hashes, np.empty((0, PLACES), np.uint16)
    return hashes, np.memmap(stage / _SIGNATURES, np.uint16, "r", shape=(len(hashes), PLACES))


def places_of(stage: Path, numbers: set[int]) -> dict[int, str]:
    """Where the documents of these numbers were read."""
    # A file may have a name that is no UTF-8.
    places = stage / _PLACES
    with places.open(encoding="utf-8", errors="surrogateescape", newline="\n") as file:
        return {number: line[:-1] for number, line in enumerate(file) if number in numbers}


def drop_documents(
    stage: Path, tokenizer: Tokenizer, dropped: NDArray[np.bool_], counts: Counter[str]
) -> None:
    """Take documents out of what ``write_tokens`` wrote, in place, and correct the counts.

    Args:
        stage: where the tokens were written.
        tokenizer: they were made with.
        dropped: [documents] True for those to take out.
        counts: of ``write_tokens``.
    """
    kind = np.uint16 if tokenizer.vocab_size <= 2**16 else np.uint32
    starts = np.fromfile(stage / _DOCUMENTS, np.int64)
    sentences = np.memmap(stage / _SENTENCES, np.int64, "r+")
    tokens = np.memmap(stage / _TOKENS, kind, "r+")
    sentence_end = token_end = 0
    # Documents that follow each other move together.
    edges = np.flatnonzero(np.diff(np.r_[True, dropped, True].astype(np.int8)))
    for first, last in edges.reshape(-1, 2):
        sentence, sentence_stop = int(starts[first]), int(starts[last])
        token, token_stop = int(sentences[sentence]), int(sentences[sentence_stop])
        _move(tokens, token, token_stop, token_end, 0)
        # Place 0 holds 0 always; the end of the run before is where this one starts.
        _move(sentences, sentence + 1, sentence_stop + 1, sentence_end + 1, token_end - token)
        sentence_end += sentence_stop - sentence
        token_end += token_stop - token
    tokens.flush()
    sentences.flush()
    del tokens, sentences
    os.truncate(stage / _TOKENS, token_end * np.dtype(kind).itemsize)
    os.truncate(stage / _SENTENCES, (sentence_end + 1) * 8)
    sizes = np.diff(starts)[~dropped]
    with (stage / _DOCUMENTS).open("wb") as file:
        _append(file, [0])
        _append(file, np.cumsum(sizes))
    counts.update(
        documents=len(sizes) - counts["documents"],
        sentences=sentence_end - counts["sentences"],
        tokens=token_end - counts["tokens"],
    )


def _move(array: NDArray[Any], start: int, stop: int, target: int, plus: int) -> None:
    """Copy a part of an array to the left, in blocks, with something added."""
    if start == target:
        return
    for first in range(start, stop, _BLOCK):
        block = array[first : min(first + _BLOCK, stop)] + plus
        array[target + first - start : target + first - start + len(block)] = block


def _append(file: Any, values: Any) -> None:
    file.write(np.asarray(values, dtype=np.int64).tobytes())
