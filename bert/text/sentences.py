"""The cutting table: text is cut into sentences, English and Chinese alike. Layer 1.

Rules, not a model: a sentence ends at an end mark and the closing quotes and brackets after it.
Western marks need white space and something that can start a sentence behind them, and no
abbreviation before them; Chinese marks end a sentence by themselves. One pass, linear time.
"""

from __future__ import annotations

import re

_CHINESE_MARKS = frozenset("。！？；｡")
_MARKS = re.compile(r"[.!?…。！？；｡]+")
_CLOSING = frozenset(")]}”’»」』）】》〉〕］｝")
_OPENING = frozenset("\"'`“‘«¿¡([{「『（【《〈〔［｛")
_CONTINUING = frozenset("，、：,:")
_CJK = re.compile("[\u2e80-\u9fff\uac00-\ud7af\uf900-\ufaff\uff01-\uff9f\U00020000-\U0003ffff]")
_SPACE = re.compile(r"\s*+")
_WORD_BEFORE = re.compile("[A-Za-zÀ-ɏ]+(?:\\.[A-Za-zÀ-ɏ]+)*$")
_WORD_AFTER = re.compile("[\"'“‘(\\[]{0,3}+([A-Z][a-z]*+)(?![A-Za-z.])")
_INITIALS = re.compile(r"[A-Za-z](?:\.[A-Za-z])*")  # J, U.S, a.m
_LABEL = re.compile(r"[(\[]?(?:\d{1,3}|[A-Za-z]|[ivxIVX]{1,4})")  # the 1 of "1. First"


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Never the last word of a sentence: a name, a number or an example follows.
_NEVER_LAST = _words(
    "Mr Mrs Ms Mx Messrs Dr Drs Prof Rev Hon Gen Col Lt Sgt Capt Cmdr Maj Gov Sen Rep Pres Supt "
    "Fr Mt Ft Mme Mlle e.g i.e E.g I.e vs v cf viz Fig Figs fig figs Eq Eqs eq eqs Vol Vols vol "
    "approx ca resp incl"
)
# Abbreviations only before a number: "No. 5", but "He said no."
_BEFORE_NUMBER = _words(
    "No Nos no nos p pp Ch ch Sec sec Art art Tab tab Ref Refs ref refs Para para Op op c"
)
# Can be the last word: then a common first word tells that a new sentence starts.
_MAYBE_LAST = _words(
    "etc al Inc Ltd Co Corp Bros LLC Jr Sr St Ave Blvd Rd Sq Ph.D Ph Univ Dept Assn ed eds "
    "Jan Feb Mar Apr Jun Jul Aug Sept Sep Oct Nov Dec"
)
_FIRST_WORDS = _words(
    "The A An This That These Those There Here He She It We They You I His Her Its Our Their My "
    "Your In On At By For From With Without To After Before During Since Until When While If "
    "Although Though Because As But And Or So Then Thus Hence However Therefore Moreover "
    "Meanwhile Later Now Today Yesterday What Why How Who Where Which Is Are Was Were Do Does "
    "Did Not No Yes All Some Many Most Both Each Every One Another Other Such Only Even Also "
    "Under Over Between Among Once"
)


def sentences(text: str) -> list[str]:
    """Cut ``text`` into sentences, stripped, none empty.

    A line end always ends a sentence. Nothing but white space is lost.
    """
    found: list[str] = []
    for line in text.splitlines():
        found.extend(_of_line(line.strip()))
    return found


def _of_line(line: str) -> list[str]:
    found: list[str] = []
    start = 0  # of the sentence being read
    counted = 0  # up to here the quotes are counted
    quoted = False  # inside straight double quotes
    for marks in _MARKS.finditer(line):
        quoted ^= line.count('"', counted, marks.start()) % 2 == 1
        counted = marks.start()
        before = line[marks.start() - 1] if marks.start() else ""
        run = marks.group()
        chinese = not _CHINESE_MARKS.isdisjoint(run)
        beside_chinese = chinese or bool(_CJK.match(before))
        end = _after_closing(line, marks.end(), quoted, beside_chinese)
        following = _after_space(line, end)
        if following == len(line):
            break
        # Marks alone are no sentence: they stay with what follows.
        if marks.start() > start and (
            (chinese and line[end] not in _CONTINUING)
            or _ends_beside_chinese(run, before, line[end])
            or (following > end and _ends_western(line, start, marks, following))
        ):
            found.append(line[start:end].rstrip())
            start = following
    if start < len(line):
        found.append(line[start:])
    return found


def _after_space(line: str, position: int) -> int:
    space = _SPACE.match(line, position)
    return space.end() if space else position


def _after_closing(line: str, position: int, quoted: bool, beside_chinese: bool) -> int:
    """Where the closing quotes and brackets after an end mark end, spaces between or not."""
    while True:
        next_one = _after_space(line, position)
        attached = next_one == position
        mark = line[next_one : next_one + 1]
        after = line[next_one + 1 : next_one + 2]
        if mark == '"':
            # A straight quote shows no side: it closes what is open. Right after a Western mark
            # it can only close; between spaces, as in tokenised text, it can only if alone.
            closes = (quoted or not beside_chinese) if attached else quoted and not after.strip()
            quoted = False
        elif mark == "'":
            closes = attached and not after.isalnum()
        else:
            closes = mark != "" and mark in _CLOSING
        if not closes:
            return position
        position = next_one + 1


def _ends_beside_chinese(run: str, before: str, after: str) -> bool:
    """Whether Western marks end a sentence of Chinese text, where no space follows."""
    if run[0] == "…" and _CJK.match(before):
        return after not in _CONTINUING
    starts = after in "“‘" or (_CJK.match(after) is not None and _can_start(after))
    return starts and (run[0] in "!?" or _CJK.match(before) is not None)


def _ends_western(line: str, start: int, marks: re.Match[str], following: int) -> bool:
    """Whether marks with white space after them end the sentence that began at ``start``."""
    after = line[following]
    at = marks.start()
    if line[at - 1].isspace():
        # Tokenised text, often in lower case. A mark before means a spaced ellipsis ". . .".
        earlier = line[max(start, at - 8) : at].rstrip()
        alone = len(marks.group()) == 1 and earlier[-1:] not in ".!?…"
        return _can_start(after) or (alone and after.isalpha())
    return _can_start(after) and not (
        marks.group() == "." and _is_abbreviation(line, start, at, following)
    )


def _can_start(character: str) -> bool:
    # Letters without case (Chinese, Arabic, Hindi, ...) start a sentence as capitals do.
    return (
        (character.isalpha() and not character.islower())
        or character.isdigit()
        or character in _OPENING
    )


def _is_abbreviation(line: str, start: int, at: int, following: int) -> bool:
    """Whether the dot at ``at`` belongs to the word before it and ends no sentence."""
    if at - start <= 5 and _LABEL.fullmatch(line, start, at):
        return True
    found = _WORD_BEFORE.search(line, max(start, at - 16), at)
    if found is None:
        return False
    word = found.group()
    if word in _NEVER_LAST:
        return True
    if word in _BEFORE_NUMBER:
        return line[following].isdigit()
    if word in _MAYBE_LAST or (_INITIALS.fullmatch(word) and (len(word) > 1 or word.isupper())):
        first = _WORD_AFTER.match(line, following)
        return first is None or first.group(1) not in _FIRST_WORDS
    return False
