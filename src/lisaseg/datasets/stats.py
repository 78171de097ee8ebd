"""What is in a data set, in numbers, and what two data sets share: the figures to look at before training on one and testing on the other."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from lisaseg.datasets.base import image_key
from lisaseg.errors import ImageError
from lisaseg.formats.pictures import image_path
from lisaseg.formats.reading import picture_size
from lisaseg.imaging import open_image
from lisaseg.types import IGNORE, TARGET, Sample

_SIDES = (256, 512, 1024, 2048)  # bounds of the table of sizes, longer side in pixels
LOOK_ALIKE = 5  # bits of 64 in which the fingerprints of a resized or recompressed copy may differ
_LISTED = 20  # examples that a report names


@dataclass
class Contents:
    """What was counted while reading samples once; masks are not kept."""

    samples: int = 0
    queries: int = 0
    sentences: int = 0
    explained: int = 0
    rephrasings: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    masks_per_query: Counter[int] = field(default_factory=Counter)
    words: list[int] = field(default_factory=list)
    shares: list[float] = field(default_factory=list)  # of the picture, one a mask
    ignored: int = 0  # masks with ignored pixels
    texts: Counter[str] = field(default_factory=Counter)
    asked: Counter[tuple[str, str]] = field(default_factory=Counter)  # (picture, text)
    pictures: dict[str, Path] = field(default_factory=dict)  # by absolute path

    def add(self, sample: Sample) -> None:
        """Count one sample; DataError if its picture is no file."""
        path = image_path(sample)
        key = str(path.absolute())
        self.samples += 1
        self.pictures.setdefault(key, path)
        for query in sample.queries:
            text = plain(query.text)
            self.queries += 1
            self.sentences += query.is_sentence
            self.explained += bool(query.explanation)
            self.rephrasings += len(query.rephrasings)
            self.kinds[query.kind] += 1
            self.masks_per_query[len(query.masks)] += 1
            self.words.append(len(query.text.split()))
            self.shares += [float((mask == TARGET).mean()) for mask in query.masks]
            self.ignored += sum(bool((mask == IGNORE).any()) for mask in query.masks)
            self.texts[text] += 1
            self.asked[key, text] += 1


def read_contents(samples: Iterable[Sample]) -> Contents:
    """Count samples, one at a time."""
    contents = Contents()
    for sample in samples:
        contents.add(sample)
    return contents


def plain(text: str) -> str:
    """Text without what does not change its meaning: case, outer punctuation, repeated spaces."""
    return " ".join(text.casefold().split()).strip(" .?!\"'")


def describe(contents: Contents) -> dict[str, Any]:
    """The numbers as JSON: areas in percent of the picture, lengths in words, sizes in pixels; lists of duplicates name at most 20.

    Raises:
        DataError: a picture cannot be opened.
    """
    sizes = [picture_size(path, str(path)) for path in contents.pictures.values()]
    longer = np.array([max(size) for size in sizes], int)
    buckets = {f"< {_SIDES[0]}": int((longer < _SIDES[0]).sum())}
    buckets |= {f"{low}-{high - 1}": int(((longer >= low) & (longer < high)).sum()) for low, high in pairwise(_SIDES)}
    buckets |= {f">= {_SIDES[-1]}": int((longer >= _SIDES[-1]).sum())}
    same_bytes: dict[str, list[str]] = defaultdict(list)
    for path in contents.pictures.values():
        same_bytes[_digest(path)].append(str(path))
    copies = [names for names in same_bytes.values() if len(names) > 1]
    repeated = [f"{key}: {text}" for (key, text), n in contents.asked.items() if n > 1]
    return {
        "samples": contents.samples,
        "pictures": len(contents.pictures),
        "queries": contents.queries,
        "no_target": contents.masks_per_query[0],
        "masks": len(contents.shares),
        "empty_masks": sum(share == 0 for share in contents.shares),
        "masks_with_ignored_pixels": contents.ignored,
        "masks_per_query": {str(n): count for n, count in sorted(contents.masks_per_query.items())},
        "mask_area_percent": _spread([100 * share for share in contents.shares]),
        "kinds": dict(contents.kinds.most_common()),
        "sentences": contents.sentences,
        "words": _spread(contents.words),
        "explanations": contents.explained,
        "rephrasings": contents.rephrasings,
        "picture_sides": buckets,
        "duplicates": {
            "pictures_of_equal_bytes": sum(len(names) - 1 for names in copies),
            "same_question_twice": len(repeated),
            "texts_used_more_than_once": sum(n > 1 for n in contents.texts.values()),
            "examples": [" = ".join(names) for names in copies[:_LISTED]] + repeated[:_LISTED],
        },
    }


def _spread(values: Sequence[float]) -> dict[str, float] | None:
    """Smallest, 5 %, median, mean, 95 %, largest; None without values."""
    if not len(values):
        return None
    low, small, median, large, high = np.percentile(values, (0, 5, 50, 95, 100))
    names = ("min", "p5", "median", "mean", "p95", "max")
    return {name: round(float(v), 3) for name, v in zip(names, (low, small, median, np.mean(values), large, high), strict=True)}


def overlap(one: Contents, two: Contents) -> dict[str, Any]:
    """What two data sets share: test data that was trained on makes a score worthless.

    Returns:
        Numbers of pictures of `one` that are in `two`: of equal bytes, of equal name (COCO's number or the file's stem), or looking alike (a
        fingerprint of 64 bits that survives resizing and recompression); of equal texts; and up to 20 pairs as examples.
    """
    theirs = {_digest(path): path for path in two.pictures.values()}
    names = {image_key(path): path for path in two.pictures.values()}
    bytes_pairs = [(path, theirs[d]) for path in one.pictures.values() if (d := _digest(path)) in theirs]
    name_pairs = [(path, names[k]) for path in one.pictures.values() if (k := image_key(path)) in names]
    alike = _alike(list(one.pictures.values()), list(two.pictures.values()))
    shared = dict.fromkeys([*bytes_pairs, *alike])
    return {
        "pictures_of_equal_bytes": len(bytes_pairs),
        "pictures_of_equal_name": len(name_pairs),
        "pictures_that_look_alike": len({pair[0] for pair in alike}),
        "equal_texts": sum(text in two.texts for text in one.texts),
        "contaminated": bool(shared),
        "examples": [f"{a} = {b}" for a, b in list(dict.fromkeys([*shared, *name_pairs]))[:_LISTED]],
    }


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _alike(ours: list[Path], theirs: list[Path]) -> list[tuple[Path, Path]]:
    mine, other = [(p, f) for p in ours if (f := fingerprint(p)) is not None], [(p, f) for p in theirs if (f := fingerprint(p)) is not None]
    if not mine or not other:
        return []
    table = np.array([f for _, f in other], np.uint64)
    pairs = []
    for path, code in mine:
        differing = np.bitwise_count(table ^ np.uint64(code))
        k = int(differing.argmin())
        if differing[k] <= LOOK_ALIKE:
            pairs.append((path, other[k][0]))
    return pairs


def fingerprint(path: Path) -> int | None:
    """64 bits: on a grid of 8 x 9 grey cells, whether each is lighter than its right neighbour; None for flat pictures and broken files."""
    try:
        grey = Image.fromarray(open_image(path).rgb).convert("L").resize((9, 8), Image.Resampling.BOX)
    except ImageError:
        return None
    cells = np.asarray(grey, int)
    if cells.std() < 3:
        return None
    bits = (cells[:, :-1] > cells[:, 1:]).ravel()
    return int(np.packbits(bits).view(">u8")[0])
