"""Converting pickles: what is carried over, what is refused, and that nothing is run."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from bert.errors import ModelError, UsageError
from bert.recipes import convert
from bert.recipes.convert import convert_model

V, H, LAYERS = 30, 16, 2
CONFIG = {
    "model_type": "bert",
    "architectures": ["BertForMaskedLM"],
    "vocab_size": V,
    "hidden_size": H,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 12,
}


def state() -> dict[str, torch.Tensor]:
    """A tiny BERT for masked words as early PyTorch checkpoints had it: gamma, beta and ties."""
    torch.manual_seed(3)
    sizes: dict[str, tuple[int, ...]] = {
        "bert.embeddings.word_embeddings.weight": (V, H),
        "bert.embeddings.position_embeddings.weight": (12, H),
        "bert.embeddings.token_type_embeddings.weight": (2, H),
        "bert.embeddings.LayerNorm.gamma": (H,),
        "bert.embeddings.LayerNorm.beta": (H,),
    }
    for layer in range(LAYERS):
        start = f"bert.encoder.layer.{layer}."
        for name, shape in {
            "attention.self.query": (H, H),
            "attention.self.key": (H, H),
            "attention.self.value": (H, H),
            "attention.output.dense": (H, H),
            "intermediate.dense": (24, H),
            "output.dense": (H, 24),
        }.items():
            sizes[f"{start}{name}.weight"] = shape
            sizes[f"{start}{name}.bias"] = shape[:1]
        for name in ("attention.output.LayerNorm", "output.LayerNorm"):
            sizes[f"{start}{name}.gamma"] = sizes[f"{start}{name}.beta"] = (H,)
    sizes |= {
        "cls.predictions.bias": (V,),
        "cls.predictions.transform.dense.weight": (H, H),
        "cls.predictions.transform.dense.bias": (H,),
        "cls.predictions.transform.LayerNorm.gamma": (H,),
        "cls.predictions.transform.LayerNorm.beta": (H,),
    }
    weights = {name: torch.randn(shape) for name, shape in sizes.items()}
    weights["bert.embeddings.position_ids"] = torch.arange(12).expand(1, -1)
    weights["cls.predictions.decoder.weight"] = weights["bert.embeddings.word_embeddings.weight"]
    return weights


@pytest.fixture
def source(tmp_path: Path) -> Path:
    directory = tmp_path / "source"
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(CONFIG), encoding="utf-8")
    return directory


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "target"


def refused(source: Path, target: Path, *words: str, code: int = 4) -> None:
    with pytest.raises((ModelError, UsageError)) as caught:
        convert_model(source, target)
    assert caught.value.exit_code == code
    assert caught.value.where
    assert caught.value.fix
    assert len(str(caught.value).splitlines()) == 3
    for word in words:
        assert word in str(caught.value)
    assert not target.exists()
    assert not [path for path in target.parent.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("zipped", [True, False])
def test_everything_is_carried_over_or_named(
    source: Path, target: Path, zipped: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = state()
    torch.save(weights, source / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    (source / "vocab.txt").write_text("a\nb\n")
    (source / "README.md").write_text("# A model\n")
    (source / "modeling.py").write_text("raise SystemExit(1)\n")
    torch.save({}, source / "training_args.bin")
    (source / "notes.txt").write_bytes(pickle.dumps([1]))
    for folder in ("onnx", "1_Pooling"):
        (source / folder).mkdir()
    (source / "onnx" / "model.onnx").write_bytes(b"x")
    (source / "1_Pooling" / "config.json").write_text("{}")
    (source / "secret.txt").symlink_to(source.parent)
    convert_model(source, target)
    written = load_file(target / "model.safetensors")
    tied = "cls.predictions.decoder.weight"
    assert written.keys() == weights.keys() - {tied}
    for name, value in written.items():
        assert torch.equal(value, weights[name])
        assert value.dtype == weights[name].dtype
    present = {path.name for path in target.iterdir()}
    files = {"config.json", "model.safetensors", "vocab.txt", "README.md"}
    assert present == files | {"1_Pooling"}
    assert (target / "1_Pooling" / "config.json").read_text() == "{}"
    assert (target / "config.json").read_bytes() == (source / "config.json").read_bytes()
    assert target.stat().st_mode & 0o777 == 0o755
    assert (target / "model.safetensors").stat().st_mode & 0o777 == 0o644
    lines = capsys.readouterr().err.splitlines()
    assert f"Written once, being the same as another: {tied}." in lines
    left = "modeling.py, notes.txt, onnx/model.onnx, secret.txt, training_args.bin"
    assert f"Not copied: {left}." in lines
    assert lines[-1].startswith(f"Converted {len(written)} weights of family bert, head masked_lm")


@pytest.mark.usefixtures("here")
def test_parts_of_a_larger_matrix_are_written_alone(source: Path, target: Path) -> None:
    weights = state()
    whole = torch.randn(3 * H, H)
    start = "bert.encoder.layer.0.attention.self."
    for i, name in enumerate(("query", "key", "value")):
        weights[f"{start}{name}.weight"] = whole[i * H : (i + 1) * H]
    turned = weights["bert.encoder.layer.1.attention.self.key.weight"].T
    weights["bert.encoder.layer.1.attention.self.key.weight"] = turned
    torch.save(weights, source / "pytorch_model.bin")
    convert_model(source, target)
    written = load_file(target / "model.safetensors")
    assert torch.equal(written[f"{start}key.weight"], whole[H : 2 * H])
    assert torch.equal(written["bert.encoder.layer.1.attention.self.key.weight"], turned)


@pytest.mark.usefixtures("here")
def test_a_training_checkpoint_gives_its_weights(
    source: Path, target: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights: dict[str, Any] = {**state(), "step": 3}
    torch.save({"epoch": 7, "state_dict": weights, "optimizer": {}}, source / "last.ckpt")
    convert_model(source, target)
    assert "Not carried over, being no weights: epoch, optimizer, step." in capsys.readouterr().err
    assert "bert.embeddings.LayerNorm.gamma" in load_file(target / "model.safetensors")


def shards(source: Path) -> list[str]:
    weights = state()
    names = list(weights)
    halves = [names[: len(names) // 2], names[len(names) // 2 :]]
    files = [f"pytorch_model-0000{i + 1}-of-00002.bin" for i in range(2)]
    for file, half in zip(files, halves, strict=True):
        torch.save({name: weights[name] for name in half}, source / file)
    index = {name: file for file, half in zip(files, halves, strict=True) for name in half}
    (source / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": index}))
    return names


def test_shards_become_one(source: Path, target: Path) -> None:
    names = shards(source)
    convert_model(source, target)
    # The tie was cut when the shards were saved, so both are there.
    assert load_file(target / "model.safetensors").keys() == set(names)
    assert {path.name for path in target.iterdir()} == {"config.json", "model.safetensors"}


@pytest.mark.usefixtures("here")
def test_shards_that_are_not_all_there(source: Path, target: Path) -> None:
    names = shards(source)
    path = source / "pytorch_model.bin.index.json"
    index = json.loads(path.read_text())
    index["weight_map"]["bert.more"] = "pytorch_model-00002-of-00002.bin"
    path.write_text(json.dumps(index))
    refused(source, target, "lack 1", "bert.more")
    index["weight_map"]["bert.more"] = "../pytorch_model.bin"
    path.write_text(json.dumps(index))
    refused(source, target, "not here")
    torch.save({names[-1]: torch.ones(2)}, source / "pytorch_model-00001-of-00002.bin")
    del index["weight_map"]["bert.more"]
    path.write_text(json.dumps(index))
    refused(source, target, "in two files")


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pickle, which is of this test's own making, is opened in this process, to be quick."""

    def rewrite(pickles: list[Path], target: Path, size: int, source: Path) -> dict[str, Any]:
        try:
            return convert._rewrite(target, pickles)
        except ModelError as error:
            raise ModelError(error.what, where=str(source), fix="another") from None

    monkeypatch.setattr(convert, "_in_another_process", rewrite)


