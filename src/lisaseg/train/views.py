"""Views: a picture as the trainer sees it, with the frozen trunk's features computed once and kept on disk.

The trunk does not learn, so its features of a view never change: computing them once makes every later epoch several times cheaper. A view is one
safetensors file: trunk features, targets at 104 x 104 (uint8, 255 = ignore or padding) and what is known about the picture (JSON in the metadata).
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from lisaseg.datasets.pool import Pool
from lisaseg.errors import TrainingError
from lisaseg.imaging import fit_longest_side, open_image
from lisaseg.vlms.tiny_trunk import CANVAS, TinyTrunk

if TYPE_CHECKING:
    from lisaseg.datasets.cutouts import Cutouts

TARGET_SIDE = 104
FEATURES = ("s4", "s8", "s16", "s32", "imagenet", "boxes", "scores")


@dataclass
class ViewInfo:
    """What is known about a view.

    names / kinds / texts: one for each target mask (a category; `text` may be finer than `name`). instance_names: one for each instance mask.
    absent: names that are verified not to be there. scope: names that are labelled exhaustively. captions: of the whole picture (plain views only).
    """

    id: str
    source: str
    valid: tuple[float, float]
    names: list[str] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    kinds: list[str] = field(default_factory=list)
    instance_names: list[str] = field(default_factory=list)
    absent: list[str] = field(default_factory=list)
    scope: list[str] = field(default_factory=list)
    captions: list[str] = field(default_factory=list)


@dataclass
class View:
    """One view: targets (M, 104, 104) uint8, instances (I, 104, 104) uint8, and either the trunk's features (without batch axis) or, for a trunk that
    runs in every step, the pixels uint8 (3, 416, 416)."""

    info: ViewInfo
    trunk: dict[str, Tensor]
    targets: Tensor
    instances: Tensor
    pixels: Tensor | None = None


def crop_box(hw: tuple[int, int], rng: np.random.Generator, smallest: float = 0.3) -> tuple[int, int, int, int]:
    """A random window (top, left, bottom, right) with `smallest` to 90 % of the picture's area and a mild change of aspect."""
    h, w = hw
    side = np.sqrt(rng.uniform(smallest, 0.9))
    aspect = np.exp(rng.uniform(-0.25, 0.25))
    ch, cw = int(min(h, max(32, h * side * aspect))), int(min(w, max(32, w * side / aspect)))
    top, left = int(rng.integers(0, h - ch + 1)), int(rng.integers(0, w - cw + 1))
    return top, left, top + ch, left + cw


def _shrink(placement: Any, masks: list[np.ndarray]) -> Tensor:
    if not masks:
        return torch.zeros(0, TARGET_SIDE, TARGET_SIDE, dtype=torch.uint8)
    return torch.from_numpy(np.stack([placement.apply_mask(np.ascontiguousarray(m), TARGET_SIDE) for m in masks]))


Raw = tuple[ViewInfo, np.ndarray, list[np.ndarray], list[np.ndarray]]


def pool_views(pool: Pool, index: int, augment: bool, seed: int) -> Raw:
    """One picture of the pool, plain or flipped and cropped: info, rgb, target masks, instance masks."""
    window = crop_box(pool.size(index), np.random.default_rng([seed, index])) if augment else None
    raw = window_view(pool, index, window, flip=augment)
    raw[0].id += "+a" if augment else ""
    return raw


def window_view(pool: Pool, index: int, window: tuple[int, int, int, int] | None, flip: bool) -> Raw:
    """A window (top, left, bottom, right; None = all) of one picture of the pool, mirrored or not: info, rgb, target masks, instance masks."""
    sample = pool[index]
    rgb = open_image(sample.image).rgb
    masks = [q.masks[0] for q in sample.queries]
    instances = pool.instances(index)
    singles = [m for _, m in instances]
    t, left, b, r = window or (0, 0, *rgb.shape[:2])
    step = -1 if flip else 1
    rgb = np.ascontiguousarray(rgb[t:b, left:r][:, ::step])
    masks = [m[t:b, left:r][:, ::step] for m in masks]
    singles = [m[t:b, left:r][:, ::step] for m in singles]
    area = rgb.shape[0] * rgb.shape[1]
    keep = [k for k, m in enumerate(masks) if (m == 1).sum() >= 0.0005 * area]
    counted = [n for n, _ in instances]
    single = [k for k, m in enumerate(singles) if 2 <= counted.count(counted[k]) <= 6 and (m == 1).sum() >= 0.003 * area]
    info = ViewInfo(sample.id, sample.source, (1.0, 1.0))
    info.names = [sample.queries[k].name for k in keep]
    info.texts = [sample.queries[k].text for k in keep]
    info.kinds = [sample.queries[k].kind for k in keep]
    info.instance_names = [counted[k] for k in single]
    info.absent = list(sample.absent)
    info.scope = sorted(pool.scope(index))
    info.captions = [] if window or flip else list(pool.captions(index))
    return info, rgb, [masks[k] for k in keep], [singles[k] for k in single]


