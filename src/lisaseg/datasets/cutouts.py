"""Cut-out objects with names, and `compose`, which pastes them into a photo: training pictures whose masks are exact.

`Cutouts(root)` reads `<root>/cutouts.json` (a list of records with id, file, name or text, category, type, licence) and RGBA pictures beside it.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from lisaseg.errors import DataError, UsageError

COLORS = frozenset(["black", "white", "red", "green", "blue", "yellow", "orange", "brown", "pink", "purple", "grey", "gray"])
MIN_SIDE = 32  # a photo to paste into, pixels
MAX_CUTOUTS = 8
_KEEP_OWN, _KEEP_EARLIER = 0.75, 0.4  # share of a cut-out that must stay inside the picture, and unhidden by later ones


@dataclass(frozen=True)
class Cutout:
    """One record, cleaned.

    Attributes:
        id: unique.
        name: a noun for the object ("desk lamp"), usable in "the ...".
        tags: other words of the source, from synonyms to themes; may be empty.
        text: the source's sentence or description, or "".
        category: the source's own group.
        path: RGBA picture.
        type: "photo", "render" or "3d_icon".
        licence: of this picture.
    """

    id: str
    name: str
    tags: tuple[str, ...]
    text: str
    category: str
    path: Path
    type: str
    licence: str


@lru_cache(maxsize=1)
def _rules() -> dict[str, Any]:
    return json.loads(resources.files("lisaseg.datasets").joinpath("cutout_rules.json").read_text(encoding="utf-8"))  # type: ignore[no-any-return]


class Cutouts:
    """All usable cut-outs of a folder; records that are no objects (symbols, flags, weather, planets) are left out.

    Args:
        root: folder with cutouts.json; `file` of a record is relative to it or to its parent.

    Raises:
        DataError: the list is missing or a record lacks a field; names the record.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        self.path = self.root / "cutouts.json"
        if not self.path.is_file():
            raise DataError(f"{self.path} does not exist.", next_step="Give the folder that holds cutouts.json.")
        try:
            raw = json.loads(self.path.read_text(encoding="utf-8"))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise DataError(f"{self.path} is not JSON: {error}.", next_step="Write the file again.") from error
        if not isinstance(raw, list):
            raise DataError(f"{self.path} must hold a list of records.", next_step="Wrap the records in [ ].")
        self.records = tuple(record for k, entry in enumerate(raw) if (record := self._record(k, entry)) is not None)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Cutout:
        return self.records[index]

    def load(self, index: int) -> np.ndarray:
        """The picture as RGBA uint8 `(h, w, 4)`.

        Raises:
            DataError: the file is missing, cannot be read, or shows nothing (alpha 0 everywhere).
        """
        path = self.records[index].path
        try:
            with Image.open(path) as image:
                pixels = np.asarray(image.convert("RGBA"))
        except (OSError, UnidentifiedImageError) as error:
            raise DataError(f"{path}: the cut-out cannot be read ({error}).", next_step="Restore the file or remove its record.") from error
        if not pixels[..., 3].any():
            raise DataError(f"{path}: the cut-out is fully transparent.", next_step="Remove its record.")
        return pixels

    def _record(self, k: int, entry: Any) -> Cutout | None:
        for key in ("id", "file"):
            if not isinstance(entry, dict) or not entry.get(key):
                raise DataError(f"{self.path}, record {k}: the field {key!r} is missing.", next_step="Add it.")
        name = clean_name(entry)
        if name is None:
            return None
        text, category = str(entry.get("text", "")).strip(), str(entry.get("category", ""))
        tags = (
            tuple(tag.strip() for tag in text.split(",") if tag.strip() not in ("", "Blend Swap"))
            if entry.get("type") in ("render", "3d_icon")
            else ()
        )
        file = Path(entry["file"])
        path = self.root / file if (self.root / file).is_file() else self.root.parent / file
        return Cutout(str(entry["id"]), name, tags, "" if tags else text, category, path, str(entry.get("type", "")), str(entry.get("licence", "")))


