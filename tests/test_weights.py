"""Reading and writing weights: what is in them comes back, and nothing else is believed."""

from __future__ import annotations

import json
import os
import re
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from bert import weights
from bert.errors import ModelError, OutOfMemoryError
from bert.untrusted import read_bytes, read_json
from bert.weights import INDEX, WEIGHTS, Stored, read_headers, read_tensors, write_tensors

KINDS = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
SHAPES = [(), (0,), (3,), (2, 3), (2, 0, 3), (1, 2, 3, 4)]


def told(directory: Path, *words: str) -> ModelError:
    with pytest.raises(ModelError) as caught:
        read_headers(directory)
    assert str(directory) in str(caught.value.where)
    assert caught.value.fix
    for word in words:
        assert word in str(caught.value)
    return caught.value


def sharded(directory: Path, **shards: list[str]) -> dict[str, Any]:
    """Shards of tensors of one number each, and their index."""
    where = {}
    for shard, names in shards.items():
        write_tensors(
            directory / f"{shard}.safetensors",
            {name: torch.full((2,), float(ord(name))) for name in names},
        )
        where |= dict.fromkeys(names, f"{shard}.safetensors")
    index = {"metadata": {"total_size": 8 * len(where)}, "weight_map": where}
    (directory / INDEX).write_text(json.dumps(index))
    return index


def test_what_is_written_is_read(tmp_path: Path) -> None:
    torch.manual_seed(1)
    tensors = {
        f"w.{kind}.{number}": torch.randn(shape).to(kind)
        for kind in KINDS
        for number, shape in enumerate(SHAPES)
    }
    extra = {"ids": torch.arange(4), "flags": torch.ones(3, dtype=torch.bool)}
    write_tensors(tmp_path / WEIGHTS, tensors | extra)
    assert (tmp_path / WEIGHTS).stat().st_mode & 0o777 == 0o644
    headers = read_headers(tmp_path)
    assert headers.keys() == tensors.keys() | extra.keys()
    assert headers["ids"].dtype == "I64"
    assert headers["ids"].shape == (4,)
    read = read_tensors({name: headers[name] for name in reversed(tensors)})
    assert list(read) == list(reversed(tensors))
    for name, tensor in tensors.items():
        assert read[name].dtype == torch.float32
        assert torch.equal(read[name], tensor.float())
    with pytest.raises(ModelError, match=r"ids holds torch\.int64"):
        read_tensors(headers)
    first = (tmp_path / WEIGHTS).read_bytes()
    write_tensors(tmp_path / WEIGHTS, dict(reversed((tensors | extra).items())))
    assert (tmp_path / WEIGHTS).read_bytes() == first


def test_only_what_is_asked_for_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["a", "b", "c", "d"]
    sharded(tmp_path, x=names[:2], y=names[2:])
    headers = read_headers(tmp_path)
    opened: list[str] = []
    before = Path.open

    def spy(self: Path, *arguments: Any, **rest: Any) -> Any:
        opened.append(self.name)
        return before(self, *arguments, **rest)

    monkeypatch.setattr(Path, "open", spy)
    read = read_tensors({name: headers[name] for name in ("b", "c", "a")})
    assert {name: value.tolist() for name, value in read.items()} == {
        "b": [98.0, 98.0],
        "c": [99.0, 99.0],
        "a": [97.0, 97.0],
    }
    assert sorted(opened) == ["x.safetensors", "y.safetensors"]
    opened.clear()
    assert list(read_tensors({"c": headers["c"]})) == ["c"]
    assert opened == ["y.safetensors"]
    assert read_tensors({}) == {}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("whole") / WEIGHTS
    save_file({"a": torch.ones(3), "bc": torch.ones(2, 2).half()}, path, {"format": "pt"})
    return path.read_bytes()


@settings(
    max_examples=300,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.data())
def test_a_changed_file_is_read_as_the_library_reads_it_or_refused(
    whole: bytes, tmp_path: Path, data: st.DataObject
) -> None:
    content = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(content) - 1))
        piece = data.draw(st.binary(max_size=3) | st.sampled_from([b"0", b"9", b",", b"]", b" "]))
        content[at : at + data.draw(st.integers(0, 3))] = piece
    (tmp_path / WEIGHTS).write_bytes(content)
    try:
        headers = read_headers(tmp_path)
        read = read_tensors(
            {name: item for name, item in headers.items() if item.dtype in ("F32", "F16")}
        )
    except ModelError:
        return
    try:
        theirs = load_file(tmp_path / WEIGHTS)
    except SafetensorError as error:
        raise AssertionError("we read what the library refuses") from error
    assert theirs.keys() == headers.keys()
    for name, value in read.items():
        assert torch.equal(value, theirs[name].float())


