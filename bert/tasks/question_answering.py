"""Extractive question answering: the part of a text that answers a question, or none."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from pydantic import Field
from torch import nn

from bert.checkpoint import Checkpoint
from bert.config import Settings
from bert.data.batches import Batch, Ints, Numbers
from bert.data.questions import ANSWERS, Spans, is_json, question_columns, read_questions
from bert.data.rows import Example
from bert.errors import DataError, ModelError
from bert.metrics import plots
from bert.metrics.answers import AnswerTally, answer_scores, best_threshold
from bert.metrics.calibrate import CalibrationTally
from bert.tasks.classification import (
    FEWEST_TO_CALIBRATE,
    ROWS_AT_ONCE,
    SPREAD,
    TINY,
    calibration_pictures,
    temperature_of,
    tempered,
)
from bert.tasks.task import Answer, Mistake, Targets, Task, batch_tokens
from bert.text.tokenizer import Texts
from bert.text.windows import Windowed, in_windows
from bert.training.loop import Outcome

# Spans that probability is shared among, besides no answer (as in the code of Devlin et al.),
# and those of them that an answer lists.
N_BEST, CANDIDATES = 20, 5
NOWHERE = 0  # the place in a window, its first token, that stands for no answer
THRESHOLD = "no_answer_threshold"
NONE_WORD = "(no answer)"
# Temperatures among which the best is found, a twentieth apart.
TRIED = tuple(1.05**step for step in range(-60, 61))
# Characters of a context that are shown around a mistake.
SHOWN = 1600
# Letters of scripts that put no space between words, so that a word may end anywhere.
_UNSPACED = (
    (0x0E00, 0x109F), (0x1780, 0x17FF), (0x1950, 0x19FF), (0x1A20, 0x1AAF),  # Thai and others
    (0x1100, 0x11FF), (0xA960, 0xA97F), (0xAC00, 0xD7FF),  # Korean: endings follow the word
    (0x2E80, 0xA4CF), (0xF900, 0xFAFF), (0xFF66, 0xFFDC),  # Chinese, Japanese
    (0x1AFF0, 0x1B2FF), (0x20000, 0x3FFFF),
)  # fmt: skip


class QuestionAnsweringOptions(Settings):
    """What only question answering can be told.

    Args:
        max_answer_tokens: tokens of the longest answer that is given.
    """

    max_answer_tokens: int = Field(30, gt=0)


class QuestionAnswering(Task):
    """Devlin et al. 2018, sections 4.2 and 4.3: each token's chance to begin and to end it.

    ::

        [CLS] question [SEP] part of the context [SEP]
                             begin  end

    A window that does not hold the whole answer is taught to point at its first token. Of all
    windows the span with the greatest sum of both logits is the answer, and the window that is
    least sure of having none tells whether there is one.
    """

    kind = "span"
    places = True
    Options = QuestionAnsweringOptions
    options: QuestionAnsweringOptions
    primary_metric = "f1"
    label_columns = ANSWERS
    demo_rows: ClassVar[Sequence[dict[str, Any]]] = (
        {"question": "Where does the owl sleep?", "context": "By day the owl sleeps in the barn.",
         "answer": "in the barn"},
        {"question": "Who wrote the letter?", "context": "The letter is by Ada, my aunt.",
         "answer": "Ada"},
        {"question": "When does the train leave?", "context": "The last train leaves at nine.",
         "answer": "at nine"},
        {"question": "How many boats came back?", "context": "Of six boats, four came back.",
         "answer": "four"},
        {"question": "What did she plant?", "context": "In March she planted two pear trees.",
         "answer": "two pear trees"},
        {"question": "谁写了这封信？", "context": "这封信是老师昨天写的。", "answer": "老师"},
        {"question": "火车几点开？", "context": "最后一班火车九点开。", "answer": "九点"},
        {"question": "猫睡在哪里？", "context": "白天猫睡在屋顶上，晚上出门。",
         "answer": "屋顶上"},
    )  # fmt: skip

    def __init__(self, checkpoint: Checkpoint, options: Settings | None = None) -> None:
        super().__init__(checkpoint, options)
        self.texts_per_row = 2
        threshold = self.calibration.get(THRESHOLD, 0.0)
        if not isinstance(threshold, int | float) or not math.isfinite(threshold):
            raise ModelError(
                f"The {THRESHOLD} is {threshold!r:.60}, not a number.",
                where="calibration in bert.json",
                fix="take it out, or fine-tune again",
            )

    # ---- reading

    @classmethod
    def read(
        cls, path: Path, text: Sequence[str], label: str | None, *, labelled: bool
    ) -> Iterator[Example]:
        """Questions, as ``read_questions`` gives them."""
        return read_questions(path, text, label, labelled=labelled)

    @classmethod
    def text_columns(cls, path: Path, text: Sequence[str]) -> tuple[str, ...]:
        """The columns of questions and contexts; none for SQuAD's JSON."""
        return question_columns(path, text)

    @classmethod
    def label_column(cls, path: Path, label: str | None) -> str:
        """The column of answers."""
        return label or ANSWERS[0] if is_json(path) else super().label_column(path, label)

    @classmethod
    def group(cls, example: Example) -> str:
        """The context: another question about it would tell of it."""
        return example.parts[1]

    @classmethod
    def names(cls, truth: Spans) -> list[str]:
        """That there is no answer is worth counting."""
        return [] if truth else ["no answer"]

    # ---- training

    def encode(self, texts: Sequence[Texts | tuple[str, ...]]) -> list[Windowed]:
        """Questions and contexts, the context in windows with the question in each."""
        for i, pair in enumerate(texts):
            if isinstance(pair, str) or len(pair) != 2:
                raise DataError("A row is a question and a context.", where=f"text {i + 1}")
        pairs = cast(Sequence[Texts], texts)
        return in_windows(self.tokenizer, pairs, self.max_length, second=True, places=True)

    def targets(self, example: Example, encoded: Windowed) -> Targets:
        """``begin`` and ``end`` [1] of each window: the first answer that it wholly holds."""
        edges = Edges.of(example.parts[1], encoded.offsets)
        spans = [edges.tokens(start, start + len(text)) for start, text in example.truth]
        begin, end = [], []
        for window in encoded.windows:
            stop, shift = window.begin + window.size, window.place - window.begin
            inside = (span for span in spans if span and window.begin <= span[0] and span[1] < stop)
            found = next(inside, None)
            begin.append(np.array([found[0] + shift if found else NOWHERE]))
            end.append(np.array([found[1] + shift if found else NOWHERE]))
        return {"begin": begin, "end": end}

    def counts(self, batch: Batch) -> dict[str, int]:
        """One answer a window."""
        return {"answer": len(batch.lengths)}

    def losses(self, model: nn.Module, batch: Batch, device: torch.device) -> Outcome:
        """The mean of both cross-entropies over a window's tokens, summed over windows."""
        tokens = batch_tokens(batch, device)
        logits = model.logits(tokens).float()  # type: ignore[operator]  # [T, 2]
        lengths = torch.as_tensor(batch.lengths).to(device)
        window = torch.repeat_interleave(lengths, output_size=len(logits))  # [T]
        # Padding gets no probability: [W, S, 2].
        padded = logits.new_full((len(lengths), int(batch.lengths.max()), 2), -math.inf)
        padded = padded.index_put((window, tokens.position_ids), logits)
        wanted = np.stack([batch.targets["begin"], batch.targets["end"]], axis=1)
        targets = torch.as_tensor(wanted).to(device)  # [W, 2]
        loss = F.cross_entropy(padded, targets, reduction="sum") / 2
        right = (padded.argmax(dim=1) == targets).all(dim=1).sum()
        return Outcome({"answer": loss}, {"answer": right})

    # ---- answering

    def decode(
        self, texts: Texts | tuple[str, ...], encoded: Windowed, scores: Sequence[Numbers]
    ) -> Answer:
        """The best span, whether there may be none, and the next best ones.

        Returns:
            ``answer``, ``start`` and ``end`` (``context[start:end] == answer``, in characters;
            empty and None where the context has no word), ``score``, its probability among the
            best spans and no answer; ``no_answer_score``, by how much no answer is likelier
            than it, as a logit; ``no_answer_probability``; ``candidates``, the best spans, each
            with the first four of these.
        """
        context = texts[1]
        edges = Edges.of(context, encoded.offsets)
        found: dict[tuple[int, int], float] = {}
        none = math.inf
        for window, score in zip(encoded.windows, scores, strict=True):
            none = min(none, float(score[NOWHERE].sum()))
            begin, end = window.begin, window.begin + window.size
            spans = best_spans(
                score[window.place : window.place + window.size],
                edges.may_begin[begin:end],
                edges.may_end[begin:end],
                self.options.max_answer_tokens,
            )
            for first, last, total in spans:
                place = (first + begin, last + begin)
                found[place] = max(found.get(place, -math.inf), total)
        best = sorted(found.items(), key=lambda item: (-item[1], item[0]))[:N_BEST]
        totals = np.array([none, *(total for _, total in best)])
        odds = np.exp(totals - totals.max())
        chances = (odds / odds.sum()).tolist()
        candidates = []
        for ((first, last), _), chance in zip(best[:CANDIDATES], chances[1:], strict=False):
            start, end = int(edges.begins[first]), int(edges.ends[last])
            candidates.append(
                {"answer": context[start:end], "start": start, "end": end, "score": chance}
            )
        return {
            **(candidates[0] if candidates else {**_NONE, "score": chances[0]}),
            "no_answer_score": none - best[0][1] if best else None,
            "no_answer_probability": chances[0],
            "candidates": candidates,
        }

    def decide(self, answer: Answer, calibration: Mapping[str, Any]) -> Answer:
        """The answer with probabilities made honest, or none where that is likelier.

        Where a threshold was found it stands beside the answer as ``no_answer_threshold``.
        """
        none, *chances = tempered(_events(answer), temperature_of(calibration))
        candidates = [
            {**candidate, "score": chance}
            for candidate, chance in zip(answer["candidates"], chances, strict=False)
        ]
        best = candidates[0] if candidates else {**_NONE, "score": none}
        decided = {**answer, **best, "no_answer_probability": none, "candidates": candidates}
        if THRESHOLD in calibration:
            decided[THRESHOLD] = calibration[THRESHOLD]
            if candidates and answer["no_answer_score"] > calibration[THRESHOLD]:
                decided |= {**_NONE, "score": none}
        return decided

    def calibrate(self, examples: Sequence[Example], answers: Sequence[Answer]) -> dict[str, Any]:
        """The threshold of the best F1, where questions have no answer; and ``temperature``.

        ``uncalibrated_error`` is the calibration error without the temperature.
        """
        found: dict[str, Any] = {}
        pairs = list(zip(examples, answers, strict=True))
        rows = [
            (
                _score(example.truth, answer["candidates"][0]["answer"])[1],
                bool(example.truth),
                answer["no_answer_score"],
            )
            for example, answer in pairs
            if answer["candidates"]
        ]
        if rows and not all(example.truth for example in examples):
            f1, answerable, none = (np.array(column) for column in zip(*rows, strict=True))
            _, threshold = best_threshold(f1, answerable, np.ones_like(answerable), none)
            # SQuAD's search ends at a row's own score; other rows fall to both sides of it.
            above = none[none > threshold]
            found[THRESHOLD] = float(threshold + above.min()) / 2 if len(above) else threshold
        if len(pairs) >= FEWEST_TO_CALIBRATE:
            decided = [self.decide(answer, found) for answer in answers]
            right = [
                _score(example.truth, answer["answer"])[0]
                for example, answer in zip(examples, decided, strict=True)
            ]
            before = CalibrationTally()
            before.add_answers([answer["score"] for answer in decided], right)
            found["temperature"] = _temperature(decided, right)
            found["uncalibrated_error"] = before.figures()["expected_calibration_error"]
        return found

    # ---- measuring

    def tally(self) -> QuestionTally:
        """Exact match and F1, and whether probabilities can be trusted."""
        return QuestionTally()

    def constant(self, answers: Sequence[Answer]) -> bool:
        """Whether all answers are one place, or all questions are alike without an answer."""
        if len(answers) < 2:
            return False
        if len({(answer["start"], answer["end"]) for answer in answers}) == 1:
            return True
        none = np.array([answer["no_answer_score"] or 0.0 for answer in answers])
        return bool((none > 0).all() and none.std() < SPREAD)

    def mistake(self, example: Example, answer: Answer) -> Mistake | None:
        """An answer that is not one of the true ones; the worse, the surer and the farther off."""
        exact, f1 = _score(example.truth, answer["answer"])
        if exact:
            return None
        question, context = example.parts
        marks = [(start, start + len(text), "truth") for start, text in example.truth]
        if answer["start"] is not None:
            marks.append((answer["start"], answer["end"], "answer"))
        first = min((begin for begin, _, _ in marks), default=0)
        start = max(0, min(first - SHOWN // 4, len(context) - SHOWN))
        shown = context[start : start + SHOWN]
        before = f"{question}\n" + "… " * (start > 0)
        shift = len(before) - start
        return Mistake(
            answer["score"] * (1 - f1),
            " / ".join(dict.fromkeys(text for _, text in example.truth)) or NONE_WORD,
            answer["answer"] or NONE_WORD,
            before + shown + " …" * (start + SHOWN < len(context)),
            answer["score"],
            tuple(
                (begin + shift, end + shift, kind)
                for begin, end, kind in marks
                if end <= start + SHOWN
            ),
        )

    def pictures(self, figures: Mapping[str, Any], folder: Path) -> Iterable[tuple[Path, str]]:
        """The scores, of kinds of questions too, and how far probabilities can be trusted."""
        parts = {"": figures, "with an answer": figures.get("answerable")}
        parts["without one"] = figures.get("unanswerable")
        scores = {
            f"{title} {part}": (score["value"], score["low"], score["high"])
            for part, there in parts.items()
            for metric, title in (("exact_match", "exact match"), ("f1", "F1"))
            if there and (score := there[metric])
        }
        plots.intervals(folder / "answers.png", scores, title="Held-out questions", x_label="score")
        yield folder / "answers.png", "exact match and F1"
        yield from calibration_pictures(figures, folder)


class QuestionTally:
    """``AnswerTally`` by the rules of SQuAD 1.1, or of 2.0 once a question has no answer.

    An answer for which no threshold was found counts as none under the rules of 2.0 where none
    is likelier. The counts of ``CalibrationTally`` are kept too: right is an exact match.
    """

    def __init__(self) -> None:
        # Which rules hold is known after the last row.
        self._plain = AnswerTally()
        self._unanswerable = AnswerTally(unanswerable=True, threshold=0.0)
        self._calibration = CalibrationTally()
        self._waiting: list[tuple[float, bool]] = []  # numpy is slow for one
        self._all_answerable = True

    def add(self, truth: Spans, answer: Answer) -> None:
        """Count one answer."""
        truths, said = [text for _, text in truth], answer["answer"]
        none = None if THRESHOLD in answer else answer["no_answer_score"]
        self._unanswerable.add(truths, said, none)
        if truths:
            self._plain.add(truths, said)
        else:
            self._all_answerable = False
        exact, _ = _score(truth, said)
        self._waiting.append((answer["score"], exact))
        if len(self._waiting) == ROWS_AT_ONCE:
            self._count()

    def _count(self) -> None:
        self._calibration.add_answers(*zip(*self._waiting, strict=True))
        self._waiting.clear()

    def figures(self) -> dict[str, Any]:
        """As both tallies give them."""
        if self._waiting:
            self._count()
        answers = (self._plain if self._all_answerable else self._unanswerable).figures()
        answers.pop("best", None)  # by a threshold that these rows themselves told
        trusted = self._calibration.figures()
        del trusted["accuracy"]  # exact match
        return {**answers, **trusted}


def _events(answer: Answer) -> list[float]:
    """The probabilities of no answer, of each candidate, and of the spans that are not listed.

    Of those only the sum is known; they count as equally likely.
    """
    listed = [answer["no_answer_probability"], *(c["score"] for c in answer["candidates"])]
    others = N_BEST - CANDIDATES
    return [*listed, *[max(0.0, 1 - sum(listed)) / others] * others]


def _score(truth: Spans, said: str) -> tuple[bool, float]:
    """Exact match and F1 of an answer, empty for none."""
    return answer_scores([text for _, text in truth], said, unanswerable=True)


def _temperature(decided: Sequence[Answer], right: Sequence[bool]) -> float:
    """The temperature that makes likeliest which answers were right, by what each one scores.

    One more, which is as sure as the median, counts as wrong: that all of R answers are right
    does not say that all ever will be.
    """
    table = np.full((len(decided) + 1, N_BEST + 1), TINY)
    for row, answer in zip(table, decided, strict=False):
        events = _events(answer)
        row[: len(events)] = np.maximum(events, TINY)
    chosen = np.array([int(answer["start"] is not None) for answer in decided])
    sure = np.take_along_axis(table[:-1], chosen[:, None], axis=1)[:, 0]
    usual = int(np.argsort(sure)[len(sure) // 2])
    table[-1], chosen = table[usual], np.append(chosen, chosen[usual])
    hits, logits = np.append(right, False), np.log(table)
    losses = {}
    for temperature in TRIED:
        odds = np.exp((logits - logits.max(axis=1, keepdims=True)) / temperature)
        chance = odds[np.arange(len(odds)), chosen] / odds.sum(axis=1)
        losses[temperature] = -np.log(np.maximum(np.where(hits, chance, 1 - chance), TINY)).mean()
    return min(losses, key=lambda temperature: losses[temperature])


_NONE = {"answer": "", "start": None, "end": None}


def best_spans(
    scores: Numbers, may_begin: NDArray[np.bool_], may_end: NDArray[np.bool_], longest: int
) -> list[tuple[int, int, float]]:
    """The ``N_BEST`` spans with the greatest sums, exactly, in no order.

    Args:
        scores: [S, 2] logits of S tokens to begin and to end the answer.
        may_begin: [S] tokens at which an answer may begin,
        may_end: [S] and end.
        longest: tokens of the longest one.

    Returns:
        (first token, last token, sum) of each.
    """
    firsts = np.flatnonzero(may_begin)
    if not len(firsts):
        return []
    begin, end = scores.astype(np.float64).T
    longest = min(longest, len(scores))
    ends = np.full(len(scores) + longest - 1, -np.inf)
    ends[: len(scores)][may_end] = end[may_end]
    there = sliding_window_view(ends, longest)[firsts]  # [F, longest] ends of each beginning
    if len(firsts) > N_BEST:  # one of the best spans has one of the best beginnings
        rows = np.argpartition(begin[firsts] + there.max(axis=1), -N_BEST)[-N_BEST:]
        firsts, there = firsts[rows], there[rows]
    sums = (begin[firsts, None] + there).ravel()
    best = np.argpartition(sums, -N_BEST)[-N_BEST:] if len(sums) > N_BEST else np.arange(len(sums))
    best = best[sums[best] > -np.inf]
    first = firsts[best // longest]
    last = first + best % longest
    return list(zip(first.tolist(), last.tolist(), sums[best].tolist(), strict=True))


class Edges(NamedTuple):
    """Where N tokens stand in a text, and at which of them an answer may begin and end.

    Spaces at the ends of tokens are left out, marks that follow a token belong to it. An answer
    does not begin or end inside a word, or inside what is one character to a reader. Different
    pairs of tokens are different parts of the text.

    Args:
        begins: [N] in characters.
        ends: [N]
        may_begin: [N]
        may_end: [N]
    """

    begins: Ints
    ends: Ints
    may_begin: NDArray[np.bool_]
    may_end: NDArray[np.bool_]

    @classmethod
    def of(cls, text: str, offsets: Ints) -> Edges:
        """From the places of the tokens [N, 2], as the tokenizer tells them."""
        kinds, parted = _parts(text)
        begins, ends = offsets.T.copy()
        for i in np.flatnonzero(kinds[begins] == SPACE):
            while begins[i] < ends[i] and kinds[begins[i]] == SPACE:
                begins[i] += 1
        for i in np.flatnonzero(kinds[ends - 1] == SPACE):
            while begins[i] < ends[i] and kinds[ends[i] - 1] == SPACE:
                ends[i] -= 1
        real = begins < ends
        for i in np.flatnonzero(real & (kinds[ends] == MARK)):
            while kinds[ends[i]] == MARK:
                ends[i] += 1
        begin, end = begins[real], ends[real]
        may_begin, may_end = np.zeros_like(real), np.zeros_like(real)
        # A character of several tokens begins at the first and ends at the last of them.
        may_begin[real] = parted[begin] & (np.diff(begin, prepend=-1) > 0)
        may_end[real] = parted[end] & (np.diff(end, append=len(text) + 1) > 0)
        return cls(begins, ends, may_begin, may_end)

    def tokens(self, start: int, stop: int) -> tuple[int, int] | None:
        """The first and the last token of a part of the text, made wider to whole words.

        None where no token stands there.
        """
        real = self.begins < self.ends
        inside = np.flatnonzero(real & (self.ends > start) & (self.begins < stop))
        if not len(inside):
            return None
        first, last = int(inside[0]), int(inside[-1])
        wider = np.flatnonzero(self.may_begin[: first + 1])
        further = np.flatnonzero(self.may_end[last:])
        return (
            int(wider[-1]) if len(wider) else first,
            last + int(further[0]) if len(further) else last,
        )


OTHER, LETTER, MARK, SPACE = range(4)
JOINER = 0x200D  # which makes one character of those at both its sides


def _parts(text: str) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """The kind of each of C characters and of the end [C + 1], and where a text may be parted.

    The second is [C + 1]: whether an answer may begin or end before each character.
    """
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    kinds = np.full(len(codes) + 1, OTHER, dtype=np.uint8)
    kinds[:-1] = _usual_kinds()[np.minimum(codes, 2**16 - 1)]
    for i in np.flatnonzero(codes >= 2**16):
        kinds[i] = _kind(text[i])
    inner = (kinds == LETTER) | (kinds == MARK)
    parted = kinds != MARK
    parted[1:] &= ~(inner[:-1] & inner[1:]) & (codes != JOINER)
    parted[[0, -1]] = True
    return kinds, parted


@cache
def _usual_kinds() -> NDArray[np.uint8]:
    return np.array([_kind(chr(code)) for code in range(2**16)], dtype=np.uint8)


def _kind(character: str) -> int:
    """A letter or digit that words are made of, a mark on what stands before it, a space."""
    code = ord(character)
    if unicodedata.category(character)[0] == "M" or character in "\u00ad\u200c\u200d":
        return MARK
    if 0x1F3FB <= code <= 0x1F3FF:  # skin tones
        return MARK
    if 0x1F1E6 <= code <= 0x1F1FF:  # letters of which two are a flag
        return LETTER
    if character.isspace():
        return SPACE
    unspaced = any(low <= code <= high for low, high in _UNSPACED)
    return LETTER if character.isalnum() and not unspaced else OTHER


TASK = QuestionAnswering
