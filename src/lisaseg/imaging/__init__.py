"""Open any picture safely; the only resize, pad and normalise; and the record that undoes them. Sizes are (height, width) in pixels."""

from __future__ import annotations

from lisaseg.imaging.opening import FORMATS, LIMITS, ImageLimits, ImageSource, Picture, open_image
from lisaseg.imaging.placing import CLIP_MEAN, CLIP_STD, SAM_MEAN, SAM_STD, Placement, fit_longest_side, fit_shortest_crop, normalize

__all__ = ["open_image", "Picture", "ImageLimits", "LIMITS", "FORMATS", "ImageSource", "fit_longest_side", "fit_shortest_crop", "Placement",
           "normalize", "CLIP_MEAN", "CLIP_STD", "SAM_MEAN", "SAM_STD"]  # fmt: skip
