"""The documentation cannot lie: its commands, settings, links, names and figures are checked."""

from __future__ import annotations

import ast
import re
import shlex
import signal
import tomllib
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import pytest
import typer.main
from pydantic.fields import FieldInfo

import bert
from bert import cli, errors
from bert.config import Settings, parse_assignments
from bert.families.family import load_family
from bert.recipes.finetune import FinetuneSettings
from bert.recipes.prepare import PrepareSettings
from bert.recipes.pretrain import RATES, PretrainSettings

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "bert"
README, CHINESE = ROOT / "README.md", ROOT / "README.zh-CN.md"
PAGES = [
    README,
    CHINESE,
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]
SETTINGS: dict[str, type[Settings]] = {
    "docs/pretraining.md": PretrainSettings,
    "docs/finetuning.md": FinetuneSettings,
    "docs/corpus.md": PrepareSettings,
}
COMMANDS: dict[str, Any] = typer.main.get_command(cli.app).commands  # type: ignore[attr-defined]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def text_of(page: Path | str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(page: Path | str, *languages: str) -> list[str]:
    """The fenced blocks of a page in these languages."""
    return [body for language, body in FENCE.findall(text_of(page)) if language in languages]


def prose(page: Path | str) -> str:
    return FENCE.sub("", text_of(page))


def commands(page: Path | str) -> list[list[str]]:
    """The words of every command to be typed."""
    lines = "".join(blocks(page, "bash")).replace("\\\n", " ").splitlines()
    found = [words for line in lines if (words := shlex.split(line, comments=True))]
    two = ["bert", "tokenizer", "extend"]
    return [
        ["bert", "tokenizer extend", *words[3:]] if words[:3] == two else words for words in found
    ]


def tables(page: Path | str) -> Iterator[list[list[str]]]:
    """The tables of a page, each as its rows of cells, the header first."""
    for table in re.findall(r"(?:^\|.*\|\n)+", prose(page), re.MULTILINE):
        rows = [[cell.strip() for cell in row[1:-1].split("|")] for row in table.splitlines()]
        yield [rows[0], *rows[2:]]


def table(page: Path | str, first: str) -> list[list[str]]:
    """The rows below the header of the one table whose first column has this name."""
    (found,) = (rows[1:] for rows in tables(page) if rows[0][0] == first)
    return found


def bert_commands() -> list[Any]:
    return [
        pytest.param(words[1:], id=f"{name_of(page)}:{shlex.join(words)}")
        for page in PAGES
        for words in commands(page)
        if words[0] == "bert"
    ]


@pytest.mark.parametrize("words", bert_commands())
def test_commands_are_understood(words: list[str]) -> None:
    verb, rest = words[0], words[1:]
    assert verb in COMMANDS
    # Raises on an unknown option; empties the list it is given.
    given = COMMANDS[verb].make_context(verb, list(rest)).params
    values = parse_assignments([word for word in rest if re.match(r"\w+=", word)])
    kind = cli._settings_of(verb)
    if kind is None:
        assert not values
        return
    options = {
        name: str(value) if isinstance(value, Path) else value
        for name, value in given.items()
        if name in kind.model_fields and value is not None
    }
    kind.of({**options, **values})  # raises on an unknown name or an impossible value


def test_there_are_commands_to_check() -> None:
    shown = {words[1] for page in PAGES for words in commands(page) if words[0] == "bert"}
    assert shown >= set(COMMANDS) - {"demo"}


def test_verbs_in_prose_exist() -> None:
    for page in PAGES:
        for verb in re.findall(r"`bert ([a-z-]+)", prose(page)):
            assert verb in COMMANDS, f"{page}: bert {verb}"
        named = re.findall(r"`make ([a-z-]+)", prose(page))
        named += [words[1] for words in commands(page) if words[0] == "make"]
        targets = re.findall(r"^([a-z-]+):", text_of("Makefile"), re.MULTILINE)
        assert set(named) <= set(targets), page
        extras = tomllib.loads(text_of("pyproject.toml"))["project"]["optional-dependencies"]
        for names in re.findall(r"\.\[([\w,]+)\]", text_of(page)):
            assert set(names.split(",")) <= set(extras), page


