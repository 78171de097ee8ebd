"""PACO-LVIS, objects and parts: `vlpart/paco/annotations/paco_lvis_v1_<split>.json`, pictures `coco/{file_name}`."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from lisaseg.datasets.parts import Parts


class PacoLvis(Parts):
    """PACO-LVIS under a data root; `split` is "train" or "val". Pictures are COCO 2017's."""

    name = "paco_lvis"

    def __init__(self, root: str | Path, split: str = "train", *, exclude: Collection[str | int | Path] = ()) -> None:
        annotations = Path(root) / "vlpart" / "paco" / "annotations" / f"paco_lvis_v1_{split}.json"
        super().__init__(root, annotations=annotations, pictures=Path(root) / "coco", exclude=exclude)
