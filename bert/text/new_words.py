"""Which words a tokenizer lacks, and the same tokenizer with them.

A new word must make texts shorter and leave all others alone, so each kind of model takes it in
another way.

- WordPiece: into the vocabulary. A longer word that begins with it becomes shorter too.
- Unigram: into the vocabulary, hardly likelier than its old pieces together. So it stands for
  them wherever they were the best reading, and changes no other one. A token beside the
  vocabulary would put a word boundary after itself, which costs what it saves.
- BPE: beside the vocabulary, because pieces are reached only through merges. It is found as a
  whole word only and takes the space before it along.

Chinese has no spaces. There a word is what occurs often: two to four characters in a row, never
across punctuation. Where each character is a word of its own (BERT), these too stand beside the
vocabulary.
"""

from __future__ import annotations

import heapq
import itertools
import json
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from bert.errors import ModelError
from bert.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend

_HAN = "\u3400-\u4dbf\u4e00-\u9fff\U00020000-\U0002ceaf"
_RUN = re.compile(f"[{_HAN}]{{2,}}")
_ONE_HAN = re.compile(f"[{_HAN}]")
_WORD = re.compile(f"[{_HAN}]|[^\\W{_HAN}]+")
_LONGEST = 4  # characters of a Chinese word
_LEAST = 2  # a word that occurs once is not known to be one
_MOST_HAN = 2**22  # characters of Chinese: these show which words are frequent
_MOST_WORDS = 2**22  # different words; beyond it, those seen only once are forgotten
_TAKEN = 255  # marks characters of a word that is chosen
_SPACE = "▁"  # stands for the space before a word in Unigram models


class NewWord(NamedTuple):
    """A word to be added.

    Args:
        text: as it stands in the vocabulary.
        saved: tokens by which it makes the corpus shorter, about.
        pieces: numbers of the tokens that it has been until now.
    """

    text: str
    saved: int
    pieces: list[int]


def new_words(tokenizer: Tokenizer, texts: Iterable[str], most: int) -> list[NewWord]:
    """The words that would save most tokens on these texts, the best first.

    What counts is how often a word occurs times the tokens that it would save each time. Equals
    are in the order of their characters.

    Args:
        tokenizer: the tokenizer that lacks them.
        texts: read once.
        most: how many words at most. There may be fewer: each occurs at least twice.

    Raises:
        ModelError: the tokenizer is neither WordPiece nor BPE nor Unigram.
    """
    kind = _kind(tokenizer.backend)
    words, runs = _count(tokenizer.backend, kind, texts)
    found: list[tuple[int, str]] = []
    for word, count in words.items():
        if count < _LEAST or not any(map(str.isalpha, word)) or _ONE_HAN.search(word):
            continue
        cost = len(_pieces(tokenizer.backend, kind, word))
        if cost > 1 and _is_free(tokenizer.backend, kind, word):
            found.append((count * (cost - 1), word))
    found.sort(key=lambda item: (-item[0], item[1]))
    chinese = _chinese_words(tokenizer.backend, kind, runs, most)
    banned: set[str] = set()
    while True:
        chosen = sorted(
            [*(item for item in found if item[1] not in banned), *chinese],
            key=lambda item: (-item[0], item[1]),
        )[:most]
        result = [
            NewWord(word, saved, _pieces(tokenizer.backend, kind, word)) for saved, word in chosen
        ]
        harmful = _harmful(tokenizer, result, words) if kind == "WordPiece" else set()
        if not harmful:
            return result
        banned |= harmful


