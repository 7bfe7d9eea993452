"""Smaller networks cut out of larger ones: which parts stay, and that others read them."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st

from bert.checkpoint import Checkpoint, read_model, write_model
from bert.compress.shrink import importance, narrowed, smaller, spread
from bert.data.rows import Example
from bert.errors import UsageError
from bert.families.family import family_names, load_family
from bert.inference.int8 import encoder_of
from bert.model.config import BertConfig
from bert.tasks.classification import Classification
from bert.text.tokenizer import Tokenizer

CPU = torch.device("cpu")
SIZES: dict[str, Any] = {
    "vocab_size": 60,
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 40,
    "initializer_range": 0.2,
    "dropout_rate": 0.0,
}


def checkpoint_of(name: str, kind: str = "sequence", **changes: Any) -> Checkpoint:
    torch.manual_seed(0)
    family = load_family(name)
    sizes = {**SIZES, "pad_token_id": 1} if name == "modernbert" else SIZES
    config = replace(family.sizes[min(family.sizes)], **{**sizes, **changes})
    return Checkpoint(family.build(kind, config, 3).eval(), kind, family, ["a", "b", "c"])


@given(st.integers(1, 30), st.data())
def test_layers_are_spread_from_the_first_to_the_last(layers: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, layers))
    chosen = spread(BertConfig(num_hidden_layers=layers), count)
    assert len(chosen) == count
    assert chosen == sorted(set(chosen))
    assert chosen[0] == 0
    if count > 1:
        assert chosen[-1] == layers - 1
        gaps = [b - a for a, b in itertools.pairwise(chosen)]
        assert max(gaps) - min(gaps) <= 1
    if count == layers:
        assert chosen == list(range(layers))


@given(st.integers(1, 30), st.integers(1, 6), st.data())
def test_layers_stay_of_their_kind(layers: int, every: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, layers))
    config = BertConfig(num_hidden_layers=layers, local_window=8, global_every=every)
    chosen = spread(config, count)
    assert chosen == sorted(set(chosen))
    assert len(chosen) == count
    assert chosen[0] == 0  # which alone has no norm before its attention
    if layers >= every * count:
        assert [config.is_local(i) for i in chosen] == [config.is_local(i) for i in range(count)]


@pytest.mark.parametrize("count", [0, 5])
def test_more_layers_than_there_are(count: int) -> None:
    with pytest.raises(UsageError, match="4 layers"):
        spread(BertConfig(num_hidden_layers=4), count)


@given(st.integers(8, 5000), st.floats(0.01, 0.99))
def test_a_narrower_width(width: int, share: float) -> None:
    left = narrowed(width, share)
    assert left % 8 == 0
    assert left <= max(8, width + 4)
    assert abs(left - width * (1 - share)) <= 8


@pytest.mark.parametrize("name", family_names())
def test_others_read_what_is_left(name: str, tmp_path: Path) -> None:
    checkpoint = checkpoint_of(name)
    before = {key: value.clone() for key, value in checkpoint.model.state_dict().items()}
    draw = torch.Generator().manual_seed(0)
    layers = len(encoder_of(checkpoint.model).layers)
    made = smaller(checkpoint, 2, 48, [torch.rand(64, generator=draw) for _ in range(layers)])
    assert all(torch.equal(before[key], now) for key, now in checkpoint.model.state_dict().items())
    write_model(tmp_path / "small", made)
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "small")
    assert theirs.config.num_hidden_layers == 2
    ours = read_model(tmp_path / "small", tokenizer=False)
    assert ours.config.intermediate_size == 48
    ids = torch.randint(5, 60, (3, 12), generator=draw)
    with torch.inference_mode():
        expected = theirs.eval()(ids, attention_mask=torch.ones_like(ids)).logits
        assert torch.allclose(ours.model(ids), expected, atol=1e-5)


def task_of(checkpoint: Checkpoint, tokenizer: Tokenizer) -> tuple[Classification, list[Any]]:
    checkpoint.tokenizer = tokenizer
    task = Classification(checkpoint)
    words = ["the small bird", "an old house under the wind", "cold river, bright stone", "tree"]
    return task, task.samples(
        [Example(text, "abc"[i % 3], f"rows:{i}") for i, text in enumerate(words * 5)]
    )


@pytest.mark.parametrize("name", ["bert", "modernbert", "albert", "deberta_v2"])
def test_neurons_that_do_nothing_are_the_ones_removed(name: str, tokenizer: Tokenizer) -> None:
    checkpoint = checkpoint_of(name, vocab_size=tokenizer.vocab_size)
    idle = torch.arange(0, 64, 4)  # a quarter of them
    with torch.no_grad():
        for layer in encoder_of(checkpoint.model).layers:
            layer.feed_forward.output.weight[:, idle] = 0
    task, samples = task_of(checkpoint, tokenizer)
    scores = importance(task, checkpoint.model, samples, CPU)
    for score in scores:
        assert score.shape == (64,)
        assert not score[idle].any()
        assert (score > 0).sum() == 48
    made = smaller(checkpoint, None, 48, scores).model
    ids = torch.randint(5, 60, (3, 12), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert torch.allclose(made(ids), checkpoint.model(ids), atol=1e-5)


def test_importance_is_what_removal_changes_to_first_order(tokenizer: Tokenizer) -> None:
    checkpoint = checkpoint_of("bert", vocab_size=tokenizer.vocab_size)
    task, samples = task_of(checkpoint, tokenizer)
    samples = samples[:4]  # one small batch
    scores = importance(task, checkpoint.model, samples, CPU)
    batch = task.batch(samples, [0, 1, 2, 3], 0, 0)  # type: ignore[arg-type]

    def loss() -> float:
        with torch.no_grad():
            return float(task.losses(checkpoint.model, batch, CPU).losses["label"].double())

    weight = encoder_of(checkpoint.model).layers[1].feed_forward.output.weight
    for neuron in scores[1].topk(3).indices.tolist():
        kept = weight[:, neuron].detach().clone()
        ends = []
        for scale in (1.02, 0.98):
            with torch.no_grad():
                weight[:, neuron] = scale * kept
            ends.append(loss())
        with torch.no_grad():
            weight[:, neuron] = kept
        assert abs(ends[0] - ends[1]) / 0.04 == pytest.approx(float(scores[1][neuron]), rel=0.05)
    assert all(not layer.feed_forward.output._forward_pre_hooks
               for layer in encoder_of(checkpoint.model).layers)  # fmt: skip
