"""Real processes, really stopped: the run that goes on is the run that was never stopped."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bert.config import read_yaml
from bert.errors import UsageError
from bert.recipes.pretrain import PretrainSettings, pretrain

STEPS = 32
TIMING = {"seconds", "tokens_per_second"}


def start(
    corpus: Path, out: Path, *more: str, checkpoint_minutes: float = 0.001
) -> subprocess.Popen[str]:
    """``bert pretrain`` in a process of its own; a checkpoint after every step or two."""
    return subprocess.Popen(
        [
            sys.executable, "-m", "bert", "pretrain", str(corpus), "--out", str(out),
            "--size", "tiny", "--steps", str(STEPS), "vocab_size=80", "sequence_length=32",
            "batch_size=16", "micro_batch_tokens=256", "log_every=5", "evaluations=3",
            "deterministic=true", "precision=fp32", f"checkpoint_minutes={checkpoint_minutes}",
            *more,
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=Path(__file__).parents[2],
    )  # fmt: skip


def finish(process: subprocess.Popen[str], code: int = 0) -> str:
    output, _ = process.communicate(timeout=120)
    assert process.returncode == code, output
    assert "Traceback" not in output
    return output


def checkpoints(out: Path) -> list[str]:
    return sorted(path.name for path in out.glob("checkpoints/step-*"))


def wait_for(process: subprocess.Popen[str], condition: Callable[[], object]) -> None:
    """Until the condition holds, or the process is over."""
    limit = time.monotonic() + 60
    while not condition() and process.poll() is None:
        assert time.monotonic() < limit
        time.sleep(0.002)


def stop(process: subprocess.Popen[str], out: Path, number: int, step: int) -> None:
    """Send a signal once a checkpoint of this step or a later one is there."""
    name = f"step-{step:08d}"
    wait_for(process, lambda: any(found >= name for found in checkpoints(out)))
    os.kill(process.pid, number)


def sha256(out: Path) -> str:
    return hashlib.sha256((out / "model" / "model.safetensors").read_bytes()).hexdigest()


def lines(out: Path) -> list[dict[str, Any]]:
    """``metrics.jsonl`` without what the clock says."""
    text = (out / "metrics.jsonl").read_text(encoding="utf-8")
    rows = [json.loads(line) for line in text.splitlines()]
    return [{k: v for k, v in row.items() if k not in TIMING} for row in rows]


@pytest.fixture(scope="module")
def uninterrupted(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "uninterrupted"
    finish(start(corpus, out))
    return out


def assert_same(out: Path, uninterrupted: Path) -> None:
    assert lines(out) == lines(uninterrupted)
    assert sha256(out) == sha256(uninterrupted)
    figures = [json.loads((run / "metrics.json").read_text()) for run in (out, uninterrupted)]
    for each in figures:
        each.pop("seconds")
    assert figures[0] == figures[1]


def test_an_uninterrupted_run(uninterrupted: Path) -> None:
    rows = lines(uninterrupted)
    assert [row["step"] for row in rows if "mlm_loss" in row] == [5, 10, 15, 20, 25, 30]
    assert [row["step"] for row in rows if "held_out_mlm_loss" in row] == [11, 22, 32, 32]
    assert sum(row.get("final", False) for row in rows) == 1
    assert len(checkpoints(uninterrupted)) == 2


def test_killed_terminated_and_resumed_is_uninterrupted(
    corpus: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    process = start(corpus, out)
    stop(process, out, signal.SIGKILL, random.randint(1, 10))
    finish(process, -signal.SIGKILL)
    assert not (out / "model").exists()

    process = start(corpus, out, "--resume")
    stop(process, out, signal.SIGTERM, 16)
    output = finish(process, 143)
    assert "Going on from step" in output
    assert "--resume" in output
    newest = checkpoints(out)[-1]

    output = finish(start(corpus, out, "--resume"))
    assert f"Going on from step {int(newest[5:])}" in output  # SIGTERM saved its last step
    assert_same(out, uninterrupted)


def test_ctrl_c_saves_and_exits(corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    process = start(corpus, out, checkpoint_minutes=60)
    wait_for(process, lambda: (out / "metrics.jsonl").exists() and lines(out))
    assert checkpoints(out) == []
    os.kill(process.pid, signal.SIGINT)
    output = finish(process, 130)
    assert "--resume" in output
    (newest,) = checkpoints(out)  # written because of the signal
    assert (out / "checkpoints" / newest / "manifest.json").is_file()
    assert int(newest[5:]) >= 5


def test_resuming_a_finished_run_changes_nothing(
    corpus: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    shutil.copytree(uninterrupted, out)
    finish(start(corpus, out, "--resume"))
    assert_same(out, uninterrupted)


def test_resume_refuses_another_run(uninterrupted: Path) -> None:
    values = read_yaml(uninterrupted / "config.yaml")
    before = sha256(uninterrupted)
    with pytest.raises(UsageError, match="seed"):
        pretrain(PretrainSettings.of({**values, "seed": 5}), uninterrupted, resume=True)
    with pytest.raises(UsageError, match="--resume"):
        pretrain(PretrainSettings.of(values), uninterrupted)
    assert sha256(uninterrupted) == before


@pytest.mark.slow
def test_killed_at_random_moments(corpus: Path, uninterrupted: Path, tmp_path: Path) -> None:
    """Ten runs, each killed up to three times: while reading, training, saving, reporting."""
    draw = random.Random()
    kills = 0
    for number in range(10):
        out = tmp_path / f"run-{number}"
        for wait in (draw.uniform(1, 6), draw.uniform(1, 6), draw.uniform(1, 6), 120):
            process = start(corpus, out, *(["--resume"] if out.exists() else []))
            try:
                process.communicate(timeout=wait)
            except subprocess.TimeoutExpired:
                os.kill(process.pid, signal.SIGKILL)
                process.communicate()
            if process.returncode == 0:
                break
            assert process.returncode == -signal.SIGKILL
            kills += 1
        assert process.returncode == 0
        assert_same(out, uninterrupted)
    assert kills >= 10
