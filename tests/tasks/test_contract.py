"""What every task keeps, whatever it is about: one path, run with its own demo rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from bert.checkpoint import Checkpoint, read_model, write_model
from bert.data.rows import Example
from bert.evaluation import measure, primary
from bert.families.bert import FAMILY
from bert.predictor import Predictor, answers
from bert.tasks.task import Task, load_task, task_names
from bert.text.tokenizer import Tokenizer, train_wordpiece
from bert.training.optim import build_optimizer

CPU = torch.device("cpu")
TRAINED = [name for name in task_names() if load_task(name).primary_metric]
STEPS = 60
# What transformers loads each head with.
AUTO = {
    "sequence": transformers.AutoModelForSequenceClassification,
    "token": transformers.AutoModelForTokenClassification,
    "span": transformers.AutoModelForQuestionAnswering,
    "choice": transformers.AutoModelForMultipleChoice,
    "encoder": transformers.AutoModel,
}


def rows_of(kind: type[Task], folder: Path) -> list[Example]:
    """The demo rows, read from a file as a user's."""
    path = folder / "rows.jsonl"
    lines = [json.dumps(row, ensure_ascii=False) for row in kind.demo_rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return list(kind.read(path, [], None, labelled=True))


def words() -> Tokenizer:
    """A tokenizer that knows the words of all demo rows."""
    texts = [json.dumps(row, ensure_ascii=False) for n in TRAINED for row in load_task(n).demo_rows]
    return train_wordpiece(lambda: texts * 3, vocab_size=2000, lowercase=True)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return words()


def begin(
    kind: type[Task], examples: list[Example], tokenizer: Tokenizer
) -> tuple[Checkpoint, Task]:
    torch.manual_seed(3)
    labels = kind.labels_of(examples, "rows.jsonl")
    config = FAMILY.size("tiny", vocab_size=tokenizer.vocab_size, pad_token_id=tokenizer.pad_id)
    model = FAMILY.build(kind.kind, config, max(len(labels), 1))
    checkpoint = Checkpoint(model, kind.kind, FAMILY, labels, tokenizer)
    texts = max(len(example.parts) for example in examples)
    checkpoint.facts = {"task": kind.name, "texts_per_row": texts, "max_length": 64}
    if kind.problem_type:
        checkpoint.foreign["problem_type"] = kind.problem_type
    return checkpoint, kind(checkpoint)


def learn(checkpoint: Checkpoint, task: Task, examples: list[Example]) -> tuple[float, float]:
    """Fit the rows, and return the mean loss before and after."""
    samples = task.samples(examples)
    numbers = np.arange(len(samples))
    optimizer = build_optimizer(checkpoint.model, "adamw", 1e-3, 0.0)
    losses = []
    checkpoint.model.train()
    for step in range(STEPS):
        batch = task.prepare(task.batch(samples, numbers, step, 1))
        torch.manual_seed(step)
        outcome = task.losses(checkpoint.model, batch, CPU)
        counts = task.counts(batch)
        assert outcome.losses.keys() == outcome.correct.keys() == counts.keys()
        loss = sum(value / counts[name] for name, value in outcome.losses.items())
        assert isinstance(loss, torch.Tensor)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses[0], losses[-1]


@pytest.mark.parametrize("name", TRAINED)
def test_a_task_learns_is_kept_and_answers_the_same(
    name: str, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    kind = load_task(name)
    assert len(kind.demo_rows) == 8
    examples = rows_of(kind, tmp_path)
    assert len(examples) == 8
    checkpoint, task = begin(kind, examples, tokenizer)
    for example in examples:
        task.check(example)
    first, last = learn(checkpoint, task, examples)
    task.settle(checkpoint.model, CPU)
    assert last < first / 3

    model = checkpoint.model.eval()
    texts = [part for e in examples for part in e.parts] if name == "embedding" else None
    asked: list[Any] = texts or [example.texts for example in examples]
    if name == "embedding":
        checkpoint.facts["texts_per_row"] = 1
        task = kind(checkpoint)
    given = list(answers(task, model, asked, "fp32", CPU))
    assert all(answer["windows"] == 1 and not answer["truncated"] for answer in given)
    if name != "embedding":
        figures = measure(task, zip(examples, given, strict=True), tmp_path)
        assert primary(task, figures)["value"] > 0.9
        lines = (tmp_path / "predictions_dev.jsonl").read_text("utf-8").splitlines()
        assert len(lines) == 8

    with task.published(model):
        write_model(tmp_path / "model", checkpoint)
    again = Predictor(tmp_path / "model")
    assert again.task.name == name
    assert_alike(again(asked), given)


@pytest.mark.parametrize("name", [n for n in TRAINED if load_task(n).kind in AUTO])
def test_transformers_gives_the_same_logits(
    name: str, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    kind = load_task(name)
    examples = rows_of(kind, tmp_path)
    checkpoint, _ = begin(kind, examples, tokenizer)
    write_model(tmp_path / "model", checkpoint)
    ours = read_model(tmp_path / "model").model.eval()
    theirs = AUTO[kind.kind].from_pretrained(tmp_path / "model").eval()
    read = transformers.AutoTokenizer.from_pretrained(tmp_path / "model")
    texts = [part for example in examples for part in example.parts][:8]
    inputs = read(texts, padding=True, return_tensors="pt")
    tensors = [inputs[key] for key in ("input_ids", "token_type_ids", "attention_mask")]
    if kind.kind == "choice":
        tensors = [value.view(2, -1, value.shape[-1]) for value in tensors]
    keys = ("input_ids", "token_type_ids", "attention_mask")
    with torch.no_grad():
        wanted = theirs(**dict(zip(keys, tensors, strict=True)))
        found = ours(*tensors)
    if kind.kind == "span":
        expected = torch.stack((wanted.start_logits, wanted.end_logits), dim=-1)
    else:
        expected = wanted.last_hidden_state if kind.kind == "encoder" else wanted.logits
    real = inputs["attention_mask"].bool()
    if found.dim() == 3:
        found, expected = found[real], expected[real]
    assert torch.allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("name", TRAINED)
def test_settings_have_defaults_and_are_kept(name: str) -> None:
    kind = load_task(name)
    options = kind.Options()
    assert kind.Options.of(options.model_dump(mode="json")) == options


def assert_alike(found: list[Any], wanted: list[Any]) -> None:
    """The same answers, their numbers to within rounding."""
    assert len(found) == len(wanted)
    for one, other in zip(found, wanted, strict=True):
        compare(one, other)


def compare(one: Any, other: Any) -> None:
    if isinstance(other, dict):
        assert one.keys() == other.keys()
        for key in other:
            compare(one[key], other[key])
    elif isinstance(other, list | tuple | np.ndarray):
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            compare(a, b)
    elif isinstance(other, float):
        assert one == pytest.approx(other, abs=1e-5)
    else:
        assert one == other
