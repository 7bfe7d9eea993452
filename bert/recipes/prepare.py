"""``bert prepare``: much text, cleaned and without duplicates, as tokens ready for training."""

from __future__ import annotations

import os
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from bert import log
from bert.cluster import ray_cluster
from bert.config import Settings
from bert.data.shards import (
    compared,
    drop_documents,
    no_text,
    places_of,
    write_facts,
    write_tokens,
)
from bert.data.workers import EXAMPLES, Encoded, Job, chunks, cores, encode_all, encode_documents
from bert.errors import DataError, UsageError
from bert.recipes.tokenizer import SAMPLE_CHARACTERS
from bert.text.cleaning import FAULTS, NAMES
from bert.text.corpus import sample_texts
from bert.text.duplicates import exact_duplicates, near_duplicates
from bert.text.remote import Source, read_sources, sources_of
from bert.text.tokenizer import Tokenizer, train_wordpiece
from bert.text.words import TextEncoder

REPORT = "data_report.json"


class PrepareSettings(Settings):
    """All of ``bert prepare``."""

    corpus: list[str]
    tokenizer: str | None = None
    text_column: str = "text"
    vocab_size: int = Field(30522, gt=5, lt=2**31)
    lowercase: bool = True
    clean: bool = True
    deduplicate: bool = True
    similarity: float = Field(0.8, ge=0.5, le=1)
    workers: int | None = Field(None, gt=0)


def prepare(settings: PrepareSettings, out: Path, *, on_ray: bool = False) -> Path:
    """Write the shards of a corpus, which ``bert pretrain`` takes in place of the corpus.

    The result depends on the text and the settings only, not on the number of processes. It
    appears whole or not at all.

    Args:
        settings: what to read and how.
        out: the folder of the shards, not there yet or empty.
        on_ray: whether files are read and encoded by tasks of Ray, on many machines.

    Returns:
        ``out``.

    Raises:
        UsageError: the folder is in use, or something needed is not installed.
        DataError: a file cannot be read, or no document is worth keeping.
        ModelError: the tokenizer cannot be read.
    """
    began = time.monotonic()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError("The output folder is in use.", where=str(out), fix="choose another --out")
    sources = sources_of(settings.corpus)
    with _stage(out) as stage:
        tokenizer = _tokenizer(settings, sources, stage)
        job = Job(tokenizer, settings.clean, settings.deduplicate)
        if on_ray:
            results = _encode_on_ray(sources, settings.text_column, job)
        else:
            texts = read_sources(sources, settings.text_column, stage)
            results = encode_all(texts, job, settings.workers or cores())
        encoding = time.monotonic()
        counts, places = write_tokens(stage, results)
        if not counts["tokens"]:
            raise _nothing_left(settings, counts)
        examples: dict[str, Any] = {**places}
        if settings.deduplicate:
            examples |= _drop_duplicates(stage, tokenizer, settings.similarity, counts)
        tokenizer.save(stage)
        report = _report(counts, examples, encoding - began, time.monotonic() - began)
        log.write_json(stage / REPORT, report)
        write_facts(stage, tokenizer, counts)
    dropped = ", ".join(f"{name.replace('_', ' ')} {n:,}" for name, n in report["dropped"].items())
    log.say(f"Documents: {counts['documents_read']:,} read, {counts['documents']:,} kept")
    log.say(f"Dropped: {dropped or 'none'}")
    log.say(
        f"{counts['tokens']:,} tokens in {counts['sentences']:,} sentences, "
        f"{report['million_characters_per_second']:.1f} million characters/s"
    )
    log.say(f"Shards: {out}   Train on them: bert pretrain {out} --minutes 60")
    return out