class Trap:
    """Unpickling it writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("form", ["plain", "zip", "old"])
def test_a_trap_does_not_spring(source: Path, target: Path, tmp_path: Path, form: str) -> None:
    marker = tmp_path / "marker"
    content: dict[str, Any] = {**state(), "trap": Trap(marker)}
    file = source / "pytorch_model.bin"
    if form == "plain":
        file.write_bytes(pickle.dumps(content["trap"]))
    else:
        torch.save(content, file, _use_new_zipfile_serialization=form == "zip")
    refused(source, target, "pytorch_model.bin" if form == "plain" else "more than weights")
    assert not marker.exists()
    pickle.loads(pickle.dumps(content["trap"]))
    assert marker.exists()  # it would have


def test_no_secrets_reach_the_other_process(
    source: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret")
    seen: list[dict[str, str]] = []
    run = subprocess.run

    def spy(*args: Any, **rest: Any) -> Any:
        seen.append(rest["env"])
        return run(*args, **rest)

    monkeypatch.setattr(subprocess, "run", spy)
    torch.save(state(), source / "pytorch_model.bin")
    convert_model(source, target)
    assert len(seen) == 1
    assert "secret" not in seen[0].values()


def test_a_process_that_takes_too_long_is_ended(
    source: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = subprocess.run
    monkeypatch.setattr(
        subprocess, "run", lambda *args, **rest: run(*args, **{**rest, "timeout": 0.01})
    )
    torch.save(state(), source / "pytorch_model.bin")
    refused(source, target, "longer than 60 seconds")


def test_small_files_that_would_become_large(source: Path, target: Path) -> None:
    file = source / "pytorch_model.bin"
    torch.save({"a": torch.zeros(1).expand(2**40)}, file)
    refused(source, target, "larger than what is stored")
    torch.save({"a": torch.zeros(10_000_000)}, source / "x.bin")
    with (
        zipfile.ZipFile(source / "x.bin") as old,
        zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for name in old.namelist():
            new.writestr(name, old.read(name))
    (source / "x.bin").unlink()
    assert file.stat().st_size < 100_000
    refused(source, target, "compressed")
    # A hundred windows on one matrix, each of which would be written in full.
    whole = torch.zeros(300_000)
    torch.save({str(i): whole[i:] for i in range(100)}, file)
    refused(source, target, "overlap")


def test_the_limit_of_memory_holds() -> None:
    code = "import torch; from bert.recipes.convert import _limit; _limit(1000); "
    code += "torch.empty(SIZE, dtype=torch.uint8)"
    for size, ends in ((2**20, 0), (2**31, 1)):
        process = subprocess.run(
            [sys.executable, "-c", code.replace("SIZE", str(size))], capture_output=True, text=True
        )
        assert process.returncode == ends
    assert "allocate memory" in process.stderr


def test_pickles_above_the_cap(source: Path, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save(state(), source / "pytorch_model.bin")
    monkeypatch.setattr(convert, "MOST_BYTES", 1000)
    refused(source, target, "1,000 are opened at most")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([torch.ones(2)], ["not a table"]),
        ({}, ["no weights"]),
        ({"step": 1}, ["no weights"]),
        ({3: torch.ones(2)}, ["not text"]),
        ({"a": torch.ones(2).to_sparse()}, ["a is not a plain matrix"]),
        ({"a": torch.ones(2, device="meta")}, ["a is not a plain matrix"]),
        ({"a\nb": torch.ones(2)}, ["name"]),
        ({"bert.x": torch.ones(2)}, ["lack"]),
    ],
)
@pytest.mark.usefixtures("here")
def test_pickles_that_are_no_model(
    source: Path, target: Path, content: Any, words: list[str]
) -> None:
    torch.save(content, source / "pytorch_model.bin")
    refused(source, target, *words)


@pytest.mark.parametrize("share", [0, 0.5])
def test_damaged_pickles(source: Path, target: Path, share: float) -> None:
    file = source / "pytorch_model.bin"
    torch.save(state(), file)
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * share)])
    refused(source, target, "pytorch_model.bin")


@pytest.mark.usefixtures("here")
def test_weights_that_are_not_numbers(source: Path, target: Path) -> None:
    weights = state()
    weights["bert.embeddings.LayerNorm.beta"][3] = float("nan")
    torch.save(weights, source / "pytorch_model.bin")
    refused(source, target, "NaN", "LayerNorm.beta")


def test_sources_that_cannot_be(source: Path, target: Path) -> None:
    refused(source, target, "no weights here")
    (source / "bert_model.ckpt.index").touch()
    refused(source, target, "TensorFlow", "google-bert/bert-base-uncased")
    torch.save({}, source / "a.pt")
    torch.save({}, source / "b.pt")
    refused(source, target, "several", "a.pt, b.pt")
    torch.save(state(), source / "pytorch_model.bin")
    (source / "config.json").rename(source / "bert_config.json")
    refused(source, target, "TensorFlow")
    (source / "bert_model.ckpt.index").unlink()
    refused(source, target, "config.json")
    refused(source / "no", target, "no such model directory")


@pytest.mark.usefixtures("here")
def test_a_model_of_the_hub(source: Path, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its files are links to others, as in the hub's cache."""
    repository = source.parent / "models--someone--bert"
    snapshot = repository / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    torch.save(state(), source / "pytorch_model.bin")
    source.rename(repository / "blobs")
    for file in (repository / "blobs").iterdir():
        (snapshot / file.name).symlink_to(f"../../blobs/{file.name}")
    asked = []
    monkeypatch.setattr(
        convert, "find_model", lambda name, pickles: asked.append((name, pickles)) or snapshot
    )
    convert_model("someone/bert", target)
    assert asked == [("someone/bert", True)]
    assert {path.name for path in target.iterdir()} == {"config.json", "model.safetensors"}
    assert not any(path.is_symlink() for path in target.iterdir())


@pytest.mark.usefixtures("here")
def test_safetensors_are_left_alone(source: Path, target: Path) -> None:
    torch.save(state(), source / "pytorch_model.bin")
    convert_model(source, target)
    refused(target, source.parent / "third", "nothing to convert", code=2)


@pytest.mark.usefixtures("here")
def test_destinations_in_use(source: Path, target: Path) -> None:
    torch.save(state(), source / "pytorch_model.bin")
    target.mkdir()
    (target / "mine.txt").write_text("mine")
    for place in (target, target / "mine.txt", source):
        with pytest.raises(UsageError, match="in use"):
            convert_model(source, place)
    assert [path.name for path in target.iterdir()] == ["mine.txt"]
    (target / "mine.txt").unlink()
    convert_model(source, target)
    assert (target / "model.safetensors").is_file()


def test_the_command(source: Path, target: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from bert.cli import main

    torch.save(state(), source / "pytorch_model.bin")
    for code in (0, 2):
        with pytest.raises(SystemExit) as end:
            main(["convert", str(source), str(target)])
        assert end.value.code == code
    lines = capsys.readouterr().err.splitlines()
    assert "Converted" in lines[-4]
    assert lines[-3] == "Error: The destination is in use."
