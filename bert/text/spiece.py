"""The pieces in a SentencePiece file: a small reader of the few fields that a tokenizer needs.

The file is a protocol buffer: fields one after another, each a number that says which field
follows and of which of four shapes, then its content. A message inside a message is content
like any other, so reading goes two levels deep whatever the file says.
"""

from __future__ import annotations

import itertools
import math
import struct
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from bert.errors import ModelError

_MOST_PIECES = 2**20  # each costs some 150 bytes in memory, however few on disk
_MOST_NODES = 2**22  # of the tree of all pieces, each some 300 bytes; XLM-R's has 1 million
_UNIGRAM = 1  # the kind of model that a file without a kind has, too
_CONTROL, _USER_DEFINED = 3, 4  # types of pieces
_VARINT, _EIGHT, _BYTES, _FOUR = 0, 1, 2, 5  # shapes of content


class Pieces(NamedTuple):
    """What a SentencePiece file of a Unigram model says.

    Args:
        pieces: text and logarithm of its probability, by number.
        symbols: pieces that are never split, and whether they are control symbols.
        unknown: number of the unknown piece.
        charsmap: the compiled table of characters that are written differently, if any.
    """

    pieces: list[tuple[str, float]]
    symbols: list[tuple[str, bool]]
    unknown: int
    charsmap: bytes | None


def read_pieces(content: bytes, name: str) -> Pieces:
    """Read a SentencePiece file.

    Args:
        content: the whole file; memory stays below a few hundred bytes for each piece.
        name: what the file is called in messages.

    Raises:
        ModelError: it is cut, damaged, or no Unigram model.
    """
    try:
        return _read(memoryview(content))
    except (ValueError, IndexError, struct.error) as error:
        if isinstance(error, ModelError):
            raise
        raise ModelError(
            f"{name} is damaged: it is no SentencePiece model.",
            fix="copy the tokenizer files again from where the model came from",
        ) from None


def _read(content: memoryview) -> Pieces:
    pieces: list[tuple[str, float]] = []
    symbols: list[tuple[str, bool]] = []
    kind, unknown, charsmap = _UNIGRAM, 0, b""
    for field, value in _fields(content):
        if field == 1:
            text, score, type_ = _piece(_message(value))
            if len(pieces) == _MOST_PIECES:
                raise ModelError(f"A vocabulary of more than {_MOST_PIECES:,} pieces is not read.")
            pieces.append((text, score))
            if type_ in (_CONTROL, _USER_DEFINED):
                symbols.append((text, type_ == _CONTROL))
        elif field == 2:
            for inner, setting in _fields(_message(value)):
                if inner == 3:
                    kind = _number(setting)
                elif inner == 40:
                    unknown = _number(setting)
        elif field == 3:
            for inner, setting in _fields(_message(value)):
                if inner == 2:
                    charsmap = bytes(_message(setting))
    if kind != _UNIGRAM:
        raise ModelError(
            "This SentencePiece file is no Unigram model.",
            fix="give tokenizer.json: AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR) "
            "in transformers writes it",
        )
    if not 0 <= unknown < len(pieces):
        raise ValueError
    if charsmap:
        check_charsmap(charsmap)
    return Pieces(pieces, symbols, unknown, charsmap or None)


def check_charsmap(charsmap: bytes) -> None:
    """Refuse a table of characters that the tokenizers library would stop the program for.

    It is a trie in one array (Aoe 1989), before the texts that it leads to: each unit says
    where its children lie, and a leaf where its text begins.

    Raises:
        ModelError: the table is damaged.
    """
    try:
        (size,) = struct.unpack_from("<I", charsmap)
        units = struct.unpack_from(f"<{size // 4}I", charsmap, 4)
        texts = charsmap[4 + 4 * len(units) :]
        texts.decode("utf-8")
        for place, unit in enumerate(units):
            if unit >> 31:  # a leaf
                continue
            children = place ^ (unit >> 10 << ((unit & 512) >> 6))
            if (children | 255) >= len(units):
                raise ValueError
            # The text must not begin inside of a character.
            if unit & 256 and texts[units[children] & (2**31 - 1)] & 192 == 128:
                raise ValueError
    except (ValueError, IndexError, struct.error):
        raise ModelError(
            "The tokenizer's table of characters (precompiled_charsmap) is damaged."
        ) from None


def check_tree(pieces: Iterable[str]) -> None:
    """Refuse a Unigram vocabulary that would fill the memory.

    The tokenizers library keeps it as a tree, a node for each byte in which two pieces differ:
    a hundred times the size of a file of long pieces that have nothing in common.

    Raises:
        ModelError: the tree would have more than four million nodes.
    """
    texts = [piece.encode("utf-8") for piece in pieces]
    if sum(map(len, texts)) <= _MOST_NODES:
        return
    texts.sort()
    nodes = len(texts[0])
    for before, text in itertools.pairwise(texts):
        same = itertools.takewhile(lambda two: two[0] == two[1], zip(before, text, strict=False))
        nodes += len(text) - sum(1 for _ in same)
    if nodes > _MOST_NODES:
        raise ModelError(f"The pieces of the vocabulary take more than {_MOST_NODES:,} nodes.")


def _piece(message: memoryview) -> tuple[str, float, int]:
    text, score, type_ = "", 0.0, 1
    for field, value in _fields(message):
        if field == 1:
            text = str(_message(value), "utf-8")
        elif field == 2:
            if not isinstance(value, float):
                raise ValueError
            score = value
        elif field == 3:
            type_ = _number(value)
    if not text or not math.isfinite(score):
        raise ValueError
    return text, score, type_


def _fields(message: memoryview) -> Iterator[tuple[int, int | float | memoryview]]:
    """Number and content of each field of a message; ValueError where it is damaged."""
    place = 0
    while place < len(message):
        tag, place = _varint(message, place)
        field, shape = tag >> 3, tag & 7
        value: int | float | memoryview
        if shape == _VARINT:
            value, place = _varint(message, place)
        elif shape == _FOUR:
            (value,) = struct.unpack_from("<f", message, place)
            place += 4
        elif shape == _BYTES:
            size, place = _varint(message, place)
            value = message[place : place + size]
            place += size
        elif shape == _EIGHT:
            value = 0
            place += 8
        else:
            raise ValueError
        if place > len(message) or field == 0:
            raise ValueError
        yield field, value


def _varint(message: memoryview, place: int) -> tuple[int, int]:
    """A number of at most ten bytes, seven bits a byte, the lowest first."""
    number = 0
    for shift in range(0, 70, 7):
        byte = message[place]
        place += 1
        number |= (byte & 127) << shift
        if byte < 128:
            return number, place
    raise ValueError


def _message(value: int | float | memoryview) -> memoryview:
    if not isinstance(value, memoryview):
        raise ValueError
    return value


def _number(value: int | float | memoryview) -> int:
    if not isinstance(value, int):
        raise ValueError
    return value