def clean_name(entry: dict[str, Any]) -> str | None:
    """A usable noun for a raw record, or None if it is no object that can be named."""
    rules, key, category = _rules(), str(entry["id"]), str(entry.get("category", ""))
    raw = str(entry.get("name") or "").replace("’", "'").strip()
    if key in rules["drop_ids"] or category in rules["drop_categories"] or raw in rules["drop_names"]:
        return None
    kept = rules["keep_only"].get(category)
    if kept is not None and raw not in kept and not key.endswith(tuple(kept)):
        return None
    if key in rules["names_by_id"]:
        return str(rules["names_by_id"][key])
    if category in rules["packages"]:
        return str(rules["packages"][category])
    name = _lower(_head_noun(raw) if raw else _from_sentence(str(entry.get("text", ""))))
    if re.fullmatch(r"\S+( o'clock|-thirty)", name):
        return "clock"
    if " plug" in name or name.endswith("socket"):
        return "wall socket"
    if name.endswith("switch"):
        return "light switch"
    if "window" in name and category == "Doors and windows" and "shutter" not in name:
        return "window"
    if "Fish" in category and name not in rules["fish"]:
        return "fish"  # local names that say nothing to most readers
    return str(rules["names"].get(name.lower(), name)) or None


def _lower(name: str) -> str:
    return " ".join(word if word.isupper() and len(word) <= 3 and word not in ("A", "AN") else _lower_word(word) for word in name.split())


def _lower_word(word: str) -> str:
    return word if word in ("Christmas", "Japanese", "Indian", "American", "French", "Siamese", "Korean") else word.lower()


def _head_noun(name: str) -> str:
    """ "Capsicum, green" -> "green Capsicum"; "Brinjal-12" -> "Brinjal"; "TV 16:9" -> "TV"."""
    name = re.sub(r"\([^)]*\)", " ", name)
    head, *modifiers = [part.strip() for part in name.split(",")]
    color = next((re.sub(r"-\d+$", "", part) for part in modifiers if re.sub(r"-\d+$", "", part) in COLORS), "")
    words = [re.sub(r"-\d+$", "", word) for word in head.split()]
    words = [
        word
        for word in words
        if not re.fullmatch(r"[\d:.€]+|[A-Z]{2}|[A-Z]\d+|\d+\S*", word) or word in ("TV", "8") or len(words) == 1 or word.endswith(("st", "nd", "rd"))
    ]
    return " ".join([color, *words]).strip()


def _from_sentence(text: str) -> str:
    """ "A pair of pliers." -> "pliers"; "" if it is no short noun phrase."""
    text = re.sub(r"\([^)]*\)", " ", text).replace("’", "'")
    match = re.fullmatch(r"\s*(?:An?|Two|Some|The|Another) (?:pair of |bunch of |male )?([^,.!?]{2,40}?)\s*[.!]?\s*", text)
    return match.group(1) if match else ""


def compose(background: np.ndarray, cutouts: list[np.ndarray], rng: np.random.Generator) -> tuple[np.ndarray, list[np.ndarray]]:
    """Paste cut-outs into a photo at random size, place and brightness, some mirrored; later ones hide earlier ones.

    The result depends on the inputs and the state of `rng` only.

    Args:
        background: RGB uint8 `(H, W, 3)`, both sides at least 32; not changed.
        cutouts: 1 to 8 RGBA uint8 arrays `(h, w, 4)`, each with visible pixels.
        rng: source of all random choices.

    Returns:
        RGB uint8 `(H, W, 3)`, and one mask a cut-out in the given order: uint8 `(H, W)` in {0, 1} of what can be seen of it. Masks do not overlap
        and none is empty.

    Raises:
        UsageError: an input has the wrong shape, type or number, or a cut-out is fully transparent.
    """
    _check(background, cutouts)
    trimmed = [_trim(cutout) for cutout in cutouts]
    layers: list[_Layer] = []
    masks: list[np.ndarray] = []
    for cutout in trimmed:
        layer = _place(background.shape[:2], cutout, masks, rng)
        if layer is None:  # no place leaves enough of the others: start again, side by side
            layers = _side_by_side(background.shape[:2], trimmed, rng)
            masks = [layer.mask for layer in layers]
            break
        layers.append(layer)
        masks = [mask & ~layer.mask for mask in masks] + [layer.mask]
    out = background.copy()
    for layer in layers:
        alpha = layer.rgba[..., 3:].astype(np.float32) / 255.0
        color = np.clip(layer.rgba[..., :3] * np.float32(rng.uniform(0.75, 1.2)), 0, 255)
        out[layer.where] = np.rint(out[layer.where] * (1 - alpha) + color * alpha).astype(np.uint8)
    return out, [mask.astype(np.uint8) for mask in masks]


@dataclass(frozen=True, eq=False)
class _Layer:
    rgba: np.ndarray  # the part inside the picture
    where: tuple[slice, slice]  # of the picture
    mask: np.ndarray  # bool (H, W), not yet hidden by later layers


