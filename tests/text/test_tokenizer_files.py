"""Tokenizer files that are older, damaged or hostile, and the reader of SentencePiece files."""

from __future__ import annotations

import base64
import io
import json
import random
import struct
from pathlib import Path
from typing import Any

import pytest

from bert.errors import ModelError
from bert.text.spiece import read_pieces
from bert.text.tokenizer import (
    ALBERT,
    AS_WRITTEN,
    BYTE_LEVEL,
    WORDPIECE,
    XLM_ROBERTA,
    Tokenizer,
    TokenizerForm,
    train_wordpiece,
)

sentencepiece = pytest.importorskip("sentencepiece")

TEXTS = ["the old bird sings near the river", "a cold wind falls under the tree", "今天 天气"]


@pytest.fixture(scope="module")
def pieces() -> bytes:
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS * 20),
        model_writer=out,
        vocab_size=60,
        hard_vocab_limit=False,
        minloglevel=2,
        user_defined_symbols=["<x>"],
        num_threads=1,
    )
    return out.getvalue()


def wordpiece_files() -> dict[str, bytes]:
    return train_wordpiece(lambda: TEXTS * 3, vocab_size=80, lowercase=True).files


def write(path: Path, files: dict[str, Any]) -> Path:
    path.mkdir(exist_ok=True)
    for name, content in files.items():
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        (path / name).write_bytes(data)
    return path


def test_pieces_are_those_of_sentencepiece(pieces: bytes) -> None:
    theirs = sentencepiece.SentencePieceProcessor(model_proto=pieces)
    ours = read_pieces(pieces, "spiece.model")
    assert [text for text, _ in ours.pieces] == [
        theirs.id_to_piece(number) for number in range(theirs.get_piece_size())
    ]
    assert [score for _, score in ours.pieces] == [
        theirs.get_score(number) for number in range(theirs.get_piece_size())
    ]
    assert ours.unknown == theirs.unk_id()
    assert ours.symbols == [("<s>", True), ("</s>", True), ("<x>", False)]
    assert ours.charsmap is not None
    assert len(ours.charsmap) > 100_000


def test_a_file_without_a_table_of_characters_has_none() -> None:
    piece = b"\x0a\x01a"
    content = read_pieces(b"\x0a\x03" + piece, "spiece.model")
    assert content == ([("a", 0.0)], [], 0, None)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "damaged"),
        (b"not a model at all", "damaged"),
        (b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", "damaged"),  # an endless number
        (b"\x0a\xff\xff\xff\xff\x0f", "damaged"),  # four gigabytes are announced
        (b"\x0a\x00", "damaged"),  # a piece without text
        (b"\x0a\x03\x0a\x01\xff", "damaged"),  # text that is no UTF-8
        (b"\x0a\x08\x0a\x01a\x15\x00\x00\xc0\x7f", "damaged"),  # a score that is no number
        (b"\x0a\x08\x0a\x01a\x15\x00\x00\x80\x7f", "damaged"),  # an infinite one
        (b"\x0a\x03\x08\x01\x61", "damaged"),  # a number in the place of the text
        (b"\x0a\x03\x0a\x01a\x0b", "damaged"),  # a shape that is no longer used
        (b"\x0a\x03\x0a\x01a\x12\x03\xc0\x02\x07", "damaged"),  # unknown piece 7 of 1
        (b"\x0a\x03\x0a\x01a\x12\x02\x18\x02", "no Unigram model"),  # byte pairs
        (b"\x0a\x03\x0a\x01a\x1a\x06\x12\x04\xff\xff\xff\xff", "table of characters"),
    ],
)
def test_damaged_pieces_are_refused(content: bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=message):
        read_pieces(content, "spiece.model")
    with pytest.raises(ModelError, match=message) as found:
        Tokenizer.load(write(tmp_path / "m", {"spiece.model": content}), ALBERT)
    assert found.value.fix
    assert found.value.where


def test_too_many_pieces_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bert.text.spiece._MOST_PIECES", 1000)
    assert len(read_pieces(b"\x0a\x03\x0a\x01a" * 1000, "spiece.model").pieces) == 1000
    with pytest.raises(ModelError, match=r"more than 1,000 pieces"):
        read_pieces(b"\x0a\x03\x0a\x01a" * 1001, "spiece.model")


