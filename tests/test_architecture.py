"""The shape of the package: what may import what, names of files, light imports."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import bert

ROOT = Path(bert.__file__).parent
# A module imports lower layers, or its own folder. Every module may raise errors.
LAYERS = {
    "errors": -1,
    "log": 0, "config": 0, "cache": 0, "untrusted": 0, "cluster": 0, "heap": 0,
    "text": 1, "metrics": 1, "distributed": 1,
    "data": 2, "model": 2,
    "families": 3, "inference": 3,
    "hub": 3, "pooling": 2, "weights": 2, "checkpoint": 4, "training": 4, "run": 4,
    "objectives": 5, "tasks": 5,
    "predictor": 6, "baselines": 6,
    "evaluation": 7, "bulk": 7, "report": 7, "server": 7, "compress": 7,
    "recipes": 8,
    "cli": 9, "__init__": 9,
    "__main__": 10,
}  # fmt: skip
MODULES = sorted(ROOT.rglob("*.py"))
NAMES = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in MODULES]


def part_of(module: str) -> str:
    """The folder, or the module beside the folders, in which a module of bert lies."""
    return module.split(".")[0]


def imports(tree: ast.AST, functions: bool) -> Iterator[ast.Import | ast.ImportFrom]:
    """Import statements, without those for type checkers; inside functions too if asked."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            yield from (item for other in node.orelse for item in imports(other, functions))
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not functions:
            continue
        elif isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        else:
            yield from imports(node, functions)


def imported(path: Path, functions: bool = True) -> set[str]:
    """The modules of bert that a file imports, without the leading ``bert``."""
    found = set()
    for node in imports(ast.parse(path.read_text(encoding="utf-8")), functions):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            assert node.level == 0, f"{path}: a relative import"
            module = node.module or ""
            names = [module]
            if module == "bert":
                names = [f"bert.{alias.name}" for alias in node.names]
        for name in names:
            first, _, rest = name.partition(".")
            # The version is a fact, whoever asks.
            if first == "bert" and rest != "__version__":
                found.add(rest or "__init__")
    return found


def test_every_part_has_a_layer() -> None:
    assert {part_of(name) for name in NAMES} == set(LAYERS)


@pytest.mark.parametrize("name", NAMES)
def test_imports_point_down(name: str) -> None:
    part = part_of(name)
    path = ROOT / (name.replace(".", "/") + ".py")
    # The command line imports inside functions so as to start fast; it is the top anyway.
    for other in imported(path, functions=name != "cli"):
        target = part_of(other)
        assert target in LAYERS, f"{name} imports {other}"
        assert target == part or LAYERS[target] < LAYERS[part], f"{name} imports {other}"


def test_the_rule_sees_what_it_should(tmp_path: Path) -> None:
    path = tmp_path / "x.py"
    path.write_text(
        "from typing import TYPE_CHECKING\n"
        "from bert import log, __version__\n"
        "import bert.model.layer as layer\n"
        "if TYPE_CHECKING:\n    from bert.cli import main\n"
        "def f():\n    from bert.recipes.demo import g\n"
    )
    assert imported(path) == {"log", "model.layer", "recipes.demo"}
    assert imported(path, functions=False) == {"log", "model.layer"}


def test_no_drawer_for_everything() -> None:
    for path in [*ROOT.rglob("*"), *(Path(__file__).parent).rglob("*.py")]:
        assert path.stem not in ("utils", "util", "common", "helpers", "helper", "misc"), path


def test_recipes_alone_are_verbs_of_the_command_line() -> None:
    assert "training" not in {part_of(name) for name in imported(ROOT / "predictor.py")}
    for name in ("tasks", "objectives", "recipes"):
        for path in (ROOT / "training").glob("*.py"):
            assert not any(part_of(other) == name for other in imported(path)), path


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("families.")])
def test_a_family_is_called_as_its_file(name: str) -> None:
    from bert.families.family import Family, family_names, load_family

    stem = name.removeprefix("families.")
    if stem in ("__init__", "family"):
        assert stem not in family_names()
        return
    family = importlib.import_module(f"bert.{name}").FAMILY
    assert isinstance(family, Family)
    assert family.name == stem
    assert stem in family_names()
    assert load_family(stem) is family


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("tasks.")])
def test_a_task_is_registered_by_its_file(name: str) -> None:
    from bert.model.heads import HEADS
    from bert.tasks.task import Task, load_task, task_names

    stem = name.removeprefix("tasks.")
    if stem in ("__init__", "task"):
        assert stem not in task_names()
        return
    task = importlib.import_module(f"bert.{name}").TASK
    assert issubclass(task, Task)
    assert task.__name__.lower() == stem.replace("_", "")
    assert task.kind in {*HEADS, "encoder"}
    assert stem in task_names()
    assert load_task(stem) is task


def modules_after(code: str) -> set[str]:
    """The modules in a fresh interpreter after this code."""
    result = subprocess.run(
        [sys.executable, "-c", f"import sys\n{code}\nprint(*sys.modules, file=sys.stderr)"],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT.parent,
    )
    return set(result.stderr.split())


def test_import_bert_is_light() -> None:
    modules = modules_after("import bert; dir(bert); bert.__version__")
    assert "bert" in modules
    assert not modules & {"torch", "numpy", "tokenizers", "pydantic", "rich", "typer"}


def test_help_is_light() -> None:
    modules = modules_after(
        "from bert.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit as end:\n    assert not end.code"
    )
    assert "bert.cli" in modules
    assert not modules & {"torch", "numpy", "tokenizers", "matplotlib", "sklearn"}


def test_a_corpus_is_prepared_without_torch() -> None:
    """It alone would double the memory of ``bert prepare``."""
    modules = modules_after("import bert.recipes.prepare")
    assert "bert.data.workers" in modules
    assert not modules & {"torch", "ray"}


def test_the_command_is_there() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "bert", "--help"], capture_output=True, text=True, cwd=ROOT.parent
    )
    assert result.returncode == 0
    assert "pretrain" in result.stdout
    assert "finetune" in result.stdout
    assert not result.stderr


def test_public_names() -> None:
    assert bert.__all__ == [
        "BERT",
        "BertConfig",
        "BertEmbeddings",
        "BertError",
        "BertForMaskedLM",
        "BertForMultipleChoice",
        "BertForNextSentencePrediction",
        "BertForPreTraining",
        "BertForQuestionAnswering",
        "BertForSequenceClassification",
        "BertForTokenClassification",
        "DataError",
        "LayerNorm",
        "ModelError",
        "MultiHeadAttention",
        "PositionwiseFeedForward",
        "Predictor",
        "TransformerBlock",
        "UsageError",
        "__version__",
        "load",
    ]
    assert bert.__all__ == sorted(bert.__all__)
    for name in bert.__all__:
        value = getattr(bert, name)
        if name not in ("__version__", "load"):
            assert value.__name__ == name
    assert dir(bert) == bert.__all__
    with pytest.raises(AttributeError, match="Bart"):
        bert.Bart  # noqa: B018


def test_type_checkers_see_the_public_names() -> None:
    tree = ast.parse((ROOT / "__init__.py").read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    homes = {
        alias.asname: node.module
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert homes == bert._HOMES
