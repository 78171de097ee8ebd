"""Several processes: DDP by accelerate, FSDP2 (`torch.distributed.fsdp.fully_shard`), or DeepSpeed (`lisa_deepspeed`), the same code on a CPU (gloo)
and on GPUs (nccl).

accelerate starts the process group, knows device, precision and loss scaling, and wraps for DDP. Sharding is done here: on a CPU accelerate turns
FSDP into DDP without a word, and then no test could see it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from lisaseg.errors import UsageError
from lisaseg.model.lisa import LisaModel
from lisaseg.train.lisa_config import LisaRecipe
from lisaseg.train.recipe import checked

PRECISION = {"float32": "no", "bfloat16": "bf16", "float16": "fp16"}
Made = TypeVar("Made")


def as_launched(recipe: LisaRecipe) -> LisaRecipe:
    """The recipe, with DeepSpeed if the launcher asks for it (`accelerate launch --use_deepspeed`)."""
    if os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() != "true":
        return recipe
    return checked(LisaRecipe, recipe.model_dump() | {"parallel": "deepspeed"}, "the recipe under `accelerate launch --use_deepspeed`")


def start_processes(recipe: LisaRecipe) -> Any:
    """The `Accelerator` of this process; joins the group that torchrun, `accelerate launch` or `deepspeed` announced.

    Raises:
        UsageError: the machine cannot do what the recipe asks for.
    """
    from accelerate import Accelerator, InitProcessGroupKwargs

    cpu = recipe.device == "cpu" or not torch.accelerator.is_available()
    if cpu and recipe.optim.precision == "float16":
        raise UsageError("float16 is not for CPUs.", next_step='Use optim.precision = "bfloat16" or "float32".')
    for launched in ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"):
        os.environ.pop(launched, None)  # `accelerate launch --use_...`: the sharding is ours
    if "LOCAL_SIZE" in os.environ:  # what DeepSpeed's launcher calls it
        os.environ.setdefault("LOCAL_WORLD_SIZE", os.environ["LOCAL_SIZE"])
    waits = InitProcessGroupKwargs(timeout=timedelta(hours=1))  # large models are read one process after another
    return Accelerator(cpu=cpu, mixed_precision=PRECISION[recipe.optim.precision], kwargs_handlers=[waits])


def in_turn(accelerator: Any, make: Callable[[], Made]) -> Made:
    """Call `make` in one process of a machine after another, so that the machine needs memory for one whole model only."""
    made: Made | None = None
    for turn in range(int(os.environ.get("LOCAL_WORLD_SIZE", accelerator.num_processes))):
        if accelerator.local_process_index == turn:
            made = make()
        accelerator.wait_for_everyone()
    assert made is not None
    return made


def device_mesh(accelerator: Any) -> Any:
    """All processes in a row."""
    from torch.distributed.device_mesh import init_device_mesh

    return init_device_mesh(accelerator.device.type, (accelerator.num_processes,))


def shard(step: nn.Module, model: LisaModel, mesh: Any) -> None:
    """Share out the parameters of the blocks that make a model large, each by itself, and of the rest together, over the processes of `mesh`."""
    from torch.distributed.fsdp import fully_shard

    for block in _blocks(model):
        fully_shard(block, mesh=mesh)
    fully_shard(step, mesh=mesh, reshard_after_forward=False)


def _blocks(model: LisaModel) -> Iterator[nn.Module]:
    yield from model.vlm.language_model.model.layers
    sam = getattr(model.mask_decoder, "sam", None)
    for tower in (getattr(model.vlm, "vision", None), getattr(sam, "vision_encoder", None)):
        if isinstance(tower, nn.Module) and not any(p.requires_grad for p in tower.parameters()):
            lists = (module for name, module in tower.named_modules() if name.rpartition(".")[2] == "layers" and isinstance(module, nn.ModuleList))
            for blocks in lists:
                yield from blocks


def whole(tensor: Tensor) -> Tensor:
    """A tensor that may be shared out, complete; every process must call it."""
    from torch.distributed.tensor import DTensor

    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach()


def like(value: Tensor, pattern: Tensor) -> Tensor:
    """`value` (complete) on the device of `pattern`, and shared out as it is."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    value = value.to(pattern.device)
    if not isinstance(pattern, DTensor):
        return value
    return distribute_tensor(value, pattern.device_mesh, pattern.placements)
