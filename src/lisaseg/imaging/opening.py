"""`open_image`, the one door for pictures: whatever comes in, an upright uint8 RGB array comes out, or an `ImageError`.

The file is judged in this order, the cheap checks first: bytes, format (by content, never by extension), declared size; then the decoder runs.
Colour profiles (ICC) are ignored, as in the data that such models are trained on.
"""

from __future__ import annotations

import hashlib
import io
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
from PIL import BmpImagePlugin, GifImagePlugin, Image, JpegImagePlugin, PngImagePlugin, TiffImagePlugin, WebPImagePlugin

from lisaseg.errors import ImageError

ImageSource = str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO | Image.Image | np.ndarray

# Plugins are called directly: `Image.open` would try its 40 other formats and apply the process-wide MAX_IMAGE_PIXELS before our own limits.
_PLUGINS: dict[str, Callable[[io.BytesIO], Image.Image]] = {
    "JPEG": JpegImagePlugin.JpegImageFile,  # also the first picture of an MPO
    "PNG": PngImagePlugin.PngImageFile,
    "WEBP": WebPImagePlugin.WebPImageFile,
    "BMP": BmpImagePlugin.BmpImageFile,
    "TIFF": TiffImagePlugin.TiffImageFile,
    "GIF": GifImagePlugin.GifImageFile,
}
FORMATS = (*_PLUGINS, "MPO")
_MAGIC = {
    b"\xff\xd8\xff": "JPEG",
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"GIF87a": "GIF",
    b"GIF89a": "GIF",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"II+\0": "TIFF",
    b"MM\0+": "TIFF",
}
_FOREIGN = {  # what people send by mistake: only used to name it
    b"%PDF": "a PDF document",
    b"PK\x03\x04": "a zip archive or office document",
    b"\x1f\x8b": "a gzip archive",
    b"8BPS": "a Photoshop file",
    b"\0\0\x01\0": "an icon file",
    b"SIMPLE  =": "a FITS file",
    b"version https://git-lfs": "a Git LFS pointer, not the picture itself (run `git lfs pull`)",
}
_SAVE_AS = "Save the picture as PNG or JPEG and try again."
_TURNS = {  # EXIF orientation -> what makes the picture upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True)
class ImageLimits:
    """What a picture may cost. Aspect is longer side / shorter side; `max_bytes` is the size of the encoded file."""

    max_pixels: int = 50_000_000
    max_side: int = 16_384
    max_aspect: float = 200.0
    max_bytes: int = 64 * 2**20

    def check(self, width: int, height: int, name: str) -> None:
        """Raise ImageError if a picture of this size (pixels) must not be decoded; `name` is what the message calls it."""
        if width < 1 or height < 1:
            raise ImageError(f"{name} declares a size of {width} x {height} pixels.", code="corrupt_image", next_step=_SAVE_AS)
        mega = width * height / 1e6
        if width * height > self.max_pixels:
            message = f"{name} is {width} x {height} ({mega:.1f} megapixels); the limit is {self.max_pixels / 1e6:g} megapixels."
            raise ImageError(message, code="image_too_large", next_step="Make it smaller and try again.")
        if max(width, height) > self.max_aspect * min(width, height):
            message = f"{name} is {width} x {height}; one side may be at most {self.max_aspect:g} times the other."
            raise ImageError(message, code="extreme_aspect_ratio", next_step="Crop it to the part that matters and try again.")
        if max(width, height) > self.max_side:
            message = f"{name} is {width} x {height}; the limit is {self.max_side} pixels a side."
            raise ImageError(message, code="image_too_large", next_step="Make it smaller and try again.")


LIMITS = ImageLimits()


@dataclass(frozen=True, eq=False)
class Picture:
    """An opened picture, upright.

    Attributes:
        rgb: uint8 `(H, W, 3)`, C-contiguous, read-only.
        warnings: (code, message) pairs: `first_frame_only`, `intensities_rescaled`, `exif_unreadable`.
        normalized: what was done to the pixels: "exif", "alpha", "16bit", "cmyk", "lab", "palette", "grey".
    """

    rgb: np.ndarray = field(repr=False)
    warnings: tuple[tuple[str, str], ...] = ()
    normalized: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self.rgb.flags.writeable = False  # the digest is a cache key: the pixels behind it must stay

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.rgb.shape[0], self.rgb.shape[1]

    @cached_property
    def digest(self) -> str:
        """sha256 (hex) of pixels and shape; 30x100 and 100x30 with equal bytes differ."""
        height, width = self.size
        digest = hashlib.sha256(f"rgb8 {height}x{width} ".encode())
        digest.update(self.rgb.data)
        return digest.hexdigest()


class _Notes:
    """Collects what happened to a picture on its way."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.warnings: list[tuple[str, str]] = []
        self.normalized: list[str] = []

    def warn(self, code: str, message: str) -> None:
        self.warnings.append((code, f"{self.name}: {message}"))


def open_image(source: ImageSource, limits: ImageLimits = LIMITS, *, name: str | None = None) -> Picture:
    """Open a picture from anywhere.

    Args:
        source: path, encoded bytes, binary file object, PIL image, or uint8 array `(H, W)`, `(H, W, 3)` RGB or `(H, W, 4)` RGBA.
        limits: checked on the header, before a pixel is decoded.
        name: what messages call the picture; taken from the source if it has a name.

    Returns:
        The upright picture on opaque white, uint8 RGB, at its original size. 16-bit and float intensities are stretched from their
        minimum..maximum to 0..255, and of animations the first frame is taken, both with a warning.

    Raises:
        ImageError: code `image_not_found`, `unsupported_format`, `corrupt_image`, `truncated_image`, `image_too_large` or `extreme_aspect_ratio`.
    """
    data = b""
    if isinstance(source, np.ndarray):
        image = _from_array(source, name or "The array")
        notes = _Notes(name or "The array")
    elif isinstance(source, Image.Image):
        notes = _Notes(name or _printable(getattr(source, "filename", "")) or "The picture")
        if source.format is not None and source.format not in FORMATS:
            message = f"{notes.name} is a PIL image still tied to a {source.format} file, a format that is not decoded here."
            raise ImageError(message, code="unsupported_format", next_step="Pass image.convert('RGB') instead.")
        image = source
    else:
        data, found = _read(source, limits)
        notes = _Notes(name or found)
        image = _open_header(data, limits, notes.name)
    limits.check(*image.size, notes.name)
    try:
        rgb = _decode(image, notes)
    except Exception as exc:  # decoders raise a dozen unrelated types
        raise _broken(exc, data, notes.name, image) from exc
    return Picture(np.array(rgb, dtype=np.uint8, order="C"), tuple(notes.warnings), tuple(notes.normalized))


def _printable(path: str | bytes | os.PathLike[str]) -> str:
    """The last part of a path, fit for a one-line message."""
    text = os.fsdecode(path).replace("\\", "/").rstrip("/").rsplit("/", 1)[-1]
    text = "".join(c if c.isprintable() else "?" for c in text)
    return text if len(text) <= 80 else f"{text[:60]}...{text[-15:]}"


def _from_array(array: np.ndarray, name: str) -> Image.Image:
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (3, 4)):
        message = f"{name} must be uint8 of shape (H, W, 3), (H, W, 4) or (H, W), got {array.dtype} of shape {array.shape}."
        step = "Scale it to 0..255, put channels last and call .astype('uint8')."
        raise ImageError(message, code="unsupported_format", next_step=step)
    if 0 in array.shape:
        raise ImageError(f"{name} of shape {array.shape} is empty.", code="corrupt_image", next_step="Pass an array with at least one pixel.")
    return Image.fromarray(np.ascontiguousarray(array))


def _read(source: str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO, limits: ImageLimits) -> tuple[bytes, str]:
    """The encoded bytes and a printable name."""
    if isinstance(source, bytes | bytearray | memoryview):
        data, name = bytes(source[: limits.max_bytes + 1]), "The picture"
    elif isinstance(source, str | os.PathLike):
        data, name = _read_path(source, limits)
    elif hasattr(source, "read"):
        filename = getattr(source, "name", "")
        name = _printable(filename) if isinstance(filename, str | bytes) else ""
        name = name or "The file object"
        try:
            data = source.read(limits.max_bytes + 1)
        except Exception as exc:  # any kind of stream
            raise ImageError(f"{name} could not be read.", code="image_not_found", next_step="Open it again in mode 'rb'.") from exc
        if not isinstance(data, bytes):
            raise ImageError(f"{name} does not give bytes.", code="unsupported_format", next_step="Open it in mode 'rb'.")
    else:
        message = f"A picture cannot be made of a {type(source).__name__}."
        step = "Pass a path, bytes, a binary file, a PIL image or a uint8 array (H, W, 3)."
        raise ImageError(message, code="unsupported_format", next_step=step)
    if len(data) > limits.max_bytes:
        message = f"{name} has more than {limits.max_bytes / 2**20:g} MiB, the limit for one picture."
        raise ImageError(message, code="image_too_large", next_step="Make it smaller and try again.")
    return data, name


def _read_path(path: str | os.PathLike[str], limits: ImageLimits) -> tuple[bytes, str]:
    text, name = os.fspath(path), _printable(path) or "The path"
    step = "Check the path."
    if text.lower().startswith(("http://", "https://", "data:")):
        raise ImageError("Pictures are not fetched from URLs.", code="image_not_found", next_step="Download it and pass the path of the file.")
    try:
        mode = os.stat(text).st_mode  # noqa: PTH116 - also names that pathlib would change
        if stat.S_ISREG(mode):  # never open a pipe or device: reading it may not end
            with Path(text).open("rb") as file:
                return file.read(limits.max_bytes + 1), name
        reason = "is a folder" if stat.S_ISDIR(mode) else "is not a regular file"
        step = "Pass the path of one picture." if stat.S_ISDIR(mode) else step
    except FileNotFoundError:
        reason = "does not exist"
    except PermissionError:
        reason, step = "may not be read by this user", "Change its permissions."
    except (OSError, ValueError):  # too long, a NUL inside, a bad disk
        reason = "cannot be opened"
    raise ImageError(f"{name} {reason}.", code="image_not_found", next_step=step)


def _sniff(data: bytes, name: str) -> str:
    """Name the format by its content; raise ImageError if it is none of ours."""
    if not data:
        raise ImageError(f"{name} is empty (0 bytes).", code="truncated_image", next_step="Copy or download it again.")
    for magic, kind in _MAGIC.items():
        if data.startswith(magic):
            return kind
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "WEBP"
    if data.startswith(b"BM") and (len(data) < 18 or int.from_bytes(data[14:18], "little") in (12, 16, 40, 52, 56, 64, 108, 124)):
        return "BMP"
    if len(data) < 12 and any(magic.startswith(data) for magic in (*_MAGIC, b"RIFF" + data[4:8] + b"WEBP", b"BM")):
        raise ImageError(f"{name} is cut short after {len(data)} bytes.", code="truncated_image", next_step="Copy or download it again.")
    found = next((what for magic, what in _FOREIGN.items() if data.startswith(magic)), "")
    head = data[:1024].lstrip().lower()
    if not found and data[4:8] == b"ftyp":
        found = "an HEIC or AVIF photo, or a video"
    elif not found and b"<svg" in head:
        found = "an SVG drawing"
    elif not found and head.startswith((b"<!doctype html", b"<html")):
        found = "a web page"
    elif not found:
        found = "a text file" if b"\0" not in head and head.isascii() else "not a picture of a known kind"
    raise ImageError(f"{name} is {found}; {', '.join(_PLUGINS)} can be read.", code="unsupported_format", next_step=_SAVE_AS)


def _open_header(data: bytes, limits: ImageLimits, name: str) -> Image.Image:
    """Parse the header; no pixel is decoded."""
    kind = _sniff(data, name)
    if kind == "WEBP":  # its plugin allocates two canvases on opening
        width, height = _webp_size(data)
        if width and height:
            limits.check(width, height, name)
    try:
        return _PLUGINS[kind](io.BytesIO(data))
    except Exception as exc:  # decoders raise a dozen unrelated types
        raise _broken(exc, data, name, None) from exc


def _webp_size(data: bytes) -> tuple[int, int]:
    """(width, height) from the first chunk, or (0, 0)."""
    chunk = data[12:16]
    if chunk == b"VP8X" and len(data) >= 30:
        return int.from_bytes(data[24:27], "little") + 1, int.from_bytes(data[27:30], "little") + 1
    if chunk == b"VP8L" and len(data) >= 25:
        bits = int.from_bytes(data[21:25], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if chunk == b"VP8 " and len(data) >= 30:
        return int.from_bytes(data[26:28], "little") & 0x3FFF, int.from_bytes(data[28:30], "little") & 0x3FFF
    return 0, 0


def _broken(exc: Exception, data: bytes, name: str, image: Image.Image | None) -> ImageError:
    """The error for a file that its decoder refused. The decoder's own words are left out: they may hold memory addresses."""
    if isinstance(exc, Image.DecompressionBombError | Image.DecompressionBombWarning):  # GIF, TIFF and WebP check it on their own
        message = f"{name} holds more pixels than this process lets Pillow decode (PIL.Image.MAX_IMAGE_PIXELS)."
        return ImageError(message, code="image_too_large", next_step="Make it smaller and try again.")
    if data and _cut_short(data, image):
        return ImageError(f"{name} is cut short: its end is missing.", code="truncated_image", next_step="Copy or download it again.")
    return ImageError(f"{name} is damaged or of a rare kind and cannot be decoded.", code="corrupt_image", next_step=_SAVE_AS)


def _cut_short(data: bytes, image: Image.Image | None) -> bool:
    """Whether the container says that bytes are missing at the end."""
    if data.startswith(b"\x89PNG"):
        return b"IEND" not in data
    if data.startswith(b"RIFF"):
        return int.from_bytes(data[4:8], "little") + 8 > len(data)
    if data.startswith(b"BM"):
        return int.from_bytes(data[2:6], "little") > len(data)
    tail = data.rstrip(b"\0")
    if data.startswith(b"GIF"):
        return not tail.endswith(b";")
    if data.startswith(b"\xff\xd8"):
        return not tail.endswith(b"\xff\xd9")
    order: Literal["little", "big"] = "little" if data.startswith(b"II") else "big"
    if image is None:  # the directory itself could not be read; offsets as in classic TIFF
        start = int.from_bytes(data[4:8], order)
        return start + 2 > len(data) or start + 2 + 12 * int.from_bytes(data[start : start + 2], order) > len(data)
    tags: Any = getattr(image, "tag_v2", {})
    try:
        starts, lengths = tags.get(273) or tags.get(324) or (0,), tags.get(279) or tags.get(325) or (0,)  # strips or tiles
        return max(map(sum, zip(starts, lengths, strict=False))) > len(data)
    except Exception:  # a tag may hold text in place of numbers, or nothing that can be read: damaged, whatever its length
        return False


def _decode(image: Image.Image, notes: _Notes) -> Image.Image:
    """Decode the first frame and make it upright RGB."""
    turned = getattr(image, "tag_v2", {}).get(0x0112, 1)  # the TIFF plugin makes the picture upright itself while it loads
    deep = any(";16" in str(tile) for tile in getattr(image, "tile", ()))
    image.load()
    try:
        turn = image.getexif().get(0x0112, 1)
    except Exception:  # metadata must not cost the picture
        turn = 1
        notes.warn("exif_unreadable", "its EXIF data is damaged; the picture is taken as it is stored.")
    try:
        several = getattr(image, "is_animated", False) or "mp" in image.info
    except Exception:  # a broken second frame
        several = True
    if several:
        notes.warn("first_frame_only", "it holds several frames or pages; the first one is used.")
    if deep or image.mode.startswith("I;16"):
        notes.normalized.append("16bit")
    rgb = _to_rgb(image, notes)
    if turn in _TURNS:
        rgb = rgb.transpose(_TURNS[turn])
    if turn in _TURNS or turned in _TURNS:
        notes.normalized.append("exif")
    return rgb


def _to_rgb(image: Image.Image, notes: _Notes) -> Image.Image:
    if image.mode in ("I", "F") or image.mode.startswith("I;"):
        return _stretch(image, notes)
    if image.mode == "LAB":
        from PIL import ImageCms

        notes.normalized.append("lab")
        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        converted = ImageCms.profileToProfile(image, lab, srgb, outputMode="RGB")
        assert converted is not None  # only `inPlace=True` gives None
        return converted
    if image.mode in (known := {"CMYK": "cmyk", "P": "palette", "PA": "palette", "L": "grey", "LA": "grey", "1": "grey"}):
        notes.normalized.append(known[image.mode])
    if image.has_transparency_data:  # an alpha channel, or one transparent colour or palette entry
        straight = image.convert("LA") if image.mode == "La" else image
        rgba = straight if straight.mode == "RGBA" else straight.convert("RGBA")
        alpha = rgba.getchannel("A")
        if not np.all(np.asarray(alpha) == 255):
            notes.normalized.append("alpha")
            white = Image.new("RGB", image.size, "white")
            white.paste(rgba, mask=alpha)
            return white
        image = rgba
    return image.convert("RGB")


def _stretch(image: Image.Image, notes: _Notes) -> Image.Image:
    """Map minimum..maximum of 16-bit, 32-bit or float intensities to 0..255; NaN becomes black. Pillow would clip them, often to all white."""
    values = np.asarray(image)
    finite = values[np.isfinite(values)] if values.dtype.kind == "f" else values
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    scale = 255.0 / (high - low) if high > low else 0.0
    grey = np.zeros(values.shape, np.uint8)
    for top in range(0, len(values), 256):  # in strips: float64 of the whole would be eight times the picture
        with np.errstate(invalid="ignore"):
            strip = (values[top : top + 256].astype(np.float64) - low) * scale
        grey[top : top + 256] = np.nan_to_num(strip.clip(0, 255)).round()
    if isinstance(hidden := image.info.get("transparency"), int):
        grey[values == hidden] = 255
    notes.warn("intensities_rescaled", f"its intensities {low:g}..{high:g} were stretched to 0..255.")
    return Image.fromarray(grey).convert("RGB")
