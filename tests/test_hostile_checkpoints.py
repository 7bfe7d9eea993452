"""Two hundred checkpoints made to harm: each is refused by a message, and nothing happens.

All are given to ``bert info`` in one process of their own, whose memory is limited and in
which an audit hook sees every file opened, every program started and every pickle looked up.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bert.text.tokenizer import Tokenizer
from bert.weights import INDEX, WEIGHTS, write_tensors

V, H = 200, 8
CONFIG: dict[str, Any] = {
    "model_type": "bert",
    "architectures": ["BertForSequenceClassification"],
    "vocab_size": V,
    "hidden_size": H,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 12,
    "max_position_embeddings": 16,
    "type_vocab_size": 2,
    "id2label": {"0": "a", "1": "b", "2": "c"},
}
MOST_MEMORY = 256 * 2**20  # bytes by which they may raise the peak of a process
MOST_PEAK = 2**30  # bytes that the command takes for one of them, PyTorch included
MOST_SECONDS = 5.0  # of the processor
MOST_LINE = 500  # characters of a line of a message, without the path of the directory
WORDS = "bert.embeddings.word_embeddings.weight"
NORM = "bert.embeddings.LayerNorm.weight"
Spoil = Callable[[Path], object]


def weights() -> dict[str, Tensor]:
    """A tiny classifier."""
    layer = "bert.encoder.layer.0."
    sizes: dict[str, tuple[int, ...]] = {
        WORDS: (V, H),
        "bert.embeddings.position_embeddings.weight": (16, H),
        "bert.embeddings.token_type_embeddings.weight": (2, H),
        "classifier.weight": (3, H),
        "classifier.bias": (3,),
    }
    for name, shape in {
        f"{layer}attention.self.query": (H, H),
        f"{layer}attention.self.key": (H, H),
        f"{layer}attention.self.value": (H, H),
        f"{layer}attention.output.dense": (H, H),
        f"{layer}intermediate.dense": (12, H),
        f"{layer}output.dense": (H, 12),
        "bert.pooler.dense": (H, H),
    }.items():
        sizes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    for name in ("bert.embeddings", f"{layer}attention.output", f"{layer}output"):
        sizes |= {f"{name}.LayerNorm.weight": (H,), f"{name}.LayerNorm.bias": (H,)}
    return {name: torch.ones(shape) for name, shape in sizes.items()}


def file(name: str, content: bytes | str) -> Spoil:
    """A file has this content instead."""
    data = content.encode() if isinstance(content, str) else content
    return lambda directory: (directory / name).write_bytes(data)


def large(name: str, size: int, start: bytes = b"") -> Spoil:
    """A file of this size, of zeros after its start, that takes no room on the disk."""

    def spoil(directory: Path) -> None:
        (directory / name).write_bytes(start)
        os.truncate(directory / name, size)

    return spoil


def table(name: str, **values: Any) -> Spoil:
    """Some values in a JSON file are others."""

    def spoil(directory: Path) -> None:
        stored = json.loads((directory / name).read_text(encoding="utf-8"))
        (directory / name).write_text(json.dumps({**stored, **values}), encoding="utf-8")

    return spoil


def config(**values: Any) -> Spoil:
    """Some values in ``config.json`` are others."""
    return table("config.json", **values)


def instead(name: str, make: Callable[[Path], object]) -> Spoil:
    """Something that is no regular file stands in place of one."""

    def spoil(directory: Path) -> None:
        (directory / name).unlink()
        make(directory / name)

    return spoil


def tensors(**values: Tensor) -> Spoil:
    """Some weights are others; ``__`` stands for a dot."""

    def spoil(directory: Path) -> None:
        changed = {name.replace("__", "."): value for name, value in values.items()}
        write_tensors(directory / WEIGHTS, {**weights(), **changed})

    return spoil


def packed(header: bytes, data: bytes = b"", length: int | None = None) -> bytes:
    """A safetensors file whose header says what it likes."""
    length = len(header) if length is None else length
    return (length % 2**64).to_bytes(8, "little") + header + data


def parts(directory: Path) -> tuple[dict[str, Any], bytes]:
    content = (directory / WEIGHTS).read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    return json.loads(content[8:end]), content[end:]


def header(change: Callable[[dict[str, Any]], object], more: bytes = b"") -> Spoil:
    """The header of a file that was whole says something else."""

    def spoil(directory: Path) -> None:
        stored, data = parts(directory)
        change(stored)
        content = packed(json.dumps(stored).encode("utf-8"), data + more)
        (directory / WEIGHTS).write_bytes(content)

    return spoil


def entry(**values: Any) -> Spoil:
    """What the header says of one tensor is something else."""
    return header(lambda stored: stored[NORM].update(values))


def raw_header(text: bytes | str, length: int | None = None) -> Spoil:
    data = text.encode() if isinstance(text, str) else text
    return file(WEIGHTS, packed(data, b"", length))


def lie(change: Callable[[int, int], int]) -> Spoil:
    """The length of the header is another function of it and of the file's."""

    def spoil(directory: Path) -> None:
        content = (directory / WEIGHTS).read_bytes()
        length = change(int.from_bytes(content[:8], "little"), len(content))
        (directory / WEIGHTS).write_bytes((length % 2**64).to_bytes(8, "little") + content[8:])

    return spoil


