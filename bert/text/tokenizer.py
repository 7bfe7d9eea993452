"""Text to token numbers: what tokenizer files mean, and the training of WordPiece.

A directory describes its tokenizer in one of two ways. ``tokenizer.json`` says everything; older
files (``vocab.txt``, ``vocab.json`` with ``merges.txt``, a SentencePiece ``.model``) hold only
the pieces, and the rest is known from the family: its ``TokenizerForm``. Where both a form and
settings in ``tokenizer_config.json`` speak, the settings win, even over ``tokenizer.json``: so it
is in ``transformers``, whose numbers ours equal.
"""

from __future__ import annotations

import base64
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from bert.errors import DataError, ModelError
from bert.text.spiece import check_charsmap, check_tree, read_pieces
from bert.untrusted import parse_table, read_bytes, read_json

if TYPE_CHECKING:
    from tokenizers import AddedToken
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
    "vocab.json",
    "merges.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "spm.model",
)
# The order in which transformers numbers special tokens that the vocabulary lacks.
_ROLES = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)
_MOST_BYTES = 64 * 2**20  # of one file; the largest of today's families has 34 million
_COPY = "copy the tokenizer files again from where the model came from"

Texts = str | tuple[str, str]  # one text, or a pair
Settings = Mapping[str, Any]
Steps = list[dict[str, Any]]  # in the notation of tokenizer.json


def _bert_normalizer(settings: Settings, charsmap: bytes | None) -> Steps:
    return [
        {
            "type": "BertNormalizer",
            "clean_text": True,
            "handle_chinese_chars": settings.get("tokenize_chinese_chars", True),
            "strip_accents": settings.get("strip_accents"),
            "lowercase": settings.get("do_lower_case", True),
        }
    ]


def _bert_words(settings: Settings) -> Steps:
    return [{"type": "BertPreTokenizer"}]


def _no_normalizer(settings: Settings, charsmap: bytes | None) -> Steps:
    return []


def _byte_level_words(settings: Settings) -> Steps:
    prefix = settings.get("add_prefix_space", False)
    return [
        {
            "type": "ByteLevel",
            "add_prefix_space": prefix,
            "trim_offsets": True,
            "use_regex": True,
        }
    ]


def _charsmap_normalizer(settings: Settings, charsmap: bytes | None) -> Steps:
    if not charsmap:
        return []
    return [
        {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(charsmap).decode("ascii")}
    ]


def _albert_normalizer(settings: Settings, charsmap: bytes | None) -> Steps:
    quotes: Steps = [
        {"type": "Replace", "pattern": {"String": "``"}, "content": '"'},
        {"type": "Replace", "pattern": {"String": "''"}, "content": '"'},
    ]
    accents: Steps = [{"type": "NFKD"}, {"type": "StripAccents"}]
    return [
        *quotes,
        *([] if settings.get("keep_accents", False) else accents),
        *([{"type": "Lowercase"}] if settings.get("do_lower_case", True) else []),
        *_charsmap_normalizer(settings, charsmap),
    ]


def _spaced_words(settings: Settings) -> Steps:
    prepend = "always" if settings.get("add_prefix_space", True) else "never"
    return [
        {"type": "WhitespaceSplit"},
        {"type": "Metaspace", "replacement": "▁", "prepend_scheme": prepend, "split": True},
    ]


@dataclass(frozen=True)
class TokenizerForm:
    """What tokenizer files leave unsaid: all in which the families differ.

    Args:
        model: WordPiece, BPE or Unigram, as ``tokenizer.json`` calls them.
        classes: the names in ``tokenizer_class`` that mean this form. They are only compared.
        files: what it is built from where there is no ``tokenizer.json``. A form without
            files takes ``tokenizer.json`` as it stands, whatever other settings say.
        special_tokens: role -> token, where the directory names no other.
        normalizer: settings, and the table of characters in a SentencePiece file -> steps.
        pre_tokenizer: settings -> steps.
        pair: how two texts are put together, in roles; ``:1`` is the second segment. A
            single text takes the first three.
        unknown: number of the unknown piece of a Unigram model; None where the pieces tell.
        fairseq: whether four special tokens stand for the first three pieces of the
            SentencePiece file, and the mask follows the last, as fairseq numbers them.
    """

    model: str
    classes: tuple[str, ...]
    files: tuple[str, ...]
    special_tokens: Mapping[str, str]
    normalizer: Callable[[Settings, bytes | None], Steps]
    pre_tokenizer: Callable[[Settings], Steps]
    pair: str = "cls_token $A sep_token $B:1 sep_token:1"
    unknown: int | None = None
    fairseq: bool = False


