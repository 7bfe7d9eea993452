"""A model as ONNX: one file that runs in onnxruntime without this package.

Inputs are int64 [batch, length]: ``input_ids``, ``attention_mask`` (1 where a token is real, 0 at
padding, which may stand anywhere after the first token) and ``token_type_ids``. The output is what
the head says: ``logits`` [batch, labels], or [batch, length, labels] of a head that speaks of every
token (2 of question answering: where the answer begins and ends); of a bare encoder
``sentence_embedding`` [batch, width], pooled and scaled as the model's directory tells.
"""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from bert.checkpoint import Checkpoint
from bert.errors import ModelError, UsageError
from bert.families.family import ENCODER
from bert.inference.int8 import encoder_of
from bert.model.packing import Group, Packed, Tokens, pack
from bert.pooling import Pooling

FILE = "model.onnx"
OPSET = 20  # the first that has GELU
INPUTS = ("input_ids", "attention_mask", "token_type_ids")
# Random batches on which the file must say what the model says, and the largest difference
# between two numbers of theirs: fp32 sums in another order.
BATCHES, MOST_DIFFERENT = 24, 1e-3
MOST_BYTES = 2**31 - 2**26  # of weights in one file of protocol buffers

Array = NDArray[Any]


@dataclass(frozen=True)
class _Padded(Packed):
    """A padded batch as rows that stand one after the other: B x S of them, padding too.

    With it the same network computes [B * S, H], in shapes that do not depend on the numbers.
    """

    real: Tensor = None  # type: ignore[assignment]  # [B, S], True where a token is real

    @classmethod
    def batch(cls, real: Tensor) -> _Padded:
        """The batch in which these tokens are real: [B, S]."""
        size, length = real.shape
        group = Group(size, length, slice(None), real[:, None, None, :])
        starts = torch.arange(size, device=real.device) * length
        return cls((), (group,), None, None, starts, gapless=False, real=real)

    def within(self, position_ids: Tensor, window: int) -> Packed:
        """Each token sees ``window`` positions to each side only."""
        group = self.groups[0]
        places = group.of(position_ids)  # [B, S]
        near = (places[:, :, None] - places[:, None, :]).abs() <= window  # [B, S, S]
        assert group.mask is not None
        return replace(self, groups=(replace(group, mask=near[:, None] & group.mask),))

    def counted(self, input_ids: Tensor, pad_token_id: int) -> Tensor:
        """Positions counted from ``pad_token_id + 1`` over tokens that are not padding."""
        there = (input_ids != pad_token_id).view_as(self.real) & self.real
        return (there.cumsum(1) * there + pad_token_id).flatten()

    def mean(self, hidden: Tensor) -> Tensor:
        """The mean of each text's tokens: [B * S, H] -> [B, H]."""
        weights = self.real[:, :, None].to(hidden.dtype)  # [B, S, 1]
        rows = hidden.view(*self.real.shape, -1) * weights
        return rows.sum(dim=1) / weights.sum(dim=1).clamp(min=1)

    def first(self, hidden: Tensor) -> Tensor:
        """The first token of each text: [B * S, H] -> [B, H]."""
        return hidden.view(*self.real.shape, -1)[:, 0]


