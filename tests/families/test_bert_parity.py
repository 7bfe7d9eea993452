"""Ours against randomly initialised ``transformers`` models, in both directions, offline."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from bert.checkpoint import Checkpoint, build, load, read_model, write_model
from bert.families.family import load_family
from bert.model.config import BertConfig
from bert.model.embeddings import sinusoids
from bert.model.heads import BertForPreTraining
from bert.model.packing import pack
from bert.text.tokenizer import Tokenizer

transformers = pytest.importorskip("transformers")

V, H, S, LABELS = 60, 32, 14, 3
CLASSES = {
    "encoder": "BertModel",
    "pretraining": "BertForPreTraining",
    "masked_lm": "BertForMaskedLM",
    "next_sentence": "BertForNextSentencePrediction",
    "sequence": "BertForSequenceClassification",
    "token": "BertForTokenClassification",
    "span": "BertForQuestionAnswering",
    "choice": "BertForMultipleChoice",
}
AUTO = {
    "encoder": "AutoModel",
    "pretraining": "AutoModelForPreTraining",
    "masked_lm": "AutoModelForMaskedLM",
    "next_sentence": "AutoModelForNextSentencePrediction",
    "sequence": "AutoModelForSequenceClassification",
    "token": "AutoModelForTokenClassification",
    "span": "AutoModelForQuestionAnswering",
    "choice": "AutoModelForMultipleChoice",
}
KINDS = sorted(CLASSES)


def theirs(kind: str, **changes: Any) -> nn.Module:
    """A tiny model of theirs, all of whose weights are random and large enough to matter."""
    torch.manual_seed(2)
    config = transformers.BertConfig(
        vocab_size=V,
        hidden_size=H,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=40,
        max_position_embeddings=20,
        num_labels=LABELS if kind in ("sequence", "token") else 2,
        **changes,
    )
    model: nn.Module = getattr(transformers, CLASSES[kind])(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


def ours(kind: str, **changes: Any) -> Checkpoint:
    torch.manual_seed(4)
    config = BertConfig(
        vocab_size=V,
        hidden_size=H,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=40,
        max_position_embeddings=20,
        **changes,
    )
    model = build(kind, config, LABELS).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    labels = ["none", "some", "all"] if kind in ("sequence", "token") else []
    return Checkpoint(model, kind, load_family("bert"), labels, facts={"task": "x"})


def batch(kind: str) -> tuple[Tensor, Tensor, Tensor]:
    """Random tokens, types and masks with holes; the first token, which is pooled, is real."""
    draw = torch.Generator().manual_seed(8)
    shape = (3, 2, S) if kind == "choice" else (5, S)
    mask = torch.rand(shape, generator=draw) < 0.7
    mask[..., 0] = True
    return (
        torch.randint(0, V, shape, generator=draw),
        torch.randint(0, 2, shape, generator=draw),
        mask.long(),
    )


@torch.no_grad()
def outputs_of_theirs(kind: str, model: nn.Module) -> list[Tensor]:
    ids, types, mask = batch(kind)
    out = model(input_ids=ids, token_type_ids=types, attention_mask=mask)
    if kind == "encoder":
        return [out.last_hidden_state[mask == 1], out.pooler_output]
    if kind == "pretraining":
        return [out.prediction_logits[mask == 1], out.seq_relationship_logits]
    if kind == "span":
        return [torch.stack([out.start_logits, out.end_logits], dim=-1)[mask == 1]]
    return [out.logits[mask == 1] if kind in ("masked_lm", "token") else out.logits]


@torch.no_grad()
def outputs_of_ours(kind: str, model: nn.Module) -> list[Tensor]:
    ids, types, mask = batch(kind)
    out = model(ids, types, mask)
    result = [out[mask == 1] if kind not in ("next_sentence", "sequence", "choice") else out]
    if kind in ("encoder", "pretraining"):
        tokens, _ = pack(ids, types, mask)
        encoder: Any = model if kind == "encoder" else model.bert
        hidden = encoder.encode(tokens)
        if isinstance(model, BertForPreTraining):
            result.append(model.next_sentence_logits(hidden, tokens))
        else:
            result.append(encoder.pool(hidden, tokens))
    return result


def assert_same(kind: str, mine: nn.Module, other: nn.Module) -> None:
    for a, b in zip(outputs_of_ours(kind, mine), outputs_of_theirs(kind, other), strict=True):
        assert a.shape == b.shape
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def read_by_theirs(name: str, directory: Path) -> Any:
    """Read by transformers, which must neither miss a weight nor leave one, but the pooler.

    Their classes without a pooler pass over it, in their own pretrained models too.
    """
    model, report = getattr(transformers, name).from_pretrained(directory, output_loading_info=True)
    assert not report["missing_keys"]
    assert all(name.startswith("bert.pooler.") for name in report["unexpected_keys"])
    assert not report["mismatched_keys"]
    return model.eval()


@pytest.mark.parametrize("kind", KINDS)
def test_theirs_read_by_ours(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = theirs(kind)
    model.save_pretrained(tmp_path)  # type: ignore[operator]
    assert_same(kind, load(tmp_path, kind=kind), model)
    assert_same(kind, load(tmp_path), model)
    assert "untrained" not in capsys.readouterr().err


@pytest.mark.parametrize("kind", KINDS)
def test_ours_read_by_theirs(kind: str, tmp_path: Path) -> None:
    checkpoint = ours(kind)
    write_model(tmp_path / "m", checkpoint)
    model = read_by_theirs(AUTO[kind], tmp_path / "m")
    assert type(model).__name__ == CLASSES[kind]
    assert_same(kind, checkpoint.model, model)
    if checkpoint.labels:
        assert model.config.id2label == {0: "none", 1: "some", 2: "all"}
        assert model.config.label2id == {"none": 0, "some": 1, "all": 2}


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_one_pretrained_directory_serves_every_class_of_theirs(tmp_path: Path) -> None:
    checkpoint = ours("pretraining")
    write_model(tmp_path, checkpoint)
    words, both = (
        getattr(transformers, name).from_pretrained(tmp_path).eval()
        for name in ("AutoModelForMaskedLM", "AutoModelForPreTraining")
    )
    expected = outputs_of_ours("pretraining", checkpoint.model)
    torch.testing.assert_close(outputs_of_theirs("masked_lm", words)[0], expected[0])
    assert_same("pretraining", checkpoint.model, both)
    sequence = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    for name, value in both.bert.state_dict().items():
        assert torch.equal(sequence.bert.state_dict()[name], value), name


@pytest.mark.parametrize("kind", KINDS)
def test_saved_again_is_the_same_bytes(kind: str, tmp_path: Path) -> None:
    write_model(tmp_path / "a", ours(kind))
    write_model(tmp_path / "b", read_model(tmp_path / "a", tokenizer=False))
    for name in ("model.safetensors", "config.json", "bert.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name


def test_theirs_through_ours_and_back(tmp_path: Path) -> None:
    model = theirs("pretraining", hidden_act="gelu_new", layer_norm_eps=1e-5)
    model.save_pretrained(tmp_path / "theirs")  # type: ignore[operator]
    write_model(tmp_path / "ours", read_model(tmp_path / "theirs", tokenizer=False))
    again = read_by_theirs("AutoModelForPreTraining", tmp_path / "ours")
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name
    assert again.config.hidden_act == "gelu_new"
    assert again.config.layer_norm_eps == 1e-5


@pytest.mark.parametrize("activation", ["gelu_new", "relu"])
def test_other_activations(activation: str, tmp_path: Path) -> None:
    model = theirs("masked_lm", hidden_act=activation)
    model.save_pretrained(tmp_path)  # type: ignore[operator]
    assert_same("masked_lm", load(tmp_path), model)


def test_old_names_of_norms_and_no_prefix(tmp_path: Path) -> None:
    model = theirs("pretraining")
    model.save_pretrained(tmp_path)  # type: ignore[operator]
    path = tmp_path / "model.safetensors"
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): value
        for name, value in load_file(path).items()
    }
    old["bert.embeddings.position_ids"] = torch.arange(20)[None]
    old["cls.predictions.decoder.weight"] = old["bert.embeddings.word_embeddings.weight"].clone()
    assert any(name.endswith("gamma") for name in old)
    save_file(old, path)
    assert_same("pretraining", load(tmp_path), model)

    bare = {name.removeprefix("bert."): value for name, value in old.items()}
    save_file(bare, path)
    assert_same("pretraining", load(tmp_path), model)


def test_in_several_files(tmp_path: Path) -> None:
    model = theirs("sequence")
    model.save_pretrained(tmp_path, max_shard_size="20KB")  # type: ignore[operator]
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    assert_same("sequence", load(tmp_path), model)


def test_sinusoidal_positions_go_both_ways(tmp_path: Path) -> None:
    checkpoint = ours("masked_lm", positions="sinusoidal")
    write_model(tmp_path, checkpoint)
    stored = load_file(tmp_path / "model.safetensors")
    torch.testing.assert_close(
        stored["bert.embeddings.position_embeddings.weight"], sinusoids(20, H)
    )
    again: Any = load(tmp_path)
    assert again.bert.config.positions == "sinusoidal"
    assert not again.bert.embeddings.position.weight.requires_grad
    assert_same("masked_lm", again, read_by_theirs("AutoModelForMaskedLM", tmp_path))


def test_half_precision_is_read_as_fp32(tmp_path: Path) -> None:
    model = theirs("encoder").to(torch.bfloat16)
    model.save_pretrained(tmp_path)  # type: ignore[operator]
    again = load(tmp_path)
    assert {p.dtype for p in again.parameters()} == {torch.float32}
    assert_same("encoder", again, model.float())


TEXTS = [
    "The bird sings near the old river.",
    "unheardof zebra, 'quoted' -- and 3.14% of $5!",
    "今天天气很好，我们去公园。",
    "mixed 今天 words 好 here",
    "emoji \U0001f600 and \U0001f468\u200d\U0001f469\u200d\U0001f467 family",
    "Café NAÏVE déjà vu — ÉCOLE",
    "cafe\u0301 decomposed, zero\u200bwidth, tab\tand\nline",
    "the [MASK] sings [SEP] near [UNK]",
    "",
    "   ",
    "\u0000\ufffd control",
    "x" * 150,
]


@pytest.mark.parametrize("vocabulary_alone", [False, True])
@pytest.mark.parametrize("lowercase", [True, False])
def test_their_tokenizer_gives_our_numbers(
    vocabulary_alone: bool, lowercase: bool, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    if not lowercase:
        from bert.text.tokenizer import train_wordpiece

        tokenizer = train_wordpiece(lambda: [*TEXTS, *TEXTS], vocab_size=120, lowercase=False)
    config = BertConfig(
        vocab_size=tokenizer.vocab_size, hidden_size=8, num_hidden_layers=1, num_attention_heads=1
    )
    write_model(
        tmp_path,
        Checkpoint(
            build("masked_lm", config), "masked_lm", load_family("bert"), tokenizer=tokenizer
        ),
    )
    if vocabulary_alone:
        (tmp_path / "tokenizer.json").unlink()
        if lowercase:
            (tmp_path / "tokenizer_config.json").unlink()
        tokenizer = Tokenizer.load(tmp_path)
    their = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for max_length in (64, 16):
        mine = tokenizer.encode(TEXTS, max_length)
        for text, row in zip(TEXTS, mine, strict=True):
            other = their(text, truncation=True, max_length=max_length)
            assert row.input_ids == other["input_ids"], text
            assert row.token_type_ids == other["token_type_ids"], text
            assert row.truncated == (len(their(text)["input_ids"]) > max_length), text
        pairs = list(zip(TEXTS, reversed(TEXTS), strict=True))
        for pair, row in zip(pairs, tokenizer.encode(pairs, max_length), strict=True):
            # In lists, because alone an empty second text counts as none there.
            other = their([pair[0]], [pair[1]], truncation="longest_first", max_length=max_length)
            assert row.input_ids == other["input_ids"][0], pair
            assert row.token_type_ids == other["token_type_ids"][0], pair
    assert their.mask_token_id == tokenizer.mask_id
    assert their.pad_token_id == tokenizer.pad_id


def test_config_json_keeps_no_setting_that_theirs_would_misread(tmp_path: Path) -> None:
    checkpoint = ours("sequence", dropout_rate=0.2, attention_dropout_rate=0.3)
    write_model(tmp_path, checkpoint)
    stored = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    config = transformers.AutoConfig.from_pretrained(tmp_path)
    assert config.hidden_dropout_prob == 0.2
    assert config.attention_probs_dropout_prob == 0.3
    assert stored["model_type"] == "bert"
    assert stored["architectures"] == ["BertForSequenceClassification"]
    assert read_model(tmp_path, tokenizer=False).config == checkpoint.config
