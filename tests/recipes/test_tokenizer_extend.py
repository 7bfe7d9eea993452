"""``bert tokenizer extend``: what is added, what becomes of the rows, what stays as it was."""

from __future__ import annotations

import io
import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from bert.checkpoint import Checkpoint, read_model, write_model
from bert.cli import main
from bert.errors import DataError, UsageError
from bert.families.family import load_family
from bert.model.config import BertConfig
from bert.recipes.extend import ExtendSettings, extend_model
from bert.text.new_words import extended, new_words, word_count
from bert.text.tokenizer import Tokenizer, train_wordpiece

GENERAL = [
    "the small bird sings near the river",
    "an old stone house stands under the tree",
    "cold wind moves the bright leaves, quietly and often",
    "my party today: a dark play, empty maps, academy of comedy, again and again",
    "今天天气很好我们去公园看书",
    "他们在家里吃饭说话也很高兴",
    "大人工作能力很强而小孩爱智力游戏",
] * 4
# "cardiomyopathy" and "人工智能" are frequent; "stent" is rarer; "echo" occurs once.
DOMAIN = [
    "the cardiomyopathy of a patient, cardiomyopathy again: cardiomyopathy.",
    "a stent near the river; the stent stands",
    "echo of the tree",
    "人工智能很好。我们爱人工智能，今天的人工智能！",
    "人工智能 cardiomyopathy 人工智能",
] * 3
# The third text of each round, so that "echo" occurs only once.
DOMAIN[2::5] = ["the old tree", "echo of the tree", "the old tree"]
FAMILIES = ["bert", "roberta", "xlm_roberta", "albert", "deberta_v2", "modernbert"]


def byte_level_files() -> dict[str, bytes]:
    from tokenizers import Tokenizer as Backend
    from tokenizers import models, pre_tokenizers, trainers

    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(GENERAL, trainer)
    model = json.loads(backend.to_str())["model"]
    merges = ["#version: 0.2", *(" ".join(merge) for merge in model["merges"])]
    return {
        "vocab.json": json.dumps({**model["vocab"], "<mask>": len(model["vocab"])}).encode(),
        "merges.txt": "\n".join(merges).encode() + b"\n",
    }


def modern_files() -> dict[str, bytes]:
    from tokenizers import Tokenizer as Backend
    from tokenizers import models, normalizers, pre_tokenizers, processors

    raw = byte_level_files()
    lines = raw["merges.txt"].decode().splitlines()[1:]
    merges = [tuple(line.split(" ")) for line in lines]
    backend = Backend(models.BPE(json.loads(raw["vocab.json"]), merges))
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    names = ["[CLS]", "[SEP]", "[PAD]", "[UNK]", "[MASK]"]
    backend.add_special_tokens(names)
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B [SEP]",
        special_tokens=[(name, backend.token_to_id(name)) for name in names[:2]],
    )
    settings = {f"{name[1:-1].lower()}_token": name for name in names}
    settings |= {"tokenizer_class": "PreTrainedTokenizerFast"}
    decoder = {
        str(number): {"content": token.content, "special": token.special}
        for number, token in backend.get_added_tokens_decoder().items()
    }
    return {
        "tokenizer.json": backend.to_str().encode(),
        "tokenizer_config.json": json.dumps(settings | {"added_tokens_decoder": decoder}).encode(),
    }


def pieces(**options: Any) -> bytes:
    sentencepiece = pytest.importorskip("sentencepiece")
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(GENERAL),
        model_writer=out,
        vocab_size=140,
        hard_vocab_limit=False,
        num_threads=1,
        minloglevel=2,
        **options,
    )
    return out.getvalue()


