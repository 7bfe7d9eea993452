"""What classified texts before BERT: does one need BERT at all?

- ``majority``: always the most frequent label.
- ``tf-idf``: logistic regression on weighted counts of runs of one or two words, of one to three
  in scripts without spaces between words, where every character counts as one.
- ``textcnn``: a convolution over words (Kim 2014).
- ``bilstm``: a recurrent network that reads in both directions (Graves & Schmidhuber 2005).

Each learns from rows in memory and answers probabilities. The two networks read the first
``LONGEST`` words of a row, start from random vectors, and stop when their loss on a tenth of
the rows, which they do not learn from, no longer falls.
"""

from __future__ import annotations

import copy
import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from bert.model.precision import default_device
from bert.text.cleaning import SCRIPTS

Row = tuple[str, ...]  # one text or two
Shares = NDArray[np.float64]  # [rows, L]

LONGEST = 512
MOST_FEATURES = 2**18
MOST_WORDS = 50_000
WIDTH = 128  # of word vectors, and of each direction of the LSTM
FILTERS = 100
WINDOWS = (3, 4, 5)
BATCH = 50
MOST_EPOCHS = 20
PATIENCE = 3
_NO_SPACES = "".join(SCRIPTS[name] for name in ("han", "kana", "thai"))
_LONE = re.compile(f"[{_NO_SPACES}]")
_WORD = re.compile(rf"[{_NO_SPACES}]|[^\W{_NO_SPACES}]+|[^\w\s]")
_PADDING, _UNKNOWN, _NEXT_TEXT = range(3)


class Fitted(NamedTuple):
    """A baseline that has learnt.

    Args:
        answer: rows -> the probability of each label [rows, L].
        bytes: of what it has learnt.
    """

    answer: Callable[[Sequence[Row]], Shares]
    bytes: int


# rows, their label numbers [rows], how many labels there are, seed
Baseline = Callable[[Sequence[Row], NDArray[np.int64], int, int], Fitted]


def majority(rows: Sequence[Row], truth: NDArray[np.int64], labels: int, seed: int = 0) -> Fitted:
    """Give every row the shares of the labels."""
    shares = np.bincount(truth, minlength=labels) / len(truth)
    return Fitted(lambda some: np.tile(shares, (len(some), 1)), shares.nbytes)


def tfidf(rows: Sequence[Row], truth: NDArray[np.int64], labels: int, seed: int = 0) -> Fitted:
    """Logistic regression on TF-IDF.

    Of a pair it sees both texts, in what they differ and what they share.
    """
    from scipy import sparse  # type: ignore[import-untyped]
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    texts = [text for row in rows for text in row]
    lone = sum(len(_LONE.findall(text)) for text in texts)
    vectorizer = TfidfVectorizer(
        token_pattern=_WORD.pattern,
        ngram_range=(1, 3 if lone > sum(map(len, texts)) / 3 else 2),
        sublinear_tf=True,
        max_features=MOST_FEATURES,
    ).fit(texts)

    def features(some: Sequence[Row]) -> Any:
        first, *others = (vectorizer.transform(texts) for texts in zip(*some, strict=True))
        if not others:
            return first
        (second,) = others
        both = [first, second, abs(first - second), first.multiply(second)]
        return sparse.hstack(both).tocsr()

    # Rows of TF-IDF have length 1, for which the usual C of 1 holds too much back.
    model = LogisticRegression(C=10.0, max_iter=1000).fit(features(rows), truth)

    def answer(some: Sequence[Row]) -> Shares:
        shares = np.zeros((len(some), labels))
        shares[:, model.classes_] = model.predict_proba(features(some))
        return shares

    known = sum(len(word.encode()) for word in vectorizer.vocabulary_)
    return Fitted(answer, known + vectorizer.idf_.nbytes + model.coef_.nbytes)


def textcnn(rows: Sequence[Row], truth: NDArray[np.int64], labels: int, seed: int = 0) -> Fitted:
    """Kim 2014, "CNN-rand", with Adam."""
    return _trained(TextCNN, rows, truth, labels, seed)


def bilstm(rows: Sequence[Row], truth: NDArray[np.int64], labels: int, seed: int = 0) -> Fitted:
    """A bidirectional LSTM with the largest value over all words of each of its outputs."""
    return _trained(BiLSTM, rows, truth, labels, seed)


BASELINES: dict[str, Baseline] = {
    "majority": majority,
    "tf-idf": tfidf,
    "textcnn": textcnn,
    "bilstm": bilstm,
}
SEEDED = ("textcnn", "bilstm")  # whose figures depend on the seed


