"""Tiny, randomly initialised ``transformers`` models of every family, and what both sides say.

A family needs no line here unless some of its settings matter at a tiny size only when they
are made tiny too: its classes and configuration are found by the names in its table.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from bert.checkpoint import Checkpoint
from bert.data.batches import pack_sequences
from bert.families.family import family_names, load_family
from bert.model.packing import Tokens, pack
from bert.tasks.task import batch_tokens

transformers = pytest.importorskip("transformers")

V, S, LABELS = 60, 24, ["none", "some", "all"]
LABELLED = ("sequence", "token")
TOKEN_KINDS = ("encoder", "pretraining", "masked_lm", "replaced_token", "token", "span")
AUTO = {
    "encoder": "AutoModel",
    "pretraining": "AutoModelForPreTraining",
    "replaced_token": "AutoModelForPreTraining",
    "masked_lm": "AutoModelForMaskedLM",
    "next_sentence": "AutoModelForNextSentencePrediction",
    "sequence": "AutoModelForSequenceClassification",
    "token": "AutoModelForTokenClassification",
    "span": "AutoModelForQuestionAnswering",
    "choice": "AutoModelForMultipleChoice",
}
SIZES: dict[str, Any] = {
    "vocab_size": V,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 40,
    "max_position_embeddings": S,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": 3,
}
# What SIZES leaves out, or what has to be otherwise for a family.
CHANGES: dict[str, dict[str, Any]] = {
    "roberta": {"max_position_embeddings": S + 2, "pad_token_id": 1, "type_vocab_size": 1},
    "xlm_roberta": {"max_position_embeddings": S + 2, "pad_token_id": 1, "type_vocab_size": 1},
    "distilbert": {"hidden_dim": 40},
    "albert": {"embedding_size": 12},
    "electra": {"embedding_size": 12},
    # Windows of 3 tokens to each side, between layers that see everything.
    "modernbert": {
        "num_hidden_layers": 3,
        "local_attention": 6,
        "layer_types": ["full_attention", "sliding_attention", "full_attention"],
        "cls_token_id": 2,
        "sep_token_id": 3,
    },
    # As microsoft/deberta-v3-base; distances above 2 share logarithmic buckets.
    "deberta_v2": {
        "relative_attention": True,
        "position_buckets": 4,
        "max_relative_positions": -1,
        "position_biased_input": False,
        "pos_att_type": "p2c|c2p",
        "share_att_key": True,
        "norm_rel_ebd": "layer_norm",
        "type_vocab_size": 0,
        "layer_norm_eps": 1e-7,
    },
}
PAIRS = [(name, kind) for name in family_names() for kind in load_family(name).heads]


class Inputs(NamedTuple):
    """A padded batch, [B, S] each, or [B, C, S] for choices."""

    ids: Tensor
    types: Tensor | None  # None for a family without segments
    mask: Tensor


def config_of_theirs(name: str, kind: str, **changes: Any) -> Any:
    """Their configuration of a tiny model with this head."""
    return transformers.AutoConfig.for_model(
        name.replace("_", "-"),
        num_labels=len(LABELS) if kind in LABELLED else 2,
        **{**SIZES, **CHANGES.get(name, {}), **changes},
    )


def theirs(name: str, kind: str, **changes: Any) -> Any:
    """A tiny model of theirs, all of whose weights are random and large enough to matter."""
    torch.manual_seed(2)
    kind_of_theirs = getattr(transformers, load_family(name).heads[kind].architecture)
    model = kind_of_theirs(config_of_theirs(name, kind, **changes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


def ours(name: str, kind: str, **changes: Any) -> Checkpoint:
    """A tiny model of ours, built by us from the configuration of ``theirs``, all random."""
    family = load_family(name)
    config = family.read_config(config_of_theirs(name, kind, **changes).to_dict(), "config.json")
    torch.manual_seed(4)
    model = family.build(kind, config, len(LABELS)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    labels = list(LABELS) if kind in LABELLED else []
    return Checkpoint(model, kind, family, labels, facts={"task": "x"})


def inputs(
    config: Any, kind: str, *, holes: bool, rows: int = 5, length: int = S, seed: int = 8
) -> Inputs:
    """Random tokens, types and lengths for a model of theirs with this configuration.

    With ``holes`` any token but the first may be masked, else those at the end. The first
    row is full. Where nothing real stands, there is the padding token: RoBERTa's positions
    count the others.
    """
    draw = torch.Generator().manual_seed(seed)
    shape = (rows, 2, length) if kind == "choice" else (rows, length)
    if holes:
        mask = torch.rand(shape, generator=draw) < 0.7
    else:
        lengths = torch.randint(1, length + 1, shape[:-1], generator=draw)
        mask = torch.arange(length) < lengths[..., None]
    mask[..., 0] = True
    mask.view(-1, length)[0] = True
    ids = torch.randint(4, V, shape, generator=draw).masked_fill(~mask, config.pad_token_id)
    segments = getattr(config, "type_vocab_size", 0)
    types = torch.randint(0, segments, shape, generator=draw) if segments else None
    return Inputs(ids, types, mask.long())


def named(given: Inputs) -> dict[str, Tensor]:
    """The inputs under the names that both sides use."""
    arguments = {"input_ids": given.ids, "attention_mask": given.mask}
    return arguments if given.types is None else {**arguments, "token_type_ids": given.types}


def outputs_of_theirs(kind: str, model: nn.Module, given: Inputs) -> list[Tensor]:
    """What they say: of every real token [T, ...], of every sequence [B, ...], or both."""
    out = model(**named(given))
    real = given.mask == 1
    if kind == "encoder":
        pooled = getattr(out, "pooler_output", None)
        return [out.last_hidden_state[real], *([] if pooled is None else [pooled])]
    if kind == "pretraining":
        order = "sop_logits" if "sop_logits" in out else "seq_relationship_logits"
        return [out.prediction_logits[real], out[order]]
    if kind == "span":
        return [torch.stack([out.start_logits, out.end_logits], dim=-1)[real]]
    return [out.logits[real] if kind in TOKEN_KINDS else out.logits]


def packed_outputs(kind: str, model: nn.Module, tokens: Tokens) -> list[Tensor]:
    """What we say of packed tokens, in the order of ``outputs_of_theirs``."""
    net: Any = model
    if kind == "encoder":
        hidden = net.encode(tokens)
        return [hidden] if net.pooler is None else [hidden, net.pool(hidden, tokens)]
    logits = net.logits(tokens)
    if kind == "pretraining":
        return [logits, net.next_sentence_logits(net.bert.encode(tokens), tokens)]
    return [logits]


def padded_outputs(kind: str, model: nn.Module, given: Inputs) -> list[Tensor]:
    """What we say of a padded batch, in the order of ``outputs_of_theirs``."""
    out = model(**named(given))
    result = [out[given.mask == 1] if kind in TOKEN_KINDS else out]
    if kind in ("encoder", "pretraining"):
        tokens, _ = pack(given.ids, given.types, given.mask)
        result += packed_outputs(kind, model, tokens)[1:]
    return result


def sequences(given: Inputs) -> list[tuple[list[int], list[int]]]:
    """The token numbers and types of each sequence, without padding."""
    width = given.ids.shape[-1]
    types = torch.zeros_like(given.ids) if given.types is None else given.types
    return [
        (ids[mask == 1].tolist(), kinds[mask == 1].tolist())
        for ids, kinds, mask in zip(
            given.ids.view(-1, width),
            types.view(-1, width),
            given.mask.view(-1, width),
            strict=True,
        )
    ]


def packed(rows: Sequence[tuple[Sequence[int], Sequence[int]]]) -> Tokens:
    """Sequences as one packed batch, as predictions are made."""
    batch = pack_sequences([ids for ids, _ in rows], [types for _, types in rows], range(len(rows)))
    return batch_tokens(batch, torch.device("cpu"))


def assert_same(mine: Sequence[Tensor], other: Sequence[Tensor], atol: float = 1e-5) -> None:
    """Equal within the tolerance, absolute and relative."""
    for a, b in zip(mine, other, strict=True):
        torch.testing.assert_close(a.view(b.shape), b, atol=atol, rtol=atol)


def read_by_theirs(class_name: str, directory: Path) -> Any:
    """Read by transformers, which must neither miss a weight nor leave one, but the pooler.

    Their classes without a pooler pass over it, in their own pretrained models too.
    """
    model, report = getattr(transformers, class_name).from_pretrained(
        directory, output_loading_info=True
    )
    assert not report["missing_keys"]
    assert all("pooler." in name for name in report["unexpected_keys"])
    assert not report["mismatched_keys"]
    return model.eval()


def distance(mine: Sequence[Tensor], other: Sequence[Tensor]) -> float:
    """The root mean square of the differences, in units of the spread of ``other``."""
    return max(
        float((a.view(b.shape).float() - b.float()).square().mean().sqrt() / b.float().std())
        for a, b in zip(mine, other, strict=True)
    )