def files_of(family: str) -> dict[str, bytes]:
    if family == "bert":
        return train_wordpiece(lambda: GENERAL, vocab_size=150, lowercase=True).files
    if family == "roberta":
        return byte_level_files()
    if family == "xlm_roberta":
        return {"sentencepiece.bpe.model": pieces()}
    if family == "albert":
        special = ["[CLS]", "[SEP]", "[MASK]"]
        options = {"pad_id": 0, "unk_id": 1, "bos_id": -1, "eos_id": -1}
        return {"spiece.model": pieces(control_symbols=special, **options)}
    if family == "modernbert":
        return modern_files()
    names = {"pad_piece": "[PAD]", "bos_piece": "[CLS]", "eos_piece": "[SEP]"}
    numbers = {"pad_id": 0, "bos_id": 1, "eos_id": 2, "unk_id": 3, "unk_piece": "[UNK]"}
    return {"spm.model": pieces(**names, **numbers)}


def model_of(name: str, path: Path, kind: str = "masked_lm", spare: int = 0) -> Path:
    """A tiny model of a family with random weights, written as transformers would find it."""
    path.mkdir(parents=True)
    for file, content in files_of(name).items():
        (path / file).write_bytes(content)
    family = load_family(name)
    tokenizer = Tokenizer.load(path, family.tokenizer)
    smallest = next(iter(family.sizes.values()))
    config: BertConfig = replace(
        smallest,
        vocab_size=tokenizer.vocab_size + spare,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        pad_token_id=tokenizer.pad_id,
    )
    torch.manual_seed(1)
    model = family.build(kind, config, 3).eval()
    if kind == "masked_lm":
        torch.nn.init.normal_(model.get_parameter("words.bias"))
    labels = ["none", "some", "all"] if kind in ("sequence", "token") else []
    write_model(path, Checkpoint(model, kind, family, labels, tokenizer))
    return path


