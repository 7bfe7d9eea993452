"""The page on families: its table is what the code can do, found out by doing it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
import torch

from bert.checkpoint import Checkpoint, write_model
from bert.errors import BertError, UsageError
from bert.families.family import Family, family_names, load_family
from bert.model.config import BertConfig
from bert.model.heads import HEADS
from bert.predictor import Predictor
from bert.recipes.plans import plan_for
from bert.recipes.pretrain import PretrainSettings
from bert.tasks.task import load_task, task_names
from bert.text.tokenizer import Tokenizer

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "families.md"
KINDS = ["encoder", *HEADS]
# What stands in a cell for each thing that can be done with a head; the page explains them.
LETTERS = {"pretrain": "P", "finetune": "F", "evaluate": "E", "predict": "A", "serve": "S"}
NOTHING_YET, NO_HEAD = "+", "–"


def smallest(family: Family) -> BertConfig:
    return min(
        family.sizes.values(), key=lambda config: config.hidden_size * config.num_hidden_layers
    )


def pretrained(tokenizer: Tokenizer) -> set[tuple[str, str]]:
    """The families and head kinds that ``bert pretrain`` makes, found by asking for each."""
    made: set[tuple[str, str]] = set()
    for name in family_names():
        sizes = load_family(name).sizes
        least = min(sizes, key=lambda size: sizes[size].hidden_size * sizes[size].num_hidden_layers)
        for objective in get_args(PretrainSettings.model_fields["objective"].annotation):
            values = {"family": name, "size": least, "objective": objective}
            settings = PretrainSettings.of({"corpus": ["x"], "sequence_length": 16, **values})
            if objective != "distill":  # which makes nothing that masked words do not
                with suppress(UsageError):
                    kept = plan_for(settings, tokenizer, torch.device("cpu")).kept()
                    made |= {(one.family.name, one.kind) for one in kept.values()}
    return made


def verbs(
    name: str, kind: str, tokenizer: Tokenizer, directory: Path, made: set[tuple[str, str]]
) -> list[str]:
    """What the commands do with this head today."""
    found = ["pretrain"] if (name, kind) in made else []
    tasks = [load_task(task) for task in task_names()]
    if any(task.kind == kind for task in tasks if task.primary_metric):
        found.append("finetune")
    family = load_family(name)
    config = replace(
        smallest(family), vocab_size=tokenizer.vocab_size, pad_token_id=tokenizer.pad_id
    )
    labels = ["good", "bad"] if kind != "encoder" and HEADS[kind].labelled else []
    model = family.build(kind, config, 2)
    write_model(directory, Checkpoint(model, kind, family, labels, tokenizer))
    try:
        predictor = Predictor(directory)
    except BertError:
        return found
    rows = directory.with_suffix(".jsonl")
    demo = [*predictor.task.demo_rows, {"text": "The small [MASK] sings."}]
    rows.write_text(json.dumps(demo[0]) + "\n", encoding="utf-8")
    (example,) = predictor.task.read(rows, [], None, labelled=False)
    texts = example.parts[0] if kind == "encoder" else example.texts
    (answer,) = predictor([texts])
    assert answer["truncated"] is False
    if predictor.task.primary_metric:
        found.append("evaluate")
    return [*found, "predict", "serve"]


def table(can: Mapping[tuple[str, str], list[str]]) -> str:
    names = family_names()
    rows = [["head", *(f"`{name}`" for name in names)], ["---"] * (len(names) + 1)]
    for kind in KINDS:
        cells = [
            "".join(LETTERS[verb] for verb in can[name, kind]) or NOTHING_YET
            if (name, kind) in can
            else NO_HEAD
            for name in names
        ]
        rows.append([f"`{kind}`", *cells])
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def test_the_table_is_what_the_code_can_do(tokenizer: Tokenizer, tmp_path: Path) -> None:
    made = pretrained(tokenizer)
    can = {
        (name, kind): verbs(name, kind, tokenizer, tmp_path / f"{name}-{kind}", made)
        for name in family_names()
        for kind in load_family(name).heads
    }
    assert {kind for _, kind in can} == set(KINDS)
    right = table(can)
    (shown,) = re.findall(
        r"^\| head \|.*\n(?:\|.*\n)+", PAGE.read_text(encoding="utf-8"), re.MULTILINE
    )
    assert shown == right, f"the table in docs/families.md should be:\n\n{right}"


def test_the_table_is_explained() -> None:
    text = PAGE.read_text(encoding="utf-8")
    for verb, letter in LETTERS.items():
        assert re.search(rf"\*\*{letter}\*\* `bert {verb}`", text), verb
    assert f"**{NOTHING_YET}**" in text
    assert f"**{NO_HEAD}**" in text


@pytest.mark.parametrize("name", family_names())
def test_every_family_and_size_is_told(name: str) -> None:
    text = PAGE.read_text(encoding="utf-8")
    (section,) = re.findall(rf"^## `{name}`\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    (sizes,) = re.findall(r"^Sizes: (.*)\.$", section, re.MULTILINE)
    assert re.findall(r"`(\w+)`", sizes) == list(load_family(name).sizes)
    assert re.search(r"\w+ et al\. 20\d\d", section)
    assert re.search(r"^Reads: .*`[\w-]+/[\w.-]+`", section, re.MULTILINE)


# The settings of published checkpoints, as their config.json gives them.
PUBLISHED = {
    ("bert", "base"): {
        "vocab_size": 30522,
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "intermediate_size": 3072,
        "max_position_embeddings": 512,
        "type_vocab_size": 2,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.1,
        "attention_probs_dropout_prob": 0.1,
        "initializer_range": 0.02,
        "layer_norm_eps": 1e-12,
        "pad_token_id": 0,
        "position_embedding_type": "absolute",
        "gradient_checkpointing": False,
        "use_cache": True,
    },
    ("roberta", "base"): {
        "vocab_size": 50265,
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "intermediate_size": 3072,
        "max_position_embeddings": 514,
        "type_vocab_size": 1,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.1,
        "attention_probs_dropout_prob": 0.1,
        "layer_norm_eps": 1e-05,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "pad_token_id": 1,
    },
    ("xlm_roberta", "base"): {
        "vocab_size": 250002,
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "intermediate_size": 3072,
        "max_position_embeddings": 514,
        "type_vocab_size": 1,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.1,
        "attention_probs_dropout_prob": 0.1,
        "layer_norm_eps": 1e-05,
        "output_past": True,
        "pad_token_id": 1,
    },
    ("distilbert", "base"): {
        "activation": "gelu",
        "attention_dropout": 0.1,
        "dim": 768,
        "dropout": 0.1,
        "hidden_dim": 3072,
        "initializer_range": 0.02,
        "max_position_embeddings": 512,
        "n_heads": 12,
        "n_layers": 6,
        "pad_token_id": 0,
        "qa_dropout": 0.1,
        "seq_classif_dropout": 0.2,
        "sinusoidal_pos_embds": False,
        "tie_weights_": True,
        "vocab_size": 30522,
    },
    ("albert", "base"): {
        "attention_probs_dropout_prob": 0,
        "classifier_dropout_prob": 0.1,
        "down_scale_factor": 1,
        "embedding_size": 128,
        "gap_size": 0,
        "hidden_act": "gelu_new",
        "hidden_dropout_prob": 0,
        "hidden_size": 768,
        "inner_group_num": 1,
        "intermediate_size": 3072,
        "layer_norm_eps": 1e-12,
        "max_position_embeddings": 512,
        "net_structure_type": 0,
        "num_attention_heads": 12,
        "num_hidden_groups": 1,
        "num_hidden_layers": 12,
        "num_memory_blocks": 0,
        "pad_token_id": 0,
        "type_vocab_size": 2,
        "vocab_size": 30000,
    },
    ("electra", "small"): {
        "attention_probs_dropout_prob": 0.1,
        "embedding_size": 128,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.1,
        "hidden_size": 256,
        "intermediate_size": 1024,
        "layer_norm_eps": 1e-12,
        "max_position_embeddings": 512,
        "num_attention_heads": 4,
        "num_hidden_layers": 12,
        "summary_activation": "gelu",
        "summary_last_dropout": 0.1,
        "summary_type": "first",
        "summary_use_proj": True,
        "type_vocab_size": 2,
        "vocab_size": 30522,
    },
    ("modernbert", "base"): {
        "attention_bias": False,
        "attention_dropout": 0.0,
        "classifier_activation": "gelu",
        "classifier_bias": False,
        "classifier_dropout": 0.0,
        "decoder_bias": True,
        "embedding_dropout": 0.0,
        "global_attn_every_n_layers": 3,
        "global_rope_theta": 160000.0,
        "hidden_activation": "gelu",
        "hidden_size": 768,
        "intermediate_size": 1152,
        "layer_norm_eps": 1e-05,
        "local_attention": 128,
        "local_rope_theta": 10000.0,
        "max_position_embeddings": 8192,
        "mlp_bias": False,
        "mlp_dropout": 0.0,
        "norm_bias": False,
        "norm_eps": 1e-05,
        "num_attention_heads": 12,
        "num_hidden_layers": 22,
        "pad_token_id": 50283,
        "position_embedding_type": "absolute",
        "vocab_size": 50368,
    },
    ("deberta_v2", "base"): {
        "attention_probs_dropout_prob": 0.1,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.1,
        "hidden_size": 768,
        "initializer_range": 0.02,
        "intermediate_size": 3072,
        "layer_norm_eps": 1e-07,
        "max_position_embeddings": 512,
        "max_relative_positions": -1,
        "norm_rel_ebd": "layer_norm",
        "num_attention_heads": 12,
        "num_hidden_layers": 12,
        "pos_att_type": "p2c|c2p",
        "position_biased_input": False,
        "position_buckets": 256,
        "relative_attention": True,
        "share_att_key": True,
        "type_vocab_size": 0,
        "vocab_size": 128100,
    },
}


@pytest.mark.parametrize(("name", "size"), PUBLISHED)
def test_sizes_are_those_published(name: str, size: str) -> None:
    family = load_family(name)
    stored = PUBLISHED[name, size]
    own = {"vocab_size": stored["vocab_size"]}
    if name == "modernbert":
        own["pad_token_id"] = stored["pad_token_id"]
    assert family.read_config(stored, "config.json") == family.size(size, **own)
