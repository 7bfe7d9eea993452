from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken

from bert.text import words
from bert.text.tokenizer import Tokenizer
from bert.text.words import TextEncoder

LINES = [
    "Café naïve, déjà-vu; the old bird's [MASK] sings!",
    "今天天气很好。We go to the 公园...今天",
    "e\u0301 a\u0301\u0327 =\u0338 \u0301x 中\u0301文 İstanbul ΟΔΟΣ",
    "tab\there\x1fand\x00there \u200bzero \xa0nbsp\u3000wide",
    "\U00020000\U0002f800\ufa0e한국어 कि 👩\u200d🔬",
    "x" * 101 + " " + "x" * 100,
    "",
    "   ",
]


def same(encoder: TextEncoder, lines: list[str]) -> None:
    tokens, sizes = encoder.encode(lines)
    expected = encoder.tokenizer.pieces(lines)
    assert sizes.tolist() == [len(row) for row in expected]
    assert tokens.tolist() == [number for row in expected for number in row]
    assert tokens.dtype == encoder.dtype


def test_numbers_are_those_of_the_tokenizer(tokenizer: Tokenizer) -> None:
    encoder = TextEncoder(tokenizer)
    assert encoder._words is not None
    for _ in range(2):  # what is known from before, too
        same(encoder, LINES)
        same(encoder, [line for line in LINES if "[MASK]" not in line])
    same(encoder, [])


@settings(max_examples=300)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"])), max_size=4))
def test_no_text_is_encoded_otherwise(tokenizer: Tokenizer, lines: list[str]) -> None:
    same(TextEncoder(tokenizer), lines)


@given(st.lists(st.text("the bird\u0301\u0327中公.'[MASK]-İéß\u1e9eﬁ\xad\u200d\t\n"), max_size=4))
def test_no_mixture_is_encoded_otherwise(tokenizer: Tokenizer, lines: list[str]) -> None:
    same(TextEncoder(tokenizer), lines)


def test_words_are_forgotten_when_there_are_many(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(words, "WORDS_KEPT", 3)
    encoder = TextEncoder(tokenizer)
    for line in ["the old bird sings", "a river falls near", "the bird", "stone", "the old stone"]:
        same(encoder, [line])
    assert set(encoder._numbers) == {"the", "bird", "stone"}


@pytest.mark.parametrize("change", ["normalizer", "token", "type"])
def test_other_tokenizers_are_used_as_they_are(
    tokenizer: Tokenizer, tmp_path: Path, change: str
) -> None:
    from tokenizers import normalizers

    tokenizer.save(tmp_path)
    other = Tokenizer.load(tmp_path)
    if change == "normalizer":
        other.backend.normalizer = normalizers.Lowercase()
    elif change == "token":
        other.backend.add_tokens([AddedToken("old bird", normalized=True)])
        other = Tokenizer(other.backend, other.files)
    else:
        other.backend.add_tokens([AddedToken("bird", single_word=True, normalized=False)])
    encoder = TextEncoder(other)
    assert encoder._words is None
    same(encoder, [*LINES, "the old bird sings", "birds bird"])


def test_large_numbers_do_not_wrap(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    other = Tokenizer.load(tmp_path)
    other.backend.add_tokens([f"w{number}" for number in range(70_000)])
    other = Tokenizer(other.backend, other.files)
    tokens, _ = TextEncoder(other).encode(["w69999"])
    assert tokens.dtype == np.uint32
    assert tokens.max() > 2**16
