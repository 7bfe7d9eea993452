"""Models of others, as people bring them: what is done with them, and what is refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from bert.checkpoint import Checkpoint, read_model, write_model
from bert.errors import ModelError
from bert.families.family import load_family
from bert.pooling import Pooling, read_pooling
from bert.predictor import Predictor
from bert.recipes.convert import convert_model
from bert.recipes.extend import ExtendSettings, extend_model
from bert.recipes.predict import text_columns
from bert.text.tokenizer import Tokenizer

transformers = pytest.importorskip("transformers")


def classifier(directory: Path, tokenizer: Tokenizer, labels: list[str]) -> Path:
    torch.manual_seed(1)
    family = load_family("bert")
    config = family.size("tiny", vocab_size=tokenizer.vocab_size)
    model = family.build("sequence", config, len(labels))
    write_model(directory, Checkpoint(model, "sequence", family, labels, tokenizer))
    (directory / "bert.json").unlink()
    return directory


def change(directory: Path, **values: Any) -> None:
    path = directory / "config.json"
    stored = {**json.loads(path.read_text(encoding="utf-8")), **values}
    path.write_text(json.dumps(stored), encoding="utf-8")


def test_labels_of_the_same_name_are_refused(tokenizer: Tokenizer, tmp_path: Path) -> None:
    directory = classifier(tmp_path / "m", tokenizer, ["a", "b", "c"])
    change(directory, id2label={"0": "a", "1": "b", "2": "a"})
    with pytest.raises(ModelError) as caught:
        Predictor(directory)
    assert caught.value.exit_code == 4
    assert caught.value.fix


@pytest.mark.parametrize(
    ("labels", "values", "task", "answer"),
    [
        (["score"], {}, "regression", {"score"}),
        (
            ["a", "b"],
            {"problem_type": "multi_label_classification"},
            "multilabel",
            {"labels", "probabilities"},
        ),
        (["a", "b"], {}, "classification", {"label", "probabilities"}),
    ],
)
def test_what_a_head_means_is_read_from_the_configuration(
    labels: list[str],
    values: dict[str, Any],
    task: str,
    answer: set[str],
    tokenizer: Tokenizer,
    tmp_path: Path,
) -> None:
    directory = classifier(tmp_path / "m", tokenizer, labels)
    change(directory, **values)
    predictor = Predictor(directory)
    assert predictor.task.name == task
    assert predictor("the bird").keys() == answer | {"windows", "truncated"}


def test_num_labels_without_names(tokenizer: Tokenizer, tmp_path: Path) -> None:
    directory = classifier(tmp_path / "m", tokenizer, ["a", "b", "c"])
    change(directory, num_labels=3, id2label=None, label2id=None)
    assert Predictor(directory).labels == ["LABEL_0", "LABEL_1", "LABEL_2"]


def test_a_model_that_does_not_say_what_it_takes_takes_pairs(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    predictor = Predictor(classifier(tmp_path / "m", tokenizer, ["a", "b"]))
    rows = tmp_path / "pairs.csv"
    rows.write_text("text_a,text_b\nthe bird,sings\n", encoding="utf-8")
    assert text_columns(predictor, rows, ["text_a", "text_b"]) == ("text_a", "text_b")
    answer = predictor([("the bird", "sings")])[0]
    their = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "m").eval()
    words = transformers.AutoTokenizer.from_pretrained(tmp_path / "m")
    with torch.no_grad():
        chances = their(**words("the bird", "sings", return_tensors="pt")).logits.softmax(-1)[0]
    told = [answer["probabilities"][name] for name in ("a", "b")]
    assert told == pytest.approx(chances.tolist(), abs=1e-5)


@pytest.mark.parametrize("first", ["lm_head.decoder.weight", "roberta"])
def test_tied_weights_are_kept_under_the_name_that_is_read(first: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = transformers.RobertaConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16, max_position_embeddings=20,
    )  # fmt: skip
    model = transformers.RobertaForMaskedLM(config).eval()
    config.architectures = ["RobertaForMaskedLM"]
    config.save_pretrained(tmp_path / "old")
    state = model.state_dict()
    order = sorted(state, key=lambda name: not name.startswith(first))
    torch.save({name: state[name] for name in order}, tmp_path / "old" / "pytorch_model.bin")
    convert_model(tmp_path / "old", tmp_path / "new")
    ids = torch.randint(3, 50, (2, 9))
    mine: Any = read_model(tmp_path / "new", tokenizer=False).model
    with torch.no_grad():
        torch.testing.assert_close(mine(ids), model(ids).logits, atol=1e-5, rtol=1e-5)


def test_extending_keeps_what_lies_beside_the_model(
    tokenizer: Tokenizer, corpus: Path, tmp_path: Path
) -> None:
    directory = tmp_path / "m"
    family = load_family("bert")
    model = family.build("encoder", family.size("tiny", vocab_size=tokenizer.vocab_size))
    pooling = Pooling("cls", normalize=False, max_length=100)
    kept = Checkpoint(model, "encoder", family, [], tokenizer, pooling=pooling)
    write_model(directory, kept)
    (directory / "modeling_x.py").write_text("1", encoding="utf-8")
    text = tmp_path / "domain.txt"
    text.write_text("birdies riverine treetone. " * 20, encoding="utf-8")
    extend_model(str(directory), [text], ExtendSettings(add=4), tmp_path / "out")
    assert read_pooling(tmp_path / "out") == pooling
    assert not (tmp_path / "out" / "modeling_x.py").exists()
    assert read_model(tmp_path / "out").tokenizer is not None


def test_byte_level_tokens_are_shown_as_text(tmp_path: Path) -> None:
    from tokenizers import ByteLevelBPETokenizer

    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator(
        ["这部电影很好看。 the film is warm"] * 30, 400,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
    )  # fmt: skip
    trained.save_model(str(tmp_path))
    tokenizer = Tokenizer.load(tmp_path, load_family("roberta").tokenizer)
    (ids,) = tokenizer.pieces(["这部电影很好看。 the film"])
    assert "".join(tokenizer.token(i) for i in ids).strip() == "这部电影很好看。 the film"


def test_ctrl_c_is_told(tokenizer: Tokenizer, tmp_path: Path) -> None:
    directory = classifier(tmp_path / "m", tokenizer, ["a", "b"])
    (directory / "config.json").unlink()
    os.mkfifo(tmp_path / "rows.csv")  # reading it waits for ever
    code = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    process = subprocess.Popen(
        [sys.executable, "-c", code + "from bert.cli import main; main()", "check",
         str(tmp_path / "rows.csv")],
        stderr=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    time.sleep(1.5)
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=30)[1]
    assert process.returncode == 130
    assert said.strip() == "Error: Interrupted by Ctrl-C."
