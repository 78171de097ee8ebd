"""SOCKET 3, data sets: index -> `Sample`. Deterministic; no tokenizer, no randomness, no torch; pictures stay paths until they are needed.

A data set is any class that follows `SegmentationDataset`. Built-in names and "package.module:Class" are resolved, and imported, by `DATASETS.get`.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from lisaseg.registry import Registry
from lisaseg.types import Sample

__all__ = ["DATASETS", "SegmentationDataset"]


@runtime_checkable
class SegmentationDataset(Protocol):
    """What training and evaluation read from."""

    def __len__(self) -> int:
        """Number of samples."""

    def __getitem__(self, index: int) -> Sample:
        """The sample at `index`, equal at every call.

        Raises:
            IndexError: outside of [-len, len).
            DataError: the entry is wrong; the message names file and entry.
        """


DATASETS = Registry("datasets", {"pool": "lisaseg.datasets.pool:Pool"})
