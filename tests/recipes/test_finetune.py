"""Fine-tuning from what ``transformers`` wrote, and back again."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

import bert
from bert.cli import main
from bert.recipes.finetune import FinetuneSettings, finetune

WORDS = {
    "animal": ["bird", "horse", "fish", "snake", "sheep"],
    "weather": ["rain", "wind", "storm", "frost", "sunshine"],
}


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model and a tokenizer as ``transformers`` saves them."""
    directory = tmp_path_factory.mktemp("foreign")
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "we", "saw", "the", "near", "us"]
    vocabulary += [word for words in WORDS.values() for word in words]
    (directory / "vocab.txt").write_text("\n".join(vocabulary) + "\n", encoding="utf-8")
    tokenizer = transformers.BertTokenizer(str(directory / "vocab.txt"))
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=40,
    )
    target = directory / "model"
    transformers.BertForMaskedLM(config).save_pretrained(target)
    tokenizer.save_pretrained(target)
    return target


@pytest.fixture(scope="module")
def tuned(foreign: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tuned")
    draw = np.random.default_rng(0)
    with (folder / "rows.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["what was said", "about"])
        for _ in range(300):
            label = str(draw.choice(list(WORDS)))
            one, other = draw.choice(WORDS[label], 2)
            writer.writerow([f"we saw the {one} near the {other}", label])
    settings = FinetuneSettings(
        train=str(folder / "rows.csv"),
        model=str(foreign),
        text=["what was said"],
        label="about",
        epochs=6,
        learning_rate=3e-3,
    )
    return finetune(settings, folder / "run")


def test_it_learns_and_leaves_a_whole_run_folder(tuned: Path) -> None:
    figures = json.loads((tuned / "metrics.json").read_text(encoding="utf-8"))
    assert figures["accuracy"]["value"] > 0.95
    predictions = (tuned / "predictions_dev.jsonl").read_text("utf-8").splitlines()
    assert len(predictions) == figures["rows"] > 10
    assert figures["precision"] == bert.Predictor(tuned).precision
    for name in (
        "config.yaml", "command.txt", "env.json", "data_report.json", "metrics.jsonl",
        "predictions_dev.jsonl", "most_wrong.jsonl", "README.md", "report.html",
        "plots/confusion.png", "plots/loss.png", "model/config.json", "model/bert.json",
    ):  # fmt: skip
        assert (tuned / name).is_file(), name


def test_transformers_gives_the_same_logits(tuned: Path) -> None:
    directory = tuned / "model"
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(directory)
    read = transformers.AutoTokenizer.from_pretrained(directory)
    texts = ["we saw the fish near us", "frost near the sheep", "we"]
    inputs = read(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        wanted = theirs.eval()(**inputs).logits
        ours = bert.load(tuned)(
            inputs["input_ids"], inputs["token_type_ids"], inputs["attention_mask"]
        )
    assert torch.allclose(ours, wanted, atol=1e-5)
    assert theirs.config.id2label == {0: "animal", 1: "weather"}
    answers = bert.Predictor(tuned, "fp32")(texts)
    for answer, row in zip(answers, wanted.softmax(dim=-1).tolist(), strict=True):
        assert list(answer["probabilities"].values()) == pytest.approx(row, abs=1e-5)


def test_predict_and_evaluate_take_the_columns_of_training(
    tuned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = tmp_path / "new.csv"
    rows.write_text(
        "id,what was said,about\n"
        "1,we saw the horse near the snake,animal\n"
        "2,rain near the wind,weather\n",
        encoding="utf-8",
    )
    with pytest.raises(SystemExit) as stop:
        main(["predict", str(tuned), str(rows), "-o", str(tmp_path / "out.jsonl")])
    assert stop.value.code == 0
    lines = (tmp_path / "out.jsonl").read_text("utf-8").splitlines()
    assert [json.loads(line)["label"] for line in lines] == ["animal", "weather"]
    with pytest.raises(SystemExit) as stop:
        main(["evaluate", str(tuned), str(rows), "--json"])
    assert stop.value.code == 0
    assert json.loads(capsys.readouterr().out)["accuracy"]["value"] == 1.0
