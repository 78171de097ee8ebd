"""`lisaseg train` for recipes with `kind = "lisa"`, and the way back from a run folder to its model for `lisaseg export`."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from lisaseg.errors import LisaSegError, TrainingError, UsageError
from lisaseg.model.host_memory import peak_bytes
from lisaseg.model.published import read_json
from lisaseg.train.lisa_checkpoint import Checkpoints, read_parameters
from lisaseg.train.lisa_config import LisaRecipe
from lisaseg.train.lisa_data import Collator, MicroBatch, Steps, probe_batches
from lisaseg.train.lisa_loop import Probe, Step, Trainer
from lisaseg.train.lisa_model import Trainee, open_trainee
from lisaseg.train.lisa_parallel import as_launched, device_mesh, in_turn, shard, start_processes
from lisaseg.train.lisa_update import Updates
from lisaseg.train.progress import duration, reporting
from lisaseg.train.recipe import checked, read_recipe

REFERENCE_BATCH = {"llava": 160, "tiny": 8}  # the paper's; what lisa-tiny was trained with
ADAM_BYTES = 12  # a learned number has a gradient and two moments in float32, beside itself
RECIPE_FILE = "recipe.json"


def run(path: Path, overrides: list[str], *, resume: bool = True, dry_run: bool = False) -> None:
    """Run a recipe; see `lisaseg train --help`.

    Raises:
        UsageError: the recipe is wrong. ModelLoadError, DataError: what it names cannot be had. TrainingError: the run cannot go on.
    """
    recipe = as_launched(checked(LisaRecipe, read_recipe(path, overrides), path))
    if recipe.parallel == "deepspeed":
        from lisaseg.train.lisa_deepspeed import zero_settings

        zero_settings()  # refuses what does not fit before anything is loaded
    accelerator = start_processes(recipe)

    def log(text: str) -> None:
        if accelerator.is_main_process:
            print(text, file=sys.stderr, flush=True)

    try:
        _run(recipe, accelerator, log, resume, dry_run)
    except (torch.OutOfMemoryError, RuntimeError, MemoryError) as error:
        if not _out_of_memory(error):
            raise
        what = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise TrainingError(f"Out of memory on {accelerator.device}: {what}.", next_step=cheaper(recipe)) from error
    finally:
        accelerator.end_training()


def _run(recipe: LisaRecipe, accelerator: Any, log: Callable[[str], None], resume: bool, dry_run: bool) -> None:
    checkpoints = Checkpoints(recipe.out, recipe.keep)
    if accelerator.is_main_process and not dry_run:
        recipe.out.mkdir(parents=True, exist_ok=True)
        if not resume:
            checkpoints.set_aside()
        _write_json(recipe.out / RECIPE_FILE, _settled(recipe))
    accelerator.wait_for_everyone()
    trainee, step = build(recipe, accelerator)
    trainer = make_trainer(recipe, accelerator, trainee, step)
    for line in report(recipe, trainee, accelerator.num_processes):
        log(line)
    if dry_run:
        for line in measure_step(trainer):
            log(line)
        return
    if resume and trainer.resume():
        log(f"resumed at step {trainer.step}")
    with reporting("train") as progress:
        trainer.run(progress, log)
    if trainer.faults:
        log(f"{trainer.faults} samples were passed over; `lisaseg data check` names them")
    log(f"done: {recipe.out}; write the model with `lisaseg export {recipe.out} OUT`")


def build(recipe: LisaRecipe, accelerator: Any) -> tuple[Trainee, Any]:
    """The model, and its `Step` wrapped for DDP or FSDP2 (DeepSpeed's engine comes with the optimiser)."""
    several = accelerator.num_processes > 1
    fsdp = recipe.parallel == "fsdp" and several
    mesh = device_mesh(accelerator) if fsdp else None
    place = torch.device("cpu") if fsdp else accelerator.device  # a sharded model may be larger than a GPU

    def make() -> tuple[Trainee, Step]:
        trainee = open_trainee(recipe, place)
        if place.type == "cpu" and trainee.family == "tiny":  # with packed masks faster there than the fused kernel, most of all backward
            trainee.model.vlm.language_model.set_attn_implementation("eager")
        step = Step(trainee.model, sharded=fsdp)
        if fsdp:
            shard(step, trainee.model, mesh)
        return trainee, step

    trainee, step = in_turn(accelerator, make)
    step.to(accelerator.device)
    return trainee, accelerator.prepare_model(step) if recipe.parallel == "ddp" or not several else step


def make_trainer(recipe: LisaRecipe, accelerator: Any, trainee: Trainee, step: Any) -> Trainer:
    """The trainer of a built model, with its data."""
    learned = trainee.learned()
    if not learned:
        raise UsageError("Nothing of the model learns.", next_step="Give model.lora.rank, or switch seg_head or mask_decoder on.")
    collate = Collator(trainee, recipe.data)
    steps = Steps(recipe, collate, accelerator.process_index, accelerator.num_processes)
    probe = Probe(probe_batches(recipe, collate, steps.groups)) if recipe.probe.every else None
    if recipe.parallel == "deepspeed" and accelerator.num_processes > 1:
        from lisaseg.train.lisa_deepspeed import ZeroUpdates

        return Trainer(recipe, accelerator, ZeroUpdates(accelerator, step, learned, recipe), steps, probe)
    return Trainer(recipe, accelerator, Updates(accelerator, step, learned, recipe.optim), steps, probe)


def report(recipe: LisaRecipe, trainee: Trainee, processes: int) -> list[str]:
    """What will be trained: parameters by part, memory that is needed whatever the batch, effective batch."""
    parts: dict[str, list[int]] = {}
    held = learned = 0
    for name, p in trainee.model.named_parameters():
        row = parts.setdefault(part_of(name), [0, 0])
        row[0] += p.numel()
        row[1] += p.numel() if p.requires_grad else 0
        held += p.numel() * p.element_size()
        learned += p.numel() if p.requires_grad else 0
    lines = [f"{'part':<16} {'parameters':>12} {'learn':>12}"]
    lines += [f"{part:<16} {total / 1e6:>10.2f} M {own / 1e6:>10.2f} M" for part, (total, own) in parts.items()]
    weights, rest = held / (processes if recipe.parallel == "fsdp" else 1), learned * ADAM_BYTES / (1 if recipe.parallel == "ddp" else processes)
    shared = {"ddp": "", "fsdp": " (FSDP2)", "deepspeed": " (DeepSpeed)"}[recipe.parallel] if processes > 1 else ""
    lines.append(f"memory a process{shared}: weights {weights / 2**30:.2f} GiB, gradients and AdamW {rest / 2**30:.2f} GiB")
    optim = recipe.optim
    batch = optim.batch * optim.accumulation * processes
    lines.append(f"effective batch {batch} = {optim.batch} pictures x {optim.accumulation} accumulated x {processes} processes")
    wanted = REFERENCE_BATCH[trainee.family]
    if batch < wanted:
        lines.append(
            f"warning: an effective batch of {wanted} is the reference for this model; a smaller one learned nothing for some. "
            f"optim.accumulation={-(-wanted // (optim.batch * processes))} reaches it."
        )
    return lines


def part_of(name: str) -> str:
    """The part that a parameter is counted under."""
    if "lora_" in name:
        return "lora"
    if ".embed_tokens." in name or ".lm_head." in name or name in ("vlm.seg_in", "vlm.seg_out"):
        return "tokens"
    for start, part in (("vlm.language_model", "language model"), ("vlm.vision", "vision tower"), ("vlm.projector", "projector")):
        if name.startswith(start):
            return part
    return "mask encoder" if "vision_encoder" in name else name.split(".")[0].replace("_", " ")


def measure_step(trainer: Trainer) -> list[str]:
    """Do one micro-batch (with masks, if one of the first eight has any), forward and back, twice; says how long a step and the run take on this
    machine, and the memory at the peak."""
    recipe, accelerator = trainer.recipe, trainer.accelerator
    trainer.module.train()
    first: list[MicroBatch] = []
    for k in range(min(8, len(trainer.data))):
        found = trainer.data[k]
        if isinstance(found, LisaSegError):
            raise found
        first.append(found)
    micro, seconds = next((m for m in first if m.n_masks), first[0]), 0.0
    for _ in range(2):  # the first one warms up
        began = time.perf_counter()
        with trainer.updates.micro(last=False):
            loss, numbers = trainer.updates.forward(micro, 1.0, 1.0)
            trainer.updates.backward(loss)
        numbers.tolist()
        seconds = time.perf_counter() - began
    whole = seconds * recipe.optim.accumulation
    cuda = accelerator.device.type == "cuda"
    peak = torch.cuda.max_memory_allocated() if cuda else peak_bytes()
    what, steps = "on the GPU" if cuda else "of the process, loading included", recipe.optim.steps
    lines = [f"on this machine a micro-batch takes {seconds:.2f} s, a step about {whole:.1f} s, {steps} steps {duration(whole * steps)}"]
    return lines if peak is None else [*lines, f"memory at the peak {what}: {peak / 2**30:.2f} GiB (AdamW comes on top)"]


def cheaper(recipe: LisaRecipe) -> str:
    """The next setting that saves memory."""
    if recipe.optim.precision == "float32" and torch.accelerator.is_available() and recipe.device != "cpu":
        return 'Set optim.precision="bfloat16".'
    if not recipe.model.gradient_checkpointing:
        return "Set model.gradient_checkpointing=true."
    if recipe.optim.batch > 1:
        return f"Set optim.batch={recipe.optim.batch // 2} and double optim.accumulation."
    if recipe.data.loss_side == 0:
        return "Set data.loss_side=512: masks are compared at a bounded size then."
    if recipe.model.tokens == "all" and recipe.model.parts is None:
        return 'Set model.tokens="new".'
    if recipe.parallel != "fsdp" and not recipe.model.quantize:
        return 'With several GPUs set parallel="fsdp"; with one, model.quantize="4bit".'
    return "Take a smaller model, or more GPUs."


def rebuild(run_folder: Path, which: str = "best") -> Trainee:
    """The model of a run as its checkpoint left it, adapters apart, on the CPU.

    Args:
        run_folder: `out` of a recipe.
        which: "best" (on the mini-set; the last one if there is none) or "last".

    Raises:
        UsageError: this is no run folder. TrainingError: it holds no checkpoint, or one that does not fit.
    """
    file = run_folder / RECIPE_FILE
    if not file.is_file():
        raise UsageError(f"{run_folder} is no run of `lisaseg train`: {RECIPE_FILE} is missing.", next_step="Give the `out` folder of the recipe.")
    recipe = checked(LisaRecipe, json.loads(file.read_text()), file)
    checkpoints = Checkpoints(run_folder)
    best = checkpoints.best() if which == "best" else None
    path = checkpoints.all()[best[0]] if best else checkpoints.newest()
    if path is None:
        raise TrainingError(f"{run_folder} holds no checkpoint yet.", next_step="Let the run reach save_every steps, or its end.")
    recipe.model.quantize = None  # adapters are merged into the weights that were quantised
    trainee = open_trainee(recipe, torch.device("cpu"))
    learned, values = trainee.learned(), read_parameters(path)
    if {name: p.shape for name, p in learned.items()} != {name: value.shape for name, value in values.items()}:
        raise TrainingError(f"{path} does not fit the model of {file}.", next_step="Is this the run's own recipe and model?")
    with torch.no_grad():
        for name, p in learned.items():
            p.copy_(values[name])
    return trainee


def _settled(recipe: LisaRecipe) -> dict[str, Any]:
    """The recipe as it is kept in the run folder: folders by their full path, so that export finds them from anywhere."""
    values = recipe.model_dump(mode="json")
    model = values["model"]
    if model["start"] and Path(model["start"]).is_dir():
        model["start"] = str(Path(model["start"]).resolve())
    for key, value in (model["parts"] or {}).items():
        if value and Path(value).exists():
            model["parts"][key] = str(Path(value).resolve())
    return values


def _write_json(path: Path, values: dict[str, Any]) -> None:
    aside = path.with_suffix(f".{os.getpid()}.tmp")
    aside.write_text(json.dumps(values, indent=1) + "\n")
    os.replace(aside, path)


def _out_of_memory(error: BaseException) -> bool:
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error) or "out of memory" in str(error).lower()


