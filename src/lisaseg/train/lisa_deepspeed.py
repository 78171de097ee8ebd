"""DeepSpeed's engine as one more way of sharing a step out: ZeRO-1 (moments of AdamW) and ZeRO-2 (gradients, too). Loaded when it is asked for.

What is said elsewhere in a DeepSpeed run stands in the recipe here: batch, accumulation, schedule, clipping, precision. The engine gets gradients of
micro-batches and is told when a step is complete; its own loss scaling and half-precision copies stay off, because what learns is float32 already
and the rest is frozen. Of the launcher (`accelerate launch --use_deepspeed --zero_stage 2`, or a file by --deepspeed_config_file) the
`zero_optimization` table is taken, read by accelerate's DeepSpeedPlugin. accelerate itself would start the engine on accelerators only, and tests run
on CPUs, so `deepspeed.initialize` is called here.
"""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from lisaseg.errors import UsageError
from lisaseg.train.lisa_config import LisaRecipe, OptimSettings
from lisaseg.train.lisa_data import MicroBatch
from lisaseg.train.lisa_update import Updates, adam

BUCKET = 50_000_000  # numbers that are reduced together; DeepSpeed's own 500 million take 2 GB, whatever learns
_FSDP = 'Launch with torchrun and say parallel = "fsdp": FSDP2 shares out the weights, too.'
_OURS = {"train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping", "steps_per_print", "fp16", "bf16"}


def zero_settings() -> dict[str, Any]:
    """The `zero_optimization` table that the launcher asks for; ZeRO-2 if it says nothing.

    Raises:
        UsageError: DeepSpeed is not installed, or is asked for something that does not fit this trainer.
    """
    from accelerate import DeepSpeedPlugin

    try:
        config = DeepSpeedPlugin().deepspeed_config
    except (ValueError, OSError) as error:
        raise UsageError(f"The launcher's DeepSpeed settings cannot be used: {error}.", next_step="Mend them, or leave them out.") from error
    zero = dict(config["zero_optimization"])
    stage = zero.get("stage")
    if stage == 3:
        raise UsageError("ZeRO-3 is not for this trainer, which shares out weights by FSDP2.", next_step=f"{_FSDP} Or take --zero_stage 2.")
    if stage not in (1, 2):
        raise UsageError(f"ZeRO stage {stage} shares nothing out.", next_step='Take --zero_stage 1 or 2, or parallel = "ddp".')
    for table in ("offload_optimizer", "offload_param"):
        if ((zero.pop(table, None) or {}).get("device") or "none") != "none":
            raise UsageError(f"{table} is not for this trainer.", next_step='Leave it out; model.tokens = "new" makes AdamW small.')
    others = [key for key, value in config.items() if key not in _OURS | {"zero_optimization"} and value not in ("auto", None)]
    if others:
        raise UsageError(f"A DeepSpeed config file may give zero_optimization; this one gives {others} as well.", next_step="Say it in the recipe.")
    if find_spec("deepspeed") is None:
        raise UsageError("DeepSpeed is not installed.", next_step=f"pip install 'lisaseg[deepspeed]'. Or do without: {_FSDP}")
    given = {key: value for key, value in zero.items() if value != "auto" and not key.startswith("stage3_")}
    return {"reduce_bucket_size": BUCKET} | given


def import_deepspeed(device: str) -> Any:
    """The library; what it logs goes to stderr.

    Raises:
        UsageError: it has chosen another kind of device than the recipe ("cpu", "cuda").
    """
    import deepspeed

    chosen = deepspeed.accelerator.get_accelerator().device_name()
    if chosen != device:
        raise UsageError(
            f"DeepSpeed computes on {chosen}, the recipe on {device}.", next_step=f"Set the environment variable DS_ACCELERATOR={device}."
        )
    for handler in deepspeed.utils.logger.handlers:
        if isinstance(handler, logging.StreamHandler):
            handler.setStream(sys.stderr)
    if device == "cpu":  # its all-reduce for inference would be compiled at the start; training does not use it
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