WORDPIECE = TokenizerForm(
    model="WordPiece",
    classes=("BertTokenizer", "DistilBertTokenizer", "ElectraTokenizer"),
    files=("vocab.txt",),
    special_tokens=SPECIAL_TOKENS,
    normalizer=_bert_normalizer,
    pre_tokenizer=_bert_words,
)
BYTE_LEVEL = TokenizerForm(
    model="BPE",
    classes=("RobertaTokenizer",),
    files=("vocab.json", "merges.txt"),
    special_tokens={
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "sep_token": "</s>",
        "pad_token": "<pad>",
        "cls_token": "<s>",
        "mask_token": "<mask>",
    },
    normalizer=_no_normalizer,
    pre_tokenizer=_byte_level_words,
    pair="cls_token $A sep_token sep_token $B sep_token",
)
XLM_ROBERTA = TokenizerForm(
    model="Unigram",
    classes=("XLMRobertaTokenizer",),
    files=("sentencepiece.bpe.model",),
    special_tokens=BYTE_LEVEL.special_tokens,
    normalizer=_charsmap_normalizer,
    pre_tokenizer=_spaced_words,
    pair="bos_token $A eos_token eos_token $B eos_token",
    unknown=3,
    fairseq=True,
)
ALBERT = TokenizerForm(
    model="Unigram",
    classes=("AlbertTokenizer",),
    files=("spiece.model",),
    special_tokens={
        **SPECIAL_TOKENS,
        "bos_token": "[CLS]",
        "eos_token": "[SEP]",
        "unk_token": "<unk>",
        "pad_token": "<pad>",
    },
    normalizer=_albert_normalizer,
    pre_tokenizer=_spaced_words,
    unknown=1,
)
AS_WRITTEN = TokenizerForm(
    model="",
    classes=(),
    files=(),
    special_tokens=SPECIAL_TOKENS,
    normalizer=_no_normalizer,
    pre_tokenizer=_bert_words,
)
_FORMS = (WORDPIECE, BYTE_LEVEL, XLM_ROBERTA, ALBERT)
_DECODERS = {
    "WordPiece": {"type": "WordPiece", "prefix": "##", "cleanup": True},
    "BPE": {
        "type": "ByteLevel",
        "add_prefix_space": True,
        "trim_offsets": True,
        "use_regex": True,
    },
    "Unigram": {
        "type": "Metaspace",
        "replacement": "▁",
        "prepend_scheme": "always",
        "split": True,
    },
}


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
        special_tokens: role -> token, for the five roles of ``SPECIAL_TOKENS``.
        truncation_side: the end at which a text that is too long loses tokens.

    Raises:
        ModelError: a special token is not in the vocabulary.
    """

    def __init__(
        self,
        backend: Backend,
        files: dict[str, bytes],
        special_tokens: Mapping[str, str] = SPECIAL_TOKENS,
        truncation_side: str = "right",
    ) -> None:
        self.backend = backend
        self.files = files
        self.special_tokens = {role: special_tokens[role] for role in SPECIAL_TOKENS}
        self.truncation_side = truncation_side
        numbers: dict[str, int] = {}
        for role, token in self.special_tokens.items():
            number = backend.token_to_id(token)
            if number is None:
                raise ModelError(f"The tokenizer has no {role} {token!r}.")
            numbers[role] = number
        self.pad_id, self.unknown_id, self.cls_id, self.sep_id, self.mask_id = (
            numbers[role] for role in SPECIAL_TOKENS
        )
        self.mask_token = self.special_tokens["mask_token"]
        # A vocabulary may have gaps: the model must hold its largest number, not its size.
        self.vocab_size = max(backend.get_vocab(with_added_tokens=True).values()) + 1

    def encode(self, texts: Sequence[Texts], max_length: int) -> list[Encoded]:
        """Texts or pairs with their special tokens, at most ``max_length`` tokens each.

        A pair that is too long loses tokens from the end of its longer text.
        """
        self.backend.enable_truncation(max_length, direction=self.truncation_side)
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
        """The token of this number; where it is written as bytes, the text that they mean."""
        token = str(self.backend.id_to_token(number))
        if type(self.backend.decoder).__name__ == "ByteLevel":
            text = str(self.backend.decoder.decode([token]))
            return token if "\N{REPLACEMENT CHARACTER}" in text else text
        return token

    def save(self, directory: Path) -> None:
        """Write the tokenizer's files."""
        directory.mkdir(parents=True, exist_ok=True)
        for name, content in self.files.items():
            (directory / name).write_bytes(content)

    @classmethod
    def load(cls, directory: Path, form: TokenizerForm = WORDPIECE) -> Tokenizer:
        """The tokenizer of a model directory, with the numbers that ``transformers`` gives.

        Args:
            directory: it holds ``tokenizer.json`` or the files of a form.
            form: what the files mean for the model's family. A directory that names the
                tokenizer of another family in ``tokenizer_class``, or has only the files of
                another form, is read as that.

        Raises:
            ModelError: there is none, or it cannot be read.
        """
        try:
            return _read(directory, form)
        except ModelError as error:
            where = error.where or str(directory)
            raise ModelError(error.what, where=where, fix=error.fix or _COPY) from None
        except BaseException as error:
            # The tokenizers library raises bare Exception, and its panics are no Exception.
            if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
                raise
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise ModelError(
                f"The tokenizer cannot be read: {reason}", where=str(directory), fix=_COPY
            ) from None


