"""Question answering: targets, the search for spans, places of the text, and no answer."""

from __future__ import annotations

import itertools
import json
import random
import unicodedata
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import models, pre_tokenizers, processors, trainers

import bert
from bert.checkpoint import Checkpoint, read_model, write_model
from bert.cli import main
from bert.data.batches import Numbers
from bert.data.rows import Example
from bert.errors import DataError, ModelError
from bert.evaluation import calibrated, measure
from bert.families.family import load_family
from bert.metrics.answers import AnswerTally
from bert.model.packing import Tokens
from bert.predictor import Predictor, answers
from bert.recipes.finetune import FinetuneSettings, finetune
from bert.tasks.question_answering import (
    N_BEST,
    SHOWN,
    THRESHOLD,
    Edges,
    QuestionAnswering,
    QuestionAnsweringOptions,
    best_spans,
)
from bert.tasks.task import Answer
from bert.text.tokenizer import SPECIAL_TOKENS, Tokenizer, train_wordpiece
from bert.text.windows import Windowed

CPU = torch.device("cpu")
DEMO = QuestionAnswering.demo_rows


def write_lines(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_text("".join(lines), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def words() -> Tokenizer:
    """Most words of the demo rows whole, others in pieces."""
    texts = [f"{row['question']}\n{row['context']}" for row in DEMO]
    return train_wordpiece(lambda: texts * 2, vocab_size=400, lowercase=True)


@pytest.fixture(scope="module")
def byte_level() -> Tokenizer:
    """As RoBERTa's: bytes are tokens, so that a character may be several."""
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    special = list(SPECIAL_TOKENS.values())
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator([row["context"] for row in DEMO[:5]] * 2, trainer)
    pair = "[CLS] $A [SEP] [SEP] $B [SEP]"
    numbers = [(token, backend.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair=pair, special_tokens=numbers
    )
    return Tokenizer(backend, {})


def checkpoint(tokenizer: Tokenizer, longest: int = 64, **facts: Any) -> Checkpoint:
    torch.manual_seed(0)
    family = load_family("bert")
    config = family.read_config(
        {
            "model_type": "bert",
            "vocab_size": tokenizer.vocab_size,
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 64,
            "max_position_embeddings": longest,
            "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
        },
        "here",
    )
    model = family.build("span", config).eval()
    return Checkpoint(model, "span", family, [], tokenizer, facts={"task": "question_answering",
                                                                    **facts})  # fmt: skip


def task_of(tokenizer: Tokenizer, longest: int = 64, most: int = 30) -> QuestionAnswering:
    options = QuestionAnsweringOptions(max_answer_tokens=most)
    return QuestionAnswering(checkpoint(tokenizer, longest), options)


def read(path: Path) -> list[Example]:
    return list(QuestionAnswering.read(path, [], None, labelled=True))


def said(examples: Sequence[Example], given_answers: Sequence[Answer]) -> None:
    """Every place an answer names is where its text stands."""
    for example, answer in zip(examples, given_answers, strict=True):
        check_places(example.parts[1], answer)


def check_places(context: str, answer: Answer) -> None:
    for part in (answer, *answer["candidates"]):
        if part["start"] is None:
            assert part["answer"] == ""
            assert part["end"] is None
        else:
            assert 0 <= part["start"] < part["end"] <= len(context)
            assert context[part["start"] : part["end"]] == part["answer"]


# ---- learning


def test_demo_rows_are_learnt_and_survive_the_disk(tmp_path: Path, words: Tokenizer) -> None:
    examples = read(write_lines(tmp_path / "rows.jsonl", DEMO))
    there = checkpoint(words, max_length=24)
    task = QuestionAnswering(there)
    samples = task.samples(examples)
    batch = task.batch(samples, np.arange(len(samples)), epoch=0, seed=1)
    optimizer = torch.optim.AdamW(there.model.parameters(), lr=3e-3)
    counts = task.counts(batch)
    assert counts == {"answer": sum(len(sample.encoded.windows) for sample in samples)}
    for _ in range(60):
        outcome = task.losses(there.model, batch, CPU)
        optimizer.zero_grad()
        (outcome.losses["answer"] / counts["answer"]).backward()
        optimizer.step()
    assert outcome.correct["answer"] == counts["answer"]
    texts = [example.texts for example in examples]
    given_answers = list(answers(task, there.model, texts, "fp32", CPU))
    figures = measure(task, zip(examples, given_answers, strict=True))
    assert figures["exact_match"]["value"] == figures["f1"]["value"] == 1.0
    assert [answer["answer"] for answer in given_answers] == [row["answer"] for row in DEMO]
    assert all(answer["no_answer_score"] < 0 for answer in given_answers)
    said(examples, given_answers)

    write_model(tmp_path / "model", there)
    again = Predictor(tmp_path / "model")
    assert again(texts) == given_answers
    theirs = transformers.AutoModelForQuestionAnswering.from_pretrained(tmp_path / "model")
    encoded = transformers.AutoTokenizer.from_pretrained(tmp_path / "model")(
        *map(list, zip(*texts, strict=True)), padding=True, return_tensors="pt"
    )
    with torch.no_grad():
        expected = theirs.eval()(**encoded)
        ours = again.model(
            encoded["input_ids"], encoded["token_type_ids"], encoded["attention_mask"]
        )
    (tmp_path / "model" / "bert.json").unlink()  # as a model of others
    assert bert.Predictor(tmp_path / "model")(texts)[0]["answer"] == DEMO[0]["answer"]
    real = encoded["attention_mask"].bool()
    for column, name in enumerate(("start_logits", "end_logits")):
        assert torch.allclose(ours[..., column][real], expected[name][real], atol=1e-5)


def test_the_loss_is_that_of_transformers(tmp_path: Path, words: Tokenizer) -> None:
    there = checkpoint(words)
    write_model(tmp_path / "model", there)
    theirs = transformers.BertForQuestionAnswering.from_pretrained(tmp_path / "model").eval()
    task = QuestionAnswering(there)
    samples = task.samples(read(write_lines(tmp_path / "rows.jsonl", DEMO)))
    batch = task.batch(samples, np.arange(len(samples)), epoch=0, seed=1)
    outcome = task.losses(there.model, batch, CPU)
    expected = 0.0
    for sample in samples:  # one by one, where nothing is padded
        (window,) = sample.encoded.windows
        found = theirs(
            torch.tensor([window.input_ids]),
            token_type_ids=torch.tensor([window.token_type_ids]),
            start_positions=torch.tensor(sample.targets["begin"][0]),
            end_positions=torch.tensor(sample.targets["end"][0]),
        )
        expected += found.loss.item()
    assert outcome.losses["answer"].item() == pytest.approx(expected, rel=1e-5)
    mean = outcome.losses["answer"] / len(samples)
    mean.backward()
    assert all(torch.isfinite(p.grad).all() for p in there.model.parameters() if p.grad is not None)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_windows_point_at_the_answer_they_hold_whole(words: Tokenizer, data: st.DataObject) -> None:
    vocabulary = ["owl", "barn", "train,", "(nine)", "planted", "zebra", "老师", "九点"]
    chosen = data.draw(st.lists(st.sampled_from(vocabulary), min_size=1, max_size=60))
    context = " ".join(chosen)
    places = list(itertools.accumulate((len(word) + 1 for word in chosen), initial=0))
    first = data.draw(st.integers(0, len(chosen) - 1))
    last = data.draw(st.integers(first, min(first + 5, len(chosen) - 1)))
    start, stop = places[first], places[last] + len(chosen[last])
    task = task_of(words, longest=24)
    example = Example(("where?", context), ((start, context[start:stop]),), "x:1")
    (sample,) = task.samples([example])
    offsets = sample.encoded.offsets
    holding = 0
    for window, begin, end in zip(
        sample.encoded.windows, sample.targets["begin"], sample.targets["end"], strict=True
    ):
        mine = offsets[window.begin : window.begin + window.size]
        whole = mine[0][0] <= start and stop <= mine[-1][1]
        holding += whole
        if whole:
            begin, end = begin[0] - window.place, end[0] - window.place
            assert (mine[begin][0], mine[end][1]) == (start, stop)
        else:
            assert begin.tolist() == end.tolist() == [0]
    if len(sample.encoded.windows) == 1:
        assert holding == 1


def test_answers_inside_words_are_widened_and_the_first_that_fits_is_taught(
    words: Tokenizer,
) -> None:
    context = "Zebras planted pear trees. " * 6
    task = task_of(words, longest=24)
    inside = context.index("ebra")
    far = context.rindex("trees")
    example = Example(("Who?", context), ((far, "trees"), (inside, "ebra")), "x:1")
    (sample,) = task.samples([example])
    taught = set()
    for window, begin, end in zip(
        sample.encoded.windows, sample.targets["begin"], sample.targets["end"], strict=True
    ):
        shift = window.begin - window.place
        if begin[0]:
            rows = sample.encoded.offsets[[begin[0] + shift, end[0] + shift]]
            taught.add(context[rows[0][0] : rows[1][1]])
    assert taught == {"Zebras", "trees"}


# ---- the search


@settings(max_examples=300, deadline=None)
@given(st.integers(1, 50), st.integers(1, 20), st.integers(0, 2**32 - 1), st.booleans())
def test_the_best_spans_are_those_of_trying_all(
    size: int, longest: int, seed: int, ties: bool
) -> None:
    draw = np.random.default_rng(seed)
    scores = draw.integers(-2, 3, (size, 2)) if ties else draw.normal(size=(size, 2))
    may_begin, may_end = draw.random((2, size)) < 0.6
    expected = [
        scores[first, 0] + scores[last, 1]
        for first in np.flatnonzero(may_begin)
        for last in np.flatnonzero(may_end)
        if first <= last < first + longest
    ]
    found = best_spans(scores.astype(np.float32), may_begin, may_end, longest)
    assert len({(first, last) for first, last, _ in found}) == len(found)
    for first, last, total in found:
        assert may_begin[first]
        assert may_end[last]
        assert 0 <= last - first < longest
        assert total == pytest.approx(scores[first, 0] + scores[last, 1], abs=1e-6)
    sums = sorted((total for _, _, total in found), reverse=True)
    assert sums == pytest.approx(sorted(expected, reverse=True)[:N_BEST], abs=1e-6)


def random_scores(row: Windowed, draw: np.random.Generator) -> list[Numbers]:
    return [
        draw.normal(size=(len(window.input_ids), 2)).astype(np.float32) for window in row.windows
    ]


def test_an_answer_is_the_best_of_all_windows(words: Tokenizer) -> None:
    task = task_of(words, longest=24, most=6)
    draw = np.random.default_rng(3)
    context = "The owl sleeps in the barn (by day), planted pear trees: 老师昨天写的 zebra. " * 3
    (row,) = task.encode([("Where does the owl sleep?", context)])
    edges = Edges.of(context, row.offsets)
    assert len(row.windows) > 5
    for _ in range(50):
        scores = random_scores(row, draw)
        best: dict[tuple[int, int], float] = {}
        for window, score in zip(row.windows, scores, strict=True):
            for i, j in itertools.product(range(window.size), repeat=2):
                first, last = window.begin + i, window.begin + j
                if i <= j < i + 6 and edges.may_begin[first] and edges.may_end[last]:
                    total = float(score[window.place + i, 0]) + float(score[window.place + j, 1])
                    place = (int(edges.begins[first]), int(edges.ends[last]))
                    best[place] = max(best.get(place, -np.inf), total)
        none = min(float(score[0, 0]) + float(score[0, 1]) for score in scores)
        answer = task.decode(("", context), row, scores)
        ranked = sorted(best, key=lambda place: -best[place])
        assert (answer["start"], answer["end"]) == ranked[0]
        assert [(c["start"], c["end"]) for c in answer["candidates"]] == ranked[:5]
        assert answer["no_answer_score"] == pytest.approx(none - best[ranked[0]], abs=1e-5)
        odds = np.exp([none, *(best[place] for place in ranked[:N_BEST])])
        chances = odds / odds.sum()
        assert answer["no_answer_probability"] == pytest.approx(chances[0], rel=1e-5)
        assert [c["score"] for c in answer["candidates"]] == pytest.approx(chances[1:6], rel=1e-5)
        assert answer["score"] == answer["candidates"][0]["score"]
        check_places(context, answer)


@pytest.mark.parametrize("longest", [128, 512])
def test_planted_answers_are_found_at_every_offset(words: Tokenizer, longest: int) -> None:
    """What one window over the whole text would find is found, wherever windows meet."""
    size, length = 3000, 5
    context = "owl " * size
    task, single = task_of(words, longest), task_of(words, size + 100)
    question = "Where does the owl sleep?"
    (row,), (whole,) = task.encode([(question, context)]), single.encode([(question, context)])
    assert len(whole.windows) == 1 < len(row.windows)
    assert len(row.offsets) == size
    seams = {window.begin for window in row.windows} | {
        window.begin + window.size for window in row.windows
    }

    def scores_of(encoded: Windowed, offset: int) -> list[Numbers]:
        """Fake scores that depend on the token alone, as if another word stood there."""
        scores = np.zeros((size, 2), dtype=np.float32)
        scores[offset, 0] = scores[offset + length - 1, 1] = 9.0
        found = []
        for window in encoded.windows:
            score = np.zeros((len(window.input_ids), 2), dtype=np.float32)
            part = scores[window.begin : window.begin + window.size]
            score[window.place : window.place + window.size] = part
            found.append(score)
        return found

    offsets = range(size - length + 1)
    if longest < 512:  # many windows: all seams, and a part of what lies between
        near = {seam + i for seam in seams for i in range(-length - 1, 2)}
        offsets = sorted({i for i in near if 0 <= i <= size - length} | set(offsets[::25]))
    for offset in offsets:
        answer = task.decode(("", context), row, scores_of(row, offset))
        assert (answer["start"], answer["end"]) == (4 * offset, 4 * (offset + length) - 1), offset
        if offset in seams:
            oracle = single.decode(("", context), whole, scores_of(whole, offset))
            keys = ("answer", "start", "end", "no_answer_score")
            assert [answer[key] for key in keys] == [oracle[key] for key in keys]


class Reader(torch.nn.Module):
    """Knows one name: it begins and ends answers at its tokens, whatever stands around them."""

    padded = True

    def __init__(self, first: int, last: int) -> None:
        super().__init__()
        self.first, self.last = first, last

    def logits(self, tokens: Tokens) -> torch.Tensor:
        ends = [tokens.input_ids == number for number in (self.first, self.last)]
        return 9.0 * torch.stack(ends, dim=1).float()


def test_a_name_in_a_long_text_is_found_around_every_seam(words: Tokenizer) -> None:
    first, last = words.pieces(["老师"])[0]
    task = task_of(words, 512)
    filler = ["planted", "barn", "(owl),", "nine."]
    (row,) = task.encode([("Who?", " ".join(filler * 600))])
    seams = [window.begin for window in row.windows[1:]]
    offsets = sorted({seam // 2 + i for seam in seams for i in range(-3, 4)} | {0, 900, 2399})
    contexts = []
    for offset in offsets:
        texts = [filler[i % 4] for i in range(2400)]
        contexts.append(" ".join([*texts[:offset], "老师", *texts[offset:]]))
    found = list(answers(task, Reader(first, last), [("Who?", c) for c in contexts], "fp32", CPU))
    for context, answer in zip(contexts, found, strict=True):
        assert answer["answer"] == "老师"
        assert answer["start"] == context.index("老师")
        assert answer["windows"] > 5
        assert not answer["truncated"]


ALPHABETS = [
    "abc déf ÉÀ 12,.-(",
    "天地人。，老师 iPhone5",
    "สวัสดีครับ ที่นี่ กำ",
    "👩\u200d👩\u200d👧👍🏽❤\ufe0f🇩🇪🇫🇷 x",
    "שלום עולם \u05b0\u05b1abc",
    "مرحبا \u064b\u0650 می\u200cخواهم ١٢",
    "e\u0301a\u0308\u0304n\u0303 o\u0338x",
    "한국어를 조선말 \u1112\u1161\u11ab",
    "नमस्ते दुनिया क्षि",
    "\u00a0\u3000\u2009\t\n a\u00adb\u200bc\ufeff",
    "\u0130ıßﬁ①ǅ \U0001d400\U00020000\ufffd",
]


def fuzzed(draw: random.Random) -> str:
    length = draw.randint(0, 55)
    if draw.random() < 0.5:
        return "".join(draw.choices(draw.choice(ALPHABETS), k=length))
    return "".join(draw.choices("".join(ALPHABETS), k=length))


@pytest.mark.parametrize("kind", ["words", "byte_level"])
def test_places_hold_in_any_script(kind: str, request: pytest.FixtureRequest) -> None:
    tokenizer: Tokenizer = request.getfixturevalue(kind)
    task = task_of(tokenizer, longest=32)
    draw, numbers = random.Random(11), np.random.default_rng(11)
    contexts = [fuzzed(draw) for _ in range(5000)]  # of each kind of tokenizer
    answered = windows = 0
    for context, row in zip(contexts, task.encode([("谁 who?", c) for c in contexts]), strict=True):
        answer = task.decode(("", context), row, random_scores(row, numbers))
        check_places(context, answer)
        windows += len(row.windows) > 1
        answered += answer["start"] is not None
        for part in answer["candidates"]:
            text, before, after = part["answer"], part["start"] - 1, part["end"]
            assert text == text.strip()
            if before >= 0:  # no half of what is one character to a reader
                assert unicodedata.category(text[0])[0] != "M"
                assert context[before] != "\u200d"
            if after < len(context):
                assert unicodedata.category(context[after])[0] != "M"
            latin = "abcdefABCDEF"
            assert not (text[0] in latin and before >= 0 and context[before] in latin)
            assert not (text[-1] in latin and after < len(context) and context[after] in latin)
        places = [(c["start"], c["end"]) for c in answer["candidates"]]
        assert len(set(places)) == len(places)
        assert 0 <= answer["score"] <= 1
    assert answered > 4000
    assert windows > 100


@pytest.mark.parametrize(
    ("text", "answer_parts"),
    [
        ("the zebra's barn", {"the", "zebra", "'", "s", "barn"}),
        ("x-ray, 1990s", {"x", "-", "ray", ",", "1990s"}),
        ("老师 iPhone手机", {"老", "师", "iPhone", "手", "机"}),
        ("cafe\u0301s", {"cafe\u0301s"}),
        ("cafe\u0301 owl", {"cafe\u0301", "owl"}),
    ],
)
def test_answers_end_where_words_do(words: Tokenizer, text: str, answer_parts: set[str]) -> None:
    task = task_of(words, most=100)
    (row,) = task.encode([("Who?", text)])
    edges = Edges.of(text, row.offsets)
    parts = set()
    for first in np.flatnonzero(edges.may_begin):
        last = first + int(np.flatnonzero(edges.may_end[first:])[0])
        parts.add(text[edges.begins[first] : edges.ends[last]])
    assert parts == answer_parts


@pytest.mark.parametrize("context", ["", "   ", "\u200b", "\n\t"])
def test_a_context_without_a_word_has_no_answer(words: Tokenizer, context: str) -> None:
    task = task_of(words)
    (row,) = task.encode([("Who?", context)])
    answer = task.decode(("Who?", context), row, random_scores(row, np.random.default_rng(1)))
    assert answer["answer"] == ""
    assert answer["start"] is answer["end"] is answer["no_answer_score"] is None
    assert answer["score"] == answer["no_answer_probability"] == 1.0
    assert answer["candidates"] == []
    assert task.decide(answer, {THRESHOLD: 0.5, "temperature": 2.0})["answer"] == ""
    json.dumps(answer, allow_nan=False)


def test_a_text_alone_is_refused(words: Tokenizer) -> None:
    with pytest.raises(DataError, match="a question and a context") as error:
        task_of(words).encode([("Who?", "A bird."), "Who?"])
    assert error.value.where == "text 2"


# ---- no answer, probabilities and figures


def made(
    context: str, none: float, *candidates: tuple[int, int, float], chance: float = 0.1
) -> Answer:
    """An answer as ``decode`` gives it; ``chance`` is that of no answer."""
    parts = [
        {"answer": context[b:e], "start": b, "end": e, "score": score} for b, e, score in candidates
    ]
    return {**parts[0], "no_answer_score": none, "no_answer_probability": chance,
            "candidates": parts, "windows": 1, "truncated": False}  # fmt: skip


CONTEXT = "the owl sleeps in the barn"


def with_and_without(count: int, seed: int) -> tuple[list[Example], list[Answer]]:
    """Questions half of which have an answer; the no-answer score tells, around 3 and not 0."""
    draw = np.random.default_rng(seed)
    examples, given_answers = [], []
    for i in range(count):
        answerable = bool(i % 2)
        right = draw.random() < 0.8
        begin, end = (4, 7) if right else (8, 14)
        none = draw.normal(3 + (-1.5 if answerable else 1.5), 0.7)
        score = float(draw.uniform(0.3, 0.6))
        truth = ((4, "owl"),) if answerable else ()
        examples.append(Example((f"Who {i}?", CONTEXT), truth, f"x:{i + 1}"))
        given_answers.append(made(CONTEXT, none, (begin, end, score), (18, 26, 0.1)))
    return examples, given_answers


def test_the_threshold_is_tuned_and_applied(words: Tokenizer) -> None:
    task = task_of(words)
    examples, given_answers = with_and_without(400, seed=1)
    found, decided = calibrated(task, examples, given_answers)
    assert 2 < found[THRESHOLD] < 4
    rows = zip(examples, given_answers, strict=True)
    tally = AnswerTally(unanswerable=True, threshold=found[THRESHOLD])
    for example, answer in rows:
        truths = [text for _, text in example.truth]
        tally.add(truths, answer["answer"], answer["no_answer_score"])
    best = tally.figures()
    assert best["f1"]["value"] == pytest.approx(best["best"]["f1"])
    figures = measure(task, zip(examples, decided, strict=True))
    assert figures["f1"]["value"] == pytest.approx(best["f1"]["value"], abs=0.03)
    plain = measure(task, zip(examples, given_answers, strict=True))  # the threshold is 0
    assert plain["f1"]["value"] < figures["f1"]["value"] - 0.2
    assert figures["unanswerable"]["rows"] == figures["answerable"]["rows"] == 200
    for answer, before in zip(decided, given_answers, strict=True):
        none = before["no_answer_score"] > answer[THRESHOLD]
        assert (answer["answer"] == "") == (answer["start"] is None) == none
        assert answer["score"] == (
            answer["no_answer_probability"] if none else answer["candidates"][0]["score"]
        )
    json.dumps(decided, allow_nan=False)
    json.dumps(figures, allow_nan=False)


def test_without_unanswerable_questions_there_is_no_threshold(words: Tokenizer) -> None:
    task = task_of(words)
    examples, given_answers = with_and_without(300, seed=2)
    examples = [replace(example, truth=((4, "owl"),)) for example in examples]
    found, decided = calibrated(task, examples, given_answers)
    assert set(found) == {"temperature", "uncalibrated_error"}
    assert all(answer["answer"] for answer in decided)
    figures = measure(task, zip(examples, decided, strict=True))
    assert not {"answerable", "unanswerable", "best"} & set(figures)
    before = measure(task, zip(examples, given_answers, strict=True))
    assert figures["f1"] == before["f1"]
    error = "expected_calibration_error"
    assert figures[error]["value"] < before[error]["value"] - 0.1  # 0.8 are right, said 0.45


def test_rules_are_those_of_squad_1_until_a_question_has_no_answer(words: Tokenizer) -> None:
    task = task_of(words)
    answer = made("the a", -1.0, (0, 3, 0.9))
    only_article = Example(("Which?", "the a"), ((4, "a"),), "x:1")
    tally = task.tally()
    tally.add(only_article.truth, answer)
    figures = tally.figures()
    assert (figures["exact_match"]["value"], figures["f1"]["value"]) == (1.0, 0.0)
    tally.add((), {**answer, "no_answer_score": 0.1})  # none is likelier, though not decided
    figures = tally.figures()
    assert (figures["exact_match"]["value"], figures["f1"]["value"]) == (1.0, 1.0)


def test_mistakes_show_truth_and_answer_in_their_place(words: Tokenizer) -> None:
    task = task_of(words)
    filler = "planted pear trees. " * 300
    for before in ("", filler):
        context = f"{before}{CONTEXT} {filler}"
        at = len(before)
        truth = ((at + 4, "owl"), (at, "the owl"))
        example = Example(("Who sleeps?", context), truth, "x:1")
        right = made(context, -2.0, (at + 4, at + 7, 0.7))
        assert task.mistake(example, right) is None
        wrong = made(context, -2.0, (at + 18, at + 26, 0.7))
        mistake = task.mistake(example, wrong)
        assert mistake is not None
        assert mistake.text.startswith("Who sleeps?\n")
        assert len(mistake.text) < SHOWN + 50
        marked = {(kind, mistake.text[begin:end]) for begin, end, kind in mistake.marks}
        assert marked == {("truth", "owl"), ("truth", "the owl"), ("answer", "the barn")}
        assert (mistake.truth, mistake.answer, mistake.sure) == ("owl / the owl", "the barn", 0.7)
        near = made(context, -2.0, (at + 4, at + 14, 0.7))
        half = task.mistake(example, near)
        assert half is not None
        assert half.badness < mistake.badness
    none = task.mistake(Example(("Who?", CONTEXT), (), "x:2"), made(CONTEXT, 1.0, (4, 7, 0.5)))
    assert none is not None
    assert none.truth == "(no answer)"
    missed = {**right, "answer": "", "start": None, "end": None, "score": 0.9}
    found = task.mistake(example, missed)
    assert found is not None
    assert found.answer == "(no answer)"
    assert found.badness == 0.9


def test_a_collapsed_model_is_known(words: Tokenizer) -> None:
    task = task_of(words)
    one = made(CONTEXT, -1.0, (4, 7, 0.5))
    other = made(CONTEXT, 1.0, (8, 14, 0.5))
    assert task.constant([one, one])
    assert not task.constant([one])
    assert not task.constant([one, other])
    assert task.constant([{**one, "no_answer_score": 2.0}, {**other, "no_answer_score": 2.1}])
    assert not task.constant([{**one, "no_answer_score": 2.0}, {**other, "no_answer_score": 9.0}])


def test_figures_are_drawn(words: Tokenizer, tmp_path: Path) -> None:
    task = task_of(words)
    examples, given_answers = with_and_without(40, seed=3)
    for chosen in (examples, [replace(e, truth=((4, "owl"),)) for e in examples]):
        figures = measure(task, zip(chosen, given_answers, strict=True))
        pictures = dict(task.pictures(figures, tmp_path))
        assert {path.name for path in pictures} == {"answers.png", "reliability.png", "abstain.png"}
        assert all(path.stat().st_size > 5000 for path in pictures)


@pytest.mark.parametrize("value", ["high", None, float("nan"), [1]])
def test_a_threshold_that_is_none_is_refused(words: Tokenizer, value: Any) -> None:
    with pytest.raises(ModelError, match=THRESHOLD):
        QuestionAnswering(checkpoint(words, calibration={THRESHOLD: value}))


# ---- from the command line


def run(*arguments: str | Path) -> int:
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    return int(stop.value.code or 0)


def test_from_rows_to_answers_with_and_without(
    tmp_path: Path, words: Tokenizer, capsys: pytest.CaptureFixture[str]
) -> None:
    there = checkpoint(words)
    there.facts = {}
    write_model(tmp_path / "model", there)
    rows = [
        {"question": f"{asked} sleeps in the barn?", "id": f"{asked}-{n}",
         "answer": name if asked == "who" else "",
         "context": " ".join(["the last"] * n + [name, "sleeps in the barn"])}
        for n in range(1, 7) for name in ("owl", "老师") for asked in ("who", "when")
    ]  # fmt: skip
    train = write_lines(tmp_path / "train.jsonl", rows)
    settings_given = FinetuneSettings.of(
        {"train": str(train), "dev": str(train), "model": str(tmp_path / "model"), "epochs": 60,
         "task": "question_answering", "learning_rate": 3e-3, "batch_size": 8, "evaluations": 6,
         "precision": "fp32", "max_answer_tokens": 4}
    )  # fmt: skip
    folder = finetune(settings_given, tmp_path / "run")
    figures = json.loads((folder / "metrics.json").read_text("utf-8"))
    assert figures["f1"]["value"] > 0.9
    assert figures["unanswerable"]["rows"] == 12
    facts = json.loads((folder / "model" / "bert.json").read_text("utf-8"))
    assert THRESHOLD in facts["calibration"]
    assert facts["options"] == {"max_answer_tokens": 4}
    report = json.loads((folder / "data_report.json").read_text("utf-8"))
    assert report["train"]["labels"] == {"no answer": 12}
    predictor = bert.Predictor(folder)
    assert predictor.task.options == QuestionAnsweringOptions(max_answer_tokens=4)
    texts = [(row["question"], row["context"]) for row in rows[:9]]
    found = predictor(texts)
    assert [a["answer"] for a in found] == [row["answer"] for row in rows[:9]]
    alone = [predictor([text])[0]["answer"] for text in texts]
    assert alone == [answer["answer"] for answer in found]

    # The model learnt from rows is used on SQuAD's JSON.
    asked = [
        {"question": row["question"], "id": row["id"], "is_impossible": not row["answer"],
         "answers": [{"text": "owl", "answer_start": 9}] if row["answer"] else []}
        for row in rows[:2]
    ]  # fmt: skip
    whole = {"data": [{"paragraphs": [{"context": rows[0]["context"], "qas": asked}]}]}
    dev = tmp_path / "dev.json"
    dev.write_text(json.dumps(whole), encoding="utf-8")
    assert run("predict", folder, dev, "-o", tmp_path / "out.jsonl") == 0
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text("utf-8").splitlines()]
    assert [line["answer"] for line in lines] == ["owl", ""]
    capsys.readouterr()
    assert run("evaluate", folder, dev, "--json") == 0
    assert json.loads(capsys.readouterr().out)["f1"]["value"] == 1.0
    dev.write_text(json.dumps(whole).replace('"owl"', '"yak"'), encoding="utf-8")
    assert run("evaluate", folder, dev) == 3
    assert f"{dev}:who-1" in capsys.readouterr().err
    again = read_model(folder / "model")
    assert again.kind == "span"