class ZeroUpdates(Updates):
    """As `Updates`, inside DeepSpeed's engine. Complete parameters lie on every process; gradients (stage 2) and moments do not.

    Args:
        step: a `lisa_loop.Step` on its device, not wrapped.
    """

    def __init__(self, accelerator: Any, step: nn.Module, learned: dict[str, nn.Parameter], recipe: LisaRecipe) -> None:
        device = accelerator.device.type
        deepspeed = import_deepspeed(device)
        optim: OptimSettings = recipe.optim
        if optim.precision == "bfloat16":  # inside, for the engine switches off what is around it
            step.forward = torch.autocast(device, torch.bfloat16)(step.forward)  # type: ignore[method-assign]
        self.accelerator, self.learned, self.optim, self.adam = accelerator, learned, optim, adam(learned, optim)
        config = {
            "train_micro_batch_size_per_gpu": optim.batch,
            "gradient_accumulation_steps": 1,  # the loss has its share already; `micro` says when a step is complete
            "gradient_clipping": optim.clip,
            "zero_optimization": zero_settings(),
            "zero_allow_untested_optimizer": True,
            "steps_per_print": 1 << 60,
        }
        self.module, _, _, _ = deepspeed.initialize(model=step, optimizer=self.adam, config=config)

    def forward(self, micro: MicroBatch, tokens: float, masks: float) -> tuple[Tensor, Tensor]:
        """`Step.forward`; its precision is set inside the engine."""
        loss, numbers = self.module(micro.to(self.accelerator.device), tokens, masks)
        return loss, numbers

    @contextlib.contextmanager
    def micro(self, last: bool) -> Iterator[None]:
        """Forward and backward of one micro-batch happen within; the engine is told whether the step is complete behind it."""
        self.module.set_gradient_accumulation_boundary(last)
        yield

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a loss of this process; over processes they are averaged."""
        self.module.backward(loss)

    def apply(self) -> float:
        """As `Updates.apply`; the engine passes over a step whose gradient is no number."""
        self.module.step()
        return float(self.module.get_global_grad_norm())

    def drop(self) -> None:
        """Forget the gradient."""
        self.module.optimizer.zero_grad(set_to_none=True)

    def tensors(self) -> dict[str, Tensor]:
        """As `Updates.tensors`: the processes' shares of the moments are put together."""
        from deepspeed.utils import safe_get_full_optimizer_state

        out = {f"param/{name}": p.detach().cpu() for name, p in self.learned.items()}
        steps = [state["step"] for state in self.adam.state.values() if "step" in state]
        for name, p in self.learned.items() if steps else ():
            out[f"adam/{name}/step"] = steps[0].detach().clone().cpu()  # one for all: every process has a share, and all step together
            for key in ("exp_avg", "exp_avg_sq"):
                out[f"adam/{name}/{key}"] = safe_get_full_optimizer_state(p, key).cpu()
        return out

    @torch.no_grad()
    def restore(self, tensors: dict[str, Tensor]) -> None:
        """As `Updates.restore`: each process takes its share."""
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

        zero = self.module.optimizer
        steps = [tensor for name, tensor in tensors.items() if name.startswith("adam/") and name.endswith("/step")]
        if steps:
            for group in self.adam.param_groups:
                for share in group["params"]:
                    self.adam.state[share] = {"step": steps[0].clone(), "exp_avg": torch.zeros_like(share), "exp_avg_sq": torch.zeros_like(share)}
            zero._lazy_init_hp_params_optimizer_state()  # as after a first step: now each parameter knows its part of the moments
        for name, p in self.learned.items():
            safe_set_full_fp32_param(p, tensors[f"param/{name}"].to(p.device))
            for key in ("exp_avg", "exp_avg_sq"):
                if f"adam/{name}/{key}" in tensors:
                    safe_set_full_optimizer_state(p, tensors[f"adam/{name}/{key}"].to(p.device), key)
        zero.update_lp_params()
