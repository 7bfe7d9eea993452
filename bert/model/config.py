"""The sizes and choices that define a network."""

from __future__ import annotations

from dataclasses import dataclass

from bert.errors import ModelError

POSITIONS = ("learned", "sinusoidal")
ACTIVATIONS = ("gelu", "gelu_new", "relu")


@dataclass(frozen=True)
class BertConfig:
    """Everything that decides the shape and the arithmetic of an encoder.

    The defaults are BERT-Base (Devlin et al. 2018, section 3): 12 layers, 768 wide,
    12 heads. Sizes are counts of units, rates are probabilities.

    Raises:
        ModelError: a combination that cannot be built, naming why.
    """

    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    dropout_rate: float = 0.1
    attention_dropout_rate: float | None = None  # None: the same as dropout_rate
    positions: str = "learned"
    activation: str = "gelu"
    layer_norm_eps: float = 1e-12
    initializer_range: float = 0.02
    pad_token_id: int = 0

    def __post_init__(self) -> None:
        for name in (
            "vocab_size",
            "hidden_size",
            "num_hidden_layers",
            "num_attention_heads",
            "intermediate_size",
            "max_position_embeddings",
            "type_vocab_size",
        ):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ModelError(f"{name} must be a whole number of at least 1, not {value!r}.")
        if self.hidden_size % self.num_attention_heads:
            raise ModelError(
                f"hidden_size {self.hidden_size} cannot be shared out evenly among "
                f"{self.num_attention_heads} attention heads.",
                fix="choose a hidden_size that num_attention_heads divides",
            )
        for name in ("dropout_rate", "attention_dropout_rate"):
            value = getattr(self, name)
            if value is not None and not 0.0 <= value < 1.0:
                raise ModelError(f"{name} must be at least 0 and below 1, not {value!r}.")
        if self.positions not in POSITIONS:
            raise ModelError(f"positions is one of {', '.join(POSITIONS)}, not {self.positions!r}.")
        if self.positions == "sinusoidal" and self.hidden_size % 2:
            raise ModelError("Sinusoidal positions need an even hidden_size.")
        if self.activation not in ACTIVATIONS:
            known = ", ".join(ACTIVATIONS)
            raise ModelError(f"activation is one of {known}, not {self.activation!r}.")
        if not 0 <= self.pad_token_id < self.vocab_size:
            raise ModelError(
                f"pad_token_id {self.pad_token_id} is outside the vocabulary of {self.vocab_size}."
            )
