"""Names of the categories of label maps that come without a list of their own."""

from __future__ import annotations

import json
from functools import lru_cache
from importlib import resources


@lru_cache(maxsize=1)
def _tables() -> dict[str, list[str]]:
    return json.loads(resources.files("lisaseg.datasets").joinpath("class_names.json").read_text(encoding="utf-8"))  # type: ignore[no-any-return]


def class_names(name: str) -> tuple[str, ...]:
    """Names in the order of the published list: "ade20k" (150, pixel values from 1) or "cocostuff" (182, pixel values from 0)."""
    return tuple(_tables()[name])