def export_run(run_folder: Path, out: Path, which: str = "best") -> Path:
    """Write the model of a run as a folder that `lisaseg.load` opens; `which` as for `rebuild`.

    Raises:
        UsageError: `out` exists, or `run_folder` is an exported model or no run.
    """
    from lisaseg.exporters.hf import check_target, export_model

    check_target(run_folder, out)
    trainee = rebuild(run_folder, which)
    note = {"run": run_folder.resolve().name, "which": which, "recipe": json.loads((run_folder / RECIPE_FILE).read_text())}
    seen = seen_data(trainee, checked(LisaRecipe, note["recipe"], run_folder / RECIPE_FILE))
    return export_model(trainee.model, trainee.family, trainee.folder, out, added=trainee.added, trained_on=seen, note=note)


def seen_data(trainee: Trainee, recipe: LisaRecipe) -> list[dict[str, str]] | None:
    """Name and split of all data that a model has seen after a run, as `trained_on` of config.json lists them; None if the start does not say."""
    before: Any = [] if recipe.model.parts else read_json(trainee.folder / "config.json").get("trained_on")
    if not isinstance(before, list):
        return None
    sets = [{"name": name, "split": recipe.data.splits.get(name, "train")} for names in recipe.data.sets.values() for name in names]
    files = [{"name": one.path.resolve().parent.name, "split": one.path.stem} for one in recipe.data.jsonl.values()]
    return [*before, *(entry for entry in sets + files if entry not in before)]