def extended(tokenizer: Tokenizer, words: Sequence[NewWord]) -> Tokenizer:
    """The tokenizer with these words, numbered from its ``vocab_size`` on.

    Its files are ``tokenizer.json`` and, where they were there, the settings and the plain
    vocabulary; a SentencePiece file, which would say otherwise, is left out.

    Raises:
        ModelError: the vocabulary cannot take any.
    """
    from tokenizers import Tokenizer as Backend

    kind = _kind(tokenizer.backend)
    whole = json.loads(tokenizer.backend.to_str())
    whole["truncation"] = whole["padding"] = None
    vocabulary = whole["model"]["vocab"]
    beside = {token["id"]: token["content"] for token in whole["added_tokens"]}
    texts = [word.text for word in words]
    apart = [text for text in texts if kind == "BPE" or (kind == "WordPiece" and _RUN.match(text))]
    numbers = {text: tokenizer.vocab_size + i for i, text in enumerate(texts)}
    # What stood beside the vocabulary goes into it too. Numbers are given anew when a tokenizer
    # is read; so each keeps its own.
    if kind == "Unigram":
        least = min(score for _, score in vocabulary)
        for number in range(len(vocabulary), tokenizer.vocab_size):
            if number not in beside:
                raise ModelError(f"The tokenizer has no token number {number}, but larger ones.")
            vocabulary.append([beside[number], least])
        scores = [score for _, score in vocabulary]
        scores[whole["model"]["unk_id"]] = least - 10  # what the library takes for unknown ones
        for word in words:
            together = sum(scores[number] for number in word.pieces)
            vocabulary.append([word.text, together + 1e-6])
    else:
        vocabulary |= {text: number for number, text in beside.items() if text not in vocabulary}
        vocabulary |= numbers
    added = [
        {
            "id": numbers[text],
            "content": text,
            "single_word": not _RUN.match(text),
            "lstrip": not _RUN.match(text),
            "rstrip": False,
            "normalized": False,
            "special": False,
        }
        for text in apart
    ]
    whole["added_tokens"] += added
    backend = Backend.from_str(json.dumps(whole))
    backend.encode_special_tokens = tokenizer.backend.encode_special_tokens
    files = {name: text for name, text in tokenizer.files.items() if not name.endswith(".model")}
    files["tokenizer.json"] = backend.to_str(pretty=True).encode("utf-8")
    settings = json.loads(files.get("tokenizer_config.json", b"{}"))
    if added and "added_tokens_decoder" in settings:  # it would replace those in tokenizer.json
        settings["added_tokens_decoder"] |= {
            str(token.pop("id")): token for token in [dict(token) for token in added]
        }
        files["tokenizer_config.json"] = _json(settings)
    if "tokenizer.json" not in tokenizer.files and any(
        role not in settings for role in tokenizer.special_tokens
    ):  # plain files mean their family's tokens; tokenizer.json means none
        settings = {**tokenizer.special_tokens, **settings}
        files["tokenizer_config.json"] = _json(settings)
    if "vocab.json" in files:
        files["vocab.json"] = _json(json.loads(files["vocab.json"]) | numbers)
    if "vocab.txt" in files:
        lines = files.pop("vocab.txt").decode("utf-8").rstrip().split("\n")
        more = range(len(lines), tokenizer.vocab_size + len(texts))
        names = [name for name in map(backend.id_to_token, more) if name is not None]
        if len(names) == len(more):
            files["vocab.txt"] = ("\n".join([*lines, *names]) + "\n").encode("utf-8")
    return Tokenizer(backend, files, tokenizer.special_tokens, tokenizer.truncation_side)


def word_count(text: str) -> int:
    """Words of a text: runs of letters and digits, and each Chinese character."""
    return sum(1 for _ in _WORD.finditer(text))


def _json(value: dict[str, Any]) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode("utf-8")


def _kind(backend: Backend) -> str:
    kind = type(backend.model).__name__
    if kind not in ("WordPiece", "BPE", "Unigram"):
        raise ModelError(f"A tokenizer of the kind {kind} cannot be extended.")
    return kind


def _normal(backend: Backend, text: str) -> str:
    return str(backend.normalizer.normalize_str(text)) if backend.normalizer else text


def _parts(backend: Backend, text: str) -> list[tuple[str, tuple[int, int]]]:
    """Pre-tokens of a normalized text, and where they stand in it."""
    if backend.pre_tokenizer is None:
        return [(text, (0, len(text)))]
    return list(backend.pre_tokenizer.pre_tokenize_str(text))


def _pieces(backend: Backend, kind: str, word: str) -> list[int]:
    """Numbers of the tokens of a word, as it is inside a text."""
    if kind == "Unigram":
        return [token.id for token in backend.model.tokenize(word)]
    inside = word if kind == "WordPiece" or _RUN.match(word) else " " + word
    parts = _parts(backend, _normal(backend, inside))
    return [token.id for part, _ in parts for token in backend.model.tokenize(part)]