def _check(background: np.ndarray, cutouts: list[np.ndarray]) -> None:
    if background.ndim != 3 or background.shape[2] != 3 or background.dtype != np.uint8 or min(background.shape[:2]) < MIN_SIDE:
        what = f"{background.dtype} of shape {background.shape}"
        raise UsageError(
            f"compose: the background must be uint8 (H, W, 3) with sides >= {MIN_SIDE}, got {what}.", next_step="Convert the photo to RGB."
        )
    if not 1 <= len(cutouts) <= MAX_CUTOUTS:
        raise UsageError(f"compose: 1 to {MAX_CUTOUTS} cut-outs can be pasted, got {len(cutouts)}.", next_step="Give fewer or at least one.")
    for k, cutout in enumerate(cutouts):
        if cutout.ndim != 3 or cutout.shape[2] != 4 or cutout.dtype != np.uint8:
            raise UsageError(f"compose: cut-out {k} must be uint8 (h, w, 4), got {cutout.dtype} {cutout.shape}.", next_step="Convert it to RGBA.")
        if not cutout[..., 3].any():
            raise UsageError(f"compose: cut-out {k} is fully transparent.", next_step="Leave it out.")


def _trim(cutout: np.ndarray) -> np.ndarray:
    alpha = cutout[..., 3] > 0
    ys, xs = np.flatnonzero(alpha.any(1)), np.flatnonzero(alpha.any(0))
    return cutout[ys[0] : ys[-1] + 1, xs[0] : xs[-1] + 1]


def _resize(cutout: np.ndarray, longest: float, flip: bool) -> np.ndarray:
    """RGBA `(h, w, 4)` with this longest side, at least 1 pixel each way."""
    factor = longest / max(cutout.shape[:2])
    height, width = (max(1, round(side * factor)) for side in cutout.shape[:2])
    # Premultiplied ("RGBa"), or the hidden colours of transparent pixels bleed into the edge.
    small = Image.fromarray(cutout).convert("RGBa").resize((width, height), Image.Resampling.BILINEAR).convert("RGBA")
    out = np.asarray(small)
    return out[:, ::-1] if flip else out


def _layer(size: tuple[int, int], rgba: np.ndarray, top: int, left: int) -> _Layer:
    """The cut-out at this corner, which may lie outside; clipped at the border."""
    y0, x0 = max(top, 0), max(left, 0)
    y1, x1 = min(top + rgba.shape[0], size[0]), min(left + rgba.shape[1], size[1])
    part = rgba[y0 - top : y1 - top, x0 - left : x1 - left]
    mask = np.zeros(size, bool)
    mask[y0:y1, x0:x1] = part[..., 3] >= _threshold(rgba)
    return _Layer(part, (slice(y0, y1), slice(x0, x1)), mask)


def _threshold(rgba: np.ndarray) -> int:
    """Alpha from which a pixel counts as object; lower for cut-outs that are translucent or very thin all over."""
    return max(1, min(128, int(rgba[..., 3].max()) // 2))


def _place(size: tuple[int, int], cutout: np.ndarray, earlier: list[np.ndarray], rng: np.random.Generator) -> _Layer | None:
    """A random place that shows most of the cut-out and leaves enough of each earlier mask, or None after 12 tries, each smaller."""
    longest, flip = rng.uniform(0.2, 0.65) * min(size), bool(rng.integers(2))
    for _ in range(12):
        rgba = _resize(cutout, longest, flip)
        (height, width), area = rgba.shape[:2], int((rgba[..., 3] >= _threshold(rgba)).sum())
        top = int(rng.integers(-height // 8, size[0] - height + height // 8 + 1))
        left = int(rng.integers(-width // 8, size[1] - width + width // 8 + 1))
        layer = _layer(size, rgba, top, left)
        if layer.mask.sum() >= max(1.0, _KEEP_OWN * area) and all(
            (old & ~layer.mask).sum() >= max(1.0, _KEEP_EARLIER * old.sum()) for old in earlier
        ):
            return layer
        longest = max(8.0, longest * 0.85)
    return None


def _side_by_side(size: tuple[int, int], cutouts: list[np.ndarray], rng: np.random.Generator) -> list[_Layer]:
    """Each cut-out in its own column, as large as fits."""
    column = size[1] // len(cutouts)
    layers = []
    for k, cutout in enumerate(cutouts):
        height, width = cutout.shape[:2]
        factor = min(0.9 * size[0] / height, 0.9 * column / width)
        rgba = _resize(cutout, max(height, width) * factor, bool(rng.integers(2)))
        left = k * column + int(rng.integers(0, max(1, column - rgba.shape[1] + 1)))
        layers.append(_layer(size, rgba, int(rng.integers(0, max(1, size[0] - rgba.shape[0] + 1))), left))
    return layers
