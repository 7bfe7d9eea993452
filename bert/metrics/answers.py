"""Extracted answers, scored as the official scripts of SQuAD and CMRC 2018 do.

Exact match asks whether the normalised answer equals one of the true ones, F1 how many
words it shares with the nearest. English: Rajpurkar et al. 2016, and 2018 for questions
without an answer. Chinese, where a word is a character: Cui et al. 2019, whose F1 counts
the longest run of words that both have. A row is Chinese if all its true answers hold
Chinese characters.

The official percentages are these figures times 100.
"""

from __future__ import annotations

import math
import re
import string
from array import array
from collections import Counter
from collections.abc import Sequence
from difflib import SequenceMatcher
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bert.errors import DataError
from bert.metrics.intervals import RowSums, quality, share

ARTICLES = re.compile(r"\b(?:a|an|the)\b")
CHINESE = re.compile("[\u4e00-\u9fff]")
# A Chinese character, a number, a run of letters, or another mark.
CHINESE_WORD = re.compile(
    r"[\u4e00-\u9fff]|[^\W\u4e00-\u9fff]+(?:[.,][^\W\u4e00-\u9fff]+)*|[^\w\s]"
)
CHINESE_MARKS = str.maketrans("", "", "-:_*^/\\~`+=，。：？！“”；’《》·、「」（）－～『』")
ENGLISH_MARKS = str.maketrans("", "", string.punctuation)


def words_of(answer: str, *, chinese: bool = False) -> list[str]:
    """The words that F1 compares.

    Args:
        answer: as it stands in the text.
        chinese: each Chinese character is a word; the pieces between are split at spaces
            and marks (the official script asks nltk here). Otherwise lower case without
            punctuation and articles, split at spaces.
    """
    return CHINESE_WORD.findall(normal(answer, chinese=True)) if chinese else normal(answer).split()


def normal(answer: str, *, chinese: bool = False) -> str:
    """The form in which answers are compared for exact match."""
    if chinese:
        return answer.lower().strip().translate(CHINESE_MARKS)
    return " ".join(ARTICLES.sub(" ", answer.lower().translate(ENGLISH_MARKS)).split())


def answer_scores(
    truths: Sequence[str], predicted: str, *, unanswerable: bool = False
) -> tuple[bool, float]:
    """Exact match and F1 of one answer, each with the true answer that it fits best.

    Args:
        truths: the true answers; none for a question without an answer.
        predicted: the answer, empty for none.
        unanswerable: the rules of SQuAD 2.0, where questions may have no answer.

    Raises:
        DataError: no true answer, though every question should have one.
    """
    if unanswerable:
        truths = [truth for truth in truths if normal(truth)] or [""]
    if not truths:
        raise DataError(
            "The question has no true answer.",
            fix="Score the whole set with unanswerable=True, or leave the row out.",
        )
    chinese = all(map(CHINESE.search, truths))
    said = normal(predicted, chinese=chinese)
    exact = any(normal(truth, chinese=chinese) == said for truth in truths)
    words = words_of(predicted, chinese=chinese)
    f1 = 0.0
    for truth in truths:
        true = words_of(truth, chinese=chinese)
        if chinese:
            match = SequenceMatcher(None, true, words, autojunk=False)
            same = match.find_longest_match().size
        else:
            same = (Counter(true) & Counter(words)).total()
        if same:
            precision, recall = same / len(words), same / len(true)
            f1 = max(f1, 2 * precision * recall / (precision + recall))
        elif unanswerable and not true and not words:
            f1 = 1.0
    return exact, f1


def best_threshold(
    scores: NDArray[np.float64],
    answerable: NDArray[np.bool_],
    said: NDArray[np.bool_],
    no_answer: NDArray[np.float64],
) -> tuple[float, float]:
    """The threshold above which it is best to give no answer, by SQuAD 2.0's search.

    Rows of an equal no-answer score are taken together, because no threshold parts them.
    Where giving no answer at all is best, the threshold lies below every score, or is 0.

    Args:
        scores: exact match or F1 of the answers [n].
        answerable: whether the question has an answer [n].
        said: whether there is an answer to give [n].
        no_answer: how sure the model is that there is none [n].

    Returns:
        The mean score at the threshold, and the threshold.
    """
    order = np.argsort(no_answer, kind="stable")
    gains = np.where(answerable, scores, -1.0 * said)[order]
    sums = np.cumsum(np.concatenate([[float((~answerable).sum())], gains]))
    ranked = no_answer[order]
    whole = np.append(True, np.append(ranked[1:] > ranked[:-1], True))  # ends of equal scores
    best = int(np.argmax(np.where(whole, sums, -np.inf)))
    below = min(0.0, math.nextafter(float(ranked[0]), -math.inf))
    return float(sums[best]) / len(order), float(ranked[best - 1]) if best else below


