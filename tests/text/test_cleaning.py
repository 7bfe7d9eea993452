from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bert.text.cleaning import NAMES, clean, count_kinds, fault_of, script_of


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("e\u0301te\u200b\u0301", "été"),
        ("a\r\nb\rc\u2028d\x85e", "a\nb\nc\nd\ne"),
        ("co\xadop\u200ber\u2060a\ufefftion\x00\x1b", "cooperation"),
        ("  a \t b\xa0\u3000c \n\n \n d", "a b c\nd"),
        ("一\u3000\u3000二", "一 二"),
        ("👩\u200d🔬 क\u094d\u200dष", "👩\u200d🔬 क\u094d\u200dष"),  # joiners are needed
        ("", ""),
        (" \n\x00 ", ""),
    ],
)
def test_clean(before: str, after: str) -> None:
    assert clean(before) == after


@given(st.text())
def test_clean_text_stays_as_it_is(text: str) -> None:
    once = clean(text)
    assert clean(once) == once
    assert unicodedata.is_normalized("NFC", once)


@given(st.text("abc一é.\n ", max_size=50))
def test_cleaning_changes_no_words(text: str) -> None:
    assert clean(text).split() == text.split()


def kinds(text: str) -> dict[str, int]:
    return {name: int(n) for name, n in zip(NAMES, count_kinds(text), strict=False) if n}


def test_letters_are_counted_by_script() -> None:
    text = "Ab é 中文 かな 한 Жя ως سل שם हिन्दी ไทย ა 12 !? 𠀀\U0010ffff"
    assert kinds(text) == {
        "latin": 3, "han": 3, "kana": 2, "hangul": 1, "cyrillic": 2, "greek": 2, "arabic": 2,
        "hebrew": 2, "devanagari": 6, "thai": 3, "other": 1,
    }  # fmt: skip
    assert count_kinds(text).sum() == len(text)
    assert script_of(count_kinds("中文 ab 中")) == "han"
    assert script_of(count_kinds("12 !")) is None


@given(st.text())
def test_every_character_has_one_kind(text: str) -> None:
    assert count_kinds(text).sum() == len(text)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("a" * 29, "too_short"),
        ("a" * 30, None),
        ("一" * 30, None),
        ("a" * 30 + "1" * 30 + " " * 90, None),  # blanks are neither
        ("a" * 30 + "1" * 31, "few_letters"),
        ("line of text\n" * 5 + "another line of text and more", "repeated_lines"),
        ("line of text\n" * 2 + "another line of text and more", None),
    ],
)
def test_faults(text: str, fault: str | None) -> None:
    assert fault_of(text, count_kinds(text)) == fault