def _read(directory: Path, family_form: TokenizerForm) -> Tokenizer:
    files = _contents(directory)
    settings = _table(files, "tokenizer_config.json")
    stored = _table(files, "tokenizer.json")  # empty where there is none
    if "tokenizer.json" in files and not isinstance(stored.get("model"), dict):
        raise ModelError("tokenizer.json has no model.")
    stated = settings.get("tokenizer_class") or _class_of_model(directory)
    meant = stated.removesuffix("Fast") if isinstance(stated, str) else None
    form = (
        _stored_form(family_form, meant, stored["model"].get("type"))
        if stored
        else _raw_form(family_form, meant, files, directory)
    )
    added = _merge(settings, files, stored)
    names = {
        role: _content(settings[role]) if settings.get(role) else form.special_tokens.get(role)
        for role in _ROLES
    }
    tokens = {role: token for role, token in names.items() if token is not None}
    extra = settings.get("extra_special_tokens", settings.get("additional_special_tokens"))
    charsmap = _stored_charsmap(stored)
    if form.files:
        model, table, symbols = _pieces(form, files, stored, tokens, settings)
        backend = _build(form, model, settings, charsmap or table)
        if symbols and "extra_special_tokens" not in settings:
            extra = symbols
        named = [settings.get(role) or token for role, token in tokens.items()]
    else:
        from tokenizers import Tokenizer as Backend

        if isinstance(stored["model"].get("vocab"), list):
            check_tree(piece for piece, _ in stored["model"]["vocab"])
        backend = Backend.from_str(files["tokenizer.json"].decode("utf-8"))
        named = [settings[role] for role in _ROLES if settings.get(role)]
    named += [
        value
        for role, value in settings.items()
        if role.endswith("_token") and role not in _ROLES and isinstance(value, str | dict)
    ]
    if isinstance(extra, dict):
        named += extra.values()
        extra = None
    if type(backend.model).__name__ == "WordPiece":
        unknown = backend.model.unk_token  # the library would stop at the first unknown word
        if backend.model.token_to_id(unknown) is None:
            raise ModelError(f"The vocabulary has no {unknown}.")
    _add(backend, added, named, extra or [])
    if form.files:
        _set_template(backend, form.pair, tokens)
    backend.no_padding()
    backend.encode_special_tokens = bool(settings.get("split_special_tokens", False))
    side = settings.get("truncation_side") or (stored.get("truncation") or {}).get("direction")
    side = str(side or "right").lower()
    if side not in ("left", "right"):
        raise ModelError(f"truncation_side is {side!r:.40}; it must be left or right.")
    return Tokenizer(backend, files, tokens, side)


def _contents(directory: Path) -> dict[str, bytes]:
    """The tokenizer files of a directory: name -> content."""
    files: dict[str, bytes] = {}
    for name in TOKENIZER_FILES:
        if os.path.lexists(directory / name):
            files[name] = read_bytes(directory / name, _MOST_BYTES)
    return files


def _stored_form(form: TokenizerForm, meant: str | None, kind: str | None) -> TokenizerForm:
    """How a ``tokenizer.json`` with a model of this kind is read.

    As in ``transformers``, of a class that is known only the vocabulary is taken from it, and
    the settings say the rest. Otherwise it is taken as it stands.
    """
    known = form
    if form.files and meant is not None:
        known = next((other for other in (form, *_FORMS) if meant in other.classes), AS_WRITTEN)
    if known is AS_WRITTEN or kind not in (None, known.model):
        return replace(AS_WRITTEN, special_tokens=form.special_tokens)
    return known