def write_header(path: Path, entries: dict[str, Any], data: bytes) -> None:
    header = json.dumps(entries).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + data)


def test_the_most_tensors(tmp_path: Path) -> None:
    for count in (weights.MOST_TENSORS, weights.MOST_TENSORS + 1):
        entries = {
            f"layer.{i}.weight": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
            for i in range(count)
        }
        write_header(tmp_path / WEIGHTS, entries, b"")
        if count == weights.MOST_TENSORS:
            assert len(read_headers(tmp_path)) == count
        else:
            told(tmp_path, "20,001", "20,000")


def test_a_tensor_at_an_odd_place(tmp_path: Path) -> None:
    entries = {
        "flag": {"dtype": "BOOL", "shape": [1], "data_offsets": [0, 1]},
        "w": {"dtype": "F32", "shape": [2], "data_offsets": [1, 9]},
    }
    write_header(tmp_path / WEIGHTS, entries, b"\1" + struct.pack("<2f", 1.5, -2.0))
    headers = read_headers(tmp_path)
    assert read_tensors({"w": headers["w"]})["w"].tolist() == [1.5, -2.0]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("number", ["nan", "inf", "-inf"])
def test_numbers_that_are_none(tmp_path: Path, kind: torch.dtype, number: str) -> None:
    bad = torch.ones(5, 5, dtype=kind)
    bad[4, 2] = float(number)
    write_tensors(tmp_path / WEIGHTS, {"good": torch.ones(2), "bad": bad})
    headers = read_headers(tmp_path)
    assert read_tensors({"good": headers["good"]})["good"].tolist() == [1.0, 1.0]
    with pytest.raises(ModelError, match="bad holds " + ("NaN" if number == "nan" else "infinity")):
        read_tensors(headers)


def test_a_file_that_changes_in_between(tmp_path: Path) -> None:
    write_tensors(tmp_path / WEIGHTS, {"a": torch.ones(1000)})
    headers = read_headers(tmp_path)
    os.truncate(tmp_path / WEIGHTS, 1000)
    with pytest.raises(ModelError, match="shorter"):
        read_tensors(headers)
    (tmp_path / WEIGHTS).unlink()
    with pytest.raises(ModelError, match="No such file"):
        read_tensors(headers)


def test_weights_larger_than_the_memory(tmp_path: Path) -> None:
    item = Stored(tmp_path / WEIGHTS, "F16", (2**40, 2), 0, 2**42)
    with pytest.raises(OutOfMemoryError, match=r"8,796\.1 GB in fp32"):
        read_tensors({"a": item})


def test_one_file_goes_before_shards(tmp_path: Path) -> None:
    sharded(tmp_path, x=["a"])
    write_tensors(tmp_path / WEIGHTS, {"b": torch.ones(1)})
    assert list(read_headers(tmp_path)) == ["b"]


def test_the_index_and_the_shards_agree(tmp_path: Path) -> None:
    index = sharded(tmp_path, x=["a", "b"], y=["c"])
    assert list(read_headers(tmp_path)) == ["a", "b", "c"]

    def changed(**values: Any) -> None:
        (tmp_path / INDEX).write_text(json.dumps({**index, **values}))

    where = index["weight_map"]
    changed(weight_map={"a": "x.safetensors", "c": "y.safetensors"})
    told(tmp_path, "does not say", "b", "x.safetensors")
    changed(weight_map={**where, "d": "y.safetensors"})
    told(tmp_path, "'d' is not in")
    changed(weight_map={**where, "c": "x.safetensors"})
    told(tmp_path, "c")
    changed(weight_map={**where, "c": "z.safetensors"})
    told(tmp_path, "z.safetensors is missing")
    changed(metadata={"total_size": 23})
    told(tmp_path, "total_size", "24")
    changed(metadata={"total_size": 24.0})  # as some versions of transformers wrote it
    assert len(read_headers(tmp_path)) == 3
    changed(metadata={})
    assert len(read_headers(tmp_path)) == 3


def hub(root: Path) -> Path:
    """A snapshot as the hub's cache lays it out: links to blobs."""
    repository = root / "models--someone--bert"
    snapshot = repository / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    write_tensors(repository / "blobs" / "ab12", {"a": torch.ones(2)})
    (repository / "blobs" / "cd34").write_text('{"x": 1}')
    (snapshot / WEIGHTS).symlink_to("../../blobs/ab12")
    (snapshot / "config.json").symlink_to("../../blobs/cd34")
    return snapshot