def described(name: str, field: FieldInfo) -> tuple[str, str, str]:
    """A setting's name, type and default as the tables of the documentation write them."""
    kind = field.annotation
    if get_origin(kind) in (Union, types.UnionType):
        (kind,) = (part for part in get_args(kind) if part is not type(None))
    if get_origin(kind) is Literal:
        words = ", ".join(f"`{choice}`" for choice in get_args(kind))
    else:
        words = {
            str: "text",
            int: "whole number",
            float: "number",
            bool: "`true` or `false`",
            list[str]: "list of texts",
        }[kind]  # type: ignore[index]
    for limit in field.metadata:
        for bound, sign in (("gt", ">"), ("ge", "≥"), ("lt", "<"), ("le", "≤")):
            if (value := getattr(limit, bound, None)) is not None:
                words += f", {sign} {value}"
    value = field.get_default(call_default_factory=True)
    if field.is_required():
        default = "required"
    elif value is None:
        default = "none"
    else:
        default = f"`{str(value).lower() if isinstance(value, bool) else value}`"
    return f"`{name}`", words, default


@pytest.mark.parametrize("page", SETTINGS)
def test_settings_tables_equal_the_classes(page: str) -> None:
    rows = table(page, "setting")
    assert [tuple(row[:3]) for row in rows] == [
        described(name, field) for name, field in SETTINGS[page].model_fields.items()
    ]
    assert all(len(row) == 4 and row[3] for row in rows)


def test_sizes_table_equals_the_family() -> None:
    sizes = load_family("bert").sizes
    assert [(*row[:4], row[5]) for row in table("docs/pretraining.md", "size")] == [
        (
            f"`{name}`",
            str(config.num_hidden_layers),
            str(config.hidden_size),
            str(config.num_attention_heads),
            f"{RATES[name]:g}",
        )
        for name, config in sizes.items()
    ]


