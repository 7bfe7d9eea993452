"""The laundry: text as the web leaves it becomes text worth learning from. Layer 1.

Cleaning changes characters, never words. Judging drops whole documents, by three rules that
hold in every language; each has one figure below.
"""

from __future__ import annotations

import re
import unicodedata
from functools import cache

import numpy as np
from numpy.typing import NDArray

FEWEST_LETTERS = 30  # in a document
LETTER_SHARE = 0.5  # of the characters that are not blank, at least
REPEATED_SHARE = 0.5  # of the characters of a document, at most, in lines that came before
FAULTS = ("too_short", "few_letters", "repeated_lines")

_ENDS = "\x85\u2028\u2029"  # line ends beside the usual ones
_BLANKS = "\t\xa0\u1680\u2000-\u200a\u202f\u205f\u3000"
# All control characters but tab and line ends, and invisible ones that split words: soft
# hyphen, zero-width space, word joiner, byte order mark.
_INVISIBLE = "\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\xad\u200b\u2060\ufeff"
_ODD = re.compile(f"[\r{_ENDS}{_BLANKS}{_INVISIBLE}]")
_LINE_END = re.compile(f"\r\n?|[{_ENDS}]")
_INVISIBLE_RUN = re.compile(f"[{_INVISIBLE}]+")
_BLANK_RUN = re.compile(f"[ {_BLANKS}]+")
_NEEDLESS = ("  ", "\n ", " \n", "\n\n")

SCRIPTS = {
    "latin": "A-Za-z\xc0-\u02af\u1e00-\u1eff\u2c60-\u2c7f\ua720-\ua7ff\uff21-\uff5a",
    "han": "\u2e80-\u2fdf\u3005-\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af",
    "kana": "\u3040-\u30ff\u31f0-\u31ff\uff66-\uff9f",
    "hangul": "\u1100-\u11ff\u3130-\u318f\ua960-\ua97f\uac00-\ud7ff",
    "cyrillic": "\u0400-\u052f\u1c80-\u1c8f\u2de0-\u2dff\ua640-\ua69f",
    "greek": "\u0370-\u03ff\u1f00-\u1fff",
    "arabic": "\u0600-\u06ff\u0750-\u077f\u0870-\u08ff\ufb50-\ufdff\ufe70-\ufeff",
    "hebrew": "\u0590-\u05ff\ufb1d-\ufb4f",
    "devanagari": "\u0900-\u097f\ua8e0-\ua8ff",
    "thai": "\u0e00-\u0e7f",
}
_OTHER, _BLANK, _REST = len(SCRIPTS), len(SCRIPTS) + 1, len(SCRIPTS) + 2
NAMES = (*SCRIPTS, "other")  # of the scripts, in the order in which letters are counted
_LAST = 0x323B0  # no letters are assigned beyond


def clean(text: str) -> str:
    r"""The same words in Unicode NFC, without invisible characters and needless blanks.

    Every line end becomes ``\n``. Control characters, soft hyphens and zero-width spaces go;
    joiners stay, for scripts and emoji need them. A run of blanks of any kind becomes one space,
    and none stands at the ends of a line. Lines without text go.
    """
    if _ODD.search(text):
        text = _LINE_END.sub("\n", text)
        text = _INVISIBLE_RUN.sub("", text)
        text = _BLANK_RUN.sub(" ", text)
    if not text.isascii():
        text = unicodedata.normalize("NFC", text)
    if any(pair in text for pair in _NEEDLESS):
        text = _BLANK_RUN.sub(" ", text)
        text = "\n".join(line for line in map(str.strip, text.split("\n")) if line)
    return text.strip()


def count_kinds(text: str) -> NDArray[np.int64]:
    """How many characters are letters of each script in ``NAMES``, blank, and anything else."""
    codes = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
    kinds = _kind_of_character()[np.minimum(codes, _LAST)]
    return np.bincount(kinds, minlength=_REST + 1)


def script_of(kinds: NDArray[np.int64]) -> str | None:
    """The script of most letters, from what ``count_kinds`` gives; None without letters."""
    letters = kinds[: len(NAMES)]
    return NAMES[int(letters.argmax())] if letters.any() else None


def fault_of(text: str, kinds: NDArray[np.int64]) -> str | None:
    """Why a document is not worth keeping, one of ``FAULTS``; None if it is.

    Args:
        text: the document, cleaned.
        kinds: what ``count_kinds`` gives for it.
    """
    letters = int(kinds[: len(NAMES)].sum())
    if letters < FEWEST_LETTERS:
        return "too_short"
    if letters < LETTER_SHARE * (letters + int(kinds[_REST])):
        return "few_letters"
    lines = text.split("\n")
    once = set(lines)
    if len(once) < len(lines):
        size = sum(map(len, lines))
        if size - sum(map(len, once)) > REPEATED_SHARE * size:
            return "repeated_lines"
    return None


@cache
def _kind_of_character() -> NDArray[np.uint8]:
    """The kind of every code point: which script, other letters, blank, or the rest."""
    kinds = np.full(_LAST + 1, _REST, np.uint8)
    for code in range(_LAST):
        character = chr(code)
        if unicodedata.category(character)[0] in "LM":  # marks belong to the letters before them
            kinds[code] = _OTHER
        elif character.isspace():
            kinds[code] = _BLANK
    for number, ranges in enumerate(SCRIPTS.values()):
        for first, last in re.findall("(.)-(.)", ranges):
            block = kinds[ord(first) : ord(last) + 1]
            block[block == _OTHER] = number
    return kinds
