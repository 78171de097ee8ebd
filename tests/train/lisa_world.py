"""What the tests of the general trainer train on: a random model in the published layout and a JSONL file of coloured squares."""

from __future__ import annotations

import copy
import json
import multiprocessing
import os
import shutil
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from tests import tiny_random
from tests.published_folder import published_tensors, random_model, write_folder

from lisaseg.model.lisa import LisaModel

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (40, 60, 220), "yellow": (230, 220, 40)}


def lively_model() -> LisaModel:
    """A random model of the published kind whose masks differ from nothing."""
    model = random_model()
    with torch.no_grad():
        for part in (model.mask_decoder, model.seg_head):
            for parameter in part.parameters():
                if parameter.ndim > 1:
                    parameter.normal_(std=0.15)
    return model


def write_model(folder: Path) -> Path:
    """A folder in the published layout with random weights."""
    return write_folder(folder, lively_model(), form="safetensors", shards=2)


def write_data(folder: Path, n: int = 8) -> Path:
    """`n` pictures of a coloured square on grey each, asked by colour, and some without a target."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    lines = []
    for k in range(n):
        height, width = 40 + 4 * (k % 3), 56
        rgb, (name, colour) = np.full((height, width, 3), 120, np.uint8), list(COLOURS.items())[k % len(COLOURS)]
        y, x = int(rng.integers(2, 16)), int(rng.integers(2, 30))
        rgb[y : y + 18, x : x + 20] = colour
        Image.fromarray(rgb).save(folder / f"{k}.png")
        box = [x, y, x + 20, y, x + 20, y + 18, x, y + 18]
        mask = None if k % 5 == 4 else {"polygons": [box]}
        lines.append({"id": str(k), "image": f"{k}.png", "text": f"the {name} square", "target": ["square"], "mask": mask, "kind": "referring"})
    path = folder / "train.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def write_recipe(path: Path, model: Path, data: Path, out: Path, **changes: Any) -> Path:
    """A recipe for the two; changes: "optim.steps"-like keys with "__" for the dot."""
    values: dict[str, dict[str, Any]] = {
        "": {"kind": "lisa", "out": str(out), "device": "cpu", "save_every": 2, "log_every": 1},
        "model": {"start": str(model), "offline": True},
        "model.lora": {"rank": 4, "dropout": 0.1},
        "data": {"loss_side": 32},
        "data.jsonl.mine": {"path": str(data)},
        "optim": {"steps": 4, "batch": 2, "accumulation": 2, "lr": 1e-3, "warmup": 2, "precision": "float32"},
        "probe": {"every": 2, "size": 3, "patience": 0},
    }
    for key, value in changes.items():
        table, _, name = key.replace("__", ".").rpartition(".")
        values.setdefault(table, {})[name] = value
    text = ""
    for table, entries in values.items():
        text += (f"[{table}]\n" if table else "") + "".join(f"{name} = {json.dumps(value)}\n" for name, value in entries.items())
    path.write_text(text)
    return path


def read_log(out: Path, key: str = "loss") -> list[float]:
    """The values of one number, in the order of steps."""
    lines = map(json.loads, (out / "log.jsonl").read_text().splitlines())
    return [line[key] for line in lines if key in line]


def fresh_state() -> None:
    """Forget an earlier test's precision and processes."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)


def train(recipe: Path, *overrides: str, resume: bool = True, dry_run: bool = False) -> None:
    """Run a recipe in this process."""
    from lisaseg.train import run_recipe

    fresh_state()
    run_recipe(recipe, list(overrides), resume=resume, dry_run=dry_run)


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def start_processes(recipe: Path, *overrides: str, world: int = 1) -> list[multiprocessing.process.BaseProcess]:
    """Run a recipe in processes of its own, forked so that nothing is imported again; joined by gloo if there are several."""
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world)}
    processes = []
    for rank in range(world):
        env = shared | {"RANK": str(rank), "LOCAL_RANK": str(rank), "ACCELERATE_USE_CPU": "true"} if world > 1 else {}
        processes.append(multiprocessing.get_context("fork").Process(target=_child, args=(recipe, overrides, env), daemon=True))
        processes[-1].start()
    return processes


def train_apart(recipe: Path, *overrides: str, world: int) -> None:
    """`start_processes`, and wait until all are done."""
    processes = start_processes(recipe, *overrides, world=world)
    for process in processes:
        process.join(240)
    assert (codes := [process.exitcode for process in processes]) == [0] * world, codes


def _child(recipe: Path, overrides: tuple[str, ...], env: dict[str, str]) -> None:
    os.environ.update(env)
    torch.set_num_threads(1)
    train(recipe, *overrides)


def write_parts(folder: Path) -> tuple[dict[str, str], LisaModel]:
    """LLaVA, SAM and CLIP as they are published, small and random: the `model.parts` of a recipe, and the model that they were taken from."""
    model = lively_model()
    whole = write_folder(folder / "whole", model, form="bin", shards=1)
    tensors = published_tensors(model)
    llava, sam = folder / "llava", folder / "sam.pth"
    llava.mkdir()
    bare = {k: v for k, v in tensors.items() if not k.startswith(("model.visual_model.", "model.text_hidden_fcs."))}
    for table in ("model.embed_tokens.weight", "lm_head.weight"):
        bare[table] = bare[table][:384].clone()  # without LISA's tokens
    bare["model.vision_tower.vision_tower.some.weight"] = torch.zeros(1)
    torch.save(bare, llava / "pytorch_model.bin")
    own = {k.removeprefix("model.visual_model."): v for k, v in tensors.items() if k.startswith("model.visual_model.")}
    torch.save(own, sam)
    shutil.copyfile(whole / "tokenizer.model", llava / "tokenizer.model")
    values = json.loads((whole / "config.json").read_text())
    for key in ("out_dim", "train_mask_decoder"):
        del values[key]
    (llava / "config.json").write_text(json.dumps(values | {"architectures": ["LlavaLlamaForCausalLM"], "vocab_size": 384}))
    return {"llava": str(llava), "sam": str(sam), "clip": str(whole / "clip"), "sam_config": str(whole / "sam_config.json")}, model


def write_tiny(folder: Path, patch: pytest.MonkeyPatch) -> Path:
    """lisa-tiny's weights folder, small and random, adapters apart; its language model is what the weights cache gives from now on."""
    from lisaseg.model.checkpoint import trained_tensors
    from lisaseg.train.run import add_lora

    model = tiny_random.build_model()
    language_model = model.vlm.language_model
    plain, config = copy.deepcopy(language_model.state_dict()), language_model.config
    tokenizer = tiny_random.write_tokenizer(folder / "language")

    def load(name: str, dtype: torch.dtype, offline: bool = False) -> tuple[Any, Path]:
        fresh = type(language_model)(config)
        fresh.load_state_dict(plain)
        return fresh.to(dtype).eval(), tokenizer

    for module in ("lisaseg.train.lisa_model", "lisaseg.model.assemble"):
        patch.setattr(f"{module}.load_language_model", load)
    add_lora(model, 4, 8)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_B" in name:
                p.normal_(std=0.02)
    model.config.lora, model.config.language_model = {"rank": 4, "alpha": 8}, "smollm2-135m-instruct"
    target = folder / "tiny"
    target.mkdir()
    save_file(trained_tensors(model), target / "model.safetensors")
    (target / "config.json").write_text(json.dumps(model.config.to_diff_dict()))
    return target
