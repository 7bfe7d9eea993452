"""``bert info``: what a model directory holds."""

from __future__ import annotations

import json
from typing import Any

from bert.checkpoint import find_model, read_model


def describe(name: str, *, as_json: bool) -> dict[str, Any]:
    """Print the family, sizes, parameters, head, labels and tokenizer of a model.

    Raises:
        ModelError: there is none, or it cannot be read.
    """
    directory = find_model(name)
    checkpoint = read_model(directory)
    config = checkpoint.config
    counts: dict[str, int] = {}
    for parameter_name, parameter in checkpoint.model.named_parameters():
        part = parameter_name.removeprefix("bert.").split(".")[0]
        counts[part] = counts.get(part, 0) + parameter.numel()
    facts = {
        "directory": str(directory),
        "family": checkpoint.family.name,
        "head": checkpoint.kind,
        "task": checkpoint.facts.get("task"),
        "labels": checkpoint.labels or None,
        "layers": config.num_hidden_layers,
        "hidden size": config.hidden_size,
        "attention heads": config.num_attention_heads,
        "feed-forward size": config.intermediate_size,
        "longest text (tokens)": config.max_position_embeddings,
        "vocabulary": config.vocab_size,
        "parameters": sum(counts.values()),
        **{f"parameters in {part}": count for part, count in counts.items()},
        "base model": checkpoint.facts.get("base_model"),
        "written by bertsmith": checkpoint.facts.get("version"),
    }
    facts = {key: value for key, value in facts.items() if value is not None}
    if as_json:
        print(json.dumps(facts, ensure_ascii=False))
        return facts
    for key, value in facts.items():
        shown = ", ".join(value) if isinstance(value, list) else value
        print(f"{key}: {shown:,}" if isinstance(shown, int) else f"{key}: {shown}")
    return facts