def corpus_of(path: Path, lines: list[str] = DOMAIN) -> list[Path]:
    path.mkdir(exist_ok=True)
    (path / "domain.txt").write_text("\n".join(lines), encoding="utf-8")
    return [path / "domain.txt"]


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_words_become_tokens_and_rows_the_means(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    transformers = pytest.importorskip("transformers")
    source, out = model_of(name, tmp_path / "model"), tmp_path / "larger"
    before = read_model(source)
    words = extend_model(str(source), corpus_of(tmp_path), ExtendSettings(add=3), out)
    after = read_model(out)
    assert before.tokenizer is not None
    assert after.tokenizer is not None
    told = capsys.readouterr().err
    assert "3 words added: " in told
    assert "Tokens per word on the corpus: " in told

    # The words that were frequent and long are one token now, in English and in Chinese.
    for text in ("a cardiomyopathy of", "cardiomyopathy", "人工智能", "爱人工智能。"):
        was, now = before.tokenizer.pieces([text])[0], after.tokenizer.pieces([text])[0]
        assert len(now) < len(was), text
        assert any(number >= before.tokenizer.vocab_size for number in now), text
    first = before.tokenizer.vocab_size
    tokens = [after.tokenizer.token(number) for number in range(first, first + 3)]
    shown = [token.removeprefix("▁") for token in tokens]
    assert {"cardiomyopathy", "人工智能"} <= set(shown)
    assert "echo" not in shown

    # Each row is the mean of the old pieces' rows; what was there is as it was.
    old, new = before.model.state_dict(), after.model.state_dict()
    for weight in ("bert.embeddings.word.weight", "words.bias"):
        assert torch.equal(new[weight][: len(old[weight])], old[weight])
        for number, token in enumerate(tokens, first):
            inside = f" {token}" if name in ("roberta", "modernbert") else token.strip("▁")
            ids = before.tokenizer.pieces([inside if token.isascii() else token.strip("▁")])[0]
            if name in ("xlm_roberta", "albert", "deberta_v2") and not token.startswith("▁"):
                ids = [piece.id for piece in before.tokenizer.backend.model.tokenize(token)]
            elif token.startswith("▁"):
                ids = before.tokenizer.pieces([token[1:]])[0]
            expected = old[weight][ids].mean(dim=0)
            torch.testing.assert_close(new[weight][number], expected)
    assert all(torch.equal(new[key], value) for key, value in old.items() if "word" not in key)
    assert after.tokenizer.vocab_size == after.config.vocab_size == first + 3
    assert words.config == after.config

    # transformers reads the directory, gives the same numbers and the same logits.
    texts = [*DOMAIN, *GENERAL[:6], "a stent, [MASK] <mask> 人工智能人工 cardiomyopathys"]
    theirs = transformers.AutoTokenizer.from_pretrained(out)
    model = transformers.AutoModelForMaskedLM.from_pretrained(out).eval()
    assert model.config.vocab_size == len(theirs) == first + 3
    for text, encoded in zip(texts, after.tokenizer.encode(texts, 64), strict=True):
        assert theirs(text)["input_ids"] == encoded.input_ids, text
        ids = torch.tensor([encoded.input_ids])
        with torch.no_grad():
            torch.testing.assert_close(
                after.model(ids), model(input_ids=ids).logits, atol=1e-5, rtol=0
            )

    # Texts without a new word have the numbers that they had.
    draw = random.Random(2)
    alphabet = "card iomy stent人工智能今天,.\n"
    texts = ["".join(draw.choices(alphabet, k=draw.randint(1, 20))) for _ in range(300)]
    texts = [text for text in texts + GENERAL if not any(word in text for word in shown)]
    assert len(texts) > 250
    assert after.tokenizer.pieces(texts) == before.tokenizer.pieces(texts)


@pytest.mark.parametrize("kind", ["pretraining", "sequence", "encoder"])
def test_other_heads_are_carried(kind: str, tmp_path: Path) -> None:
    source, out = model_of("bert", tmp_path / "model", kind), tmp_path / "larger"
    extend_model(str(source), corpus_of(tmp_path), ExtendSettings(add=2), out)
    before, after = read_model(source), read_model(out)
    assert after.kind == kind
    assert after.labels == before.labels
    ids = torch.arange(5, 20)[None]
    with torch.no_grad():
        was, now = before.model(ids), after.model(ids)
    torch.testing.assert_close(now[..., : was.shape[-1]], was)


def test_spare_rows_are_used_before_rows_are_added(tmp_path: Path) -> None:
    source, out = model_of("bert", tmp_path / "model", spare=10), tmp_path / "larger"
    before = read_model(source)
    extend_model(str(source), corpus_of(tmp_path), ExtendSettings(add=2), out)
    after = read_model(out)
    assert after.config.vocab_size == before.config.vocab_size
    first = after.config.vocab_size - 10
    changed = (
        after.model.state_dict()["bert.embeddings.word.weight"]
        != (before.model.state_dict()["bert.embeddings.word.weight"])
    )
    assert changed.any(dim=1).nonzero().flatten().tolist() == [first, first + 1]


def test_the_plain_vocabulary_grows_with_it(tmp_path: Path) -> None:
    source, out = model_of("bert", tmp_path / "model"), tmp_path / "larger"
    extend_model(str(source), corpus_of(tmp_path), ExtendSettings(add=2), out)
    old = (source / "vocab.txt").read_text(encoding="utf-8")
    new = (out / "vocab.txt").read_text(encoding="utf-8")
    assert new.startswith(old)
    assert set(new[len(old) :].split()) == {"cardiomyopathy", "人工智能"}
    stored = json.loads((out / "tokenizer.json").read_text(encoding="utf-8"))
    assert "cardiomyopathy" in stored["model"]["vocab"]
    assert [token["content"] for token in stored["added_tokens"]][5:] == ["人工智能"]


def test_fewer_words_than_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = model_of("bert", tmp_path / "model"), tmp_path / "larger"
    extend_model(str(source), corpus_of(tmp_path), ExtendSettings(add=5000), out)
    assert "all that there are to add of 5,000" in capsys.readouterr().err
    tokenizer = read_model(out).tokenizer
    assert tokenizer is not None
    vocabulary = tokenizer.backend.get_vocab()
    assert "stent" in vocabulary
    assert "echo" not in vocabulary  # it occurs once
    assert "工智" not in vocabulary  # nothing but a part of a longer word
    assert "很好。我" not in vocabulary


def test_the_same_words_every_time(tmp_path: Path) -> None:
    tokenizer = train_wordpiece(lambda: GENERAL, vocab_size=150, lowercase=True)
    words = [new_words(tokenizer, texts, 50) for texts in (DOMAIN, DOMAIN[::-1])]
    assert words[0] == words[1]
    assert [word.saved for word in words[0]] == sorted(
        (word.saved for word in words[0]), reverse=True
    )
    assert extended(tokenizer, words[0]).files == extended(tokenizer, words[1]).files


def test_a_word_that_breaks_a_longer_one_is_left_out() -> None:
    from tokenizers import Tokenizer as Backend

    stored = json.loads(
        train_wordpiece(lambda: GENERAL, vocab_size=150, lowercase=True).backend.to_str()
    )
    alphabet = {f"##{letter}": 1000 + i for i, letter in enumerate("abcdefghijklmnopqrtuvwxyz")}
    vocabulary = stored["model"]["vocab"]
    for word in [*alphabet, "ph", "##oto", "##nics"]:
        vocabulary.setdefault(word, len(vocabulary))
    vocabulary.pop("##s", None)
    stored["model"]["vocab"] = {word: i for i, word in enumerate(vocabulary)}
    tokenizer = Tokenizer(Backend.from_str(json.dumps(stored)), {})
    whole = tokenizer.pieces(["photonics"])[0]
    assert tokenizer.unknown_id not in whole
    # With "photon", "photonics" would be photon ##i ##c and an s that is in no vocabulary.
    texts = ["photon photon photon"]
    assert [word.text for word in new_words(tokenizer, texts, 9)] == ["photon"]
    assert new_words(tokenizer, [*texts, "photonics"], 9) == []


def test_a_word_beside_punctuation_and_inside_another(tmp_path: Path) -> None:
    source, out = model_of("roberta", tmp_path / "model"), tmp_path / "larger"
    corpus = corpus_of(tmp_path, ["a stent, (stent) stent_size stents stent."] * 3)
    extend_model(str(source), corpus, ExtendSettings(add=1), out)
    old, new = read_model(source).tokenizer, read_model(out).tokenizer
    assert old is not None
    assert new is not None
    number = old.vocab_size
    assert new.token(number) == "stent"
    assert len(new.pieces(["river stent"])[0]) == len(old.pieces(["river"])[0]) + 1
    for text in ("a stent", "a stent.", "(stent)", "stent"):
        assert new.pieces([text])[0].count(number) == 1
        assert len(new.pieces([text])[0]) < len(old.pieces([text])[0])
    for text in ("stents", "stent_size", "distent"):
        assert new.pieces([text]) == old.pieces([text])


@pytest.mark.parametrize("name", ["xlm_roberta", "albert", "deberta_v2"])
def test_unigram_words_only_stand_for_their_old_pieces(name: str, tmp_path: Path) -> None:
    for file, content in files_of(name).items():
        (tmp_path / file).write_bytes(content)
    old = Tokenizer.load(tmp_path, load_family(name).tokenizer)
    words = new_words(old, [*DOMAIN, *GENERAL], 40)
    new = extended(old, words)
    assert len(words) == 40
    meaning = {old.vocab_size + number: word.pieces for number, word in enumerate(words)}
    draw = random.Random(3)
    parts = [word.text.replace("▁", " ") for word in words] + list("abcdest 人工智能很好,。")
    texts = ["".join(draw.choices(parts, k=draw.randint(1, 8))) for _ in range(500)]
    for was, now in zip(old.pieces(texts), new.pieces(texts), strict=True):
        assert [piece for number in now for piece in meaning.get(number, [number])] == was


def test_a_chinese_word_that_cuts_tokens_is_not_useful(tmp_path: Path) -> None:
    files = byte_level_files()
    size = len(json.loads(files["vocab.json"]))
    # One more piece: of the bytes of "是一个", from the right to the left.
    from tokenizers import pre_tokenizers

    letters = pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str("是一个")[0][0]
    vocabulary, merges = json.loads(files["vocab.json"]), files["merges.txt"].decode().splitlines()
    merges = merges[:1]
    for rest in range(len(letters) - 1, 0, -1):
        merges.append(letters[rest - 1] + " " + letters[rest:])
        vocabulary[letters[rest - 1 :]] = size + len(letters) - rest
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary))
    (tmp_path / "merges.txt").write_text("\n".join(merges))
    tokenizer = Tokenizer.load(tmp_path, load_family("roberta").tokenizer)
    assert len(tokenizer.pieces(["是一个"])[0]) == 1
    few, many = [f"是一{character}" for character in "些天本条只张块片"], ["这是一个"] * 60
    assert "是一" in {word.text for word in new_words(tokenizer, few, 9)}
    words = new_words(tokenizer, few + many, 9)
    assert "是一" not in {word.text for word in words}
    new = extended(tokenizer, words)
    for text in (*few, *many):
        assert len(new.pieces([text])[0]) <= len(tokenizer.pieces([text])[0])