@pytest.mark.parametrize("form", [ALBERT, AS_WRITTEN])
def test_a_tree_that_would_fill_the_memory_is_refused(form: TokenizerForm, tmp_path: Path) -> None:
    draw = random.Random(1)
    letters = "".join(draw.choices("abcdefgh", k=6000))
    apart = [[str(number) + letters, -1.0] for number in range(10, 800)]
    alike = [[letters + str(number), -1.0] for number in range(10, 800)]
    special = [["<pad>", 0.0], ["<unk>", 0.0], ["[CLS]", 0.0], ["[SEP]", 0.0], ["[MASK]", 0.0]]
    names = {"pad_token": "<pad>", "unk_token": "<unk>"}
    for vocabulary, refused in ((apart, True), (alike, False)):
        stored = {
            "added_tokens": [],
            "model": {"type": "Unigram", "unk_id": 1, "vocab": special + vocabulary},
        }
        write(tmp_path / "m", {"tokenizer.json": stored, "tokenizer_config.json": names})
        if refused:
            with pytest.raises(ModelError, match="more than 4,194,304 nodes"):
                Tokenizer.load(tmp_path / "m", form)
        else:
            assert Tokenizer.load(tmp_path / "m", form).vocab_size == 5 + len(alike)


def test_changed_bytes_never_end_the_program(
    pieces: bytes, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    draw = random.Random(1)
    head = pieces[:5000]
    refused = 0
    for _ in range(150):
        changed = bytearray(pieces if draw.random() < 0.5 else head)
        if draw.random() < 0.3:
            del changed[draw.randrange(len(changed)) :]
        for _ in range(draw.randint(1, 6)):
            if changed:
                changed[draw.randrange(len(changed))] = draw.randrange(256)
        write(tmp_path / "m", {"sentencepiece.bpe.model": bytes(changed)})
        try:
            Tokenizer.load(tmp_path / "m", XLM_ROBERTA).encode(["the ﬁ ① old bird 今天"], 12)
        except ModelError:
            refused += 1
    assert refused > 50
    assert "panicked" not in capfd.readouterr().err


def test_a_damaged_table_in_tokenizer_json_is_refused_quietly(
    pieces: bytes, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    ours = Tokenizer.load(write(tmp_path / "raw", {"spiece.model": pieces}), ALBERT)
    stored = json.loads(ours.backend.to_str())
    for step in stored["normalizer"]["normalizers"]:
        if step["type"] == "Precompiled":
            table = base64.b64decode(step["precompiled_charsmap"])
            size = struct.pack("<I", 2**31)
            step["precompiled_charsmap"] = base64.b64encode(size + table[4:]).decode()
    for form in (ALBERT, AS_WRITTEN):
        with pytest.raises(ModelError, match="table of characters"):
            Tokenizer.load(write(tmp_path / "json", {"tokenizer.json": stored}), form)
    assert not capfd.readouterr().err


HOSTILE: list[tuple[dict[str, Any], str]] = [
    ({"tokenizer.json": b"{"}, "tokenizer.json cannot be read"),
    ({"tokenizer.json": b"\xff\xfe"}, "tokenizer.json cannot be read"),
    ({"tokenizer.json": b"[" * 100_000}, "tokenizer.json cannot be read"),
    ({"tokenizer.json": []}, "not a table of names"),
    ({"tokenizer.json": {}}, "has no model"),
    ({"tokenizer.json": {"model": {"type": "WordPiece", "vocab": 3}}}, "cannot be read"),
    ({"tokenizer.json": {"model": {"type": "WordPiece", "vocab": {"a": -1}}}}, "cannot be read"),
    ({"tokenizer.json": {"model": {"type": "os.system", "vocab": {}}}}, "cannot be read"),
    ({"vocab.txt": b"a\nb\n"}, r"has no \[UNK\]"),
    ({"vocab.txt": b""}, r"has no \[UNK\]"),
    ({"vocab.txt": b"\xff\n"}, "cannot be read"),
    ({"tokenizer_config.json": b"nonsense"}, "tokenizer_config.json cannot be read"),
    ({"tokenizer_config.json": {"mask_token": 7}}, "no special token"),
    ({"tokenizer_config.json": {"mask_token": {"content": None}}}, "no special token"),
    ({"tokenizer_config.json": {"do_lower_case": "yes"}, "tokenizer.json": b"-"}, "cannot be"),
    ({"tokenizer_config.json": {"added_tokens_decoder": {"x": "y"}}}, "cannot be read"),
    ({"tokenizer_config.json": {"added_tokens_decoder": 7}}, "cannot be read"),
    ({"tokenizer_config.json": {"truncation_side": "up"}}, "left or right"),
    ({"added_tokens.json": [1]}, "not a table"),
    ({"special_tokens_map.json": {"cls_token": ["x"]}}, "no special token"),
]


@pytest.mark.parametrize("number", range(len(HOSTILE)))
def test_hostile_files_are_refused_in_one_line(number: int, tmp_path: Path) -> None:
    changes, message = HOSTILE[number]
    files = {"vocab.txt": wordpiece_files()["vocab.txt"], **changes}
    with pytest.raises(ModelError, match=message) as found:
        Tokenizer.load(write(tmp_path / "m", files))
    assert found.value.exit_code == 4
    assert "\n" not in found.value.what
    assert found.value.fix
    assert str(tmp_path) in str(found.value.where)


def test_a_file_that_is_too_large_is_not_opened(tmp_path: Path) -> None:
    path = write(tmp_path / "m", wordpiece_files())
    with (path / "tokenizer.json").open("r+b") as file:
        file.truncate(2**40)  # takes no room on disk
    with pytest.raises(ModelError, match="implausibly large"):
        Tokenizer.load(path)


def test_the_missing_files_are_those_of_the_family(tmp_path: Path) -> None:
    for form, needed in (
        (WORDPIECE, "it needs tokenizer.json or vocab.txt:"),
        (BYTE_LEVEL, "it needs tokenizer.json or vocab.json and merges.txt:"),
        (AS_WRITTEN, "it needs tokenizer.json:"),
    ):
        with pytest.raises(ModelError, match="no tokenizer here") as found:
            Tokenizer.load(tmp_path, form)
        assert str(found.value.fix).startswith(needed)


def test_a_chinese_albert_has_a_bert_vocabulary(tmp_path: Path) -> None:
    files = {"vocab.txt": wordpiece_files()["vocab.txt"]}
    bert = Tokenizer.load(write(tmp_path / "bert", files))
    albert = Tokenizer.load(write(tmp_path / "albert", files), ALBERT)
    assert albert.encode(TEXTS, 20) == bert.encode(TEXTS, 20)
    assert albert.mask_id == bert.mask_id


def test_the_model_may_name_the_tokenizer(pieces: bytes, tmp_path: Path) -> None:
    files: dict[str, Any] = {"sentencepiece.bpe.model": pieces, "spiece.model": pieces}
    xlm = Tokenizer.load(write(tmp_path / "xlm", files), XLM_ROBERTA)
    files["config.json"] = {"model_type": "albert", "tokenizer_class": "XLMRobertaTokenizerFast"}
    named = Tokenizer.load(write(tmp_path / "named", files), ALBERT)
    assert named.encode(TEXTS, 20) == xlm.encode(TEXTS, 20)
    assert named.mask_token == "<mask>"


def test_an_unknown_class_is_compared_and_never_imported(tmp_path: Path) -> None:
    files: dict[str, Any] = {**wordpiece_files()}
    settings = json.loads(files["tokenizer_config.json"])
    expected = Tokenizer.load(write(tmp_path / "a", files)).encode(TEXTS, 20)
    settings |= {"tokenizer_class": "evil.module.Tokenizer", "auto_map": {"AutoTokenizer": ["x.y"]}}
    files["tokenizer_config.json"] = settings
    assert Tokenizer.load(write(tmp_path / "b", files)).encode(TEXTS, 20) == expected


def test_only_a_line_feed_ends_a_line(tmp_path: Path) -> None:
    files = wordpiece_files()
    words = files["vocab.txt"] + "one\x1f\r\ntwo\u2028parts\nthree \u3000\n\n".encode()
    tokenizer = Tokenizer.load(write(tmp_path / "m", {"vocab.txt": words}))
    first = len(files["vocab.txt"].splitlines())
    found = [tokenizer.token(number) for number in range(first, tokenizer.vocab_size)]
    assert found == ["one\x1f", "two\u2028parts", "three"]


def test_the_size_counts_to_the_largest_number(tmp_path: Path) -> None:
    stored = json.loads(wordpiece_files()["tokenizer.json"])
    stored["model"]["vocab"]["far"] = 5000
    tokenizer = Tokenizer.load(write(tmp_path / "m", {"tokenizer.json": stored}))
    assert tokenizer.vocab_size == 5001
    assert 5000 in tokenizer.pieces(["far"])[0]


def test_every_file_is_carried(tmp_path: Path, pieces: bytes) -> None:
    files: dict[str, Any] = {
        "spiece.model": pieces,
        "tokenizer_config.json": {"do_lower_case": False},
        "special_tokens_map.json": {"cls_token": "[CLS]"},
    }
    loaded = Tokenizer.load(write(tmp_path / "m", files), ALBERT)
    loaded.save(tmp_path / "again")
    for name in files:
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "m" / name).read_bytes()
