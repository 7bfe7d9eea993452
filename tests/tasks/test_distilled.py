"""Distillation of fine-tuned models: the same for every task that has a primary metric."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny import demo_texts, tune, write_model, write_rows

from bert.checkpoint import read_model
from bert.compress.distil import TaskDistillation, _grouped
from bert.compress.shrink import smaller
from bert.errors import UsageError
from bert.predictor import Predictor
from bert.recipes.compress import CompressSettings, compress
from bert.recipes.finetune import FinetuneSettings, finetune
from bert.tasks.task import Task, batch_tokens, load_task, task_names

CPU = torch.device("cpu")
TASKS = [name for name in task_names() if load_task(name).primary_metric and name != "few_shot"]


@pytest.fixture(scope="module", params=TASKS)
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of each task that has its demo rows by heart."""
    kind = load_task(request.param)
    folder = tmp_path_factory.mktemp(request.param)
    model = write_model(folder / "model", demo_texts(kind.demo_rows))
    return tune(folder, request.param, kind.demo_rows, model, epochs=20, seed=1)


def batch_of(run: Path) -> tuple[Any, Task, Any]:
    kind = load_task(json.loads((run / "model" / "bert.json").read_text("utf-8"))["task"])
    checkpoint = read_model(run / "model", kind=kind.kind)
    task = kind(checkpoint)
    rows = list(task.read(run.parent / "rows.jsonl", [], None, labelled=True))
    samples = task.samples(rows)
    return checkpoint.model, task, task.batch(samples, np.arange(len(samples)), 0, 0)


def test_a_student_like_its_teacher_has_nothing_to_learn_from_it(run: Path) -> None:
    model, task, batch = batch_of(run)
    objective = TaskDistillation(task, copy.deepcopy(model))
    outcome, counts = objective.losses(model, batch, CPU), objective.counts(batch)
    assert list(outcome.losses) == list(counts) == list(outcome.correct)
    assert float(outcome.losses["soft"].detach()) == pytest.approx(0, abs=1e-3)
    assert float(outcome.losses["cosine"].detach()) == pytest.approx(0, abs=1e-3)
    assert float(outcome.correct["soft"]) == pytest.approx(counts["soft"], abs=1e-3)
    assert float(outcome.correct["cosine"]) == pytest.approx(counts["cosine"], abs=1e-3)
    if task.name != "embedding":  # whose students learn from vectors alone
        own = task.losses(model, batch, CPU)
        for name, value in own.losses.items():
            assert outcome.losses[name].detach() == pytest.approx(float(value.detach()), rel=1e-5)


@pytest.mark.parametrize("mode", ["mean", "cls", "max"])
def test_vectors_are_those_that_the_student_is_judged_by(mode: str, tmp_path: Path) -> None:
    kind = load_task("embedding")
    checkpoint = read_model(
        write_model(tmp_path / "model", demo_texts(kind.demo_rows), "BertModel"), kind="encoder"
    )
    task = kind(checkpoint, kind.Options.of({"pooling": mode}))
    samples = task.samples(
        list(
            task.read(write_rows(tmp_path / "rows.jsonl", kind.demo_rows), [], None, labelled=True)
        )
    )
    batch = task.batch(samples, np.arange(len(samples)), 0, 0)
    teacher = copy.deepcopy(checkpoint.model).eval()
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    model = checkpoint.model.eval()
    with torch.no_grad():
        outcome = TaskDistillation(task, teacher).losses(model, batch, CPU)
        tokens = batch_tokens(batch, CPU)
        mine, theirs = (task.of_windows(each, tokens) for each in (model, teacher))
    wanted = (1 - F.cosine_similarity(mine, theirs, dim=-1)).sum()
    assert float(outcome.losses["soft"]) == pytest.approx(float(wanted), rel=1e-5)