def test_words_are_counted_in_both_languages() -> None:
    assert word_count("The stent's size, 今天!") == 4 + 2


def test_mistakes(tmp_path: Path) -> None:
    source = model_of("bert", tmp_path / "model")
    corpus = corpus_of(tmp_path)
    settings = ExtendSettings(add=5)
    with pytest.raises(UsageError, match="in use"):
        extend_model(str(source), corpus, settings, source)
    with pytest.raises(DataError, match="nothing to add"):
        extend_model(str(source), corpus_of(tmp_path / "x", ["tree"]), settings, tmp_path / "o")
    empty = tmp_path / "empty.txt"
    empty.write_text("")
    with pytest.raises(DataError, match="nothing to add"):
        extend_model(str(source), [empty], settings, tmp_path / "o")
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["nowhere/at-all", "{corpus}", "--out", "{out}"], 4, "Error:"),
        (["{model}", "nowhere.txt", "--out", "{out}"], 3, "nowhere.txt"),
        (["{model}", "{corpus}"], 2, "--out"),
        (["{model}", "--out", "{out}"], 2, "bert tokenizer extend --help"),
        (["{model}", "{corpus}", "--out", "{out}", "--add", "0"], 2, "add"),
        (["{model}", "{corpus}", "--out", "{out}", "--ad", "5"], 2, "did you mean --add?"),
        (["{model}", "{corpus}", "--out", "{out}", "ad=5"], 2, "did you mean add"),
    ],
)
def test_mistakes_on_the_command_line(
    arguments: list[str],
    code: int,
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = model_of("bert", tmp_path / "model")
    names = {"model": model, "corpus": corpus_of(tmp_path)[0], "out": tmp_path / "out"}
    with pytest.raises(SystemExit) as end:
        main(["tokenizer", "extend", *(item.format(**names) for item in arguments)])
    assert end.value.code == code
    assert message in capsys.readouterr().err


def test_the_command_and_a_corpus_of_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of("bert", tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    corpus = corpus_of(tmp_path / "extend")[0]
    command = ["tokenizer", "extend", str(model), str(corpus), "--add", "2", "--out", "larger"]
    with pytest.raises(SystemExit) as end:
        main(command)
    assert end.value.code == 0
    assert (tmp_path / "larger" / "model.safetensors").is_file()
    with pytest.raises(SystemExit) as end:
        main(["tokenizer", "./extend", "vocab_size=90", "--out", "trained"])
    assert end.value.code == 0
    assert (tmp_path / "trained" / "vocab.txt").is_file()