def cut(change: Callable[[int, int], int]) -> Spoil:
    """The file ends early, or has more after its end."""

    def spoil(directory: Path) -> None:
        size = (directory / WEIGHTS).stat().st_size
        length = int.from_bytes((directory / WEIGHTS).read_bytes()[:8], "little")
        os.truncate(directory / WEIGHTS, change(length, size))

    return spoil


def sharded(change: Callable[[dict[str, Any]], object], more: Spoil | None = None) -> Spoil:
    """Two shards and an index that says something else."""

    def spoil(directory: Path) -> None:
        (directory / WEIGHTS).unlink()
        all_weights = weights()
        names = sorted(all_weights)
        index: dict[str, Any] = {"metadata": {}, "weight_map": {}}
        for shard, half in (("a.safetensors", names[::2]), ("b.safetensors", names[1::2])):
            write_tensors(directory / shard, {name: all_weights[name] for name in half})
            index["weight_map"] |= dict.fromkeys(half, shard)
        size = sum(value.nbytes for value in all_weights.values())
        index["metadata"]["total_size"] = size
        change(index)
        (directory / INDEX).write_text(json.dumps(index), encoding="utf-8")
        if more is not None:
            more(directory)

    return spoil


def mapped(**values: Any) -> Spoil:
    """The index sends one tensor elsewhere."""
    return sharded(lambda index: index["weight_map"].update({NORM: values["to"]}))


