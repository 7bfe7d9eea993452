"""What a fine-tuning run must hold: resuming, starting again, stopping early, several processes."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from bert.data.batches import step_samples
from bert.errors import Interrupted, UsageError
from bert.model.encoder import BERT
from bert.recipes.finetune import FinetuneSettings, finetune
from bert.tasks.classification import Classification
from bert.tasks.task import Answer
from bert.training.optim import build_optimizer

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def settings(tiny_model: Path, topic_rows: Path) -> FinetuneSettings:
    return FinetuneSettings(
        train=str(topic_rows), model=str(tiny_model), epochs=6, learning_rate=2e-3, batch_size=8,
        held_out=0.4, precision="fp32", log_every=1, evaluations=5, checkpoint_minutes=0.0005,
    )  # fmt: skip


@pytest.fixture(scope="module")
def whole(settings: FinetuneSettings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finetune(settings, tmp_path_factory.mktemp("runs") / "whole", restarts=0)


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model" / "model.safetensors")


def lines(run: Path) -> list[dict[str, Any]]:
    """``metrics.jsonl`` without what the clock says."""
    rows = map(json.loads, (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    return [
        {k: v for k, v in row.items() if k not in ("seconds", "tokens_per_second")} for row in rows
    ]


def figures(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    return {key: value for key, value in found.items() if key != "seconds"}


def assert_same(run: Path, other: Path) -> None:
    assert lines(run) == lines(other)
    assert figures(run) == figures(other)
    mine, theirs = weights(run), weights(other)
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


@contextmanager
def terminated(run: Path, step: int) -> Iterator[None]:
    """SIGTERM to this process once ``metrics.jsonl`` of a run has come to a step."""

    def late(number: int, frame: FrameType | None) -> None:
        raise Interrupted(number)

    before = signal.signal(signal.SIGTERM, late)
    over = threading.Event()

    def watch() -> None:
        while not over.is_set():
            file = run / "metrics.jsonl"
            if file.exists() and f'"step": {step},' in file.read_text(encoding="utf-8"):
                os.kill(os.getpid(), signal.SIGTERM)
                return
            time.sleep(0.001)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        with pytest.raises(Interrupted):
            yield
    finally:
        over.set()
        watcher.join()
        signal.signal(signal.SIGTERM, before)


def test_terminated_and_resumed_is_uninterrupted(
    settings: FinetuneSettings, whole: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    with terminated(run, 30):
        finetune(settings, run, restarts=0)
    assert not (run / "metrics.json").exists()
    (newest,) = sorted(run.glob("checkpoints/step-*"))[-1:]
    assert int(newest.name[5:]) >= 30
    with terminated(run, 80):
        finetune(settings, run, resume=True, restarts=0)
    finetune(settings, run, resume=True, restarts=0)
    assert_same(run, whole)
    finetune(settings, run, resume=True, restarts=0)  # when it is finished
    assert_same(run, whole)


def test_killed_and_resumed_is_uninterrupted(
    settings: FinetuneSettings, whole: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    process = subprocess.Popen(
        command(settings, run), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    limit = time.monotonic() + 120
    while process.poll() is None and not any(run.glob("checkpoints/step-*[1-9]")):
        assert time.monotonic() < limit
        time.sleep(0.01)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    finetune(settings, run, resume=True, restarts=0)
    assert_same(run, whole)


def command(settings: FinetuneSettings, run: Path, *more: str) -> list[str]:
    """``bert finetune`` in a process of its own."""
    values = settings.model_dump(exclude={"train", "model"}, exclude_unset=True)
    return [
        sys.executable, "-m", "bert", "finetune", settings.train, "--model", settings.model,
        "--out", str(run), *(f"{name}={value}" for name, value in values.items()), *more,
    ]  # fmt: skip


def collapsing(monkeypatch: pytest.MonkeyPatch, times: int) -> None:
    """Let the first so many attempts look as if the model had learnt nothing."""
    before = Classification.__init__
    attempts = []

    def counted(self: Classification, *args: Any) -> None:
        before(self, *args)
        attempts.append(self)

    def constant(self: Classification, answers: Sequence[Answer]) -> bool:
        return self in attempts[:times]

    monkeypatch.setattr(Classification, "__init__", counted)
    monkeypatch.setattr(Classification, "constant", constant)


def test_another_attempt_is_a_run_of_another_seed_with_a_longer_warm_up(
    settings: FinetuneSettings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with monkeypatch.context() as patch:
        collapsing(patch, 1)
        again = finetune(settings, tmp_path / "again")
    assert "trained again" in capsys.readouterr().err
    assert figures(again)["restarts"] == 1
    assert figures(again)["learnt"]
    second = settings.model_copy(update={"seed": 1_000_004, "warmup": 0.2})
    alone = finetune(second, tmp_path / "alone", restarts=0)
    assert lines(again) == lines(alone)
    mine, theirs = weights(again), weights(alone)
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)

    # Interrupted in the second attempt, it goes on in the second attempt.
    moved = tmp_path / "moved"
    shutil.copytree(again, moved)
    (moved / "metrics.json").unlink()
    first, *_, last = sorted(moved.glob("checkpoints/restart-1/step-*"))
    assert first != last
    shutil.rmtree(last)
    finetune(settings, moved, resume=True)
    assert_same(moved, again)


def test_a_collapsed_run_is_said_and_not_hidden(
    settings: FinetuneSettings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    absurd = settings.model_copy(update={"learning_rate": 3.0, "epochs": 1, "evaluations": 1})
    run = finetune(absurd, tmp_path / "run")
    told = figures(run)
    assert told["restarts"] == 2
    assert told["learnt"] is False
    said = capsys.readouterr().err
    assert said.count("trained again, from another seed") == 2
    assert "learnt nothing in 3 attempts" in said
    answers = (run / "predictions_dev.jsonl").read_text(encoding="utf-8").splitlines()
    assert len({json.loads(line)["label"] for line in answers}) == 1


def test_it_stops_where_nothing_gets_better(settings: FinetuneSettings, tmp_path: Path) -> None:
    stuck = settings.model_copy(update={"learning_rate": 1e-12, "patience": 2, "evaluations": 9})
    run = finetune(stuck, tmp_path / "run", restarts=0)
    judged = [row["step"] for row in lines(run) if "held_out_accuracy" in row]
    assert len(judged) == 3  # the first, and two that were no better
    assert judged[-1] == figures(run)["steps"] < 6 * 23


def test_the_best_model_is_kept(whole: Path) -> None:
    scores = [row["held_out_accuracy"] for row in lines(whole) if "held_out_accuracy" in row]
    assert len(scores) == 5
    assert figures(whole)["accuracy"]["value"] == pytest.approx(max(scores))


def moved(settings: FinetuneSettings, out: Path, **changes: Any) -> dict[str, float]:
    """How far each weight is from where it was, on average."""
    values = {"epochs": 1, "evaluations": 1, **changes}
    run = finetune(settings.model_copy(update=values), out, restarts=0)
    before = load_file(Path(settings.model) / "model.safetensors")
    after = weights(run)
    return {
        name: (after[name] - before[name]).abs().mean().item()
        for name in before.keys() & after.keys()
    }


def test_frozen_layers_do_not_learn(settings: FinetuneSettings, tmp_path: Path) -> None:
    changes = moved(settings, tmp_path / "run", frozen_layers=1)
    for name, change in changes.items():
        frozen = "embeddings" in name or ".layer.0." in name
        assert (change == 0) == frozen, name
    assert any(".layer.1." in name for name in changes)
    with pytest.raises(UsageError, match="2 layers"):
        finetune(settings.model_copy(update={"frozen_layers": 3}), tmp_path / "all")
    bare = BERT(vocab_size=9, hidden_size=8, num_hidden_layers=2, num_attention_heads=2)
    bare.pooler = None
    with pytest.raises(UsageError, match="nothing to learn"):
        build_optimizer(bare, "adamw", 1e-3, 0.0, frozen_layers=2)


def test_lower_layers_learn_slower(settings: FinetuneSettings, tmp_path: Path) -> None:
    changes = moved(settings, tmp_path / "run", layer_decay=0.1, weight_decay=0.0)

    def layer(number: int) -> float:
        found = [
            change
            for name, change in changes.items()
            if re.search(rf"layer\.{number}\..*(query|value|dense)\.weight", name)
        ]
        assert len(found) == 5
        return sum(found) / 5

    # Adam moves a weight by its rate, whatever the gradient.
    assert layer(0) / layer(1) == pytest.approx(0.1, rel=0.5)


def test_no_step_goes_by_a_few_leftover_rows() -> None:
    sizes = [len(step_samples(step, 33, 16, seed=1)[1]) for step in range(6)]
    assert sizes == [11] * 6
    sizes = [len(step_samples(step, 180, 8, seed=1)[1]) for step in range(23)]
    assert sum(sizes) == 180
    assert set(sizes) == {7, 8}


def torchrun(settings: FinetuneSettings, run: Path, *more: str) -> str:
    done = subprocess.run(
        [
            sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2",
            *command(settings, run, *more)[1:],
        ],
        cwd=ROOT, capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stderr


def test_two_processes_learn_what_one_learns(settings: FinetuneSettings, tmp_path: Path) -> None:
    """Two seeds at that, in parts of a step, and with fewer rows in the last step."""
    several = settings.model_copy(
        update={"epochs": 2, "micro_batch_tokens": 20, "batch_size": 7, "evaluations": 2}
    )
    said = torchrun(several, tmp_path / "two", "--seeds", "2")
    assert said.count("Model: ") == 3  # one of them speaks
    for seed in (1, 2):
        alone = several.model_copy(update={"seed": seed})
        one = finetune(alone, tmp_path / f"one-{seed}")
        two = tmp_path / "two" / f"seed-{seed}"
        assert figures(one)["steps"] == figures(two)["steps"]
        mine, theirs = weights(one), weights(two)
        for name in mine:
            assert torch.allclose(mine[name], theirs[name], rtol=0, atol=1e-5), name
