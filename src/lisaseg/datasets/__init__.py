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


# Public sets are made by `cls(root, split, exclude=...)`, where root is laid out as for the reference implementation.
DATASETS = Registry(
    "datasets",
    {
        "pool": "lisaseg.datasets.pool:Pool",
        "jsonl": "lisaseg.datasets.native:NativeJsonl",
        "ade20k": "lisaseg.datasets.ade20k:Ade20k",
        "cocostuff": "lisaseg.datasets.cocostuff:CocoStuff",
        "mapillary": "lisaseg.datasets.mapillary:Mapillary",
        "paco_lvis": "lisaseg.datasets.paco:PacoLvis",
        "pascal_part": "lisaseg.datasets.pascal_part:PascalPart",
        "refcoco": "lisaseg.datasets.refer:RefCoco",
        "refcoco+": "lisaseg.datasets.refer:RefCocoPlus",
        "refcocog": "lisaseg.datasets.refer:RefCocoG",
        "refcocog_google": "lisaseg.datasets.refer:RefCocoGGoogle",
        "refclef": "lisaseg.datasets.refer:RefClef",
        "grefcoco": "lisaseg.datasets.refer:GRefCoco",
        "llava_instruct": "lisaseg.datasets.llava_instruct:LlavaInstruct",
        "reasonseg": "lisaseg.datasets.reasonseg:ReasonSeg",
        "coco_instances": "lisaseg.datasets.coco:CocoInstances",
        "coco_panoptic": "lisaseg.datasets.coco:CocoPanoptic",
    },
)
