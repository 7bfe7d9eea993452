"""Directories go both ways between us and transformers, and nothing changes on the way."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from oracle import (
    AUTO,
    LABELLED,
    LABELS,
    PAIRS,
    S,
    assert_same,
    inputs,
    ours,
    outputs_of_theirs,
    padded_outputs,
    read_by_theirs,
    theirs,
)
from torch import nn

from bert.checkpoint import load, read_model, write_model
from bert.families.family import family_names, load_family
from bert.text.tokenizer import Tokenizer

transformers = pytest.importorskip("transformers")


@torch.no_grad()
def same_numbers(kind: str, mine: nn.Module, other: Any) -> None:
    given = inputs(other.config, kind, holes=True)
    assert_same(padded_outputs(kind, mine, given), outputs_of_theirs(kind, other, given))


def files(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


@pytest.mark.parametrize("name", family_names())
def test_a_family_has_the_heads_that_transformers_has(name: str) -> None:
    model_type = name.replace("_", "-")
    config = type(transformers.AutoConfig.for_model(model_type))
    known = {
        getattr(transformers, auto)._model_mapping[config].__name__
        for kind, auto in AUTO.items()
        if config in getattr(transformers, auto)._model_mapping
    }
    assert {head.architecture for head in load_family(name).heads.values()} == known
    assert load_family(name) is load_family(model_type)


@pytest.mark.parametrize(("name", "kind"), PAIRS)
def test_theirs_read_by_ours(
    name: str, kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = theirs(name, kind)
    model.save_pretrained(tmp_path)
    capsys.readouterr()
    same_numbers(kind, load(tmp_path, kind=kind), model)
    checkpoint = read_model(tmp_path, tokenizer=False)
    assert checkpoint.kind == kind
    assert capsys.readouterr().err == ""
    same_numbers(kind, checkpoint.model, model)


@pytest.mark.parametrize(("name", "kind"), PAIRS)
def test_ours_read_by_theirs(name: str, kind: str, tmp_path: Path) -> None:
    checkpoint = ours(name, kind)
    write_model(tmp_path / "m", checkpoint)
    model = read_by_theirs(AUTO[kind], tmp_path / "m")
    assert type(model).__name__ == checkpoint.family.heads[kind].architecture
    same_numbers(kind, checkpoint.model, model)
    if kind in LABELLED:
        assert model.config.id2label == dict(enumerate(LABELS))
        assert model.config.label2id == {label: i for i, label in enumerate(LABELS)}


@pytest.mark.parametrize(("name", "kind"), PAIRS)
def test_saved_again_is_the_same_bytes(name: str, kind: str, tmp_path: Path) -> None:
    theirs(name, kind).save_pretrained(tmp_path / "theirs")
    for first, source in (
        ("a", ours(name, kind)),
        ("b", read_model(tmp_path / "theirs", tokenizer=False)),
    ):
        write_model(tmp_path / first, source)
        write_model(tmp_path / "again", read_model(tmp_path / first, tokenizer=False))
        assert len(files(tmp_path / first)) == 3
        assert files(tmp_path / first) == files(tmp_path / "again")


@pytest.mark.parametrize("name", family_names())
def test_a_tokenizer_is_saved_again_as_the_same_bytes(
    name: str, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    checkpoint = ours(name, "masked_lm", vocab_size=tokenizer.vocab_size)
    checkpoint.tokenizer = tokenizer
    write_model(tmp_path / "a", checkpoint)
    again = read_model(tmp_path / "a")
    assert again.tokenizer is not None
    texts = ["The small bird sings.", "今天很好", ""]
    assert again.tokenizer.encode(texts, 9) == tokenizer.encode(texts, 9)
    write_model(tmp_path / "b", again)
    assert files(tmp_path / "a") == files(tmp_path / "b")
    assert set(files(tmp_path / "a")) >= {"tokenizer.json", "tokenizer_config.json", "bert.json"}


# Facts about the file and the program that wrote it, not about the model.
OF_THE_FILE = {"transformers_version", "dtype", "architectures", "_name_or_path"}


def meant(stored: dict[str, Any]) -> dict[str, Any]:
    """Their settings without those of the file, each written in one of its ways."""
    plain = {key: value for key, value in stored.items() if key not in OF_THE_FILE}
    if "classifier_dropout" in plain and plain["classifier_dropout"] is None:
        plain["classifier_dropout"] = plain["hidden_dropout_prob"]
    if plain.get("max_relative_positions") == -1:
        plain["max_relative_positions"] = plain["max_position_embeddings"]
    if "pos_att_type" in plain:
        plain["pos_att_type"] = sorted(plain["pos_att_type"])
    return plain


@pytest.mark.parametrize(("name", "kind"), PAIRS)
def test_theirs_through_ours_and_back(name: str, kind: str, tmp_path: Path) -> None:
    """Every weight and every setting of theirs is what it was."""
    model = theirs(name, kind)
    model.save_pretrained(tmp_path / "theirs")
    path = tmp_path / "theirs" / "config.json"
    stored = json.loads(path.read_text(encoding="utf-8"))
    stored |= {"finetuning_task": "stsb", "our_own": {"of": ["anything", 1.5, None]}}
    path.write_text(json.dumps(stored), encoding="utf-8")
    write_model(tmp_path / "ours", read_model(tmp_path / "theirs", tokenizer=False))
    again = read_by_theirs(AUTO[kind], tmp_path / "ours")
    assert set(again.state_dict()) == set(model.state_dict())
    for key, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[key], value), key
    written = json.loads((tmp_path / "ours" / "config.json").read_text(encoding="utf-8"))
    assert written["our_own"] == stored["our_own"]
    before, after = (
        meant(transformers.AutoConfig.from_pretrained(tmp_path / side).to_dict())
        for side in ("theirs", "ours")
    )
    assert {key: after.get(key) for key in before} == before


def test_files_that_are_not_carried_are_named_in_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    theirs("bert", "encoder").save_pretrained(tmp_path / "a")
    (tmp_path / "a" / "notes.json").write_text("[]", encoding="utf-8")
    (tmp_path / "a" / "onnx").mkdir()
    (tmp_path / "a" / "training_args.bin").write_bytes(b"a pickle")
    (tmp_path / "a" / ".gitattributes").write_text("", encoding="utf-8")
    checkpoint = read_model(tmp_path / "a", tokenizer=False)
    capsys.readouterr()
    write_model(tmp_path / "b", checkpoint)
    (line,) = capsys.readouterr().err.splitlines()
    for name in ("notes.json", "onnx", "training_args.bin"):
        assert name in line
        assert not (tmp_path / "b" / name).exists()
    assert ".gitattributes" not in line
    write_model(tmp_path / "c", read_model(tmp_path / "b", tokenizer=False))
    assert capsys.readouterr().err == ""


# Settings with which the arithmetic is another, by family.
SETTINGS = {
    "bert": [
        {"hidden_act": "relu"},
        {"hidden_act": "gelu_new", "layer_norm_eps": 1e-5},
        {"type_vocab_size": 3},
    ],
    "roberta": [
        {"hidden_act": "relu", "layer_norm_eps": 1e-5},
        {"pad_token_id": 3, "max_position_embeddings": S + 4},
    ],
    "xlm_roberta": [{"hidden_act": "gelu_new"}],
    "distilbert": [{"activation": "relu"}, {"sinusoidal_pos_embds": True}],
    "albert": [{"hidden_act": "gelu"}, {"num_hidden_layers": 4, "embedding_size": 8}],
    "electra": [{"embedding_size": 32}, {"hidden_act": "relu"}],
    "modernbert": [
        {"classifier_pooling": "mean"},
        {"num_hidden_layers": 5, "layer_types": None, "local_attention": 8},
        {"norm_eps": 1e-3},
    ],
    "deberta_v2": [
        {"position_buckets": 8},
        {"max_relative_positions": 12},
        {"layer_norm_eps": 1e-3},
    ],
}
VARIANTS = [
    pytest.param(name, kind, changes, id=f"{name}-{kind}-{'-'.join(changes)}")
    for name, choices in SETTINGS.items()
    if name in family_names()
    for changes in choices
    for kind in ("masked_lm", "sequence")
]


@pytest.mark.parametrize(("name", "kind", "changes"), VARIANTS)
def test_other_settings(name: str, kind: str, changes: dict[str, Any], tmp_path: Path) -> None:
    """The setting matters, is read, and is written again."""
    model = theirs(name, kind, **changes)
    model.save_pretrained(tmp_path / "theirs")
    checkpoint = read_model(tmp_path / "theirs", tokenizer=False)
    same_numbers(kind, checkpoint.model, model)
    write_model(tmp_path / "ours", checkpoint)
    same_numbers(kind, checkpoint.model, read_by_theirs(AUTO[kind], tmp_path / "ours"))


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", [name for name, kind in PAIRS if kind == "pretraining"])
def test_one_pretrained_directory_serves_every_class_of_theirs(name: str, tmp_path: Path) -> None:
    checkpoint = ours(name, "pretraining")
    write_model(tmp_path, checkpoint)
    words, both, sequence = (
        getattr(transformers, AUTO[kind]).from_pretrained(tmp_path).eval()
        for kind in ("masked_lm", "pretraining", "sequence")
    )
    given = inputs(both.config, "pretraining", holes=True)
    with torch.no_grad():
        expected = padded_outputs("pretraining", checkpoint.model, given)
        assert_same(expected[:1], outputs_of_theirs("masked_lm", words, given))
        assert_same(expected, outputs_of_theirs("pretraining", both, given))
    for key, value in both.base_model.state_dict().items():
        assert torch.equal(sequence.base_model.state_dict()[key], value), key


@pytest.mark.parametrize("name", family_names())
def test_config_json_keeps_no_setting_that_theirs_would_misread(name: str, tmp_path: Path) -> None:
    checkpoint = ours(name, "sequence")
    config = replace(checkpoint.config, dropout_rate=0.15, attention_dropout_rate=0.25)
    checkpoint.model = checkpoint.family.build("sequence", config, len(LABELS))
    write_model(tmp_path, checkpoint)
    assert read_model(tmp_path, tokenizer=False).config == checkpoint.config
    stored = transformers.AutoConfig.from_pretrained(tmp_path)
    assert stored.max_position_embeddings == S or stored.max_position_embeddings == S + 2
    rates = [value for key, value in stored.to_dict().items() if "drop" in key]
    assert 0.15 in rates
    assert 0.25 in rates
