"""The data of an evaluation by name: a lisaseg JSONL file, a folder of ReasonSeg, or a registered set under a data root."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lisaseg.datasets import DATASETS, SegmentationDataset
from lisaseg.errors import UsageError

_OWNERS = {"U": "umd", "G": "google"}  # the papers' val(U), test(U) and val(G) of refCOCOg
_OWNED = re.compile(r"(?P<split>\w+)\((?P<owner>[UG])\)")
_FORMS = "Give a lisaseg JSONL file, a folder of ReasonSeg (`.../ReasonSeg/val`), or the name of a set together with --root."


@dataclass(frozen=True)
class OpenedData:
    """A data set with what a report calls it. title: for people. name, split: what the sets of a model's `trained_on` are compared with."""

    dataset: SegmentationDataset
    title: str
    name: str
    split: str

    def count(self, index: int) -> int:
        """Number of queries of the sample at `index`."""
        counter: Any = getattr(self.dataset, "query_count", None)
        return int(counter(index)) if counter is not None else len(self.dataset[index].queries)


def open_data(data: str, root: Path | None = None, split: str | None = None) -> OpenedData:
    """Open the data that `--data`, `--root` and `--split` name.

    Args:
        data: path of a JSONL file; path of a folder with ReasonSeg's pictures and JSON files, or of a data root with `reason_seg/ReasonSeg`; or a
            name of `lisaseg.datasets.DATASETS` ("refcoco", "grefcoco", ...).
        root: data root of a named set.
        split: "val" (the default), "testA", "test", ...; for refCOCOg also "val(U)", "test(U)" and "val(G)". A JSONL file is its own split.

    Raises:
        UsageError: nothing of this kind is there. DataError: the data is wrong; names file and entry.
    """
    path = Path(data)
    if path.is_file():
        from lisaseg.datasets.native import NativeJsonl

        if split not in (None, path.stem):
            raise UsageError(f"A JSONL file has no splits, --split {split} means nothing for {path}.", next_step="Leave --split out.")
        folder = path.resolve().parent.name
        return OpenedData(NativeJsonl(path), f"{folder}/{path.name}" if folder else path.name, folder, path.stem)
    if path.is_dir():
        from lisaseg.datasets.reasonseg import ReasonSeg

        if (path / "reason_seg" / "ReasonSeg").is_dir():
            return OpenedData(ReasonSeg(path, split or "val"), "reasonseg", "reasonseg", split or "val")
        if any((path / (split or "val")).glob("*.json")):
            return OpenedData(ReasonSeg(path, split or "val", folder=""), "reasonseg", "reasonseg", split or "val")
        if any(path.glob("*.json")):
            name = path.resolve().name
            return OpenedData(ReasonSeg(path.resolve().parent, name, folder=""), "reasonseg", "reasonseg", name)
        raise UsageError(f"The folder {path} holds no evaluation data.", next_step=_FORMS)
    if data not in DATASETS.names():
        raise UsageError(f"There is no file, folder or data set {data!r}.", next_step=f"{_FORMS} Sets: {', '.join(DATASETS.names())}.")
    if root is None:
        raise UsageError(f"The set {data!r} needs its data root.", next_step="Add --root DIR; `lisaseg data check DIR` shows what is there.")
    wanted, options = split or "val", {}
    match = _OWNED.fullmatch(wanted)
    if match and data.startswith("refcocog"):
        wanted, options = match["split"], {"by": _OWNERS[match["owner"]]}
    return OpenedData(DATASETS.get(data)(root, wanted, **options), data, data.removesuffix("_google"), wanted)
