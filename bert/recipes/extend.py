"""``bert tokenizer extend``: teach a model the words of a domain.

A word that its vocabulary lacks costs a model several tokens, whose meaning together it must
guess. The most useful of them become tokens of their own. Each new row of the embeddings is the
mean of the rows of the word's old pieces, so that the model starts from what it knew; how the
word is used it learns in further training.
"""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from pydantic import Field
from torch import Tensor, nn

from bert import log
from bert.checkpoint import Checkpoint, read_model, write_model
from bert.config import Settings
from bert.errors import DataError, UsageError
from bert.hub import find_model
from bert.text.corpus import documents
from bert.text.new_words import NewWord, extended, new_words, word_count
from bert.text.tokenizer import Tokenizer
from bert.untrusted import carry_files

_BATCH = 256  # documents tokenized at once
GROWN = ("embeddings.word.weight", "words.bias")  # endings of weights with a row a token


class ExtendSettings(Settings):
    """All of ``bert tokenizer extend``."""

    add: int = Field(1000, gt=0, lt=2**20)
    text_column: str = "text"


def extend_model(
    model: str, corpus: Sequence[Path], settings: ExtendSettings, out: Path
) -> Checkpoint:
    """Write a model that has the words of a corpus in its vocabulary.

    Args:
        model: run folder, model directory or hub id; it stays as it is.
        corpus: files and folders of the domain's text.
        settings: how many words, and where the text is.
        out: a new folder for the whole model.

    Raises:
        UsageError: the folder is in use.
        DataError: the corpus cannot be read, or there is no word to add.
        ModelError: the model cannot be read.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError("The output folder is in use.", where=str(out), fix="choose another --out")
    directory = find_model(model)
    checkpoint = read_model(directory)
    tokenizer = checkpoint.tokenizer
    assert tokenizer is not None
    log.say("Looking for words.")
    texts = (document.text for document in documents(corpus, settings.text_column))
    words = new_words(tokenizer, texts, settings.add)
    if not words:
        raise DataError(
            "No word of the corpus falls to pieces more than once: there is nothing to add.",
            where=", ".join(str(path) for path in corpus),
            fix="give more text of the domain, or keep the model as it is",
        )
    larger = extended(tokenizer, words)
    result = grown(checkpoint, larger, words)
    result.others = []
    write_model(out, result)
    try:  # what is written must be readable, and what else there was is kept
        read_model(out)
        left = carry_files(directory, out, checkpoint.others)
    except BaseException:
        shutil.rmtree(out)
        raise
    if left:
        log.say(f"Not copied: {', '.join(left)}.")
    before, after, count = _tokens(corpus, settings.text_column, tokenizer, larger)
    shown = ", ".join(word.text.removeprefix("▁") for word in words[:8])
    fewer = "" if len(words) == settings.add else f", all that there are to add of {settings.add:,}"
    log.say(f"{len(words):,} words added{fewer}: {shown}{' ...' if len(words) > 8 else ''}")
    log.say(
        f"Tokens per word on the corpus: {before / count:.3f} -> {after / count:.3f} "
        f"({before:,} -> {after:,} tokens, {count:,} words)"
    )
    log.say(f"{larger.vocab_size:,} tokens in {out}")
    return result


def grown(checkpoint: Checkpoint, tokenizer: Tokenizer, words: Sequence[NewWord]) -> Checkpoint:
    """The model with this larger tokenizer and a row for each of its last, new words.

    Spare rows that the embeddings have behind the old vocabulary are used before rows are
    added. Everything else is the same.

    Raises:
        ModelError: the vocabulary becomes too large.
    """
    old = checkpoint.config
    first = tokenizer.vocab_size - len(words)
    config = replace(old, vocab_size=max(old.vocab_size, tokenizer.vocab_size))
    with torch.device("meta"):
        model: nn.Module = checkpoint.family.build(
            checkpoint.kind, config, max(len(checkpoint.labels), 1)
        )
    state = checkpoint.model.state_dict()
    for name, value in state.items():
        if name.endswith(GROWN):
            state[name] = _with_rows(value, first, config.vocab_size, words)
    model.load_state_dict(state, assign=True)
    model.eval()
    return replace(checkpoint, model=model, tokenizer=tokenizer)


def _with_rows(old: Tensor, first: int, size: int, words: Sequence[NewWord]) -> Tensor:
    """[V, ...] -> [size, ...], row ``first + i`` being the mean of the i-th word's old pieces."""
    new = old.new_zeros(size, *old.shape[1:])
    new[: len(old)] = old
    for row, word in enumerate(words, first):
        new[row] = old[word.pieces].mean(dim=0)
    return new


def _tokens(
    corpus: Sequence[Path], text_column: str, before: Tokenizer, after: Tokenizer
) -> tuple[int, int, int]:
    """Tokens of the corpus before and after, and its words."""
    totals = [0, 0, 0]
    for texts in _batches(corpus, text_column):
        totals[0] += sum(map(len, before.pieces(texts)))
        totals[1] += sum(map(len, after.pieces(texts)))
        totals[2] += sum(map(word_count, texts))
    return totals[0], totals[1], max(totals[2], 1)


def _batches(corpus: Sequence[Path], text_column: str) -> Iterator[list[str]]:
    texts = (document.text for document in documents(corpus, text_column))
    while batch := list(itertools.islice(texts, _BATCH)):
        yield batch