class _Whole(nn.Module):
    """A network from padded numbers to what is wanted of it."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__()
        self.network = copy.deepcopy(checkpoint.model).cpu().eval()
        self.pooling = _pooling(checkpoint) if checkpoint.kind == ENCODER else None

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> Tensor:
        """Three [B, S] -> the output."""
        batch, length = input_ids.shape
        packed = _Padded.batch(attention_mask != 0)
        places = torch.arange(length, device=input_ids.device).expand(batch, length)
        tokens = Tokens(input_ids.flatten(), token_type_ids.flatten(), places.flatten(), packed)
        if self.pooling is None:
            logits: Tensor = self.network.logits(tokens)  # type: ignore[operator]
            return logits.view(batch, length, -1) if self.network.padded else logits
        return pooled(self.pooling, self.network.encode(tokens), packed)  # type: ignore[operator]


def pooled(pooling: Pooling, hidden: Tensor, packed: Packed) -> Tensor:
    """The vector of each text: [T, H] -> [B, H]."""
    vectors = packed.first(hidden) if pooling.mode == "cls" else packed.mean(hidden)
    return F.normalize(vectors, dim=-1) if pooling.normalize else vectors


def _pooling(checkpoint: Checkpoint) -> Pooling:
    pooling = checkpoint.pooling or Pooling()
    if pooling.mode not in ("mean", "cls"):
        raise ModelError(
            f"Vectors that are pooled by {pooling.mode} are not exported to ONNX.",
            fix="train the model with pooling=mean or pooling=cls",
        )
    return pooling


def write_onnx(path: Path, checkpoint: Checkpoint) -> float:
    """Write a model as ONNX once the file has said what the model says.

    Args:
        path: of the file, which is not there if this fails.
        checkpoint: in fp32.

    Returns:
        The largest difference to our own output over ``BATCHES`` random batches.

    Raises:
        UsageError: onnx, onnxscript or onnxruntime are not installed.
        ModelError: the model cannot be exported, or the file says something else.
    """
    runtime = _runtime()
    size = sum(value.numel() * 4 for value in checkpoint.model.state_dict().values())
    if size > MOST_BYTES:
        raise ModelError(
            f"The weights are {size / 2**30:.1f} GiB, more than an ONNX file of one piece holds.",
            where=str(path),
            fix="make the model smaller first: --distil layers=N",
        )
    whole = _Whole(checkpoint).eval()
    output = "logits" if whole.pooling is None else "sentence_embedding"
    example = tuple(torch.from_numpy(item) for item in _random(checkpoint, np.array([7, 5, 3])))
    axes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("length")}
    try:
        with _quiet(), torch.no_grad():
            program = torch.onnx.export(
                whole,
                example,
                dynamo=True,
                verbose=False,
                opset_version=OPSET,
                input_names=list(INPUTS),
                output_names=[output],
                dynamic_shapes=(axes,) * len(INPUTS),
            )
            assert program is not None
            program.save(str(path), external_data=False)
        worst = _difference(runtime.InferenceSession(str(path)), whole, checkpoint)
    except ModelError:
        path.unlink(missing_ok=True)
        raise
    except Exception as error:  # the exporter's and the runtime's errors have no common class
        path.unlink(missing_ok=True)
        first = str(error).strip().splitlines()[:1] or [type(error).__name__]
        raise ModelError(
            f"A {checkpoint.family.name} model with a {checkpoint.kind} head cannot be exported to "
            f"ONNX: {first[0]:.120}",
            where=str(path),
            fix="use the model as it is, or report it",
        ) from None
    if not worst <= MOST_DIFFERENT:
        path.unlink(missing_ok=True)
        raise ModelError(
            f"The ONNX file differs from the model by up to {worst:.2g}; at most "
            f"{MOST_DIFFERENT:g} is allowed.",
            where=str(path),
            fix="use the model as it is, or report it",
        )
    return worst


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter warns of what torch itself deprecates, and of packages it could use too."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _runtime() -> Any:
    try:
        import onnx  # noqa: F401
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UsageError(
            f"The export needs {error.name}, which is not installed.",
            fix="pip install 'bertsmith[onnx]'",
        ) from None
    return onnxruntime


def _random(checkpoint: Checkpoint, lengths: Array, seed: int = 0) -> tuple[Array, ...]:
    """Random texts of these lengths in tokens, padded to the longest: the three inputs."""
    draw = np.random.default_rng(seed)
    config = checkpoint.config
    shape = (len(lengths), int(lengths.max()))
    real = np.arange(shape[1]) < lengths[:, None]
    ids = draw.integers(0, config.vocab_size, shape)
    ids[ids == config.pad_token_id] = (config.pad_token_id + 1) % config.vocab_size
    ids[~real] = config.pad_token_id
    # The first segment, then perhaps a second.
    types = np.arange(shape[1]) >= draw.integers(1, lengths + 1)[:, None]
    types &= real & (config.type_vocab_size > 1)
    return ids, real.astype(np.int64), types.astype(np.int64)


def _difference(session: Any, whole: _Whole, checkpoint: Checkpoint) -> float:
    """The largest difference of an output over random batches of random lengths."""
    draw = np.random.default_rng(1)
    longest = min(checkpoint.config.longest_text, 512)
    worst = 0.0
    for number in range(BATCHES):
        # One text alone, the longest there may be, and everything between.
        top = longest if number == 0 else int(draw.integers(1, longest + 1))
        lengths = draw.integers(1, top + 1, 1 if number < 2 else int(draw.integers(2, 9)))
        lengths[0] = top
        given = _random(checkpoint, lengths, seed=number + 2)
        (theirs,) = session.run(None, dict(zip(INPUTS, given, strict=True)))
        ours = _ours(whole, *(torch.from_numpy(item) for item in given))
        if whole.pooling is None and whole.network.padded:
            theirs = theirs[given[1] != 0]  # what stands at padding means nothing
        worst = float(np.maximum(worst, np.abs(theirs - ours).max()))  # not-a-number stays
    return worst


def _ours(whole: _Whole, ids: Tensor, mask: Tensor, types: Tensor) -> Array:
    """What our own network says, computed without padding: [T, L], or [B, ...]."""
    tokens, _ = pack(ids, types, mask)
    with torch.inference_mode():
        if whole.pooling is None:
            said: Tensor = whole.network.logits(tokens)  # type: ignore[operator]
        else:
            hidden = whole.network.encode(tokens)  # type: ignore[operator]
            said = pooled(whole.pooling, hidden, tokens.packed)
    return said.numpy()


class OnnxModel(nn.Module):
    """An ONNX file in the place of a network, so that the same rows are asked of it.

    Args:
        path: of the file.
        network: what it was made of.
    """

    def __init__(self, path: Path, network: nn.Module) -> None:
        super().__init__()
        runtime = _runtime()
        options = runtime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()  # as many as ours
        self.session = runtime.InferenceSession(str(path), options)
        self.padded = getattr(network, "padded", False)
        self.bert = encoder_of(network)

    def logits(self, tokens: Tokens) -> Tensor:
        """Packed tokens [T] -> [T, L], or [B, L]."""
        said, real = self._run(tokens)
        return said[real] if self.padded else said

    def encode(self, tokens: Tokens) -> Tensor:
        """Packed tokens [T] -> [T, H]: at each token its text's vector, which is then the mean."""
        said, real = self._run(tokens)
        return said.repeat_interleave(real.sum(dim=1), dim=0)

    def _run(self, tokens: Tokens) -> tuple[Tensor, Tensor]:
        """The output of the file, and where tokens are real in its batch [B, S]."""
        lengths = torch.tensor(tokens.packed.lengths)
        real = torch.arange(int(lengths.max()))[None] < lengths[:, None]  # [B, S]
        given = []
        for values in (tokens.input_ids, torch.ones_like(tokens.input_ids), tokens.token_type_ids):
            rows = torch.zeros(real.shape, dtype=torch.int64)
            rows[real] = values.cpu()
            given.append(rows.numpy())
        (said,) = self.session.run(None, dict(zip(INPUTS, given, strict=True)))
        return torch.from_numpy(said), real
