"""The loop of LISA's training.

Losses are sums over the whole step divided by the number of its tokens and of its masks, so a step of 2 x 10 x 8 pictures gives the same gradient
whether they come as one batch, accumulated, or shared out over processes. (The reference averages the means of its micro-batches: there a token
counts for more in a micro-batch with few.)
Every random number depends on (seed, step, micro-batch), so a checkpoint needs parameters, optimiser and step number only.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lisaseg.errors import TrainingError
from lisaseg.formats import write_aside
from lisaseg.model.lisa import LisaModel
from lisaseg.train.lisa_checkpoint import Checkpoints, read_checkpoint
from lisaseg.train.lisa_config import LisaRecipe, OptimSettings
from lisaseg.train.lisa_data import MicroBatch, Steps, micro_batches
from lisaseg.train.lisa_update import Updates

SCORE_WEIGHT = 0.1  # of the squared error of a decoder's estimate of its own IoU, if it makes one
RISE = 0.01  # by so much [SEG] accuracy or IoU must rise above its first value to count as learning
GOOD = 0.7  # a mini-set at this IoU, with [SEG] where it belongs, has little left to rise by
_CALM = 'Lower optim.lr, or set optim.precision = "bfloat16" or "float32"; the run goes on from its last checkpoint.'
SUMS = ("loss", "ce", "bce", "dice", "iou", "seg", "masks", "segs")


def rate(step: int, optim: OptimSettings) -> float:
    """Share of the peak learning rate at a step (from 0): linear warm-up, then linear to 0 behind the last step."""
    if step < optim.warmup:
        return (step + 1) / optim.warmup
    return (optim.steps - step) / max(1, optim.steps - optim.warmup)


class Step(nn.Module):
    """One micro-batch in, its share of the step's loss out: what DDP and FSDP wrap. Only the language model is ever in training mode (dropout)."""

    def __init__(self, model: LisaModel, sharded: bool = False) -> None:
        super().__init__()
        self.model, self.sharded = model, sharded

    def train(self, mode: bool = True) -> Step:
        """Dropout on or off."""
        super().train(False)
        self.model.vlm.language_model.train(mode)
        for module in self.model.vlm.language_model.modules():
            if hasattr(module, "quant_state"):  # in eval mode bitsandbytes repacks it for CPUs, for good, and then it passes no gradient
                module.train()
        return self

    def forward(self, micro: MicroBatch, tokens: float, masks: float) -> tuple[Tensor, Tensor]:
        """tokens, masks: how many the whole step has -> the loss, and `SUMS` as (8,) float32: of losses their shares, of the rest sums."""
        model = self.model
        context = model.encode_image(micro.inputs)
        out = model(micro.batch, context, pixels=micro.pixels, placements=micro.placements)
        zero = out.losses["ce"].new_zeros(())
        shares = {"ce": out.losses["ce"] * (micro.n_labels / tokens)}
        shares |= {name: out.losses.get(name, zero) * (micro.n_masks / masks) for name in ("bce", "dice")}
        loss = torch.stack([share.float() for share in shares.values()]).sum()
        if micro.n_masks and out.scores.requires_grad and not bool(out.scores.isnan().any()):
            loss = loss + SCORE_WEIGHT * F.mse_loss(out.scores, out.iou, reduction="sum") / masks
        if not micro.n_masks and micro.pixels is not None and self.sharded:
            model.mask_decoder.encode(micro.pixels[:1])  # type: ignore[operator] # another process may need its blocks, and all gather them together
        if not micro.n_masks:  # all processes must have gradients for the same parameters
            unreached = (p for part in (model.seg_head, model.mask_decoder) for p in part.parameters() if p.requires_grad)
            loss = loss + 0.0 * sum(p.sum() for p in unreached)
        segs = float((micro.batch.labels == model.vlm.seg_token_id).sum())
        numbers = [loss, *shares.values(), out.iou.sum(), out.seg_accuracy * segs, float(micro.n_masks), segs]
        return loss, torch.stack([torch.as_tensor(n, device=loss.device).detach().float() for n in numbers])


@dataclass
class Probe:
    """The mini-set and what it has shown: [SEG] accuracy and IoU at step 0, the best of each so far, and the step of the best IoU."""

    batches: list[MicroBatch]
    first: tuple[float, float] | None = None
    best: tuple[float, float] = (0.0, 0.0)
    best_step: int = 0

    def add(self, step: int, seg: float, iou: float) -> None:
        """Take in one measurement."""
        if self.first is None:
            self.first = seg, iou
        elif iou > self.best[1]:
            self.best_step = step
        self.best = max(self.best[0], seg), max(self.best[1], iou)

    @property
    def flat(self) -> bool:
        """Whether nothing has been learned: neither number has risen, and there was something to learn."""
        if self.first is None or (self.first[0] > 0.95 and self.first[1] > GOOD):
            return False
        return all(best < first + RISE for best, first in zip(self.best, self.first, strict=True))


