"""Sentence embeddings: one vector for a text, near those of texts that mean alike."""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as again

from bert.checkpoint import Checkpoint
from bert.config import Settings
from bert.data.batches import Batch, Numbers
from bert.data.rows import Example, Examples, choose_columns, text_of
from bert.errors import DataError, UsageError
from bert.metrics import plots
from bert.metrics.ranking import RankingTally, ranks_of
from bert.metrics.regress import RegressionTally
from bert.model.packing import Packed, Tokens
from bert.pooling import Pooling
from bert.tasks.task import Answer, Mistake, Sample, Targets, Task, batch_tokens
from bert.text.files import Row, columns, rows
from bert.text.tokenizer import Texts
from bert.text.windows import Windowed, in_windows
from bert.training.loop import Outcome

# Columns taken for rows to learn from when none is named, in this order.
COLUMNS = (
    ("anchor", "positive", "negative"),
    ("anchor", "positive"),
    ("query", "positive", "negative"),
    ("query", "positive"),
    ("text_a", "text_b"),
    ("sentence1", "sentence2"),
)
SCORE = "score"
ALIKE = "alike"  # the truth of a row without score
MOST_TEXTS = 3  # of a row
# Cosines are multiplied by this before they are compared.
SCALE = 20.0
# Tokens whose activations are kept for the way back; of a batch with more they are computed
# again, part by part (as in GradCache, Gao et al. 2021), so that the memory stays bounded.
TOKENS_AT_ONCE = 8192
POOL = 10_000  # rows among whose texts each held-out text is looked for


class EmbeddingOptions(Settings):
    """What only embeddings can be told.

    Args:
        pooling: what stands for a text: the ``mean`` of its tokens' vectors, that of the first
            token (``cls``), or the ``max`` of each number; none: as the model says, else mean.
        normalize: whether vectors have length 1; none: as the model says, else they have.
    """

    pooling: Literal["mean", "cls", "max"] | None = None
    normalize: bool | None = None


