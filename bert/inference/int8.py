"""Matrix products in 8-bit numbers, calibrated on texts of one's own.

A weight is rounded to whole numbers from -127 to 127 with a scale for each output, an input to
0 to 255 with scales that are fixed once on calibration texts, so that the numbers of a text do
not depend on the texts beside it::

    q = clamp(round(x / input_scale) + input_zero_point, 0, 255)              [..., in]
    y = weight_scale * ((q - input_zero_point) @ weight^T) + bias             [..., out]

``input_scale`` has one number for each input. Where a few inputs are far larger than the others,
a part of that is migrated into the weights (SmoothQuant, Xiao et al. 2022, equation 4); how much,
and how much of the range is clipped, is chosen by what changes the output of the product least.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bert.errors import ModelError, UsageError
from bert.model.encoder import BERT
from bert.model.packing import Tokens

METHOD = "bertsmith-int8"
# Inputs of a product that are kept to choose its scales by.
ROWS_KEPT = 384
# How much of an outlier is migrated (alpha), and which share of the range is kept.
MIGRATIONS = (0.0, 0.25, 0.5, 0.75)
RANGES = (1.0, 0.85, 0.7, 0.55, 0.4)
_LEVELS = 255
_LARGEST = 127


class Int8Linear(nn.Module):
    """A linear map of 8-bit numbers: [..., in] -> [..., out] in bf16 or fp32, as it is given.

    Buffers: ``weight`` [out, in] int8, ``weight_scale`` [out], ``bias`` [out] or None,
    ``input_scale`` [in] and ``input_zero_point`` [1]. The weight is that of the scaled inputs:
    what ``input_scale`` takes away lies in it.
    """

    weight: Tensor
    weight_scale: Tensor
    bias: Tensor | None
    input_scale: Tensor
    input_zero_point: Tensor

    def __init__(self, in_features: int, out_features: int, bias: bool = True) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.register_buffer("weight", torch.zeros(out_features, in_features, dtype=torch.int8))
        self.register_buffer("weight_scale", torch.ones(out_features))
        self.register_buffer("bias", torch.zeros(out_features) if bias else None)
        self.register_buffer("input_scale", torch.ones(in_features))
        self.register_buffer("input_zero_point", torch.full((1,), 128.0))

    @classmethod
    def of(cls, linear: nn.Linear, scale: Tensor, zero_point: float) -> Int8Linear:
        """A linear map in 8 bits, for inputs of this scale [in] and zero point."""
        made = cls(linear.in_features, linear.out_features, linear.bias is not None)
        made.weight, made.weight_scale = _rounded(linear.weight.detach().float() * scale)
        if linear.bias is not None:
            made.bias = linear.bias.detach().float().clone()
        made.input_scale = scale.clone()
        made.input_zero_point = torch.tensor([float(zero_point)])
        return made

    def plain(self) -> nn.Linear:
        """The same map in fp32, with the weights as they were rounded."""
        linear = nn.Linear(
            self.in_features, self.out_features, self.bias is not None, device="meta"
        )
        weight = self.weight.float() * self.weight_scale[:, None] / self.input_scale
        linear.weight = nn.Parameter(weight)
        if self.bias is not None:
            linear.bias = nn.Parameter(self.bias.clone())
        return linear

    def check(self, name: str) -> None:
        """Refuse numbers that no calibration gives.

        Raises:
            ModelError: a scale is not above zero, or the zero point no whole number of 8 bits.
        """
        zero = float(self.input_zero_point)
        if not (self.weight_scale.gt(0).all() and self.input_scale.gt(0).all()):
            raise ModelError(f"{name} has a scale that is not above zero.")
        if not 0 <= zero <= _LEVELS or zero != int(zero):
            raise ModelError(f"{name} has the zero point {zero:g}, not a whole number up to 255.")

    def forward(self, hidden: Tensor) -> Tensor:
        """[..., in] -> [..., out], the numbers of 8-bit products in the type of the input."""
        zero = float(self.input_zero_point)
        rounded = (hidden / self.input_scale).round() + zero
        whole = rounded.clamp(0, _LEVELS) - zero
        scaled = F.linear(whole.float(), self.weight.float()) * self.weight_scale
        return (scaled if self.bias is None else scaled + self.bias).to(hidden.dtype)


def _rounded(weight: Tensor) -> tuple[Tensor, Tensor]:
    """[out, in] -> int8 of the same shape, and the scale of each output [out]."""
    scale = weight.abs().amax(dim=1).clamp(min=1e-12) / _LARGEST
    return (weight / scale[:, None]).round().to(torch.int8), scale


def encoder_of(model: nn.Module) -> BERT:
    """The encoder in a head, or itself."""
    encoder = model if isinstance(model, BERT) else model.bert
    assert isinstance(encoder, BERT)
    return encoder


def products(model: nn.Module) -> dict[str, nn.Module]:
    """The linear maps of the encoder's layers by name: ``layers.0.attention.qkv``."""
    return {
        name: module
        for name, module in encoder_of(model).named_modules()
        if name.startswith("layers.") and isinstance(module, nn.Linear | Int8Linear)
    }


def kept_of(model: nn.Module) -> list[str]:
    """The linear maps that are not of 8-bit numbers."""
    return [name for name, module in products(model).items() if isinstance(module, nn.Linear)]


def is_int8(model: nn.Module) -> bool:
    """Whether some of the products are of 8-bit numbers."""
    return any(isinstance(module, Int8Linear) for module in products(model).values())


