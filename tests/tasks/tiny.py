"""Tiny BERT models of random weights, as ``transformers`` saves them, and runs that train them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers

from bert.recipes.finetune import FinetuneSettings, finetune

WORD = re.compile(r"[一-鿿]|[^\W_一-鿿]+|[^\w\s]")


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    """Rows as a file of JSON lines."""
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def write_model(
    directory: Path, texts: Iterable[str], kind: str = "BertForMaskedLM", **changes: Any
) -> Path:
    """A model of theirs with every word of the texts in its vocabulary."""
    words = {word for text in texts for word in WORD.findall(text.lower())}
    directory.mkdir(parents=True)
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *sorted(words)]
    (directory / "vocab.txt").write_text("\n".join(vocabulary) + "\n", encoding="utf-8")
    transformers.BertTokenizer(str(directory / "vocab.txt")).save_pretrained(directory)
    torch.manual_seed(0)
    settings = {
        "vocab_size": len(vocabulary),
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "max_position_embeddings": 48,
        "initializer_range": 0.1,  # as large as trained weights
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        **changes,
    }
    getattr(transformers, kind)(transformers.BertConfig(**settings)).save_pretrained(directory)
    return directory


def demo_texts(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Every word that occurs in rows."""
    return [json.dumps(row, ensure_ascii=False) for row in rows]


def tune(
    folder: Path, task: str, rows: Sequence[Mapping[str, Any]], model: Path, **settings: Any
) -> Path:
    """A run that learns rows by heart, and is measured on them."""
    path = write_rows(folder / "rows.jsonl", rows)
    values = {
        "train": str(path),
        "dev": str(path),
        "model": str(model),
        "task": task,
        "epochs": 40,
        "batch_size": 4,
        "learning_rate": 3e-3,
        "evaluations": 4,
        "precision": "fp32",
        **settings,
    }
    return finetune(FinetuneSettings.of(values), folder / "run")
