"""Text to token numbers: WordPiece training, and the tokenizer files of a model directory."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from bert.errors import DataError, ModelError

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend

SPECIAL_TOKENS = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}
# The files in which a Hugging Face directory keeps its tokenizer, copied as they are.
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
)

Texts = str | tuple[str, str]  # one text, or a pair


class Encoded(NamedTuple):
    """One text or pair as the model reads it."""

    input_ids: list[int]
    token_type_ids: list[int]
    truncated: bool


class Tokenizer:
    """A tokenizer and the files it came from.

    Args:
        backend: the ``tokenizers.Tokenizer`` that does the work.
        files: name -> content of the files that describe it in a model directory.
    """

    def __init__(self, backend: Backend, files: dict[str, bytes]) -> None:
        self.backend = backend
        self.files = files
        settings = json.loads(files.get("tokenizer_config.json", b"{}"))
        names: dict[str, str] = {}
        numbers: dict[str, int] = {}
        for role, default in SPECIAL_TOKENS.items():
            value = settings.get(role) or default
            names[role] = value["content"] if isinstance(value, dict) else value
            number = backend.token_to_id(names[role])
            if number is None:
                raise ModelError(f"The tokenizer has no {role} {names[role]!r}.")
            numbers[role] = number
        self.pad_id, self.unknown_id, self.cls_id, self.sep_id, self.mask_id = (
            numbers[role] for role in SPECIAL_TOKENS
        )
        self.mask_token: str = names["mask_token"]

    @property
    def vocab_size(self) -> int:
        """How many tokens there are, special ones included."""
        return int(self.backend.get_vocab_size(with_added_tokens=True))

    def encode(self, texts: Sequence[Texts], max_length: int) -> list[Encoded]:
        """Texts or pairs with their special tokens, at most ``max_length`` tokens each.

        A pair that is too long loses tokens from the end of its longer text.
        """
        self.backend.enable_truncation(max_length)
        return [
            Encoded(encoding.ids, encoding.type_ids, bool(encoding.overflowing))
            for encoding in self.backend.encode_batch(list(texts))
        ]

    def pieces(self, texts: Sequence[str]) -> list[list[int]]:
        """Token numbers of each text, without special tokens and never cut."""
        self.backend.no_truncation()
        encoded = self.backend.encode_batch_fast(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in encoded]

    def token(self, number: int) -> str:
        """The token of this number."""
        return str(self.backend.id_to_token(number))

    def save(self, directory: Path) -> None:
        """Write the tokenizer's files."""
        directory.mkdir(parents=True, exist_ok=True)
        for name, content in self.files.items():
            (directory / name).write_bytes(content)

    @classmethod
    def load(cls, directory: Path) -> Tokenizer:
        """The tokenizer of a model directory: ``tokenizer.json``, or ``vocab.txt`` alone.

        Raises:
            ModelError: there is none, or it cannot be read.
        """
        from tokenizers import Tokenizer as Backend

        files = {
            name: (directory / name).read_bytes()
            for name in TOKENIZER_FILES
            if (directory / name).is_file()
        }
        try:
            if "tokenizer.json" in files:
                backend = Backend.from_str(files["tokenizer.json"].decode("utf-8"))
            elif "vocab.txt" in files:
                settings = json.loads(files.get("tokenizer_config.json", b"{}"))
                words = (
                    files["vocab.txt"]
                    .decode("utf-8")
                    .replace("\r\n", "\n")
                    .rstrip("\n")
                    .split("\n")
                )
                backend = _wordpiece(
                    {word: number for number, word in enumerate(words)},
                    lowercase=bool(settings.get("do_lower_case", True)),
                )
            else:
                raise ModelError(
                    "There is no tokenizer here.",
                    where=str(directory),
                    fix="it needs tokenizer.json or vocab.txt: bert tokenizer CORPUS --out DIR",
                )
            backend.no_padding()
            return cls(backend, files)
        except ModelError as error:
            raise ModelError(error.what, where=str(directory), fix=error.fix) from None
        except Exception as error:  # the tokenizers library raises bare Exception
            raise ModelError(
                "The tokenizer cannot be read: " + str(error).splitlines()[0],
                where=str(directory),
                fix="copy the tokenizer files again from where the model came from",
            ) from None


