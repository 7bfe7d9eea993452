"""``bert search``: the nearest rows, found exactly, with the file read once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bert.cli import main
from bert.predictor import Predictor
from bert.recipes import search
from bert.recipes.search import nearest, search_file


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 9999), st.integers(1, 40), st.integers(1, 12), st.integers(1, 7))
def test_blocks_find_what_a_sort_finds(seed: int, count: int, top: int, block: int) -> None:
    draw = np.random.default_rng(seed)
    table = draw.integers(-2, 3, (count, 3)).astype(np.float32)  # with zeros and equal ones
    query = draw.normal(size=3).astype(np.float32)
    lengths = np.maximum(np.linalg.norm(table, axis=1), 1e-12) * np.linalg.norm(query)
    cosines = table @ query / lengths
    before, search.VECTORS_AT_ONCE = search.VECTORS_AT_ONCE, block
    try:
        places, found = nearest(table, query, top)
    finally:
        search.VECTORS_AT_ONCE = before
    assert len(places) == min(top, count) == len(set(places.tolist()))
    assert np.allclose(found, np.sort(cosines)[::-1][:top], atol=1e-5)
    assert np.allclose(cosines[places], found, atol=1e-5)


ROWS = [
    {"id": 7, "said": "we saw the bird near the horse"},
    {"id": 8, "said": "rain\u001b[2J and storm"},
    {"id": 9, "said": "fish near the snake"},
]


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    return path


def test_the_same_text_is_found_first_and_the_file_is_read_once(
    tiny_model: Path,
    rows: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    query = str(ROWS[2]["said"])
    first = search_file(str(tiny_model), rows, query, ["said"], 2, as_json=True)
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert lines == first
    assert len(first) == 2
    assert first[0]["score"] == pytest.approx(1, abs=1e-5)
    assert (first[0]["where"], first[0]["row"]) == (f"{rows}:3", {"id": 9})

    asked: list[Any] = []
    call = Predictor.__call__

    def counted(self: Predictor, texts: Any) -> Any:
        asked.append(texts)
        return call(self, texts)

    monkeypatch.setattr(Predictor, "__call__", counted)
    assert search_file(str(tiny_model), rows, query, ["said"], 2, as_json=True) == first
    assert asked == [query]
    # Another file under the same name is read anew.
    rows.write_text(rows.read_text("utf-8").replace("fish", "wind"), encoding="utf-8")
    again = search_file(str(tiny_model), rows, query, ["said"], 5, as_json=True)
    assert len(asked) == 3
    assert len(again) == 3
    assert max(answer["score"] for answer in again) < 1 - 1e-5


def test_what_is_printed_cannot_move_the_cursor(
    tiny_model: Path, rows: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["search", str(tiny_model), str(rows), "storm", "--text", "said", "--top", "9"])
    assert ended.value.code == 0
    out = capsys.readouterr().out
    assert len(out.splitlines()) == 3
    assert "\u001b" not in out
    scores = [float(line.split()[0]) for line in out.splitlines()]
    assert scores == sorted(scores, reverse=True)


def test_an_empty_question(
    tiny_model: Path, rows: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["search", str(tiny_model), str(rows), " ", "--text", "said"])
    assert ended.value.code == 2
    assert "question is empty" in capsys.readouterr().err
