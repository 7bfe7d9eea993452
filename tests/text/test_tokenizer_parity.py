"""The numbers of every tokenizer path equal those of transformers: 100,000 fuzzed lines."""

from __future__ import annotations

import io
import itertools
import json
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from bert.families.family import load_family
from bert.text.tokenizer import Tokenizer

transformers = pytest.importorskip("transformers")
sentencepiece = pytest.importorskip("sentencepiece")

LINES = 100_000
SPECIALS = ["[CLS]", "[SEP]", "[MASK]", "[PAD]", "[UNK]", "<s>", "</s>", "<mask>", "<pad>", "<unk>"]
SPECIALS += ["[cls]", "[MASK", "MASK]", "<mask", "[ MASK ]", "▁", "##ing", "<extra>", "[new]"]
ALPHABETS = [
    "abcdefghijklmnopqrstuvwxyz",
    "ABCDEFGHIJKLMNOPQRSTUVWXYZ",
    "éèüñßçøåİıſǅﬁÆœ",
    "今天气很好我们去公园人工智能模型的是不了在中国豈𠀀𪚥",
    "あいうえおカキクケコㇰｶﾞ",
    "한국어글자ㅏㄱ각",
    "العربيةשלוםעברית",
    "नमस्तेไทยสวัสดี",
    "αβγδεζΣςжщыя",
    "0123456789①²½Ⅳ٣",
    ".,;:!?'\"`()[]{}<>/\\|@#$%^&*-_=+~。，！？、《》“”‘’…—",
    "\u0300\u0301\u0308\u0327\u20dd\u3099\ufe0f\ufe0e",
    "😀👍🏽❤🇩🇪🧑‍💻👨‍👩‍👧‍👦🏳️‍🌈⌚",
    "\u200b\u200c\u200d\u200e\u200f\u202a\u202e\u2066\ufeff\u00ad\u180e",
    "\x00\x01\x07\x08\x0b\x0c\x1b\x1c\x1f\x7f\x80\x85\x9f\ufffd\ufffe\uffff\ue000\U0010ffff",
    " \t\n\r\u00a0\u1680\u2003\u2028\u2029\u3000",
]


def fuzzed(seed: int, count: int) -> list[str]:
    """Lines of words from one alphabet or several, with special tokens and very long words."""
    draw = random.Random(seed)
    lines = [""]
    for _ in range(count - 1):
        words: list[str] = []
        for _ in range(draw.choice((1, 2, 3, 5, 8))):
            kind = draw.random()
            if kind < 0.08:
                words.append(draw.choice(SPECIALS))
            elif kind < 0.09:
                words.append(draw.choice("aéß今1") * draw.choice((99, 100, 101, 250)))
            elif kind < 0.25:
                alphabet = "".join(draw.sample(ALPHABETS, 3))
                words.append("".join(draw.choices(alphabet, k=draw.randint(1, 10))))
            elif kind < 0.6:
                words.append("".join(draw.choices(ALPHABETS[0][:8], k=draw.randint(1, 7))))
            else:
                words.append("".join(draw.choices(draw.choice(ALPHABETS), k=draw.randint(1, 7))))
        lines.append(draw.choice((" ", " ", " ", "", "  ", "\n")).join(words))
    return lines


@dataclass(frozen=True)
class Sources:
    """Files of small vocabularies, learnt from fuzzed lines."""

    wordpiece: list[str]
    cased: list[str]
    byte_level: dict[str, int]
    merges: list[str]
    albert: bytes
    xlm_roberta: bytes
    deberta: bytes


@pytest.fixture(scope="module")
def sources() -> Sources:
    from tokenizers import Tokenizer as Backend
    from tokenizers import models, pre_tokenizers, trainers

    from bert.text.tokenizer import train_wordpiece

    lines = fuzzed(1, 3000)
    words = []
    for lowercase in (True, False):
        trained = train_wordpiece(lambda: lines, vocab_size=700, lowercase=lowercase)
        words.append(trained.files["vocab.txt"].decode().split("\n")[:-1])
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    first = ["<s>", "<pad>", "</s>", "<unk>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(
        lines,
        trainers.BpeTrainer(
            vocab_size=600, special_tokens=first, initial_alphabet=alphabet, show_progress=False
        ),
    )
    model = json.loads(backend.to_str())["model"]
    vocabulary = {**model["vocab"], "<mask>": len(model["vocab"])}
    merges = ["#version: 0.2", *(" ".join(merge) for merge in model["merges"])]

    def unigram(**options: Any) -> bytes:
        out = io.BytesIO()
        clean = [line.replace("\n", " ").replace("\x00", " ") for line in lines]
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(clean),
            model_writer=out,
            vocab_size=600,
            character_coverage=0.995,
            num_threads=1,
            minloglevel=2,
            hard_vocab_limit=False,
            **options,
        )
        return out.getvalue()

    return Sources(
        *words,
        byte_level=vocabulary,
        merges=merges,
        albert=unigram(
            pad_id=0,
            unk_id=1,
            bos_id=-1,
            eos_id=-1,
            control_symbols=["[CLS]", "[SEP]", "[MASK]"],
            user_defined_symbols=["(", ")", "“"],
        ),
        xlm_roberta=unigram(),
        deberta=unigram(
            pad_id=0,
            bos_id=1,
            eos_id=2,
            unk_id=3,
            pad_piece="[PAD]",
            bos_piece="[CLS]",
            eos_piece="[SEP]",
            unk_piece="[UNK]",
            user_defined_symbols=["<extra>"],
        ),
    )