def train_wordpiece(
    texts: Callable[[], Iterable[str]],
    *,
    vocab_size: int,
    lowercase: bool,
    max_length: int = 512,
) -> Tokenizer:
    """Train a WordPiece tokenizer (Schuster & Nakajima 2012), the same for the same texts.

    Chinese characters are words of their own. At most half of the vocabulary goes to single
    characters, the rarest being left out.

    Args:
        texts: gives the texts anew each time: they are read twice.
        vocab_size: tokens at most, special ones included.
        lowercase: whether case and accents are dropped.
        max_length: what is written as the longest text, in tokens.

    Raises:
        DataError: the texts hold nothing to learn from.
    """
    from tokenizers.trainers import WordPieceTrainer

    special = list(SPECIAL_TOKENS.values())
    backend = _wordpiece({token: i for i, token in enumerate(special)}, lowercase)
    first, inner, dropped = _alphabet(backend, texts(), max(vocab_size // 2, 1))
    trainer = WordPieceTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        # The trainer numbers characters in the order of a hash table, another in every run,
        # and breaks ties by number. Named beforehand, they have the same numbers always.
        special_tokens=[*special, *first, *(f"##{character}" for character in inner)],
        show_progress=False,
    )
    blank = dict.fromkeys(map(ord, dropped), " ")
    kept = (text.translate(blank) for text in texts()) if dropped else texts()
    backend.train_from_iterator(kept, trainer)
    vocabulary: dict[str, int] = backend.get_vocab()
    if len(vocabulary) <= len(special):
        raise DataError(
            "The text holds no words to learn a vocabulary from.",
            fix="give a corpus with more text",
        )
    # Built again from its vocabulary, because the template needs the final numbers.
    backend = _wordpiece(vocabulary, lowercase)
    settings: dict[str, Any] = {
        **SPECIAL_TOKENS,
        "do_lower_case": lowercase,
        "model_max_length": max_length,
        "tokenizer_class": "BertTokenizer",
        "tokenize_chinese_chars": True,
        "strip_accents": None,
    }
    words = sorted(vocabulary, key=lambda word: vocabulary[word])
    files = {
        "tokenizer.json": backend.to_str(pretty=True).encode("utf-8"),
        "tokenizer_config.json": (json.dumps(settings, indent=2) + "\n").encode("utf-8"),
        "vocab.txt": ("\n".join(words) + "\n").encode("utf-8"),
    }
    return Tokenizer(backend, files)


def _alphabet(
    backend: Backend, texts: Iterable[str], limit: int
) -> tuple[list[str], list[str], list[str]]:
    """Characters that begin a word, those inside words, and those too rare to be kept.

    The first two lists together have at most ``limit`` characters, the most frequent ones.
    """
    counts: Counter[str] = Counter()
    words: set[str] = set()
    for text in texts:
        normal = backend.normalizer.normalize_str(text)
        counts.update(normal)
        words.update(normal.split())
    inside: set[str] = set()
    for word in words:
        for part, _ in backend.pre_tokenizer.pre_tokenize_str(word):
            inside.update(part[1:])
    ranked = sorted(
        (character for character in counts if not character.isspace()),
        key=lambda character: (-counts[character], character),
    )
    first: list[str] = []
    inner: list[str] = []
    for rank, character in enumerate(ranked):
        room = limit - len(first) - len(inner)
        if room < 1 + (character in inside):
            return sorted(first), sorted(inner), ranked[rank:]
        first.append(character)
        if character in inside:
            inner.append(character)
    return sorted(first), sorted(inner), []


def _wordpiece(vocabulary: dict[str, int], lowercase: bool) -> Backend:
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

    special = SPECIAL_TOKENS
    missing = [token for token in special.values() if token not in vocabulary]
    if missing:
        raise ModelError(f"The vocabulary has no {', '.join(missing)}.")
    backend = Backend(models.WordPiece(vocabulary, unk_token=special["unk_token"]))
    backend.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    cls, sep = special["cls_token"], special["sep_token"]
    backend.post_processor = processors.TemplateProcessing(
        single=f"{cls} $A {sep}",
        pair=f"{cls} $A {sep} $B:1 {sep}:1",
        special_tokens=[(cls, vocabulary[cls]), (sep, vocabulary[sep])],
    )
    backend.add_special_tokens(list(special.values()))
    return backend
