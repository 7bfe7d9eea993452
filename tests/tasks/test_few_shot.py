"""Few-shot: a head that reads the mean of all tokens, fitted by regression, as an ordinary one."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

import bert
from bert.checkpoint import Checkpoint, read_model
from bert.data.batches import pack_sequences
from bert.errors import UsageError
from bert.families.family import load_family
from bert.model.heads import BertForSequenceClassification
from bert.tasks.classification import ClassificationOptions
from bert.tasks.embedding import SCALE
from bert.tasks.few_shot import FewShot, alike_by_label, read_mean
from bert.tasks.task import batch_tokens

CPU = torch.device("cpu")
ROWS = FewShot.demo_rows


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_model(
        tmp_path_factory.mktemp("model") / "tiny", tiny.demo_texts(ROWS), "BertModel"
    )


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 9999), st.lists(st.integers(0, 2), min_size=1, max_size=6))
def test_the_loss_is_the_sum_over_pairs_of_pairs(seed: int, labels: list[int]) -> None:
    draw = torch.tensor(np.random.default_rng(seed).normal(size=(len(labels), 4)))
    vectors = torch.nn.functional.normalize(draw, dim=-1)
    pairs = list(itertools.combinations(range(len(labels)), 2))
    near = [float(vectors[i] @ vectors[j]) for i, j in pairs if labels[i] == labels[j]]
    far = [float(vectors[i] @ vectors[j]) for i, j in pairs if labels[i] != labels[j]]
    total = sum(math.exp(SCALE * (b - a)) for a in near for b in far)
    loss, right = alike_by_label(vectors, torch.tensor(labels))
    assert float(loss) == pytest.approx(math.log(1 + total), rel=1e-6, abs=1e-9)
    if near and far:
        assert float(right) == pytest.approx(np.mean([b < a for a in near for b in far]))


@pytest.mark.parametrize("name", ["bert", "roberta", "electra", "distilbert"])
def test_the_head_reads_the_mean_of_the_tokens(name: str) -> None:
    family = load_family(name)
    torch.manual_seed(0)
    network = family.build("sequence", family.size("mini", vocab_size=50), 2).eval()
    assert isinstance(network, BertForSequenceClassification)
    rows = [list(range(5, 12)), [7, 8, 9], [20, 5]]
    tokens = batch_tokens(pack_sequences(rows, [[0] * len(row) for row in rows], range(3)), CPU)
    with torch.no_grad():
        mean = tokens.packed.mean(network.bert.encode(tokens))
        read_mean(network)
        features = network.features(tokens)
    # But for the origin and the scale of each row.
    wanted = (mean - mean.mean(dim=1, keepdim=True)) / mean.std(dim=1, keepdim=True)
    found = (features - features.mean(dim=1, keepdim=True)) / features.std(dim=1, keepdim=True)
    assert torch.nn.functional.cosine_similarity(found, wanted).min() > 0.999
    assert sum(p.requires_grad for n, p in network.named_parameters() if "classifier" in n) == 0


@pytest.mark.parametrize("name", ["albert", "deberta_v2", "modernbert"])
def test_families_of_other_layers_learn_from_what_they_have(name: str) -> None:
    family = load_family(name)
    network = family.build("sequence", family.size("mini", vocab_size=50), 2)
    assert isinstance(network, BertForSequenceClassification)
    layers, before = len(network.bert.layers), network.bert.config
    read_mean(network)
    assert len(network.bert.layers) == layers
    assert network.bert.config.num_hidden_layers == before.num_hidden_layers
    assert network.bert.config.pooling == ("mean" if name == "modernbert" else before.pooling)


def test_it_learns_and_is_an_ordinary_classifier(model: Path, tmp_path: Path) -> None:
    run = tiny.tune(tmp_path, "few_shot", ROWS, model, batch_size=16, epochs=2, learning_rate=1e-3)
    figures = json.loads((run / "metrics.json").read_text("utf-8"))
    assert figures["accuracy"]["value"] == 1.0
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(run / "model").eval()
    assert theirs.config.num_hidden_layers == 3
    read = transformers.AutoTokenizer.from_pretrained(run / "model")
    texts = [row["text"] for row in ROWS]
    with torch.no_grad():
        logits = theirs(**read(texts, padding=True, return_tensors="pt")).logits
    answers = bert.Predictor(run)(texts)
    assert [answer["label"] for answer in answers] == [row["label"] for row in ROWS]
    for answer, row in zip(answers, logits.softmax(dim=-1).tolist(), strict=True):
        assert list(answer["probabilities"].values()) == pytest.approx(row, abs=1e-4)


def begin(directory: Path, labels: list[str]) -> tuple[Checkpoint, FewShot]:
    torch.manual_seed(0)
    checkpoint = read_model(directory, kind="sequence", labels=labels)
    return checkpoint, FewShot(checkpoint)


@pytest.mark.parametrize("labels", [["bad", "good"], ["bad", "fair", "good", "unseen"]])
def test_the_head_is_the_regression(model: Path, tmp_path: Path, labels: list[str]) -> None:
    from sklearn.linear_model import LogisticRegression

    checkpoint, task = begin(model, labels)
    rows = [{**row, "label": labels[i % 3] if len(labels) > 2 else row["label"]}
            for i, row in enumerate(ROWS)]  # fmt: skip
    path = tiny.write_rows(tmp_path / "rows.jsonl", rows)
    examples = list(task.read(path, (), None, labelled=True))
    task.samples(examples)
    task.settle(checkpoint.model, CPU)
    network = checkpoint.model
    assert isinstance(network, BertForSequenceClassification)
    batch = task.batch(task.rows, np.arange(len(rows)), 0, 0)
    tokens = batch_tokens(batch, CPU)
    with torch.no_grad():
        features = network.features(tokens).double().numpy()
        logits = network.logits(tokens)
    middle = features.mean(axis=0)
    scaled = (features - middle) / np.linalg.norm(features - middle, axis=1).mean()
    truth = batch.targets["label"]
    wanted = LogisticRegression(max_iter=1000).fit(scaled, truth).predict_proba(scaled)
    chances = logits.softmax(dim=-1).numpy()
    assert np.allclose(chances[:, : wanted.shape[1]], wanted, atol=1e-3)
    assert np.allclose(chances[:, wanted.shape[1] :], 0, atol=1e-6)


def test_a_written_model_is_not_made_longer(model: Path) -> None:
    checkpoint, _ = begin(model, ["a", "b"])
    assert checkpoint.config.num_hidden_layers == 3
    FewShot(checkpoint)
    assert checkpoint.config.num_hidden_layers == 3


def test_losses_that_it_does_not_know(model: Path) -> None:
    checkpoint = read_model(model, kind="sequence", labels=["a", "b"])
    with pytest.raises(UsageError, match="focal"):
        FewShot(checkpoint, ClassificationOptions(focal=2.0))