class Trap:
    """Unpickling it writes a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return (os.mkdir, (str(self.marker),))


def marker_of(directory: Path) -> Path:
    return directory.parent / "marker"


def trap(name: str, form: int | str = 4, alone: bool = False) -> Spoil:
    """A pickle behind a name: of a protocol, or as PyTorch writes one."""

    def spoil(directory: Path) -> None:
        value = Trap(marker_of(directory))
        if isinstance(form, int):
            content = pickle.dumps(value, protocol=form)
        else:
            buffer = io.BytesIO()
            torch.save(
                {**weights(), "trap": value}, buffer, _use_new_zipfile_serialization=form == "zip"
            )
            content = buffer.getvalue()
        (directory / name).write_bytes(content)
        if alone:
            (directory / WEIGHTS).unlink()

    return spoil


def with_code(spoil: Spoil) -> Spoil:
    """Beside the model lie modules of all names that could be imported by mistake."""

    def both(directory: Path) -> None:
        for name in ("modeling_evil", "evil", "bert", "torch", "tokenization_evil", "__init__"):
            code = f"import os\nos.mkdir({str(marker_of(directory))!r})\n"
            (directory / f"{name}.py").write_text(code)
        spoil(directory)

    return both


AUTO = {
    "auto_map": {"AutoModel": "modeling_evil.Model", "AutoConfig": "modeling_evil.Config"},
    "trust_remote_code": True,
}


def outside(directory: Path, name: str) -> Path:
    """A good file that lies in another directory."""
    place = directory.parent / "secret"
    place.mkdir(exist_ok=True)
    shutil.copyfile(directory / name, place / name)
    return place / name


def link_out(name: str, relative: bool = False) -> Spoil:
    def spoil(directory: Path) -> None:
        target = outside(directory, name)
        (directory / name).unlink()
        (directory / name).symlink_to(
            Path("..") / target.relative_to(directory.parent) if relative else target
        )

    return spoil


def cases() -> Iterator[tuple[str, Spoil]]:
    """Name and maker of each."""
    # Pickles behind any name.
    for protocol in range(6):
        yield f"pickle-{protocol}-as-weights", trap(WEIGHTS, protocol)
    for form in ("zip", "old"):
        yield f"torch-{form}-as-weights", trap(WEIGHTS, form)
        yield f"torch-{form}-as-shard", sharded(lambda index: 0, trap("b.safetensors", form))
    for name in ("config.json", "bert.json", "tokenizer.json", "tokenizer_config.json", INDEX):
        yield f"pickle-as-{name}", trap(name, alone=name == INDEX)
    for name in ("pytorch_model.bin", "model.pt", "m.pth", "m.ckpt", "m.pkl", "m.pickle"):
        yield f"only-{name}", trap(name, "zip", alone=True)
    yield "only-flax", trap("flax_model.msgpack", alone=True)
    yield "only-tensorflow", trap("bert_model.ckpt.index", alone=True)
    # Code beside the model.
    yield "code-for-unknown-family", with_code(config(model_type="evil", **AUTO))
    yield "code-named-as-family", with_code(config(model_type="modeling_evil", **AUTO))
    yield "code-and-pickle", with_code(trap(WEIGHTS, "zip"))
    yield (
        "code-for-tokenizer",
        with_code(instead("tokenizer.json", lambda path: (path.parent / "vocab.txt").unlink())),
    )
    for name in (
        *("../../x", "os", "family", "__init__", "bert.cli", "bert\0", "", "BERT", "../bert"),
        *("bert/../bert", "x" * 100_000, "\x1b[2J", "\ud800"),
        *(3, None, ["bert"], {"bert": 1}, True),
    ):
        yield f"family-{ascii(name)[:20]}", config(model_type=name)
    # Lengths and ends.
    for number in (0, 1, 7, 2**63, 2**64 - 1, 100_000_001):
        yield f"header-of-{number}", lie(lambda length, size, number=number: number)
    for more in (-8, -1, 1, 8):
        yield f"header-longer-by-{more}", lie(lambda length, size, more=more: length + more)
    yield "header-as-long-as-file", lie(lambda length, size: size)
    yield "header-one-too-long-for-file", lie(lambda length, size: size - 7)
    for size in (0, 1, 7, 8, 9):
        yield f"cut-to-{size}", cut(lambda length, whole, size=size: size)
    yield "cut-in-header", cut(lambda length, size: 8 + length // 2)
    yield "cut-after-header", cut(lambda length, size: 8 + length)
    yield "cut-in-data", cut(lambda length, size: size - 1000)
    for more in (1, 8, 2**20, 2**33):
        yield f"trailing-{more}", cut(lambda length, size, more=more: size + more)
    yield "lfs-pointer", file(WEIGHTS, "version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    yield "page-of-a-site", file(WEIGHTS, "<html>not found</html>" * 100)
    # Too many of them.
    empty = '"{}":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}'
    for count in (20_001, 100_000):
        text = "{" + ",".join(empty.format(i) for i in range(count)) + "}"
        yield f"{count}-tensors", raw_header(text)
        index = {str(i): "a.safetensors" for i in range(count)}
        yield (
            f"{count}-names-in-index",
            sharded(lambda stored, m=index: stored.update(weight_map=m)),
        )
    text = json.dumps(
        {f"w{i}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in [1]}
    )
    yield "header-of-spaces", raw_header(text + " " * 8_000_000)
    yield "header-of-lists", raw_header('{"a":[' + "[]," * 1_000_000 + "[]]}")
    yield "header-sparse", large(WEIGHTS, 2**33, packed(b"{" + b" " * 99, length=2**32))
    yield (
        "weights-sparse",
        large(
            WEIGHTS,
            2**33,
            packed(
                json.dumps(
                    {WORDS: {"dtype": "F32", "shape": [2**31], "data_offsets": [0, 2**33]}}
                ).encode()
            ),
        ),
    )
    yield (
        "300-shards",
        sharded(
            lambda index: index["weight_map"].update(
                {f"x{i}": f"x{i}.safetensors" for i in range(300)}
            )
        ),
    )
    # Headers that are no table of tensors.
    for name, bad in {
        "deep-lists": "[" * 100_000,
        "deep-tables": '{"a":' * 100_000,
        "not-a-number": '{"a":{"dtype":"F32","shape":[NaN],"data_offsets":[0,0]}}',
        "infinity": '{"a":{"dtype":"F32","shape":[Infinity],"data_offsets":[0,0]}}',
        "overflow": '{"a":{"dtype":"F32","shape":[1e999],"data_offsets":[0,0]}}',
        "5000-digits": '{"a":{"dtype":"F32","shape":[' + "9" * 5000 + '],"data_offsets":[0,0]}}',
        "twice": "{" + empty.format("a") + "," + empty.format("a") + "}",
        "key-twice": '{"a":{"dtype":"F32","dtype":"I8","shape":[0],"data_offsets":[0,0]}}',
        "list": "[]",
        "null": "null",
        "text": '"a"',
        "number": "1",
        "open": "{",
        "comment": "{} // x",
        "two": "{}{}",
        "no-tensors": "{}",
        "surrogate": '{"\\ud800":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}',
    }.items():
        yield f"header-{name}", raw_header(bad)
    yield "header-not-utf8", raw_header(b'{"\xff\xfe":1}')
    yield "header-with-mark", raw_header(b"\xef\xbb\xbf{}")
    for name, value in {"list": [], "nested": {"a": {}}, "number": {"a": 1}, "null": None}.items():
        yield f"metadata-{name}", header(lambda stored, v=value: stored.update(__metadata__=v))
    for value in (None, [], "F32", 3, {}):
        yield f"entry-{value!r}", header(lambda stored, v=value: stored.update({NORM: v}))
    for key in ("dtype", "shape", "data_offsets"):
        yield f"entry-without-{key}", header(lambda stored, k=key: stored[NORM].pop(k))
    yield "entry-with-more", entry(code="os.system")
    for value in ("F31", "f32", "", 3, None, ["F32"], "O", "F64", "F16", "F4"):
        yield f"dtype-{value!r}", entry(dtype=value)
    for value in (
        *([-8], [8.0], [True], ["8"], 8, None, [[8]], [2**62], [2**32, 2**32], [-2, -4]),
        *([2**61, 8, 2], [1] * 9, [7], [9], [10**30], [2**63, 2], [0]),
    ):
        yield f"shape-{value!r:.30}", entry(shape=value)
    for value in (
        *([-32, 0], [32, 0], [0.0, 32.0], [False, 32], [0, 32, 64], [0], None, {"0": 0}),
        *([0, 2**63], [2**62, 2**62 + 32], ["0", "32"], [10**9, 10**9 + 32], [0, 32]),
    ):
        yield f"offsets-{value!r:.30}", entry(data_offsets=value)
    yield "hole-at-the-start", header(shift(4), b"\0" * 4)
    yield "hole-in-the-middle", header(lambda stored: stored.pop(NORM))
    yield (
        "all-in-one-place",
        header(
            lambda stored: [
                value.update(shape=[8], data_offsets=[0, 32])
                for name, value in stored.items()
                if name != "__metadata__"
            ]
        ),
    )
    for name in ("", "x" * 1000, "a\nError: b", "a\0", "\x1b[2J", "\u202ea"):
        yield (
            f"name-{ascii(name)[:20]}",
            header(
                lambda stored, n=name: stored.update(
                    {n: {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}}
                )
            ),
        )
    # Numbers that are none, and of kinds that are no weights.
    for kind in (torch.float32, torch.float16, torch.bfloat16, torch.float64):
        for number in ("nan", "inf", "-inf"):
            bad_tensor = torch.ones(V, H, dtype=kind)
            bad_tensor[V // 2, 3] = float(number)
            yield f"{number}-{kind}", tensors(**{WORDS.replace(".", "__"): bad_tensor})
    yield (
        "too-large-for-fp32",
        tensors(classifier__bias=torch.full((3,), 1e300, dtype=torch.float64)),
    )
    for kind in (torch.int8, torch.uint8, torch.int64, torch.bool, torch.float8_e4m3fn):
        yield f"weights-of-{kind}", tensors(classifier__bias=torch.ones(3).to(kind))
    # Files that are no files, and links.
    for name in (WEIGHTS, "config.json", "tokenizer.json", "bert.json"):
        yield f"pipe-as-{name}", instead(name, os.mkfifo)
        yield f"folder-as-{name}", instead(name, os.mkdir)
        yield f"link-to-itself-as-{name}", instead(name, lambda path: path.symlink_to(path.name))
        yield f"link-to-nothing-as-{name}", instead(name, lambda path: path.symlink_to("nothing"))
        yield f"link-to-device-as-{name}", instead(name, lambda path: path.symlink_to("/dev/zero"))
        yield f"link-out-as-{name}", link_out(name)
        yield f"link-up-as-{name}", link_out(name, relative=True)
    # The index.
    for name in (
        *("../secret/b.safetensors", "/etc/passwd", "a/b.safetensors", "..", ".", "", "~"),
        *("b.safetensors\0", "..\\b.safetensors", ".b.safetensors", "x.bin", "b.SAFETENSORS\n"),
        *(3, None, ["b.safetensors"], "c.safetensors", "a" * 10_000 + ".safetensors"),
    ):
        yield f"index-to-{ascii(name)[:25]}", mapped(to=name)
    for value in ({}, [], None, "a.safetensors", 3):
        yield f"weight_map-{value!r}", sharded(lambda index, v=value: index.update(weight_map=v))
    yield (
        "index-with-unknown-name",
        sharded(lambda index: index["weight_map"].update(more="a.safetensors")),
    )
    yield "index-without-name", sharded(lambda index: index["weight_map"].pop(NORM))
    yield (
        "index-with-other-file",
        sharded(
            lambda index: index["weight_map"].update(
                {NORM: "ab"[index["weight_map"][NORM][0] == "a"] + ".safetensors"}
            )
        ),
    )
    for value in (0, 10**18, -1, "all", [1]):
        yield (
            f"total-{value!r}",
            sharded(lambda index, v=value: index.update(metadata={"total_size": v})),
        )
    yield "shard-leads-out", sharded(lambda index: 0, link_out("b.safetensors"))
    yield "shard-is-pipe", sharded(lambda index: 0, instead("b.safetensors", os.mkfifo))
    # Configurations.
    sizes = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")
    sizes += ("intermediate_size", "max_position_embeddings", "type_vocab_size")
    for size_name in sizes:
        for value in (10**6 + 8, 10**9, 2**62, 10**30, -1, 0, 8.5, "8", True, [8], {}):
            if (size_name, value) != ("type_vocab_size", 0):  # there are models without segments
                yield f"{size_name}-{value!r}", config(**{size_name: value})
    yield "all-sizes-large", config(**dict.fromkeys(sizes, 2**16))
    for size_name, value in {
        "vocab_size": V + 1,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "intermediate_size": 13,
        "max_position_embeddings": 17,
        "type_vocab_size": 3,
    }.items():
        yield f"contradicts-{size_name}", config(**{size_name: value})
    for values in (
        {"pad_token_id": V},
        {"pad_token_id": -1},
        {"hidden_act": "__import__('os').system('x')"},
        {"hidden_act": ["gelu"]},
        {"position_embedding_type": "relative_key"},
        {"is_decoder": True},
        {"hidden_dropout_prob": 2.0},
        {"hidden_dropout_prob": "x" * 1_000_000},
        {"layer_norm_eps": -1.0},
        {"layer_norm_eps": "tiny"},
        {"architectures": "BertModel"},
        {"architectures": {"0": "BertModel"}},
        {"id2label": {"0": "a", "1": "b"}},
        {"id2label": {"0": "a", "2": "b", "1000000000": "c"}},
        {"id2label": {str(i): "x" for i in range(50_000)}},
        {"id2label": ["a", "b", "c"]},
        {"id2label": "abc"},
        {"id2label": {"0": ["a"], "1": {"b": 1}, "2": None}},
    ):
        yield f"config-{values!r:.50}", config(**values)
    for name in ("config.json", "bert.json", "tokenizer.json", "tokenizer_config.json"):
        for what, content in {
            "empty": b"",
            "open": b"{",
            "list": b"[1, 2]",
            "deep": b"[" * 100_000,
            "deep-tables": b'{"a":' * 100_000,
            "not-utf8": b'{"a": "\xff\xfe"}',
            "zeros": bytes(1000),
        }.items():
            yield f"{name}-{what}", file(name, content)
        yield f"{name}-large", large(name, 2**33, b"{")
    for what, content in {
        "twice": '{"model_type": "bert", "model_type": "os"}',
        "nan": '{"model_type": "bert", "layer_norm_eps": NaN}',
        "digits": '{"vocab_size": ' + "9" * 5000 + "}",
        "lists": "[" + "[]," * 2_500_000 + "[]]",
        "some-lists": "[" + "[]," * 990_000 + "[]]",
        "strings": "[" + '"ab",' * 1_600_000 + '"ab"]',
    }.items():
        yield f"config-{what}", file("config.json", content)
    yield "tokenizer-lists", file("tokenizer.json", "[" + "[]," * 20_000_000 + "[]]")
    yield "tokenizer-config-lists", file("tokenizer_config.json", "[" + "[]," * 20_000_000 + "[]]")
    # Facts and tokenizers.
    for fact in ("task", "text_columns", "label_column", "texts_per_row", "max_length"):
        yield f"fact-{fact}", table("bert.json", **{fact: {"a": 1}})
    other = {"type": "Evil", "vocab": {}}
    for values in (
        {"model": other},
        {"model": None},
        {"model": {"type": "WordPiece", "vocab": {"a": -1}}},
        {"model": {"type": "WordPiece", "vocab": {"a": 10**12}}},
        {"model": {"type": "WordPiece", "vocab": {"a": "b"}}},
        {"model": {"type": "WordPiece", "vocab": [["a", 0.0]]}},
        {"model": {"type": "BPE", "vocab": {"a": 0}, "merges": ["a b"]}},
        {"model": {"type": "Unigram", "vocab": [["a", "b"]], "unk_id": 9}},
    ):
        yield f"tokenizer-{values!r:.50}", table("tokenizer.json", **values)
    for values in (
        {"pad_token": 3},
        {"cls_token": ["[CLS]"]},
        {"unk_token": {"a": 1}},
    ):
        yield f"tokenizer-config-{values!r}", table("tokenizer_config.json", **values)
    words = "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *map(str, range(V))])
    yield (
        "vocabulary-larger-than-model",
        instead("tokenizer.json", lambda path: (path.parent / "vocab.txt").write_text(words)),
    )
    yield (
        "vocabulary-not-utf8",
        instead(
            "tokenizer.json",
            lambda path: (path.parent / "vocab.txt").write_bytes(b"[PAD]\n\xff\xfe\n"),
        ),
    )


def shift(by: int) -> Callable[[dict[str, Any]], object]:
    def change(stored: dict[str, Any]) -> None:
        for name, value in stored.items():
            if name != "__metadata__":
                value["data_offsets"] = [at + by for at in value["data_offsets"]]

    return change


CASES = dict(cases())

# Reads every directory; an audit hook tells what else happens. The models after the first are
# hostile, so whatever is imported only then was not needed before.
PROGRAM = """
import contextlib, io, json, os, resource, signal, sys, time
from bert.cli import main

