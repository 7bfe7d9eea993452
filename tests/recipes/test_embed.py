"""``bert embed``: rows in, vectors out, in order, whole or not at all."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from bert.cli import main
from bert.predictor import Predictor

TEXTS = ["we saw the bird", "rain near us", "", "snake 的 bird", "the storm " * 60]


def run(*arguments: str | Path) -> int:
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    return int(ended.value.code or 0)


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    lines = [json.dumps({"id": i, "text": text}) for i, text in enumerate(TEXTS)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_all_formats_hold_the_vectors_in_order(
    tiny_model: Path, rows: Path, tmp_path: Path
) -> None:
    import pyarrow.parquet

    answers = Predictor(tiny_model, task="embedding")(TEXTS)
    wanted = np.array([answer["embedding"] for answer in answers], dtype=np.float32)
    for suffix in ("npy", "parquet", "jsonl"):
        assert run("embed", tiny_model, rows, "-o", tmp_path / f"out.{suffix}") == 0
    table = np.load(tmp_path / "out.npy", mmap_mode="r")
    assert table.dtype == np.float32
    assert np.array_equal(table, wanted)
    read = pyarrow.parquet.read_table(tmp_path / "out.parquet")
    assert read["text"].to_pylist() == TEXTS
    assert np.array_equal(np.array(read["embedding"].to_pylist(), dtype=np.float32), wanted)
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text("utf-8").splitlines()]
    assert [line["text"] for line in lines] == TEXTS
    assert np.array_equal(np.array([line["embedding"] for line in lines], np.float32), wanted)
    # Nothing is left beside them.
    assert {path.name for path in tmp_path.iterdir()} == {
        "rows.jsonl", "out.npy", "out.parquet", "out.jsonl"
    }  # fmt: skip


def test_more_rows_than_are_read_at_once(tiny_model: Path, tmp_path: Path) -> None:
    path = tmp_path / "lines.txt"
    words = ["bird", "rain", "storm", "fish", "us"]
    path.write_text("\n\n".join(words[i % 5] for i in range(5003)) + "\n", encoding="utf-8")
    assert run("embed", tiny_model, path, "-o", tmp_path / "out.npy") == 0
    table = np.load(tmp_path / "out.npy")
    assert table.shape == (5003, 32)
    assert np.allclose(table, np.tile(table[:5], (1001, 1))[:5003], atol=1e-6)


@pytest.mark.parametrize(
    ("name", "content", "options", "code", "said"),
    [
        ("rows.csv", "a,b\n1,2\n", [], 3, "--text"),
        ("rows.csv", "text_a,text_b\nx,y\n", [], 3, "--text text_a"),
        ("rows.csv", "text\nx\n", ["--text", "text", "--text", "text"], 2, "once"),
        ("rows.csv", "text\n", [], 3, "no rows"),
        ("rows.txt", "\n \n", [], 3, "no rows"),
        ("rows.jsonl", '{"text": "x"}\n{"text": 3}\n', [], 3, "rows.jsonl:2"),
        ("rows.jsonl", '{"text": "x"}\n{"text": \n', [], 3, "rows.jsonl:2"),
        ("rows.txt", b"x\n\xff\xfe\n", [], 3, "rows.txt:2"),
        ("rows.pdf", "x", [], 3, "rows.pdf"),
    ],
)
def test_bad_files_leave_nothing(
    name: str,
    content: str | bytes,
    options: list[str],
    code: int,
    said: str,
    tiny_model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    content = content.encode() if isinstance(content, str) else content
    (tmp_path / name).write_bytes(content)
    out = tmp_path / "out.npy"
    assert run("embed", tiny_model, tmp_path / name, "-o", out, *options, "--strict") == code
    error = capsys.readouterr().err
    assert said in error
    assert "fix:" in error
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_the_output_is_chosen_with_care(
    tiny_model: Path, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("embed", tiny_model, rows, "-o", tmp_path / "out.csv") == 2
    assert "out.npy" in capsys.readouterr().err
    assert run("embed", tiny_model, rows, "-o", rows, "--overwrite") == 2
    (tmp_path / "out.npy").write_text("mine")
    assert run("embed", tiny_model, rows, "-o", tmp_path / "out.npy") == 2
    assert (tmp_path / "out.npy").read_text() == "mine"
    assert run("embed", tiny_model, rows, "-o", tmp_path / "out.npy", "--overwrite") == 0
    assert np.load(tmp_path / "out.npy").shape == (5, 32)


def test_an_interrupted_run_leaves_no_output(tiny_model: Path, tmp_path: Path) -> None:
    rows = tmp_path / "rows.txt"
    rows.write_text("we saw the bird near us\n" * 400_000, encoding="utf-8")
    folder = tmp_path / "out"
    folder.mkdir()
    process = subprocess.Popen(
        [sys.executable, "-m", "bert", "embed", tiny_model, rows, "-o", folder / "out.npy"],
        stderr=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    began = time.monotonic()
    part = folder / ".out.npy.part"
    while time.monotonic() - began < 60 and not (part.exists() and part.stat().st_size > 1000):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 143, error
    assert b"Traceback" not in error
    assert {path.name for path in folder.iterdir()} <= {part.name, f"{part.name}.key"}