class Embedding(Task):
    """Reimers & Gurevych 2019 (Sentence-BERT): one encoder reads each text on its own.

    What is learnt depends on the rows:

    - two texts and a score: their cosine shall be the score, by the squared difference (section
      3 of the paper). Scores from 0 to 1 are taken as they are; others are stretched so that
      the lowest of the training rows is 0 and the highest 1.
    - two like texts, and perhaps an unlike third: of all second and third texts of the batch
      the own one shall be nearest: cross-entropy over 20 times the cosines (Henderson et al.
      2017; InfoNCE, van den Oord et al. 2018). Texts that another row of the batch calls like
      the first are left out, and so is the first itself.

    Rows of a batch may be compared with each other, so that a step takes its batch whole. Of
    several processes each compares the rows of its own share.

    The mean of a long text is that over the tokens of all its windows, in training too; of
    ``cls`` it is the mean over the windows.
    """

    kind = "encoder"
    Options = EmbeddingOptions
    options: EmbeddingOptions
    # Spearman's correlation of scored rows, else MRR@10.
    primary_metric = "ranking"
    whole_batches = True
    rate_share = 0.4  # 2e-5 for 768 wide models, as in the paper
    demo_rows: ClassVar[Sequence[dict[str, Any]]] = (
        {"anchor": "how do I change my password", "positive": "reset a forgotten password"},
        {"anchor": "when does the shop open", "positive": "opening hours of the store"},
        {"anchor": "the train was late again", "positive": "delays on the railway"},
        {"anchor": "a recipe for apple pie", "positive": "baking a cake with fruit"},
        {"anchor": "my phone does not charge", "positive": "the battery stays empty"},
        {"anchor": "cheap flights to Rome", "positive": "low fares by plane to Italy"},
        {"anchor": "今天天气怎么样", "positive": "明天会下雨吗"},
        {"anchor": "如何退货", "positive": "我想把商品退回去"},
    )

    def __init__(self, checkpoint: Checkpoint, options: Settings | None = None) -> None:
        super().__init__(checkpoint, options)
        said = checkpoint.pooling or Pooling()
        if "max_length" not in checkpoint.facts:
            self.max_length = min(self.max_length, said.max_length or self.max_length)
        self.pooling = Pooling(
            self.options.pooling or said.mode,
            said.normalize if self.options.normalize is None else self.options.normalize,
            self.max_length,
        )
        # Written with the model, for sentence-transformers to make the same vectors.
        checkpoint.pooling = self.pooling
        self.texts_per_row = 1  # of rows to be answered
        self._low, self._span = 0.0, 1.0  # of the scores
        if checkpoint.model.pooler is not None:  # which has no part in this
            checkpoint.model.pooler.requires_grad_(False)

    # ---- reading

    @classmethod
    def read(
        cls, path: Path, text: Sequence[str], label: str | None, *, labelled: bool
    ) -> Iterator[Example]:
        """Rows of two or three texts to learn from, perhaps with a score; or of any to answer.

        A row that lacks one of its texts is taken for one without text.

        Raises:
            DataError: the file or a row cannot be read; the message names the row.
            UsageError: the columns that are named do not go together.
        """
        names = _columns(path, text, labelled)
        score = label or (SCORE if len(names) == 2 and SCORE in columns(path) else None)
        if not labelled:
            score = None
        elif label is not None:
            if len(names) != 2:
                raise UsageError(
                    "A score is that of two texts, but the rows have three.",
                    where=str(path),
                    fix="leave out --label, or name two columns: --text COLUMN --text COLUMN",
                )
            choose_columns(path, names, label, labelled=True)

        def example(row: Row) -> Example:
            parts = [text_of(row.values.get(name), name, row.where) for name in names]
            if len(parts) == MOST_TEXTS and not parts[2].strip():
                parts.pop()  # a pair among triplets
            if len(parts) > 1 and not all(part.strip() for part in parts):
                parts = [""] * len(parts)
            truth: Any = None
            if labelled:
                truth = ALIKE if score is None else _score(row.values.get(score), score, row.where)
            others = {k: v for k, v in row.values.items() if k != score and k not in names}
            return Example(parts[0] if len(parts) == 1 else tuple(parts), truth, row.where, others)

        return Examples(path, rows(path), example)

    @classmethod
    def text_columns(cls, path: Path, text: Sequence[str]) -> tuple[str, ...]:
        """Those that are named; how many texts a row has the columns of the file tell."""
        return tuple(text)

    def takes(self, texts: int) -> bool:
        """One text has a vector, two have a likeness; three are learnt from."""
        return 1 <= texts <= MOST_TEXTS

    # ---- training

    def encode(self, texts: Sequence[Texts | tuple[str, ...]]) -> list[Windowed]:
        """Texts as the model reads them, each of a row on its own and one after the other.

        A window with ``begin`` 0 is the first of its text.

        Raises:
            DataError: a row of more than three texts.
        """
        rows_of = [(text,) if isinstance(text, str) else tuple(text) for text in texts]
        for i, row in enumerate(rows_of):
            if not self.takes(len(row)):
                raise DataError(
                    f"A row has one to {MOST_TEXTS} texts, not {len(row)}.", where=f"text {i + 1}"
                )
        flat = [text for row in rows_of for text in row]
        each = iter(in_windows(self.tokenizer, flat, self.max_length))
        found = []
        for row in rows_of:
            parts = [next(each) for _ in row]
            windows = [window for part in parts for window in part.windows]
            found.append(replace(parts[0], windows=windows))
        return found

    def samples(self, examples: Sequence[Example]) -> list[Sample]:
        """Rows as they are trained on; what their scores mean is told by all of them."""
        scores = [example.truth for example in examples if example.truth != ALIKE]
        low, high = min(scores, default=0.0), max(scores, default=1.0)
        self._low, self._span = (0.0, 1.0) if low >= 0 and high <= 1 else (low, (high - low) or 1.0)
        return super().samples(examples)

    def targets(self, example: Example, encoded: Windowed) -> Targets:
        """``part`` of each window, which of the row's texts it is of; of a row ``score`` [1].

        ``key`` [3] is what equal texts share, 0 where there is none.
        """
        keys = np.zeros(MOST_TEXTS, dtype=np.int64)
        keys[: len(example.parts)] = [_key(text) for text in example.parts]
        alike = example.truth == ALIKE
        score = math.nan if alike else (example.truth - self._low) / self._span
        return {
            "part": [np.array([number]) for number in _parts(encoded)],
            "key": keys,
            "score": np.array([score], dtype=np.float32),
        }

    def shown(self, encoded: Windowed, *keys: int) -> Sequence[int]:
        """The numbers of the windows that are trained on at once, of every text of a row."""
        parts = _parts(encoded)
        found: list[int] = []
        for part in range(parts[-1] + 1):
            mine = np.flatnonzero(parts == part)
            text = replace(encoded, windows=[encoded.windows[i] for i in mine])
            found += mine[list(super().shown(text, *keys))].tolist()
        return found

    def counts(self, batch: Batch) -> dict[str, int]:
        """One answer a row."""
        return {"likeness": len(batch.samples)}

    def losses(self, model: nn.Module, batch: Batch, device: torch.device) -> Outcome:
        """The loss of the batch, times its rows."""
        count = len(batch.samples)
        keys = torch.as_tensor(batch.targets["key"]).view(count, MOST_TEXTS).to(device)
        scores = torch.as_tensor(batch.targets["score"]).to(device)  # [R]
        vectors = F.normalize(self._vectors(model, batch, device), dim=-1)  # [R, 3, H]
        if scores.isnan().any():
            loss, correct = contrast(vectors, keys)
        else:
            loss, correct = distance(vectors, scores)
        return Outcome({"likeness": loss}, {"likeness": correct})

    def _vectors(self, model: nn.Module, batch: Batch, device: torch.device) -> Tensor:
        """A vector for each text of each row, zeros where a row has none: [R, 3, H]."""
        tokens = batch_tokens(batch, device)
        lengths = tokens.packed.lengths
        each = []
        for begin, end in _cuts(lengths):
            if end - begin == len(lengths):
                each.append(self.of_windows(model, tokens))
            else:
                part = _windows_of(tokens, begin, end)
                each.append(again(self.of_windows, model, part, use_reentrant=False))
        windows = torch.cat(each)  # [W, H]
        place = torch.as_tensor(batch.targets["row"] * MOST_TEXTS + batch.targets["part"])
        place = place.to(device)
        texts = windows.new_zeros(len(batch.samples) * MOST_TEXTS, windows.shape[-1])
        if self.pooling.mode == "max":
            index = place[:, None].expand_as(windows)
            texts = texts.scatter_reduce(0, index, windows, "amax", include_self=False)
        else:
            weights = self._weights(tokens.packed).to(windows)  # [W]
            sums = texts.index_add(0, place, windows * weights[:, None])
            total = sums.new_zeros(len(sums)).index_add(0, place, weights)
            texts = sums / total.clamp(min=1)[:, None]
        return texts.view(len(batch.samples), MOST_TEXTS, -1)

    def of_windows(self, model: nn.Module, tokens: Tokens) -> Tensor:
        """The pooled vector of each window, in fp32: [W, H]."""
        hidden: Tensor = model.encode(tokens).float()  # type: ignore[operator]  # [T, H]
        if self.pooling.mode == "cls":
            return tokens.packed.first(hidden)
        if self.pooling.mode == "mean":
            return tokens.packed.mean(hidden)
        lengths = torch.tensor(tokens.packed.lengths, device=hidden.device)
        owner = torch.repeat_interleave(lengths, output_size=len(hidden))
        least = hidden.new_full((len(lengths), hidden.shape[-1]), -math.inf)
        return least.scatter_reduce(0, owner[:, None].expand_as(hidden), hidden, "amax")

    def _weights(self, packed: Packed) -> Tensor:
        """What each window counts for in the vector of its text: [W]."""
        lengths = torch.tensor(packed.lengths, dtype=torch.float32)
        return lengths if self.pooling.mode == "mean" else torch.ones_like(lengths)

    # ---- answering

    def scores(self, model: nn.Module, tokens: Tokens) -> list[Numbers]:
        """Each window's vector, and what it counts for: [H + 1]."""
        vectors = self.of_windows(model, tokens).cpu()
        return list(torch.cat((vectors, self._weights(tokens.packed)[:, None]), dim=1).numpy())

    def decode(
        self, texts: Texts | tuple[str, ...], encoded: Windowed, scores: Sequence[Numbers]
    ) -> Answer:
        """``{"embedding": [...]}`` of a text.

        Of two or three texts ``{"similarity": cosine of the first two, "embeddings": [K, H],
        "keys": [K]}``, the vectors of length 1.
        """
        parts = _parts(encoded)
        vectors = np.stack(
            [
                self._together([scores[int(i)] for i in np.flatnonzero(parts == part)])
                for part in range(parts[-1] + 1)
            ]
        )
        if isinstance(texts, str) or len(texts) == 1:
            vector = _unit(vectors[0]) if self.pooling.normalize else vectors[0]
            return {"embedding": vector.tolist()}
        vectors = _unit(vectors)
        return {
            "similarity": float(vectors[0] @ vectors[1]),
            "embeddings": vectors,
            "keys": np.array([_key(text) for text in texts]),
        }

    def _together(self, scores: Sequence[Numbers]) -> Numbers:
        """One vector from those of all windows of a text: [H]."""
        if len(scores) == 1:
            return scores[0][:-1]
        vectors, weights = np.stack(scores)[:, :-1], np.stack(scores)[:, -1]
        if self.pooling.mode == "max":
            return np.asarray(vectors.max(axis=0))
        return np.asarray(weights @ vectors / weights.sum())

    def written(self, answer: Answer) -> Answer:
        """Without the vectors of pairs, which nobody reads."""
        return {k: v for k, v in answer.items() if k not in ("embeddings", "keys")}

    # ---- measuring

    def tally(self) -> EmbeddingTally:
        """Correlation with the scores, or how often the like text is found."""
        return EmbeddingTally()

    def constant(self, answers: Sequence[Answer]) -> bool:
        """Whether all texts have one vector."""
        first = answers[0]["embeddings"][0]
        return len(answers) > 1 and all(
            np.abs(answer["embeddings"] - first).max() < 1e-3 for answer in answers
        )

    def mistake(self, example: Example, answer: Answer) -> Mistake | None:
        """Like texts of low cosine, or a third that is nearer; of a score, nothing is wrong."""
        if example.truth != ALIKE:
            return None
        vectors = np.asarray(answer["embeddings"], np.float32)  # a list, where it was kept
        similarity = answer["similarity"]
        other = float(vectors[0] @ vectors[2]) if len(vectors) == MOST_TEXTS else 0.5
        if similarity > other:
            return None
        said = f"cosine {similarity:.2f}"
        if len(vectors) == MOST_TEXTS:
            said += f", of the third {other:.2f}"
        return Mistake(other - similarity, "the first two alike", said, "\n".join(example.parts))

    def pictures(self, figures: Mapping[str, Any], folder: Path) -> Iterable[tuple[Path, str]]:
        """The figures with their intervals."""
        path = folder / "ranking.png"
        shown = {
            name: (figure["value"], figure["low"], figure["high"])
            for name, figure in figures.items()
            if isinstance(figure, Mapping) and "low" in figure and name != self.primary_metric
        }
        plots.intervals(path, shown, title="Held-out rows", x_label="value")
        yield path, "the figures with their 95% intervals"