def lines_of(words: list[str]) -> bytes:
    return ("\n".join(words) + "\n").encode()


def wordpiece(sources: Sources) -> dict[str, bytes]:
    return {"vocab.txt": lines_of(sources.wordpiece)}


def cased(sources: Sources) -> dict[str, bytes]:
    return {"vocab.txt": lines_of(sources.cased)}


def windows(sources: Sources) -> dict[str, bytes]:
    return {"vocab.txt": lines_of(sources.wordpiece).replace(b"\n", b"\r\n")}


def byte_level(sources: Sources) -> dict[str, bytes]:
    return {
        "vocab.json": json.dumps(sources.byte_level).encode(),
        "merges.txt": lines_of(sources.merges),
    }


def albert(sources: Sources) -> dict[str, bytes]:
    return {"spiece.model": sources.albert}


def xlm_roberta(sources: Sources) -> dict[str, bytes]:
    return {"sentencepiece.bpe.model": sources.xlm_roberta}


def deberta(sources: Sources) -> dict[str, bytes]:
    return {"spm.model": sources.deberta}


def flags(content: str, **others: bool) -> dict[str, Any]:
    return {
        "__type": "AddedToken",
        "content": content,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "single_word": False,
        **others,
    }


def modern(sources: Sources) -> dict[str, bytes]:
    """A directory as ModernBERT's: byte-level, [CLS] and [SEP], normalized, all in one file."""
    from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors
    from tokenizers import Tokenizer as Backend

    merges = [tuple(line.split(" ")) for line in sources.merges[1:]]
    backend = Backend(models.BPE(sources.byte_level, merges))
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    names = ["[UNK]", "[CLS]", "[SEP]", "[PAD]"]
    backend.add_special_tokens([*names, AddedToken("[MASK]", lstrip=True, special=True)])
    backend.add_tokens([AddedToken("   ", normalized=True), "\n\n"])
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B [SEP]",
        special_tokens=[(name, backend.token_to_id(name)) for name in ("[CLS]", "[SEP]")],
    )
    backend.enable_truncation(7, direction="left")
    return {"tokenizer.json": backend.to_str().encode()}


@dataclass(frozen=True)
class Case:
    """A directory: its files, the settings beside them, and whether transformers saves it anew."""

    name: str
    model_type: str
    files: Callable[[Sources], dict[str, bytes]]
    settings: dict[str, Any] | None = None
    more: dict[str, Any] = field(default_factory=dict)  # other JSON files
    saved: bool = False  # written again by transformers: tokenizer.json and its settings
    edit: dict[str, Any] = field(default_factory=dict)  # then changed in tokenizer_config.json


NAMED = {f"{role.lower()}_token": f"[{role}]" for role in ("UNK", "CLS", "SEP", "PAD", "MASK")}
CASES = [
    Case("bert-vocab", "bert", wordpiece),
    Case("bert-json", "bert", wordpiece, saved=True),
    Case(
        "bert-cased",
        "bert",
        cased,
        {"do_lower_case": False, "tokenizer_class": "BertTokenizer", "mask_token": flags("[MASK]")},
        {"special_tokens_map.json": {"unk_token": "[UNK]", "sep_token": flags("[SEP]")}},
    ),
    Case(
        "bert-settings",
        "bert",
        cased,
        {"do_lower_case": False, "strip_accents": True, "tokenize_chinese_chars": False},
        {"added_tokens.json": {"<extra>": 700, "[new]": 701}},
    ),
    Case(
        "bert-disagreeing",
        "bert",
        cased,
        {"do_lower_case": False},
        saved=True,
        edit={"do_lower_case": True, "tokenize_chinese_chars": False},
    ),
    Case("bert-windows", "bert", windows, {"additional_special_tokens": ["<extra>", "[new]"]}),
    Case("distilbert", "distilbert", wordpiece, {"tokenizer_class": "DistilBertTokenizer"}),
    Case("electra-json", "electra", wordpiece, {"tokenizer_class": "ElectraTokenizer"}, saved=True),
    Case("roberta-raw", "roberta", byte_level),
    Case(
        "roberta-json",
        "roberta",
        byte_level,
        {"mask_token": flags("<mask>", lstrip=True), "tokenizer_class": "RobertaTokenizer"},
        saved=True,
    ),
    Case("roberta-prefix", "roberta", byte_level, {"add_prefix_space": True}, saved=True),
    Case("albert-raw", "albert", albert),
    Case("albert-json", "albert", albert, saved=True),
    Case(
        "albert-settings",
        "albert",
        albert,
        {
            "do_lower_case": False,
            "keep_accents": True,
            "mask_token": flags("[MASK]", lstrip=True),
            "truncation_side": "left",
        },
    ),
    Case("xlm-roberta-raw", "xlm-roberta", xlm_roberta),
    Case("xlm-roberta-json", "xlm-roberta", xlm_roberta, saved=True),
    Case(
        "xlm-roberta-elsewhere",
        "bert",
        xlm_roberta,
        {"tokenizer_class": "XLMRobertaTokenizer", "mask_token": flags("<mask>", lstrip=True)},
        {"special_tokens_map.json": {"additional_special_tokens": ["[new]"]}},
        saved=True,
    ),
    Case(
        "deberta-raw",
        "deberta-v2",
        deberta,
        {"do_lower_case": False, "vocab_type": "spm"},
        {"added_tokens.json": {"[MASK]": 600}},
    ),
    Case("deberta-json", "deberta-v2", deberta, saved=True),
    Case("deberta-unknown", "deberta-v2", deberta, saved=True, edit={"unk_id": 1}),
    Case(
        "deberta-settings", "deberta-v2", deberta, {"do_lower_case": True, "split_by_punct": True}
    ),
    Case("modernbert", "modernbert", modern, {"tokenizer_class": "BertTokenizer"} | NAMED),
    Case(
        "generic-class",
        "bert",
        modern,
        {
            **NAMED,
            "tokenizer_class": "PreTrainedTokenizerFast",
            "added_tokens_decoder": {"9": {"content": "[new]", "lstrip": True, "special": False}},
            "split_special_tokens": True,
        },
    ),
]