class TextCNN(nn.Module):
    """Word numbers [B, S] and lengths [B] -> logits [B, L]."""

    def __init__(self, words: int, labels: int) -> None:
        super().__init__()
        self.vectors = nn.Embedding(words, WIDTH, padding_idx=_PADDING)
        self.windows = nn.ModuleList(nn.Conv1d(WIDTH, FILTERS, size) for size in WINDOWS)
        self.dropout = nn.Dropout(0.5)
        self.output = nn.Linear(FILTERS * len(WINDOWS), labels)

    def forward(self, words: Tensor, lengths: Tensor) -> Tensor:
        """The largest response of each filter over the windows that begin in the row."""
        longest = words.shape[1]
        vectors = self.vectors(F.pad(words, (0, max(WINDOWS) - 1))).transpose(1, 2)  # [B, W, S + 4]
        beyond = (torch.arange(longest, device=words.device) >= lengths[:, None])[:, None]
        found = [
            window(vectors)[:, :, :longest].relu().masked_fill(beyond, 0.0).amax(dim=-1)
            for window in self.windows
        ]
        logits: Tensor = self.output(self.dropout(torch.cat(found, dim=-1)))
        return logits


class BiLSTM(nn.Module):
    """Word numbers [B, S] and lengths [B] -> logits [B, L]."""

    def __init__(self, words: int, labels: int) -> None:
        super().__init__()
        self.vectors = nn.Embedding(words, WIDTH, padding_idx=_PADDING)
        self.reader = nn.LSTM(WIDTH, WIDTH, batch_first=True, bidirectional=True)
        self.dropout = nn.Dropout(0.5)
        self.output = nn.Linear(2 * WIDTH, labels)

    def forward(self, words: Tensor, lengths: Tensor) -> Tensor:
        """The largest value of each output over the words of the row."""
        packed = nn.utils.rnn.pack_padded_sequence(
            self.dropout(self.vectors(words)), lengths.cpu(), batch_first=True, enforce_sorted=False
        )
        read, _ = nn.utils.rnn.pad_packed_sequence(
            self.reader(packed)[0], batch_first=True, padding_value=-torch.inf
        )
        logits: Tensor = self.output(self.dropout(read.amax(dim=1)))  # [B, S, 2 W] -> [B, 2 W]
        return logits


def _trained(
    network: type[TextCNN] | type[BiLSTM],
    rows: Sequence[Row],
    truth: NDArray[np.int64],
    labels: int,
    seed: int,
) -> Fitted:
    device = default_device()
    counts = Counter(word for row in rows for text in row for word in _WORD.findall(text.lower()))
    # A word that was seen once has no vector worth the name; few rows have hardly any others.
    common = [word for word, count in counts.most_common(MOST_WORDS) if count > 1]
    numbers = {word: i for i, word in enumerate(common, start=_NEXT_TEXT + 1)}

    def encoded(some: Sequence[Row]) -> list[list[int]]:
        found = []
        for row in some:
            texts = [_WORD.findall(text.lower()) for text in row]
            joined = [
                i for text in texts for i in (_NEXT_TEXT, *(numbers.get(w, _UNKNOWN) for w in text))
            ]
            found.append(joined[:LONGEST])
        return found

    def logits(some: Sequence[list[int]]) -> Tensor:
        lengths = torch.tensor([len(row) for row in some])
        words = torch.full((len(some), int(lengths.max())), _PADDING)
        for i, row in enumerate(some):
            words[i, : len(row)] = torch.tensor(row)
        found: Tensor = model(words.to(device), lengths.to(device))
        return found

    def answer_numbers(some: Sequence[list[int]]) -> Tensor:
        model.eval()
        order = sorted(range(len(some)), key=lambda i: len(some[i]))
        shares = torch.zeros(len(some), labels)
        with torch.inference_mode():
            for start in range(0, len(order), 4 * BATCH):
                members = order[start : start + 4 * BATCH]
                shares[members] = logits([some[i] for i in members]).log_softmax(dim=-1).cpu()
        return shares

    draw = np.random.default_rng(seed)
    order = draw.permutation(len(rows))
    judged, learnt = np.split(order, [max(len(rows) // 10, 1)])
    if not len(learnt):
        learnt = judged
    inputs, answers = encoded(rows), torch.from_numpy(truth)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = network(_NEXT_TEXT + 1 + len(numbers), labels).to(device)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        best, best_loss, since = copy.deepcopy(model.state_dict()), float("inf"), 0
        for _ in range(MOST_EPOCHS):
            shuffled = draw.permutation(learnt)
            for part in np.array_split(shuffled, -(-len(shuffled) // BATCH)):
                model.train()
                loss = F.cross_entropy(logits([inputs[i] for i in part]), answers[part].to(device))
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
            held_out = F.nll_loss(answer_numbers([inputs[i] for i in judged]), answers[judged])
            since += 1
            if float(held_out) < best_loss:
                best, best_loss, since = copy.deepcopy(model.state_dict()), float(held_out), 0
            if since == PATIENCE:
                break
    model.load_state_dict(best)

    def answer(some: Sequence[Row]) -> Shares:
        return answer_numbers(encoded(some)).double().exp().numpy()

    weights = sum(value.nbytes for value in best.values())
    return Fitted(answer, weights + sum(len(word.encode()) for word in numbers))
