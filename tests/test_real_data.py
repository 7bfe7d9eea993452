"""Real data of others, where ``BERT_DATA`` names its folder; no row of it is kept here."""

from __future__ import annotations

import itertools
import json
import os
from pathlib import Path

import pytest

from bert.cli import main
from bert.data.rows import DataReport, Example, training_examples
from bert.tasks.task import load_task
from bert.text.corpus import documents
from bert.text.sentences import sentences

DATA = Path(os.environ.get("BERT_DATA", ""))
pytestmark = pytest.mark.skipif("BERT_DATA" not in os.environ, reason="BERT_DATA is not set")


def run(*arguments: str | Path) -> None:
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    assert stop.value.code == 0


def test_counts_are_the_published_ones() -> None:
    wikitext = DATA / "wikitext-2"
    assert sum(1 for _ in documents([wikitext / "valid.txt.xz"])) == 60
    kind = load_task("classification")

    def of(path: Path) -> tuple[list[Example], DataReport]:
        return training_examples(kind.read(path, [], None, labelled=True), kind.names, str(path))

    examples, report = of(DATA / "sst2" / "dev.jsonl")
    assert len(examples) == 872
    assert report.labels == {"0": 428, "1": 444}
    examples, report = of(DATA / "chnsenticorp" / "dev.jsonl.xz")
    assert report.labels == {"0": 607, "1": 593}
    pairs, _ = of(DATA / "mrpc" / "dev.jsonl")
    assert all(isinstance(example.texts, tuple) for example in pairs)


@pytest.mark.parametrize(
    ("corpus", "shortest", "longest"),
    [("wikinews_en/wikinews_00.txt.xz", 60, 200), ("lctt_zh/lctt_00.txt.xz", 15, 60)],
)
def test_sentences_have_the_length_of_sentences(corpus: str, shortest: int, longest: int) -> None:
    lengths = sorted(
        len(sentence)
        for document in itertools.islice(documents([DATA / corpus]), 200)
        for sentence in sentences(document.text)
    )
    assert shortest < lengths[len(lengths) // 2] < longest


def test_from_wikitext_to_sentiment(tmp_path: Path) -> None:
    pretrained, tuned = tmp_path / "pretrained", tmp_path / "tuned"
    sst2 = DATA / "sst2"
    run("pretrain", DATA / "wikitext-2" / "valid.txt.xz", "--size", "tiny", "--steps", "20",
        "--out", pretrained, "vocab_size=4000", "batch_size=16")  # fmt: skip
    run("finetune", sst2 / "sentence_dev.jsonl", "--model", pretrained, "--out", tuned, "epochs=1")
    figures = json.loads((tuned / "metrics.json").read_text("utf-8"))
    assert figures["rows"] == pytest.approx(87, abs=2)
    answers = tmp_path / "answers.jsonl"
    run("predict", tuned, sst2 / "sentence_test.jsonl", "-o", answers)
    lines = [json.loads(line) for line in answers.read_text("utf-8").splitlines()]
    assert len(lines) == 1821
    assert all(sum(line["probabilities"].values()) == pytest.approx(1) for line in lines)