def _raw_form(
    form: TokenizerForm, meant: str | None, files: Mapping[str, bytes], directory: Path
) -> TokenizerForm:
    """The form whose files are all there; first the named one, then the family's."""
    forms = sorted((form, *_FORMS), key=lambda other: meant not in other.classes)
    for other in forms:
        if other.files and all(name in files for name in other.files):
            return other
    needed = " or ".join(["tokenizer.json", *([" and ".join(form.files)] if form.files else [])])
    raise ModelError(
        "There is no tokenizer here.",
        where=str(directory),
        fix=f"copy {needed} from where the model came from; another would have other numbers"
        if (directory / "config.json").is_file()
        else f"it needs {needed}: bert tokenizer CORPUS --out DIR",
    )


def _table(files: Mapping[str, bytes], name: str) -> dict[str, Any]:
    """A JSON file of names and values; an empty one where there is no such file."""
    if name not in files:
        return {}
    try:
        return parse_table(files[name])
    except ValueError as error:
        raise ModelError(f"{name} cannot be read: {error}.") from None


def _class_of_model(directory: Path) -> Any:
    """The tokenizer that ``config.json`` names, for models whose tokenizer names none."""
    path = directory / "config.json"
    return read_json(path).get("tokenizer_class") if os.path.lexists(path) else None


def _content(token: Any) -> str:
    """The text of a token, which is written as such or with its properties."""
    text = token.get("content") if isinstance(token, dict) else token
    if not isinstance(text, str):
        raise ModelError(f"{text!r} is no special token.")
    return text


def _added_token(token: Any) -> AddedToken:
    from tokenizers import AddedToken

    if isinstance(token, AddedToken):
        return token
    if isinstance(token, str):
        return AddedToken(token, special=True)
    _content(token)
    return AddedToken(**{name: value for name, value in token.items() if name != "__type"})


def _merge(
    settings: dict[str, Any], files: Mapping[str, bytes], stored: Mapping[str, Any]
) -> list[AddedToken]:
    """Complete the settings from older files, in place; what stands beside the vocabulary.

    Which file wins, and in which order tokens are added, decides over their numbers. It is as
    in ``transformers``: ``added_tokens_decoder`` replaces all older files.
    """
    if not settings.get("extra_special_tokens") and "additional_special_tokens" in settings:
        settings["extra_special_tokens"] = settings.pop("additional_special_tokens")
    added: dict[int, Any] = {}
    if "added_tokens_decoder" in settings:
        added = {int(number): token for number, token in settings["added_tokens_decoder"].items()}
        return [_added_token(added[number]) for number in sorted(added)]
    for role, value in _table(files, "special_tokens_map.json").items():
        if role == "extra_special_tokens" and isinstance(value, list):
            present = list(settings.get(role) or [])
            value = present + [token for token in value if token not in present]
        elif isinstance(value, dict) and role != "extra_special_tokens":
            value = {**value, "special": True}
        settings[role] = value
    special = {_content(settings[role]) for role in _ROLES if settings.get(role)}
    special.update(_content(token) for token in settings.get("extra_special_tokens") or [])
    for text, number in _table(files, "added_tokens.json").items():
        flag = text in special
        added[number] = {"content": text, "normalized": not flag, "special": flag}
    for token in stored.get("added_tokens") or []:
        added[token["id"]] = {name: value for name, value in token.items() if name != "id"}
    return [_added_token(added[number]) for number in sorted(added)]


def _pieces(
    form: TokenizerForm,
    files: Mapping[str, bytes],
    stored: Mapping[str, Any],
    tokens: Mapping[str, str],
    settings: Settings,
) -> tuple[dict[str, Any], bytes | None, list[AddedToken]]:
    """The model with its pieces; of a SentencePiece file also its table and its symbols."""
    model: dict[str, Any] = {"type": form.model}
    charsmap: bytes | None = None
    symbols: list[AddedToken] = []
    unknown = settings.get("unk_id", 1)
    if stored:
        model["vocab"] = stored["model"]["vocab"]
        if form.model == "BPE":
            model["merges"] = stored["model"]["merges"]
    elif form.model == "WordPiece":
        model["vocab"] = {word: number for number, word in enumerate(_lines(files["vocab.txt"]))}
    elif form.model == "BPE":
        model["vocab"] = _table(files, "vocab.json")
        model["merges"] = [
            line.split(" ")
            for line in _lines(files["merges.txt"])
            if not line.startswith("#version")
        ]
    else:
        from tokenizers import AddedToken

        content = read_pieces(files[form.files[0]], form.files[0])
        charsmap, unknown = content.charsmap, content.unknown
        pieces = list(content.pieces)
        if form.fairseq:
            first = [(tokens[f"{role}_token"], 0.0) for role in ("bos", "pad", "eos", "unk")]
            pieces = [*first, *pieces[3:], (tokens["mask_token"], 0.0)]
        model["vocab"] = pieces
        symbols = [
            AddedToken(text, normalized=False, special=special) for text, special in content.symbols
        ]
    if form.model == "WordPiece":
        model["unk_token"] = tokens["unk_token"]
        model["continuing_subword_prefix"] = "##"
        model["max_input_chars_per_word"] = 100
    elif form.model == "Unigram":
        check_tree(piece for piece, _ in model["vocab"])
        if form.unknown is not None:
            unknown = form.unknown
        else:
            marks = (
                number
                for number, (piece, score) in enumerate(model["vocab"])
                if piece == tokens["unk_token"] and score == 0
            )
            unknown = next(marks, unknown)
        model["unk_id"] = unknown
        model["byte_fallback"] = False
    return model, charsmap, symbols


