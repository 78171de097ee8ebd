"""From losses to a step: gradients are added up over micro-batches and processes, bounded, and AdamW moves what learns.

`Updates` is one process, DDP and FSDP2; `lisa_deepspeed.ZeroUpdates` does the same inside DeepSpeed's engine. Both give the same numbers and take and
give the same complete tensors, so that a checkpoint of one goes on in the other.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from lisaseg.train.lisa_config import OptimSettings
from lisaseg.train.lisa_data import MicroBatch
from lisaseg.train.lisa_parallel import like, whole

MOMENTS = ("step", "exp_avg", "exp_avg_sq")  # what AdamW remembers of a parameter; "step" is one number


def adam(learned: dict[str, nn.Parameter], optim: OptimSettings) -> torch.optim.AdamW:
    """The optimiser of a run."""
    return torch.optim.AdamW(learned.values(), lr=optim.lr, betas=optim.betas, weight_decay=optim.weight_decay)


class Updates:
    """Args:
    accelerator: of this process.
    module: a `lisa_loop.Step`, wrapped for several processes or not.
    learned: name -> parameter (after wrapping).
    optim: all settings of the optimiser.
    """

    def __init__(self, accelerator: Any, module: Any, learned: dict[str, nn.Parameter], optim: OptimSettings) -> None:
        self.accelerator, self.module, self.learned, self.optim = accelerator, module, learned, optim
        self.adam = adam(learned, optim)
        self.wrapped = accelerator.prepare_optimizer(self.adam)  # with loss scaling, if the precision needs it

    def forward(self, micro: MicroBatch, tokens: float, masks: float) -> tuple[Tensor, Tensor]:
        """`Step.forward` on this process's device, in the precision of the recipe."""
        with self.accelerator.autocast():
            loss, numbers = self.module(micro.to(self.accelerator.device), tokens, masks)
        return loss, numbers

    @contextlib.contextmanager
    def micro(self, last: bool) -> Iterator[None]:
        """Forward and backward of one micro-batch happen within. Until the `last` one of a step DDP keeps gradients to itself; FSDP2 has no room."""
        with contextlib.nullcontext() if last or not hasattr(self.module, "no_sync") else self.module.no_sync():
            yield

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a loss of this process; over processes they are averaged."""
        self.accelerator.backward(loss)

    def set_rate(self, lr: float) -> None:
        """The learning rate of the next step."""
        for group in self.adam.param_groups:
            group["lr"] = lr

    def apply(self) -> float:
        """Bound the gradient, move the parameters, forget the gradient; returns its norm before that. If that is no number, nothing is moved."""
        norm = float(whole(self.accelerator.clip_grad_norm_(list(self.learned.values()), self.optim.clip)))
        if math.isfinite(norm) or self.scales:  # a loss scaler passes over such a step by itself, and comes down
            self.wrapped.step()
        self.drop()
        return norm

    @property
    def scales(self) -> bool:
        """Whether losses are scaled (float16), so that a gradient that is no number is nothing unusual."""
        return self.accelerator.scaler is not None

    def drop(self) -> None:
        """Forget the gradient."""
        self.wrapped.zero_grad(set_to_none=True)

    def tensors(self) -> dict[str, Tensor]:
        """`param/<name>` and `adam/<name>/<moment>`, complete and on the CPU; every process must call it."""
        out = {f"param/{name}": whole(p).cpu() for name, p in self.learned.items()}
        for name, p in self.learned.items():
            out |= {f"adam/{name}/{key}": whole(value).cpu() for key, value in self.adam.state.get(p, {}).items()}
        return out

    @torch.no_grad()
    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Take over what `tensors` gave; every process must call it."""
        for name, p in self.learned.items():
            p.copy_(like(tensors[f"param/{name}"], p))
            if f"adam/{name}/exp_avg" in tensors:
                moments = {key: tensors[f"adam/{name}/{key}"] for key in MOMENTS}
                self.adam.state[p] = {key: value if key == "step" else like(value, p) for key, value in moments.items()}
