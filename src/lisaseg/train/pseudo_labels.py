"""Pseudo-labels: masks that a trained lisa-tiny draws where only some things of a photo are labelled, for another training to learn from.

Self-training (arXiv 1911.04252): the teacher sees the plain photo and its mirror image, the pupil windows of it in another light, with things pasted
in and features hidden. A mask is kept if the teacher estimates its IoU high, or fairly high where a caption or YOLO names the thing, too, and if both
sights of the photo agree about it.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lisaseg.datasets.pool import Pool, names_close_to, natural_name
from lisaseg.datasets.vocabulary import category_texts
from lisaseg.errors import TrainingError
from lisaseg.formats import rle, write_aside
from lisaseg.imaging import fit_longest_side, open_image
from lisaseg.model.lisa import LisaModel
from lisaseg.train.noun_space import COCO_THINGS
from lisaseg.vlms.base import ImageContext

LEAST = 0.65  # estimated IoU of a mask
CONFIRMED = 0.15  # estimated IoU that a mask may lack if a caption or YOLO names its thing
AGREE = 0.6  # IoU of the masks in the photo and in its mirror image
DETECTED, GUESSED = 0.3, 0.1  # YOLO's score that confirms a name, and the one from which a name is tried
SEEN = 16  # names that the vision tower sees, tried as well


def add_pseudo_labels(pool: Pool, model: LisaModel, out: Path, least: float = LEAST, progress: Callable[[int, int], None] | None = None) -> int:
    """Write a copy of a COCO file with pseudo-labels (annotations of kind "pseudo", with `score`); those of an earlier call are left out first.

    Names whose presence is settled are not touched: what is labelled, names close to it, and what is labelled exhaustively in that photo.

    Args:
        pool: the file. model: a lisa-tiny with a vocabulary. out: the copy, in a folder with the same images. least: estimated IoU of a mask.
        progress: called with (photos done, photos).

    Returns:
        How many masks were added.

    Raises:
        TrainingError: the model sees no names.
    """
    if not model.config.nouns or model.config.vlm.get("family") != "tiny":
        raise TrainingError(
            "Pseudo-labels need a model that sees names, of lisa-tiny's kind.", next_step="Give lisa-tiny, or the result of its recipe."
        )
    data = json.loads(pool.path.read_text(encoding="utf-8"))
    data["annotations"] = [a for a in data["annotations"] if a.get("kind") != "pseudo"]
    numbers = {natural_name(str(c["name"])): c["id"] for c in data["categories"]}
    place = {name: i for i, name in enumerate(model.config.nouns) if name in numbers}
    added: list[dict[str, Any]] = []
    for index, image in enumerate(data["images"]):
        settled = names_close_to(pool.labelled(index, drawn=False)) | pool.scope(index)
        tried = {name: i for name, i in place.items() if name not in settled}
        for name, score, mask in confident_masks(model, open_image(pool.picture(index)).rgb, tried, mentioned(pool.captions(index)), least):
            code = rle.encode(mask)
            added.append({"image_id": image["id"], "category_id": numbers[name], "kind": "pseudo", "iscrowd": 0, "score": round(score, 3)})
            added[-1] |= {"segmentation": code, "area": int(mask.sum()), "bbox": _box(mask)}
        if progress is not None:
            progress(index + 1, len(data["images"]))
    first = 1 + max((a["id"] for a in data["annotations"] if isinstance(a.get("id"), int)), default=0)
    data["annotations"] += [{"id": first + k, **annotation} for k, annotation in enumerate(added)]
    write_aside(out, json.dumps(data).encode())
    return len(added)


@torch.inference_mode()
def confident_masks(
    model: LisaModel, rgb: np.ndarray, tried: dict[str, int], confirmed: frozenset[str], least: float
) -> list[tuple[str, float, np.ndarray]]:
    """(name, estimated IoU, bool mask (H, W)) of the things in a photo (H, W, 3) that the model is sure of, best first, one mask a name.

    Args:
        tried: names that may be found -> their row in the vocabulary. confirmed: names that something else says are there. least: estimated IoU.
    """
    vision, device = model.vlm.vision, model.device
    neck: Any = vision.neck  # type: ignore[union-attr]
    canvas, placement = fit_longest_side(rgb, vision.canvas)  # type: ignore[union-attr,arg-type]
    mirrored, _ = fit_longest_side(np.ascontiguousarray(rgb[:, ::-1]), vision.canvas)  # type: ignore[union-attr,arg-type]
    pixels = torch.from_numpy(np.stack([canvas, mirrored])).permute(0, 3, 1, 2).to(device).float() / 255
    trunk = vision.trunk(pixels)  # type: ignore[union-attr,operator]
    valid = torch.tensor([placement.valid_fraction] * 2, device=device)
    maps = neck(trunk, valid)
    detected = dict(zip(COCO_THINGS, trunk["scores"].amax(1).mean(0).tolist(), strict=True))
    seen = {model.config.nouns[i] for i in model.vlm.seen_names(ImageContext(pixels, maps), SEEN)}
    names = [name for name in tried if detected.get(name, 0.0) >= GUESSED or name in seen or name in confirmed]
    if not names:
        return []
    rows = neck.nouns[[tried[name] for name in names]]
    side = torch.arange(2, device=device).repeat_interleave(len(names))
    logits, scores = model.mask_decoder.decode(maps, rows.repeat(2, 1).to(maps.mid.dtype), side)  # type: ignore[operator]
    plain, flipped = logits.view(2, len(names), *logits.shape[1:])
    height, width = (max(1, round(share * logits.shape[-1])) for share in placement.valid_fraction)
    plain, flipped = plain[:, :height, :width], flipped[:, :height, :width].flip(-1)
    agree, score = _iou(plain > 0, flipped > 0), scores.view(2, -1).mean(0)
    both = (plain + flipped)[:, None] / 2
    found: list[tuple[str, float, np.ndarray]] = []
    for k in score.argsort(descending=True).tolist():
        sure = float(score[k]) + CONFIRMED * (names[k] in confirmed or detected.get(names[k], 0.0) >= DETECTED) >= least
        taken = names_close_to([name for name, _, _ in found])
        if sure and float(agree[k]) >= AGREE and names[k] not in taken:
            mask = F.interpolate(both[k][None], rgb.shape[:2], mode="bilinear", align_corners=False)[0, 0] > 0
            if mask.any():
                found.append((names[k], float(score[k]), mask.cpu().numpy()))
    return found


def mentioned(captions: tuple[str, ...]) -> frozenset[str]:
    """Natural names of the things that captions speak of, by name or synonym, one or many."""
    found: set[str] = set()
    for caption in captions:
        words = re.findall(r"[a-z'-]+", caption.lower())
        spoken = {*words, *(f"{a} {b}" for a, b in itertools.pairwise(words))}
        for word in spoken | {w[:-1] for w in spoken if w.endswith("s")} | {w[:-2] for w in spoken if w.endswith("es")}:
            found |= _speakers().get(word, frozenset())
    return frozenset(found)


@lru_cache(maxsize=1)
def _speakers() -> dict[str, frozenset[str]]:
    """Word or pair of words -> natural names that it can mean."""
    table: dict[str, set[str]] = {}
    for text in category_texts().values():
        for word in (text.name, *text.synonyms):
            table.setdefault(word.lower(), set()).add(text.name)
    return {word: frozenset(names) for word, names in table.items()}


def _iou(one: Tensor, two: Tensor) -> Tensor:
    """IoU of bool masks (N, H, W) and (N, H, W): (N,)."""
    return (one & two).sum((1, 2)) / (one | two).sum((1, 2)).clamp(min=1)


def _box(mask: np.ndarray) -> list[int]:
    """COCO's bounding box [x, y, width, height] of a bool mask."""
    ys, xs = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return [int(xs[0]), int(ys[0]), int(xs[-1] - xs[0] + 1), int(ys[-1] - ys[0] + 1)]
