"""1,000 mutations of the newest checkpoint: each is detected, and the one before is used."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from bert.training.state import (
    TrainingState,
    latest_checkpoint,
    load_checkpoint,
    save_checkpoint,
)

FILES = ("manifest.json", "state.json", "tensors")
OLD, NEW = 7, 12


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 2))


def trained(steps: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(steps)
    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(steps):
        model(torch.randn(5, 4)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return model, optimizer


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two checkpoints of different steps."""
    folder = tmp_path_factory.mktemp("run") / "checkpoints"
    for step in (OLD, NEW):
        state = TrainingState(step, 1.5, 1, 0, {"mlm_loss": 0.1 + 0.2, "steps": 2.0}, 3.25)
        save_checkpoint(folder, *trained(step), state)
    return folder


def flip(newest: Path, draw: random.Random) -> str:
    name = draw.choice(FILES)
    content = bytearray((newest / name).read_bytes())
    place, bit = draw.randrange(len(content)), draw.randrange(8)
    content[place] ^= 1 << bit
    (newest / name).write_bytes(content)
    return f"bit {bit} of byte {place} of {name}"


def truncate(newest: Path, draw: random.Random) -> str:
    name = draw.choice(FILES)
    content = (newest / name).read_bytes()
    size = draw.choice((0, 1, len(content) - 1, draw.randrange(len(content))))
    (newest / name).write_bytes(content[:size])
    return f"{name} cut to {size}"


def append(newest: Path, draw: random.Random) -> str:
    name = draw.choice(FILES)
    more = draw.choice((b"\n", b" ", b"\0", b"{}", draw.randbytes(draw.randint(1, 40))))
    with (newest / name).open("ab") as file:
        file.write(more)
    return f"{more!r} after {name}"


def overwrite(newest: Path, draw: random.Random) -> str:
    """A stretch of zeros or of noise, as a bad disk leaves it."""
    name = draw.choice(FILES)
    content = bytearray((newest / name).read_bytes())
    place = draw.randrange(len(content))
    size = draw.randint(1, len(content) - place)
    before = bytes(content)
    while content == before:
        content[place : place + size] = draw.choice((bytes(size), draw.randbytes(size)))
        place, size = 0, len(content)
    (newest / name).write_bytes(content)
    return f"{name} overwritten from {place}"


def delete(newest: Path, draw: random.Random) -> str:
    gone = draw.sample(FILES, draw.randint(1, len(FILES)))
    for name in gone:
        (newest / name).unlink()
    return f"without {gone}"


def swap(newest: Path, draw: random.Random) -> str:
    """Two files of the checkpoint, or one with that of the checkpoint before."""
    one, two = draw.sample(FILES, 2)
    other = newest / two if draw.random() < 0.5 else newest.with_name(f"step-{OLD:08d}") / one
    mine = (newest / one).read_bytes()
    (newest / one).write_bytes(other.read_bytes())
    if other.parent == newest:
        other.write_bytes(mine)
    return f"{one} is {other}"


def replace_all(newest: Path, draw: random.Random) -> str:
    """All files of the checkpoint before, which fit together."""
    older = newest.with_name(f"step-{OLD:08d}")
    for name in FILES:
        shutil.copy(older / name, newest / name)
    return "all of the one before"


def edit_manifest(newest: Path, draw: random.Random) -> str:
    path = newest / "manifest.json"
    text = path.read_text(encoding="utf-8")
    facts = json.loads(text)
    name = draw.choice(("state.json", "tensors"))
    fewer = {key: value for key, value in facts.items() if key != name}
    edited: dict[str, object] = {
        "no file": {},
        "fewer": fewer,
        "more": {**facts, "other": facts[name]},
        "outside": {**fewer, f"../{name}": facts[name]},
        "size": {**facts, name: {**facts[name], "bytes": facts[name]["bytes"] + 1}},
        "digest": {**facts, name: {**facts[name], "sha256": "0" * 64}},
        "upper case": {**facts, name: {**facts[name], "sha256": facts[name]["sha256"].upper()}},
        "text": {**facts, name: {**facts[name], "bytes": str(facts[name]["bytes"])}},
        "only sizes": {**facts, name: {"bytes": facts[name]["bytes"]}},
        "with a word": {**facts, name: {**facts[name], "note": "kept"}},
        "list": [facts],
        "nothing": None,
        "number": 7,
        "string": "tensors",
        "swapped": {"tensors": facts["state.json"], "state.json": facts["tensors"]},
    }
    what = draw.choice([*edited, "spaces", "deep", "empty", "lines"])
    texts = {
        "spaces": json.dumps(facts),
        "deep": "[" * 100_000,
        "empty": "",
        "lines": text.replace("\n", "\r\n"),
    }
    changed = texts[what] if what in texts else json.dumps(edited[what], indent=2) + "\n"
    path.write_bytes(changed.encode())
    return f"manifest: {what}"


