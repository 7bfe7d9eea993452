"""Old, partial and foreign forms of a model directory mean what they meant where they arose."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from oracle import (
    AUTO,
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
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from bert.checkpoint import load, read_model, write_model
from bert.errors import ModelError
from bert.families.deberta_v2 import bucket
from bert.families.family import family_names, load_family
from bert.model.embeddings import sinusoids

transformers = pytest.importorskip("transformers")


@torch.no_grad()
def same_numbers(kind: str, mine: nn.Module, other: Any) -> None:
    given = inputs(other.config, kind, holes=True)
    assert_same(padded_outputs(kind, mine, given), outputs_of_theirs(kind, other, given))


def saved(name: str, kind: str, directory: Path, **changes: Any) -> Any:
    """A model of theirs, written to the directory."""
    model = theirs(name, kind, **changes)
    model.save_pretrained(directory)
    return model


def weights(directory: Path) -> dict[str, Tensor]:
    return load_file(directory / "model.safetensors")


def write_weights(directory: Path, values: dict[str, Tensor]) -> None:
    save_file(
        {key: value.clone() for key, value in values.items()}, directory / "model.safetensors"
    )


def change_config(directory: Path, *without: str, **changes: Any) -> None:
    path = directory / "config.json"
    stored = json.loads(path.read_text(encoding="utf-8"))
    stored = {key: value for key, value in stored.items() if key not in without}
    path.write_text(json.dumps({**stored, **changes}), encoding="utf-8")


@pytest.mark.parametrize("name", family_names())
def test_in_several_files(name: str, tmp_path: Path) -> None:
    model = theirs(name, "sequence")
    model.save_pretrained(tmp_path, max_shard_size="15KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    assert not (tmp_path / "model.safetensors").exists()
    same_numbers("sequence", load(tmp_path), model)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", family_names())
def test_half_precision_is_read_as_fp32(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    theirs(name, "encoder").to(dtype).save_pretrained(tmp_path)
    assert {value.dtype for value in weights(tmp_path).values()} == {dtype}
    model = transformers.AutoModel.from_pretrained(tmp_path, dtype=torch.float32).eval()
    again = load(tmp_path)
    assert {value.dtype for value in again.parameters()} == {torch.float32}
    same_numbers("encoder", again, model)


@pytest.mark.parametrize("name", family_names())
def test_without_the_prefix_and_with_it(name: str, tmp_path: Path) -> None:
    """Weights of an encoder carry the prefix in some files and do without in others."""
    model = saved(name, "masked_lm", tmp_path)
    prefix = load_family(name).prefix
    stored = weights(tmp_path)
    bare = {key.removeprefix(prefix): value for key, value in stored.items()}
    assert bare.keys() != stored.keys()
    write_weights(tmp_path, bare)
    same_numbers("masked_lm", load(tmp_path), model)

    model = saved(name, "encoder", tmp_path)
    write_weights(tmp_path, {prefix + key: value for key, value in weights(tmp_path).items()})
    same_numbers("encoder", load(tmp_path), model)


def test_old_names_of_norms(tmp_path: Path) -> None:
    model = saved("bert", "pretraining", tmp_path)
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): value
        for name, value in weights(tmp_path).items()
    }
    old["bert.embeddings.position_ids"] = torch.arange(20)[None]
    old["cls.predictions.decoder.weight"] = old["bert.embeddings.word_embeddings.weight"]
    assert any(name.endswith("gamma") for name in old)
    write_weights(tmp_path, old)
    same_numbers("pretraining", load(tmp_path), model)


@pytest.mark.parametrize("wanted", ["sequence", "token", "span", "choice", "encoder"])
@pytest.mark.parametrize("name", family_names())
def test_another_head_than_the_one_on_disk(
    name: str, wanted: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The encoder is kept, the head is new, and one sentence says so."""
    model = saved(name, "masked_lm", tmp_path)
    capsys.readouterr()
    checkpoint = read_model(tmp_path, kind=wanted, labels=["a", "b"], tokenizer=False)
    said = capsys.readouterr().err.splitlines()
    assert len(said) == (0 if wanted == "encoder" else 1), said
    assert all(line.startswith("New and untrained in this model: ") for line in said)
    encoder: Any = checkpoint.model if wanted == "encoder" else checkpoint.model.bert
    given = inputs(model.config, "masked_lm", holes=True)
    with torch.no_grad():
        hidden = encoder(given.ids, given.types, given.mask)[given.mask == 1]
        model.base_model.eval()
        expected = model.base_model(
            input_ids=given.ids,
            attention_mask=given.mask,
            **({} if given.types is None else {"token_type_ids": given.types}),
        ).last_hidden_state[given.mask == 1]
    assert_same([hidden], [expected])


