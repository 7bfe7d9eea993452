"""``bert summarize``: sentences of the text itself, in its order, that do not repeat each other."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bert.cli import main
from bert.recipes.summarize import RELEVANCE, choose

ENGLISH = "We saw the bird. Rain near us. We saw the bird. A storm saw the fish. The snake! "
CHINESE = "今天天气很好。我们去公园玩。晚上下雨了吗？不知道。"


def run(*arguments: str | Path) -> int:
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    return int(ended.value.code or 0)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 9999), st.integers(1, 12), st.integers(1, 6))
def test_each_sentence_is_the_best_next_one(seed: int, count: int, wanted: int) -> None:
    table = np.random.default_rng(seed).normal(size=(count, 4))
    unit = table / np.linalg.norm(table, axis=1, keepdims=True)
    centre = unit.mean(axis=0) / np.linalg.norm(unit.mean(axis=0))
    taken: list[int] = []
    for _ in range(min(wanted, count)):
        worth = {
            i: RELEVANCE * (unit[i] @ centre)
            - (1 - RELEVANCE) * max((unit[i] @ unit[j] for j in taken), default=0)
            for i in range(count)
            if i not in taken
        }
        taken.append(max(worth, key=lambda i: worth[i]))
    assert choose(table, wanted) == sorted(taken)


def test_what_was_said_is_not_said_again() -> None:
    table = np.array([[1.0, 0.1, 0.0], [1.0, 0.1, 0.0], [1.0, 0.0, 0.1], [0.3, 1.0, 0.3]])
    assert choose(table, 2) != [0, 1]
    assert choose(np.ones((5, 3)), 3) == choose(np.ones((5, 3)), 3)


@pytest.mark.parametrize("text", [ENGLISH, CHINESE])
def test_sentences_come_in_the_order_of_the_text(
    text: str,
    tiny_model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = tmp_path / "text.txt"
    path.write_text(text, encoding="utf-8")
    assert run("summarize", tiny_model, path, "--sentences", "2") == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert 0 <= text.find(lines[0]) < text.find(lines[1], text.find(lines[0]) + 1)
    given = io.TextIOWrapper(io.BytesIO(text.encode()))
    monkeypatch.setattr(sys, "stdin", given)
    assert run("summarize", tiny_model, "-", "--sentences", "2") == 0
    assert capsys.readouterr().out.splitlines() == lines
    assert run("summarize", tiny_model, path, "--sentences", "99") == 0
    assert len(capsys.readouterr().out.splitlines()) in (4, 5)


def test_no_text_and_no_utf8(
    tiny_model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = tmp_path / "text.txt"
    for content in (b" \n", b"caf\xe9 au lait. No."):
        path.write_bytes(content)
        assert run("summarize", tiny_model, path) == 3
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
        assert run("summarize", tiny_model, "-") == 3
    error = capsys.readouterr().err
    assert error.count("Error:") == error.count("fix:") == 4
    assert run("summarize", tiny_model, tmp_path / "absent.txt") == 3
