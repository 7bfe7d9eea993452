"""bert compress: what is written is ordinary, what has lost too much is not written."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from bert.checkpoint import read_model, write_model
from bert.cli import main
from bert.compress import onnx as export
from bert.errors import BertError, DataError, ModelError, UsageError
from bert.inference.int8 import encoder_of
from bert.predictor import Predictor
from bert.recipes.compress import CompressSettings, compress
from bert.recipes.finetune import FinetuneSettings, finetune


@pytest.fixture(scope="module")
def run(tiny_model: Path, topic_rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    settings = FinetuneSettings.of(
        {
            "train": str(topic_rows), "model": str(tiny_model), "precision": "fp32",
            "held_out": 0.4, "epochs": 6, "batch_size": 8, "learning_rate": 2e-3,
        }
    )  # fmt: skip
    return finetune(settings, tmp_path_factory.mktemp("runs") / "run")


def of(run: Path, **values: Any) -> CompressSettings:
    return CompressSettings.of({"run": str(run), **values})


def facts_of(model: Path) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads((model / "bert.json").read_text("utf-8"))
    return facts


def texts_of(rows: Path, count: int = 40) -> list[str]:
    lines = rows.read_text("utf-8").splitlines()[1 : count + 1]
    return [line.rpartition(",")[0] for line in lines]


def command(*words: str | Path) -> int:
    with pytest.raises(SystemExit) as stop:
        main(["compress", *(str(word) for word in words)])
    return int(stop.value.code or 0)


def test_idle_neurons_are_cut_without_loss(run: Path, topic_rows: Path, tmp_path: Path) -> None:
    checkpoint = read_model(run / "model")
    with torch.no_grad():
        for layer in encoder_of(checkpoint.model).layers:
            layer.feed_forward.output.weight[:, ::2] = 0
    write_model(tmp_path / "idle", checkpoint)
    out = tmp_path / "half"
    assert command(tmp_path / "idle", "--prune", "ffn=0.5", "--data", topic_rows, "--out", out) == 0
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(out)
    assert theirs.config.intermediate_size == 32
    before, after = Predictor(tmp_path / "idle"), Predictor(out)
    for one, other in zip(before(texts_of(topic_rows)), after(texts_of(topic_rows)), strict=True):
        assert one["label"] == other["label"]
    figures = facts_of(out)["compressed"]["figures"]
    assert figures["original"]["score"] == figures["pruning"]["score"]
    assert figures["pruning"]["bytes"] < figures["original"]["bytes"]
    assert figures["pruning"]["rows"] == 300
    assert facts_of(out)["compressed"]["ffn"] == 0.5
    # The answers' temperature is that of the new model, told by the rows.
    assert facts_of(out)["calibration"]["temperature"] > 0


def test_a_student_is_trained_beside_its_directory(
    run: Path, topic_rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "student"
    words = [run, "--distil", "layers=1,ffn=0.5", "epochs=4", "--out", out]
    assert command(*words, "--max-drop", "30") == 0
    shown = capsys.readouterr().out
    assert "accuracy" in shown
    assert "distillation" in shown
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(out)
    assert (theirs.config.num_hidden_layers, theirs.config.intermediate_size) == (1, 32)
    trained = tmp_path / "student-training" / "run"
    lines = (trained / "metrics.jsonl").read_text("utf-8")
    assert "soft_loss" in lines
    assert "cosine_loss" in lines
    facts = facts_of(out)
    assert facts["base_model"] == str(run)
    assert facts["compressed"]["run"] == str(run)
    settings = (trained / "config.yaml").read_text("utf-8")
    assert f"teacher: {run / 'model'}" in settings
    # Refused before, the same student is judged again without being trained again.
    before = (trained / "metrics.jsonl").stat().st_mtime_ns
    assert command(*words, "--max-drop", "30", "--overwrite") == 0
    assert (trained / "metrics.jsonl").stat().st_mtime_ns == before
    with pytest.raises(UsageError, match="Another student"):
        compress(of(run, distil=True, layers=1, epochs=1), out, overwrite=True)
    # Of what was compressed the rows are known too.
    again = tmp_path / "again"
    assert command(out, "--prune", "ffn=0.25", "--out", again, "--max-drop", "50") == 0
    assert facts_of(again)["compressed"]["run"] == str(run)


def test_a_student_of_other_rows_is_not_taken(run: Path, topic_rows: Path, tmp_path: Path) -> None:
    rows, out = tmp_path / "rows.csv", tmp_path / "student"
    shutil.copy(topic_rows, rows)
    told = of(
        run, distil=True, layers=1, epochs=1, train=str(rows), data=str(topic_rows), max_drop=100
    )
    compress(told, out)
    lines = rows.read_text("utf-8").splitlines()
    rows.write_text("\n".join(lines[:-5]) + "\n", encoding="utf-8")
    with pytest.raises(UsageError, match="other rows"):
        compress(told, out, overwrite=True)


def test_rows_to_judge_by_may_have_other_columns(
    run: Path, topic_rows: Path, tmp_path: Path
) -> None:
    rows = tmp_path / "rows.csv"
    lines = topic_rows.read_text("utf-8").splitlines()
    rows.write_text("\n".join(["review,stars", *lines[1:]]) + "\n", encoding="utf-8")
    named = {"data": str(rows), "text": ["review"], "label": "stars"}
    compress(of(run, to="int8", max_drop=100, **named), tmp_path / "int8")
    assert facts_of(tmp_path / "int8")["compressed"]
    with pytest.raises(UsageError, match="int8 is not cut"):
        compress(of(tmp_path / "int8", prune=True, layers=1, **named), tmp_path / "cut")


def test_what_has_lost_too_much_is_not_written(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "folder" / "small"
    # Almost nothing of the feed-forward is left, and half of the layers.
    code = command(run, "--prune", "layers=1", "ffn=0.9", "--out", out, "--max-drop", "0")
    assert code == ModelError.exit_code
    told = capsys.readouterr().err
    assert "nothing is written" in told
    assert f"where: {run}" in told
    assert "--distil" in told
    assert list((tmp_path / "folder").iterdir()) == []


def test_a_model_that_is_there_stays_where_its_successor_is_refused(
    run: Path, tmp_path: Path
) -> None:
    out = compress(of(run, prune=True, ffn=0.2, max_drop=100), tmp_path / "small")
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    with pytest.raises(ModelError, match="points of accuracy"):
        compress(of(run, prune=True, layers=1, ffn=0.9, max_drop=0), out, overwrite=True)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


@pytest.mark.parametrize(
    ("values", "error", "what"),
    [
        ({}, UsageError, "How to compress"),
        ({"distil": True}, UsageError, "How small"),
        ({"prune": True, "heads": 0.25}, UsageError, "heads cannot be removed"),
        ({"layers": 1}, UsageError, "go with"),
        ({"distil": True, "prune": True, "layers": 1}, UsageError, "two steps"),
        ({"to": "int8", "onnx": True}, UsageError, "fp32, not int8"),
        ({"prune": True, "layers": 3}, UsageError, "2 layers"),
        ({"onnx": True, "train": "rows.csv"}, UsageError, "With --train"),
        ({"onnx": True, "data": "none.csv"}, DataError, "none.csv"),
    ],
)
def test_what_cannot_be(
    values: dict[str, Any], error: type[BertError], what: str, run: Path, tmp_path: Path
) -> None:
    with pytest.raises(error) as found:
        compress(of(run, **values), tmp_path / "out")
    assert what in str(found.value)
    assert found.value.fix
    assert not (tmp_path / "out").exists()


def test_rows_must_be_known(run: Path, topic_rows: Path, tmp_path: Path) -> None:
    alone = tmp_path / "alone"
    write_model(alone, read_model(run / "model"))
    with pytest.raises(DataError, match="no rows to judge"):
        compress(of(alone, prune=True, ffn=0.5), tmp_path / "out")
    with pytest.raises(DataError, match="no rows for the student"):
        compress(of(alone, distil=True, layers=1, data=str(topic_rows)), tmp_path / "out")
    facts = {**facts_of(alone), "data": "others"}
    changed = tmp_path / "changed"
    (changed / "model").mkdir(parents=True)
    for path in alone.iterdir():
        (changed / "model" / path.name).write_bytes(path.read_bytes())
    (changed / "model" / "bert.json").write_text(json.dumps(facts), encoding="utf-8")
    (changed / "config.yaml").write_bytes((run / "config.yaml").read_bytes())
    with pytest.raises(DataError, match="rows have changed"):
        compress(of(changed, prune=True, ffn=0.5), tmp_path / "out")
    words = tmp_path / "words"
    write_model(words, read_model(run / "model", kind="masked_lm"))
    facts = {**facts_of(alone), "task": "fill_mask"}
    (words / "bert.json").write_text(json.dumps(facts), encoding="utf-8")
    with pytest.raises(UsageError, match="cannot be judged"):
        compress(of(words, prune=True, ffn=0.5), tmp_path / "out")


def test_a_folder_with_something_else_in_it_is_left_alone(run: Path, tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("mine", encoding="utf-8")
    for out, overwrite in ((tmp_path, False), (tmp_path, True), (tmp_path / "note.txt", True)):
        with pytest.raises(UsageError):
            compress(of(run, prune=True, ffn=0.2), out, overwrite=overwrite)
    assert (tmp_path / "note.txt").read_text("utf-8") == "mine"


# What runs elsewhere: onnxruntime, numpy and tokenizers, and none of ours.
ELSEWHERE = """
import json, sys
for name in ("bert", "torch", "transformers"):
    sys.modules[name] = None
