"""What all tests share: no network, no cache of the user's, one thread, a small corpus."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from bert.text.tokenizer import Tokenizer

# Before torch and huggingface_hub are imported; processes that tests start inherit it. Several
# threads on a busy machine wait for each other, which costs these small models a factor of ten.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

WORDS = ["the", "a", "small", "old", "bright", "cold", "bird", "river", "stone", "tree", "house"]
WORDS += ["wind", "sings", "falls", "stands", "moves", "near", "under", "often", "never", "quietly"]


@pytest.fixture(autouse=True, scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache of the tests' own, for processes that they start too."""
    directory = tmp_path_factory.mktemp("cache")
    before = os.environ.get("BERT_CACHE")
    os.environ["BERT_CACHE"] = str(directory)
    yield directory
    if before is None:
        del os.environ["BERT_CACHE"]
    else:
        os.environ["BERT_CACHE"] = before


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text file of 60 documents of 5 to 20 sentences, the same every time."""
    draw = random.Random(1)
    documents = [
        "\n".join(
            " ".join(draw.choices(WORDS, k=draw.randint(4, 10))).capitalize() + "."
            for _ in range(draw.randint(5, 20))
        )
        for _ in range(60)
    ]
    path = tmp_path_factory.mktemp("corpus") / "corpus.txt"
    path.write_text("\n\n".join(documents) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def tokenizer(corpus: Path) -> Tokenizer:
    """A tokenizer of a few dozen tokens, with some Chinese and accents in it."""
    from bert.text.tokenizer import train_wordpiece

    more = ["今天天气很好。我们去公园。今天很好。", "Café naïve déjà. Café naïve déjà."] * 3
    texts = [corpus.read_text(encoding="utf-8"), *more]
    return train_wordpiece(lambda: texts, vocab_size=160, lowercase=True, max_length=64)
