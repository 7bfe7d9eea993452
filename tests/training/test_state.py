"""Checkpoints: exact, whole or passed over."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import bert.training.state as subject
from bert.errors import ModelError
from bert.training.optim import OPTIMIZERS, build_optimizer
from bert.training.state import (
    TrainingState,
    latest_checkpoint,
    load_checkpoint,
    save_checkpoint,
)


class Network(nn.Module):
    """Something with layers, a norm and a head."""

    def __init__(self, width: int) -> None:
        super().__init__()
        layers = nn.ModuleList([nn.Linear(4, width), nn.Linear(width, width)])
        self.bert = nn.ModuleDict({"layers": layers})
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 2)

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.bert["layers"].children()
        result: Tensor = self.head(self.norm(second(first(x))))
        return result


def network(width: int = 6) -> nn.Module:
    return Network(width)


def optimizer_of(model: nn.Module, name: str = "adamw") -> torch.optim.Optimizer:
    return build_optimizer(model, name, 1e-2, 0.1)


def trained(steps: int, name: str = "adamw") -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(steps)
    model = network()
    optimizer = optimizer_of(model, name)
    for _ in range(steps):
        model(torch.randn(5, 4)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return model, optimizer


def saved(folder: Path, *steps: int) -> list[Path]:
    return [save_checkpoint(folder, *trained(step), TrainingState(step)) for step in steps]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_round_trip_is_exact(name: str, tmp_path: Path) -> None:
    model, optimizer = trained(3, name)
    state = TrainingState(3, 12.345678901234567, 2, 1, {"mlm_loss": 0.1 + 0.2, "steps": 3.0})
    path = save_checkpoint(tmp_path, model, optimizer, state)
    again = network()
    its_optimizer = optimizer_of(again, name)
    assert load_checkpoint(path, again, its_optimizer) == state
    for key, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[key]), key
    for a, b in zip(model.parameters(), again.parameters(), strict=True):
        assert set(optimizer.state[a]) == set(its_optimizer.state[b]) != set()
        for key, value in optimizer.state[a].items():
            assert torch.equal(value, its_optimizer.state[b][key]), key
            assert value.dtype == its_optimizer.state[b][key].dtype
    # And the next steps are the same, bit by bit.
    for _ in range(3):
        x = torch.randn(5, 4)
        for m, o in ((model, optimizer), (again, its_optimizer)):
            m(x).square().mean().backward()
            o.step()
            o.zero_grad()
    for key, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[key]), key


def test_before_the_first_step_there_are_no_moments(tmp_path: Path) -> None:
    model, optimizer = trained(0)
    path = save_checkpoint(tmp_path, model, optimizer, TrainingState())
    again = network()
    assert load_checkpoint(path, again, optimizer_of(again)) == TrainingState()


def test_none_at_all(tmp_path: Path) -> None:
    assert latest_checkpoint(tmp_path / "nowhere") is None


def test_the_two_newest_are_kept(tmp_path: Path) -> None:
    saved(tmp_path, 1, 2, 3, 10)
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["step-00000003", "step-00000010"]
    latest = latest_checkpoint(tmp_path)
    assert latest is not None
    assert latest.name == "step-00000010"


def damage(path: Path, how: str) -> None:
    tensors = path / "tensors"
    content = tensors.read_bytes()
    if how == "flipped":
        middle = len(content) // 2
        changed = bytes([content[middle] ^ 1])
        tensors.write_bytes(content[:middle] + changed + content[middle + 1 :])
    elif how == "truncated":
        tensors.write_bytes(content[:-7])
    elif how == "empty":
        tensors.write_bytes(b"")
    elif how == "state":
        (path / "state.json").write_text('{"step": 99}\n')
    elif how == "no file":
        tensors.unlink()
    elif how == "no manifest":
        (path / "manifest.json").unlink()
    elif how == "broken manifest":
        (path / "manifest.json").write_text('{"tensors": {"byt')
    elif how == "list manifest":
        (path / "manifest.json").write_text("[1]")
    elif how == "empty manifest":
        (path / "manifest.json").write_text("{}")


DAMAGE = [
    "flipped", "truncated", "empty", "state", "no file", "no manifest", "broken manifest",
    "list manifest", "empty manifest",
]  # fmt: skip


@pytest.mark.parametrize("how", DAMAGE)
def test_a_damaged_one_is_passed_over(
    how: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = saved(tmp_path, 1, 2)
    damage(second, how)
    assert latest_checkpoint(tmp_path) == first
    assert str(second) in capsys.readouterr().err
    damage(first, how)
    with pytest.raises(ModelError) as caught:
        latest_checkpoint(tmp_path)
    assert caught.value.exit_code == 4
    assert "--overwrite" in (caught.value.fix or "")


def test_a_damaged_one_of_the_same_step_is_written_again(tmp_path: Path) -> None:
    (path,) = saved(tmp_path, 4)
    before = path.stat().st_mtime_ns
    saved(tmp_path, 4)
    assert path.stat().st_mtime_ns == before  # whole: left alone
    damage(path, "truncated")
    saved(tmp_path, 4)
    assert latest_checkpoint(tmp_path) == path


def test_a_damaged_newest_does_not_push_out_a_whole_one(tmp_path: Path) -> None:
    first, newest = saved(tmp_path, 10, 20)
    damage(newest, "truncated")
    # The run goes on from step 10, and the clock makes it save at another step than before.
    (second,) = saved(tmp_path, 15)
    assert latest_checkpoint(tmp_path) == second
    damage(second, "truncated")
    assert latest_checkpoint(tmp_path) == first


@pytest.mark.parametrize("moment", ["_sha256", "flush", "rename"])
def test_a_crash_while_saving_leaves_the_one_before(
    moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (first,) = saved(tmp_path, 1)

    def crash(*arguments: object) -> None:
        raise KeyboardInterrupt

    if moment == "rename":
        monkeypatch.setattr(Path, "rename", crash)
    else:
        monkeypatch.setattr(subject, moment, crash)
    with pytest.raises(KeyboardInterrupt):
        saved(tmp_path, 2)
    monkeypatch.undo()
    assert latest_checkpoint(tmp_path) == first
    # And what it left behind does not stand in the way.
    (second,) = saved(tmp_path, 2)
    assert latest_checkpoint(tmp_path) == second
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000001", "step-00000002"]


def test_of_another_model(tmp_path: Path) -> None:
    (path,) = saved(tmp_path, 1)
    other = network(8)
    with pytest.raises(ModelError) as caught:
        load_checkpoint(path, other, optimizer_of(other))
    assert caught.value.exit_code == 4
    assert str(path) == caught.value.where


def test_a_checkpoint_may_be_moved(tmp_path: Path) -> None:
    (path,) = saved(tmp_path / "a", 1)
    shutil.copytree(path.parent, tmp_path / "b")
    latest = latest_checkpoint(tmp_path / "b")
    assert latest is not None
    assert latest.parent == tmp_path / "b"
