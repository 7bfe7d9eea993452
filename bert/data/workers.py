"""Documents become token numbers on all cores, in the order in which they are read.

``encode_documents`` is the whole work as one function of a chunk of documents; ``encode_all``
runs it here or in processes, and others may run it elsewhere. At most two chunks a process are
under way, so that memory does not depend on the size of the corpus.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import signal
import threading
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bert.errors import OutOfMemoryError
from bert.text.cleaning import NAMES, clean, count_kinds, fault_of, script_of
from bert.text.corpus import Document
from bert.text.duplicates import signatures
from bert.text.sentences import sentences
from bert.text.tokenizer import Tokenizer
from bert.text.words import TextEncoder

CHUNK_CHARACTERS = 2**19
FEW_CHUNKS = 4  # with less work than this no process is worth its start
UNDER_WAY = 2  # chunks for each process
EXAMPLES = 5  # places told for each reason of dropping


@dataclass(frozen=True)
class Job:
    """What is done with documents.

    Args:
        tokenizer: gives the token numbers.
        clean: whether characters are cleaned and worthless documents dropped.
        compare: whether hashes and signatures for finding duplicates are made.
    """

    tokenizer: Tokenizer
    clean: bool = False
    compare: bool = False


@dataclass
class Encoded:
    """What became of a chunk of documents: D are kept, of S sentences and T tokens.

    Arrays: ``tokens`` [T]; ``sentences`` [S] tokens of each; ``documents`` [D] sentences of
    each; ``hashes`` [D] of the texts and ``signatures`` [D, PLACES], both empty if not asked for.
    ``counts`` names what was read and dropped, ``examples`` some places of what was dropped.
    """

    tokens: NDArray[Any]
    sentences: NDArray[np.int64]
    documents: NDArray[np.int64]
    hashes: NDArray[np.uint64]
    signatures: NDArray[np.uint16]
    places: list[str]
    counts: Counter[str]
    examples: dict[str, list[str]] = field(default_factory=dict)


def cores() -> int:
    """The processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def chunks(documents: Iterable[Document]) -> Iterator[list[Document]]:
    """Documents by the half million characters, at least one in each chunk."""
    held: list[Document] = []
    size = 0
    for document in documents:
        held.append(document)
        size += len(document.text)
        if size >= CHUNK_CHARACTERS:
            yield held
            held, size = [], 0
    if held:
        yield held


def encode_documents(chunk: list[Document], job: Job, encoder: TextEncoder) -> Encoded:
    """Clean, judge, split, encode and sign the documents of a chunk."""
    counts: Counter[str] = Counter()
    examples: dict[str, list[str]] = {}

    def drop(reason: str, place: str) -> None:
        counts[reason] += 1
        if len(examples.setdefault(reason, [])) < EXAMPLES:
            examples[reason].append(place)

    kept: list[tuple[str, str, list[str]]] = []  # text, place, sentences
    for document in chunk:
        counts["documents_read"] += 1
        counts["characters_read"] += len(document.text)
        text = document.text
        if job.clean:
            text = clean(text)
            counts["documents_changed"] += text != document.text
            kinds = count_kinds(text)
            if fault := fault_of(text, kinds):
                drop(fault, document.where)
                continue
            counts.update(
                {
                    f"letters_{name}": int(letters)
                    for name, letters in zip(NAMES, kinds, strict=False)
                    if letters
                }
            )
            counts[f"documents_{script_of(kinds)}"] += 1
        kept.append((text, document.where, sentences(text)))

    tokens, sizes = encoder.encode([part for *_, parts in kept for part in parts])
    owner = np.repeat(np.arange(len(kept)), [len(parts) for *_, parts in kept])
    owner, sizes = owner[sizes > 0], sizes[sizes > 0]
    per_document = np.bincount(owner, minlength=len(kept))
    for number in np.flatnonzero(per_document == 0):
        drop("no_tokens", kept[number][1])
    kept = [item for item, count in zip(kept, per_document, strict=True) if count]
    per_document = per_document[per_document > 0]
    hashes = signed = None
    if job.compare:
        digests = b"".join(
            hashlib.blake2b(text.encode(), digest_size=8).digest() for text, *_ in kept
        )
        hashes = np.frombuffer(digests, dtype=np.uint64)
        ends = np.r_[0, np.cumsum(sizes)][np.r_[0, np.cumsum(per_document)]]
        signed = signatures(tokens, ends)
    return Encoded(
        tokens,
        sizes,
        per_document,
        np.empty(0, np.uint64) if hashes is None else hashes,
        np.empty((0, 0), np.uint16) if signed is None else signed,
        [place for _, place, _ in kept],
        counts,
        examples,
    )


def encode_all(documents: Iterable[Document], job: Job, workers: int) -> Iterator[Encoded]:
    """What ``encode_documents`` gives for each chunk, in order.

    Args:
        documents: read here, while the processes work on what was read before.
        job: what is done with them.
        workers: processes; 1 for none but this.

    Raises:
        DataError: while the documents are read.
        OutOfMemoryError: a process was killed.
    """
    source = chunks(documents)
    first = list(islice(source, FEW_CHUNKS)) if workers > 1 else []
    if len(first) < FEW_CHUNKS:
        encoder = TextEncoder(job.tokenizer)
        for chunk in chain(first, source):
            yield encode_documents(chunk, job, encoder)
        return
    pool = ProcessPoolExecutor(
        workers, multiprocessing.get_context("spawn"), initializer=_start, initargs=(job,)
    )
    try:
        waiting: deque[Future[Encoded]] = deque()
        for chunk in chain(first, source):
            waiting.append(pool.submit(_work, chunk))
            if len(waiting) >= UNDER_WAY * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool:
        raise OutOfMemoryError(
            "A process that encodes text was killed, most likely because memory ran out.",
            fix="give fewer processes: workers=1",
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


_state: tuple[Job, TextEncoder] | None = None  # of a worker process


def _start(job: Job) -> None:
    global _state
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the parent ends them
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # there is a process for every core
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _state = job, TextEncoder(job.tokenizer)


def _end_with_parent() -> None:
    """A parent that is killed cannot tell its workers to end."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _work(chunk: list[Document]) -> Encoded:
    assert _state is not None
    return encode_documents(chunk, *_state)
