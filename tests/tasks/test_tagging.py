"""Tagging: from rows to tags and back to places of the text, in any script and at any length."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
import torch
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing
from torch import nn

from bert.checkpoint import Checkpoint, write_model
from bert.cli import main
from bert.data.rows import Example
from bert.data.tagged import join_tokens
from bert.errors import DataError
from bert.evaluation import calibrated, measure
from bert.families.family import load_family
from bert.model.packing import Tokens
from bert.predictor import answers
from bert.tasks.tagging import IGNORED, Tagging, TaggingOptions, units_of
from bert.text.tokenizer import SPECIAL_TOKENS, Tokenizer, train_wordpiece

CPU = torch.device("cpu")
LABELS = ["O", "B-LOC", "I-LOC", "B-PER", "I-PER"]
Span = tuple[int, int, str]


def checkpoint(
    tokenizer: Tokenizer, labels: Sequence[str] = LABELS, longest: int = 64
) -> Checkpoint:
    torch.manual_seed(0)
    family = load_family("bert")
    sizes = family.read_config(
        {
            "model_type": "bert",
            "vocab_size": tokenizer.vocab_size,
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 64,
            "max_position_embeddings": longest,
        },
        "here",
    )
    model = family.build("token", sizes, len(labels)).eval()
    return Checkpoint(model, "token", family, list(labels), tokenizer)


def task(
    tokenizer: Tokenizer, labels: Sequence[str] = LABELS, longest: int = 64, **options: Any
) -> Tagging:
    made = checkpoint(tokenizer, labels)
    made.facts["max_length"] = longest
    return Tagging(made, TaggingOptions.of(options))


def example(texts: Any, *truth: Span) -> Example:
    return Example(texts, truth, "here:1")


def demo(folder: Path) -> list[Example]:
    path = folder / "demo.jsonl"
    path.write_text("\n".join(map(json.dumps, Tagging.demo_rows)), encoding="utf-8")
    return list(Tagging.read(path, [], None, labelled=True))


def spans(answer: dict[str, Any]) -> list[Span]:
    return [(found["start"], found["end"], found["type"]) for found in answer["entities"]]


def told(tagging: Tagging, row: Example) -> dict[str, Any]:
    """The answer to a row of a network that says what the row is trained on."""
    (sample,) = tagging.samples([row])
    scores = []
    for tags in sample.targets["tag"]:
        score = np.zeros((len(tags), len(tagging.labels)), dtype=np.float32)
        score[np.arange(len(tags)), np.maximum(tags, 0)] = 9
        scores.append(score)
    return tagging.decode(row.texts, sample.encoded, scores)


@pytest.fixture(scope="module")
def wordpiece() -> Tokenizer:
    """A WordPiece tokenizer that knows something of several scripts."""
    texts = [" ".join(row["text"] for row in Tagging.demo_rows), *SCRIPTS.values()] * 3
    return train_wordpiece(lambda: texts, vocab_size=1000, lowercase=True)


SCRIPTS = {
    "english": "We saw Ada Byron in New York, near the old bridge; it's U.N. land.",
    "chinese": "王明住在北京，今天去上海。２０２０年１月",
    "thai": "ฉันไปกรุงเทพมหานครกับสมชายเมื่อวานนี้ที่น้ำตก",
    "japanese": "わたしはトヨタで働いています。東京タワー",
    "korean": "서울에서 김철수가 왔습니다",
    "arabic": "ذهبت إلى القاهرة وباريس مع أحمد",
    "hebrew": "הלכתי לירושלים עם דוד",
    "hindi": "मैं दिल्ली में राम से मिला",
    "emoji": "we 👩‍👩‍👧 love 🏳️‍🌈 and 👍🏽 in 🇫🇷 1️⃣",
    "combining": "cafe\u0301 nai\u0308ve Z\u0351\u036ba\u0321lgo A\u030angstro\u0308m",
    "greek": "Στην Αθήνα, ο Γιώργος",
}


def byte_level() -> Tokenizer:
    backend = tokenizers.Tokenizer(models.BPE(unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=list(SPECIAL_TOKENS.values()),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    return trained(backend, trainer)


def metaspace() -> Tokenizer:
    backend = tokenizers.Tokenizer(models.Unigram())
    backend.normalizer = normalizers.NFKC()
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=250,
        special_tokens=list(SPECIAL_TOKENS.values()),
        unk_token="[UNK]",
        show_progress=False,
    )
    return trained(backend, trainer)


def trained(backend: Any, trainer: Any) -> Tokenizer:
    backend.train_from_iterator(SCRIPTS.values(), trainer)
    backend.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B [SEP]",
        special_tokens=[(t, backend.token_to_id(t)) for t in ("[CLS]", "[SEP]")],
    )
    return Tokenizer(backend, {})


KINDS: dict[str, Callable[[], Tokenizer]] = {"byte level": byte_level, "metaspace": metaspace}


@pytest.fixture(scope="module")
def tokenizers_of(wordpiece: Tokenizer) -> dict[str, Tokenizer]:
    return {"wordpiece": wordpiece, **{name: made() for name, made in KINDS.items()}}


# What has a tag ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "units"),
    [
        ("it's U.N. land", "it ' s U . N . land"),
        ("unknownish Zürich", "unknownish Zürich"),
        ("in 20mg or B52", "in 20 mg or B 52"),
        ("北京，ok", "北 京 ， ok"),
        ("cafe\u0301 in", "cafe\u0301 in"),
        ("😀👩‍👩‍👧", "😀 👩‍👩‍👧"),
        ("Nai\u0308ve\u0301s co\u00adop", "Nai\u0308ve\u0301s co\u00adop"),
        ("🏳️‍🌈 x", "🏳️‍🌈 x"),
        ("   ", ""),
        ("", ""),
    ],
)
def test_words_have_tags(text: str, units: str) -> None:
    (encoded,) = task(in_letters(text)).encode([text])
    found = units_of(text, encoded, whole_words=True)
    assert [text[a:b] for a, b in zip(found.starts, found.ends, strict=True)] == units.split()


def in_letters(text: str) -> Tokenizer:
    """A tokenizer whose pieces are single characters."""
    return train_wordpiece(lambda: ["a", text], vocab_size=200, lowercase=True)


def test_thai_has_a_tag_for_each_piece_and_every_entity_comes_back() -> None:
    text = SCRIPTS["thai"]
    tagging = task(in_letters(text))
    (encoded,) = tagging.encode([text])
    assert len(set(encoded.words.tolist())) == 1  # for BERT it is one word
    units = units_of(text, encoded, whole_words=True)
    assert not any(text[start] in "ัิีึืุู่้์" for start in units.starts)  # vowels and tones hang on
    assert "".join(text[a:b] for a, b in zip(units.starts, units.ends, strict=True)) == text
    for first in range(0, len(units.tokens) - 3):
        place = (int(units.starts[first]), int(units.ends[first + first % 3]), "LOC")
        assert spans(told(tagging, example(text, place))) == [place]


@pytest.mark.parametrize(
    ("script", "names"),
    [
        ("chinese", ["王明", "北京", "上海"]),
        ("japanese", ["トヨタ", "東京"]),
        ("english", ["Ada Byron", "New York", "bridge", "U.N."]),
        ("korean", ["서울", "김철수"]),
        ("combining", ["cafe\u0301", "A\u030angstro\u0308m"]),
        ("emoji", ["👩‍👩‍👧", "🏳️‍🌈", "👍🏽"]),
        ("greek", ["Αθήνα", "Γιώργος"]),
    ],
)
def test_entities_of_every_script_come_back(
    tokenizers_of: dict[str, Tokenizer], script: str, names: list[str]
) -> None:
    text = SCRIPTS[script]
    truth = [(text.index(name), text.index(name) + len(name), "LOC") for name in names]
    assert spans(told(task(in_letters(text)), example(text, *truth))) == truth
    if script in ("english", "greek"):  # of the others pieces may cross the ends of words
        for tokenizer in tokenizers_of.values():
            assert spans(told(task(tokenizer, longest=512), example(text, *truth))) == truth


def test_what_no_tags_can_say_is_told(
    wordpiece: Tokenizer, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        Example("we met Ben", ((7, 10, "PER"),), "f:1"),
        Example("the oldbridge", ((4, 7, "LOC"), (7, 13, "LOC")), "f:2"),
    ]
    tagging = task(wordpiece)
    assert len(wordpiece.pieces(["oldbridge"])[0]) > 1
    tagging.samples(rows)
    said = capsys.readouterr().err
    assert "2 of 3 entities" in said
    assert "f:2 (old)" in said
    assert "units=pieces" in said
    assert spans(told(tagging, rows[1])) == [(4, 13, "LOC")]  # not lost: learnt as the word
    task(wordpiece, units="pieces").samples(rows)
    assert "1 of 3" not in capsys.readouterr().err
    assert spans(told(task(wordpiece, units="pieces"), rows[1])) == list(rows[1].truth)


@given(st.data())
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_entities_of_given_tokens_are_whole_tokens(
    tokenizers_of: dict[str, Tokenizer], data: st.DataObject
) -> None:
    alphabet = "".join(SCRIPTS.values())
    tokens = tuple(data.draw(st.lists(st.text(st.sampled_from(alphabet), max_size=5), max_size=12)))
    tagging = task(tokenizers_of[data.draw(st.sampled_from(sorted(tokenizers_of)))], longest=16)
    (encoded,) = tagging.encode([tokens])
    draw = np.random.default_rng(data.draw(st.integers(0, 999)))
    answer = tagging.decode(
        tokens, encoded, [draw.normal(size=(len(w.input_ids), 5)) for w in encoded.windows]
    )
    text, starts, ends = join_tokens(tokens)
    assert answer["text"] == text
    for found in answer["entities"]:
        first, last = found["tokens"]
        assert text[starts[first] : ends[last - 1]].strip() == found["text"]
        assert text[found["start"] : found["end"]] == found["text"]
        assert 0 <= first < last <= len(tokens)


def test_tags_of_tokens_come_back_as_tokens(wordpiece: Tokenizer) -> None:
    tokens = ("U.N.", "official", "Ekeus", "in", "1996-12-06", ".")
    row = Example(tokens, ((0, 4, "PER"), (14, 19, "LOC")), "here:1")
    answer = told(task(wordpiece), row)
    assert spans(answer) == list(row.truth)
    assert [found["tokens"] for found in answer["entities"]] == [[0, 1], [2, 3]]
    assert [found["text"] for found in answer["entities"]] == ["U.N.", "Ekeus"]


# Learning ---------------------------------------------------------------------------------------


def test_only_words_are_learnt_and_each_once_in_its_window(wordpiece: Tokenizer) -> None:
    tagging = task(wordpiece, longest=12)
    text = " ".join(["we met Ben unfamiliarly in Rome"] * 9)
    truth = [(i, i + 4, "LOC") for i in range(len(text)) if text[i : i + 4] == "Rome"]
    (sample,) = tagging.samples([example(text, *truth)])
    assert len(sample.encoded.windows) > 4
    tags = np.concatenate(list(sample.targets["tag"]))
    assert (tags != IGNORED).sum() == len(text.split())
    assert (tags == LABELS.index("B-LOC")).sum() == len(truth)
    batch = tagging.batch([sample], np.array([0]), 0, 0)
    assert tagging.counts(batch)["tag"] <= len(text.split())
    assert len(batch.targets["tag"]) == len(batch.input_ids)


def test_the_loss_is_the_sum_of_cross_entropy_over_words(wordpiece: Tokenizer) -> None:
    made = checkpoint(wordpiece)
    tagging = Tagging(made, TaggingOptions())
    rows = [example("Ada lives in Rome.", (0, 3, "PER"), (13, 17, "LOC")), example("")]
    samples = tagging.samples(rows)
    batch = tagging.batch(samples, np.arange(2), 0, 0)
    outcome = tagging.losses(made.model, batch, CPU)
    wanted = 0.0
    for sample in samples:
        ids = torch.tensor([sample.encoded.windows[0].input_ids])
        tags = torch.as_tensor(np.concatenate(list(sample.targets["tag"])))
        logits = made.model(ids)[0].detach()
        wanted += float(nn.functional.cross_entropy(logits, tags, reduction="sum"))
    assert float(outcome.losses["tag"].detach()) == pytest.approx(wanted, rel=1e-5)
    assert tagging.counts(batch) == {"tag": 5}
    assert 0 <= int(outcome.correct["tag"]) <= 5
    empty = tagging.batch(samples[1:], np.arange(1), 0, 0)
    tagging.losses(made.model, empty, CPU).losses["tag"].backward()


def test_rare_tags_can_count_as_much_as_frequent_ones(wordpiece: Tokenizer) -> None:
    made = checkpoint(wordpiece)
    rows = [example("we met Ben in the old land", (7, 10, "PER"))] * 3
    plain, balanced, focal = (
        Tagging(made, TaggingOptions.of(options))
        for options in ({}, {"class_weights": "balanced"}, {"focal": 2.0})
    )
    losses = []
    for tagging in (plain, balanced, focal):
        batch = tagging.batch(tagging.samples(rows), np.arange(3), 0, 0)
        logits = made.model.logits(Tokens.of(batch.input_ids, batch.token_type_ids,  # type: ignore[operator]
                                             batch.position_ids, batch.lengths, CPU))  # fmt: skip
        losses.append(float(tagging.losses(made.model, batch, CPU).losses["tag"].detach()))
    tags = torch.as_tensor(batch.targets["tag"])
    weights = torch.tensor([21 / (5 * 18), 21 / 5, 21 / 5, 21 / (5 * 3), 21 / 5])
    wanted = (
        nn.functional.cross_entropy(logits, tags, weight=weights, reduction="none").sum().detach()
    )
    assert losses[1] == pytest.approx(float(wanted), rel=1e-5)
    assert losses[2] < losses[0] != pytest.approx(losses[1])


def test_demo_rows_and_a_long_text_are_learnt_by_heart(
    wordpiece: Tokenizer, tmp_path: Path
) -> None:
    rows = demo(tmp_path)
    places, parts = [], []
    begin = 0
    for row in rows[:4] * 3:
        places += [(begin + start, begin + end, kind) for start, end, kind in row.truth]
        parts.append(str(row.texts))
        begin += len(row.texts) + 1
    rows.append(example(" ".join(parts), *places))
    labels = Tagging.labels_of(rows, "here")
    assert labels == LABELS
    made = checkpoint(wordpiece, labels)
    made.facts["max_length"] = 20
    tagging = Tagging(made, TaggingOptions())
    samples = tagging.samples(rows)
    assert len(samples[-1].encoded.windows) > 3
    optimizer = torch.optim.AdamW(made.model.parameters(), lr=3e-3)
    numbers = np.arange(len(rows))
    for epoch in range(60):
        batch = tagging.batch(samples, numbers, epoch, 0)
        loss = tagging.losses(made.model, batch, CPU).losses["tag"] / tagging.counts(batch)["tag"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.05
    found = list(answers(tagging, made.model, [row.texts for row in rows], "fp32", CPU))
    assert [spans(answer) for answer in found] == [list(row.truth) for row in rows]
    assert found[-1]["windows"] == len(samples[-1].encoded.windows)
    assert not tagging.constant(found)
    figures = measure(tagging, zip(rows, found, strict=True))
    assert figures["micro"]["f1"]["value"] == 1
    assert all(0.5 < entity["score"] <= 1 for answer in found for entity in answer["entities"])


def test_transformers_gives_the_same_logits(wordpiece: Tokenizer, tmp_path: Path) -> None:
    made = checkpoint(wordpiece)
    write_model(tmp_path / "model", made)
    theirs = transformers.AutoModelForTokenClassification.from_pretrained(tmp_path / "model")
    assert theirs.config.id2label == dict(enumerate(LABELS))
    read = transformers.AutoTokenizer.from_pretrained(tmp_path / "model")
    tagging = Tagging(made)
    texts = ["Ada lives in Rome.", "王明住在北京", "we"]
    encoded = tagging.encode(texts)
    for text, row in zip(texts, encoded, strict=True):
        inputs = read(text, return_tensors="pt")
        assert inputs["input_ids"][0].tolist() == row.windows[0].input_ids
        with torch.no_grad():
            wanted = theirs.eval()(**inputs).logits[0].numpy()
        window = row.windows[0]
        tokens = Tokens.of(
            np.array(window.input_ids), np.array(window.token_type_ids),
            np.arange(len(window.input_ids)), np.array([len(window.input_ids)]), CPU)  # fmt: skip
        with torch.no_grad():
            (ours,) = tagging.scores(made.model, tokens)
        np.testing.assert_allclose(ours, wanted, atol=1e-5)


# Any length -------------------------------------------------------------------------------------


class Reader(nn.Module):
    """Knows entities by their words, but is blind near both ends of what it is given."""

    padded = True

    def __init__(self, tags: dict[int, int], blind: int) -> None:
        super().__init__()
        self.tags, self.blind = tags, blind

    def logits(self, tokens: Tokens) -> torch.Tensor:
        lengths = tokens.packed.lengths
        tag_of = torch.zeros(int(tokens.input_ids.max()) + 1, dtype=torch.long)
        for token, tag in self.tags.items():
            if token < len(tag_of):
                tag_of[token] = tag
        tags = tag_of[tokens.input_ids]
        places = torch.cat([torch.arange(n) for n in lengths])
        ends = torch.cat([torch.full((n,), n - 1) for n in lengths])
        # The special tokens are at both ends.
        tags[torch.minimum(places, ends - places) <= self.blind] = 0
        return nn.functional.one_hot(tags, len(LABELS)).float() * 5


WORDS = 3000
ENTITY = ["Ada", "Byron", "Rome"]


@pytest.mark.parametrize(("longest", "blind"), [(128, 12), (64, 5), (512, 60), (128, 0)])
def test_an_entity_at_every_offset_is_found_as_in_a_single_window(
    wordpiece: Tokenizer, longest: int, blind: int
) -> None:
    numbers = [wordpiece.backend.token_to_id(word.lower()) for word in ENTITY]
    reader = Reader(dict(zip(numbers, [3, 4, 4], strict=True)), blind)
    windowed, oracle = task(wordpiece, longest=longest), task(wordpiece)
    windowed.max_length, oracle.max_length = longest, WORDS + 2
    apart = 30  # one entity every so many words, so that few texts have one at each offset
    texts, truths = [], []
    for shift in range(apart):
        words = ["the"] * WORDS
        for place in range(shift, WORDS - len(ENTITY) + 1, apart):
            words[place : place + len(ENTITY)] = ENTITY
        ends = np.cumsum([len(word) + 1 for word in words]) - 1
        begins = range(shift, WORDS - len(ENTITY) + 1, apart)
        truths.append([(int(ends[i]) - 3, int(ends[i + 2]), "PER") for i in begins])
        texts.append(" ".join(words))
    assert sum(map(len, truths)) == WORDS - len(ENTITY) + 1  # every offset there is
    found = [spans(answer) for answer in answers(windowed, reader, texts, "fp32", CPU)]
    single = [spans(answer) for answer in answers(oracle, reader, texts, "fp32", CPU)]
    assert found == single
    if not blind:
        assert found == truths
    near = sum(len(set(truth) - set(one)) for truth, one in zip(truths, single, strict=True))
    assert near <= 2 * (blind + 3)  # the oracle misses those at the ends of the text alone


# Any text ---------------------------------------------------------------------------------------

ALPHABETS = [
    *SCRIPTS.values(),
    "\u200d\ufe0f\u20e3\u200f\u200e\u061c\u0301\u0e33\u0e31\U0001f3fd\U0001f468 \u3000\xa0\xad\n\t",
    "ＡＢｃ１２ﬁﬃ㎏①½ǅİıßẞςſK\u1100\u1161\u11a8ｶﾞ각",
    "[MASK] [SEP] [UNK] ##a ▁ Ġ",
    "".join(map(chr, range(33, 127))),
]


def fuzzed(count: int, seed: int) -> Iterable[str]:
    draw = random.Random(seed)
    for _ in range(count):
        kind = draw.random()
        if kind < 0.2:  # anything but surrogates
            codes = (draw.choice((0x20, 0x300, 0x3000, 0x1F000, 0x110000 - 1)) for _ in range(30))
            some = [draw.randrange(1, code + 0x100) for code in codes]
            yield "".join(chr(c) for c in some if not 0xD800 <= c < 0xE000 and c < 0x110000)
        else:
            pool = "".join(draw.sample(ALPHABETS, draw.randint(1, 3)))
            if kind < 0.6:
                yield "".join(draw.choices(pool, k=draw.randint(0, 40)))
            else:  # whole stretches, so that sequences stay whole
                starts = [draw.randrange(len(pool)) for _ in range(draw.randint(1, 4))]
                yield " ".join(pool[start : start + draw.randint(1, 25)] for start in starts)


@pytest.mark.parametrize("units", ["words", "pieces"])
@pytest.mark.parametrize("name", ["wordpiece", *KINDS])
def test_entities_are_places_of_any_text(
    tokenizers_of: dict[str, Tokenizer], name: str, units: str
) -> None:
    tagging = task(tokenizers_of[name], longest=16, units=units)
    texts = list(fuzzed(1700, seed=len(name + units)))  # 10,200 in all six
    draw = np.random.default_rng(0)
    found = 0
    for text, encoded in zip(texts, tagging.encode(texts), strict=True):
        scores = [draw.normal(size=(len(w.input_ids), len(LABELS))) for w in encoded.windows]
        end = 0
        for entity in tagging.decode(text, encoded, scores)["entities"]:
            assert end <= entity["start"] < entity["end"] <= len(text)
            assert text[entity["start"] : entity["end"]] == entity["text"] == entity["text"].strip()
            assert entity["type"] in ("LOC", "PER")
            assert 0 < entity["score"] <= 1
            end = entity["end"]
            found += 1
    assert found > len(texts)


@pytest.mark.parametrize("name", ["wordpiece", *KINDS])
def test_any_entity_is_learnt_as_what_it_touches(
    tokenizers_of: dict[str, Tokenizer], name: str
) -> None:
    tagging = task(tokenizers_of[name], longest=16)
    draw = random.Random(name)
    rows = []
    for text in fuzzed(300, seed=3):
        start = draw.randrange(len(text) + 1)
        end = min(start + draw.randint(1, 5), len(text))
        if text[start:end].strip():
            rows.append(example(text, (start, end, "PER")))
    for row in rows:
        ((start, end, _),) = row.truth
        found = spans(told(tagging, row))
        assert len(found) <= 1
        assert all(a < end and start < b for a, b, _ in found)


# Answers ----------------------------------------------------------------------------------------


def test_ill_formed_tags_mean_what_they_mean_to_conlleval(wordpiece: Tokenizer) -> None:
    text = "we met Ada Ben in Rome"
    tagging = task(wordpiece)
    (encoded,) = tagging.encode([text])
    assert len(encoded.offsets) == 6
    tags = ["O", "I-PER", "I-PER", "I-LOC", "B-LOC", "I-LOC"]
    logits = np.full((8, 5), -1.0)
    logits[np.arange(1, 7), [LABELS.index(tag) for tag in tags]] = 2
    answer = tagging.decode(text, encoded, [logits])
    assert spans(answer) == [(3, 10, "PER"), (11, 14, "LOC"), (15, 22, "LOC")]
    odds = np.exp([2.0, -1, -1, -1, -1])
    both = (odds[0] + odds[1]) / odds.sum()
    assert answer["entities"][0]["score"] == pytest.approx(both)


def test_models_of_others_may_tag_in_other_schemes(wordpiece: Tokenizer) -> None:
    text = "Ada Byron met Ben"
    for labels, tags in (
        (["O", "S-PER", "B-PER", "E-PER", "I-PER"], ["B-PER", "E-PER", "O", "S-PER"]),
        (["O", "I-PER", "B-PER"], ["I-PER", "I-PER", "O", "I-PER"]),
        (["PER", "O"], ["PER", "PER", "O", "PER"]),
    ):
        tagging = task(wordpiece, labels)
        assert tagging.types == ["PER"]
        (encoded,) = tagging.encode([text])
        logits = np.zeros((6, len(labels)))
        logits[np.arange(1, 5), [labels.index(tag) for tag in tags]] = 9
        answer = tagging.decode(text, encoded, [logits])
        assert spans(answer) == [(0, 9, "PER"), (14, 17, "PER")]


def answer_of(*entities: tuple[int, int, str, float]) -> dict[str, Any]:
    names = ("start", "end", "type", "score")
    found = [dict(zip(names, entity, strict=True)) for entity in entities]
    return {"entities": found, "windows": 1, "truncated": False}


def test_mistakes_show_what_was_missed_and_what_was_invented(wordpiece: Tokenizer) -> None:
    tagging = task(wordpiece)
    row = example("Ada lives in Rome.", (0, 3, "PER"), (13, 17, "LOC"))
    right = answer_of((0, 3, "PER", 0.9), (13, 17, "LOC", 0.8))
    assert tagging.mistake(row, right) is None
    wrong = answer_of((0, 3, "PER", 0.9), (4, 9, "PER", 0.7), (13, 18, "LOC", 0.6))
    found = tagging.mistake(row, wrong)
    assert found is not None
    assert (found.truth, found.answer, found.sure) == ("LOC Rome", "PER lives; LOC Rome.", 0.7)
    assert found.marks == ((13, 17, "truth"), (4, 9, "answer"), (13, 18, "answer"))
    nothing = tagging.mistake(row, answer_of())
    assert nothing is not None
    assert (nothing.answer, nothing.sure) == ("nothing", None)
    assert nothing.badness < found.badness
    assert tagging.constant([answer_of(), answer_of()])
    assert not tagging.constant([answer_of(), right])


def test_scores_are_made_honest_without_changing_what_is_found(
    wordpiece: Tokenizer, tmp_path: Path
) -> None:
    tagging = task(wordpiece)
    draw = random.Random(0)
    rows, said = [], []
    for _ in range(400):  # sure at 0.97, right in 7 of 10
        truth = ((0, 3, "PER"),) if draw.random() < 0.7 else ((0, 3, "LOC"),)
        rows.append(example("Ada lives in Rome.", *truth))
        said.append(answer_of((0, 3, "PER", 0.97)))
    before = measure(tagging, zip(rows, said, strict=True))
    calibration, decided = calibrated(tagging, rows, said)
    after = measure(tagging, zip(rows, decided, strict=True))
    assert before["expected_calibration_error"]["value"] > 0.2
    assert after["expected_calibration_error"]["value"] < 0.05
    assert before["micro"] == after["micro"]
    assert 0.6 < tagging.decide(said[0], calibration)["entities"][0]["score"] < 0.8
    assert tagging.calibrate(rows[:1], said[:1]) == {}
    assert {path.name for path, _ in tagging.pictures(after, tmp_path)} == {
        "f1.png", "reliability.png"}  # fmt: skip


def test_rows_that_cannot_be_measured(wordpiece: Tokenizer) -> None:
    tagging = task(wordpiece)
    tagging.check(example("Ada", (0, 3, "PER")))
    with pytest.raises(DataError, match="does not know the label 'ORG'"):
        tagging.check(example("Ada", (0, 3, "ORG")))
    with pytest.raises(DataError, match="no label"):
        tagging.check(replace(example("Ada"), truth=None))
    with pytest.raises(DataError, match="No row has an entity"):
        Tagging.labels_of([example("Ada")], "here")


# From file to file ------------------------------------------------------------------------------


def command(*arguments: str | Path) -> None:
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    assert stop.value.code == 0


def test_from_columns_to_entities(
    tokenizer: Tokenizer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_model(tmp_path / "start", checkpoint(tokenizer, ["a", "b"]))
    draw = random.Random(0)
    lines = []
    for _ in range(150):
        words = [draw.choice(["the", "a", "old", "near", "often"]) for _ in range(5)]
        words[draw.randrange(5)] = draw.choice(["bird", "river"])
        kinds = {"bird": "B-ANIMAL", "river": "B-PLACE"}
        lines += [f"{word}\tX\t{kinds.get(word, 'O')}" for word in words] + [""]
    train = tmp_path / "rows.conll"
    train.write_text("\n".join(lines), encoding="utf-8")
    run = tmp_path / "run"
    command("check", train, "--task", "tagging")
    assert "ANIMAL: " in capsys.readouterr().out
    command("finetune", train, "--model", tmp_path / "start", "--task", "tagging", "--out", run,
            "epochs=8", "learning_rate=5e-3", "batch_size=16", "precision=fp32")  # fmt: skip
    figures = json.loads((run / "metrics.json").read_text("utf-8"))
    assert figures["micro"]["f1"]["value"] > 0.9
    for name in ("plots/f1.png", "report.html", "most_wrong.jsonl", "predictions_dev.jsonl"):
        assert (run / name).is_file(), name
    texts = tmp_path / "texts.jsonl"
    texts.write_text('{"text": "the old bird, near a river."}\n', encoding="utf-8")
    command("predict", run, texts, "-o", tmp_path / "out.jsonl")
    (line,) = (tmp_path / "out.jsonl").read_text("utf-8").splitlines()
    found = json.loads(line)["entities"]
    assert [(e["text"], e["type"]) for e in found] == [("bird", "ANIMAL"), ("river", "PLACE")]
    command("predict", run, train, "-o", tmp_path / "tokens.jsonl")
    first = json.loads((tmp_path / "tokens.jsonl").read_text("utf-8").splitlines()[0])
    assert first["text"].split()[first["entities"][0]["tokens"][0]] in ("bird", "river")
    capsys.readouterr()
    command("evaluate", run, train, "--json")
    assert json.loads(capsys.readouterr().out)["micro"]["f1"]["value"] > 0.9
