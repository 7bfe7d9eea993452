"""The tokenizer that we train and write gives transformers the numbers that it gives us."""

from __future__ import annotations

from pathlib import Path

import pytest

from bert.checkpoint import Checkpoint, write_model
from bert.families.family import load_family
from bert.model.config import BertConfig
from bert.text.tokenizer import Tokenizer, train_wordpiece

transformers = pytest.importorskip("transformers")

TEXTS = [
    "The bird sings near the old river.",
    "unheardof zebra, 'quoted' -- and 3.14% of $5!",
    "今天天气很好，我们去公园。",
    "mixed 今天 words 好 here",
    "emoji \U0001f600 and \U0001f468\u200d\U0001f469\u200d\U0001f467 family",
    "Café NAÏVE déjà vu — ÉCOLE",
    "cafe\u0301 decomposed, zero\u200bwidth, tab\tand\nline",
    "the [MASK] sings [SEP] near [UNK]",
    "",
    "   ",
    "\u0000\ufffd control",
    "x" * 150,
]


@pytest.mark.parametrize("vocabulary_alone", [False, True])
@pytest.mark.parametrize("lowercase", [True, False])
def test_their_tokenizer_gives_our_numbers(
    vocabulary_alone: bool, lowercase: bool, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    if not lowercase:
        tokenizer = train_wordpiece(lambda: [*TEXTS, *TEXTS], vocab_size=120, lowercase=False)
    config = BertConfig(
        vocab_size=tokenizer.vocab_size, hidden_size=8, num_hidden_layers=1, num_attention_heads=1
    )
    family = load_family("bert")
    model = family.build("masked_lm", config)
    write_model(tmp_path, Checkpoint(model, "masked_lm", family, tokenizer=tokenizer))
    if vocabulary_alone:
        (tmp_path / "tokenizer.json").unlink()
        if lowercase:
            (tmp_path / "tokenizer_config.json").unlink()
        tokenizer = Tokenizer.load(tmp_path)
    their = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for max_length in (64, 16):
        mine = tokenizer.encode(TEXTS, max_length)
        for text, row in zip(TEXTS, mine, strict=True):
            other = their(text, truncation=True, max_length=max_length)
            assert row.input_ids == other["input_ids"], text
            assert row.token_type_ids == other["token_type_ids"], text
            assert row.truncated == (len(their(text)["input_ids"]) > max_length), text
        pairs = list(zip(TEXTS, reversed(TEXTS), strict=True))
        for pair, row in zip(pairs, tokenizer.encode(pairs, max_length), strict=True):
            # In lists, because alone an empty second text counts as none there.
            other = their([pair[0]], [pair[1]], truncation="longest_first", max_length=max_length)
            assert row.input_ids == other["input_ids"][0], pair
            assert row.token_type_ids == other["token_type_ids"][0], pair
    assert their.mask_token_id == tokenizer.mask_id
    assert their.pad_token_id == tokenizer.pad_id
