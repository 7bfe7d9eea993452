"""Networks prepared to answer: near to fp32 in every family, whatever the batch mates, and kept."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import bert
from bert.checkpoint import Checkpoint, read_model, write_model
from bert.data.batches import pack_sequences
from bert.errors import ModelError, UsageError
from bert.families.family import family_names, load_family
from bert.inference.int8 import (
    Int8Linear,
    dequantize,
    encoder_of,
    fitted,
    is_int8,
    kept_of,
    products,
    quantize,
)
from bert.inference.prepare import FusedBlock, int8_is_fast, is_prepared, prepare
from bert.model.config import BertConfig
from bert.model.encoder import BERT
from bert.model.layer import PositionwiseFeedForward
from bert.model.packing import Packed, Tokens
from bert.tasks.task import batch_tokens

CPU = torch.device("cpu")
FUSED = {"bert", "roberta", "xlm_roberta", "distilbert", "albert", "electra"}
V, LONGEST = 60, 20
fast_int8 = pytest.mark.skipif(not int8_is_fast(), reason="no instructions for int8")


def tiny(name: str, kind: str = "encoder", **changes: Any) -> nn.Module:
    """A network of a family, with weights that are neither tiny nor all alike."""
    family = load_family(name)
    sizes = dict(
        vocab_size=V, hidden_size=64, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=96, max_position_embeddings=32, **changes,
    )  # fmt: skip
    if name in ("albert", "electra"):
        sizes["embedding_size"] = 32
    config = family.size("mini" if "mini" in family.sizes else "base", **sizes)
    torch.manual_seed(3)
    model = family.build(kind, config, 3).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def tokens(lengths: Sequence[int], seed: int = 1) -> Tokens:
    """Random texts of these lengths."""
    draw = np.random.default_rng(seed)
    ids = [draw.integers(5, V, length).tolist() for length in lengths]
    return batch_tokens(pack_sequences(ids, [[0] * len(row) for row in ids], range(len(ids))), CPU)


def texts(count: int = 12, seed: int = 5) -> Tokens:
    draw = np.random.default_rng(seed)
    return tokens(draw.integers(2, LONGEST, count).tolist(), seed)


def summed(model: nn.Module, given: Tokens) -> Tensor:
    """The mean vector of each text."""
    with torch.inference_mode():
        return given.packed.mean(encoder_of(model).encode(given))


def likeness(first: Tensor, second: Tensor) -> float:
    """The lowest cosine of vectors, their common part taken out, which would hide differences."""
    middle = second.mean(dim=0)
    return float(torch.cosine_similarity(first - middle, second - middle).min())


def in_int8(model: nn.Module, keep: Sequence[str] = ()) -> nn.Module:
    return quantize(model, [texts(40, seed) for seed in (11, 12)], keep)


@pytest.mark.parametrize("name", family_names())
def test_every_family_stays_near_to_fp32(name: str) -> None:
    model = tiny(name)
    given = texts()
    expected = summed(model, given)
    plain = prepare(copy.deepcopy(model), "fp32", CPU)
    assert torch.allclose(summed(plain, given), expected, rtol=0, atol=1e-5)
    half = prepare(copy.deepcopy(model), "bf16", CPU)
    assert isinstance(encoder_of(half).layers[0], FusedBlock) == (name in FUSED)
    found = summed(half, given)
    assert found.dtype == torch.float32
    assert not torch.equal(found, expected)
    assert likeness(found, expected) > 0.999
    eight = in_int8(model)
    reference = summed(eight, given)
    assert likeness(reference, expected) > 0.98
    quick = prepare(copy.deepcopy(eight), "int8", CPU)
    assert is_prepared(quick)
    # The same 8-bit products; only what lies between them is in bf16.
    assert likeness(summed(quick, given), reference) > 0.99


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
def test_batch_mates_hardly_matter(precision: str) -> None:
    model = tiny("bert")
    made = prepare(in_int8(model) if precision == "int8" else model, precision, CPU)
    lengths = [3, 9, 9, 9, 14, 19, 5, 9]
    together = tokens(lengths)
    found = summed(made, together)
    start = 0
    for i, length in enumerate(lengths):
        rows = slice(start, start + length)
        ids, types, places, _ = together
        alone = Tokens(ids[rows], types[rows], places[rows], Packed.of((length,)))
        limit = {"fp32": 1e-5, "bf16": 0.02, "int8": 0.05}[precision]
        assert torch.allclose(summed(made, alone)[0], found[i], rtol=0, atol=limit)
        start += length


def test_runs_of_one_length_need_no_mask() -> None:
    many = tokens([7] * 30 + [8] * 20)
    assert many.packed.runs == ((0, 30, 7), (210, 20, 8))
    few = tokens([7, 8, 9])
    assert few.packed.runs is None
    model = tiny("bert")
    for precision, limit in (("fp32", 1e-5), ("bf16", 0.1)):
        made = prepare(copy.deepcopy(model), precision, CPU)
        expected = summed(model, many)
        assert torch.allclose(summed(made, many), expected, rtol=0, atol=limit)


@pytest.mark.parametrize("activation", ["gelu", "gelu_new", "relu"])
def test_activations_are_fused_as_they_are(activation: str) -> None:
    model = tiny("bert", activation=activation)
    given = texts()
    plain = prepare(copy.deepcopy(model), "fp32", CPU)
    assert torch.allclose(summed(plain, given), summed(model, given), rtol=0, atol=1e-5)


def test_long_texts_take_the_other_attention() -> None:
    config = BertConfig(
        vocab_size=V, hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=512,
    )  # fmt: skip
    torch.manual_seed(1)
    model = BERT(config).eval()
    given = tokens([400, 400, 390])
    for precision, limit in (("fp32", 1e-5), ("bf16", 0.1)):
        made = prepare(copy.deepcopy(model), precision, CPU)
        assert torch.allclose(summed(made, given), summed(model, given), rtol=0, atol=limit)


def test_what_is_kept_stays_as_it_is() -> None:
    model = tiny("bert")
    names = list(products(model))
    assert len(names) == 8
    everything = in_int8(model, names)
    assert not is_int8(everything)
    assert torch.equal(summed(everything, texts()), summed(model, texts()))
    keep = ["layers.1.feed_forward.output", "layers.0.attention.qkv"]
    made = in_int8(model, keep)
    assert sorted(kept_of(made)) == sorted(keep)
    assert likeness(summed(made, texts()), summed(model, texts())) > 0.98
    quick = prepare(made, "int8", CPU)
    assert likeness(summed(quick, texts()), summed(model, texts())) > 0.98
    with pytest.raises(ModelError, match=r"no linear map 'layers\.9"):
        in_int8(model, ["layers.9.attention.qkv"])


def test_without_texts_there_is_no_int8() -> None:
    with pytest.raises(UsageError, match="no texts to calibrate"):
        quantize(tiny("bert"), [])
    with pytest.raises(ModelError, match="no 8-bit weights"):
        prepare(tiny("bert"), "int8", CPU)


def test_outliers_are_migrated() -> None:
    torch.manual_seed(1)
    linear = nn.Linear(64, 32)
    rows = torch.randn(300, 64)
    rows[:, 5] *= 60
    wanted = linear(rows).detach()

    def error(made: Int8Linear) -> float:
        return float((made(rows) - wanted).square().mean())

    with torch.inference_mode():
        assert error(fitted(linear, rows)) < error(fitted(linear, rows, (0.0,))) / 4
    assert error(fitted(linear, rows)) < float(wanted.var()) / 1000


def test_scales_of_the_input_of_the_second_map_are_one() -> None:
    made = in_int8(tiny("bert"))
    for layer in encoder_of(made).layers:
        assert isinstance(layer.feed_forward, PositionwiseFeedForward)
        output = layer.feed_forward.output
        assert isinstance(output, Int8Linear)
        scale = output.input_scale
        assert torch.equal(scale, scale[:1].expand_as(scale))


# ---- on disk


def checkpoint(model: nn.Module, kind: str = "encoder", name: str = "bert") -> Checkpoint:
    labels = ["a", "b", "c"] if kind == "sequence" else []
    return Checkpoint(model, kind, load_family(name), labels)


@pytest.mark.parametrize("name", family_names())
def test_what_is_written_is_read(name: str, tmp_path: Path) -> None:
    kind = "sequence"
    made = in_int8(tiny(name, kind), ["layers.0.attention.output"])
    write_model(tmp_path / "model", checkpoint(made, kind, name))
    found = read_model(tmp_path / "model", tokenizer=False)
    assert is_int8(found.model)
    assert kept_of(found.model) == kept_of(made) == ["layers.0.attention.output"]
    with torch.inference_mode():
        assert torch.equal(found.model.logits(texts()), made.logits(texts()))  # type: ignore[operator]
    assert "quantization_config" not in found.foreign
    write_model(tmp_path / "again", found)
    for part in ("config.json", "model.safetensors"):
        assert (tmp_path / "again" / part).read_bytes() == (tmp_path / "model" / part).read_bytes()


def test_the_layout_on_disk(tmp_path: Path) -> None:
    write_model(tmp_path / "model", checkpoint(in_int8(tiny("bert"))))
    config = json.loads((tmp_path / "model" / "config.json").read_text("utf-8"))
    assert config["quantization_config"] == {
        "quant_method": "bertsmith-int8",
        "modules_to_not_convert": [],
    }
    stored = load_file(tmp_path / "model" / "model.safetensors")
    query = "encoder.layer.0.attention.self.query"
    assert stored[f"{query}.weight"].dtype == torch.int8
    assert stored[f"{query}.weight_scale"].shape == (64,)
    assert stored[f"{query}.input_scale"].shape == (64,)
    assert stored[f"{query}.input_zero_point"].shape == (1,)


def test_in_fp32_it_computes_with_the_rounded_weights(tmp_path: Path) -> None:
    made = in_int8(tiny("bert"))
    plain = prepare(copy.deepcopy(made), "fp32", CPU)
    assert not is_int8(plain)
    expected = summed(dequantize(made), texts())
    assert torch.allclose(summed(plain, texts()), expected, rtol=0, atol=1e-5)
    assert not torch.allclose(summed(made, texts()), expected, rtol=0, atol=1e-5)


def test_to_be_trained_it_is_in_fp32(tmp_path: Path) -> None:
    made = in_int8(tiny("distilbert", "sequence"))
    write_model(tmp_path / "model", checkpoint(made, "sequence", "distilbert"))
    found = read_model(tmp_path / "model", tokenizer=False, trainable=True)
    assert not is_int8(found.model)
    encoder = encoder_of(found.model)
    assert all(product.weight.requires_grad for product in products(encoder).values())
    assert encoder.embeddings.position is not None
    write_model(tmp_path / "again", found)
    assert "quantization_config" not in json.loads((tmp_path / "again/config.json").read_text())


QUERY = "encoder.layer.0.attention.self.query"
CASES: dict[str, tuple[dict[str, Any], str]] = {
    "floats": ({f"{QUERY}.weight": torch.zeros(64, 64)}, "by the configuration 8-bit numbers"),
    "a scale of zero": ({f"{QUERY}.weight_scale": torch.zeros(64)}, "not above zero"),
    "an infinite scale": ({f"{QUERY}.weight_scale": torch.full((64,), torch.inf)}, "infinity"),
    "whole scales": ({f"{QUERY}.weight_scale": torch.ones(64, dtype=torch.int8)}, "torch.int8"),
    "another input": ({f"{QUERY}.input_scale": torch.ones(64)}, "scale the same input"),
    "half a zero point": (
        {f"encoder.layer.0.{part}.input_zero_point": torch.tensor([1.5]) for part in (
            "attention.self.query", "attention.self.key", "attention.self.value")},
        "not a whole number up to 255",
    ),
    "a wrong shape": ({f"{QUERY}.input_scale": torch.ones(63)}, "has shape"),
    "no scale": ({f"{QUERY}.weight_scale": None}, "only a part of|lack"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_what_cannot_be_is_refused(case: str, tmp_path: Path) -> None:
    write_model(tmp_path / "model", checkpoint(in_int8(tiny("bert"))))
    changes, message = CASES[case]
    path = tmp_path / "model" / "model.safetensors"
    stored = {**load_file(path), **changes}
    save_file({name: value for name, value in stored.items() if value is not None}, path)
    with pytest.raises(ModelError, match=message) as caught:
        read_model(tmp_path / "model", tokenizer=False)
    assert "\n" not in caught.value.what
    assert caught.value.fix


@pytest.mark.parametrize(
    ("kept", "message"),
    [
        ("all", "no list of names"),
        ([1], "no list of names"),
        (["layers.7.attention.qkv"], "no linear map"),
        (["embeddings.word"], "no linear map"),
        (["layers.0.attention.qkv"], "torch.int8|lack|describe|floating"),
    ],
)
def test_kept_layers_that_cannot_be_are_refused(kept: Any, message: str, tmp_path: Path) -> None:
    write_model(tmp_path / "model", checkpoint(in_int8(tiny("bert"))))
    path = tmp_path / "model" / "config.json"
    config = json.loads(path.read_text("utf-8"))
    config["quantization_config"]["modules_to_not_convert"] = kept
    path.write_text(json.dumps(config), "utf-8")
    with pytest.raises(ModelError, match=message):
        read_model(tmp_path / "model", tokenizer=False)


@fast_int8
def test_the_quick_product_is_the_plain_one() -> None:
    """The operator computes what ``Int8Linear`` says, to the rounding of bf16."""
    from bert.inference.prepare import Int8Product

    torch.manual_seed(1)
    linear, rows = nn.Linear(64, 48), torch.randn(200, 64)
    made = fitted(linear, rows)
    with torch.inference_mode():
        assert torch.allclose(Int8Product(made)(rows).float(), made(rows), rtol=0.01, atol=0.01)
        # Numbers beyond the range of the calibration are cut, not turned over.
        assert torch.allclose(
            Int8Product(made)(rows * 50).float(), made(rows * 50), rtol=0.01, atol=0.05
        )


def test_reading_a_model_takes_no_compiler(tmp_path: Path) -> None:
    """PyTorch imports its compiler to draw numbers on the device meta, which takes seconds."""
    write_model(tmp_path / "model", checkpoint(tiny("bert", "sequence"), "sequence"))
    code = (
        "import sys, pathlib; from bert.checkpoint import read_model; "
        "read_model(pathlib.Path(sys.argv[1]), tokenizer=False); "
        "assert 'torch._dynamo' not in sys.modules"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "model")]
    subprocess.run(command, check=True, cwd=Path(bert.__file__).parents[1])


def test_memory_does_not_grow_with_every_shape() -> None:
    """Texts of ever new lengths: what is kept for each shape is bounded."""
    code = """
import resource, torch
from bert.inference.prepare import prepare
from bert.model.encoder import BERT
from bert.model.packing import Tokens
model = BERT(vocab_size=9, hidden_size=128, num_hidden_layers=1, num_attention_heads=4,
             intermediate_size=512, max_position_embeddings=512).eval()
model = prepare(model, "bf16", torch.device("cpu"))
def most(lengths):
    with torch.inference_mode():
        for n in lengths:
            zeros = torch.zeros(n, dtype=torch.long).numpy()
            model.encode(Tokens.of(zeros, zeros, torch.arange(n).numpy(), [n], torch.device("cpu")))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
before = most(range(10, 60))
print(most(range(60, 330)) - before)
"""
    command = [sys.executable, "-c", code]
    result = subprocess.run(
        command, check=True, capture_output=True, text=True, cwd=Path(bert.__file__).parents[1]
    )
    assert int(result.stdout) < 100  # MiB; without a bound about 500
