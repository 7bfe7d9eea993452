"""Replaced token detection: which words did a small generator put in?

::

    the cat sat  ->  the [MASK] sat  ->  generator  ->  the dog sat  ->  discriminator
                                                                         ok  no  ok

The generator learns masked words, the discriminator to tell real from replaced at every token
(Clark et al. 2020). They share word embeddings, but the discriminator's loss does not reach
the generator's: the discriminator reads ``stop_gradient(E) + D``, D being its own and zero at
first (He et al. 2021, DeBERTaV3, section 3.3). Positions and segments are not shared.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bert.data.batches import Batch
from bert.data.draws import hashed
from bert.errors import ModelError
from bert.families.family import load_family
from bert.model.config import BertConfig
from bert.model.heads import BertForMaskedLM, BertForReplacedTokenDetection
from bert.model.packing import Tokens
from bert.objectives.mlm import MaskedLM, rows_at_once, word_loss
from bert.training.loop import Outcome

FAMILY = "electra"
GENERATOR_SHARE = 1 / 4  # of the discriminator's width (Clark et al. 2020, table 6; base: 1/3)
WEIGHT = 50.0  # of the discriminator's mean loss (Clark et al. 2020, section 3.1)
_DRAW = 21


class SharedEmbedding(nn.Module):
    """Another network's word embeddings, which are not trained from here, plus one's own."""

    def __init__(self, shared: nn.Embedding, own: Tensor) -> None:
        super().__init__()
        self.own = nn.Parameter(own)
        # In a tuple, so that it is not a part of this module too.
        self._shared = (shared,)

    def forward(self, input_ids: Tensor) -> Tensor:
        """[...] -> [..., E]."""
        shared = F.embedding(input_ids, self._shared[0].weight.detach())
        return shared + F.embedding(input_ids, self.own)

    def summed(self) -> Tensor:
        """The embeddings as one matrix [V, E]."""
        return self._shared[0].weight.detach() + self.own.detach()


class Electra(nn.Module):
    """A generator and a discriminator that shares its word embeddings.

    Both keep the words they come with: D is the difference of the two embeddings.

    Raises:
        ModelError: their embeddings are of different sizes.
    """

    def __init__(
        self, generator: BertForMaskedLM, discriminator: BertForReplacedTokenDetection
    ) -> None:
        super().__init__()
        shared, own = (net.bert.embeddings.word.weight for net in (generator, discriminator))
        if shared.shape != own.shape:
            raise ModelError(
                f"The generator's word embeddings have shape {list(shared.shape)}, the "
                f"discriminator's {list(own.shape)}.",
                fix="take a generator of the same vocabulary and embedding_size",
            )
        self.generator = generator
        self.discriminator = discriminator
        difference = (own - shared).detach()
        words = SharedEmbedding(generator.bert.embeddings.word, difference)
        discriminator.bert.embeddings.word = words  # type: ignore[assignment]

    def parts(self) -> tuple[nn.Module, nn.Module]:
        """The generator and the discriminator as plain networks of the family electra."""
        state = {name: value.clone() for name, value in self.discriminator.state_dict().items()}
        del state["bert.embeddings.word.own"]
        words = self.discriminator.bert.embeddings.word
        assert isinstance(words, SharedEmbedding)
        state["bert.embeddings.word.weight"] = words.summed()
        plain = load_family(FAMILY).build("replaced_token", self.discriminator.bert.config)
        plain.load_state_dict(state, assign=True)
        return self.generator, plain.train(self.training)


def generator_config(config: BertConfig, share: float = GENERATOR_SHARE) -> BertConfig:
    """A generator for a discriminator: as deep, with a share of its heads and so of its width.

    Heads and embeddings stay as wide as they are.
    """
    heads = max(round(config.num_attention_heads * share), 1)
    return replace(
        config,
        num_attention_heads=heads,
        hidden_size=config.hidden_size // config.num_attention_heads * heads,
        intermediate_size=config.intermediate_size * heads // config.num_attention_heads,
        embedding_size=config.embedding_width,
    )


def new_electra(config: BertConfig, generator: BertConfig | None = None) -> Electra:
    """An untrained pair for a discriminator of this configuration; D is zero."""
    family = load_family(FAMILY)
    small = family.build("masked_lm", generator or generator_config(config))
    large = family.build("replaced_token", config)
    assert isinstance(small, BertForMaskedLM)
    assert isinstance(large, BertForReplacedTokenDetection)
    with torch.no_grad():
        large.bert.embeddings.word.weight.copy_(small.bert.embeddings.word.weight)
    return Electra(small, large)


@dataclass(frozen=True)
class ReplacedTokens:
    """Clark et al. 2020, section 2, for an ``Electra``.

    The discriminator is asked at every token, special ones included, as in the paper. A word
    that the generator happened to guess is not replaced. What is drawn depends, as the masks,
    on (seed, epoch, sample, place) and on the generator.

    Args:
        masked: which words are hidden from the generator; with ``only_mask``, as in the paper.
        weight: of the discriminator's mean loss beside the generator's.
        name: what the discriminator's figures are called.
    """

    masked: MaskedLM
    weight: float = WEIGHT
    name: str = "rtd"

    def prepare(self, batch: Batch) -> Batch:
        """Hide words, and draw the numbers that decide what the generator puts there."""
        batch = self.masked.prepare(batch)
        places = batch.targets["masked_places"]
        sample = batch.samples.repeat(batch.lengths)[places]
        bits = hashed(_DRAW, self.masked.seed, batch.epoch, sample, batch.position_ids[places])
        draws = (bits >> 40).astype("int64")  # 24 bits
        return replace(batch, targets={**batch.targets, "draws": draws})

    def counts(self, batch: Batch) -> dict[str, int]:
        """Hidden words, and all tokens."""
        return {self.masked.name: self.masked.count(batch), self.name: len(batch.input_ids)}

    def tokens(self, batch: Batch) -> int:
        """Real tokens in the batch."""
        return len(batch.input_ids)

    def losses(self, model: Any, batch: Batch, device: torch.device) -> Outcome:
        """Cross-entropy of the hidden words, and of real or replaced at every token."""
        tokens = Tokens.of(
            batch.input_ids, batch.token_type_ids, batch.position_ids, batch.lengths, device
        )
        places, words, draws = (
            torch.as_tensor(batch.targets[name]).to(device, non_blocking=True)
            for name in ("masked_places", "masked_words", "draws")
        )
        generator, discriminator = model.generator, model.discriminator
        logits = generator.word_logits(generator.bert.encode(tokens)[places])  # [M, V]
        drawn = draw_words(logits.detach(), draws)
        loss, correct = word_loss(logits, words)

        replaced = torch.zeros(len(tokens.input_ids), device=device)
        replaced[places] = (drawn != words).float()
        input_ids = tokens.input_ids.index_copy(0, places, drawn)
        found = discriminator.logits(tokens._replace(input_ids=input_ids)).squeeze(-1).float()
        told = F.binary_cross_entropy_with_logits(found, replaced, reduction="sum")
        right = ((found > 0) == (replaced > 0)).sum()
        return Outcome(
            {self.masked.name: loss, self.name: told},
            {self.masked.name: correct, self.name: right},
            {self.name: self.weight},
        )


def draw_words(logits: Tensor, draws: Tensor) -> Tensor:
    """A word for each row by its chances: logits [M, V], draws [M] below 2^24 -> [M].

    The word at which the sum of the chances passes the draw: one random number a row. Chances
    are summed as whole numbers of 2^-30, which gives the same in whatever order.
    """
    size = rows_at_once(logits)
    drawn = []
    for part, draw in zip(torch.split(logits, size), torch.split(draws, size), strict=True):
        chances = torch.softmax(part, dim=-1, dtype=torch.float32)  # [m, V]
        so_far = (chances * 2**30).int().cumsum(dim=-1, dtype=torch.int32)
        reached = (draw[:, None] * so_far[:, -1:] >> 24).int()
        passed = torch.searchsorted(so_far, reached, right=True).squeeze(-1)
        drawn.append(passed.clamp(max=logits.shape[-1] - 1))  # chances may be no numbers
    return torch.cat(drawn)
