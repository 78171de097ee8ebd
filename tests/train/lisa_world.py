"""What the tests of the general trainer train on: a random model in the published layout and a JSONL file of coloured squares."""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tests.published_folder import random_model, write_folder

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (40, 60, 220), "yellow": (230, 220, 40)}


def write_model(folder: Path) -> Path:
    """A folder in the published layout with random weights."""
    model = random_model()
    with torch.no_grad():
        for part in (model.mask_decoder, model.seg_head):
            for parameter in part.parameters():
                if parameter.ndim > 1:
                    parameter.normal_(std=0.15)  # masks that differ from nothing
    return write_folder(folder, model, form="safetensors", shards=2)


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


def train(recipe: Path, *overrides: str, resume: bool = True, dry_run: bool = False) -> None:
    """Run a recipe in this process."""
    from accelerate.state import AcceleratorState

    from lisaseg.train import run_recipe

    AcceleratorState._reset_state(reset_partial_state=True)  # an earlier test's precision and processes
    run_recipe(recipe, list(overrides), resume=resume, dry_run=dry_run)


def start_processes(recipe: Path, *overrides: str, world: int = 1) -> list[multiprocessing.process.BaseProcess]:
    """Run a recipe in processes of its own, forked so that nothing is imported again; joined by gloo if there are several."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world)}
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
    assert [process.exitcode for process in processes] == [0] * world


def _child(recipe: Path, overrides: tuple[str, ...], env: dict[str, str]) -> None:
    os.environ.update(env)
    torch.set_num_threads(1)
    train(recipe, *overrides)
