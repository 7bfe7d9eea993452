"""Which tokens are hidden from the model, and behind what."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib import import_module

import numpy as np
from numpy.typing import NDArray

from bert.data.batches import Batch, Ints, ranges
from bert.data.draws import hashed, uniform
from bert.errors import UsageError
from bert.text.tokenizer import Tokenizer

KINDS = ("token", "word", "span")
# Lengths of spans in words: P(l) ~ (1 - p)^(l - 1), 3.8 on average (Joshi et al. 2020, 3.1).
SPAN_STOP, LONGEST_SPAN = 0.2, 10
_CHOOSE, _REPLACE, _WORD, _LENGTH, _LAST = 11, 12, 13, 14, 15
_CHINESE = re.compile("[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0002fa1f]")

Flags = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Words:
    """How the tokens of a vocabulary make words.

    Args:
        begins: [V] whether a word begins with the token.
        characters: [V] the Chinese character that a token is, or nothing; None where each
            Chinese character is a word of its own.
    """

    begins: Flags
    characters: NDArray[np.str_] | None = None

    def starts(self, batch: Batch) -> Flags:
        """Whether a word begins at each of the T tokens."""
        starts = self.begins[batch.input_ids]
        if self.characters is not None:
            _cut_chinese(batch, self.characters[batch.input_ids], starts)
        return starts


def vocabulary_words(tokenizer: Tokenizer, *, chinese_words: bool = False) -> Words:
    """What masking by words must know of a tokenizer.

    Args:
        tokenizer: WordPiece, BPE or Unigram.
        chinese_words: whether Chinese characters are joined to words with ``rjieba``.

    Raises:
        UsageError: ``rjieba`` is wanted and not installed.
    """
    if not chinese_words:
        return Words(begins_word(tokenizer))
    _chinese_cutter()
    bare = (_bare(tokenizer.token(i)) for i in range(tokenizer.vocab_size))
    characters = [token if _CHINESE.fullmatch(token) else "" for token in bare]
    return Words(begins_word(tokenizer), np.array(characters))


def begins_word(tokenizer: Tokenizer) -> Flags:
    """[V] whether a word begins with the token, as the tokenizer's kind of model marks it.

    WordPiece marks with ``##`` what goes on; byte-level BPE and Unigram mark with ``Ġ`` or
    ``▁`` what begins. Special tokens and Chinese characters begin a word always.
    """
    tokens = [tokenizer.token(i) for i in range(tokenizer.vocab_size)]
    if type(tokenizer.backend.model).__name__ == "WordPiece":
        found = [not token.startswith("##") for token in tokens]
    else:
        found = [token.startswith(("Ġ", "▁")) for token in tokens]
    special = set(tokenizer.special_tokens.values())
    whole = (token in special or _CHINESE.fullmatch(_bare(token)) for token in tokens)
    return np.array([a or bool(b) for a, b in zip(found, whole, strict=True)])


def _bare(token: str) -> str:
    return token.removeprefix("##").removeprefix("▁")


def _chinese_cutter() -> Callable[[str], list[str]]:
    try:
        cut: Callable[[str], list[str]] = import_module("rjieba").cut
    except ImportError:
        raise UsageError(
            "Masking whole Chinese words needs rjieba, which is not installed.",
            fix='pip install "bertsmith[chinese]"',
        ) from None
    return cut


def _cut_chinese(batch: Batch, characters: NDArray[np.str_], starts: Flags) -> None:
    """Let words begin among Chinese characters [T] only where the text is cut."""
    places = np.flatnonzero(characters != "")
    if not len(places):
        return
    # Characters of one run follow each other in one sequence; a line break parts the runs,
    # so that the whole batch is cut in one call.
    fresh = (np.diff(places, prepend=-2) != 1) | (batch.position_ids[places] == 0)
    pieces = np.where(fresh, np.char.add("\n", characters[places]), characters[places])
    where = np.arange(len(places)) + np.cumsum(fresh)  # of each character in the text
    lengths = np.array([len(word) for word in _chinese_cutter()("".join(pieces.tolist()))])
    begins = np.zeros(lengths.sum(), dtype=bool)
    begins[np.cumsum(lengths) - lengths] = True
    starts[places] = begins[where] | fresh


def mask_tokens(
    batch: Batch,
    *,
    rate: float,
    seed: int,
    mask_id: int,
    vocab_size: int,
    kind: str = "token",
    words: Words | None = None,
    only_mask: bool = False,
) -> Batch:
    """Hide a share of every sequence's tokens (Devlin et al. 2018, section 3.1 and appendix A.2).

    ``token``: single tokens are chosen. ``word``: words, with all their tokens. ``span``: runs
    of words (Joshi et al. 2020, section 3.1), the last of which ends where enough are chosen.
    Of the chosen tokens 80% become [MASK], 10% a random word, 10% stay. All depends on (seed,
    epoch, sample, place in the sequence) alone.

    Args:
        batch: with the target ``special`` [T], 1 at tokens that are never chosen.
        rate: share of the other tokens that is chosen: exactly with ``token``, on average
            otherwise; at least one token or word a sequence.
        seed: of the run.
        mask_id: number of [MASK].
        vocab_size: random words are below it.
        kind: one of ``KINDS``.
        words: what makes a word, for ``word`` and ``span``.
        only_mask: all chosen tokens become [MASK].

    Returns:
        The batch with tokens replaced and the targets ``masked_places`` [M], ascending among
        the T tokens, and ``masked_words`` [M], the tokens that stood there.

    Raises:
        UsageError: an unknown kind, or one of words without knowing any.
    """
    place = batch.position_ids
    sequence = np.repeat(np.arange(len(batch.lengths)), batch.lengths)
    sample = batch.samples[sequence]
    free = batch.targets["special"] == 0

    start, size, run = _units(batch, free, kind, words)
    keys = (seed, batch.epoch, sample[start], place[start])
    draw = uniform(_CHOOSE, *keys)
    if kind == "span":
        draw = _earliest(draw, _span_lengths(uniform(_LENGTH, *keys)), run)
    owner = sequence[start]
    # The lowest draws of each sequence come first; words of one span in their order.
    order = np.lexsort((start, draw, owner))
    start, size, owner = start[order], size[order], owner[order]
    available = np.bincount(sequence[free], minlength=len(batch.lengths))
    wanted = np.maximum(np.rint(available * rate), 1)[owner]
    before = np.cumsum(size) - size
    before -= before[np.searchsorted(owner, owner)]  # within the sequence
    # A word that would be too much is taken with the chance that makes the average right.
    chance = uniform(_LAST, seed, batch.epoch, batch.samples)[owner]
    taken = (before == 0) | (before + size <= wanted) | (before + chance * size < wanted)
    chosen = np.sort(ranges(start[taken], size[taken]))

    hidden = batch.input_ids[chosen]
    keys = (seed, batch.epoch, sample[chosen], place[chosen])
    draw = uniform(_REPLACE, *keys)
    random_words = (hashed(_WORD, *keys) % np.uint64(vocab_size)).astype(np.int64)
    input_ids = batch.input_ids.copy()
    input_ids[chosen] = np.where(draw < 0.8, mask_id, np.where(draw < 0.9, random_words, hidden))
    if only_mask:
        input_ids[chosen] = mask_id
    targets = {**batch.targets, "masked_places": chosen, "masked_words": hidden}
    return replace(batch, input_ids=input_ids, targets=targets)


def _units(batch: Batch, free: Flags, kind: str, words: Words | None) -> tuple[Ints, Ints, Ints]:
    """What is chosen as a whole, U of them: first token, tokens, number of the run of text.

    A run of text ends at a special token and at the end of its sequence.
    """
    if kind not in KINDS:
        raise UsageError(f"Masks are one of {', '.join(KINDS)}, not {kind!r}.")
    edge = ~free | (batch.position_ids == 0)
    edge |= np.concatenate(([True], ~free))[: len(free)]
    if kind == "token":
        starts = np.ones(len(free), dtype=bool)
    elif words is None:
        raise UsageError(f"Masks of kind {kind} need to know what makes a word.")
    else:
        starts = edge | words.starts(batch)
    start = np.flatnonzero(starts)
    size = np.diff(start, append=len(free))
    real = free[start]
    return start[real], size[real], np.cumsum(edge)[start[real]]


def _span_lengths(draw: NDArray[np.float64]) -> Ints:
    """Lengths from 1 to ``LONGEST_SPAN``, geometrically distributed, from draws in [0, 1)."""
    most = 1 - (1 - SPAN_STOP) ** LONGEST_SPAN
    lengths = np.ceil(np.log1p(-draw * most) / np.log1p(-SPAN_STOP))
    whole: Ints = np.clip(lengths, 1, LONGEST_SPAN).astype(np.int64)
    return whole


def _earliest(draw: NDArray[np.float64], lengths: Ints, run: Ints) -> NDArray[np.float64]:
    """The lowest draw among the spans that hold each word [U].

    A span begins at every word. Taking words by their lowest draw is the same as laying span
    after span in the order of their draws until enough is covered, without a loop.
    """
    lowest = draw.copy()
    for back in range(1, min(LONGEST_SPAN, len(draw))):
        reaches = (lengths[:-back] > back) & (run[:-back] == run[back:])
        lowest[back:] = np.where(reaches, np.minimum(lowest[back:], draw[:-back]), lowest[back:])
    return lowest
