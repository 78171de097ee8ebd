"""Mapillary Vistas 2.0: `mapillary/config_v2.0.json`, `mapillary/<split>/images/*.jpg`, `mapillary/<split>/v2.0/labels/*.png`.

Names are the config's `labels[].readable`, lower case. "Unlabeled" and whatever the config marks `"evaluate": false` is ignored, not asked for.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from lisaseg.datasets.semantic import LabelMaps
from lisaseg.errors import DataError
from lisaseg.formats.reading import field, load_json, text_field


class Mapillary(LabelMaps):
    """Mapillary Vistas 2.0 under a data root; `split` is "training" or "validation"."""

    name = "mapillary"

    def __init__(self, root: str | Path, split: str = "training", *, exclude: Collection[str | int | Path] = ()) -> None:
        folder = Path(root) / "mapillary"
        config = folder / "config_v2.0.json"
        labels = field(load_json(config, dict), "labels", str(config))
        if not isinstance(labels, list) or not labels:
            raise DataError(f"{config}, field 'labels': must be a list that is not empty.", next_step="Download the file again.")
        names, ignore = {}, {255}
        for value, label in enumerate(labels):
            names[value] = text_field(label, "readable", f"{config}, labels[{value}]").lower()
            if names[value] == "unlabeled" or label.get("evaluate") is False:
                ignore.add(value)
        super().__init__(folder / split / "images", folder / split / "v2.0" / "labels", names, ignore=ignore, exclude=exclude)
