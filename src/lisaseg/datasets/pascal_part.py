"""PASCAL-Part in COCO's format: `vlpart/pascal_part/<split>.json`, pictures `vlpart/pascal_part/VOCdevkit/VOC2010/JPEGImages/`."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from lisaseg.datasets.parts import Parts


class PascalPart(Parts):
    """PASCAL-Part under a data root; `split` is "train" or "val"."""

    name = "pascal_part"

    def __init__(self, root: str | Path, split: str = "train", *, exclude: Collection[str | int | Path] = ()) -> None:
        folder = Path(root) / "vlpart" / "pascal_part"
        pictures = folder / "VOCdevkit" / "VOC2010" / "JPEGImages"
        super().__init__(root, annotations=folder / f"{split}.json", pictures=pictures, exclude=exclude)
