"""COCO run-length encoding and polygons, to and from arrays.

COCO RLE: the mask column by column (Fortran order), as run lengths that start with zeros. `counts` is the list of runs, or the same as a compressed
string. pycocotools encodes; decoding is done here, because it leaves memory uninitialised where runs are missing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from pycocotools import mask as coco

from lisaseg.errors import DataError

MAX_PIXELS = 1 << 28  # a size field beyond this is an error, not a picture


def encode(mask: np.ndarray) -> dict[str, Any]:
    """Bool or uint8 {0, 1} `(H, W)` -> `{"size": [H, W], "counts": str}`, compressed, ready for JSON.

    Raises:
        DataError: another shape, type or value.
    """
    if mask.ndim != 2 or 0 in mask.shape or mask.dtype not in (np.bool_, np.uint8):
        raise DataError(
            f"A mask to encode must be bool or uint8 (H, W) with pixels, got {mask.dtype} {mask.shape}.", next_step="Pass one mask at a time."
        )
    if mask.dtype == np.uint8 and mask.max() > 1:
        raise DataError("A uint8 mask to encode holds values above 1.", next_step="Encode `mask == 1`, and ignored pixels (`mask == 255`) apart.")
    rle = coco.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": [int(n) for n in rle["size"]], "counts": rle["counts"].decode("ascii")}


def decode(rle: Mapping[str, Any]) -> np.ndarray:
    """`{"size": [H, W], "counts": str | bytes | list[int]}` -> bool `(H, W)`.

    Raises:
        DataError: size or counts are malformed, or the runs do not add up to H * W.
    """
    height, width = size_of(rle)
    counts = rle.get("counts")
    if isinstance(counts, str | bytes):
        runs = _uncompress(counts)
    elif isinstance(counts, Sequence) and all(isinstance(n, int) and not isinstance(n, bool) and 0 <= n <= MAX_PIXELS for n in counts):
        runs = np.asarray(counts, np.int64)
    else:
        raise DataError("RLE counts must be a compressed string or a list of whole numbers.", next_step="Export the mask again as COCO RLE.")
    if (runs < 0).any() or int(runs.sum()) != height * width:
        raise DataError(
            f"RLE counts cover {int(runs.sum())} pixels, but size {height} x {width} has {height * width}.",
            next_step="Check that size is [height, width] and that the counts are complete.",
        )
    return np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(width, height).T


def polygons_to_mask(polygons: Sequence[Sequence[float]], height: int, width: int) -> np.ndarray:
    """Fill `[[x1, y1, x2, y2, ...], ...]` in pixels, as pycocotools does; overlapping ones unite. Returns bool `(height, width)`.

    Raises:
        DataError: no polygon, fewer than 3 points, an odd number of values, values that are not finite, or far outside of the picture.
    """
    if not isinstance(polygons, Sequence) or isinstance(polygons, str) or not polygons:
        raise DataError("Polygons must be a list that is not empty.", next_step="Write [[x1, y1, x2, y2, x3, y3, ...], ...].")
    for k, polygon in enumerate(polygons):
        if not isinstance(polygon, Sequence) or isinstance(polygon, str) or len(polygon) < 6 or len(polygon) % 2:
            raise DataError(f"Polygon {k} must be a list of at least 3 points.", next_step="Write it flat: [x1, y1, x2, y2, x3, y3, ...].")
        if not all(isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v) for v in polygon):
            raise DataError(f"Polygon {k} holds a value that is no finite number.", next_step="Write coordinates in pixels.")
        # Tools leave points a little outside; far away ones mean another unit or another picture, and cost pycocotools memory.
        if not all(-width <= x <= 2 * width for x in polygon[0::2]) or not all(-height <= y <= 2 * height for y in polygon[1::2]):
            raise DataError(
                f"Polygon {k} lies far outside of the picture of {width} x {height} pixels.", next_step="Check the unit (pixels) and the picture."
            )
    rles = coco.frPyObjects([[float(v) for v in polygon] for polygon in polygons], height, width)
    return decode(coco.merge(rles))


def size_of(rle: Mapping[str, Any]) -> tuple[int, int]:
    """(height, width) of a mask in JSON; DataError if it is missing, malformed, or more than `MAX_PIXELS`."""
    size = rle.get("size")
    if not isinstance(size, Sequence) or len(size) != 2 or not all(isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in size):
        raise DataError(f"RLE size must be [height, width] in pixels, got {str(size)[:60]}.", next_step="Add the size of the picture to the mask.")
    if size[0] * size[1] > MAX_PIXELS:
        shown = " x ".join(str(n) if n < 10**9 else "over a billion" for n in size)  # whole numbers of JSON may have thousands of digits
        raise DataError(f"RLE size {shown} is beyond {MAX_PIXELS} pixels.", next_step="Check the size field, or tile the picture.")
    return size[0], size[1]


def _uncompress(counts: str | bytes) -> np.ndarray:
    """COCO's string to runs, int64 `(R,)`: 5 bits a character and a continuation bit, sign in bit 4 of the last, deltas to two runs before."""
    try:
        code = np.frombuffer(counts.encode("ascii") if isinstance(counts, str) else counts, np.uint8).astype(np.int64) - 48
    except UnicodeEncodeError:
        code = np.array([-1])
    last = (code & 0x20) == 0
    if not code.size or code.min() < 0 or code.max() > 63 or not last[-1]:
        raise DataError(
            "RLE counts are not a COCO compressed string.", next_step="Export the mask again; CVAT and Label Studio have other encodings."
        )
    starts = np.flatnonzero(np.concatenate(([True], last[:-1])))
    lengths = np.diff(np.append(starts, code.size))
    if lengths.max() > 7:
        raise DataError("RLE counts hold a run that no picture can have.", next_step="Export the mask again as COCO RLE.")
    place = np.arange(code.size) - np.repeat(starts, lengths)
    values = np.add.reduceat((code & 0x1F) << (5 * place), starts)
    ends = starts + lengths - 1
    values -= np.where(code[ends] & 0x10, np.int64(1) << (5 * lengths), 0)
    values[1::2] = np.cumsum(values[1::2])
    values[2::2] = np.cumsum(values[2::2])  # runs 0, 1 and 2 are plain, later ones are differences
    return values