def edit_state(newest: Path, draw: random.Random) -> str:
    path = newest / "state.json"
    state = json.loads(path.read_text(encoding="utf-8"))
    key = draw.choice(["step", "seconds", "evaluations", "skipped"])
    state[key] += draw.choice((1, -1, 100))
    path.write_text(json.dumps(state) + "\n", encoding="utf-8")
    return f"{key} is {state[key]}"


def turn_into(newest: Path, draw: random.Random) -> str:
    """A folder, a link or a file where something else was; of a file or of the whole."""
    place = draw.choice([newest, *(newest / name for name in FILES)])
    kind = draw.choice(("folder", "link to nothing", "link to itself", "link to a copy", "file"))
    aside = newest.parent.parent / "aside"
    if aside.is_dir():
        shutil.rmtree(aside)
    aside.unlink(missing_ok=True)
    place.rename(aside)
    if kind == "folder":
        place.mkdir()
    elif kind == "file":
        place.write_bytes(b"")
    elif kind == "link to nothing":
        place.symlink_to(newest.parent / "nothing")
    elif kind == "link to itself":
        place.symlink_to(place)
    elif place == newest:  # of the same content, but of another checkpoint
        place.symlink_to(newest.with_name(f"step-{OLD:08d}"))
    else:
        place.symlink_to(aside)
    return f"{place.name} is a {kind}"


def renumber(newest: Path, draw: random.Random) -> str:
    step = NEW + draw.randint(1, 1000)
    newest.rename(newest.with_name(f"step-{step:08d}"))
    return f"named as step {step}"


# How often each is done: 1,000 in all.
MUTATIONS: dict[Callable[[Path, random.Random], str], int] = {
    flip: 400, truncate: 120, append: 100, overwrite: 100, delete: 30, swap: 40, replace_all: 5,
    edit_manifest: 100, edit_state: 45, turn_into: 50, renumber: 10,
}  # fmt: skip


def test_there_are_a_thousand() -> None:
    assert sum(MUTATIONS.values()) == 1000


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.__name__)
def test_every_mutation_is_detected(
    mutation: Callable[[Path, random.Random], str],
    checkpoints: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "checkpoints"
    shutil.copytree(checkpoints, folder)
    older, newest = (f"step-{step:08d}" for step in (OLD, NEW))
    for number in range(MUTATIONS[mutation]):
        told = mutation(folder / newest, random.Random(number))
        assert latest_checkpoint(folder) == folder / older, (number, told)
        assert "A damaged checkpoint is passed over" in capsys.readouterr().err
        if number < 5:
            assert_goes_on(folder)
        for path in folder.iterdir():  # as it was
            if path.is_symlink() or path.is_file():
                path.unlink()
            elif path.name != older:
                shutil.rmtree(path)
        shutil.copytree(checkpoints / newest, folder / newest)


def assert_goes_on(folder: Path) -> None:
    """The older checkpoint is as it was, and the next save takes the place of the damaged one."""
    (model, optimizer), (expected, _) = trained(0), trained(OLD)
    state = load_checkpoint(folder / f"step-{OLD:08d}", model, optimizer)
    assert state.step == OLD
    for name, value in expected.state_dict().items():
        assert torch.equal(model.state_dict()[name], value)
    again = save_checkpoint(folder, *trained(NEW), TrainingState(NEW))
    assert latest_checkpoint(folder) == again
    assert sorted(path.name for path in folder.iterdir()) == [f"step-{OLD:08d}", again.name]


def test_the_untouched_one_is_used(checkpoints: Path) -> None:
    newest = checkpoints / f"step-{NEW:08d}"
    assert latest_checkpoint(checkpoints) == newest
    assert load_checkpoint(newest, *trained(0)).step == NEW