def test_a_smaller_student_comes_nearer_to_its_teacher(run: Path) -> None:
    model, task, batch = batch_of(run)
    checkpoint = read_model(run / "model", kind=type(task).kind)
    checkpoint.model = model
    student = smaller(checkpoint, 1, None).model.train()
    objective = TaskDistillation(task, copy.deepcopy(model))
    optimizer = torch.optim.AdamW(student.parameters(), lr=3e-3)
    seen = []
    for _ in range(25):
        losses = objective.losses(student, batch, CPU).losses
        optimizer.zero_grad()
        (losses["soft"] + 0.1 * losses["cosine"]).backward()
        optimizer.step()
        seen.append(float(losses["soft"].detach()))
    assert seen[-1] < 0.5 * seen[0]
    assert all(p.grad is None for p in objective.teacher.parameters())


def test_the_command_writes_an_ordinary_smaller_model(run: Path, tmp_path: Path) -> None:
    values = {"run": str(run), "distil": True, "layers": 1, "ffn": 0.5, "epochs": 15}
    out = compress(CompressSettings.of({**values, "max_drop": 100}), tmp_path / "small")
    config = json.loads((out / "config.json").read_text("utf-8"))
    assert (config["num_hidden_layers"], config["intermediate_size"]) == (1, 32)
    facts = json.loads((out / "bert.json").read_text("utf-8"))
    original = json.loads((run / "model" / "bert.json").read_text("utf-8"))
    assert facts["task"] == original["task"]
    assert facts["options"] == original["options"]
    figures = facts["compressed"]["figures"]
    before, after = figures["original"]["score"]["value"], figures["distillation"]["score"]["value"]
    assert after > 0.5 * before  # of rows that it was shown
    texts = [row.texts for row in Predictor(out).task.read(
        run.parent / "rows.jsonl", [], None, labelled=True)]  # fmt: skip
    assert len(Predictor(out)(texts)) == len(texts)


def test_choices_among_the_rows_of_a_group() -> None:
    torch.manual_seed(0)
    logits, goal = 3 * torch.randn(2, 9, 2)
    owner = torch.tensor([2, 0, 0, 1, 2, 2, 0, 1, 0])
    loss, agreed = _grouped(logits, goal, owner, 3, 2.0)
    wanted, right = 0.0, 0
    for group in range(3):
        for column in range(2):
            mine, theirs = (x[owner == group, column] for x in (logits, goal))
            divergence = F.kl_div(
                (mine / 2).log_softmax(0), (theirs / 2).softmax(0), reduction="sum"
            )
            wanted += 4 * float(divergence)
            right += int(mine.argmax() == theirs.argmax())
    assert float(loss) == pytest.approx(wanted, rel=1e-5)
    assert int(agreed) == right


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"labels": ["good", "bad", "odd"]}, "other labels"),
        ({"task": "tagging"}, "sequence head"),
        ({"words": ["entirely", "different"]}, "different tokenizers"),
        ({"task": "few_shot"}, "no teacher"),
    ],
)
def test_a_teacher_that_cannot_teach_is_refused(
    changes: dict[str, Any], what: str, tmp_path: Path
) -> None:
    def rows(labels: list[str], words: list[str]) -> list[dict[str, str]]:
        return [
            {"text": f"{word} {i}", "label": label}
            for i, label in enumerate(labels * 3)
            for word in words
        ]

    mine = rows(["good", "bad"], ["red", "blue"])
    model = write_model(tmp_path / "model", demo_texts(mine))
    labels, words = changes.get("labels", ["good", "bad"]), changes.get("words", ["red", "blue"])
    others = rows(labels, words)
    base = write_model(tmp_path / "other", demo_texts(others)) if "words" in changes else model
    folder = tmp_path / "teacher"
    folder.mkdir()
    teacher = tune(folder, "classification", others, base, epochs=1)
    task = changes.get("task", "classification")
    path = write_rows(tmp_path / "rows.jsonl", mine)
    if task == "tagging":
        path = write_rows(tmp_path / "rows.jsonl", load_task("tagging").demo_rows)
    settings = FinetuneSettings.of(
        {"train": str(path), "dev": str(path), "model": str(model), "task": task,
         "teacher": str(teacher)}
    )  # fmt: skip
    with pytest.raises(UsageError, match=what):
        finetune(settings, tmp_path / "run")
    assert not (tmp_path / "run").exists()
