"""COCO-Stuff: label maps `cocostuff/<split>/*.png` (value v is category v + 1 of the published list, 255 unlabelled), pictures `coco/<split>/*.jpg`.

Categories with a "-" ("wall-brick", "furniture-other") are no words that people use: their pixels are ignored.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from lisaseg.datasets.class_names import class_names
from lisaseg.datasets.semantic import LabelMaps


class CocoStuff(LabelMaps):
    """COCO-Stuff under a data root; `split` is "train2017" or "val2017"."""

    name = "cocostuff"

    def __init__(self, root: str | Path, split: str = "train2017", *, exclude: Collection[str | int | Path] = ()) -> None:
        names = dict(enumerate(class_names("cocostuff")))
        ignore = [255, *(value for value, name in names.items() if "-" in name)]
        super().__init__(Path(root) / "coco" / split, Path(root) / "cocostuff" / split, names, ignore=ignore, exclude=exclude)
