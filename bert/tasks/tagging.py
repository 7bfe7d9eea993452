"""Tagging: the named entities of a text, or any other spans that do not overlap."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn

from bert import log
from bert.checkpoint import Checkpoint
from bert.config import Settings
from bert.data.batches import Batch, Ints, Numbers
from bert.data.rows import Example, choose_columns
from bert.data.tagged import (
    SPAN_NAMES,
    TAG_NAMES,
    file_kind,
    join_tokens,
    read_tagged,
    spaceless,
    trimmed,
)
from bert.errors import DataError
from bert.metrics import plots
from bert.metrics.calibrate import CalibrationTally, fit_temperature
from bert.metrics.spans import OUTSIDE, TAG, Span, SpanTally, spans_of_tags, tags_of_spans
from bert.tasks.classification import (
    FEWEST_TO_CALIBRATE,
    ClassificationOptions,
    balanced_weights,
    label_loss,
    temperature_of,
    unknown_label,
)
from bert.tasks.task import Answer, Mistake, Sample, Targets, Task, batch_tokens
from bert.text.tokenizer import Texts
from bert.text.windows import Windowed
from bert.training.loop import Outcome

IGNORED = -100  # a token that has no tag of its own, as transformers marks it
_JOINER = "\N{ZERO WIDTH JOINER}"


class TaggingOptions(ClassificationOptions):
    """What only tagging can be told, beside what shapes the loss.

    Args:
        units: what has a tag. ``words``: the first piece of each word; ``pieces``: every word
            piece, so that entities may begin and end inside words (German compounds, Arabic
            and Hebrew prefixes). Scripts without spaces have a tag for each piece anyway.
    """

    units: Literal["words", "pieces"] = "words"


class Tagging(Task):
    """Devlin et al. 2018, section 5.3: softmax over a linear map of the first piece of each word.

    Each word is tagged B-TYPE where it begins an entity, I-TYPE inside one and O elsewhere. Of a
    long text each word is tagged, in training too, in the window in which it has most text to
    both sides. A row is a text, or a tuple of tokens; entities are then whole tokens.
    """

    kind = "token"
    places = True
    Options = TaggingOptions
    options: TaggingOptions
    primary_metric = "micro.f1"
    label_columns = (*SPAN_NAMES, *TAG_NAMES)
    demo_rows: ClassVar[Sequence[dict[str, Any]]] = (
        {"text": "Ada lives in Rome.", "entities": [
            {"start": 0, "end": 3, "type": "PER"}, {"start": 13, "end": 17, "type": "LOC"}]},
        {"text": "Nobody called today.", "entities": []},
        {"text": "Paris is far from New York", "entities": [
            {"start": 0, "end": 5, "type": "LOC"}, {"start": 18, "end": 26, "type": "LOC"}]},
        {"text": "we met Ben, Eva and Tom", "entities": [
            {"start": 7, "end": 10, "type": "PER"}, {"start": 12, "end": 15, "type": "PER"},
            {"start": 20, "end": 23, "type": "PER"}]},
        {"text": "王明住在北京", "entities": [
            {"start": 0, "end": 2, "type": "PER"}, {"start": 4, "end": 6, "type": "LOC"}]},
        {"text": "今天天气很好。", "entities": []},
        {"text": "Oslo, in winter", "entities": [{"start": 0, "end": 4, "type": "LOC"}]},
        {"text": "我去上海见李雷", "entities": [
            {"start": 2, "end": 4, "type": "LOC"}, {"start": 5, "end": 7, "type": "PER"}]},
    )  # fmt: skip

    _weights: Tensor | None = None  # [L] of the tags in the loss

    def __init__(self, checkpoint: Checkpoint, options: Settings | None = None) -> None:
        super().__init__(checkpoint, options)
        if self.options.balances:
            self.primary_metric = "macro.f1"
        # Models of others name their tags in their own ways.
        self._types = [None if tag in (OUTSIDE, "") else _type_of(tag) for tag in self.labels]
        self.types = sorted({kind for kind in self._types if kind is not None})

    # ---- reading

    @classmethod
    def read(
        cls, path: Path, text: Sequence[str], label: str | None, *, labelled: bool
    ) -> Iterator[Example]:
        """The rows of a file; see ``bert.data.tagged``."""
        return read_tagged(path, text, label, labelled=labelled)

    @classmethod
    def text_columns(cls, path: Path, text: Sequence[str]) -> tuple[str, ...]:
        """The columns of texts that are named; a column of a file of lines is a number."""
        kind = file_kind(path)
        if kind == "table":
            return choose_columns(path, text, None, labelled=False)[0]
        return tuple(name for name in text if kind == "rows" or name.isdecimal())

    @classmethod
    def label_column(cls, path: Path, label: str | None) -> str:
        """The column of spans or tags; in a file of lines its number."""
        if file_kind(path) == "lines":
            return label or "the last"
        return super().label_column(path, label)

    @classmethod
    def names(cls, truth: Sequence[Span]) -> list[str]:
        """The type of each entity."""
        return [kind for *_, kind in truth]

    @classmethod
    def labels_of(cls, examples: Sequence[Example], where: str) -> list[str]:
        """O, and B and I of each type that occurs."""
        types = sorted({kind for example in examples for *_, kind in example.truth})
        if not types:
            raise DataError(
                "No row has an entity; there is nothing to learn.",
                where=where,
                fix="name the column of spans or tags: --label COLUMN",
            )
        tags = [tag for kind in types for tag in tags_of_spans([(0, 2, kind)], 2)]
        return [OUTSIDE, *tags]

    def check(self, example: Example) -> None:
        """The model must know the types."""
        super().check(example)
        for *_, kind in example.truth:
            if kind not in self.types:
                raise unknown_label(example, kind, self.types)

    # ---- training

    def encode(self, texts: Sequence[Texts | tuple[str, ...]]) -> list[Windowed]:
        """Texts, or the joined tokens of those that are given as tokens."""
        return super().encode([_text(row) for row in texts])

    def samples(self, examples: Sequence[Example]) -> list[Sample]:
        """Rows as they are trained on; a note tells what no tags can say exactly."""
        made = super().samples(examples)
        unlike = [
            (example.where, _text(example.texts)[start:end])
            for example, sample in zip(examples, made, strict=True)
            for start, end, _ in self._unlike(example, sample.encoded)
        ]
        self.remarks["entities_not_exactly_in_tags"] = len(unlike)
        if unlike:
            total = sum(len(example.truth) for example in examples)
            log.notice(
                f"{len(unlike):,} of {total:,} entities begin or end inside a word, or have no "
                "token; they are learnt as the words they lie in, and cannot be found exactly.",
                where=", ".join(f"{where} ({words})" for where, words in unlike[:3]),
                fix="give each word piece a tag: units=pieces"
                if self.options.units == "words"
                else "correct their ends, or take a model whose tokenizer parts these words",
            )
        if self.options.balances:
            tags = np.concatenate([part for sample in made for part in sample.targets["tag"]])
            self._weights = balanced_weights(tags[tags != IGNORED], len(self.labels))
        return made

    def _unlike(self, example: Example, encoded: Windowed) -> list[Span]:
        """The entities of a row that do not come back from their tags."""
        if not example.truth:
            return []
        units = self._units(_text(example.texts), encoded)
        told = {units.span(*span) for span in units.within(example.truth)}
        return [span for span in example.truth if span not in told]

    def targets(self, example: Example, encoded: Windowed) -> Targets:
        """``tag`` [S] for each window: number of the tag, or ``IGNORED``."""
        units = self._units(_text(example.texts), encoded)
        tags = np.full(len(encoded.offsets), IGNORED)
        names = tags_of_spans(units.within(example.truth), len(units.tokens))
        tags[units.tokens] = [self.labels.index(name) for name in names]
        owners = encoded.owners()
        made: list[Numbers] = []
        for number, window in enumerate(encoded.windows):
            mine = np.full(len(window.input_ids), IGNORED)
            part = slice(window.begin, window.begin + window.size)
            mine[window.place : window.place + window.size] = np.where(
                owners[part] == number, tags[part], IGNORED
            )
            made.append(mine)
        return {"tag": made}

    def counts(self, batch: Batch) -> dict[str, int]:
        """Words that have a tag."""
        return {"tag": int((batch.targets["tag"] != IGNORED).sum())}

    def losses(self, model: nn.Module, batch: Batch, device: torch.device) -> Outcome:
        """Cross-entropy over tags, summed over words."""
        tags = torch.as_tensor(batch.targets["tag"]).to(device)  # [T]
        there = tags != IGNORED
        logits = model.logits(batch_tokens(batch, device)).float()  # type: ignore[operator]
        logits, tags = logits[there], tags[there]  # [n, L], [n]
        loss = label_loss(logits, tags, self.options, self._weights)
        return Outcome({"tag": loss}, {"tag": (logits.argmax(dim=-1) == tags).sum()})

    # ---- answering

    def decode(
        self, texts: Texts | tuple[str, ...], encoded: Windowed, scores: Sequence[Numbers]
    ) -> Answer:
        """``{"entities": [{"start", "end", "type", "text", "score"}]}``, from left to right.

        ``text[start:end]`` is the entity. Its score is the least probability, over its words,
        of being of its type. Tags that cannot follow each other mean what they mean to conlleval.
        Of tokens the answer has also their ``text``, and each entity ``tokens``: the first one
        and the one after the last.
        """
        text = _text(texts)
        units = self._units(text, encoded)
        tokens = join_tokens(texts) if isinstance(texts, tuple) else None
        if tokens is not None:
            units = units.grouped(tokens.starts, tokens.ends)
        logits = encoded.merged(scores)[units.tokens].astype(np.float64)  # [U, L]
        odds = np.exp(logits - logits.max(axis=1, keepdims=True))
        chances = odds / odds.sum(axis=1, keepdims=True)
        tags = [self.labels[number] for number in chances.argmax(axis=1)]
        entities = []
        for first, last, kind in spans_of_tags(tags):
            start, end = trimmed(text, *units.span(first, last, kind)[:2])
            same = [number for number, other in enumerate(self._types) if other == kind]
            entity: Answer = {
                "start": start,
                "end": end,
                "type": kind,
                "text": text[start:end],
                "score": float(chances[first:last, same].sum(axis=1).min().clip(0, 1)),
            }
            if tokens is not None:
                first = int(np.searchsorted(tokens.starts, start, side="right")) - 1
                entity["tokens"] = [first, int(np.searchsorted(tokens.ends, end)) + 1]
            entities.append(entity)
        return {"entities": entities} if tokens is None else {"text": text, "entities": entities}

    def _units(self, text: str, encoded: Windowed) -> Units:
        return units_of(text, encoded, whole_words=self.options.units == "words")

    def calibrate(self, examples: Sequence[Example], answers: Sequence[Answer]) -> dict[str, Any]:
        """The temperature at which scores are as high as entities are right."""
        found = [
            pair for e, a in zip(examples, answers, strict=True) for pair in _right(e.truth, a)
        ]
        if len(found) < FEWEST_TO_CALIBRATE or len({right for _, right in found}) < 2:
            return {}
        scores, right = zip(*found, strict=True)
        return {"temperature": fit_temperature(_logit(scores)[:, None], np.array(right)[:, None])}

    def decide(self, answer: Answer, calibration: Mapping[str, Any]) -> Answer:
        """The scores at that temperature; which entities there are does not change."""
        temperature = temperature_of(calibration)
        if temperature == 1 or not answer["entities"]:
            return answer
        logits = _logit([entity["score"] for entity in answer["entities"]])
        scores = 1 / (1 + np.exp(-logits / temperature))
        entities = [
            {**entity, "score": float(score)}
            for entity, score in zip(answer["entities"], scores, strict=True)
        ]
        return {**answer, "entities": entities}

    # ---- measuring

    def tally(self) -> TaggingTally:
        """F1 of entities, and how far their scores can be trusted."""
        return TaggingTally(self.types)

    def constant(self, answers: Sequence[Answer]) -> bool:
        """Whether no text has an entity."""
        return len(answers) > 1 and not any(answer["entities"] for answer in answers)

    def mistake(self, example: Example, answer: Answer) -> Mistake | None:
        """Entities missed and invented; the worse, the surer the model was of an invented one."""
        truth, found = set(example.truth), _spans(answer)
        missed, spurious = sorted(truth - found), sorted(found - truth)
        if not missed and not spurious:
            return None
        text = _text(example.texts)
        sure = max((score for score, right in _right(truth, answer) if not right), default=None)
        marks = [(start, end, "truth") for start, end, _ in missed]
        marks += [(start, end, "answer") for start, end, _ in spurious]
        return Mistake(
            (sure or 0.0) + len(missed) / (1 + len(missed)),
            _listed(missed, text),
            _listed(spurious, text),
            text,
            sure,
            tuple(marks),
        )

    def pictures(self, figures: Mapping[str, Any], folder: Path) -> Iterable[tuple[Path, str]]:
        """F1 by type, and whether scores can be trusted."""
        plots.f1_scores(folder / "f1.png", figures["per_label"], "type")
        yield folder / "f1.png", "F1 by type"
        if "reliability" in figures:
            plots.reliability(
                folder / "reliability.png", figures["reliability"], title="Scores of entities"
            )
            yield folder / "reliability.png", "how often entities are right, by their score"


class TaggingTally:
    """F1 of entities, and the calibration of their scores."""

    def __init__(self, types: Sequence[str]) -> None:
        self.spans = SpanTally(types)
        self.sure = CalibrationTally()
        self.found = 0

    def add(self, truth: Sequence[Span], answer: Answer) -> None:
        """Count one answer."""
        self.spans.add(truth, _spans(answer))
        if pairs := _right(truth, answer):
            self.found += len(pairs)
            self.sure.add_answers(*zip(*pairs, strict=True))

    def figures(self) -> dict[str, Any]:
        """As ``SpanTally`` gives them, and the calibration error of the scores."""
        found = self.spans.figures()
        if self.found:
            sure = self.sure.figures()
            found |= {name: sure[name] for name in ("expected_calibration_error", "reliability")}
        return found


# What has a tag ---------------------------------------------------------------------------------


class Units(NamedTuple):
    """What has a tag in a text, from left to right: U words, pieces or given tokens.

    Args:
        tokens: [U] the token of the model that stands for each.
        starts: [U] where each begins in the text, in characters.
        ends: [U] and where it ends; at most where the next one begins.
    """

    tokens: Ints
    starts: Ints
    ends: Ints

    def within(self, spans: Iterable[Span]) -> list[Span]:
        """Spans of characters as spans of units: all that they touch, and each unit once."""
        found = []
        free = 0
        for start, end, kind in spans:
            first = max(int(np.searchsorted(self.ends, start, side="right")), free)
            last = int(np.searchsorted(self.starts, end, side="left"))
            if first < last:
                found.append((first, last, kind))
                free = last
        return found

    def span(self, first: int, last: int, kind: str) -> Span:
        """A span of units as one of characters."""
        return int(self.starts[first]), int(self.ends[last - 1]), kind

    def grouped(self, starts: Ints, ends: Ints) -> Units:
        """Given tokens as units: the first unit that begins in one stands for all of it.

        A token in which none begins belongs to the one before, if the same unit covers both;
        else the model does not see it.

        Args:
            starts: [n] where each token begins in the text, in characters.
            ends: [n] and where it ends.
        """
        if not len(self.starts):
            return self
        first = np.searchsorted(self.starts, starts)
        there = np.flatnonzero(np.append(self.starts, ends[-1:])[first] < ends)
        first = first[there]
        last = np.append(first[1:], len(self.starts)) - 1  # unit that begins in the token
        covered = np.searchsorted(starts, self.ends[last]) - 1
        until = np.clip(covered, there, np.append(there[1:], len(starts)) - 1)
        return Units(self.tokens[first], starts[there], ends[until])


def units_of(text: str, encoded: Windowed, *, whole_words: bool) -> Units:
    """What has a tag in a text.

    Args:
        text: it.
        encoded: its tokens, with their places.
        whole_words: whether the pieces of a word share a tag, that of the first.
    """
    tokens: list[int] = []
    starts: list[int] = []
    ends: list[int] = []
    words = encoded.words.tolist()
    word = -1  # of the piece before
    for token, (start, end) in enumerate(encoded.offsets.tolist()):
        # A piece may bring the space before it along, or be nothing else.
        start, end = trimmed(text, start, end)
        if start == end:
            continue
        if ends:
            ends[-1] = before = _whole(text, ends[-1], start)
            same = words[token] == word >= 0
            if (
                start < before  # the bytes of one character
                or (start == before and not _cut(text, start))
                or (whole_words and same and not _seam(text[before - 1], text[start]))
            ):
                ends[-1], word = max(before, end), words[token]
                continue
        word = words[token]
        tokens.append(token)
        starts.append(start)
        ends.append(end)
    if ends:
        ends[-1] = _whole(text, ends[-1], len(text))
    return Units(*(np.array(column, dtype=np.int64) for column in (tokens, starts, ends)))


def _whole(text: str, end: int, stop: int) -> int:
    """Where what ends here really ends: with accents and joiners that the tokenizer drops."""
    while end < stop and not _cut(text, end):
        end += 1
    return end


def _cut(text: str, place: int) -> bool:
    """Whether what a reader takes for a character begins here, not the rest of one."""
    after = text[place]
    joined = after == _JOINER or (place > 0 and text[place - 1] == _JOINER)
    modifier = "\N{EMOJI MODIFIER FITZPATRICK TYPE-1-2}" <= after <= "\U0001f3ff"
    return not (joined or modifier or unicodedata.category(after).startswith("M"))


def _seam(before: str, after: str) -> bool:
    """Whether an entity may well begin between two characters of a word.

    Not between two letters or two digits, unless their script has no spaces or, as Korean,
    puts much behind a name without one.
    """
    if any(spaceless(side) or "HANGUL" in unicodedata.name(side, "") for side in (before, after)):
        return True
    kind = unicodedata.category(before)[0].replace("M", "L")
    return kind not in "LN" or kind != unicodedata.category(after)[0].replace("M", "L")


# Small things -----------------------------------------------------------------------------------


def _text(texts: Texts | tuple[str, ...]) -> str:
    """A text as it is, or the text of tokens."""
    return texts if isinstance(texts, str) else join_tokens(cast(Sequence[str], texts)).text


def _type_of(tag: str) -> str:
    match = TAG.fullmatch(tag)
    return match[2] or "" if match else tag


def _spans(answer: Answer) -> set[Span]:
    return {(entity["start"], entity["end"], entity["type"]) for entity in answer["entities"]}


def _right(truth: Iterable[Span], answer: Answer) -> list[tuple[float, bool]]:
    """The score of each entity found, and whether it is right."""
    there = set(truth)
    return [
        (entity["score"], (entity["start"], entity["end"], entity["type"]) in there)
        for entity in answer["entities"]
    ]


def _logit(scores: Sequence[float]) -> Numbers:
    chances = np.clip(np.asarray(scores, dtype=np.float64), 1e-7, 1 - 1e-7)
    return np.asarray(np.log(chances / (1 - chances)))


def _listed(spans: Sequence[Span], text: str) -> str:
    """Entities in words."""
    return "; ".join(f"{kind} {text[start:end]}".strip() for start, end, kind in spans) or "nothing"


TASK = Tagging