class EmbeddingTally:
    """Rows with a score: correlations. Rows without: ranks among the texts of up to 10,000 rows.

    The second text of a row is looked for among the second and third texts of all rows, by its
    cosine with the first; other texts that are like the first one, and the first one itself,
    are left out. Memory does not grow with the rows but by a score for each.
    """

    def __init__(self) -> None:
        self.scored = RegressionTally()
        self.ranked = RankingTally()
        self.has_scores = False
        self.waiting: list[tuple[Numbers, Numbers]] = []  # vectors and keys of rows

    def add(self, truth: Any, answer: Answer) -> None:
        """Count one answer."""
        if truth != ALIKE:
            self.has_scores = True
            self.scored.add(truth, answer["similarity"])
            return
        self.waiting.append((answer["embeddings"], answer["keys"]))
        if len(self.waiting) >= POOL:
            self.ranked.add(pool_ranks(self.waiting))
            self.waiting = []

    def figures(self) -> dict[str, Any]:
        """``pearson`` and ``spearman``, or ``mrr@10``, ``ndcg@10`` and ``recall@k``.

        ``ranking`` is Spearman's of the one and MRR@10 of the other.
        """
        if self.has_scores:
            found = self.scored.figures()
            return {"ranking": found["spearman"]} | {k: found[k] for k in ("spearman", "pearson")}
        ranked = copy.deepcopy(self.ranked)
        if self.waiting:
            ranked.add(pool_ranks(self.waiting))
        figures = ranked.figures()
        figures.pop("rows")
        return {"ranking": figures["mrr@10"], **figures}