import numpy as np, onnxruntime, tokenizers
folder, texts = sys.argv[1], json.loads(sys.stdin.read())
tokenizer = tokenizers.Tokenizer.from_file(folder + "/tokenizer.json")
tokenizer.enable_padding()
read = tokenizer.encode_batch(texts)
given = {
    "input_ids": np.array([item.ids for item in read]),
    "attention_mask": np.array([item.attention_mask for item in read]),
    "token_type_ids": np.array([item.type_ids for item in read]),
}
session = onnxruntime.InferenceSession(folder + "/model.onnx")
assert [item.name for item in session.get_inputs()] == list(given)
print(json.dumps(session.run(None, given)[0].tolist()))
"""


def test_onnx_runs_without_us(run: Path, topic_rows: Path, tmp_path: Path) -> None:
    out = tmp_path / "onnx"
    assert command(run, "--onnx", "--out", out) == 0
    figures = facts_of(out)["compressed"]["figures"]
    assert figures["ONNX"]["score"] == figures["original"]["score"]
    texts = texts_of(topic_rows, 8)
    texts[3] = "we saw us"  # shorter ones are padded
    done = subprocess.run(
        [sys.executable, "-c", ELSEWHERE, str(out)],
        input=json.dumps(texts), capture_output=True, text=True, check=True, cwd=tmp_path,
    )  # fmt: skip
    logits = np.array(json.loads(done.stdout))
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(out).eval()
    read = transformers.AutoTokenizer.from_pretrained(out)(texts, padding=True, return_tensors="pt")
    with torch.inference_mode():
        assert np.abs(logits - theirs(**read).logits.numpy()).max() < 1e-4
    assert Predictor(out)(texts[0])["label"] in ("animal", "weather")


class Exported:
    """In place of what the exporter gives: a file that says something else."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def save(self, path: str, **_: Any) -> None:
        """Write the identity of the first input, as logits."""
        import onnx

        kind = onnx.TensorProto.INT64
        given = [onnx.helper.make_tensor_value_info(n, kind, ["b", "s"]) for n in export.INPUTS]
        told = onnx.helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["b", 2])
        two = onnx.helper.make_tensor("two", kind, [2], [0, 2])
        nodes = [
            onnx.helper.make_node("Slice", ["input_ids", "from", "to", "axis"], ["cut"]),
            onnx.helper.make_node("Cast", ["cut"], ["logits"], to=onnx.TensorProto.FLOAT),
        ]
        numbers = [onnx.helper.make_tensor(n, kind, [1], [v]) for n, v in (("from", 0), ("to", 2))]
        numbers += [onnx.helper.make_tensor("axis", kind, [1], [1]), two]
        graph = onnx.helper.make_graph(nodes, "other", given, [told], numbers)
        opset = onnx.helper.make_opsetid("", export.OPSET)
        onnx.save(onnx.helper.make_model(graph, opset_imports=[opset], ir_version=10), path)


@pytest.mark.parametrize("what", ["differs from the model", "cannot be exported"])
def test_an_onnx_file_that_says_something_else_is_not_written(
    what: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("no such operator\nand a long story")

    monkeypatch.setattr(torch.onnx, "export", Exported if "differs" in what else broken)
    monkeypatch.setattr(export, "BATCHES", 4)
    with pytest.raises(ModelError, match=what) as found:
        compress(of(run, onnx=True), tmp_path / "other")
    assert "story" not in str(found.value)
    assert list(tmp_path.iterdir()) == []