def composite_view(pools: list[Pool], cutouts: Cutouts, index: int, seed: int) -> Raw:
    """Cut-outs pasted on a random photo; only what was pasted is known."""
    from lisaseg.datasets.cutouts import compose

    rng = np.random.default_rng([seed, 7, index])
    pool = pools[int(rng.integers(len(pools)))]
    background = open_image(pool[int(rng.integers(len(pool)))].image).rgb
    chosen = [int(i) for i in rng.choice(len(cutouts), size=int(rng.integers(2, 5)), replace=False)]
    rgb, masks = compose(background, [cutouts.load(i) for i in chosen], rng)
    area = rgb.shape[0] * rgb.shape[1]
    by_name: dict[str, np.ndarray] = {}
    for i, mask in zip(chosen, masks, strict=True):
        if mask.sum() >= 0.002 * area:
            name = cutouts[i].name
            by_name[name] = np.maximum(by_name.get(name, 0), mask).astype(np.uint8)
    info = ViewInfo(f"composite_{index}", "cutouts", (1.0, 1.0), list(by_name), list(by_name), ["cutout"] * len(by_name))
    return info, rgb, list(by_name.values()), []


def place(raw: Raw) -> View:
    """Put a view on the canvas, without features."""
    info, rgb, masks, instances = raw
    canvas, placement = fit_longest_side(rgb, CANVAS)
    info.valid = placement.valid_fraction
    pixels = torch.from_numpy(canvas).permute(2, 0, 1).contiguous()
    return View(info, {}, _shrink(placement, masks), _shrink(placement, instances), pixels)


def write_view(folder: Path, raw: Raw, trunk: TinyTrunk) -> Path:
    """Compute the features of one view and write `<id>.safetensors`; aside first, then renamed."""
    view = place(raw)
    assert view.pixels is not None
    with torch.inference_mode():
        features = trunk(view.pixels[None].float() / 255)
    tensors = {k: features[k][0].contiguous().to(torch.float32 if k in ("boxes", "scores") else torch.bfloat16) for k in FEATURES}
    tensors["targets"], tensors["instances"] = view.targets, view.instances
    path = folder / f"{view.info.id}.safetensors"
    aside = path.with_suffix(f".{os.getpid()}.tmp")
    save_file(tensors, aside, metadata={"info": json.dumps(asdict(view.info))})
    os.replace(aside, path)
    return path


def read_view(path: Path) -> View:
    """The view of one file."""
    with safe_open(path, "pt") as f:
        info = ViewInfo(**json.loads(f.metadata()["info"]))
        info.valid = (float(info.valid[0]), float(info.valid[1]))
        return View(info, {k: f.get_tensor(k) for k in FEATURES}, f.get_tensor("targets"), f.get_tensor("instances"))


def plan_views(
    pools: list[Pool], views: dict[str, int], cutouts: Cutouts | None, composites: int, seed: int
) -> Iterator[tuple[str, Callable[[], Raw]]]:
    """(file stem, maker) of every view, deterministic: picture by picture the plain one, then augmented ones (`+a`, `+b`, ...); composites last.

    Raises:
        TrainingError: two pictures of the pools have one file name, so that one would get the other's view.
    """
    seen: dict[str, Path] = {}
    for pool in pools:
        for index in range(len(pool)):
            picture = pool._images[index]["file_name"]
            for copy in range(views.get(pool.path.stem, 1)):
                stem = Path(picture).stem + (f"+{chr(ord('a') + copy - 1)}" if copy else "")
                if stem in seen:
                    raise TrainingError(
                        f"{pool.path}: the picture {picture} has the name of one in {seen[stem]}, and so would their views {stem}.",
                        next_step="Rename one of the two picture files, or leave it out.",
                    )
                seen[stem] = pool.path
                yield stem, lambda pool=pool, index=index, copy=copy: pool_views(pool, index, copy > 0, seed + copy)  # type: ignore[misc]
    if cutouts is not None:
        for index in range(composites):
            yield f"composite_{index}", lambda index=index: composite_view(pools, cutouts, index, seed)  # type: ignore[misc]


def build_cache(
    folder: Path, plan: list[tuple[str, Callable[[], Raw]]], trunk: TinyTrunk, progress: Callable[[int, int], None], shard: tuple[int, int] = (0, 1)
) -> None:
    """Write every missing view of the plan (or of one shard of it); interrupt and call again to go on."""
    folder.mkdir(parents=True, exist_ok=True)
    mine = plan[shard[0] :: shard[1]]
    for done, (stem, make) in enumerate(mine):
        if not (folder / f"{stem}.safetensors").is_file():
            raw = make()
            raw[0].id = stem
            write_view(folder, raw, trunk)
        progress(done + 1, len(mine))