def test_links_of_the_hubs_cache(tmp_path: Path) -> None:
    snapshot = hub(tmp_path)
    assert read_tensors(read_headers(snapshot))["a"].tolist() == [1.0, 1.0]
    assert read_json(snapshot / "config.json") == {"x": 1}
    (tmp_path / "mine").symlink_to(snapshot)  # the directory itself may be a link
    assert list(read_headers(tmp_path / "mine")) == ["a"]
    # Another repository's blobs are not this one's.
    other = hub(tmp_path / "other")
    (snapshot / WEIGHTS).unlink()
    (snapshot / WEIGHTS).symlink_to((other / WEIGHTS).resolve())
    told(snapshot, "leads out")


def test_links_elsewhere(tmp_path: Path) -> None:
    directory = tmp_path / "model"
    directory.mkdir()
    write_tensors(tmp_path / "w", {"a": torch.ones(2)})
    (directory / WEIGHTS).symlink_to("../w")
    told(directory, "leads out")
    (directory / WEIGHTS).unlink()
    (directory / WEIGHTS).symlink_to("w")
    told(directory, "No such file")
    (tmp_path / "w").rename(directory / "w")
    assert list(read_headers(directory)) == ["a"]
    # A directory that only looks like a part of the cache has no blobs beside it.
    fake = tmp_path / "snapshots" / "model"
    directory.rename(tmp_path / "old")
    fake.mkdir(parents=True)
    (fake / WEIGHTS).symlink_to(tmp_path / "old" / "w")
    told(fake, "leads out")


@pytest.mark.parametrize(
    "name", ["pytorch_model.bin", "model.pt", "model.pth", "model.ckpt", "pytorch_model.pkl"]
)
def test_a_pickle_has_a_way_out(tmp_path: Path, name: str) -> None:
    directory = tmp_path / "my model"
    directory.mkdir()
    (directory / "optimizer.pt").touch()
    (directory / name).touch()
    error = told(directory, name if "pytorch" in name else "pickle")
    assert error.fix is not None
    assert error.fix.startswith(f"bert convert '{directory}' '{directory}-converted'")


def test_what_else_there_may_be_instead(tmp_path: Path) -> None:
    told(tmp_path, f"There is no {WEIGHTS}", "save_pretrained")
    (tmp_path / "bert_model.ckpt.index").touch()
    told(tmp_path, "TensorFlow", "google-bert/bert-base-uncased")
    (tmp_path / WEIGHTS).write_bytes(b"PK\3\4" + b"x" * 100)
    told(tmp_path, "is a pickle", "not opened")
    (tmp_path / WEIGHTS).write_bytes(b"\x80\4\x95" + b"x" * 100)
    told(tmp_path, "is a pickle", "not opened")
    (tmp_path / WEIGHTS).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    told(tmp_path, "Git LFS", "git lfs pull")


def test_a_header_as_long_as_a_pickle_begins_is_no_pickle(tmp_path: Path) -> None:
    header = json.dumps({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}})
    path = tmp_path / WEIGHTS
    path.write_bytes(struct.pack("<Q", 0x280) + header.ljust(0x280).encode() + b"\0" * 4)
    assert path.read_bytes()[:2] == b"\x80\2"
    assert list(read_headers(tmp_path)) == ["a"]


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b'{"a": 1, "a": 2}', "given twice"),
        (b'{"a": {"b": 1, "b": 2}}', "given twice"),
        (b'{"a": NaN}', "NaN"),
        (b'{"a": -Infinity}', "-Infinity"),
        (b'{"a": 1e999}', "too large"),
        (b'{"a": ' + b"9" * 5000 + b"}", "too large"),
        (b"[" * 100_000, "too deeply"),
        (b'{"a": [' + b"[]," * 1_000_000 + b"[]]}", "1,000,000 lists"),
        (b'{"a": "\\ud800"}', "UTF-8"),
        (b'{"a": "\xff"}', "UTF-8"),
        (b"[1]", "not a table"),
        (b"null", "not a table"),
        (b"", "line 1"),
        (b'{"a": 1}}', "line 1, column 9"),
    ],
)
def test_json_that_is_refused(tmp_path: Path, content: bytes, word: str) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=re.escape(word)) as caught:
        read_json(path)
    assert caught.value.what.startswith("x.json cannot be read: ")
    assert caught.value.where == str(path)
    assert len(str(caught.value).splitlines()) == 3


def test_json_that_is_read(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    value = {"a": [1, 2.5, None, True, "\U0001f600é"], "b": {"a": {}}, "": -(10**30)}
    for ascii_only in (True, False):
        path.write_text(json.dumps(value, ensure_ascii=ascii_only), encoding="utf-8")
        assert read_json(path) == value
    size = path.stat().st_size
    assert len(read_bytes(path, size)) == size
    with pytest.raises(ModelError, match="implausibly large"):
        read_json(path, size - 1)
    with pytest.raises(ModelError, match="No such file"):
        read_json(tmp_path / "y.json")