@contextmanager
def _stage(out: Path) -> Iterator[Path]:
    """A folder beside ``out`` that becomes ``out`` if all goes well, and else is removed.

    What a killed run left there is removed first; of two runs at once the later is refused.
    """
    import fcntl

    stage = out.absolute().with_name(f".{out.absolute().name}.partial")
    stage.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(stage, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # ends with the process
            if not os.path.samestat(os.fstat(descriptor), stage.stat()):
                raise FileNotFoundError  # the other process has just ended
        except OSError:
            raise UsageError(
                "Another process is preparing these shards.",
                where=str(out),
                fix="wait for it, or choose another --out",
            ) from None
        try:
            for old in stage.iterdir():
                shutil.rmtree(old) if old.is_dir() else old.unlink()
            yield stage
            stage.replace(out)
            _sync(out.absolute().parent)
        finally:
            shutil.rmtree(stage, ignore_errors=True)
    finally:
        os.close(descriptor)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _tokenizer(settings: PrepareSettings, sources: Sequence[Source], stage: Path) -> Tokenizer:
    """The tokenizer that is named, or one learnt from a sample of the corpus."""
    if settings.tokenizer is not None:
        return Tokenizer.load(Path(settings.tokenizer))
    texts = sample_texts(read_sources(sources, settings.text_column, stage), SAMPLE_CHARACTERS)
    log.say(f"Training the tokenizer on {sum(map(len, texts)):,} characters.")
    try:
        return train_wordpiece(
            lambda: texts, vocab_size=settings.vocab_size, lowercase=settings.lowercase
        )
    except DataError as error:
        error.where = error.where or ", ".join(settings.corpus)
        raise


def _drop_duplicates(
    stage: Path, tokenizer: Tokenizer, similarity: float, counts: Counter[str]
) -> dict[str, Any]:
    """Take out what says the same as an earlier document; some pairs of places of each kind.

    The second of a pair is where the first document of the chain stands, which is kept.
    """
    hashes, signed = compared(stage)
    exact = exact_duplicates(hashes)
    near = np.where(exact < 0, near_duplicates(signed, similarity), -1)
    counts["duplicates"] = int((exact >= 0).sum())
    counts["near_duplicates"] = int((near >= 0).sum())
    earlier = np.maximum(exact, near)
    dropped = earlier >= 0
    if not dropped.any():
        return {}
    kept = np.where(dropped, earlier, np.arange(len(earlier)))
    while not np.array_equal(kept, further := kept[kept]):
        kept = further
    shown = {
        name: [(int(n), int(kept[n])) for n in np.flatnonzero(earlier >= 0)[:EXAMPLES]]
        for name, earlier in (("duplicates", exact), ("near_duplicates", near))
    }
    places = places_of(stage, {n for pairs in shown.values() for pair in pairs for n in pair})
    drop_documents(stage, tokenizer, dropped, counts)
    return {
        name: [[places[n] for n in pair] for pair in pairs]
        for name, pairs in shown.items()
        if pairs
    }


def _nothing_left(settings: PrepareSettings, counts: Counter[str]) -> DataError:
    if not counts["documents_read"]:
        return no_text(settings.corpus)
    reasons = ", ".join(f"{name} {counts[name]:,}" for name in FAULTS if counts[name])
    return DataError(
        f"None of {counts['documents_read']:,} documents is worth keeping: {reasons}.",
        where=", ".join(settings.corpus),
        fix="keep them as they are: clean=false" if settings.clean else "give more text",
    )


def _report(
    counts: Counter[str], examples: dict[str, Any], tokenizer_seconds: float, seconds: float
) -> dict[str, Any]:
    """What ``data_report.json`` says."""
    reasons = (*FAULTS, "no_tokens", "duplicates", "near_duplicates")
    rate = counts["characters_read"] / max(seconds - tokenizer_seconds, 1e-9) / 1e6
    report: dict[str, Any] = {
        "documents_read": counts["documents_read"],
        "characters_read": counts["characters_read"],
        "documents_changed_by_cleaning": counts["documents_changed"],
        "dropped": {name: counts[name] for name in reasons if counts[name]},
        "dropped_at": examples,
        **{name: counts[name] for name in ("documents", "sentences", "tokens")},
    }
    for what in ("documents", "letters"):
        named = {name: counts[f"{what}_{name}"] for name in NAMES}
        report[f"{what}_by_script"] = {name: count for name, count in named.items() if count}
    return {
        **report,
        "tokenizer_seconds": round(tokenizer_seconds, 1),
        "seconds": round(seconds, 1),
        "million_characters_per_second": round(rate, 2),
    }


def _encode_on_ray(sources: Sequence[Source], text_column: str, job: Job) -> Iterator[Encoded]:
    """What ``encode_all`` gives, in the same order, made by one task of Ray for each source.

    Tasks run ahead of what is written by four chunks each, and no more of them at once than
    the cluster has cores. Local files must have the same path on every machine.
    """
    with ray_cluster() as ray:
        shared = ray.put(job)
        encode = ray.remote(num_returns="streaming", _generator_backpressure_num_objects=4)(
            _encode_source
        )
        waiting: list[Any] = []
        following = iter(sources)
        room = max(int(ray.cluster_resources().get("CPU", 1)), 1)
        try:
            while True:
                while len(waiting) < room and (source := next(following, None)) is not None:
                    waiting.append(encode.remote(source, text_column, shared))
                if not waiting:
                    return
                for result in waiting.pop(0):
                    yield ray.get(result)
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, DataError | UsageError):
                raise error.cause from None
            raise


def _encode_source(source: Source, text_column: str, job: Job) -> Iterator[Encoded]:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # there is a task for every core
    encoder = TextEncoder(job.tokenizer)
    for chunk in chunks(read_sources([source], text_column)):
        yield encode_documents(chunk, job, encoder)