def pool_ranks(pool: Sequence[tuple[Numbers, Numbers]]) -> NDArray[np.int64]:
    """The rank of each row's second text among those of all rows of a pool: [R], from 1.

    Args:
        pool: of each row its vectors [K, H], of length 1, and the keys of its texts [K].
    """
    keys = np.concatenate([row[1:] for _, row in pool])
    distinct, first = np.unique(keys, return_index=True)
    texts = np.concatenate([vectors[1:] for vectors, _ in pool])[first]  # [M, H]
    like: dict[int, set[int]] = {}
    own = np.searchsorted(distinct, [row[1] for _, row in pool])
    for (_, row), place in zip(pool, own, strict=True):
        like.setdefault(int(row[0]), set()).add(int(place))
    for key, places in like.items():
        at = int(np.searchsorted(distinct, key))
        if at < len(distinct) and distinct[at] == key:
            places.add(at)
    found = []
    for begin in range(0, len(pool), 256):
        part = pool[begin : begin + 256]
        table = np.stack([vectors[0] for vectors, _ in part]) @ texts.T  # [256, M]
        for line, (_, row), mine in zip(table, part, own[begin:], strict=False):
            others = list(like[int(row[0])] - {int(mine)})
            line[others] = -np.inf
        found.append(ranks_of(table, own[begin : begin + 256]))
    return np.concatenate(found)


