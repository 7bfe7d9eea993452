"""Token numbers of much text: each word is encoded once and looked up from then on. Layer 1.

The tokenizers library encodes 1 to 2 MB/s on a core. With the normalizer and pre-tokenizer of
BERT no word depends on its neighbours, so that text can be taken apart at spaces, ASCII
punctuation and Chinese characters beforehand, and words be looked up. The numbers are the same;
tokenizers of other kinds are used as they are.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bert.text.tokenizer import Tokenizer

WORDS_KEPT = 2**16  # about 40 MB; all are forgotten when there are more
_PUNCTUATION = r"!-/:-@\[-`{-~"
_PLAIN_WORDS = re.compile(f"[^ {_PUNCTUATION}]+|[{_PUNCTUATION}]")
_HAN = "\u3400-\u4dbf\u4e00-\u9fff"
_HAN_WORDS = re.compile(f"[^ {_PUNCTUATION}{_HAN}]+|[{_PUNCTUATION}{_HAN}]")


class TextEncoder:
    """Encodes texts without special tokens, as ``Tokenizer.pieces`` does, but faster."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.dtype = np.dtype(np.uint16 if tokenizer.vocab_size <= 2**16 else np.uint32)
        whole = json.loads(tokenizer.backend.to_str())
        self._words = _splitter(whole)
        self._added = [token["content"] for token in whole["added_tokens"]]
        self._numbers: dict[str, int] = {}
        self._starts = np.zeros(1, np.int64)  # [words + 1] in _pieces
        self._pieces: NDArray[Any] = np.empty(0, self.dtype)

    def encode(self, texts: Sequence[str]) -> tuple[NDArray[Any], NDArray[np.int64]]:
        """Token numbers of all texts, one after the other, and how many each has."""
        joined = "\n".join(texts)
        # A special token written in a text is found before the text is taken apart.
        if self._words is None or any(token in joined for token in self._added):
            return self._flat(self.tokenizer.pieces(texts))
        split = [self._words.findall(text) for text in texts]
        words = list(chain.from_iterable(split))
        new = [word for word in set(words) if word not in self._numbers]
        self._learn(new)
        numbers = np.fromiter(map(self._numbers.__getitem__, words), np.int64, len(words))
        starts = self._starts[numbers]
        sizes = self._starts[numbers + 1] - starts
        ends = np.cumsum(sizes)
        total = int(ends[-1]) if len(ends) else 0
        tokens = self._pieces[np.repeat(starts - ends + sizes, sizes) + np.arange(total)]
        if len(self._numbers) > WORDS_KEPT:
            self._forget(new)
        word_ends = np.cumsum(np.fromiter(map(len, split), np.int64, len(split)))
        return tokens, np.diff(np.r_[0, ends][word_ends], prepend=0)

    def _learn(self, words: list[str]) -> None:
        if not words:
            return
        pieces, sizes = self._flat(self.tokenizer.pieces(words))
        self._numbers.update(zip(words, range(len(self._numbers), 2**62), strict=False))
        self._starts = np.r_[self._starts, self._starts[-1] + np.cumsum(sizes)]
        self._pieces = np.r_[self._pieces, pieces]

    def _forget(self, words: list[str]) -> None:
        """Take back the words that were learned last."""
        for word in words:
            del self._numbers[word]
        self._starts = self._starts[: len(self._numbers) + 1]
        self._pieces = self._pieces[: self._starts[-1]]

    def _flat(self, rows: list[list[int]]) -> tuple[NDArray[Any], NDArray[np.int64]]:
        sizes = np.fromiter(map(len, rows), np.int64, len(rows))
        return np.fromiter(chain.from_iterable(rows), self.dtype, int(sizes.sum())), sizes


def _splitter(whole: dict[str, Any]) -> re.Pattern[str] | None:
    """What finds words that can be encoded alone; None where that would change numbers."""
    normalizer, words = whole["normalizer"] or {}, whole["pre_tokenizer"] or {}
    if normalizer.get("type") != "BertNormalizer" or words.get("type") != "BertPreTokenizer":
        return None
    # Others are matched in the normalized text, or take blanks beside them.
    for token in whole["added_tokens"]:
        if token["normalized"] or token["lstrip"] or token["rstrip"] or token["single_word"]:
            return None
    return _HAN_WORDS if normalizer["handle_chinese_chars"] else _PLAIN_WORDS