def anchors(page: Path) -> set[str]:
    """What the headings of a page are called in links."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in headings}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = target.partition("#")
        there = (page.parent / file).resolve() if file else page
        assert there.exists(), f"{target} is not there"
        assert not anchor or anchor in anchors(there), f"{target} is no heading"


def test_the_readmes_agree() -> None:
    def verbs(page: Path) -> list[str]:
        return [" ".join(words[: 1 if words[0] == "curl" else 2]) for words in commands(page)]

    def calls(page: Path) -> list[str]:
        tree = ast.parse("".join(blocks(page, "python")))
        called = (node.func for node in ast.walk(tree) if isinstance(node, ast.Call))
        return [ast.unparse(name) for name in called if not isinstance(name, ast.Call)]

    assert verbs(README) == verbs(CHINESE)
    assert calls(README) == calls(CHINESE)
    assert "(README.zh-CN.md)" in text_of(README)
    assert "(README.md)" in text_of(CHINESE)
    both = [re.findall(r"\((docs/[\w.-]+)", text_of(page)) for page in (README, CHINESE)]
    assert both[0] == both[1]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_python_names_exist(page: Path) -> None:
    for block in blocks(page, "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and node.module == "bert":
                assert {alias.name for alias in node.names} <= set(bert.__all__)
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "bert":
                assert node.attr in bert.__all__


@pytest.mark.parametrize("name", sorted(set(bert.__all__) - {"__version__"}))
def test_public_names_are_told(name: str) -> None:
    told = "".join(text_of(page) for page in PAGES)
    assert re.search(rf"\b{name}\b", told)


@pytest.mark.parametrize("page", [README, CHINESE], ids=name_of)
def test_the_tree_is_what_there_is(page: Path) -> None:
    (tree,) = (body for body in blocks(page, "text") if body.startswith("bert/\n"))
    lines = re.findall(r"^  (\S+) ", tree, re.MULTILINE)
    assert len(lines) == len(set(lines))
    assert {name.rstrip("/") for name in lines} == {
        path.name
        for path in PACKAGE.iterdir()
        if path.suffix == ".py" or (path / "__init__.py").is_file()
    }


def test_files_of_a_run_are_written_somewhere() -> None:
    source = "".join(path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py"))
    for page in (README, CHINESE, ROOT / "docs/run-folder.md"):
        trees = [body for body in blocks(page, "text") if re.match(r"runs/|checkpoints/", body)]
        assert trees
        for tree in trees:
            names = re.findall(r"^ +([\w.]+)/? ", tree, re.MULTILINE)
            assert len(names) >= 3
            for name in names:
                assert f'"{name}"' in source or f"/{name}" in source, name


def test_exit_codes() -> None:
    codes = {
        kind: kind(signal.SIGINT).exit_code if kind is errors.Interrupted else kind.exit_code
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, errors.BertError)
    }
    told = {(row[1].strip("`"), int(row[0])) for row in table("docs/errors.md", "code") if row[1]}
    assert told == {(kind.__name__, code) for kind, code in codes.items()} | {("Interrupted", 143)}


def error_examples() -> list[tuple[str, str, str]]:
    pattern = re.compile(r"\$ (bert .+)\n((?:.+\n)+?)\$ echo \$\?\n(\d+)\n")
    return [
        found for body in blocks("docs/errors.md", "console") for found in pattern.findall(body)
    ]


@pytest.mark.parametrize(("command", "said", "code"), error_examples())
def test_errors_are_as_shown(
    command: str,
    said: str,
    code: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("my-model").mkdir()
    Path("train.csv").write_text("text,label\nfine,good\nso so,bad\n", encoding="utf-8")
    Path("ragged.csv").write_text("text,label\nfine,good\nso, so,bad\n", encoding="utf-8")
    Path("latin.txt").write_bytes("The café is open.\n".encode("latin-1"))
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit) as ended:
            cli.main(shlex.split(command)[1:])
    finally:
        signal.signal(signal.SIGTERM, before)
    assert capsys.readouterr().err == said
    assert ended.value.code == int(code)


def test_every_error_example_is_run() -> None:
    shown = "".join(blocks("docs/errors.md", "console"))
    assert len(error_examples()) == shown.count("$ bert ") >= 4


SERVING = "docs/serving.md"
SERVER = PACKAGE / "server"


def test_the_limits_of_the_server_are_as_told() -> None:
    from bert.server.settings import ServerSettings

    options = {option for parameter in COMMANDS["serve"].params for option in parameter.opts}
    told = {row[0].split("`")[1]: row[1] for row in table(SERVING, "limit")}
    for option, usual in told.items():
        assert option in options
        value = ServerSettings.model_fields[option[2:].replace("-", "_")].default
        if value is not None:
            assert usual == f"{value:,}".removesuffix(".0"), option
    assert set(re.findall(r"`(--[a-z-]+)", prose(SERVING))) <= options
    for name in ServerSettings.model_fields:
        if name != "any_address":
            option = "--allowed-host" if name == "allowed_hosts" else f"--{name.replace('_', '-')}"
            assert option in options
            assert f"`{option}" in prose(SERVING), option


def test_variables_of_the_environment_are_as_told() -> None:
    known = {parameter.envvar for parameter in COMMANDS["serve"].params} - {None}
    for option in COMMANDS["serve"].params:
        if option.envvar:
            assert option.envvar == "BERT_" + option.opts[0][2:].replace("-", "_").upper()
    for page in (SERVING, *(ROOT / "docs/deploy").iterdir()):
        assert set(re.findall(r"BERT_[A-Z_]+", text_of(page))) <= known, page


def test_the_refusals_of_the_server_are_as_told() -> None:
    sources = [path.read_text(encoding="utf-8") for path in SERVER.glob("*.py")]
    calls = [
        [ast.literal_eval(arg) if isinstance(arg, ast.Constant) else None for arg in node.args[:2]]
        for source in sources
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "Refusal"
    ]
    told = {(int(row[0]), row[1].strip("`")) for row in table(SERVING, "status")}
    assert {(status, kind) for status, kind in calls if kind} <= told
    assert {status for status, _ in calls} == {status for status, _ in told}
    assert all(f'"{kind}"' in "".join(sources) for _, kind in told)


def test_the_routes_and_figures_of_the_server_are_as_told() -> None:
    pytest.importorskip("fastapi")
    from bert.server.metrics import Metrics

    source = (SERVER / "app.py").read_text(encoding="utf-8")
    served = {f"{method.upper()} {path}" for method, path in re.findall(
        r'@router\.(get|post)\(\s*"(/[\w./-]*)"', source
    )}  # fmt: skip
    served |= {f"GET {path}" for path in re.findall(r'\("(/[\w.]*)", "page', source)}
    served.add("GET /openapi.json")
    told = [cell for row in table(SERVING, "route") for cell in (row[0], row[2])]
    assert set(re.findall(r"`((?:GET|POST) /[\w./-]*)`", " ".join(told))) == served
    figures = {name for row in table(SERVING, "figure") for name in re.findall(r"`(\w+)`", row[0])}
    made = {line.split()[2] for line in Metrics().text().decode().splitlines() if "# TYPE" in line}
    assert figures == {name for name in made if not name.endswith("_created")}


def test_layers_are_as_tested() -> None:
    from test_architecture import LAYERS

    rows = table("CONTRIBUTING.md", "layer")
    told = {part: int(row[0]) for row in rows for part in re.findall(r"`(\w+)`", row[1])}
    assert told == LAYERS


def test_the_changelog_has_a_place_for_what_comes() -> None:
    assert re.search(r"^## \[Unreleased\]$", text_of("CHANGELOG.md"), re.MULTILINE)
    version = re.escape(bert.__version__)
    released = re.search(rf"^## \[{version}\]", text_of("CHANGELOG.md"), re.MULTILINE)
    assert released or bert.__version__ == "0.1.0"
