"""What goes into an ONNX file, for every family and head; the exports themselves are slow."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bert.checkpoint import Checkpoint
from bert.compress import onnx as export
from bert.compress.onnx import INPUTS, _difference, _random, _Whole, write_onnx
from bert.errors import ModelError, UsageError
from bert.families.family import family_names, load_family
from bert.pooling import Pooling

SIZES: dict[str, Any] = {
    "vocab_size": 60,
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 80,
    "initializer_range": 0.2,
}
OWN: dict[str, dict[str, Any]] = {
    "modernbert": {"pad_token_id": 1, "local_window": 4},
    "deberta_v2": {"position_buckets": 8, "max_relative_positions": 40},
}
KINDS = [(name, kind) for name in family_names() for kind in load_family(name).heads]


def checkpoint_of(name: str, kind: str, pooling: Pooling | None = None) -> Checkpoint:
    torch.manual_seed(0)
    family = load_family(name)
    config = replace(family.sizes[min(family.sizes)], **{**SIZES, **OWN.get(name, {})})
    model = family.build(kind, config, 3).eval()
    return Checkpoint(model, kind, family, ["a", "b", "c"], pooling=pooling)


class Session:
    """The network itself in the place of onnxruntime."""

    def __init__(self, whole: _Whole) -> None:
        self.whole = whole
        self.shapes: list[tuple[int, ...]] = []

    def run(self, _: None, given: dict[str, Any]) -> list[Any]:
        """As onnxruntime's."""
        self.shapes.append(given["input_ids"].shape)
        with torch.inference_mode():
            return [self.whole(*(torch.from_numpy(given[name]) for name in INPUTS)).numpy()]


@pytest.mark.parametrize(("name", "kind"), KINDS)
def test_a_padded_batch_is_answered_as_a_packed_one(name: str, kind: str) -> None:
    checkpoint = checkpoint_of(name, kind)
    whole = _Whole(checkpoint).eval()
    session = Session(whole)
    assert _difference(session, whole, checkpoint) < 2e-5
    assert len(session.shapes) == export.BATCHES >= 20
    assert max(length for _, length in session.shapes) == checkpoint.config.longest_text
    assert {1} < {batch for batch, _ in session.shapes}


@pytest.mark.parametrize("mode", ["mean", "cls"])
@pytest.mark.parametrize("normalize", [True, False])
def test_vectors_are_pooled_as_the_directory_tells(mode: str, normalize: bool) -> None:
    checkpoint = checkpoint_of("bert", "encoder", Pooling(mode, normalize))
    whole = _Whole(checkpoint).eval()
    assert _difference(Session(whole), whole, checkpoint) < 2e-5
    given = [torch.from_numpy(item) for item in _random(checkpoint, np.array([9, 4]))]
    with torch.inference_mode():
        hidden = checkpoint.model(given[0][1:, :4], given[2][1:, :4])[0]
        wanted = hidden.mean(dim=0) if mode == "mean" else hidden[0]
        wanted = wanted / wanted.norm() if normalize else wanted
        assert torch.allclose(whole(*given)[1], wanted, atol=1e-5)


def test_a_difference_is_seen() -> None:
    checkpoint = checkpoint_of("bert", "token")
    whole = _Whole(checkpoint).eval()
    other = _Whole(checkpoint).eval()
    with torch.no_grad():
        other.network.classifier.bias += 0.5  # type: ignore[union-attr, operator]
    assert _difference(Session(other), whole, checkpoint) == pytest.approx(0.5, abs=1e-4)
    with torch.no_grad():
        other.network.classifier.bias.fill_(torch.nan)  # type: ignore[union-attr, operator]
    assert np.isnan(_difference(Session(other), whole, checkpoint))


def test_random_texts_are_texts() -> None:
    checkpoint = checkpoint_of("bert", "sequence")
    lengths = np.array([1, 30, 7])
    ids, mask, types = _random(checkpoint, lengths)
    assert mask.sum(axis=1).tolist() == lengths.tolist()
    assert ((ids == checkpoint.config.pad_token_id) == (mask == 0)).all()
    assert set(np.unique(types)) == {0, 1}
    assert not types[mask == 0].any()


def test_what_cannot_be_exported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.onnx"
    with pytest.raises(ModelError, match="pooled by max"):
        write_onnx(path, checkpoint_of("bert", "encoder", Pooling("max")))
    with monkeypatch.context() as patch:
        patch.setattr(export, "MOST_BYTES", 1000)
        with pytest.raises(ModelError, match="more than an ONNX file"):
            write_onnx(path, checkpoint_of("bert", "sequence"))
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with pytest.raises(UsageError, match="not installed") as found:
        write_onnx(path, checkpoint_of("bert", "sequence"))
    assert found.value.fix == "pip install 'bertsmith[onnx]'"
    assert not path.exists()


@pytest.mark.slow
@pytest.mark.parametrize(("name", "kind"), KINDS)
def test_onnxruntime_says_the_same(name: str, kind: str, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    assert write_onnx(path, checkpoint_of(name, kind)) < 2e-5
    assert path.stat().st_size > 1000