events, watching, here = [], False, ""
ALWAYS = {"pickle.find_class", "os.system", "subprocess.Popen", "os.exec", "os.posix_spawn",
          "os.fork", "socket.connect", "socket.getaddrinfo", "os.mkdir", "os.rename", "os.remove",
          "os.symlink", "os.link", "os.chmod", "os.rmdir", "os.truncate", "shutil.copyfile"}

def hook(event, args):
    if not watching:
        return
    if event in ALWAYS:
        events.append(f"{event} {args!r}"[:200])
    elif event == "open" and args[0] is not None and not isinstance(args[0], int):
        path, mode, flags = os.fsdecode(args[0]), args[1], args[2] or 0
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC):
            events.append(f"write {path}")
        if "/secret/" in path or path.startswith(("/etc/", "/dev/zero")):
            events.append(f"read {path}")
        if path.endswith((".py", ".pyc")) and path.startswith(here):
            events.append(f"code {path}")

def late(number, frame):
    raise TimeoutError("too slow")

def told(directory):
    global watching, here
    out, err, code = io.StringIO(), io.StringIO(), None
    here = directory
    os.chdir(directory)
    start = time.process_time()
    watching = True
    signal.alarm(10)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main(["info", directory])
    except SystemExit as end:
        code = end.code
    finally:
        signal.alarm(0)
        watching = False
    return code, out.getvalue(), err.getvalue(), time.process_time() - start

