"""What a data root holds: every set of the recipe, found or missing, how many samples, what is wrong, and where to get it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lisaseg.datasets import DATASETS, SegmentationDataset
from lisaseg.errors import DataError

Status = Literal["found", "missing", "faulty"]
_REFER = "github.com/lichengunc/refer"
_COCO = "cocodataset.org"


@dataclass(frozen=True)
class Place:
    """Where a set lies under the root, and where it comes from.

    split: as its loader calls it. needs: files or folders, each with its alternatives separated by "|". source: the publisher's page.
    """

    name: str
    split: str
    needs: tuple[str, ...]
    source: str


def _refer(name: str, split: str, refs: str, source: str = _REFER, pictures: str = "mscoco/images/train2014") -> Place:
    folder = f"refer_seg/{name.removesuffix('_google')}"
    files = "|".join(f"{folder}/{ref}" for ref in refs.split("|"))
    return Place(name, split, (files, f"{folder}/instances.json", f"refer_seg/images/{pictures}"), f"{source}; pictures: {_COCO} (train2014)")


_LISA = "github.com/dvlab-research/LISA (Dataset Preparation)"
_CLEF = "saiapr_tc-12"
PLACES: tuple[Place, ...] = (
    Place("ade20k", "training", ("ade20k/images/training", "ade20k/annotations/training"), "sceneparsing.csail.mit.edu (ADEChallengeData2016)"),
    Place("cocostuff", "train2017", ("cocostuff/train2017", "coco/train2017"), f"github.com/nightrome/cocostuff (stuffthingmaps); pictures: {_COCO}"),
    Place(
        "mapillary",
        "training",
        ("mapillary/config_v2.0.json", "mapillary/training/images", "mapillary/training/v2.0/labels"),
        "mapillary.com/dataset/vistas (version 2.0)",
    ),
    Place(
        "paco_lvis",
        "train",
        ("vlpart/paco/annotations/paco_lvis_v1_train.json", "coco/train2017"),
        f"github.com/facebookresearch/paco; pictures: {_COCO}",
    ),
    Place(
        "pascal_part",
        "train",
        ("vlpart/pascal_part/train.json", "vlpart/pascal_part/VOCdevkit/VOC2010/JPEGImages"),
        "github.com/facebookresearch/VLPart (train.json); pictures: host.robots.ox.ac.uk/pascal/VOC (VOC2010)",
    ),
    _refer("refcoco", "train", "refs(unc).p"),
    _refer("refcoco+", "train", "refs(unc).p"),
    _refer("refcocog", "train", "refs(umd).p"),
    _refer("refcocog_google", "train", "refs(google).p"),
    Place(
        "refclef", "train", ("refer_seg/refclef/refs(unc).p", "refer_seg/refclef/instances.json", f"refer_seg/images/{_CLEF}"), f"{_REFER}; {_CLEF}"
    ),
    _refer("grefcoco", "train", "grefs(unc).json|grefs(unc).p", "github.com/henghuiding/gRefCOCO"),
    Place(
        "llava_instruct",
        "train",
        ("llava_dataset/llava_instruct_150k.json", "coco/train2017"),
        f"the data set liuhaotian/LLaVA-Instruct-150K; pictures: {_COCO}",
    ),
    *(Place("reasonseg", split, (f"reason_seg/ReasonSeg/{split}",), _LISA) for split in ("train", "val", "test")),
    Place("coco_instances", "train2017", ("coco/annotations/instances_train2017.json", "coco/train2017"), _COCO),
    Place(
        "coco_panoptic",
        "train2017",
        ("coco/annotations/panoptic_train2017.json", "coco/annotations/panoptic_train2017", "coco/train2017"),
        _COCO,
    ),
)


@dataclass(frozen=True)
class Found:
    """One row of the table.

    Attributes:
        name, split: of the set. status: "found", "missing" (nothing or not everything is there) or "faulty" (there, but wrong).
        count: number of samples, 0 unless the set could be opened. missing: paths under the root. faults: messages that name file and entry.
        source: where to get it.
    """

    name: str
    split: str
    status: Status
    count: int
    missing: tuple[str, ...]
    faults: tuple[str, ...]
    source: str


def check_root(root: str | Path, names: Iterable[str] | None = None, *, every: bool = False, most_faults: int = 20) -> list[Found]:
    """Look for every set of the recipe under a data root.

    Args:
        root: laid out as for the reference implementation.
        names: sets to look for; None = all.
        every: read every sample; otherwise the first, the middle and the last one.
        most_faults: faults listed for one set; reading a set ends there.

    Returns:
        One row for each set and split, in the order of `PLACES`.

    Raises:
        DataError: the root is no folder, or a name is not in the table.
    """
    root = Path(root)
    if not root.is_dir():
        raise DataError(f"{root} is not a folder.", next_step="Give the folder that holds ade20k/, coco/, refer_seg/ and the others.")
    known = {place.name for place in PLACES}
    wanted = known if names is None else set(names)
    if wanted - known:
        raise DataError(f"{sorted(wanted - known)} cannot be looked for.", next_step=f"Known are: {', '.join(sorted(known))}.")
    return [_check(root, place, every, most_faults) for place in PLACES if place.name in wanted]


def _check(root: Path, place: Place, every: bool, most_faults: int) -> Found:
    missing = tuple(need.replace("|", " or ") for need in place.needs if not any((root / path).exists() for path in need.split("|")))
    if missing:
        return Found(place.name, place.split, "missing", 0, missing, (), place.source)
    try:
        dataset = DATASETS.get(place.name)(root, place.split)
    except DataError as error:
        return Found(place.name, place.split, "faulty", 0, (), (str(error),), place.source)
    faults = _faults(dataset, every, most_faults) if len(dataset) else ("It holds no samples.",)
    return Found(place.name, place.split, "faulty" if faults else "found", len(dataset), (), faults, place.source)


def _faults(dataset: SegmentationDataset, every: bool, most: int) -> tuple[str, ...]:
    places = range(len(dataset)) if every else sorted({0, len(dataset) // 2, len(dataset) - 1})
    faults: list[str] = []
    for index in places:
        try:
            dataset[index]
        except DataError as error:
            faults.append(str(error))
            if len(faults) >= most:
                break
    return tuple(faults)


def table(rows: Iterable[Found]) -> str:
    """The rows as text for people: one line a set, then what is missing or wrong and where to get it."""
    lines = [f"{'set':<16} {'split':<10} {'status':<8} {'samples':>8}"]
    for row in rows:
        lines.append(f"{row.name:<16} {row.split:<10} {row.status:<8} {row.count or '-':>8}")
        lines += [f"    missing: {path}" for path in row.missing] + [f"    fault: {fault}" for fault in row.faults]
        if row.status != "found":
            lines.append(f"    get it from: {row.source}")
    return "\n".join(lines)
