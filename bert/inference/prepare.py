"""A network made ready to answer: weights converted once, steps fused, nothing left to train.

On a CPU a layer of the standard kind becomes a ``FusedBlock`` of few steps::

    x -> QKV product -> attention of sequences of one length at a time -> output product + x -> norm
      -> product and activation in one -> product + input -> norm

Other layers keep their own arithmetic, with their linear maps replaced. Embeddings, norms and
heads stay in fp32.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bert.errors import ModelError
from bert.inference.int8 import (
    Int8Linear,
    dequantize,
    encoder_of,
    is_int8,
    products,
    replace_product,
)
from bert.model.attention import PLAIN_LONGEST, MultiHeadAttention
from bert.model.layer import ACTIVATION, LayerNorm, TransformerBlock
from bert.model.packing import Packed

# oneDNN keeps code for every shape it has met, 1,024 of them in each of two caches, 0.6 MB apiece;
# as batches differ in shape that came to over a gigabyte. It looks here at its first product.
for _name in ("LRU_CACHE_CAPACITY", "ONEDNN_PRIMITIVE_CACHE_CAPACITY"):
    os.environ.setdefault(_name, "128")
# What oneDNN calls the activations that it computes within a product: name and algorithm.
_FUSED = {"gelu": ("gelu", "none"), "gelu_new": ("gelu", "tanh"), "relu": ("relu", "")}
# Tokens up to which one call beats three in bf16: 31 against 77 microseconds at 16, alike at 96.
_FEW_TOKENS = 64
# Numbers of attention scores held at once: these 4 MB in bf16 stay in the cache.
_SCORES_AT_ONCE = 2**21


def prepare(model: nn.Module, precision: str, device: torch.device) -> nn.Module:
    """The same network, ready to answer in this precision; the one that is given is used up.

    Args:
        model: a head or an encoder in evaluation mode, from ``read_model`` or ``quantize``.
        precision: fp32, bf16 or int8. An int8 network in fp32 or bf16, or on a machine
            without instructions for it, computes with its rounded weights.
        device: where it is to run.

    Raises:
        ModelError: int8 is asked of a network that was not quantised.
    """
    if precision == "int8" and not is_int8(model):
        raise ModelError(
            "The model has no 8-bit weights.", fix="bert compress RUN --to int8 --out DIR"
        )
    if precision == "int8" and not (device.type == "cpu" and int8_is_fast()):
        precision = "bf16"
    if precision != "int8" and is_int8(model):
        model = dequantize(model)
    model = model.to(device).eval().requires_grad_(False)
    encoder = encoder_of(model)
    dtype = torch.float32 if precision == "fp32" else torch.bfloat16
    fused = device.type == "cpu" and _has_onednn(dtype)
    for index, layer in enumerate(encoder.layers):
        if fused and isinstance(layer, TransformerBlock) and _is_standard(layer):
            encoder.layers[index] = FusedBlock(layer, dtype)
            encoder.norm = _Float()
    if precision != "fp32":
        for name, module in products(model).items():
            made = Int8Product(module) if isinstance(module, Int8Linear) else Bf16Product(module)
            replace_product(model, name, made)
    model.prepared = precision  # type: ignore[assignment]
    return model


def is_prepared(model: nn.Module) -> bool:
    """Whether the network computes in its precision, and in evaluation mode, by itself."""
    return hasattr(model, "prepared")


def _has_onednn(dtype: torch.dtype) -> bool:
    """Whether products can be prepared and fused for this CPU."""
    ops = torch.ops.mkldnn
    able = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    if not (able and hasattr(ops, "_linear_pointwise")):
        return False
    return dtype == torch.float32 or bool(ops._is_mkldnn_bf16_supported())


def int8_is_fast() -> bool:
    """Whether this CPU multiplies 8-bit numbers without losing any to overflow."""
    able = torch.cpu.get_capabilities()
    return bool(
        _has_onednn(torch.float32)
        and (able.get("avx512_vnni") or able.get("avx_vnni") or able.get("amx_int8"))
    )


def _is_standard(layer: TransformerBlock) -> bool:
    """Whether a layer is the block of BERT, whose steps can be fused."""
    return (
        type(layer) is TransformerBlock
        and type(layer.attention) is MultiHeadAttention
        and not layer.norm_first
        and not layer.feed_forward.gated
        and any(layer.feed_forward.activation is ACTIVATION[name] for name in _FUSED)
    )


class _Float(nn.Module):
    """Hidden states in fp32, as heads take them: [T, H] -> [T, H]."""

    def forward(self, hidden: Tensor) -> Tensor:
        """[...] -> [...]."""
        return hidden.float()


class Bf16Product(nn.Module):
    """A linear map with weights in bf16: [..., in] of any type -> [..., out] bf16."""

    def __init__(self, linear: nn.Module) -> None:
        super().__init__()
        assert isinstance(linear, nn.Linear)
        bias = linear.bias
        self.register_buffer("weight", linear.weight.detach().bfloat16())
        self.register_buffer("bias", None if bias is None else bias.detach().bfloat16())

    def forward(self, hidden: Tensor) -> Tensor:
        """[..., in] -> [..., out]."""
        weight, bias = self.weight, self.bias
        return F.linear(hidden.bfloat16(), weight, bias)  # type: ignore[arg-type]


class FloatStep:
    """A product of a fused block in bf16 or fp32."""

    def __init__(self, linear: nn.Linear, factor: Tensor | None, dtype: torch.dtype) -> None:
        weight = linear.weight.detach()
        bias = torch.zeros(len(weight)) if linear.bias is None else linear.bias.detach()
        if factor is not None:
            weight, bias = weight * factor[:, None], bias * factor
        self.dtype = dtype
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight.to(dtype))
        self.bias = bias.to(dtype)

    def take(self, hidden: Tensor) -> Tensor:
        """[T, in] of any type -> what the product takes."""
        return hidden.to(self.dtype)

    def times(self, taken: Tensor) -> Tensor:
        """[T, in] -> [T, out]."""
        product: Tensor = torch.ops.mkldnn._linear_pointwise(
            taken, self.weight, self.bias, "none", [], ""
        )
        return product

    def activated(self, taken: Tensor, activation: tuple[str, str], following: Step) -> Tensor:
        """[T, in] -> what the following product takes, after the activation."""
        product = torch.ops.mkldnn._linear_pointwise(
            taken, self.weight, self.bias, activation[0], [], activation[1]
        )
        return following.take(product)

    def plus(self, taken: Tensor, other: Tensor) -> Tensor:
        """[T, in] -> [T, out] plus another of this shape, in its type."""
        if other.dtype != self.dtype:
            return self.times(taken).float().add_(other)
        product: Tensor = torch.ops.mkldnn._linear_pointwise.binary(
            taken, other, self.weight, self.bias, "add"
        )
        return product


class Int8Step:
    """A product of a fused block in 8-bit numbers."""

    def __init__(self, linear: Int8Linear, factor: Tensor | None) -> None:
        scale, bias = linear.weight_scale, linear.bias
        bias = torch.zeros(len(scale)) if bias is None else bias
        if factor is not None:
            scale, bias = scale * factor, bias * factor
        # [in, out] by the operator's way of counting; it keeps what it needs of the layout.
        self.weight = torch.ops.onednn.qlinear_prepack(linear.weight, None)
        self.scale, self.bias = scale.contiguous(), bias.contiguous()
        self.signs = torch.zeros(len(scale), dtype=torch.int64)  # zero points of the weights
        self.input_scale = float(linear.input_scale[0])
        self.zero_point = int(linear.input_zero_point)
        self.factor = 1 / linear.input_scale
        # Inputs are rounded as signed numbers, for which there is a quick conversion.
        self.offset = torch.full_like(self.factor, self.zero_point - 128.0)

    def take(self, hidden: Tensor) -> Tensor:
        """[..., in] in fp32 or bf16 -> uint8 of the same shape."""
        scaled = torch.addcmul(self.offset, hidden.float(), self.factor)
        whole = scaled.round_().clamp_(-128, 127).to(torch.int8)
        return whole.view(torch.uint8).bitwise_xor_(128)

    def times(self, taken: Tensor) -> Tensor:
        """[T, in] -> [T, out] in bf16."""
        return self._product(taken, 1.0, 0, torch.bfloat16, ("none", ""))

    def activated(self, taken: Tensor, activation: tuple[str, str], following: Step) -> Tensor:
        """[T, in] -> what the following product takes, after the activation."""
        if isinstance(following, Int8Step):
            scale, zero = following.input_scale, following.zero_point
            return self._product(taken, scale, zero, torch.uint8, activation)
        return following.take(self._product(taken, 1.0, 0, torch.bfloat16, activation))

    def plus(self, taken: Tensor, other: Tensor) -> Tensor:
        """[T, in] -> [T, out] plus another of this shape, in fp32."""
        product: Tensor = torch.ops.onednn.qlinear_pointwise.binary(
            taken, 1.0, self.zero_point, self.weight, self.scale, self.signs, other, self.bias,
            1.0, 0, torch.float32, 1.0, 0, "add", 1.0, "none", [], "",
        )  # fmt: skip
        return product

    def _product(
        self,
        taken: Tensor,
        scale: float,
        zero: int,
        dtype: torch.dtype,
        activation: tuple[str, str],
    ) -> Tensor:
        product: Tensor = torch.ops.onednn.qlinear_pointwise(
            taken, 1.0, self.zero_point, self.weight, self.scale, self.signs, self.bias,
            scale, zero, dtype, activation[0], [], activation[1],
        )  # fmt: skip
        return product


Step = FloatStep | Int8Step


class Int8Product(nn.Module):
    """The quick form of an ``Int8Linear``: [..., in] of any type -> [..., out] bf16."""

    def __init__(self, linear: Int8Linear) -> None:
        super().__init__()
        self.step = Int8Step(linear, None)

    def forward(self, hidden: Tensor) -> Tensor:
        """[..., in] -> [..., out]."""
        return self.step.times(self.step.take(hidden))


def _step(linear: nn.Module, dtype: torch.dtype, factor: Tensor | None = None) -> Step:
    """A linear map as a step, each of its outputs multiplied by a factor [out]."""
    if isinstance(linear, Int8Linear):
        return Int8Step(linear, factor)
    assert isinstance(linear, nn.Linear)
    return FloatStep(linear, factor, dtype)


class FusedBlock(nn.Module):
    """A ``TransformerBlock`` of few steps: [T, H] -> [T, H].

    Linear maps are in ``dtype``, or in 8-bit numbers where the block was quantised. Where
    something is rounded to 8 bits the hidden states between stay in fp32, which is quicker to
    round; else they are in ``dtype`` too.
    """

    def __init__(self, block: TransformerBlock, dtype: torch.dtype) -> None:
        super().__init__()
        attention, wide = block.attention, block.feed_forward
        assert isinstance(attention, MultiHeadAttention)
        width = attention.output.out_features
        self.num_attention_heads = attention.num_attention_heads
        # The queries are scaled beforehand.
        factor = torch.ones(3 * width)
        factor[:width] = (width // self.num_attention_heads) ** -0.5
        self.qkv = _step(attention.qkv, dtype, factor)
        self.output = _step(attention.output, dtype)
        self.widen = _step(wide.intermediate, dtype)
        self.narrow = _step(wide.output, dtype)
        self.norms = (_norm(block.attention_norm), _norm(block.feed_forward_norm))
        self.activation = next(
            fused for name, fused in _FUSED.items() if wide.activation is ACTIVATION[name]
        )
        steps = (self.qkv, self.output, self.widen, self.narrow)
        rounds = any(isinstance(step, Int8Step) for step in steps)
        self.dtype = torch.float32 if rounds else dtype

    def forward(self, hidden: Tensor, mask: Packed, positions: None = None) -> Tensor:
        """[T, H] -> [T, H]."""
        hidden = hidden.to(self.dtype)
        qkv = self.qkv.times(self.qkv.take(hidden))  # [T, 3H]
        attended = attend_packed(qkv, mask, self.num_attention_heads)  # [T, H]
        hidden = self.norms[0](self.output.plus(self.output.take(attended), hidden))
        wide = self.widen.activated(self.widen.take(hidden), self.activation, self.narrow)
        return self.norms[1](self.narrow.plus(wide, hidden))


def _norm(norm: nn.Module) -> Callable[[Tensor], Tensor]:
    """The function of a norm; mean and variance are in fp32 whatever it is given."""
    assert isinstance(norm, LayerNorm)
    bias = torch.zeros_like(norm.weight) if norm.bias is None else norm.bias
    shape, weight, bias, eps = norm.weight.shape, norm.weight.detach(), bias.detach(), norm.eps
    return lambda hidden: torch.layer_norm(hidden, shape, weight, bias, eps)


def attend_packed(qkv: Tensor, packed: Packed, heads: int) -> Tensor:
    """Attention of packed sequences whose queries are scaled already: [T, 3H] -> [T, H].

    Sequences of one length that lie beside each other are taken together, without a mask; where
    lengths are too mixed for that, like lengths are, as in training.
    """
    width = qkv.shape[-1] // 3
    if packed.runs is None:
        return packed.by_group(lambda part, mask: _attend(part, mask, heads), qkv, width)
    parts = []
    for start, count, length in packed.runs:
        most = max(_SCORES_AT_ONCE // (heads * length * length), 1)
        for first in range(0, count, most):
            some = min(most, count - first)
            part = qkv.narrow(0, start + first * length, some * length)
            parts.append(_attend(part.view(some, length, -1), None, heads).view(-1, width))
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _attend(qkv: Tensor, mask: Tensor | None, heads: int) -> Tensor:
    """[b, s, 3H] -> [b, s, H]."""
    some, length, width = qkv.shape
    size = width // 3 // heads
    split = qkv.view(some, length, 3, heads, size).permute(2, 0, 3, 1, 4)
    few = some * length <= _FEW_TOKENS
    if qkv.dtype == torch.float32 or few or length > PLAIN_LONGEST:
        query, key, value = split
        joined = F.scaled_dot_product_attention(query, key, value, mask, scale=1.0)
    else:
        query, key, value = split.reshape(3, some * heads, length, size)
        scores = torch.bmm(query, key.transpose(1, 2))  # [b * N, s, s]
        if mask is not None:
            bias = torch.zeros(mask.shape, dtype=scores.dtype)
            bias = bias.masked_fill_(~mask, torch.finfo(scores.dtype).min)
            scores.view(some, heads, length, length).add_(bias)
        joined = torch.bmm(torch.softmax(scores, dim=-1), value)
        joined = joined.view(some, heads, length, size)
    return joined.transpose(1, 2).reshape(some, length, width // 3)