class AnswerTally:
    """Exact match and F1 over questions; a few numbers are kept a row.

    Args:
        unanswerable: SQuAD 2.0's rules: questions may have no answer. Without, SQuAD 1.1's.
        threshold: of the no-answer score, above which the answer is taken for none.
        seed: of the bootstrap.
    """

    def __init__(
        self, *, unanswerable: bool = False, threshold: float = math.inf, seed: int = 0
    ) -> None:
        self.unanswerable = unanswerable
        self.threshold = threshold
        self._f1, self._no_answer = array("d"), array("d")
        self._flags = bytearray()  # 1 exact match + 2 answerable + 4 an answer to give
        self._seed = seed

    def add(
        self, truths: Sequence[str], predicted: str, no_answer_score: float | None = None
    ) -> None:
        """Add one question.

        Args:
            truths: its true answers; none if it has no answer.
            predicted: the best answer; with a no-answer score also where that is high.
            no_answer_score: how sure the model is that there is none, on any scale.

        Raises:
            DataError: no true answer, though the rules are SQuAD 1.1's; a no-answer score
                that is no number.
        """
        where = f"row {len(self._flags) + 1}"
        try:
            exact, f1 = answer_scores(truths, predicted, unanswerable=self.unanswerable)
        except DataError as error:
            raise DataError(error.what, where=where, fix=error.fix) from None
        if no_answer_score is not None and math.isnan(no_answer_score):
            raise DataError("The no-answer score is not a number.", where=where)
        answerable = any(truths)
        self._f1.append(f1)
        self._no_answer.append(math.nan if no_answer_score is None else no_answer_score)
        self._flags.append(exact + 2 * answerable + 4 * bool(predicted))

    def figures(self) -> dict[str, Any]:
        """``rows``, ``exact_match`` and ``f1``, each ``{"value", "low", "high"}``.

        With ``unanswerable`` also ``answerable`` and ``unanswerable``, the same of those
        questions, and, if every row has a no-answer score, ``best``: what the best
        thresholds of these rows would give, ``exact_match`` and ``f1`` as numbers, with
        ``exact_match_threshold`` and ``f1_threshold``.

        Raises:
            DataError: no rows were added.
        """
        if not self._flags:
            raise DataError("There are no rows to score.", fix="Give at least one row.")
        flags = np.frombuffer(self._flags, dtype=np.uint8)
        exact, answerable, said = ((flags & bit) > 0 for bit in (1, 2, 4))
        f1 = np.frombuffer(self._f1, dtype=np.float64)
        no_answer = np.frombuffer(self._no_answer, dtype=np.float64)
        none = no_answer > self.threshold
        final_exact = np.where(none, ~answerable, exact)
        final_f1 = np.where(none, ~answerable, f1)
        found = self._part(final_exact, final_f1)
        if not self.unanswerable:
            return found
        found["answerable"] = self._part(final_exact[answerable], final_f1[answerable])
        found["unanswerable"] = self._part(final_exact[~answerable], final_f1[~answerable])
        if not np.isnan(no_answer).any():
            found["best"] = {}
            for name, scores in (("exact_match", exact.astype(np.float64)), ("f1", f1)):
                value, threshold = best_threshold(scores, answerable, said, no_answer)
                found["best"] |= {name: value, f"{name}_threshold": threshold}
        return found

    def _part(self, exact: NDArray[np.bool_], f1: NDArray[np.float64]) -> dict[str, Any]:
        rows = len(exact)
        sums = RowSums(self._seed)
        for start in range(0, rows, 65536):
            part = f1[start : start + 65536]
            sums.add(np.stack([np.ones(len(part)), part], axis=1))
        draws = sums.draws() if rows else np.zeros((1, 2))
        with np.errstate(invalid="ignore"):
            drawn = draws[:, 1] / draws[:, 0]
        return {
            "rows": rows,
            "exact_match": share(int(exact.sum()), rows),
            "f1": quality(float(f1.mean()) if rows else math.nan, drawn),
        }