def _is_free(backend: Backend, kind: str, word: str) -> bool:
    """Whether a word is one word to the tokenizer, and not yet in its vocabulary."""
    if backend.token_to_id(word) is not None:
        return False
    if kind == "Unigram":
        return True
    return len(_parts(backend, _normal(backend, word))) == 1


def _count(backend: Backend, kind: str, texts: Iterable[str]) -> tuple[Counter[str], Counter[str]]:
    """How often each word occurs, and each run of Chinese characters."""
    words: Counter[str] = Counter()
    runs: Counter[str] = Counter()
    room = _MOST_HAN
    for text in texts:
        normal = _normal(backend, text)
        parts = _parts(backend, normal)
        if kind == "BPE":  # its parts are written in an alphabet of bytes
            words.update(_whole_words(normal, [place for _, place in parts]))
        else:
            words.update(part for part, _ in parts)
        if len(words) > _MOST_WORDS:
            words = Counter({word: count for word, count in words.items() if count > 1})
        # Beside the vocabulary, a word is looked for in the text before it is normalized.
        for run in _RUN.findall(normal if kind == "Unigram" else text):
            if run in runs or room > 0:
                room -= 0 if run in runs else len(run)
                runs[run] += 1
    if kind == "Unigram":  # its parts are all between two spaces
        letters: Counter[str] = Counter()
        for part, count in words.items():
            if part.startswith(_SPACE):
                letters[_SPACE + "".join(itertools.takewhile(_is_letter, part[1:]))] += count
        words = letters
    return words, runs


def _whole_words(text: str, places: list[tuple[int, int]]) -> Iterator[str]:
    """The parts of a text that a token beside the vocabulary would be found as."""
    for start, end in places:
        word = text[start:end].strip()
        start = end - len(word)
        if not _is_inner(text[start - 1 : start]) and not _is_inner(text[end : end + 1]):
            yield word


def _is_inner(character: str) -> bool:
    """Whether a word goes on with this character."""
    return character != "" and (
        unicodedata.category(character)[0] in "LMN" or unicodedata.category(character) == "Pc"
    )


def _is_letter(character: str) -> bool:
    return unicodedata.category(character)[0] in "LMN" and not _ONE_HAN.match(character)


def _harmful(tokenizer: Tokenizer, chosen: list[NewWord], words: Iterable[str]) -> set[str]:
    """New words because of which a longer word of the corpus would fall to more pieces.

    WordPiece takes the longest piece that fits, even if the rest then has none.
    """
    new = {word.text for word in chosen}
    before, after = tokenizer.backend.model, extended(tokenizer, chosen).backend.model
    found = set()
    for word in words:
        begun = [word[:end] for end in range(2, len(word)) if word[:end] in new]
        if not begun or word in new:
            continue
        old, now = before.tokenize(word), after.tokenize(word)
        unknown = now[0].id == tokenizer.unknown_id != old[0].id
        if len(now) > len(old) or unknown:
            found.add(begun[-1])
    return found


