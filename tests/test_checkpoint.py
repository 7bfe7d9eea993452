"""A model directory: damaged, foreign, hostile, replaced."""

from __future__ import annotations

import json
import pickle
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from bert.checkpoint import Checkpoint, load, read_model, write_model
from bert.errors import ModelError
from bert.families.family import load_family
from bert.hub import find_model
from bert.model.config import BertConfig
from bert.text.tokenizer import Tokenizer

CONFIG = BertConfig(
    vocab_size=40,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=32,
    max_position_embeddings=16,
)


def checkpoint(
    kind: str = "pretraining", labels: tuple[str, ...] = (), config: BertConfig = CONFIG
) -> Checkpoint:
    torch.manual_seed(1)
    return Checkpoint(
        load_family("bert").build(kind, config, len(labels) or 2),
        kind,
        load_family("bert"),
        list(labels),
    )


@pytest.fixture
def model(tmp_path: Path) -> Path:
    write_model(tmp_path / "model", checkpoint())
    return tmp_path / "model"


def change(directory: Path, **values: Any) -> None:
    path = directory / "config.json"
    stored = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**stored, **values}), encoding="utf-8")


def told(directory: Path, *words: str, **arguments: Any) -> None:
    """Reading fails with a ModelError that has these words and says where."""
    with pytest.raises(ModelError) as caught:
        read_model(directory, **{"tokenizer": False, **arguments})
    assert caught.value.exit_code == 4
    assert caught.value.where
    assert str(directory) in caught.value.where
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_truncated_weights(model: Path, share: float) -> None:
    path = model / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    told(model, "damaged")


def test_weights_that_are_no_weights(model: Path) -> None:
    (model / "model.safetensors").write_bytes(b"<html>not found</html>" * 100)
    told(model, "damaged")


def test_missing_weights(model: Path) -> None:
    (model / "model.safetensors").unlink()
    told(model, "model.safetensors")


