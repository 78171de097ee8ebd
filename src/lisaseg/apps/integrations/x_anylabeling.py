"""X-AnyLabeling's words for a remote server: models with the controls they want to see, and shapes with a description.

Protocol: X-AnyLabeling 4.2 `services/auto_labeling/remote_server.py` and the controls in `views/labeling/widgets/auto_labeling`. Its shapes know no
masks, so a mask becomes polygons, one a part, that share a `group_id`. Points are those of border pixels, as of OpenCV's contours, which is how
X-AnyLabeling and labelme paint them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from lisaseg.apps.integrations.labels import label_for
from lisaseg.formats import rle
from lisaseg.formats.contours import mask_to_polygons
from lisaseg.formats.simplify import simplified

TASKS = {"segment": "Segment", "explain": "Segment and explain", "text": "Answer in words"}  # our modes, in a list to choose from
_PLACEHOLDER = "Ask about the picture"


def model_of(name: str) -> dict[str, Any]:
    """What `/v1/models` says about the one model. Versions that know no tasks show `widgets`, newer ones those of the chosen task."""
    shown = ("edit_text", "button_send", "mask_fineness_slider", "mask_fineness_value_label", "toggle_preserve_existing_annotations")
    defaults = {"mask_fineness_slider": 10, "toggle_preserve_existing_annotations": False}
    widgets = [{"name": widget, "value": defaults.get(widget)} for widget in shown]
    widgets[0]["placeholder"] = _PLACEHOLDER
    active: dict[str, dict[str, str]] = {widget: {} for widget in shown} | {"edit_text": {"placeholder": _PLACEHOLDER}}
    tasks = [{"id": mode, "name": title, "batch_processing_mode": "text_prompt", "active_widgets": active} for mode, title in TASKS.items()]
    return {"display_name": f"lisaseg ({name})", "batch_processing_mode": "text_prompt", "widgets": widgets, "available_tasks": tasks, "params": {}}


def prediction(answer: Mapping[str, Any], epsilon: float, least_score: float) -> dict[str, Any]:
    """An answer of the service as shapes and a description.

    Args:
        epsilon: see `outlines`.
        least_score: masks that the model trusts less are left out; those without a score stay.
    """
    shapes = []
    for segment in answer["segments"]:
        score = segment["score"]
        if score is not None and score < least_score:
            continue
        label = label_for((), segment["phrase"], answer["instruction"])
        for points in outlines(rle.decode(segment["mask"]), epsilon):
            shape = {"label": label, "shape_type": "polygon", "points": points, "score": score, "group_id": segment["index"] + 1}
            shapes.append({**shape, "attributes": {}, "description": "", "difficult": False, "direction": 0, "flags": {}, "kie_linking": []})
    return {"shapes": shapes, "description": answer["text"]}


def outlines(mask: np.ndarray, epsilon: float) -> list[list[list[float]]]:
    """Closed polygons [x, y] of the parts of a bool `(H, W)` mask, the first point repeated at the end.

    Points move by at most `epsilon` times the length of the frame around the part, 0 = exact. (OpenCV's habit is the length of the outline itself,
    which for a ragged one is many times as long and would let it lose its form.) Parts that are one pixel wide have no polygon and are left out. A
    polygon begins at a point that it passes once: X-AnyLabeling takes the second visit for the end.
    """
    found = []
    for ring in mask_to_polygons(mask, centres=True):
        x, y = ring.T.astype(float)
        if len(ring) < 3 or not (x * np.roll(y, -1) - np.roll(x, -1) * y).sum():
            continue
        ring = simplified(ring, epsilon * 2 * float((ring.max(0) - ring.min(0)).sum()))
        _, inverse, times = np.unique(ring, axis=0, return_inverse=True, return_counts=True)
        ring = np.roll(ring, -int((times[inverse.ravel()] == 1).argmax()), 0)
        found.append([[float(x), float(y)] for x, y in (*ring, ring[0])])
    return found
