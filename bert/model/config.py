"""The sizes and choices that define a network."""

from __future__ import annotations

from dataclasses import dataclass

from bert.errors import ModelError

# "counted": learned, and counted from pad_token_id + 1 over tokens that are not padding
# (RoBERTa). "none": the layers do without, or have their own (DeBERTa).
POSITIONS = ("learned", "sinusoidal", "counted", "rotary", "none")
ACTIVATIONS = ("gelu", "gelu_new", "relu")
POOLINGS = ("first", "mean")

# No size beyond these is built, however small the file that asks for it.
LARGEST = {
    "vocab_size": 2**24,
    "hidden_size": 2**16,
    "embedding_size": 2**16,
    "num_hidden_layers": 1024,
    "num_attention_heads": 1024,
    "intermediate_size": 2**18,
    "max_position_embeddings": 2**20,
    "type_vocab_size": 2**10,
    "local_window": 2**20,
    "global_every": 1024,
}
# Fields that may be None, and the field whose value they then have.
STANDS_FOR = {
    "attention_dropout_rate": "dropout_rate",
    "classifier_dropout_rate": "dropout_rate",
    "embedding_size": "hidden_size",
}


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
    type_vocab_size: int = 2  # 0: no segments
    embedding_size: int | None = None  # narrower: projected to hidden_size (Lan et al. 2019)
    dropout_rate: float = 0.1
    attention_dropout_rate: float | None = None
    classifier_dropout_rate: float | None = None
    positions: str = "learned"
    activation: str = "gelu"
    layer_norm_eps: float = 1e-12
    initializer_range: float = 0.02
    pad_token_id: int = 0
    pooler: bool = True  # a dense layer over the first token, as a part of the encoder
    pooling: str = "first"  # what stands for a whole sequence
    shared_layers: bool = False  # one layer's weights, used by all (Lan et al. 2019)
    norm_first: bool = False  # pre-norm (Xiong et al. 2020), with a norm after the last layer
    bias: bool = True  # in linear maps and norms
    gated: bool = False  # gated linear units in the feed-forward (Shazeer 2020)
    rope_theta: float = 10000.0  # base of the rotary positions (Su et al. 2021)
    local_rope_theta: float = 10000.0  # the same in layers with local attention
    local_window: int | None = None  # tokens that local attention sees to each side
    global_every: int = 1  # every how many layers attention is global, the first being so

    def __post_init__(self) -> None:
        for name, largest in LARGEST.items():
            value = getattr(self, name)
            least = 0 if name == "type_vocab_size" else 1
            if value is None and name in ("embedding_size", "local_window"):
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ModelError(
                    f"{name} must be a whole number of at least {least}, not {value!r:.40}."
                )
            if value > largest:
                raise ModelError(f"{name} is implausibly large: {value:.3g}; at most {largest:,}.")
        if self.hidden_size % self.num_attention_heads:
            raise ModelError(
                f"hidden_size {self.hidden_size} cannot be shared out evenly among "
                f"{self.num_attention_heads} attention heads.",
                fix="choose a hidden_size that num_attention_heads divides",
            )
        for name in ("dropout_rate", "attention_dropout_rate", "classifier_dropout_rate"):
            value = getattr(self, name)
            if value is not None and not 0.0 <= value < 1.0:
                raise ModelError(f"{name} must be at least 0 and below 1, not {value!r}.")
        for name in ("layer_norm_eps", "initializer_range", "rope_theta", "local_rope_theta"):
            value = getattr(self, name)
            if not 0.0 < value < float("inf"):
                raise ModelError(f"{name} must be above 0, not {value!r}.")
        for name, known in (
            ("positions", POSITIONS),
            ("activation", ACTIVATIONS),
            ("pooling", POOLINGS),
        ):
            if getattr(self, name) not in known:
                raise ModelError(
                    f"{name} is one of {', '.join(known)}, not {getattr(self, name)!r}."
                )
        if self.shared_layers and self.norm_first:
            raise ModelError("Layers cannot be shared with norm_first: the first has no norm.")
        if self.positions == "sinusoidal" and self.hidden_size % 2:
            raise ModelError("Sinusoidal positions need an even hidden_size.")
        if self.positions == "rotary" and self.hidden_size // self.num_attention_heads % 2:
            raise ModelError("Rotary positions need heads of an even size.")
        if not 0 <= self.pad_token_id < self.vocab_size:
            raise ModelError(
                f"pad_token_id {self.pad_token_id} is outside the vocabulary of {self.vocab_size}."
            )
        if self.longest_text < 1:
            raise ModelError(
                f"max_position_embeddings {self.max_position_embeddings} leaves no position after "
                f"pad_token_id {self.pad_token_id}."
            )

    @property
    def embedding_width(self) -> int:
        """E: how wide the word embeddings are."""
        return self.embedding_size or self.hidden_size

    @property
    def first_position(self) -> int:
        """The position of a text's first token in the table of positions."""
        return self.pad_token_id + 1 if self.positions == "counted" else 0

    @property
    def longest_text(self) -> int:
        """The most tokens a text may have."""
        return self.max_position_embeddings - self.first_position

    def is_local(self, layer: int) -> bool:
        """Whether attention in this layer, counted from 0, sees a window only."""
        return self.local_window is not None and layer % self.global_every != 0