@pytest.mark.parametrize("name", [name for name, kind in PAIRS if kind == "pretraining"])
def test_a_head_that_is_not_used_is_no_wall(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of both heads of pretraining one is asked for; the other is passed over."""
    model = saved(name, "pretraining", tmp_path)
    capsys.readouterr()
    words = load(tmp_path, kind="masked_lm")
    assert len(capsys.readouterr().err.splitlines()) <= 1
    given = inputs(model.config, "masked_lm", holes=True)
    with torch.no_grad():
        assert_same(
            padded_outputs("masked_lm", words, given),
            outputs_of_theirs("pretraining", model, given)[:1],
        )


def test_electra_generator_and_discriminator_of_each_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for stored, wanted in (("replaced_token", "masked_lm"), ("masked_lm", "replaced_token")):
        model = saved("electra", stored, tmp_path / stored)
        capsys.readouterr()
        checkpoint = read_model(tmp_path / stored, kind=wanted, tokenizer=False)
        assert capsys.readouterr().err.count("\n") == 1
        write_model(tmp_path / wanted, checkpoint)
        again = read_by_theirs(AUTO[wanted], tmp_path / wanted)
        for key, value in model.electra.state_dict().items():
            assert torch.equal(again.electra.state_dict()[key], value), key
        same_numbers(wanted, checkpoint.model, again)


def test_modernbert_as_the_first_versions_wrote_it(tmp_path: Path) -> None:
    """Flat fields, as the published checkpoints have them, and today's nested ones."""
    changes = {
        "num_hidden_layers": 4,
        "layer_types": ["full_attention", *["sliding_attention"] * 2, "full_attention"],
        "rope_parameters": {
            "full_attention": {"rope_type": "default", "rope_theta": 500.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 20.0},
        },
    }
    model = saved("modernbert", "masked_lm", tmp_path, **changes)
    stored = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    assert {"rope_parameters", "layer_types"} <= set(stored)
    today = read_model(tmp_path, tokenizer=False)
    same_numbers("masked_lm", today.model, model)
    change_config(
        tmp_path,
        "rope_parameters",
        "layer_types",
        global_rope_theta=500.0,
        local_rope_theta=20.0,
        global_attn_every_n_layers=3,
        position_embedding_type="absolute",
        repad_logits_with_grad=False,
        reference_compile=None,
    )
    old = read_model(tmp_path, tokenizer=False)
    assert old.config == today.config
    same_numbers("masked_lm", old.model, model)
    other = theirs("modernbert", "masked_lm", **{**changes, "rope_parameters": None})
    with pytest.raises(AssertionError):  # the bases of the rotation matter
        same_numbers("masked_lm", old.model, other)
    # Where both are given the nested ones count, for transformers too.
    change_config(
        tmp_path,
        layer_types=["full_attention", "sliding_attention"] * 2,
        rope_parameters={
            "full_attention": {"rope_type": "default", "rope_theta": 300.0},
            "sliding_attention": {"rope_type": "default"},
        },
    )
    both = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path).eval()
    same_numbers("masked_lm", load(tmp_path), both)
    change_config(tmp_path, layer_types=["full_attention", *["sliding_attention"] * 2] * 2)
    with pytest.raises(ModelError, match="layer_types"):
        read_model(tmp_path, tokenizer=False)


