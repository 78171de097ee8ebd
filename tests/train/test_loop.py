"""A run that is killed and resumed makes the same steps as one that never stopped."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from lisaseg.errors import TrainingError
from lisaseg.train.config import DataConfig, Recipe, StageConfig
from lisaseg.train.loop import Trainer, rate

STEPS = 12


class Regression:
    """A small stage: noisy regression with dropout, two learning rates, a parameter that learns only now and then."""

    name = "own"

    def __init__(self, fail_at: int = -1, nan_at: int = -1) -> None:
        torch.manual_seed(1)
        self.net = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.3), nn.Linear(8, 1))
        self.rare = nn.Parameter(torch.ones(3))
        self.config = StageConfig(kind="text", steps=STEPS, lr=0.05, warmup=3, weight_decay=0.1)
        self.fail_at, self.nan_at = fail_at, nan_at
        self.seen: list[int] = []

    def groups(self) -> list[tuple[float, dict[str, nn.Parameter]]]:
        return [(0.05, dict(self.net.named_parameters())), (0.01, {"rare": self.rare})]

    def prepare(self, step: int) -> tuple[Tensor, int]:
        return torch.randn(16, 4, generator=torch.Generator().manual_seed(step)), step

    def loss(self, made: tuple[Tensor, int]) -> tuple[Tensor, dict[str, Tensor]]:
        x, step = made
        if step == self.fail_at:
            raise KeyboardInterrupt
        self.seen.append(step)
        loss = (self.net(x)[:, 0] - x.sum(1)).square().mean()  # dropout draws from the global generator
        if step % 5 == 4:
            loss = loss + self.rare.square().sum()
        if step == self.nan_at:
            loss = loss * float("nan")
        return loss, {"own": torch.tensor(float(step))}


def recipe(out: Path, **values: object) -> Recipe:
    config = Regression().config
    data = DataConfig(pool=out, files={}, weights={}, base=out)
    return Recipe(out=out, data=data, stages={"own": config}, bf16=False, **{"save_every": 4, "log_every": 3, **values})  # type: ignore[arg-type]


def parameters(stage: Regression) -> dict[str, Tensor]:
    return {name: p.detach().clone() for _, group in stage.groups() for name, p in group.items()}


def run_whole(folder: Path) -> dict[str, Tensor]:
    stage = Regression()
    Trainer(stage, recipe(folder), folder).run()
    assert stage.seen == list(range(STEPS))
    return parameters(stage)


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("stop", [1, 4, 5, 7, 11])
def test_stopping_and_resuming_changes_no_bit(tmp_path: Path, stop: int) -> None:
    whole = run_whole(tmp_path / "whole")
    Trainer(Regression(), recipe(tmp_path), tmp_path / "a").run(until=stop)
    stage = Regression()
    trainer = Trainer(stage, recipe(tmp_path), tmp_path / "a")
    assert trainer.resume() and trainer.step == stop
    torch.manual_seed(12345)  # what another process would have drawn before
    trainer.run()
    assert stage.seen == list(range(stop, STEPS))
    assert equal(parameters(stage), whole)
    assert equal(load_file(trainer.checkpoint), load_file(tmp_path / "whole/own/last.safetensors")), "optimiser included"


@pytest.mark.parametrize("kill", [0, 3, 6, 10])
def test_a_killed_run_goes_on_from_its_last_checkpoint(tmp_path: Path, kill: int) -> None:
    whole = run_whole(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        Trainer(Regression(fail_at=kill), recipe(tmp_path), tmp_path / "a").run()
    stage = Regression()
    trainer = Trainer(stage, recipe(tmp_path), tmp_path / "a")
    assert trainer.resume() == (kill >= 4)
    trainer.run()
    assert stage.seen[0] == kill // 4 * 4 and equal(parameters(stage), whole)


def test_steps_that_other_processes_prepare_are_the_same_steps(tmp_path: Path) -> None:
    whole = run_whole(tmp_path / "whole")
    stage = Regression()
    Trainer(stage, recipe(tmp_path, workers=2), tmp_path / "a").run(until=7)
    again = Regression()
    trainer = Trainer(again, recipe(tmp_path, workers=3), tmp_path / "a")
    assert trainer.resume()
    trainer.run()
    assert stage.seen + again.seen == list(range(STEPS)) and equal(parameters(again), whole)


def test_a_slice_of_time_ends_with_a_checkpoint(tmp_path: Path) -> None:
    whole = run_whole(tmp_path / "whole")
    for step in range(1, STEPS + 1):  # no time at all: one step a slice
        stage = Regression()
        trainer = Trainer(stage, recipe(tmp_path), tmp_path / "a")
        assert trainer.resume() == (step > 1)
        trainer.run(deadline=time.monotonic())
        assert trainer.step == step and stage.seen == [step - 1]
    assert equal(parameters(stage), whole)


def test_training_learns(tmp_path: Path) -> None:
    before = Regression()
    whole = run_whole(tmp_path)
    x = torch.randn(200, 4, generator=torch.Generator().manual_seed(99))
    after = Regression()
    after.net.load_state_dict({n: p for n, p in whole.items() if n != "rare"})
    losses = [(s.net.eval()(x)[:, 0] - x.sum(1)).square().mean() for s in (before, after)]
    assert losses[1] < 0.8 * losses[0]


def test_another_seed_is_another_run(tmp_path: Path) -> None:
    stages = [Regression(), Regression()]
    for seed, stage in enumerate(stages):
        Trainer(stage, recipe(tmp_path, seed=seed), tmp_path / str(seed)).run()
    assert not equal(parameters(stages[0]), parameters(stages[1]))


def test_a_loss_that_is_no_number_stops_the_run_and_spares_the_checkpoint(tmp_path: Path) -> None:
    trainer = Trainer(Regression(nan_at=6), recipe(tmp_path), tmp_path)
    with pytest.raises(TrainingError, match=r"own: the loss is nan at step 6.*stages\.own\.lr"):
        trainer.run()
    saved = load_file(trainer.checkpoint)
    assert all(torch.isfinite(t).all() for t in saved.values())
    again = Trainer(Regression(), recipe(tmp_path), tmp_path)
    assert again.resume() and again.step == 4


def test_a_checkpoint_of_other_parameters_is_refused(tmp_path: Path) -> None:
    Trainer(Regression(), recipe(tmp_path), tmp_path).run(until=2)
    stage = Regression()
    stage.net.register_parameter("extra", nn.Parameter(torch.zeros(1)))
    with pytest.raises(TrainingError, match="extra"):
        Trainer(stage, recipe(tmp_path), tmp_path).resume()


def test_no_checkpoint_is_no_resume(tmp_path: Path) -> None:
    assert not Trainer(Regression(), recipe(tmp_path), tmp_path).resume()


def test_biases_and_norms_do_not_decay(tmp_path: Path) -> None:
    groups = Trainer(Regression(), recipe(tmp_path), tmp_path).optimizer.param_groups
    for group in groups:
        assert all((p.ndim > 1) == (group["weight_decay"] > 0) for p in group["params"])
    assert sum(len(g["params"]) for g in groups) == 5 and {g["peak"] for g in groups} == {0.05, 0.01}


def test_a_run_writes_its_log(tmp_path: Path) -> None:
    heard: list[tuple[int, int]] = []
    means = Trainer(Regression(), recipe(tmp_path), tmp_path).run(progress=lambda step, end, _: heard.append((step, end)))
    lines = [json.loads(line) for line in (tmp_path / "own/log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [3, 6, 9, 12] and heard == [(3, 12), (6, 12), (9, 12), (12, 12)]
    assert lines[1]["own"] == pytest.approx(4.0), "means over the window since the last line"
    assert all(math.isfinite(line["loss"]) and math.isfinite(line["grad_norm"]) for line in lines) and means["own"] == 10
    assert list((tmp_path / "own").glob("events.*")) and not list((tmp_path / "own").glob("*.tmp"))


@pytest.mark.parametrize(("steps", "warmup"), [(100, 10), (100, 0), (10, 10), (5, 50), (1, 0)])
def test_the_rate_rises_then_falls_to_five_percent(steps: int, warmup: int) -> None:
    config = StageConfig(kind="text", steps=steps, warmup=warmup)
    rates = [rate(step, config) for step in range(steps + 1)]
    peak = min(warmup, steps)
    assert all(0 < r <= 1 for r in rates)
    assert rates[: peak + 1] == sorted(rates[: peak + 1]) and rates[peak:] == sorted(rates[peak:], reverse=True)
    if warmup < steps:
        assert rates[warmup] == 1.0 and rates[steps] == pytest.approx(0.05)
        assert rates[(steps + warmup) // 2] == pytest.approx(0.525, abs=0.02) or steps < 10
