"""Laws of the general trainer: the same step however it is cut up, the same run however it is interrupted, and what was read is what learns."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tests.train import lisa_world as world

from lisaseg.errors import DataError, TrainingError, UsageError
from lisaseg.train.lisa_checkpoint import Checkpoints, read_parameters

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return world.write_model(tmp_path_factory.mktemp("start") / "LISA")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return world.write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture
def recipe(model: Path, data: Path, tmp_path: Path) -> Path:
    return world.write_recipe(tmp_path / "recipe.toml", model, data, tmp_path / "run")


def parameters(out: Path) -> dict[str, torch.Tensor]:
    newest = Checkpoints(out).newest()
    assert newest is not None
    return read_parameters(newest)


def close(first: Path, second: Path, tolerance: float = 1e-5) -> None:
    """Two runs made the same steps."""
    for key in ("loss", "ce", "bce", "dice", "iou", "grad_norm"):
        assert np.allclose(world.read_log(first, key), world.read_log(second, key), rtol=0, atol=tolerance), key
    a, b = parameters(first), parameters(second)
    assert set(a) == set(b)
    assert max(float((a[name] - b[name]).abs().max()) for name in a) < 10 * tolerance


@pytest.fixture
def whole_run(recipe: Path, tmp_path: Path) -> Path:
    """Four steps in one go, each of 2 x 2 pictures."""
    world.train(recipe, f"out={tmp_path / 'whole'}")
    return tmp_path / "whole"


def test_accumulation_is_a_big_batch(recipe: Path, tmp_path: Path) -> None:
    plain = ["model.lora.dropout=0.0", "probe.every=0"]
    world.train(recipe, *plain, f"out={tmp_path / 'big'}", "optim.batch=4", "optim.accumulation=1")
    world.train(recipe, *plain, f"out={tmp_path / 'parts'}", "optim.batch=1", "optim.accumulation=4")
    close(tmp_path / "big", tmp_path / "parts")


def test_two_processes_are_one(recipe: Path, whole_run: Path, tmp_path: Path) -> None:
    world.train_apart(recipe, f"out={tmp_path / 'two'}", "optim.accumulation=1", world=2)
    close(whole_run, tmp_path / "two")
    assert np.allclose(world.read_log(whole_run, "probe_iou"), world.read_log(tmp_path / "two", "probe_iou"), atol=1e-5)


def test_sharded_processes_are_one_and_give_a_whole_checkpoint(recipe: Path, whole_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "sharded"
    world.train_apart(recipe, f"out={out}", "optim.accumulation=1", 'parallel="fsdp"', "optim.steps=4", world=2)
    close(whole_run, out)
    world.train(recipe, f"out={tmp_path / 'resumed'}", "optim.steps=4", "probe.every=0")  # what was gathered fits a process that shares nothing
    a, b = parameters(out), parameters(tmp_path / "resumed")
    assert {n: t.shape for n, t in a.items()} == {n: t.shape for n, t in b.items()}


def test_a_sharded_process_may_have_no_mask_in_its_pictures(recipe: Path, tmp_path: Path) -> None:
    """One that needs SAM's encoder and one that does not still gather the same blocks."""
    single = ("optim.batch=1", "optim.steps=6", "probe.every=0")
    world.train(recipe, f"out={tmp_path / 'one'}", *single, "optim.accumulation=2")
    world.train_apart(recipe, f"out={tmp_path / 'two'}", *single, "optim.accumulation=1", 'parallel="fsdp"', world=2)
    close(tmp_path / "one", tmp_path / "two")


