"""Texts of any length as the windows in which a model reads them.

A text that is longer than the model takes is read in windows that overlap by about a quarter,
so that whatever is cut by the end of one stands whole in the next::

    tokens of the text    0 1 2 3 4 5 6 7 8 9
    windows               [0 1 2 3 4]
                                [3 4 5 6 7]
                                    [5 6 7 8 9]

Of a pair the longer text (or the second, where a task says so) goes through the windows, and
the other stands whole in each of them, or with as much of its beginning as half a window holds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bert.text.tokenizer import Texts, Tokenizer

OVERLAP = 0.25  # share of a window that the next one reads too


class Window(NamedTuple):
    """What the model reads at once, and which tokens of the windowed text those are."""

    input_ids: list[int]
    token_type_ids: list[int]
    begin: int = 0  # number of the first one in its text
    place: int = 0  # where in the window it stands
    size: int = 0  # how many there are


@dataclass(frozen=True)
class Windowed:
    """A text or pair in its windows.

    Args:
        windows: at least one.
        offsets: [N, 2] where each token of the windowed text begins and ends, in characters;
            empty where places were not asked for.
        words: [N] number of the word that each of those tokens belongs to.
        truncated: whether there are tokens that no window has: of the other text of a pair.
    """

    windows: list[Window]
    offsets: NDArray[np.int64]
    words: NDArray[np.int64]
    truncated: bool = False

    @property
    def tokens(self) -> int:
        """Tokens in all windows together."""
        return sum(len(window.input_ids) for window in self.windows)

    @property
    def pieces(self) -> int:
        """1 where all is read at once, and one more for each window that goes on with a text."""
        return 1 + sum(window.begin > 0 for window in self.windows)

    def owners(self) -> NDArray[np.int64]:
        """The window in which each token of the text stands farthest from an end: [N].

        The first and the last end of the text are no cut, so they do not count as ends.
        """
        total = max(window.begin + window.size for window in self.windows)
        owner = np.zeros(total, dtype=np.int64)
        best = np.full(total, -1)
        for number, (_, _, begin, _, size) in enumerate(self.windows):
            places = np.arange(size)
            left = places if begin else np.full(size, total)
            right = size - 1 - places if begin + size < total else np.full(size, total)
            margin = np.minimum(left, right)
            better = margin > best[begin : begin + size]
            owner[begin : begin + size][better] = number
            best[begin : begin + size][better] = margin[better]
        return owner

    def merged(self, scores: Sequence[NDArray[Any]]) -> NDArray[Any]:
        """One row for each token of the text, from the window that owns it.

        Args:
            scores: [S, ...] of each window, one row for each of its tokens.

        Returns:
            [N, ...]
        """
        parts = [
            score[window.place : window.place + window.size]
            for window, score in zip(self.windows, scores, strict=True)
        ]
        if len(parts) == 1:
            return parts[0]
        owner = self.owners()
        merged = np.empty((len(owner), *parts[0].shape[1:]), dtype=parts[0].dtype)
        for number, (window, part) in enumerate(zip(self.windows, parts, strict=True)):
            mine = np.flatnonzero(owner[window.begin : window.begin + window.size] == number)
            merged[window.begin + mine] = part[mine]
        return merged


def in_windows(
    tokenizer: Tokenizer,
    texts: Sequence[Texts],
    max_length: int,
    *,
    second: bool = False,
    places: bool = False,
) -> list[Windowed]:
    """Texts or pairs with their special tokens, in windows of at most ``max_length`` tokens.

    Args:
        tokenizer: of the model.
        texts: texts, or pairs of them.
        max_length: tokens of a window, special ones included.
        second: whether of a pair always the second text goes through the windows.
        places: whether to tell where tokens stand in the text.
    """
    backend = tokenizer.backend
    backend.no_truncation()
    encode = backend.encode_batch if places else backend.encode_batch_fast
    found = []
    for text, encoding in zip(texts, encode(list(texts)), strict=True):
        if len(encoding) <= max_length and not places:
            found.append(Windowed([Window(encoding.ids, encoding.type_ids)], _NOWHERE, _NO_WORDS))
        else:
            found.append(_windowed(tokenizer, text, encoding, max_length, second))
    return found


_NOWHERE = np.zeros((0, 2), dtype=np.int64)
_NO_WORDS = np.zeros(0, dtype=np.int64)


def _windowed(
    tokenizer: Tokenizer, text: Texts, encoding: Any, max_length: int, second: bool
) -> Windowed:
    pair = not isinstance(text, str)
    ids, sequence = encoding.ids, np.array([-1 if s is None else s for s in encoding.sequence_ids])
    parts = [np.flatnonzero(sequence == number) for number in range(1 + pair)]
    which = 0 if not pair else 1 if second or len(parts[1]) >= len(parts[0]) else 0
    tokens = parts[which]
    frame = Frame.of(tokenizer, pair)
    room = max_length - frame.special
    other = parts[1 - which] if pair else parts[0][:0]
    truncated = False
    if len(tokens) + len(other) > room and len(other) > room // 2:
        # What the windowed text leaves free, the other one may have.
        allowed = max(room // 2, room - len(tokens))
        truncated = len(other) > allowed
        other = other[:allowed]
    room -= len(other)
    kept = [ids[i] for i in other]
    windows = []
    for begin, size in _spread(len(tokens), room):
        mine = [ids[i] for i in tokens[begin : begin + size]]
        first, then = (kept, mine) if which else (mine, kept)
        windows.append(frame.around(first, then, which, begin))
    offsets = np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2)[tokens]
    words = encoding.word_ids
    numbers = np.array([-1 if words[i] is None else words[i] for i in tokens], dtype=np.int64)
    return Windowed(windows, offsets, numbers, truncated)


def _spread(total: int, room: int) -> list[tuple[int, int]]:
    """Begin and size of windows of ``room`` tokens, evenly over ``total`` of them."""
    if total <= room:
        return [(0, total)]
    overlap = min(int(room * OVERLAP), room - 1)
    count = -(-(total - overlap) // (room - overlap))
    return [(round(i * (total - room) / (count - 1)), room) for i in range(count)]


class Frame(NamedTuple):
    """The special tokens around one text or two."""

    before: list[int]
    between: list[int]
    after: list[int]
    types: tuple[list[int], list[int], list[int], int, int]  # of those, and of both texts

    @property
    def special(self) -> int:
        """How many special tokens there are."""
        return len(self.before) + len(self.between) + len(self.after)

    @classmethod
    def of(cls, tokenizer: Tokenizer, pair: bool) -> Frame:
        """As the tokenizer puts them: found out with a text of one token."""
        mask = tokenizer.mask_token
        encoding = tokenizer.backend.encode(mask, mask if pair else None)
        sequence, ids, types = encoding.sequence_ids, encoding.ids, encoding.type_ids
        one = sequence.index(0)
        two = sequence.index(1) if pair else len(ids)
        last = (two if pair else one) + 1
        cuts = (slice(0, one), slice(one + 1, two if pair else last), slice(last, None))
        before, between, after = (ids[cut] for cut in cuts)
        around = (types[cuts[0]], types[cuts[1]], types[cuts[2]])
        return cls(before, between, after, (*around, types[one], types[two] if pair else 0))

    def around(self, first: list[int], then: list[int], which: int, begin: int) -> Window:
        """A window with these tokens of both texts, of which number ``which`` is windowed."""
        before, between, after, one, two = self.types
        ids = [*self.before, *first, *self.between, *then, *self.after]
        types = [*before, *[one] * len(first), *between, *[two] * len(then), *after]
        place = len(self.before) + (len(first) + len(self.between) if which else 0)
        return Window(ids, types, begin, place, len(then) if which else len(first))