def test_deberta_word_prediction_as_published(tmp_path: Path) -> None:
    """The checkpoints of version 3 call it lm_predictions.lm_head."""
    for legacy in (True, False):
        model = saved("deberta_v2", "masked_lm", tmp_path, legacy=legacy)
        published = {
            key.replace("cls.predictions.transform.", "lm_predictions.lm_head.").replace(
                "cls.predictions.", "lm_predictions.lm_head."
            ): value
            for key, value in weights(tmp_path).items()
        }
        assert "lm_predictions.lm_head.dense.weight" in published
        # Those of their pretraining's second network, which nothing here uses.
        published["mask_predictions.dense.weight"] = torch.zeros(2, 2)
        write_weights(tmp_path, published)
        checkpoint = read_model(tmp_path, tokenizer=False)
        same_numbers("masked_lm", checkpoint.model, model)
        write_model(tmp_path / "ours", checkpoint)
        again = read_by_theirs(AUTO["masked_lm"], tmp_path / "ours")
        same_numbers("masked_lm", checkpoint.model, again)


@pytest.mark.parametrize(
    ("buckets", "longest"), [(256, 512), (4, S), (8, S), (32, 128), (256, 1024), (50, 333)]
)
def test_deberta_buckets_of_every_distance(buckets: int, longest: int) -> None:
    from transformers.models.deberta_v2.modeling_deberta_v2 import make_log_bucket_position

    distance = torch.arange(-longest + 1, longest)
    expected = make_log_bucket_position(distance, buckets, longest).long()
    assert torch.equal(bucket(distance, buckets, longest), expected)


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        ("albert", {"num_hidden_groups": 2}, "num_hidden_groups"),
        ("albert", {"inner_group_num": 2}, "inner_group_num"),
        ("deberta_v2", {"conv_kernel_size": 3}, "conv_kernel_size"),
        ("deberta_v2", {"share_att_key": False}, "share_att_key"),
        ("deberta_v2", {"pos_att_type": "c2p"}, "pos_att_type"),
        ("deberta_v2", {"position_biased_input": True}, "position_biased_input"),
        ("electra", {"summary_type": "mean"}, "summary_type"),
        ("modernbert", {"mlp_bias": True}, "mlp_bias"),
        ("modernbert", {"attention_bias": True}, "attention_bias"),
        ("modernbert", {"rope_scaling": {"rope_type": "yarn"}}, "rope"),
        ("bert", {"position_embedding_type": "relative_key"}, "position_embedding_type"),
        ("bert", {"is_decoder": True}, "is_decoder"),
        ("bert", {"tie_word_embeddings": False}, "tie_word_embeddings"),
        ("roberta", {"hidden_act": "mish"}, "mish"),
    ],
)
def test_other_arithmetic_is_refused_by_name(
    name: str, changes: dict[str, Any], said: str, tmp_path: Path
) -> None:
    write_model(tmp_path, ours(name, "masked_lm"))
    change_config(tmp_path, **changes)
    with pytest.raises(ModelError, match=said):
        read_model(tmp_path, tokenizer=False)


def test_sinusoidal_positions_go_both_ways(tmp_path: Path) -> None:
    checkpoint = ours("bert", "masked_lm")
    config = replace(checkpoint.config, positions="sinusoidal")
    checkpoint.model = checkpoint.family.build("masked_lm", config).eval()
    write_model(tmp_path, checkpoint)
    stored = weights(tmp_path)
    torch.testing.assert_close(
        stored["bert.embeddings.position_embeddings.weight"], sinusoids(S, 32)
    )
    again: Any = load(tmp_path)
    assert again.bert.config.positions == "sinusoidal"
    assert not again.bert.embeddings.position.weight.requires_grad
    same_numbers("masked_lm", again, read_by_theirs(AUTO["masked_lm"], tmp_path))