def test_killed_and_resumed_is_uninterrupted(recipe: Path, tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    steps = ("optim.steps=10", "data.workers=0")
    world.train(recipe, f"out={whole}", *steps)
    (process,) = world.start_processes(recipe, f"out={cut}", *steps)
    deadline = time.monotonic() + 60
    while not Checkpoints(cut).all() and time.monotonic() < deadline:
        time.sleep(0.002)
    os.kill(process.pid or 0, signal.SIGKILL)
    process.join()
    assert process.exitcode == -signal.SIGKILL, "it was done before it could be killed"
    world.train(recipe, f"out={cut}", *steps)
    assert world.read_log(whole) == world.read_log(cut)  # to the last bit
    assert world.read_log(whole, "probe_iou") == world.read_log(cut, "probe_iou")
    a, b = parameters(whole), parameters(cut)
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_readers_ahead_change_nothing(recipe: Path, whole_run: Path, tmp_path: Path) -> None:
    world.train(recipe, f"out={tmp_path / 'ahead'}", "data.workers=2")
    assert world.read_log(whole_run) == world.read_log(tmp_path / "ahead")


def test_what_was_read_is_what_learns(recipe: Path, model: Path, tmp_path: Path) -> None:
    """Before the first step every tensor that learns is the one in the file, bit for bit; adapters add nothing."""
    from lisaseg.model.assemble import load_model
    from lisaseg.train.lisa_config import LisaRecipe
    from lisaseg.train.lisa_model import open_trainee
    from lisaseg.train.recipe import checked, read_recipe

    released = load_model(model, torch.float32, offline=True)[0].state_dict()
    for overrides in (["optim.precision='bfloat16'"], ["model.tokens='new'"]):
        trainee = open_trainee(checked(LisaRecipe, read_recipe(recipe, overrides), recipe), torch.device("cpu"))
        learned = trainee.learned()
        names = {name: name for name in learned if name in released}
        assert len(names) == len([n for n in learned if "lora_" not in n and ".values" not in n])
        assert all(p.dtype == torch.float32 for p in learned.values())
        assert all(torch.equal(learned[name], released[name]) for name in names)
        assert all(not p.any() for name, p in learned.items() if "lora_B" in name)
        for name, p in learned.items():
            if name.endswith(".values"):
                rows = sorted(trainee.added.values())
                assert torch.equal(p, released[name.replace(".values", ".weight")][rows])


def test_only_the_papers_parts_learn(recipe: Path, tmp_path: Path) -> None:
    world.train(recipe, "optim.steps=1", f"out={tmp_path / 'one'}", "probe.every=0")
    parts = {name.split(".lora_")[0].split(".")[-1] if "lora_" in name else name.rsplit(".", 1)[0] for name in parameters(tmp_path / "one")}
    assert {p for p in parts if "proj" in p and "." not in p} == {"q_proj", "v_proj"}
    rest = {p for p in parts if "." in p}
    allowed = ("seg_head.", "mask_decoder.sam.mask_decoder", "vlm.language_model.model.embed_tokens", "vlm.language_model.lm_head")
    assert all(p.startswith(allowed) for p in rest)
    assert not any("iou_prediction_head" in p or "hypernetworks_mlps.1" in p for p in rest)


def test_frozen_parts_stay_and_learned_ones_move(recipe: Path, model: Path, tmp_path: Path) -> None:
    from lisaseg.train.lisa_run import export_run

    world.train(recipe)
    out = export_run(tmp_path / "run", tmp_path / "out", "last")
    before = {k: v for file in model.glob("*.safetensors") for k, v in load_file(file).items()}
    after = {k: v for file in out.glob("*.safetensors") for k, v in load_file(file).items()}
    assert set(after) == {k for k in before if "rotary" not in k}
    moved = {key for key in after if not torch.equal(before[key], after[key])}
    adapted = {f"model.layers.{k}.self_attn.{p}_proj.weight" for k in range(2) for p in "qv"}
    elsewhere = {k for k in moved if not k.startswith(("model.visual_model.mask_decoder.", "model.text_hidden_fcs."))}
    assert elsewhere == adapted | {"model.embed_tokens.weight", "lm_head.weight"}
    assert len(moved) > len(elsewhere) + 50


@pytest.mark.parametrize("overrides", [[], ["model.tokens='new'"], ["model.quantize='4bit'", "model.tokens='new'"]])
def test_new_rows_and_quantised_runs_train(recipe: Path, tmp_path: Path, overrides: list[str]) -> None:
    if any("quantize" in o for o in overrides):
        pytest.importorskip("bitsandbytes")
    shared = [*overrides, "optim.steps=8", "optim.accumulation=1", "optim.warmup=1", "optim.lr=0.02", "save_every=8"]
    world.train(recipe, *shared, "probe.every=0")
    losses = world.read_log(tmp_path / "run", "ce")
    assert losses[-1] < losses[0] - 0.5
    world.train(recipe, *shared, "probe.every=1", "probe.size=1", f"out={tmp_path / 'looked at'}")
    assert world.read_log(tmp_path / "looked at", "ce") == losses  # a look at the mini-set changes nothing


def test_bfloat16_and_gradient_checkpointing_train(recipe: Path, tmp_path: Path) -> None:
    world.train(recipe, "optim.precision='bfloat16'", "model.gradient_checkpointing=true", "optim.steps=3", "probe.every=0", "model.lora.dropout=0.0")
    world.train(recipe, f"out={tmp_path / 'plain'}", "optim.steps=3", "probe.every=0", "model.lora.dropout=0.0")
    assert np.allclose(world.read_log(tmp_path / "run"), world.read_log(tmp_path / "plain"), atol=0.15)


def test_checkpoints_that_go_and_stay(recipe: Path, tmp_path: Path) -> None:
    world.train(recipe, "optim.steps=6", "save_every=1", "keep=2", "probe.every=1", "optim.lr=0.01")
    checkpoints = Checkpoints(tmp_path / "run")
    probes = world.read_log(tmp_path / "run", "probe_iou")
    best = int(np.argmax(probes))
    wanted = {5, 6} | ({best} if best else set())
    assert set(checkpoints.all()) == wanted
    assert (checkpoints.best() or (0, 0.0))[0] == best


def test_another_run_is_not_gone_on_with(recipe: Path, tmp_path: Path) -> None:
    world.train(recipe)
    for change in ("seed=1", "optim.batch=1", "model.lora.rank=2", "optim.steps=8"):
        with pytest.raises(TrainingError, match="--no-resume"):
            world.train(recipe, change)
    world.train(recipe, "seed=1", resume=False)
    assert (tmp_path / "run" / "checkpoints.old1" / "step-000004.safetensors").is_file()


def test_a_bad_sample_is_named_or_passed_over(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = world.write_data(tmp_path / "data")
    picture = tmp_path / "data" / "3.png"
    picture.write_bytes(picture.read_bytes()[:90])  # a header, and half of what follows
    recipe = world.write_recipe(tmp_path / "recipe.toml", model, data, tmp_path / "run", probe__every=0, probe__size=2)
    with pytest.raises(DataError, match=rf"{data}:4.*3\.png"):
        world.train(recipe)
    world.train(recipe, "data.skip_faults=true")
    assert "samples were passed over" in capsys.readouterr().err
    assert world.read_log(tmp_path / "run", "skipped")[-1] >= 1
    with pytest.raises(DataError, match=rf"{data}:4"):  # from another process as well
        world.train(recipe, "data.workers=1", f"out={tmp_path / 'other'}")


def test_no_number_stops_before_it_does_harm(recipe: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"loss is (nan|inf).*next|Lower optim\.lr"):
        world.train(recipe, "optim.lr=1e30", "optim.clip=1e30", "probe.every=0", "optim.steps=20", "save_every=1")
    assert all(p.isfinite().all() for p in parameters(tmp_path / "run").values()) or len(world.read_log(tmp_path / "run")) > 0


def test_a_gradient_that_is_no_number_moves_nothing(recipe: Path, tmp_path: Path) -> None:
    from lisaseg.train.lisa_config import LisaRecipe
    from lisaseg.train.lisa_data import micro_batches
    from lisaseg.train.lisa_parallel import start_processes
    from lisaseg.train.lisa_run import build, make_trainer
    from lisaseg.train.recipe import checked, read_recipe

    world.fresh_state()
    settings = checked(LisaRecipe, read_recipe(recipe, ["probe.every=0"]), recipe)
    accelerator = start_processes(settings)
    trainer = make_trainer(settings, accelerator, *build(settings, accelerator))
    before = {name: p.detach().clone() for name, p in trainer.learned.items()}
    batches = micro_batches(trainer.data, 0, 0)
    hook = trainer.learned["seg_head.0.weight"].register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(TrainingError, match=r"gradient is (nan|inf)"):
        trainer.one_step([next(batches), next(batches)])
    assert all(torch.equal(p, before[name]) for name, p in trainer.learned.items())
    hook.remove()
    assert np.isfinite(trainer.one_step([next(batches), next(batches)])["grad_norm"])  # nothing of it is left
    assert not all(torch.equal(p, before[name]) for name, p in trainer.learned.items())


def test_the_best_is_named_even_if_the_run_was_killed_before_it_could_be(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Killed(Exception):
        pass

    def kill(self: Checkpoints, step: int, score: float) -> None:
        raise Killed

    monkeypatch.setattr("lisaseg.train.lisa_loop.Trainer.measure", lambda self: (0.5, (0.1, 0.2, 0.3, 0.2, 0.1)[self.step]))  # best at step 2
    often = ("optim.steps=4", "probe.every=1", "save_every=4")
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Checkpoints, "set_best", kill)
        world.train(recipe, *often, "probe.every=2")
    assert list(Checkpoints(tmp_path / "run").all()) == [2] and Checkpoints(tmp_path / "run").best() is None
    world.train(recipe, *often)
    assert Checkpoints(tmp_path / "run").best() == (2, 0.3)


def starve(recipe: Path) -> None:
    """Trains with 150 MB more than the process has; a new process, because one that has run many tests holds freed memory to serve itself from."""
    import resource

    world.train(recipe, "probe.every=0", "optim.steps=1", f"out={recipe.parent / 'small'}")  # loads all that a run loads
    limit = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() + 150 * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    try:
        world.train(recipe, "optim.batch=600", "optim.accumulation=1", "probe.every=0")
    except TrainingError as error:
        os._exit(0 if "Out of memory" in error.message and "gradient_checkpointing" in error.next_step else 3)
    os._exit(4)


def test_out_of_memory_names_the_next_cheaper_setting(recipe: Path) -> None:
    process = multiprocessing.get_context("spawn").Process(target=starve, args=(recipe,))
    process.start()
    process.join(120)
    assert process.exitcode == 0


def test_a_run_that_learns_nothing_stops(recipe: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="is where it was at step 0"):
        world.train(recipe, "optim.lr=1e-12", "probe.every=1", "probe.patience=3", "optim.steps=20")
    assert len(world.read_log(tmp_path / "run", "probe_iou")) == 4


def test_dry_run_says_what_will_happen(recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    world.train(recipe, dry_run=True)
    said = capsys.readouterr().err
    for words in (
        "mask decoder",
        "lora",
        "gradients and AdamW",
        "effective batch 4 = 2 pictures x 2",
        "warning: an effective batch of 160",
        "4 steps",
    ):
        assert words in said
    assert not (tmp_path / "run").exists()
    world.train(recipe, "optim.steps=1", "optim.batch=1", "optim.accumulation=1", dry_run=True)  # there is but one micro-batch to measure
    assert "1 steps" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("optim.lrr=1", "optim.lrr"),
        ("model.start='nothing'", "nothing"),
        ("data.jsonl.mine.path='nowhere.jsonl'", "nowhere.jsonl"),
        ("model.neck=true", "no neck"),
        ("model.lora.targets=['x_proj']", "model.lora.targets"),
        ("optim.precision='float16'", "float16 is not for CPUs"),
        ("optim.batch=0", "optim.batch"),
    ],
)
def test_wrong_recipes_are_refused(recipe: Path, override: str, says: str) -> None:
    from lisaseg.errors import LisaSegError

    with pytest.raises(LisaSegError, match=says):
        world.train(recipe, override)


def test_wants_one_start_and_some_data(tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    path.write_text('kind = "lisa"\nout = "x"\n[model]\n[data]\nroot = "d"\n')
    with pytest.raises(UsageError, match=r"model\.start or model\.parts"):
        world.train(path)
    path.write_text('kind = "lisa"\nout = "x"\n[model]\nstart = "lisa-tiny"\n[data]\n')
    with pytest.raises(UsageError, match="root"):
        world.train(path)


def test_log_is_json_and_tensorboard_is_there(whole_run: Path) -> None:
    for line in (whole_run / "log.jsonl").read_text().splitlines():
        assert "step" in json.loads(line)
    assert list(whole_run.glob("events.out.tfevents.*"))
