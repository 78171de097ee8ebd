"""One mask inside of JSON, in the forms that an answer may carry; all but the last hold it to the pixel.

    rle       {"size": [H, W], "counts": "..."}                    COCO's compressed run lengths
    polygon   {"size": [H, W], "polygons": [[x1, y1, ...], ...]}   COCO's polygons: outlines along the edges of pixels, one a part
    png       {"size": [H, W], "png": "..."}                       base64 of an 8-bit grey PNG, 0 or 255
    none      null

COCO's polygons know no holes: a hole is joined to its outline by a line that is walked there and back (see `contours`). Filled by area, as
pycocotools does, they give the mask back; viewers that paint the outline too show it a pixel larger to the right and below.
"""

from __future__ import annotations

import base64
import binascii
import io
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

from lisaseg.errors import DataError
from lisaseg.formats import rle
from lisaseg.formats.contours import mask_to_polygons
from lisaseg.formats.pictures import png_bytes
from lisaseg.types import MaskFormat


def mask_to_json(mask: np.ndarray, form: MaskFormat = "rle") -> dict[str, Any] | None:
    """Bool `(H, W)` -> one of the forms at the head of this file."""
    if form == "rle":
        return rle.encode(mask)
    size = [int(n) for n in mask.shape]
    if form == "polygon":
        return {"size": size, "polygons": [polygon.ravel().tolist() for polygon in mask_to_polygons(mask)]}
    return {"size": size, "png": base64.b64encode(mask_png(mask)).decode("ascii")} if form == "png" else None


def mask_from_json(value: Any) -> np.ndarray:
    """One of the forms at the head of this file -> bool `(H, W)`.

    Raises:
        DataError: null, none of the forms, or malformed.
    """
    if value is None:
        raise DataError("It is null: the answer came without masks.", next_step="Ask with another mask_format than `none`.")
    if not isinstance(value, Mapping):
        raise DataError("A mask must be a JSON object.", next_step="Write COCO RLE: size and counts.")
    if "polygons" in value:
        height, width = rle.size_of(value)
        polygons = value["polygons"]
        return np.zeros((height, width), bool) if polygons == [] else rle.polygons_to_mask(polygons, height, width)
    return _from_png(value["png"], rle.size_of(value)) if "png" in value else rle.decode(value)


def _from_png(text: Any, size: tuple[int, int]) -> np.ndarray:
    try:
        with Image.open(io.BytesIO(base64.b64decode(text, validate=True)), formats=("PNG",)) as image:
            if image.mode not in ("L", "1") or (image.height, image.width) != size:
                raise DataError(
                    f"The PNG is {image.height} x {image.width} ({image.mode}), not {size[0]} x {size[1]} grey.", next_step="Save it again."
                )
            return np.asarray(image) != 0
    except (OSError, ValueError, TypeError, SyntaxError, binascii.Error, Image.DecompressionBombError) as error:
        raise DataError("It is no PNG in base64.", next_step="Send it as the server gave it.") from error


def mask_png(mask: np.ndarray) -> bytes:
    """Bool `(H, W)` -> PNG file, 8 bit grey, 0 or 255."""
    return png_bytes(mask.astype(np.uint8) * 255)
