"""bert compress --to int8: what passes, what is left out of it, what is refused."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from bert.checkpoint import Checkpoint, read_model, write_model
from bert.compress.sensitivity import damages, keeps, read_batches, with_kept
from bert.errors import ModelError, UsageError
from bert.inference.int8 import encoder_of, is_int8, kept_of, products, quantize
from bert.predictor import Predictor
from bert.recipes.compress import CompressSettings, compress

WORDS = ["bird", "horse", "fish", "snake", "sheep", "rain", "wind", "storm", "frost", "sunshine"]


@pytest.fixture(scope="module")
def classifier(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two labels, told by random weights that are large enough for texts to differ."""
    torch.manual_seed(1)
    checkpoint = read_model(tiny_model, kind="sequence", labels=["no", "yes"])
    with torch.no_grad():
        checkpoint.model.bert.embeddings.word.weight.normal_()
        for product in products(checkpoint.model).values():
            product.weight.normal_(std=0.1)
        checkpoint.model.bert.pooler.weight.normal_(std=0.2)
        checkpoint.model.classifier.weight.normal_()
    return save(checkpoint, tmp_path_factory.mktemp("classifier") / "model")


def save(checkpoint: Checkpoint, directory: Path) -> Path:
    checkpoint.facts = {"task": "classification", "text_columns": ["text"]}
    write_model(directory, checkpoint)
    return directory


def drawn(count: int) -> list[str]:
    draw = np.random.default_rng(0)
    return [" ".join(draw.choice(WORDS, draw.integers(2, 12))) for _ in range(count)]


def margins(model: Path, texts: list[str]) -> np.ndarray:
    """By how much yes is likelier than no, as a logit."""
    given = [answer["probabilities"] for answer in Predictor(model)(texts)]
    return np.array([np.log(row["yes"]) - np.log(row["no"]) for row in given])


def rows_of(path: Path, texts: list[str], yes: np.ndarray) -> Path:
    """Rows that the model answers without a mistake, because the answers are its own."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        writer.writerows(zip(texts, np.where(yes, "yes", "no"), strict=True))
    return path


def centred(model: Path, directory: Path) -> Path:
    """The same model, as likely to say yes as no."""
    checkpoint = read_model(model)
    middle = float(np.median(margins(model, drawn(300))))
    with torch.no_grad():
        checkpoint.model.classifier.bias += torch.tensor([middle, -middle]) / 2
    return save(checkpoint, directory)


def to_int8(model: Path, rows: Path, out: Path, **values: Any) -> Path:
    settings = {"run": str(model), "to": "int8", "data": str(rows), **values}
    return compress(CompressSettings.of(settings), out)


def test_a_model_in_int8_is_used_like_any_other(classifier: Path, tmp_path: Path) -> None:
    model = centred(classifier, tmp_path / "plain")
    texts = drawn(200)
    told = margins(model, texts)
    clear = np.abs(told) > np.median(np.abs(told))
    texts = [text for text, far in zip(texts, clear, strict=True) if far]
    rows = rows_of(tmp_path / "rows.csv", texts, told[clear] > 0)
    out = to_int8(model, rows, tmp_path / "out", max_drop=2)
    made = read_model(out).model
    assert is_int8(made)
    facts = json.loads((out / "bert.json").read_text("utf-8"))["compressed"]
    assert kept_of(made) == facts.get("kept", [])
    assert facts["figures"]["int8"]["score"]["value"] >= 0.98
    assert facts["figures"]["int8"]["bytes"] < facts["figures"]["original"]["bytes"]
    again = margins(out, texts)
    assert np.corrcoef(told[clear], again)[0, 1] > 0.99
    with pytest.raises(UsageError, match="in int8 already"):
        to_int8(out, rows, tmp_path / "again")


def test_products_that_int8_breaks_are_left_as_they_were(
    classifier: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = read_model(classifier)
    feed_forward = encoder_of(checkpoint.model).layers[1].feed_forward
    with torch.no_grad():
        feed_forward.intermediate.bias[0] = -1e3  # a neuron that is never active
        feed_forward.output.weight[:, 0] = 1e6  # whose weights leave nothing of the others
        feed_forward.output.weight[:, 1:] *= 10
    model = centred(save(checkpoint, tmp_path / "planted"), tmp_path / "plain")
    texts = drawn(200)
    rows = rows_of(tmp_path / "rows.csv", texts, margins(model, texts) > 0)
    out = to_int8(model, rows, tmp_path / "out", max_drop=5)
    assert "layers.1.feed_forward.output" in capsys.readouterr().err
    kept = kept_of(read_model(out).model)
    assert kept[0] == "layers.1.feed_forward.output" or "layers.1.feed_forward.output" in kept
    assert len(kept) <= 2
    facts = json.loads((out / "bert.json").read_text("utf-8"))["compressed"]
    assert sorted(facts["kept"]) == sorted(kept)


def test_a_model_that_int8_breaks_is_refused(classifier: Path, tmp_path: Path) -> None:
    model = centred(classifier, tmp_path / "plain")
    texts = drawn(2000)
    told = margins(model, texts)
    close = np.argsort(np.abs(told))[:60]  # whose answers hang on the last digits
    rows = rows_of(tmp_path / "rows.csv", [texts[i] for i in close], told[close] > 0)
    (tmp_path / "folder").mkdir()
    with pytest.raises(ModelError, match="may be lost, so nothing is written") as found:
        to_int8(model, rows, tmp_path / "folder" / "out")
    assert "int8 without 4 of 8 products" in str(found.value)
    assert "1.0000" in str(found.value)
    assert list((tmp_path / "folder").iterdir()) == []


def test_damage_is_that_of_each_product_alone(classifier: Path) -> None:
    predictor = Predictor(classifier)
    task, model = predictor.task, read_model(classifier).model
    batches = read_batches(task, drawn(50), predictor.device)
    assert sum(len(tokens.packed.lengths) for tokens in batches) == 50
    rounded = quantize(model, batches)
    damage = damages(task, model, rounded, batches)
    assert list(damage) == list(products(model))
    assert all(value > 0 for value in damage.values())

    def said(network: torch.nn.Module) -> Tensor:
        return torch.cat([network.logits(tokens) for tokens in batches])  # type: ignore[operator]

    name = "layers.0.feed_forward.intermediate"
    others = [other for other in products(model) if other != name]
    with torch.inference_mode():
        alone = said(with_kept(model, rounded, others)) - said(model)
    assert float(alone.square().mean()) == pytest.approx(damage[name], rel=1e-4)
    # Neither has been changed.
    assert not is_int8(model)
    assert kept_of(rounded) == []
    attempts = list(keeps(damage))
    assert [len(kept) for kept in attempts] == [1, 2, 4]
    assert attempts[0] == [max(damage, key=lambda other: damage[other])]
    assert attempts[1][:1] == attempts[0]
