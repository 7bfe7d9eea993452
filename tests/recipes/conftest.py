"""A tiny model and rows that it learns in a second, for the recipes that fine-tune."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

TOPICS = {
    "animal": ["bird", "horse", "fish", "snake", "sheep"],
    "weather": ["rain", "wind", "storm", "frost", "sunshine"],
}


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT of two layers without dropout, as ``transformers`` saves it."""
    import torch
    import transformers

    directory = tmp_path_factory.mktemp("tiny") / "tiny"
    directory.mkdir()
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "we", "saw", "the", "near", "us"]
    words += [word for topic in TOPICS.values() for word in topic]
    words += [f"other{i}" for i in range(10)]  # that no row has
    vocabulary = directory.parent / "vocab.txt"
    vocabulary.write_text("\n".join(words) + "\n", encoding="utf-8")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(words),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=40,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    transformers.BertForMaskedLM(config).save_pretrained(directory)
    transformers.BertTokenizer(str(vocabulary)).save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def topic_rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """300 different rows, ``text`` and ``label``: the topic of two of three words, mostly."""
    path = tmp_path_factory.mktemp("rows") / "rows.csv"
    draw = np.random.default_rng(0)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        seen: set[str] = set()
        while len(seen) < 300:
            label, other = draw.permutation(list(TOPICS)).tolist()
            words = ["we", "saw", "the", *draw.choice(TOPICS[label], 2), draw.choice(TOPICS[other])]
            text = " ".join(draw.permutation(words))
            if text not in seen:
                seen.add(text)
                writer.writerow([text, other if draw.random() < 0.2 else label])
    return path