def _chinese_words(
    backend: Backend, kind: str, runs: Counter[str], most: int
) -> list[tuple[int, str]]:
    """Chinese words by the tokens that they save, each counted after better ones have theirs.

    Parts of a frequent word are as frequent as the word itself, but of no use beside it.
    """
    if kind == "WordPiece" and len(_parts(backend, _normal(backend, "中中"))) == 1:
        return []  # a run is one word: cut in two, the rest would read as the start of a word
    texts = sorted(runs)
    marks = [_marks(backend, kind, text) for text in texts]
    everywhere = kind == "BPE"
    least = max(_LEAST, sum(map(len, texts)) // 2**19)
    pairs: Counter[str] = Counter()
    for text in texts:
        for start in range(len(text) - 1):
            pairs[text[start : start + 2]] += runs[text]

    def grams(index: int, first: int, last: int) -> Iterator[tuple[int, int, int]]:
        for start, end, saving in _grams(marks[index], first, last, everywhere):
            text = texts[index]
            if pairs[text[start : start + 2]] >= least and pairs[text[end - 2 : end]] >= least:
                yield start, end, saving * runs[text]

    saved: Counter[str] = Counter()
    for index, text in enumerate(texts):
        for start, end, saving in grams(index, 0, len(text)):
            saved[text[start:end]] += saving
    ranked = sorted(
        (word for word in saved if saved[word] >= least and _is_new(backend, kind, word)),
        key=lambda word: (-saved[word], word),
    )[: max(10 * most, 1000)]
    wanted = set(ranked)
    places: dict[str, list[int]] = defaultdict(list)
    for index, text in enumerate(texts):
        found = {text[start:end] for start, end, _ in grams(index, 0, len(text))}
        for word in found & wanted:
            places[word].append(index)
    heap = [(-saved[word], word) for word in ranked]
    heapq.heapify(heap)
    chosen: list[tuple[int, str]] = []
    while heap and len(chosen) < most:
        score, best = heapq.heappop(heap)
        if saved[best] < least:
            continue
        if -score != saved[best]:  # others have taken some of its places since
            heapq.heappush(heap, (-saved[best], best))
            continue
        chosen.append((-score, best))
        for index in places[best]:
            text, mark = texts[index], marks[index]
            for start, end, _ in list(grams(index, 0, len(text))):
                if text[start:end] != best or _TAKEN in mark[start:end]:
                    continue
                left, right = _around(mark, start, end)
                for sign in (-1, 1):
                    if sign == 1:  # what is left of parts that were cut is a part of its own
                        mark[start:end] = bytes([_TAKEN]) * (end - start)
                        mark[left] = mark[left] if left == start else 1
                        mark[end] = mark[end] or 1
                    for first, last, saving in grams(index, left - _LONGEST, right):
                        if last > left:
                            saved[text[first:last]] += sign * saving
    return chosen


def _marks(backend: Backend, kind: str, run: str) -> bytearray:
    """Where the parts of a Chinese text begin: there, the tokens that the part takes; else 0.

    The last mark stands after the text.
    """
    marks = bytearray(len(run) + 1)
    marks[-1] = 1
    if kind == "WordPiece":
        marks[:-1] = bytes([1]) * len(run)
        return marks
    if kind == "Unigram":
        sizes = [len(token.value) for token in backend.model.tokenize(run)]
        ends = [0, *itertools.accumulate(map(len, run))]
    else:  # pieces of bytes; a character may take several
        parts = _parts(backend, run)
        sizes = [len(token.value) for part, _ in parts for token in backend.model.tokenize(part)]
        ends = [0, *itertools.accumulate(len(character.encode("utf-8")) for character in run)]
    characters = {end: number for number, end in enumerate(ends)}
    place = ends[-1] - sum(sizes)  # below 0 where the tokenizer puts a space before the text
    part = 0
    for size in sizes:
        if place in characters and place < ends[-1]:
            part = characters[place]
        marks[part] += 1
        place += size
    return marks


def _grams(
    marks: bytearray, first: int, last: int, everywhere: bool
) -> Iterator[tuple[int, int, int]]:
    """Words of two to four characters that begin here: start, end, tokens saved.

    Args:
        marks: as ``_marks`` gives them; no word reaches into what is taken.
        first, last: where they begin.
        everywhere: whether a word would be one even where it cuts a part. Then what is left of
            the part counts as one token on either side, and the saving may be negative.
    """
    size = len(marks) - 1
    for start in range(max(first, 0), min(last, size - 1)):
        for end in range(start + 2, min(start + _LONGEST, size) + 1):
            if _TAKEN in marks[start:end]:
                break
            left, right = _around(marks, start, end)
            if not everywhere and (left < start or right > end):
                continue
            saving = sum(marks[left:right]) - 1 - (left < start) - (right > end)
            if saving:
                yield start, end, saving


def _around(marks: bytearray, start: int, end: int) -> tuple[int, int]:
    """The ends of the parts that a word touches."""
    while not marks[start]:
        start -= 1
    while not marks[end]:
        end += 1
    return start, end


def _is_new(backend: Backend, kind: str, text: str) -> bool:
    same = kind == "Unigram" or _normal(backend, text).replace(" ", "") == text
    return same and backend.token_to_id(text) is None