class Trainer:
    """Runs a recipe: `run/log.jsonl`, TensorBoard events, `run/checkpoints/`.

    Args:
        recipe: all settings.
        accelerator: of this process.
        updates: the model and its optimiser.
        steps: micro-batches of this process. probe: the mini-set, or None.
    """

    def __init__(self, recipe: LisaRecipe, accelerator: Any, updates: Updates, steps: Steps, probe: Probe | None = None) -> None:
        self.recipe, self.accelerator, self.updates, self.data, self.probe = recipe, accelerator, updates, steps, probe
        self.module, self.learned = updates.module, updates.learned
        self.checkpoints = Checkpoints(recipe.out, recipe.keep)
        self.step, self.faults = 0, 0
        self.window: list[dict[str, float]] = []

    # -- checkpoints

    def save(self) -> None:
        """Write a checkpoint; every process must call it."""
        tensors = self.updates.tensors()
        if self.accelerator.is_main_process:
            scaler = self.accelerator.scaler
            state = {"fingerprint": self.fingerprint, "faults": self.faults, "scaler": scaler.state_dict() if scaler else None}
            state |= {"probe": [self.probe.first, self.probe.best, self.probe.best_step] if self.probe else None}
            self.checkpoints.save(self.step, tensors, state)
        self.accelerator.wait_for_everyone()

    @property
    def fingerprint(self) -> str:
        """Changes when other samples would come, or in another order or grouping."""
        return f"{self.data.mixture.fingerprint()}-{self.data.micros}x{self.data.batch}-{self.recipe.optim.steps}"

    def resume(self) -> bool:
        """Go on from the newest checkpoint, if there is one.

        Raises:
            TrainingError: it is damaged, or of another run.
        """
        path = self.checkpoints.newest()
        if path is None:
            return False
        tensors, state = read_checkpoint(path)
        held = {name.removeprefix("param/"): t.shape for name, t in tensors.items() if name.startswith("param/")}
        other = {name: p.shape for name, p in self.learned.items()} != held
        if other or state["fingerprint"] != self.fingerprint:
            what = "of other parameters" if other else "of other data, batch sizes, steps or seed"
            raise TrainingError(f"{path} is {what} than this recipe's.", next_step="Name another `out`, or begin anew with --no-resume.")
        self.updates.restore(tensors)
        if state["scaler"] and self.accelerator.scaler:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        if self.probe and state["probe"] and state["probe"][0]:
            first, best, *step = state["probe"]  # the step is missing in older files
            self.probe.first, self.probe.best, self.probe.best_step = (first[0], first[1]), (best[0], best[1]), int(step[0]) if step else 0
            if self.probe.best_step == int(state["step"]) > 0 and self.accelerator.is_main_process:  # killed before it could be named
                self.checkpoints.set_best(self.probe.best_step, self.probe.best[1])
        self.step, self.faults = int(state["step"]), int(state["faults"])
        return True

    # -- steps

    def run(self, progress: Any = None, say: Callable[[str], None] | None = None) -> None:
        """Train to the end.

        Args:
            progress: `lisaseg.train.progress.Report`. say: called with what should be read before the first step.

        Raises:
            TrainingError: see `one_step`; or nothing is learned. DataError: a sample is wrong.
        """
        from torch.utils.tensorboard import SummaryWriter

        recipe, end = self.recipe, self.recipe.optim.steps
        main = self.accelerator.is_main_process
        writer = SummaryWriter(str(recipe.out), purge_step=self.step + 1) if main else None
        if main:
            _forget_after(recipe.out / "log.jsonl", self.step)
        if self.step == 0 and self.probe:
            self._measure(writer)
            if say is not None and self.probe.first:
                say(f"mini-set at step 0: [SEG] accuracy {self.probe.first[0]:.2f}, IoU {self.probe.first[1]:.3f}")
        batches = micro_batches(self.data, self.step * recipe.optim.accumulation, recipe.data.workers)
        self.module.train()
        while self.step < end:
            began = time.perf_counter()
            micros = [next(batches) for _ in range(recipe.optim.accumulation)]
            values = self.one_step(micros)
            self.step += 1
            self.window.append(values | {"seconds_per_step": time.perf_counter() - began})
            probed = bool(self.probe) and (self.step % max(1, recipe.probe.every) == 0 or self.step == end)
            saved = self.step % recipe.save_every == 0 or self.step == end
            looks = self._measure(writer) if probed else {}
            if self.step % recipe.log_every == 0 or probed or saved:
                self._log(writer, progress, end, looks)
            better = probed and self.probe is not None and self.probe.best_step == self.step
            if saved or better:
                self.save()
            if better and main and self.probe:
                self.checkpoints.set_best(self.step, self.probe.best[1])
            if probed:
                self._stop_if_flat()
        if writer is not None:
            writer.close()

    def one_step(self, micros: list[MicroBatch]) -> dict[str, float]:
        """One optimiser step on the micro-batches of this process; returns numbers over all processes.

        Raises:
            TrainingError: the loss or its gradient is not a number; nothing has been changed then.
        """
        accelerator, optim = self.accelerator, self.recipe.optim
        world, device = accelerator.num_processes, accelerator.device
        counts = torch.tensor([sum(m.n_labels for m in micros), sum(m.n_masks for m in micros), sum(len(m.faults) for m in micros)], device=device)
        tokens, masks, faults = (float(n) for n in accelerator.reduce(counts, "sum"))
        self.faults += int(faults)
        share = rate(self.step, optim)
        self.updates.set_rate(optim.lr * share)
        sums = torch.zeros(len(SUMS), dtype=torch.float32, device=device)
        for k, micro in enumerate(micros):
            number = (self.step * len(micros) + k) * world + accelerator.process_index
            torch.manual_seed(self.recipe.seed * 1_000_003 + number)
            with self.updates.micro(last=k + 1 == len(micros)):
                loss, numbers = self.updates.forward(micro, max(1.0, tokens), max(1.0, masks))
                self.updates.backward(loss * world)  # the processes' gradients are averaged
            sums += numbers
        sums = accelerator.reduce(sums, "sum")
        values = dict(zip(SUMS, sums.tolist(), strict=True))
        if not math.isfinite(values["loss"]):
            self.updates.drop()
            what = f"The loss is {values['loss']} at step {self.step}: ce {values['ce']}, bce {values['bce']}, dice {values['dice']}."
            raise TrainingError(what, next_step=_CALM)
        norm = self.updates.apply()
        if not math.isfinite(norm) and not self.updates.scales:
            raise TrainingError(f"The loss is {values['loss']:.3f} at step {self.step}, but its gradient is {norm}.", next_step=_CALM)
        values = {"loss": values["loss"], **_means(values), "grad_norm": norm, "lr": optim.lr * share}
        return values | ({"skipped": float(self.faults)} if self.faults else {})

    @torch.no_grad()
    def measure(self) -> tuple[float, float]:
        """([SEG] accuracy, IoU) of the mini-set; the processes share it."""
        assert self.probe is not None
        accelerator, batches = self.accelerator, self.probe.batches
        self.module.eval()
        sums = torch.zeros(len(SUMS), dtype=torch.float32, device=accelerator.device)
        for first in range(0, len(batches), accelerator.num_processes):
            place = first + accelerator.process_index  # a process without a batch of its own repeats one, unseen: sharded layers need all of them
            _, numbers = self.updates.forward(batches[min(place, len(batches) - 1)], 1.0, 1.0)
            sums += numbers if place < len(batches) else 0
        self.module.train()
        means = _means(dict(zip(SUMS, accelerator.reduce(sums, "sum").tolist(), strict=True)))
        return means["seg"], means["iou"]

    # -- what people see

    def _measure(self, writer: Any) -> dict[str, float]:
        """Measure the mini-set and write it down."""
        assert self.probe is not None
        seg, iou = self.measure()
        self.probe.add(self.step, seg, iou)
        values = {"probe_seg": seg, "probe_iou": iou}
        self._write(writer, values)
        return values

    def _stop_if_flat(self) -> None:
        patience, probe = self.recipe.probe.patience, self.probe
        if patience and self.step >= patience and probe is not None and probe.first and probe.flat:
            (seg, iou), (best_seg, best_iou) = probe.first, probe.best
            raise TrainingError(
                f"After {self.step} steps the mini-set is where it was at step 0: [SEG] accuracy {seg:.2f} -> {best_seg:.2f}, "
                f"IoU {iou:.3f} -> {best_iou:.3f}.",
                next_step="Look at the loss in TensorBoard; raise optim.lr or the effective batch, check the data's masks; probe.patience=0 goes on.",
            )

    def _log(self, writer: Any, progress: Any, end: int, looks: dict[str, float]) -> None:
        keys = list(dict.fromkeys(key for values in self.window for key in values))
        kept = {key: [values[key] for values in self.window if key in values] for key in keys}
        means = {key: sum(values) / len(values) for key, values in kept.items()}
        self.window = []
        self._write(writer, means)
        if progress is not None and self.accelerator.is_main_process:
            progress(self.step, end, {key: value for key, value in (means | looks).items() if key != "lr"})  # too small for three places

    def _write(self, writer: Any, values: dict[str, float]) -> None:
        if writer is None:
            return
        for key, value in values.items():
            writer.add_scalar(key, value, self.step)
        with (self.recipe.out / "log.jsonl").open("a") as file:
            file.write(json.dumps({"step": self.step, **values}) + "\n")


def _means(values: dict[str, float]) -> dict[str, float]:
    """Shares of losses as they are; IoU by mask, accuracy by [SEG]."""
    means = {key: values[key] for key in ("ce", "bce", "dice")}
    return means | {"iou": values["iou"] / max(1.0, values["masks"]), "seg": values["seg"] / values["segs"] if values["segs"] else 1.0}


def _forget_after(log: Path, step: int) -> None:
    """Leave out of the log what will be done again."""
    if log.is_file():
        lines = log.read_bytes().splitlines(keepends=True)
        write_aside(log, b"".join(line for line in lines if line.endswith(b"\n") and json.loads(line)["step"] <= step and step > 0))
