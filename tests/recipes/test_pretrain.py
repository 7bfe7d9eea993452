"""Every objective and family from the text file to a directory that others read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from bert.checkpoint import load, read_model
from bert.errors import BertError, ModelError, UsageError
from bert.recipes.prepare import PrepareSettings, prepare
from bert.recipes.pretrain import PretrainSettings, pretrain

transformers = pytest.importorskip("transformers")

SMALL = {
    "size": "tiny", "steps": 4, "vocab_size": 90, "sequence_length": 32, "batch_size": 16,
    "log_every": 1, "evaluations": 1, "precision": "fp32", "held_out_samples": 64,
}  # fmt: skip
MADE = {
    "mlm+nsp": {"model": "BertForPreTraining"},
    "mlm+sop": {"model": "BertForPreTraining"},
    "mlm": {"model": "BertForMaskedLM"},
    "rtd": {"model": "ElectraForPreTraining", "generator": "ElectraForMaskedLM"},
    "distill": {"model": "DistilBertForMaskedLM"},
}
FIGURES = {
    "mlm+nsp": {"mlm", "nsp"},
    "mlm+sop": {"mlm", "sop"},
    "mlm": {"mlm"},
    "rtd": {"mlm", "rtd"},
    "distill": {"mlm", "soft", "cosine"},
}


def run(corpus: Path, out: Path, **changes: Any) -> Path:
    values = {**SMALL, "corpus": [str(corpus)], **changes}
    return pretrain(PretrainSettings.of({k: v for k, v in values.items() if v is not None}), out)


@pytest.fixture(scope="module")
def first(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(corpus, tmp_path_factory.mktemp("first") / "run", objective="mlm")


@torch.no_grad()
def assert_theirs_is_ours(directory: Path, architecture: str) -> None:
    model, report = getattr(transformers, architecture).from_pretrained(
        directory, output_loading_info=True
    )
    assert not any(report.values())
    ids = torch.randint(5, model.config.vocab_size, (3, 12))
    expected = model.eval()(ids)
    logits = getattr(expected, "prediction_logits", None)
    torch.testing.assert_close(
        load(directory)(ids), expected.logits if logits is None else logits, atol=1e-5, rtol=1e-5
    )
    words = transformers.AutoTokenizer.from_pretrained(directory)
    assert len(words) <= model.config.vocab_size


@pytest.mark.parametrize("objective", MADE)
def test_each_objective(objective: str, corpus: Path, first: Path, tmp_path: Path) -> None:
    more: dict[str, Any] = {"objective": objective}
    if objective == "distill":
        more |= {"teacher": str(first), "size": None}
    out = run(corpus, tmp_path / "run", **more)
    for folder, architecture in MADE[objective].items():
        assert_theirs_is_ours(out / folder, architecture)
    figures = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
    assert {name.split("_")[2] for name in figures if name.startswith("held_out")} == (
        FIGURES[objective]
    )
    for name in FIGURES[objective]:
        assert (out / "plots" / f"{name}_loss.png").is_file()
        assert f"{name}_loss" in (out / "metrics.jsonl").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("family", "architecture"),
    [
        ("roberta", "RobertaForMaskedLM"), ("albert", "AlbertForMaskedLM"),
        ("modernbert", "ModernBertForMaskedLM"), ("deberta_v2", "DebertaV2ForMaskedLM"),
        ("electra", "ElectraForMaskedLM"), ("xlm_roberta", "XLMRobertaForMaskedLM"),
    ],
)  # fmt: skip
def test_each_family(family: str, architecture: str, corpus: Path, tmp_path: Path) -> None:
    out = run(corpus, tmp_path / "run", objective="mlm", family=family)
    assert_theirs_is_ours(out / "model", architecture)


def test_going_on_from_a_model_starts_where_it_stood(
    corpus: Path, first: Path, tmp_path: Path
) -> None:
    out = run(
        corpus, tmp_path / "run", size=None, start=str(first), objective="mlm", steps=1,
        learning_rate=1e-12, masking="word", mask_rate=0.3, mask_rate_end=0.15,
    )  # fmt: skip
    before, after = (
        json.loads((folder / "metrics.json").read_text(encoding="utf-8")) for folder in (first, out)
    )
    assert after["held_out_mlm_loss"] == pytest.approx(before["held_out_mlm_loss"], abs=1e-5)
    old, new = (read_model(folder / "model") for folder in (first, out))
    assert old.config == new.config
    assert old.tokenizer is not None
    assert new.tokenizer is not None
    assert old.tokenizer.files == new.tokenizer.files


def test_prepared_shards_are_pretrained_on(corpus: Path, tmp_path: Path) -> None:
    prepare(PrepareSettings.of({"corpus": [str(corpus)], "vocab_size": 90}), tmp_path / "shards")
    out = run(tmp_path / "shards", tmp_path / "run", objective="mlm", vocab_size=None)
    assert_theirs_is_ours(out / "model", "BertForMaskedLM")
    with pytest.raises(UsageError, match="hold their tokenizer"):
        run(tmp_path / "shards", tmp_path / "other", tokenizer=str(tmp_path / "shards"))
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"family": "gpt2"}, "no family 'gpt2'"),
        ({"family": "roberta"}, "has no head for mlm[+]nsp"),
        ({"family": "roberta", "size": "xxlarge", "objective": "mlm"}, "no size 'xxlarge'"),
        ({"family": "roberta", "objective": "rtd"}, "family electra"),
        ({"objective": "distill"}, "belong together"),
        ({"teacher": "x"}, "belong together|cannot be chosen"),
        ({"start": "x"}, "size cannot be chosen"),
        ({"start": "x", "objective": "rtd", "size": None}, "not with objective=rtd"),
        ({"chinese_words": True}, "whole words"),
        ({"strategy": "fsdp", "optimizer": "muon"}, "AdamW only"),
        ({"sequence_length": 600}, "more than the 512 tokens"),
    ],
)
def test_settings_that_do_not_go_together(
    changes: dict[str, Any], told: str, corpus: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=told) as caught:
        run(corpus, tmp_path / "run", **changes)
    assert caught.value.fix
    assert not (tmp_path / "run").exists()


def test_a_model_with_other_words_is_refused(corpus: Path, first: Path, tmp_path: Path) -> None:
    other = run(corpus, tmp_path / "other", objective="mlm", vocab_size=60)
    with pytest.raises(UsageError, match="another vocabulary"):
        run(corpus, tmp_path / "run", size=None, start=str(first), tokenizer=str(other))
    with pytest.raises(BertError):
        run(corpus, tmp_path / "run", size=None, start=str(tmp_path / "nothing"))
    with pytest.raises(ModelError):
        run(corpus, tmp_path / "run", tokenizer=str(tmp_path))


def test_the_card_of_a_discriminator_shows_what_works(corpus: Path, tmp_path: Path) -> None:
    out = run(corpus, tmp_path / "run", objective="rtd")
    card = (out / "README.md").read_text(encoding="utf-8")
    assert f'bert.load("{out}/model")' in card
    assert "Predictor" not in card
    assert load(out).kind == "replaced_token"
