"""ADE20K scene parsing (150 categories): `ade20k/images/<split>/*.jpg`, `ade20k/annotations/<split>/*.png`; value 0 is unlabelled."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from lisaseg.datasets.class_names import class_names
from lisaseg.datasets.semantic import LabelMaps


class Ade20k(LabelMaps):
    """ADE20K under a data root; `split` is "training" or "validation". Value v is category v - 1; unlabelled pixels are ignored."""

    name = "ade20k"

    def __init__(self, root: str | Path, split: str = "training", *, exclude: Collection[str | int | Path] = ()) -> None:
        folder = Path(root) / "ade20k"
        names = dict(enumerate(class_names("ade20k"), start=1))
        super().__init__(folder / "images" / split, folder / "annotations" / split, names, ignore=(0, 255), exclude=exclude)
