"""A small data set on disk: coloured rectangles that are asked for by colour, in lisaseg JSONL."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from lisaseg.formats import rle

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 220)}
KINDS = ("function", "safety")


def scene(k: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Picture k, uint8 (H, W, 3), and the mask of every colour in it."""
    rng = np.random.default_rng(k)
    height, width = 30 + 4 * (k % 3), 44 - 4 * (k % 2)
    rgb, masks = np.full((height, width, 3), 120, np.uint8), {}
    for n, (name, value) in enumerate(COLOURS.items()):
        y, x, h, w = int(rng.integers(0, 8)), 14 * n, int(rng.integers(4, 20)), int(rng.integers(4, 12))
        mask = np.zeros((height, width), bool)
        mask[y : y + h, x : x + w] = True
        rgb[mask] = value
        masks[name] = mask
    return rgb, masks


def write(folder: Path, n: int = 7, name: str = "val") -> Path:
    """`folder/<name>.jsonl` with two queries about each of n pictures, and one about something absent for every third."""
    lines: list[dict[str, Any]] = []
    for k in range(n):
        rgb, masks = scene(k)
        path = folder / "images" / f"{k}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rgb).save(path)
        for j, colour in enumerate(("red", "blue")):
            query = {"id": f"{k}_{j}", "image": f"images/{k}.png", "text": f"the {colour} <b>thing</b>", "is_sentence": bool(j), "kind": KINDS[j]}
            lines.append(query | {"mask": rle.encode(masks[colour]), "target": [colour]})
        if k % 3 == 0:
            lines.append({"id": f"{k}_no", "image": f"images/{k}.png", "text": "the purple thing", "mask": None, "kind": "absent"})
    file = folder / f"{name}.jsonl"
    file.write_text("\n".join(json.dumps(line) for line in lines))
    return file


def colour_of(rgb: np.ndarray, text: str) -> np.ndarray | None:
    """The mask of the colour that a text names, seen in the picture; None if it names none."""
    for name, value in COLOURS.items():
        if name in text:
            return (rgb == value).all(2)
    return None
