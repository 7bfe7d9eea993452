"""``bert tokenizer``: a WordPiece vocabulary from one's own text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import Field

from bert import log
from bert.cache import cached, key_of
from bert.config import Settings
from bert.errors import DataError, UsageError
from bert.text.corpus import content_hash, documents, sample_texts
from bert.text.tokenizer import SPECIAL_TOKENS, Tokenizer, train_wordpiece

VERSION = 3
# A larger corpus gives no better vocabulary, and would not fit into memory.
SAMPLE_CHARACTERS = 100_000_000


class TokenizerSettings(Settings):
    """All of ``bert tokenizer``."""

    vocab_size: int = Field(30522, gt=len(SPECIAL_TOKENS), lt=2**31)
    lowercase: bool = True
    text_column: str = "text"


def corpus_tokenizer(
    corpus: Sequence[Path], *, text_column: str, vocab_size: int, lowercase: bool, max_length: int
) -> Tokenizer:
    """The tokenizer that this corpus gives; trained at most once for the same content.

    Raises:
        UsageError: a vocabulary too small for anything but the special tokens.
        DataError: the corpus cannot be read.
    """
    if vocab_size <= len(SPECIAL_TOKENS):
        raise UsageError(
            f"A vocabulary of {vocab_size} has no room for words.", fix="vocab_size=30522"
        )

    def build(stage: Path) -> None:
        log.say("Training the tokenizer.")
        try:
            texts = sample_texts(documents(corpus, text_column), SAMPLE_CHARACTERS)
            train_wordpiece(
                lambda: texts,
                vocab_size=vocab_size,
                lowercase=lowercase,
                max_length=max_length,
            ).save(stage)
        except DataError as error:
            error.where = error.where or ", ".join(str(path) for path in corpus)
            raise

    key = key_of(VERSION, content_hash(corpus), text_column, vocab_size, lowercase, max_length)
    return Tokenizer.load(cached("tokenizers", key, build))


def train_tokenizer(corpus: Sequence[Path], settings: TokenizerSettings, out: Path) -> Tokenizer:
    """Train a tokenizer and write its files to a folder.

    Raises:
        UsageError: the folder is in use.
        DataError: the corpus cannot be read.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError("The output folder is in use.", where=str(out), fix="choose another --out")
    tokenizer = corpus_tokenizer(
        corpus,
        text_column=settings.text_column,
        vocab_size=settings.vocab_size,
        lowercase=settings.lowercase,
        max_length=512,
    )
    try:
        tokenizer.save(out)
    except BaseException:
        for name in tokenizer.files:
            (out / name).unlink(missing_ok=True)
        raise
    log.say(f"{tokenizer.vocab_size:,} tokens in {out}")
    return tokenizer
