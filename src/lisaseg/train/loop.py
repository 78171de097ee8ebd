"""The training loop: AdamW with warm-up and cosine, clipping, bf16 autocast, TensorBoard, progress with ETA, exact resume.

A stage gives its parameters and, for a step number, a loss; every draw of a stage depends on (seed, step) alone. So a run that is killed and
resumed from a checkpoint makes the same steps as one that never stopped: what has to be kept is parameters, optimiser state and step number.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lisaseg.errors import TrainingError
from lisaseg.train.config import Recipe, StageConfig
from lisaseg.train.prepared import to_device


class Stage(Protocol):
    """One stage: what learns, and the loss of a step."""

    name: str
    config: StageConfig

    def groups(self) -> list[tuple[float, dict[str, nn.Parameter]]]:
        """(peak learning rate, named parameters) of each group."""
        ...

    def prepare(self, step: int) -> Any:
        """All that step number `step` needs, on the CPU; it may run in another process and must not look at the weights."""
        ...

    def loss(self, made: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss (with gradient) of a prepared step that was moved to the device, and numbers for the log."""
        ...


def rate(step: int, config: StageConfig) -> float:
    """Share of the peak learning rate at a step: linear warm-up, then cosine to 5 %."""
    if step < config.warmup:
        return (step + 1) / config.warmup
    t = (step - config.warmup) / max(1, config.steps - config.warmup)
    return 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * min(1.0, t)))