def _lines(content: bytes) -> list[str]:
    """Lines without the white space at their ends; only a line feed ends a line."""
    # str.rstrip() alone would take four control characters more than transformers does.
    return [line.rstrip(_WHITE_SPACE) for line in content.decode("utf-8").rstrip().split("\n")]


_WHITE_SPACE = "".join(
    character
    for character in map(chr, range(0x3001))
    if character.isspace() and not "\x1c" <= character < " "
)


def _stored_charsmap(stored: Mapping[str, Any]) -> bytes | None:
    """The table of characters in the normalizer of ``tokenizer.json``, if it has one."""
    normalizer = stored.get("normalizer") or {}
    steps = normalizer["normalizers"] if normalizer.get("type") == "Sequence" else [normalizer]
    for step in steps:
        if step.get("type") == "Precompiled" and "precompiled_charsmap" in step:
            charsmap = base64.b64decode(step["precompiled_charsmap"])
            if charsmap:
                check_charsmap(charsmap)
            return charsmap
    return None


def _build(
    form: TokenizerForm, model: Mapping[str, Any], settings: Settings, charsmap: bytes | None
) -> Backend:
    """The backend of a form, without its template and its special tokens."""
    from tokenizers import Tokenizer as Backend

    whole: dict[str, Any] = {
        "version": "1.0",
        "added_tokens": [],
        "normalizer": _sequence("normalizers", form.normalizer(settings, charsmap)),
        "pre_tokenizer": _sequence("pretokenizers", form.pre_tokenizer(settings)),
        "post_processor": None,
        "decoder": _DECODERS[form.model],
        "model": model,
    }
    return Backend.from_str(json.dumps(whole))


def _sequence(name: str, steps: Steps) -> dict[str, Any] | None:
    if len(steps) < 2:
        return steps[0] if steps else None
    return {"type": "Sequence", name: steps}


def _add(
    backend: Backend, added: list[AddedToken], named: Sequence[Any], extra: Iterable[Any]
) -> None:
    """Make these tokens whole wherever they are written in a text."""
    known = {token.content for token in backend.get_added_tokens_decoder().values()}
    known |= {token.content for token in added}
    special = {_content(token) for token in named}
    more: list[str | AddedToken] = []
    for value in (*named, *extra):
        token = value if isinstance(value, str) else _added_token(value)
        # The same text with other properties comes again, and the last one counts.
        if (token if isinstance(token, str) else token.content) not in known and token not in more:
            more.append(token)
    tokens = [*added, *map(_added_token, more)]
    for token in tokens:
        if token.content in special and not token.special:
            token.special = True
    backend.add_tokens(tokens)


def _set_template(backend: Backend, pair: str, tokens: Mapping[str, str]) -> None:
    """Put special tokens around one text and two."""
    from tokenizers import processors

    items = []
    for item in pair.split():
        role, _, segment = item.partition(":")
        items.append(f"{tokens.get(role, role)}:{segment or 0}")
    used = {token for role, token in tokens.items() if role in pair}
    backend.post_processor = processors.TemplateProcessing(
        single=items[:3],
        pair=items,
        special_tokens=[(token, backend.token_to_id(token)) for token in sorted(used)],
    )


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
    model = {
        "type": "WordPiece",
        "unk_token": SPECIAL_TOKENS["unk_token"],
        "continuing_subword_prefix": "##",
        "max_input_chars_per_word": 100,
        "vocab": vocabulary,
    }
    backend = _build(WORDPIECE, model, {"do_lower_case": lowercase}, None)
    _add(backend, [], list(SPECIAL_TOKENS.values()), [])
    _set_template(backend, WORDPIECE.pair, SPECIAL_TOKENS)
    return backend