class Canary:
    """Unpickling it writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


def test_a_pickle_is_never_opened(model: Path, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    (model / "model.safetensors").unlink()
    (model / "pytorch_model.bin").write_bytes(pickle.dumps(Canary(canary)))
    told(model, "pytorch_model.bin", "pickle", "safetensors")
    assert not canary.exists()
    pickle.loads((model / "pytorch_model.bin").read_bytes())
    assert canary.exists()  # the trap would have sprung


def test_wrong_shapes(model: Path) -> None:
    change(model, intermediate_size=48)
    told(model, "48", "32", "config.json")


def test_labels_of_another_number_than_the_head(tmp_path: Path) -> None:
    write_model(tmp_path / "m", checkpoint("sequence", ("a", "b", "c")))
    change(tmp_path / "m", id2label={"0": "a", "1": "b"})
    told(tmp_path / "m", "classifier")


def test_a_part_of_the_encoder_is_missing(model: Path) -> None:
    path = model / "model.safetensors"
    weights = load_file(path)
    name = "bert.encoder.layer.1.attention.self.query.weight"
    del weights[name]
    save_file(weights, path)
    told(model, name)
    del weights["bert.encoder.layer.1.intermediate.dense.bias"]
    del weights["bert.encoder.layer.1.attention.self.key.weight"]
    del weights["bert.encoder.layer.1.attention.self.value.weight"]
    save_file(weights, path)
    told(model, "lack 2")


def test_more_layers_than_weights(model: Path) -> None:
    change(model, num_hidden_layers=3)
    told(model, "lack")


def test_integer_weights(model: Path) -> None:
    path = model / "model.safetensors"
    weights = load_file(path)
    name = "bert.pooler.dense.bias"
    weights[name] = weights[name].to(torch.int32)
    save_file(weights, path)
    told(model, "int32")


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[1, 2]", b"\xff\xfe\x00", b"null", b"[" * 100_000]
)
def test_bad_json(model: Path, content: bytes) -> None:
    (model / "config.json").write_bytes(content)
    told(model, "config.json")


@pytest.mark.parametrize("content", [b"{", b"[]"])
def test_bad_facts(model: Path, content: bytes) -> None:
    (model / "bert.json").write_bytes(content)
    told(model, "bert.json")


@pytest.mark.parametrize("name", ["gpt2", "family", "__init__", "os", "../evil", "bert.cli", None])
def test_an_unknown_family_imports_nothing(model: Path, name: str | None) -> None:
    change(model, model_type=name)
    before = set(sys.modules)
    told(model, "bert")
    assert set(sys.modules) == before


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ({"position_embedding_type": "relative_key"}, "relative_key"),
        ({"is_decoder": True}, "is_decoder"),
        ({"add_cross_attention": True}, "add_cross_attention"),
        ({"hidden_size": "32"}, "hidden_size"),
        ({"hidden_size": None}, "hidden_size"),
        ({"num_attention_heads": 5}, "attention heads"),
        ({"hidden_act": "silu"}, "silu"),
        ({"vocab_size": -1}, "vocab_size"),
        ({"hidden_dropout_prob": 2.0}, "dropout_rate"),
        ({"type_vocab_size": True}, "type_vocab_size"),
    ],
)
def test_configurations_that_cannot_be(model: Path, values: dict[str, Any], word: str) -> None:
    change(model, **values)
    told(model, word, "config.json")


@pytest.mark.parametrize(
    "broken", [{"0": "a", "2": "b"}, {"1": "a", "2": "b"}, ["a", "b"], "ab", 3, {"zero": "a"}]
)
def test_labels_that_are_not_numbered(tmp_path: Path, broken: object) -> None:
    write_model(tmp_path / "m", checkpoint("sequence", ("a", "b")))
    change(tmp_path / "m", id2label=broken)
    told(tmp_path / "m", "id2label")


@pytest.mark.parametrize("architectures", ["BertForMaskedLM", [], [None], None, [3], {"a": 1}])
def test_architectures_in_any_form(model: Path, architectures: object) -> None:
    change(model, architectures=architectures)
    with suppress(ModelError):  # read, or told
        read_model(model, tokenizer=False)


@pytest.mark.parametrize(
    "index",
    [
        {},
        {"weight_map": {}},
        {"weight_map": {"a": "../../secret.safetensors"}},
        {"weight_map": {"a": "/etc/passwd"}},
        {"weight_map": {"a": 3}},
        {"weight_map": {"a": "missing.safetensors"}},
    ],
)
def test_an_index_that_names_other_files(model: Path, index: dict[str, Any]) -> None:
    (model / "model.safetensors").unlink()
    (model / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    told(model)


def test_no_tokenizer(model: Path) -> None:
    told(model, "tokenizer", tokenizer=True)
    (model / "tokenizer.json").write_bytes(b"{}")
    told(model, "tokenizer", tokenizer=True)


def test_a_tokenizer_of_another_model(model: Path, tokenizer: Tokenizer) -> None:
    tokenizer.save(model)
    told(model, str(tokenizer.vocab_size), "40", tokenizer=True)


def test_hub_without_network_names_the_local_way(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError) as caught:
        load("someone/there-is-no-such-model")
    assert "someone/there-is-no-such-model" in caught.value.what
    assert "directory" in (caught.value.fix or "")
    assert len(str(caught.value).splitlines()) == 3


@pytest.mark.parametrize("name", ["./nowhere", "a/b/c", "../x", "", "a b", "https://x.org/m"])
def test_names_that_are_neither_directory_nor_hub_id(name: str, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        with pytest.raises(ModelError):
            find_model(name)


def test_run_folders_are_found(model: Path, tmp_path: Path) -> None:
    assert find_model(model) == model
    assert find_model(tmp_path) == model  # a run folder has model/
    (tmp_path / "unfinished" / "checkpoints" / "step-00000003").mkdir(parents=True)
    with pytest.raises(ModelError, match="--resume"):
        find_model(tmp_path / "unfinished")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match=r"config\.json"):
        find_model(tmp_path / "empty")


def test_a_head_for_other_labels_is_new(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_model(tmp_path / "m", checkpoint("sequence", ("bad", "good")))
    capsys.readouterr()
    same: Any = read_model(tmp_path / "m", kind="sequence", labels=["bad", "good"], tokenizer=False)
    assert "untrained" not in capsys.readouterr().err
    # As many labels, but others: the old head must not be taken for theirs.
    other: Any = read_model(tmp_path / "m", kind="sequence", labels=["cat", "dog"], tokenizer=False)
    assert "New and untrained in this model: classifier." in capsys.readouterr().err
    assert other.labels == ["cat", "dog"]
    assert torch.equal(same.model.bert.pooler.weight, other.model.bert.pooler.weight)
    assert not torch.equal(same.model.classifier.weight, other.model.classifier.weight)
    three: Any = read_model(tmp_path / "m", kind="sequence", labels=list("abc"), tokenizer=False)
    assert three.model.classifier.weight.shape == (3, 32)
    token: Any = read_model(tmp_path / "m", kind="token", labels=["bad", "good"], tokenizer=False)
    assert not torch.equal(same.model.classifier.weight, token.model.classifier.weight)


def test_heads_of_pretraining_are_kept_between_kinds(model: Path) -> None:
    full: Any = load(model)
    words: Any = load(model, kind="masked_lm")
    pairs: Any = load(model, kind="next_sentence")
    assert torch.equal(full.words.dense.weight, words.words.dense.weight)
    assert torch.equal(full.next_sentence.weight, pairs.next_sentence.weight)
    assert not full.training


def test_an_encoder_without_pooler_gets_a_new_one(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = model / "model.safetensors"
    save_file({k: v for k, v in load_file(path).items() if "pooler" not in k}, path)
    capsys.readouterr()
    load(model, kind="masked_lm")
    assert "pooler" not in capsys.readouterr().err
    sequence: Any = load(model, kind="sequence")
    assert "classifier, pooler" in capsys.readouterr().err
    assert sequence.bert.pooler.weight.abs().sum() > 0


def test_writing_fails_midway_and_the_old_stays(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import safetensors.torch

    before = {path.name: path.read_bytes() for path in model.iterdir()}

    def half(tensors: Any, path: Path, **rest: Any) -> None:
        Path(path).write_bytes(b"half")
        raise OSError("The disk is full")

    monkeypatch.setattr(safetensors.torch, "save_file", half)
    with pytest.raises(OSError, match="disk is full"):
        write_model(model, checkpoint("masked_lm"))
    assert {path.name: path.read_bytes() for path in model.iterdir()} == before
    assert [path.name for path in model.parent.iterdir()] == ["model"]
    with pytest.raises(OSError, match="disk is full"):
        write_model(model.parent / "new", checkpoint("masked_lm"))
    assert [path.name for path in model.parent.iterdir()] == ["model"]


def test_the_last_step_of_replacing_fails_and_the_old_stays(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = Path.rename

    def broken(self: Path, target: Path) -> Path:
        if target == model and "-old" not in self.name:
            raise OSError("no")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", broken)
    with pytest.raises(OSError, match="no"):
        write_model(model, checkpoint("masked_lm"))
    monkeypatch.undo()
    assert (model / "config.json").is_file()
    assert [path.name for path in model.parent.iterdir()] == ["model"]


def test_a_model_is_replaced_whole(model: Path, tokenizer: Tokenizer) -> None:
    (model / "stray.txt").write_text("of the old one")
    new = checkpoint("sequence", ("no", "yes"), replace(CONFIG, vocab_size=tokenizer.vocab_size))
    new.tokenizer, new.facts = tokenizer, {"task": "classification", "n": 1}
    write_model(model, new)
    again = read_model(model)
    assert again.labels == ["no", "yes"]
    assert again.facts == new.facts
    assert again.tokenizer is not None
    assert again.tokenizer.encode(["the bird"], 16) == tokenizer.encode(["the bird"], 16)
    assert not (model / "stray.txt").exists()
    assert [path.name for path in model.parent.iterdir()] == ["model"]
    assert model.stat().st_mode & 0o777 == 0o755
    assert (model / "model.safetensors").stat().st_mode & 0o777 == 0o644
