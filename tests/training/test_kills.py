"""Killed, terminated and moved among processes: ``benchmarks/kills.py``, a little of it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from bert.config import Settings
from bert.errors import UsageError
from bert.run import open_run

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "kills.py"
needs_script = pytest.mark.skipif(not SCRIPT.exists(), reason="benchmarks/ is not there")


def measured(folder: Path, monkeypatch: pytest.MonkeyPatch, *options: str) -> str:
    """What it prints, which must be no failure; runs and what they leave stay in a folder."""
    monkeypatch.setenv("TMPDIR", str(folder))
    process = subprocess.run([sys.executable, SCRIPT, *options], capture_output=True, text=True)
    assert process.returncode == 0, process.stdout + process.stderr
    assert "\n0 failures" in process.stdout
    assert not list(folder.glob("kills-*"))
    return process.stdout


@needs_script
def test_some_kills_and_signals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every pair of accumulation, ranks and objective; a phase of each kind of handling."""
    output = measured(
        tmp_path, monkeypatch, "--kills", "4", "--four-ranks", "0", "--operations", "0",
        "--torchrun", "0", "--signals", "step", "report", "--all-only", "--worlds", "mlm+nsp",
    )  # fmt: skip
    kills = {kind: int(count) for kind, count in re.findall(r"killed  (.+): (\d+) times", output)}
    assert len(kills) == 4
    assert sum(kills.values()) >= 4
    saving = re.findall(r", (\d+) inside saving", output)
    assert sum(map(int, saving)) >= 2
    assert len(re.findall(r"SIGTERM  (step|report): [12] ranks, all: \[", output)) == 4
    assert "2, 1 and 4 ranks  mlm+nsp: losses differ by at most" in output


@needs_script
@pytest.mark.slow
def test_the_whole_matrix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = measured(tmp_path, monkeypatch)
    found = re.search(r"\nkills: (\d+)", output)
    assert found
    assert int(found[1]) >= 100


class Few(Settings):
    """Settings of some run."""

    seed: int = 1


def opened(out: Path, *, resume: bool = False, overwrite: bool = False) -> Path:
    return open_run(out, "pretrain", Few(), "abc", resume=resume, overwrite=overwrite)


@pytest.mark.parametrize("number", range(3))
@pytest.mark.parametrize("state", ["new", "resumed", "overwritten"])
def test_a_run_whose_folder_was_being_made_can_be_gone_on_with(
    state: str, number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped between a file's writing and its moving into place."""
    out = tmp_path / "run"
    how = {"resume": state == "resumed", "overwrite": state == "overwritten"}
    if state != "new":
        opened(out)
        (out / "checkpoints").mkdir()
    left = number
    replace = Path.replace

    def stopped(self: Path, target: Path) -> Path:
        nonlocal left
        if not left:
            raise KeyboardInterrupt
        left -= 1
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", stopped)
    with pytest.raises(KeyboardInterrupt):
        opened(out, **how)
    monkeypatch.undo()
    opened(out, resume=(out / "config.yaml").exists())
    assert {path.name for path in out.iterdir()} == {"config.yaml", "command.txt", "env.json"} | (
        {"checkpoints"} if state == "resumed" else set()
    )


def test_a_run_without_its_facts_is_no_new_one(tmp_path: Path) -> None:
    """Only where nothing was learnt may they be missing."""
    out = opened(tmp_path / "run")
    (out / "env.json").unlink()
    (out / "checkpoints").mkdir()
    with pytest.raises(UsageError, match="data has changed"):
        opened(out, resume=True)


def test_what_a_killed_run_was_writing_is_removed(tmp_path: Path) -> None:
    out = opened(tmp_path / "run")
    (out / ".model-x1y2").mkdir()
    (out / ".report.html.7.tmp").write_text("<html>")
    (out / ".gitignore").write_text("*")
    opened(out, resume=True)
    assert [path.name for path in out.glob(".*")] == [".gitignore"]


def test_overwriting_removes_the_settings_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a run that was stopped in between would leave a folder that is nobody's."""
    out = opened(tmp_path / "run")
    (out / "metrics.jsonl").write_text("{}")
    unlink = Path.unlink

    def stopped(self: Path, missing_ok: bool = False) -> None:
        unlink(self, missing_ok)
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "unlink", stopped)
    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            opened(out, overwrite=True)
    monkeypatch.undo()
    assert [path.name for path in out.iterdir()] == ["config.yaml"]
    opened(out, overwrite=True)