def directory_of(case: Case, sources: Sources, path: Path) -> Path:
    path.mkdir()
    for name, content in case.files(sources).items():
        (path / name).write_bytes(content)
    (path / "config.json").write_text(json.dumps({"model_type": case.model_type}))
    if case.settings is not None:
        (path / "tokenizer_config.json").write_text(json.dumps(case.settings))
    for name, value in case.more.items():
        (path / name).write_text(json.dumps(value))
    if case.saved:
        theirs = transformers.AutoTokenizer.from_pretrained(path)
        shutil.rmtree(path)
        theirs.save_pretrained(path)
        (path / "config.json").write_text(json.dumps({"model_type": case.model_type}))
        assert (path / "tokenizer.json").is_file()
        settings = json.loads((path / "tokenizer_config.json").read_text())
        (path / "tokenizer_config.json").write_text(json.dumps(settings | case.edit))
    return path


def theirs_encoded(theirs: Any, texts: list[Any], length: int) -> list[tuple[Any, Any]]:
    pair = isinstance(texts[0], tuple)
    columns = [list(column) for column in zip(*texts, strict=True)] if pair else [texts]
    found = theirs(
        *columns,
        truncation=True,
        max_length=length,
        return_token_type_ids=True,
        return_attention_mask=False,
    )
    return list(zip(found["input_ids"], found["token_type_ids"], strict=True))


@pytest.mark.parametrize("number", range(len(CASES)), ids=[case.name for case in CASES])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_numbers_equal_those_of_transformers(number: int, sources: Sources, tmp_path: Path) -> None:
    case = CASES[number]
    path = directory_of(case, sources, tmp_path / "model")
    theirs = transformers.AutoTokenizer.from_pretrained(path)
    ours = Tokenizer.load(path, load_family(case.model_type).tokenizer)
    lines = fuzzed(100 + number, -(-LINES // len(CASES)))
    singles = lines[: len(lines) * 2 // 3]
    rest = lines[len(singles) :]
    pairs = list(itertools.pairwise(rest))[::2]
    unknown = total = 0
    for texts, length in ((singles[::2], 512), (singles[1::2], 12), (pairs, 16)):
        expected = theirs_encoded(theirs, texts, length)
        for text, our, (ids, types) in zip(
            texts, ours.encode(texts, length), expected, strict=True
        ):
            assert (our.input_ids, our.token_type_ids) == (ids, types), text
            unknown += our.input_ids.count(ours.unknown_id)
            total += len(ids)
    assert unknown < total / 2, "too many unknown pieces to compare anything"
    for role in ("pad", "cls", "sep", "mask"):
        assert getattr(ours, f"{role}_id") == getattr(theirs, f"{role}_token_id")
    assert ours.unknown_id == theirs.unk_token_id
    assert ours.vocab_size == max(theirs.get_vocab().values()) + 1
    added = ours.backend.get_added_tokens_decoder()
    assert {number: repr(token) for number, token in added.items()} == {
        number: repr(token) for number, token in theirs.added_tokens_decoder.items()
    }
    # Written again, it is the same to the byte, and gives the same numbers.
    ours.save(tmp_path / "again")
    again = Tokenizer.load(tmp_path / "again", load_family(case.model_type).tokenizer)
    assert again.files == ours.files
    assert again.encode(singles[:50], 30) == ours.encode(singles[:50], 30)
