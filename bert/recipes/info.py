"""``bert info``: what a model directory holds, and what it takes to train and to serve it."""

from __future__ import annotations

import json
from typing import Any

from bert.checkpoint import Checkpoint, read_model
from bert.hub import find_model
from bert.model.memory import peak_memory

# The batch for which memory is told.
SEQUENCES, LENGTH = 32, 128


def describe(name: str, *, as_json: bool) -> dict[str, Any]:
    """Print the family, sizes, parameters, heads, labels, tokenizer and memory of a model.

    Raises:
        ModelError: there is none, or it cannot be read.
    """
    directory = find_model(name)
    checkpoint = read_model(directory)
    config, family = checkpoint.config, checkpoint.family
    counts: dict[str, int] = {}
    for parameter_name, parameter in checkpoint.model.named_parameters():
        part = parameter_name.removeprefix("bert.").split(".")[0]
        counts[part] = counts.get(part, 0) + parameter.numel()
    facts = {
        "directory": str(directory),
        "family": family.name,
        "head": checkpoint.kind,
        "heads of the family": list(family.heads),
        "task": checkpoint.facts.get("task"),
        "labels": checkpoint.labels or None,
        "layers": config.num_hidden_layers,
        "hidden size": config.hidden_size,
        "embedding size": config.embedding_size,
        "attention heads": config.num_attention_heads,
        "feed-forward size": config.intermediate_size,
        "longest text (tokens)": config.longest_text,
        "vocabulary": config.vocab_size,
        "parameters": sum(counts.values()),
        **{f"parameters in {part}": count for part, count in counts.items()},
        **_memory(checkpoint),
        "base model": checkpoint.facts.get("base_model"),
        "written by bertsmith": checkpoint.facts.get("version"),
        "fields of config.json without effect here": sorted(checkpoint.foreign) or None,
        "files without effect here": checkpoint.others or None,
    }
    facts = {key: value for key, value in facts.items() if value is not None}
    if as_json:
        print(json.dumps(facts, ensure_ascii=False))
        return facts
    for key, value in facts.items():
        shown = ", ".join(value) if isinstance(value, list) else value
        text = f"{shown:,}" if isinstance(shown, int) else str(shown)
        # Names come from the model's files: none may move the cursor of the terminal.
        print(f"{key}: {text if text.isprintable() else ascii(text)}")
    return facts


def _memory(checkpoint: Checkpoint) -> dict[str, int]:
    """Megabytes that the network needs for a batch; Python and torch themselves come on top."""
    config = checkpoint.config
    length = min(LENGTH, config.longest_text)
    return {
        f"memory to {verb} (MB; {SEQUENCES} texts of {length} tokens, fp32)": peak_memory(
            lambda: checkpoint.family.build(
                checkpoint.kind, config, max(len(checkpoint.labels), 1)
            ),
            SEQUENCES,
            length,
            "fp32",
            training=training,
        )
        // 10**6
        for verb, training in (("serve", False), ("train", True))
    }