def replace_product(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put another module in the place of one of the ``products``."""
    parent, _, last = name.rpartition(".")
    setattr(encoder_of(model).get_submodule(parent), last, module)


def empty_int8(model: nn.Module, keep: Sequence[str]) -> None:
    """Give a network without weights the shape that ``quantize`` gives one with weights.

    Raises:
        ModelError: a name is not that of a product.
    """
    _check_names(model, keep)
    for name, module in products(model).items():
        if name not in keep and isinstance(module, nn.Linear):
            made = Int8Linear(module.in_features, module.out_features, module.bias is not None)
            replace_product(model, name, made.to(module.weight.device))


def _check_names(model: nn.Module, keep: Sequence[str]) -> None:
    names = products(model)
    if unknown := [name for name in keep if name not in names]:
        raise ModelError(
            f"There is no linear map {unknown[0]!r:.100} in this encoder.",
            fix=f"they are called {next(iter(names), 'layers.0...')} and the like",
        )


def dequantize(model: nn.Module) -> nn.Module:
    """A copy whose 8-bit products are fp32 ones with the same, rounded weights."""
    made = copy.deepcopy(model)
    for name, module in products(made).items():
        if isinstance(module, Int8Linear):
            replace_product(made, name, module.plain())
    return made


def quantize(model: nn.Module, batches: Iterable[Tokens], keep: Sequence[str] = ()) -> nn.Module:
    """A copy of a model whose encoder multiplies in 8-bit numbers; nothing is trained.

    Embeddings, norms, attention and the head stay as they are.

    Args:
        model: an encoder or a head on one, in fp32.
        batches: texts like those to come, to choose the scales by; some hundred texts do.
        keep: names of ``products`` that stay as they are.

    Raises:
        ModelError: a name of ``keep`` is not that of a product.
        UsageError: there are no texts.
    """
    _check_names(model, keep)
    seen = calibrate(model, batches)
    if any(inputs.count == 0 for inputs in seen.values()):
        raise UsageError("There are no texts to calibrate on.", fix="give some rows")
    made = copy.deepcopy(model).eval()
    for name, module in products(made).items():
        if name not in keep and isinstance(module, nn.Linear):
            # What follows an activation has one scale, so that the product before can round it.
            migrations = (0.0,) if name.endswith("feed_forward.output") else MIGRATIONS
            rows = seen[name].rows().to(module.weight.device)
            replace_product(made, name, fitted(module, rows, migrations))
    return made


class Inputs:
    """Rows that a product was given: an even sample of ``ROWS_KEPT``."""

    def __init__(self) -> None:
        self.count = 0
        self._kept: list[Tensor] = []
        self._step = 1

    def see(self, hidden: Tensor) -> None:
        """Take every n-th row of [..., in], n growing as rows grow many."""
        flat = hidden.detach().reshape(-1, hidden.shape[-1])
        first = -self.count % self._step
        self.count += len(flat)
        self._kept.append(flat[first :: self._step].float().cpu().clone())
        if sum(map(len, self._kept)) > 2 * ROWS_KEPT:
            self._kept = [torch.cat(self._kept)[::2].clone()]
            self._step *= 2

    def rows(self) -> Tensor:
        """[rows, in]."""
        return torch.cat(self._kept)


@torch.inference_mode()
def calibrate(model: nn.Module, batches: Iterable[Tokens]) -> dict[str, Inputs]:
    """What every product of the encoder is given when it reads the texts."""
    seen = {name: Inputs() for name in products(model)}

    def hook(inputs: Inputs, module: nn.Module, given: tuple[Tensor, ...]) -> None:
        inputs.see(given[0])

    hooks = [
        module.register_forward_pre_hook(partial(hook, seen[name]))
        for name, module in products(model).items()
    ]
    was_training = model.training
    model.eval()
    try:
        for tokens in batches:
            encoder_of(model).encode(tokens)
    finally:
        model.train(was_training)
        for handle in hooks:
            handle.remove()
    return seen


class Scales(NamedTuple):
    """How an input is rounded: a scale for each of its numbers [in], and the zero point."""

    scale: Tensor
    zero_point: float


def fitted(linear: nn.Linear, rows: Tensor, migrations: Sequence[float] = MIGRATIONS) -> Int8Linear:
    """A linear map in 8 bits, its scales chosen so that its output for these rows errs least."""
    weight = linear.weight.detach().float()
    wanted = F.linear(rows, weight)
    best, least = None, float("inf")
    for scales in _candidates(weight, rows, migrations):
        made = Int8Linear.of(linear, *scales)
        made.bias = None
        error = float((made(rows) - wanted).square().mean())
        if error < least:
            best, least = scales, error
    assert best is not None
    return Int8Linear.of(linear, *best)


def _candidates(weight: Tensor, rows: Tensor, migrations: Sequence[float]) -> Iterator[Scales]:
    """Scales for every share of outliers that is migrated and every share of the range."""
    largest = rows.abs().amax(dim=0).clamp(min=1e-5)  # [in]
    weights = weight.abs().amax(dim=0).clamp(min=1e-5)  # [in]
    for migration in migrations:
        # Equation 4, but for migration 0, which is none.
        apart = largest**migration / weights ** (1 - migration) if migration else weights * 0 + 1
        apart = apart / apart.mean()
        low = float((rows / apart).amin().clamp(max=0))
        high = float((rows / apart).amax().clamp(min=1e-6))
        for share in RANGES:
            step = share * (high - low) / _LEVELS
            yield Scales(apart * step, float(min(max(round(-share * low / step), 0), _LEVELS)))