def save_atomic(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file aside, then rename it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(f".{os.getpid()}.tmp")
    save_file({k: v.detach().contiguous() for k, v in tensors.items()}, aside, metadata=metadata)
    aside.chmod(0o644)  # safetensors writes 0600
    os.replace(aside, path)


class _Steps(torch.utils.data.Dataset):
    """step number -> prepared step, for `DataLoader`."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage

    def __getitem__(self, step: int) -> Any:
        return self.stage.prepare(step)


def prepared(stage: Stage, steps: range, workers: int) -> Iterator[Any]:
    """The prepared steps in their order; with `workers`, other processes make them ahead."""
    if workers == 0:
        yield from (stage.prepare(step) for step in steps)
        return
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # it warns when a process forks
    torch.multiprocessing.set_sharing_strategy("file_system")  # a step holds many tensors, more than there may be open files
    loader = torch.utils.data.DataLoader(_Steps(stage), batch_size=None, sampler=steps, num_workers=workers, prefetch_factor=3)
    yield from loader


class Trainer:
    """Runs one stage in `run_dir/<stage name>/`: `last.safetensors` (parameters, optimiser, step), TensorBoard events, `log.jsonl`."""

    def __init__(self, stage: Stage, recipe: Recipe, run_dir: Path) -> None:
        self.stage, self.recipe, self.folder = stage, recipe, run_dir / stage.name
        self.groups = stage.groups()
        self.named = {name: p for _, group in self.groups for name, p in group.items()}
        decay = stage.config.weight_decay
        self.optimizer = torch.optim.AdamW(
            [
                {"params": [p for p in group.values() if (p.ndim > 1) == heavy], "lr": lr, "peak": lr, "weight_decay": decay if heavy else 0.0}
                for lr, group in self.groups
                for heavy in (True, False)
            ],
            betas=(0.9, 0.95),
        )
        self.step = 0
        self.device = next(iter(self.named.values())).device

    @property
    def checkpoint(self) -> Path:
        """The file that `resume` reads."""
        return self.folder / "last.safetensors"

    def save(self) -> None:
        """Write parameters, optimiser moments and the step."""
        tensors: dict[str, Tensor] = {f"param/{n}": p for n, p in self.named.items()}
        for name, p in self.named.items():
            state = self.optimizer.state.get(p)
            if state:
                tensors[f"adam/{name}/exp_avg"] = state["exp_avg"]
                tensors[f"adam/{name}/exp_avg_sq"] = state["exp_avg_sq"]
                tensors[f"adam/{name}/step"] = state["step"]
        save_atomic(tensors, self.checkpoint, {"step": str(self.step), "steps": str(self.stage.config.steps)})

    def resume(self) -> bool:
        """Continue from the checkpoint if there is one; the parameters must be the same ones."""
        if not self.checkpoint.is_file():
            return False
        from safetensors import safe_open

        with safe_open(self.checkpoint, "pt") as f:
            self.step = int(f.metadata()["step"])
        tensors = load_file(self.checkpoint)
        wrong = {k[6:] for k in tensors if k.startswith("param/")} ^ set(self.named)
        wrong |= {n for n, p in self.named.items() if n not in wrong and tensors[f"param/{n}"].shape != p.shape}
        if wrong:
            raise TrainingError(
                f"{self.checkpoint} is from another set of parameters (first difference: {sorted(wrong)[0]}).", next_step="Start with --no-resume."
            )
        with torch.no_grad():
            for name, p in self.named.items():
                p.copy_(tensors[f"param/{name}"])
                if f"adam/{name}/exp_avg" in tensors:
                    keys = ("step", "exp_avg", "exp_avg_sq")
                    # AdamW counts its steps on the CPU, whatever the device
                    self.optimizer.state[p] = {k: tensors[f"adam/{name}/{k}"].clone().to("cpu" if k == "step" else p.device) for k in keys}
        return True

    def run(self, until: int | None = None, progress: Any = None, deadline: float | None = None) -> dict[str, float]:
        """Train to the end of the stage, to step `until`, or until `time.monotonic()` reaches `deadline`; returns the means of the last log window.

        A checkpoint is written whenever it stops.
        """
        from torch.utils.tensorboard import SummaryWriter

        config, recipe = self.stage.config, self.recipe
        end = min(config.steps, until if until is not None else config.steps)
        self.folder.mkdir(parents=True, exist_ok=True)
        writer = SummaryWriter(str(self.folder), purge_step=self.step)
        window: dict[str, list[Tensor]] = {}
        means: dict[str, float] = {}
        began = time.perf_counter()
        for made in prepared(self.stage, range(self.step, end), recipe.workers):
            for key, value in self._one(made, config, recipe).items():
                window.setdefault(key, []).append(value)
            self.step += 1
            stop = self.step == end or (deadline is not None and time.monotonic() >= deadline)
            if self.step % recipe.log_every == 0 or stop:
                means = {k: float(torch.stack([v.float() for v in values]).mean()) for k, values in window.items()}
                means["seconds_per_step"] = (time.perf_counter() - began) / max(len(v) for v in window.values())
                self._log(writer, means, progress, end)
                window, began = {}, time.perf_counter()
            if self.step % recipe.save_every == 0 or stop:
                self.save()
            if stop:
                break
        writer.close()
        return means

    def _one(self, made: Any, config: StageConfig, recipe: Recipe) -> dict[str, Tensor]:
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * rate(self.step, config)
        torch.manual_seed(recipe.seed * 1_000_003 + self.step)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=recipe.bf16):
            loss, values = self.stage.loss(to_device(made, self.device))
        if not math.isfinite(loss.item()):
            raise TrainingError(
                f"Stage {self.stage.name}: the loss is {loss.item()} at step {self.step}.",
                next_step=f"Lower stages.{self.stage.name}.lr or set bf16=false, then run again: it resumes from the last checkpoint.",
            )
        loss.backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.clip_grad_norm_(self.named.values(), config.clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return {k: v.cpu() for k, v in {**values, "loss": loss.detach(), "grad_norm": norm.detach()}.items()}

    def _log(self, writer: Any, means: dict[str, float], progress: Any, end: int) -> None:
        for key, value in means.items():
            writer.add_scalar(key, value, self.step)
        with (self.folder / "log.jsonl").open("a") as f:
            f.write(json.dumps({"step": self.step, **{k: round(v, 5) for k, v in means.items()}}) + "\n")
        if progress is not None:
            progress(self.step, end, means)
