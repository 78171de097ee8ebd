"""How well lisa-tiny's eyes find what they are told the name of, in photos that they learned from and in others.

    python benchmarks/eyes.py -m lisa-tiny --pool DATA/pool --out benchmarks/results/eyes.json

The mask decoder is prompted with the true name's noun vector, no language model takes part. IoU is measured at 104 x 104, without ignored pixels.
COCO photos are those where more than one name is labelled exhaustively. `drawn` is what `lisaseg data pseudo-label` would draw there without labels:
how many masks, how many of their names are right, and the mean IoU of all. Rows of other models in the file stay.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

import numpy as np
import torch

import lisaseg
from lisaseg.datasets.pool import Pool
from lisaseg.formats import write_aside
from lisaseg.imaging import open_image
from lisaseg.train.pseudo_labels import LEAST, confident_masks, mentioned
from lisaseg.train.views import place, window_view
from lisaseg.types import IGNORE, TARGET

FILES = ("coco_train", "coco_val", "ccp_train", "ccp_val")
SMALL = 0.02  # of the picture's area


def picked(pool: Pool, n: int) -> list[int]:
    """At most n photos at random (seed 0), of those where more than one name is labelled exhaustively if there are any."""
    settled = [i for i in range(len(pool)) if len(pool.scope(i)) > 1] or list(range(len(pool)))
    return [settled[int(i)] for i in np.random.default_rng(0).permutation(len(settled))[:n]]


@torch.inference_mode()
def ious(predictor: lisaseg.Predictor, pool: Pool, index: int) -> list[tuple[float, float]]:
    """(IoU, share of the photo's area) of each labelled name that the model knows, prompted by that name."""
    model = predictor.model
    vision = model.vlm.vision
    view = place(window_view(pool, index, None, flip=False))
    known = [k for k, name in enumerate(view.info.names) if name in model.config.nouns and view.info.kinds[k] == "category"]
    if not known:
        return []
    maps = vision.maps(view.pixels[None].to(predictor.model.device) / 255, torch.tensor([view.info.valid]))
    rows = vision.neck.nouns[[model.config.nouns.index(view.info.names[k]) for k in known]]
    logits, _ = model.mask_decoder.decode(maps, rows, torch.zeros(len(known), dtype=torch.long))
    found = []
    for k, mask in zip(known, logits > 0, strict=True):
        target = view.targets[k]
        counted, true = target != 255, target == 1
        if true.any():
            union = ((mask | true) & counted).sum()
            found.append((float((mask & true).sum() / union), float(true.sum() / counted.sum())))
    return found


def drawn(predictor: lisaseg.Predictor, pool: Pool, index: int) -> list[float]:
    """IoU of each mask that would be drawn in a photo, of names that are labelled exhaustively there; 0 for a name that is not there."""
    sample, config = pool[index], predictor.model.config
    true = {query.name: query.masks[0] for query in sample.queries if query.kind == "category"}
    tried = {name: i for i, name in enumerate(config.nouns) if name in pool.scope(index)}
    found = confident_masks(predictor.model, open_image(sample.image).rgb, tried, mentioned(pool.captions(index)), LEAST)
    out = []
    for name, _, mask in found:
        target = true.get(name, np.zeros_like(mask))
        counted = target != IGNORE
        out.append(float((mask & (target == TARGET)).sum() / max(1, ((mask | (target == TARGET)) & counted).sum())) if name in true else 0.0)
    return out


def row(predictor: lisaseg.Predictor, pool: Pool, photos: int) -> dict[str, float | int]:
    """Mean IoU in percent, of all, of small and of other masks."""
    found = [pair for index in picked(pool, photos) for pair in ious(predictor, pool, index)]
    small, other = [iou for iou, share in found if share < SMALL], [iou for iou, share in found if share >= SMALL]
    out: dict[str, float | int] = {"photos": len(picked(pool, photos)), "masks": len(found), "small_masks": len(small)}
    for key, values in {"iou": small + other, "iou_small": small, "iou_other": other}.items():
        out[key] = round(100 * statistics.fmean(values), 1) if values else 0.0
    masks = [iou for index in picked(pool, photos) for iou in drawn(predictor, pool, index)]
    if masks:
        right = statistics.fmean(iou > 0 for iou in masks)
        out |= {"drawn": len(masks), "drawn_right_names": round(100 * right, 1), "drawn_iou": round(100 * statistics.fmean(masks), 1)}
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("-m", "--model", default="lisa-tiny")
    parser.add_argument("--name", help="of the row; the model's, if not given")
    parser.add_argument("--pool", type=Path, required=True)
    parser.add_argument("--files", nargs="+", default=list(FILES))
    parser.add_argument("--photos", type=int, default=60)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    predictor = lisaseg.load(options.model)
    rows = {}
    for file in options.files:
        rows[file] = row(predictor, Pool(options.pool, file), options.photos)
        print(f"{file:16s} " + "  ".join(f"{key} {value}" for key, value in rows[file].items()), flush=True)
    if options.out is not None:
        before = json.loads(options.out.read_text()) if options.out.is_file() else {}
        write_aside(options.out, (json.dumps(before | {options.name or options.model: rows}, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