def peak():
    try:
        with open("/proc/self/status") as file:
            return next(1024 * int(line.split()[1]) for line in file if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

sys.addaudithook(hook)
signal.signal(signal.SIGALRM, late)
good, *bad = sys.stdin.read().splitlines()
first = told(good)
print(json.dumps([*first, events, 0]), flush=True)
before = highest = peak()
with open("/proc/self/statm") as file:
    most = int(file.read().split()[0]) * resource.getpagesize() + 2**30
resource.setrlimit(resource.RLIMIT_AS, (most, most))
for directory in bad:
    events.clear()
    result = told(directory)
    after = peak()
    rise = after - before if after > highest else 0  # the one that raised it is to blame
    highest = max(highest, after)
    print(json.dumps([*result, events, rise]), flush=True)
"""


class Told:
    """What one of them led to.

    Args:
        line: what the process that read it wrote down.
    """

    def __init__(self, line: str) -> None:
        self.code, self.out, self.err, self.seconds, self.events, self.memory = json.loads(line)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer) -> Path:
    directory = tmp_path_factory.mktemp("good") / "model"
    tokenizer.save(directory)
    (directory / "config.json").write_text(json.dumps(CONFIG), encoding="utf-8")
    (directory / "bert.json").write_text(json.dumps({"task": "classification"}), encoding="utf-8")
    write_tensors(directory / WEIGHTS, weights())
    return directory


def made(name: str, good: Path, place: Path) -> Path:
    """The checkpoint of this name, in a folder of its own."""
    directory = place / "model"
    shutil.copytree(good, directory)
    CASES[name](directory)
    return directory


@pytest.fixture(scope="module")
def told(
    good: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[dict[str, Told], Path]]:
    root = tmp_path_factory.mktemp("hostile")
    directories = []
    for number, name in enumerate(CASES):
        place = root / f"{number:03}"
        place.mkdir()
        directories.append(made(name, good, place))
    process = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        input="\n".join(map(str, [good, *directories])),
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent.parent,
    )
    lines = process.stdout.splitlines()
    assert len(lines) == 1 + len(CASES), process.stderr[-3000:]
    first, *rest = map(Told, lines)
    assert first.code == 0, first.err
    assert "BertForSequence" in first.out or "sequence" in first.out
    yield dict(zip(CASES, rest, strict=True)), root
    shutil.rmtree(root)


def test_there_are_two_hundred() -> None:
    assert len(CASES) >= 200


@pytest.mark.parametrize("name", CASES)
def test_it_is_refused_and_nothing_happens(name: str, told: tuple[dict[str, Told], Path]) -> None:
    result, root = told[0][name], told[1] / f"{list(CASES).index(name):03}"
    assert result.code == 4, result.err
    what, *rest = result.err.splitlines()
    assert what.startswith("Error: ")
    assert len(rest) <= 2
    assert all(re.match(r"  (where|fix): ", line) for line in rest)
    assert len(max(result.err.splitlines(), key=len).replace(str(root), "")) <= MOST_LINE
    assert result.err.replace("\n", "").isprintable()
    assert "unforeseen" not in result.err
    assert result.events == []
    assert {path.name for path in root.iterdir()} <= {"model", "secret"}
    assert result.memory <= MOST_MEMORY
    assert result.seconds <= MOST_SECONDS


def test_the_traps_would_spring(good: Path, tmp_path: Path) -> None:
    directory = made("torch-zip-as-weights", good, tmp_path)
    torch.load(io.BytesIO((directory / WEIGHTS).read_bytes()), weights_only=False)
    assert marker_of(directory).exists()
    marker_of(directory).rmdir()
    shutil.rmtree(directory)
    directory = made("code-for-unknown-family", good, tmp_path)
    subprocess.run([sys.executable, "modeling_evil.py"], cwd=directory, check=True)
    assert marker_of(directory).exists()


# The command, which leaves its own peak in a file: what the kernel tells of a child that has
# ended counts the memory of the process that started it.
COMMAND = r"""
import atexit, os, pathlib, re
def leave():
    status = pathlib.Path("/proc/self/status").read_text()
    pathlib.Path(os.environ["PEAK"]).write_text(re.search(r"VmHWM:\s+(\d+) kB", status)[1])
atexit.register(leave)
from bert.cli import main
main()
"""


@pytest.mark.parametrize(
    "name",
    [
        "torch-zip-as-weights",
        "only-pytorch_model.bin",
        "code-for-unknown-family",
        "100000-tensors",
        "vocab_size-1000000000",
        "link-to-device-as-config.json",
    ],
)
def test_the_command_itself(name: str, good: Path, tmp_path: Path) -> None:
    directory = made(name, good, tmp_path)
    peak = tmp_path / "peak"
    process = subprocess.run(
        [sys.executable, "-c", COMMAND, "info", str(directory)],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent.parent,
        env={**os.environ, "PEAK": str(peak)},
    )
    assert process.returncode == 4, process.stderr
    assert process.stderr.startswith("Error: ")
    assert "Traceback" not in process.stderr
    assert not process.stdout
    assert int(peak.read_text()) * 1024 <= MOST_PEAK
    assert not marker_of(directory).exists()


@pytest.mark.parametrize("values", [AUTO, {"custom_pipelines": {"x": {"impl": "evil.P"}}}])
def test_code_beside_a_good_model_is_ignored(
    values: dict[str, Any],
    good: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from bert.cli import main

    directory = tmp_path / "model"
    shutil.copytree(good, directory)
    with_code(config(**values))(directory)
    table("tokenizer_config.json", **AUTO, tokenizer_class="EvilTokenizer")(directory)
    before = set(sys.modules)
    monkeypatch.chdir(directory)
    with pytest.raises(SystemExit) as end:
        main(["info", str(directory)])
    assert not end.value.code
    assert "sequence" in capsys.readouterr().out
    assert not marker_of(directory).exists()
    assert not {"modeling_evil", "evil"} & (set(sys.modules) - before)
