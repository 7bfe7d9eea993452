"""The files of sentence-transformers: read, written, and refused where they mean something else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bert.errors import ModelError
from bert.pooling import FILES, Pooling, read_pooling, write_pooling


def write(directory: Path, name: str, value: Any) -> None:
    (directory / name).parent.mkdir(exist_ok=True)
    (directory / name).write_text(json.dumps(value), encoding="utf-8")


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    write_pooling(tmp_path, Pooling("cls", True, 128), 32)
    return tmp_path


@pytest.mark.parametrize("mode", ["mean", "cls", "max"])
@pytest.mark.parametrize("normalize", [True, False])
def test_what_is_written_is_read(tmp_path: Path, mode: str, normalize: bool) -> None:
    write_pooling(tmp_path, Pooling(mode, normalize, 99), 32)
    assert read_pooling(tmp_path) == Pooling(mode, normalize, 99)
    assert all((tmp_path / name).is_file() for name in FILES)


def test_a_plain_directory_says_nothing(tmp_path: Path) -> None:
    assert read_pooling(tmp_path) is None


def test_the_words_of_newer_versions(directory: Path) -> None:
    write(directory, "1_Pooling/config.json", {"embedding_dimension": 32, "pooling_mode": "max"})
    write(directory, "sentence_bert_config.json", {"transformer_task": "feature-extraction"})
    write(directory, "tokenizer_config.json", {"model_max_length": 77})
    assert read_pooling(directory) == Pooling("max", True, 77)
    write(directory, "tokenizer_config.json", {"model_max_length": 1e30})
    assert read_pooling(directory) == Pooling("max", True, None)


def module(kind: str, path: str, idx: Any = 0) -> dict[str, Any]:
    return {"idx": idx, "name": "x", "path": path, "type": f"sentence_transformers.models.{kind}"}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("modules.json", {}),
        ("modules.json", "steps"),
        ("modules.json", [1, 2]),
        ("modules.json", [module("Transformer", "", "first")]),
        ("modules.json", [module("Transformer", "")]),
        ("modules.json", [module("Transformer", ""), module("Dense", "1_Dense", 1)]),
        ("modules.json", [module("Transformer", ""), module("Pooling", "../1_Pooling", 1)]),
        ("modules.json", [module("Transformer", ""), module("Pooling", "/etc", 1)]),
        ("modules.json", [module("Transformer", "0_Transformer"), module("Pooling", "1", 1)]),
        ("1_Pooling/config.json", {"pooling_mode": "lasttoken"}),
        ("1_Pooling/config.json", {"pooling_mode": ["mean", "max"]}),
        ("1_Pooling/config.json", {"pooling_mode_mean_tokens": 1, "pooling_mode_lasttoken": True}),
        ("1_Pooling/config.json", []),
        ("sentence_bert_config.json", {"max_seq_length": "long"}),
        ("sentence_bert_config.json", {"max_seq_length": 0}),
        ("sentence_bert_config.json", {"do_lower_case": True}),
    ],
)
def test_what_means_something_else_is_refused(directory: Path, name: str, value: Any) -> None:
    write(directory, name, value)
    with pytest.raises(ModelError) as error:
        read_pooling(directory)
    assert error.value.fix


def test_damaged_files_are_refused(directory: Path) -> None:
    for name in FILES:
        content = (directory / name).read_text("utf-8")
        (directory / name).write_text(content[: len(content) // 2], encoding="utf-8")
        with pytest.raises(ModelError, match=name.rpartition("/")[2]):
            read_pooling(directory)
        (directory / name).write_text(content, encoding="utf-8")
    (directory / "1_Pooling/config.json").unlink()
    with pytest.raises(ModelError, match="cannot be read"):
        read_pooling(directory)


def test_files_in_the_cache_of_the_hub_are_links(tmp_path: Path) -> None:
    repository = tmp_path / "models--someone--model"
    snapshot, blobs = repository / "snapshots" / ("a" * 40), repository / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    write_pooling(snapshot, Pooling("max", False, 64), 32)
    for number, name in enumerate(FILES):
        (snapshot / name).replace(blobs / str(number))
        (snapshot / name).symlink_to(blobs / str(number))
    assert read_pooling(snapshot) == Pooling("max", False, 64)
    outside = tmp_path / "secret.json"
    (blobs / "1").replace(outside)
    (snapshot / FILES[1]).unlink()
    (snapshot / FILES[1]).symlink_to(outside)
    with pytest.raises(ModelError, match="leads out"):
        read_pooling(snapshot)


def test_a_prompt_is_told(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(
        directory,
        "config_sentence_transformers.json",
        {"prompts": {"query": "query: "}, "default_prompt_name": "query"},
    )
    assert read_pooling(directory) is not None
    assert "prompt 'query'" in capsys.readouterr().err
