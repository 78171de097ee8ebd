"""DeepSpeed's engine makes the steps that one process makes. What needs the library is skipped where it is not installed (it is no dependency)."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from tests.train import lisa_world as world
from tests.train.test_lisa_run import close, data, model, parameters, recipe, whole_run  # noqa: F401 - fixtures

import lisaseg
from lisaseg.errors import UsageError
from lisaseg.train.lisa_checkpoint import Checkpoints, read_checkpoint
from lisaseg.train.lisa_deepspeed import zero_settings
from lisaseg.train.lisa_run import export_run

pytestmark = pytest.mark.usefixtures("one_thread")
ENGINE = 'parallel="deepspeed"'
runs_it = pytest.mark.skipif(find_spec("deepspeed") is None, reason="DeepSpeed is not installed")


# -- what is refused, with or without the library


@pytest.mark.parametrize(
    ("variables", "says"),
    [
        ({"ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"}, "fsdp"),
        ({"ACCELERATE_DEEPSPEED_ZERO_STAGE": "0"}, "ddp"),
        ({"ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE": "cpu"}, "Leave it out"),
        ({"ACCELERATE_DEEPSPEED_CONFIG_FILE": "nowhere.json"}, "leave them out"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_next_step(variables: dict[str, str], says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError) as caught:
        zero_settings()
    assert says in caught.value.next_step


def test_a_config_file_may_give_zero_optimization_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "ds.json"
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_CONFIG_FILE", str(file))
    monkeypatch.setattr("lisaseg.train.lisa_deepspeed.find_spec", lambda name: object())
    known = {"train_batch_size": "auto", "bf16": {"enabled": "auto"}, "zero_optimization": {"stage": 1, "reduce_bucket_size": 1000}}
    file.write_text(json.dumps(known))
    assert zero_settings() == {"stage": 1, "reduce_bucket_size": 1000}
    file.write_text(json.dumps(known | {"optimizer": {"type": "AdamW", "params": {"lr": 1.0}}}))
    with pytest.raises(UsageError, match="optimizer"):
        zero_settings()


@pytest.mark.skipif(find_spec("deepspeed") is not None, reason="DeepSpeed is installed")
def test_without_the_library_it_is_said_before_anything_is_loaded(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    with pytest.raises(UsageError, match="not installed"):
        world.train(recipe, ENGINE, 'model.start="nowhere"')
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")  # as `accelerate launch --use_deepspeed` does
    with pytest.raises(UsageError, match="not installed"):
        world.train(recipe, 'model.start="nowhere"')
    assert not (tmp_path / "run").exists()


def test_float16_is_refused(recipe: Path) -> None:  # noqa: F811
    with pytest.raises(UsageError, match="bfloat16"):
        world.train(recipe, ENGINE, 'optim.precision="float16"')


# -- what it does


@runs_it
@pytest.mark.long
@pytest.mark.parametrize(("stage", "accumulation"), [("1", 1), ("2", 1), ("1", 2), ("2", 2)])
def test_two_processes_are_one(recipe: Path, tmp_path: Path, stage: str, accumulation: int, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    world.train(recipe, f"out={tmp_path / 'one'}", f"optim.accumulation={2 * accumulation}")
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_ZERO_STAGE", stage)
    world.train_apart(recipe, f"out={tmp_path / 'two'}", f"optim.accumulation={accumulation}", ENGINE, world=2)
    close(tmp_path / "one", tmp_path / "two")
    (a, first), (b, second) = (read_checkpoint(Checkpoints(tmp_path / name).newest() or Path()) for name in ("one", "two"))
    assert first["fingerprint"] == second["fingerprint"]
    assert {n: t.shape for n, t in a.items()} == {n: t.shape for n, t in b.items()}
    assert max(float((a[n] - b[n]).abs().max()) for n in a if not n.endswith("exp_avg_sq")) < 1e-4


@runs_it
@pytest.mark.long
def test_accelerate_launches_it_and_it_is_exported(recipe: Path, whole_run: Path, tmp_path: Path) -> None:  # noqa: F811
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--use_deepspeed", "--zero_stage", "2", "--num_processes", "2"]
    train = ["-m", "lisaseg", "train", str(recipe), "--set", f"out={tmp_path / 'launched'}", "--set", "optim.accumulation=1"]
    command, env = [*launch, "--main_process_port", str(world.free_port()), *train], os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert "memory a process (DeepSpeed)" in done.stderr
    close(whole_run, tmp_path / "launched")
    out = export_run(tmp_path / "launched", tmp_path / "out", "last")
    assert lisaseg.load(out, dtype="float32", device="cpu", offline=True).model is not None


@runs_it
@pytest.mark.long
def test_killed_and_resumed_is_uninterrupted_and_any_mode_goes_on(recipe: Path, tmp_path: Path) -> None:  # noqa: F811
    whole, cut, steps = tmp_path / "whole", tmp_path / "cut", ("optim.steps=10", ENGINE, "optim.accumulation=1")
    world.train_apart(recipe, f"out={whole}", *steps, world=2)
    processes = world.start_processes(recipe, f"out={cut}", *steps, world=2)
    deadline = time.monotonic() + 120
    while not Checkpoints(cut).all() and time.monotonic() < deadline:
        time.sleep(0.01)
    for process in processes:
        os.kill(process.pid or 0, signal.SIGKILL)
        process.join()
    assert [process.exitcode for process in processes] == [-signal.SIGKILL] * 2, "it was done before it could be killed"
    newest = max(Checkpoints(cut).all())
    assert newest < 10
    alone = tmp_path / "alone"
    (alone / "checkpoints").mkdir(parents=True)
    path = Checkpoints(cut).all()[newest]
    (alone / "checkpoints" / path.name).write_bytes(path.read_bytes())
    world.train_apart(recipe, f"out={cut}", *steps, world=2)
    assert world.read_log(whole) == world.read_log(cut)  # to the last bit
    a, b = parameters(whole), parameters(cut)
    assert all(torch.equal(a[name], b[name]) for name in a)
    world.train(recipe, f"out={alone}", "optim.steps=10")  # one process, no engine
    c = parameters(alone)
    assert max(float((a[name] - c[name]).abs().max()) for name in a) < 1e-4


@runs_it
@pytest.mark.long
def test_bfloat16_and_quantised_weights(recipe: Path, tmp_path: Path) -> None:  # noqa: F811
    plain = ("model.lora.dropout=0.0", "optim.precision='bfloat16'", "model.gradient_checkpointing=true", "probe.every=0")
    world.train(recipe, f"out={tmp_path / 'one'}", *plain)
    world.train_apart(recipe, f"out={tmp_path / 'two'}", "optim.accumulation=1", ENGINE, *plain, world=2)
    close(tmp_path / "one", tmp_path / "two", 2e-2)
    pytest.importorskip("bitsandbytes")
    four = ("model.quantize='4bit'", "model.tokens='new'", "model.lora.dropout=0.0", "probe.every=0")
    world.train(recipe, f"out={tmp_path / 'four one'}", *four)
    world.train_apart(recipe, f"out={tmp_path / 'four two'}", "optim.accumulation=1", ENGINE, *four, world=2)
    close(tmp_path / "four one", tmp_path / "four two")


@runs_it
@pytest.mark.long
def test_no_number_stops_before_it_does_harm(recipe: Path, tmp_path: Path) -> None:  # noqa: F811
    worse = ("optim.lr=1e30", "optim.clip=1e30", "probe.every=0", "optim.steps=20", "save_every=1", "optim.accumulation=1")
    processes = world.start_processes(recipe, f"out={tmp_path / 'run'}", ENGINE, *worse, world=2)
    for process in processes:
        process.join(120)
    assert all(process.exitcode == 1 for process in processes)
    assert len(world.read_log(tmp_path / "run")) < 20