def contrast(vectors: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy of finding the own second text in the batch, summed, and how many are found.

    Args:
        vectors: [R, 3, H] of length 1; the third may be zeros, with a key of 0.
        keys: [R, 3], equal for equal texts.
    """
    count = len(vectors)
    third = keys[:, 2] != 0
    others = torch.cat((vectors[:, 1], vectors[third, 2]))  # [M, H]
    named = torch.cat((keys[:, 1], keys[third, 2]))  # [M]
    logits = SCALE * vectors[:, 0] @ others.T  # [R, M]
    # Like the first text of row i is whatever any row with that first text calls so.
    same = (keys[:, 0, None] == keys[None, :, 0]).float()  # [R, R]
    like = same @ (keys[:, 1, None] == named[None, :]).float() > 0  # [R, M]
    like |= keys[:, 0, None] == named[None, :]
    own = torch.arange(count, device=vectors.device)
    like[own, own] = False
    logits = logits.masked_fill(like, -math.inf)
    found = (logits.argmax(dim=-1) == own).sum()
    return F.cross_entropy(logits, own, reduction="sum"), found


def distance(vectors: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
    """Squared differences of cosine and score, summed, and how many cosines are within 0.1.

    Args:
        vectors: [R, 3, H] of length 1, of which the first two are compared.
        scores: [R], 0 to 1.
    """
    apart = (vectors[:, 0] * vectors[:, 1]).sum(dim=-1) - scores  # [R]
    return (apart**2).sum(), (apart.abs() < 0.1).sum()


def _columns(path: Path, text: Sequence[str], labelled: bool) -> tuple[str, ...]:
    """The columns of texts: those named, or else the usual ones."""
    for name in text:
        choose_columns(path, (name,), None, labelled=False)  # raises where it is not there
    if len(text) > MOST_TEXTS or (labelled and len(text) == 1):
        raise UsageError(
            "Embeddings are learnt from rows of two texts or three.",
            where=str(path),
            fix="give --text twice, or three times",
        )
    if text:
        return tuple(text)
    there = columns(path)
    usual = next((names for names in COLUMNS if set(names) <= set(there)), None)
    if usual is not None:
        return usual
    if labelled:
        raise DataError(
            f"There are no two columns of texts; the columns are {', '.join(there)}.",
            where=str(path),
            fix="name them: --text COLUMN --text COLUMN",
        )
    return choose_columns(path, text, None, labelled=False)[0]


def _score(value: Any, name: str, where: str) -> float | None:
    """A score, None where there is none."""
    if value is None or value == "":
        return None
    try:
        score = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        score = math.nan
    if not abs(score) <= float(np.finfo(np.float32).max):
        raise DataError(
            f"Column {name!r} holds {value!r:.60}, which is no score.",
            where=where,
            fix="write a number, such as 0 to 1, or name the right column: --label COLUMN",
        )
    return score


def _key(text: str) -> int:
    """What equal texts share; never 0."""
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True) or 1


def _parts(encoded: Windowed) -> NDArray[np.int64]:
    """Which text of its row each window belongs to: [W]."""
    return np.asarray(np.cumsum([window.begin == 0 for window in encoded.windows]) - 1)


def _unit(vectors: Numbers) -> Numbers:
    """Vectors [..., H] of length 1; zeros stay."""
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.asarray(vectors / np.maximum(lengths, 1e-12), dtype=np.float32)


def _cuts(lengths: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Begin and end of runs of sequences with at most ``TOKENS_AT_ONCE`` tokens, or one."""
    begin = tokens = 0
    for i, length in enumerate(lengths):
        if i > begin and tokens + length > TOKENS_AT_ONCE:
            yield begin, i
            begin, tokens = i, 0
        tokens += length
    yield begin, len(lengths)


def _windows_of(tokens: Tokens, begin: int, end: int) -> Tokens:
    """A run of the packed sequences on its own."""
    lengths = tokens.packed.lengths
    place = slice(sum(lengths[:begin]), sum(lengths[:end]))
    return Tokens(
        tokens.input_ids[place],
        tokens.token_type_ids[place],
        tokens.position_ids[place],
        Packed.of(lengths[begin:end], tokens.input_ids.device),
    )


TASK = Embedding
