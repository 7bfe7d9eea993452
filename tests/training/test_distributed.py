"""Several processes that train as one: real ones, started by torchrun, over gloo."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given

from bert.data.batches import step_samples
from bert.distributed import World

STEPS = 16
ROOT = Path(__file__).parents[2]


@given(st.integers(0, 200), st.integers(1, 500), st.integers(1, 64), st.integers(1, 8))
def test_the_ranks_share_a_step_out(step: int, count: int, batch_size: int, size: int) -> None:
    epoch, samples = step_samples(step, count, batch_size, seed=3, full=True)
    shares = [World(rank, size).share(samples) for rank in range(size)]
    assert np.concatenate(shares).tolist() == samples.tolist()
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    assert len(samples) == min(batch_size, count)
    if count >= batch_size:
        assert epoch == step // (count // batch_size)


def start(
    corpus: Path, out: Path, ranks: int, *more: str, batch_size: int = 16
) -> subprocess.Popen[str]:
    """``bert pretrain`` with so many processes."""
    alone = [sys.executable, "-m", "bert"]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    return subprocess.Popen(
        [
            *(alone if ranks == 1 else [*launcher, f"--nproc-per-node={ranks}", "-m", "bert"]),
            "pretrain", str(corpus), "--out", str(out), "--size", "tiny",
            "--steps", str(STEPS), "vocab_size=80", "sequence_length=32",
            f"batch_size={batch_size}", "micro_batch_tokens=128", "log_every=1",
            "evaluations=2", "deterministic=true", "precision=fp32",
            "checkpoint_minutes=0.0005", *more,
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
    )  # fmt: skip


def kill(process: subprocess.Popen[str]) -> None:
    """SIGKILL for a process and all below it; torchrun puts its workers into sessions apart."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
    below = {process.pid}
    while more := {pid for pid, parent in parents.items() if parent in below} - below:
        below |= more
    for pid in (process.pid, *below):  # the launcher first, before it can report
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def finish(process: subprocess.Popen[str], code: int | None = 0) -> str:
    try:
        output, _ = process.communicate(timeout=120)
    except subprocess.TimeoutExpired:
        kill(process)
        raise
    assert code is None or process.returncode == code, output
    return output


def rows(out: Path) -> list[dict[str, Any]]:
    text = (out / "metrics.jsonl").read_text(encoding="utf-8")
    timing = {"seconds", "tokens_per_second"}
    return [
        {k: v for k, v in json.loads(line).items() if k not in timing} for line in text.splitlines()
    ]


def weights(out: Path) -> bytes:
    return (out / "model" / "model.safetensors").read_bytes()


def wait_for_step(process: subprocess.Popen[str], out: Path, step: int) -> None:
    limit = time.monotonic() + 60
    name = f"step-{step:08d}"
    while process.poll() is None:
        if any(path.name >= name for path in out.glob("checkpoints/step-*")):
            return
        assert time.monotonic() < limit
        time.sleep(0.002)


@pytest.fixture(scope="module")
def two(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "two"
    finish(start(corpus, out, 2))
    return out


def test_two_processes_learn_what_one_learns(corpus: Path, tmp_path: Path) -> None:
    for ranks in (1, 2):
        output = finish(start(corpus, tmp_path / f"{ranks}", ranks, "dropout_rate=0"))
        assert output.count("Held out:") == 1  # one of them speaks
    one, two = rows(tmp_path / "1"), rows(tmp_path / "2")
    assert [row["step"] for row in one] == [row["step"] for row in two]
    for a, b in zip(one, two, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            assert a[name] == pytest.approx(b[name], abs=1e-4, rel=1e-4), (a["step"], name)


def test_a_killed_pair_goes_on_as_if_nothing_had_been(
    corpus: Path, two: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    process = start(corpus, out, 2)
    wait_for_step(process, out, random.randint(1, STEPS // 2))
    kill(process)
    finish(process, -signal.SIGKILL)
    assert not (out / "model").exists()
    # The killed pair went on for some steps after the one that was waited for.
    reached = max(int(path.name[5:]) for path in out.glob("checkpoints/step-????????"))

    process = start(corpus, out, 2, "--resume")
    wait_for_step(process, out, reached + 1)
    process.terminate()
    asked = time.monotonic()
    assert "add --resume" in finish(process, None)
    assert process.returncode != 0
    assert time.monotonic() - asked < 20

    assert "Going on from step" in finish(start(corpus, out, 2, "--resume"))
    assert rows(out) == rows(two)
    assert weights(out) == weights(two)


@pytest.mark.slow
def test_a_run_of_two_goes_on_with_one_and_then_four(corpus: Path, tmp_path: Path) -> None:
    """As ``test_kills.py`` does with forked processes, which looks at the samples too."""
    whole, moved = tmp_path / "whole", tmp_path / "moved"
    finish(start(corpus, whole, 1, "dropout_rate=0"))
    for ranks, step in ((2, STEPS // 4), (1, STEPS // 2)):
        resume = ["--resume"] if moved.exists() else []
        process = start(corpus, moved, ranks, "dropout_rate=0", *resume)
        wait_for_step(process, moved, step)
        kill(process)
        finish(process, -signal.SIGKILL)
    finish(start(corpus, moved, 4, "--resume", "dropout_rate=0"))
    for a, b in zip(rows(whole), rows(moved), strict=True):
        assert a["step"] == b["step"]
        for name in a:
            assert a[name] == pytest.approx(b[name], abs=1e-4, rel=1e-4), (a["step"], name)


def test_more_processes_than_sequences_are_refused(corpus: Path, tmp_path: Path) -> None:
    output = finish(start(corpus, tmp_path / "run", 2, batch_size=1), None)
    assert "more than the sequences of a step" in output
    assert not (tmp_path / "run" / "model").exists()


def test_one_process_needs_no_others() -> None:
    world = World()
    assert world.gathered([1.0, 2.0]) == [[1.0, 2.0]]
    assert world.told("x") == "x"
    assert world.first
    assert world.device == torch.device("cpu")
