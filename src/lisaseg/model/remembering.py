"""The encoded pictures that a predictor keeps, so that a second question about one costs no encoding."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import numpy as np
from torch import Tensor


class PictureMemory(OrderedDict[str, Any]):
    """Digest of a picture -> what is kept of it, the one that was used last at the end."""

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays and tensors inside."""
        return sum(size_of(entry) for entry in self.values())

    def fit(self, pictures: int, nbytes: int | None = None) -> None:
        """Forget the pictures that were not used for longest: to a number of them, or, if `nbytes` is given, to that size instead."""
        if nbytes is None:
            while len(self) > pictures:
                self.popitem(last=False)
            return
        total = self.nbytes
        while self and total > nbytes:
            total -= size_of(self.popitem(last=False)[1])


def size_of(value: Any) -> int:
    """Bytes of the arrays and tensors inside; a view counts as all that it keeps alive."""
    if isinstance(value, Tensor):
        return value.untyped_storage().nbytes()
    if isinstance(value, np.ndarray):
        return value.nbytes
    if isinstance(value, dict):
        return sum(map(size_of, value.values()))
    if isinstance(value, list | tuple):
        return sum(map(size_of, value))
    return size_of(vars(value)) if hasattr(value, "__dict__") else 0
