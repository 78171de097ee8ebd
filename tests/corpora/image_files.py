"""Pixels and files by hand, for corpora: what Pillow cannot write, and what the specifications say without asking the code under test."""

from __future__ import annotations

import io
import struct
import zlib
from functools import cache
from typing import Any

import numpy as np
from PIL import Image, ImageCms

Pixels = np.ndarray  # uint8 (H, W, 3)


@cache
def scene(height: int = 36, width: int = 48, seed: int = 0) -> Pixels:
    """A picture without any symmetry: gradients, a block, noise."""
    y, x = np.mgrid[:height, :width]
    rgb = np.stack([255 * y / height, 255 * x / width, 128 + 64 * np.sin(x / 5 + y / 9)], -1)
    rgb[: height // 3, : width // 4] = (230, 20, 40)
    rgb += np.random.default_rng(seed).normal(0, 8, rgb.shape)
    return rgb.clip(0, 255).astype(np.uint8)


def encode(image: Image.Image | np.ndarray, format: str, **options: Any) -> bytes:
    """The file that Pillow writes."""
    image = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def decoded(data: bytes) -> Pixels:
    """What a lossy file holds, as stored: the decoder is trusted, what happens to its pixels afterwards is under test."""
    return np.array(Image.open(io.BytesIO(data)).convert("RGB"))


def png(width: int, height: int, depth: int, colour: int, rows: bytes, extra: tuple[tuple[bytes, bytes], ...] = ()) -> bytes:
    """A PNG by hand; `rows` is the filtered data before compression."""
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)), *extra, (b"IDAT", zlib.compress(rows, 9)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )


def tiff(width: int, height: int, bits: int, samples: int, data: bytes, next_ifd: int = 0) -> bytes:
    """An uncompressed little-endian TIFF by hand, one strip, `bits` <= 16 a sample."""
    tags = [(256, 4, width), (257, 4, height), (258, 3, bits), (259, 3, 1), (262, 3, 2 if samples == 3 else 1), (273, 4, 0), (277, 3, samples),
            (278, 4, height), (279, 4, len(data))]  # fmt: skip
    end = 8 + 2 + 12 * len(tags) + 4  # of the directory; then the three bit depths, then the pixels
    body = struct.pack("<H", len(tags))
    for tag, kind, value in tags:
        count = samples if tag == 258 else 1
        value = end if tag == 258 and samples == 3 else end + 6 if tag == 273 else value
        body += struct.pack("<HHII", tag, kind, count, value)
    return b"II*\0" + struct.pack("<I", 8) + body + struct.pack("<I", next_ifd) + struct.pack("<3H", bits, bits, bits) + data


def turned(stored: np.ndarray, orientation: int) -> np.ndarray:
    """What a viewer shows of `(H, W, 3)` pixels stored under an EXIF orientation, by the words of the EXIF standard."""
    across = stored.transpose(1, 0, 2)  # rows become columns
    views = {2: stored[:, ::-1], 3: stored[::-1, ::-1], 4: stored[::-1], 5: across, 6: across[:, ::-1], 7: across[::-1, ::-1], 8: across[::-1]}
    return views.get(orientation, stored)


def on_white(rgb: np.ndarray, alpha: np.ndarray) -> Pixels:
    """Composite by arithmetic; `alpha` is uint8 (H, W)."""
    share = alpha[..., None] / 255.0
    return np.round(rgb * share + 255 * (1 - share)).astype(np.uint8)


def grey_of(values: np.ndarray) -> Pixels:
    """Min-max of any (H, W) numbers as RGB."""
    values = values.astype(np.float64)
    low, high = np.nanmin(values[np.isfinite(values)]), np.nanmax(values[np.isfinite(values)])
    grey = np.nan_to_num((values - low) / (high - low) * 255, nan=0, posinf=255, neginf=0)
    return np.repeat(np.round(grey).astype(np.uint8)[..., None], 3, -1)


def srgb_profile() -> bytes:
    """An ICC profile."""
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def webp(chunk: bytes, body: bytes) -> bytes:
    """A WebP file with one chunk."""
    return b"RIFF" + struct.pack("<I", 12 + len(body)) + b"WEBP" + chunk + struct.pack("<I", len(body)) + body


def resized_header(data: bytes, width: int, height: int) -> bytes:
    """A JPEG that claims another size."""
    start = data.index(b"\xff\xc0") + 5
    return data[:start] + struct.pack(">HH", height, width) + data[start + 4 :]
