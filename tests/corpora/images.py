"""Corpus I: pictures that people, and attackers, send. Made in code; `image_cases()` gives them all.

Each case says what every face (Python, command line, REST, page) must do with it: accept it and see
exactly these pixels, or refuse it with this code.
"""

from __future__ import annotations

import gzip
import io
import struct
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from PIL import Image, ImageCms
from tests.corpora.image_files import (
    Pixels,
    decoded,
    encode,
    grey_of,
    on_white,
    png,
    resized_header,
    scene,
    srgb_profile,
    tiff,
    turned,
    webp,
)

ACCEPT = "accept"


@dataclass(frozen=True, eq=False)
class ImageCase:
    """One file.

    Attributes:
        name: unique.
        data: the bytes of the file.
        filename: what the sender calls it; always a legal file name.
        expected: "accept" or the error code.
        rgb: for accepted files the upright picture, uint8 `(H, W, 3)`.
        tolerance: how far the mean of |opened - rgb| may be from 0; 0 means equal.
        warning: code of the warning that must come with it, or "" for none.
        normalized: what `Picture.normalized` must hold, or "".
    """

    name: str
    data: bytes
    filename: str
    expected: str = ACCEPT
    rgb: Pixels | None = None
    tolerance: float = 0.0
    warning: str = ""
    normalized: str = ""


# Paths that lead to no picture; a server must treat them as mere names of an upload.
HOSTILE_PATHS = ("", " ", "missing.png", "../" * 12 + "missing/passwd.png", "..\\..\\missing.png", "a\0b.png", "\0", "x" * 4096 + ".png", "d/" * 2048,
                 "new\nline.png", "\x1b[31mred.png", "\u202egnp.exe", "file:///missing.png", "http://127.0.0.1/a.png", "HTTPS://host/a.png",
                 "data:image/png;base64,AAAA", "-rf", "*.png", "~missing/x.png", "|true", "missing/", "\ud800.png")  # fmt: skip


def orientations() -> Iterator[ImageCase]:
    """All 8 EXIF orientations in all formats that carry EXIF, and values that mean nothing."""
    formats: dict[str, dict[str, Any]] = {"JPEG": {"quality": 90}, "PNG": {}, "WEBP": {"lossless": True}, "TIFF": {}, "MPO": {"quality": 90}}
    for format, options in formats.items():
        for orientation in (*range(1, 9), 0, 9):
            tags = Image.Exif()
            tags[0x0112] = orientation
            data = encode(scene(), format, exif=tags, **options)
            stored = decoded(data) if "quality" in options else scene()
            note = "exif" if 2 <= orientation <= 8 else ""
            yield ImageCase(f"exif-{format}-{orientation}", data, f"turned.{format.lower()}", rgb=turned(stored, orientation), normalized=note)
    for name, exif in {"garbage": b"Exif\0\0" + b"X" * 40, "empty": b"Exif\0\0"}.items():
        data = encode(scene(), "JPEG", exif=exif)
        yield ImageCase(f"exif-JPEG-{name}", data, "odd.jpg", rgb=decoded(data))
    data = encode(scene(), "PNG", exif=b"X" * 40)
    yield ImageCase("exif-PNG-garbage", data, "odd.png", rgb=scene(), warning="exif_unreadable")


def plain_modes() -> Iterator[ImageCase]:
    """Grey, bilevel, palette and colour in every format that stores them without loss."""
    full = Image.fromarray(scene())
    images = {"1": full.convert("1"), "L": full.convert("L"), "P": full.quantize(64), "RGB": full}
    for format in ("PNG", "GIF", "BMP", "TIFF", "WEBP"):
        for mode, image in images.items():
            if (format, mode) == ("GIF", "RGB"):
                continue  # GIF has palettes only
            data = encode(image, format, lossless=True) if format == "WEBP" else encode(image, format)
            yield ImageCase(f"mode-{format}-{mode}", data, f"{mode}.{format.lower()}", rgb=np.array(image.convert("RGB")))
    for bits, colours in ((1, 2), (2, 4), (4, 16)):
        image = full.quantize(colours)
        yield ImageCase(f"mode-PNG-P{bits}", encode(image, "PNG", bits=bits), "few.png", rgb=np.array(image.convert("RGB")), normalized="palette")
    for compression in ("tiff_lzw", "tiff_deflate", "packbits", "tiff_adobe_deflate"):
        yield ImageCase(f"TIFF-{compression}", encode(full, "TIFF", compression=compression), "packed.tif", rgb=scene())
    for options in (
        {"progressive": True},
        {"optimize": True},
        {"subsampling": 0},
        {"quality": 5},
        {"icc_profile": srgb_profile()},
        {"comment": b"hi"},
    ):
        data = encode(full, "JPEG", **options)
        yield ImageCase(f"JPEG-{next(iter(options))}", data, "photo.jpg", rgb=decoded(data))
    data = encode(full.convert("L"), "JPEG")
    yield ImageCase("mode-JPEG-L", data, "grey.jpg", rgb=decoded(data), normalized="grey")
    data = encode(full, "WEBP", quality=80)
    yield ImageCase("mode-WEBP-lossy", data, "lossy.webp", rgb=decoded(data))
    data = encode(full, "TIFF", compression="jpeg")
    yield ImageCase("TIFF-jpeg", data, "photo.tif", rgb=decoded(data))
    for format in ("PNG", "TIFF", "WEBP"):
        data = encode(full, format, icc_profile=srgb_profile(), **({"lossless": True} if format == "WEBP" else {}))
        yield ImageCase(f"icc-{format}", data, f"profile.{format.lower()}", rgb=scene())


def transparent_modes() -> Iterator[ImageCase]:
    """Alpha channels, transparent palette entries and transparent colours: all end on white."""
    rgb, grey = scene(), np.array(Image.fromarray(scene()).convert("L"))
    ramp = np.tile(np.linspace(0, 255, rgb.shape[1]).astype(np.uint8), (rgb.shape[0], 1))
    hole = np.full_like(ramp, 255)
    hole[5:20, 8:30] = 0
    for name, alpha in {"ramp": ramp, "hole": hole, "none": np.full_like(ramp, 255), "all": np.zeros_like(ramp)}.items():
        note = "" if name == "none" else "alpha"
        rgba, la = np.dstack([rgb, alpha]), Image.merge("LA", [Image.fromarray(grey), Image.fromarray(alpha)])
        rough = 0.5 if name == "ramp" else 0.0  # rounding of the blend
        for format in ("PNG", "WEBP", "TIFF"):
            options = {"lossless": True, "exact": True} if format == "WEBP" else {}
            data = encode(rgba, format, **options)
            yield ImageCase(f"RGBA-{format}-{name}", data, f"a.{format.lower()}", rgb=on_white(rgb, alpha), tolerance=rough, normalized=note)
        twin = on_white(np.repeat(grey[..., None], 3, -1), alpha)
        for format in ("PNG", "TIFF"):
            yield ImageCase(f"LA-{format}-{name}", encode(la, format), f"la.{format.lower()}", rgb=twin, tolerance=rough, normalized=note)
    palette = Image.fromarray(rgb).quantize(32)
    index = np.array(palette)
    twin = np.array(palette.convert("RGB"))
    twin[index == 3] = 255
    for format in ("PNG", "GIF"):
        yield ImageCase(f"P-tRNS-{format}", encode(palette, format, transparency=3), f"p.{format.lower()}", rgb=twin, normalized="alpha")
    shares = np.arange(32, dtype=np.uint8) * 8
    twin = on_white(np.array(palette.convert("RGB")), shares[index])
    yield ImageCase("P-tRNS-shares", encode(palette, "PNG", transparency=bytes(shares)), "p.png", rgb=twin, tolerance=1.0, normalized="alpha")
    key = tuple(int(v) for v in rgb[0, 0])
    twin = rgb.copy()
    twin[(rgb == rgb[0, 0]).all(-1)] = 255
    yield ImageCase("RGB-tRNS", encode(rgb, "PNG", transparency=key), "key.png", rgb=twin, normalized="alpha")
    twin = np.repeat(np.where(grey == grey[0, 0], 255, grey)[..., None], 3, -1).astype(np.uint8)
    yield ImageCase("L-tRNS", encode(grey, "PNG", transparency=int(grey[0, 0])), "key.png", rgb=twin, normalized="alpha")


def deep_modes() -> Iterator[ImageCase]:
    """16 bit, 32 bit and float: stretched, never clipped; 16-bit colour: its high byte."""
    y, x = np.mgrid[:30, :40]
    scan = (1000 + 50 * y + x).astype(np.uint16)  # a CT slice uses a small part of its range
    say: dict[str, Any] = {"warning": "intensities_rescaled", "rgb": grey_of(scan)}
    yield ImageCase("I;16-PNG", encode(scan, "PNG"), "ct.png", normalized="16bit", **say)
    yield ImageCase("I;16-TIFF", encode(scan, "TIFF"), "ct.tif", normalized="16bit", **say)
    yield ImageCase(
        "I;16B-TIFF", encode(Image.frombytes("I;16B", (40, 30), scan.astype(">u2").tobytes()), "TIFF"), "ct.tif", normalized="16bit", **say
    )
    yield ImageCase("I-TIFF", encode(scan.astype(np.int32) - 2000, "TIFF"), "hu.tif", **say)
    yield ImageCase("F-TIFF", encode(scan.astype(np.float32) / 1e4, "TIFF"), "depth.tif", **say)
    holes = scan.astype(np.float32)
    holes[0, 0], holes[1, 1], holes[2, 2] = np.nan, np.inf, -np.inf
    yield ImageCase("F-TIFF-holes", encode(holes, "TIFF"), "depth.tif", rgb=grey_of(holes), warning="intensities_rescaled")
    flat = np.full((30, 40), 7, np.uint16)
    yield ImageCase("I;16-PNG-flat", encode(flat, "PNG"), "flat.png", rgb=np.zeros((30, 40, 3), np.uint8), warning="intensities_rescaled")
    wide = scene().astype(np.uint16) * 256 + 99
    for name, colour, values in (("RGB", 2, wide), ("RGBA", 6, np.dstack([wide, np.full(wide.shape[:2], 65535, np.uint16)]))):
        rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
        yield ImageCase(f"{name}16-PNG", png(48, 36, 16, colour, rows), "deep.png", rgb=scene(), normalized="16bit")
    yield ImageCase("RGB16-TIFF", tiff(48, 36, 16, 3, wide.astype("<u2").tobytes()), "deep.tif", rgb=scene(), normalized="16bit")
    yield ImageCase("L8-TIFF-by-hand", tiff(48, 36, 8, 1, scene()[..., 0].tobytes()), "grey.tif", rgb=np.repeat(scene()[..., :1], 3, -1))


def print_modes() -> Iterator[ImageCase]:
    """CMYK, YCCK, Lab, YCbCr."""
    full = Image.fromarray(scene())
    cmyk = full.convert("CMYK")
    yield ImageCase("CMYK-TIFF", encode(cmyk, "TIFF"), "print.tif", rgb=scene(), normalized="cmyk")
    data = encode(cmyk, "JPEG", quality=95)
    yield ImageCase("CMYK-JPEG", data, "print.jpg", rgb=scene(), tolerance=4.0, normalized="cmyk")
    # Pillow writes CMYK only: store Y, Cb, Cr of the inks (inverted, as Adobe does) and say so in the Adobe marker.
    inks = cmyk.split()
    ycc = Image.merge("RGB", inks[:3]).convert("YCbCr").split()
    ycck = Image.merge("CMYK", [*(Image.eval(band, lambda v: 255 - v) for band in ycc), inks[3]])
    data = encode(ycck, "JPEG", quality=95)
    marker = data.index(b"Adobe") + 11
    yield ImageCase("YCCK-JPEG", data[:marker] + b"\2" + data[marker + 1 :], "print.jpg", rgb=scene(), tolerance=4.0, normalized="cmyk")
    lab = ImageCms.profileToProfile(full, ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB")
    assert lab is not None
    yield ImageCase("LAB-TIFF", encode(lab, "TIFF"), "lab.tif", rgb=scene(), tolerance=3.0, normalized="lab")
    yield ImageCase("YCbCr-TIFF", encode(full.convert("YCbCr"), "TIFF"), "ycc.tif", rgb=scene(), tolerance=2.0)


def animations() -> Iterator[ImageCase]:
    """The first of several frames or pages."""
    first, second = Image.fromarray(scene()), Image.fromarray(scene(seed=1))
    for format, ending in (("PNG", "apng"), ("WEBP", "webp"), ("TIFF", "tif")):
        options = {"lossless": True} if format == "WEBP" else {}
        data = encode(first, format, save_all=True, append_images=[second, first], **options)
        yield ImageCase(f"animated-{format}", data, f"many.{ending}", rgb=scene(), warning="first_frame_only")
    data = encode(first, "MPO", save_all=True, append_images=[second])
    yield ImageCase("animated-MPO", data, "many.mpo", rgb=decoded(data), warning="first_frame_only")
    pages = [first.quantize(32), second.quantize(32)]
    data = encode(pages[0], "GIF", save_all=True, append_images=pages[1:], duration=50)
    yield ImageCase("animated-GIF", data, "many.gif", rgb=np.array(pages[0].convert("RGB")), warning="first_frame_only")
    cut = data[: len(data) - 400]  # the second frame is broken, the first is whole
    yield ImageCase("animated-GIF-cut", cut, "many.gif", rgb=np.array(pages[0].convert("RGB")), warning="first_frame_only")


def shapes() -> Iterator[ImageCase]:
    """Tiny, thin and long."""
    for width, height in ((1, 1), (3, 1), (1, 3), (2, 2), (1, 200), (200, 1), (7, 1400), (1400, 7), (16384, 100), (100, 16384)):
        pixels = np.array(Image.fromarray(scene()).resize((width, height)))
        for format in ("PNG", "BMP"):
            yield ImageCase(f"shape-{width}x{height}-{format}", encode(pixels, format), f"thin.{format.lower()}", rgb=pixels)
    for width, height in ((1, 201), (201, 1), (20000, 1), (1, 20000), (5000, 2), (2, 5000), (60000, 1)):
        for format in ("PNG", "JPEG") if max(width, height) < 65500 else ("PNG",):
            data = encode(Image.new("RGB", (width, height)), format)
            yield ImageCase(f"shape-{width}x{height}-{format}", data, f"thin.{format.lower()}", "extreme_aspect_ratio")
    for width, height in ((16385, 100), (100, 16385)):
        yield ImageCase(f"shape-{width}x{height}", encode(Image.new("L", (width, height)), "PNG"), "long.png", "image_too_large")


def bombs() -> Iterator[ImageCase]:
    """Small files that claim huge pictures."""
    small = {format: encode(scene(), format) for format in ("JPEG", "GIF", "BMP")}
    gif = bytearray(small["GIF"])
    frame = gif.index(b",\0\0\0\0")
    files = {
        "1bit.png": png(13000, 13000, 1, 0, bytes(1626 * 13000)),  # 20 KB, 169 megapixels: below Pillow's own limit
        "claim.png": png(60000, 60000, 8, 6, b"\0"),
        "edge.png": png(2**31 - 1, 2**31 - 1, 8, 2, b"\0"),
        "slightly.png": png(7100, 7100, 1, 0, bytes(888 * 7100)),  # 50.4 megapixels
        "screen.gif": bytes(gif[:6] + struct.pack("<HH", 65535, 65535) + gif[10:]),
        "frame.gif": bytes(gif[: frame + 5] + struct.pack("<HH", 65535, 65535) + gif[frame + 9 :]),
        "claim.jpg": resized_header(small["JPEG"], 65500, 65500),
        "claim.bmp": small["BMP"][:18] + struct.pack("<ii", 30000, 30000) + small["BMP"][26:],
        "claim.tif": tiff(60000, 60000, 8, 3, b"\0" * 100),
        "vp8x.webp": webp(b"VP8X", b"\0\0\0\0" + (16382).to_bytes(3, "little") * 2),
        "vp8x24bit.webp": webp(b"VP8X", b"\0\0\0\0" + b"\xff\xff\xff" * 2),
        "vp8l.webp": webp(b"VP8L", b"\x2f" + (16382 | 16382 << 14).to_bytes(4, "little") + b"\0" * 50),
        "vp8.webp": webp(b"VP8 ", b"\x10\2\0\x9d\1\x2a" + struct.pack("<HH", 16383, 16383) + b"\0" * 50),
    }
    for filename, data in files.items():
        yield ImageCase(f"bomb-{filename}", data, filename, "image_too_large")
    notes = b"Comment\0\0" + zlib.compress(bytes(2**26), 9)  # 64 MiB of text
    yield ImageCase("bomb-text.png", png(48, 36, 8, 0, bytes(49 * 36), extra=((b"zTXt", notes),)), "text.png", "corrupt_image")
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.png", bytes(2**26))
    yield ImageCase("bomb-zip", packed.getvalue(), "a.zip", "unsupported_format")
    yield ImageCase("bomb-gzip", gzip.compress(bytes(2**26)), "a.png.gz", "unsupported_format")


def truncated() -> Iterator[ImageCase]:
    """All formats, cut at many places."""
    tiff_options = {"TIFF": {}, "TIFF-lzw": {"compression": "tiff_lzw"}}
    whole = {format: encode(scene(), format) for format in ("JPEG", "PNG", "GIF", "BMP", "WEBP")}
    whole |= {name: encode(scene(), "TIFF", **options) for name, options in tiff_options.items()}
    for format, data in whole.items():
        for percent in (1, 3, 5, 10, 25, 50, 75, 90, 99):
            cut = data[: max(4, len(data) * percent // 100)]
            yield ImageCase(f"cut-{format}-{percent}", cut, f"cut.{format[:4].lower()}", "truncated_image")
    for length in (1, 2, 3, 5, 7):
        yield ImageCase(f"cut-PNG-{length}-bytes", whole["PNG"][:length], "cut.png", "truncated_image")
    yield ImageCase("zero-bytes", b"", "empty.jpg", "truncated_image")
    yield ImageCase("cut-PNG-no-end", whole["PNG"][:-12] + b"\0" * 12, "cut.png", rgb=scene())  # all pixels are there


def damaged() -> Iterator[ImageCase]:
    """The right first bytes, nonsense after them."""
    jpeg, gif, flat = encode(scene(), "JPEG"), encode(scene(), "GIF"), png(4, 4, 8, 0, bytes(20))
    files = {
        "crc.png": flat[:29] + b"\0\0\0\0" + flat[33:],
        "zero.png": png(0, 4, 8, 0, b""),
        "depth.png": png(4, 4, 7, 0, bytes(20)),
        "rows.png": png(400, 400, 8, 0, bytes(20)),
        "zlib.png": flat.replace(zlib.compress(bytes(20), 9), b"\xff" * len(zlib.compress(bytes(20), 9))),
        "magic.jpg": b"\xff\xd8\xff\xe0" + b"\x55" * 200 + b"\xff\xd9",
        "no_frame.jpg": jpeg[:20] + b"\xff\xd9",
        "zero.jpg": resized_header(jpeg, 0, 0),
        "html.gif": b"GIF89a/*<html><script>alert(1)</script></html>*/=1;",
        "zero.gif": gif[:6] + b"\0\0\0\0" + gif[10:13] + b";",
        "bits.bmp": encode(scene(), "BMP")[:28] + b"\x63\0" + encode(scene(), "BMP")[30:],
        "loop.tif": b"II*\0\x08\0\0\0" + b"\0\0" + b"\x08\0\0\0" + b"\0" * 20,
        "junk.tif": b"MM\0*\0\0\0\x08\0\1" + b"\x77" * 60,
        "junk.webp": webp(b"VP8 ", b"\x11" * 60),
    }
    for filename, data in files.items():
        yield ImageCase(f"damaged-{filename}", data, filename, "corrupt_image")
    data = tiff(48, 36, 8, 3, scene().tobytes(), next_ifd=8)  # the directory names itself as the next page
    yield ImageCase("TIFF-endless", data, "endless.tif", rgb=scene())


def foreign() -> Iterator[ImageCase]:
    """Not a picture, or a format that is not on the list; and pictures under a wrong name."""
    full = Image.fromarray(scene())
    files = {
        "note.txt": b"hello world\n",
        "unicode.txt": "你好 мир".encode(),
        "a.json": b'{"image": "a.png"}',
        "drawing.svg": b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>',
        "prolog.svg": b'<?xml version="1.0"?>\n<!-- x -->\n<svg width="10" height="10"/>',
        "page.html": b"<!DOCTYPE html><html><body>404</body></html>",
        "page.jpg": b"\n<html><body>404</body></html>",
        "paper.pdf": b"%PDF-1.7\n1 0 obj\n<<>>\nendobj\n" + encode(full, "JPEG"),
        "real.pdf": encode(full, "PDF"),
        "office.docx": b"PK\3\4" + b"\0" * 60,
        "inner.png.gz": gzip.compress(encode(full, "PNG")),
        "layers.psd": b"8BPS\0\1" + b"\0" * 60,
        "stars.fits": b"SIMPLE  =                    T" + b" " * 2850,
        "phone.heic": b"\0\0\0\x18ftypheic" + b"\0" * 60,
        "clip.mp4": b"\0\0\0\x18ftypisom" + b"\0" * 60,
        "pointer.png": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12345\n",
        "program": b"\x7fELF\2\1\1" + b"\0" * 60,
        "pickle.pt": b"\x80\4\x95" + b"\0" * 60,
        "array.npy": b"\x93NUMPY\1\0" + b"\0" * 60,
        "macro.eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n",
        "sound.wav": b"RIFF\x24\0\0\0WAVEfmt " + b"\0" * 30,
        "zeros.jpg": bytes(1000),
        "letter.bmp": b"BM, dear friend, this is only a letter that begins like a bitmap.",
        "random.png": np.random.default_rng(1).bytes(1000),
    }
    for format in ("AVIF", "JPEG2000", "ICO", "PPM", "TGA", "DDS", "ICNS", "PCX", "SGI", "QOI"):
        files[f"real.{format.lower()}"] = encode(full, format)
    for filename, data in files.items():
        yield ImageCase(f"foreign-{filename}", data, filename, "unsupported_format")
    data = encode(full, "PNG")
    names = (
        "cat.jpg",
        "cat.gif",
        "cat.txt",
        "cat",
        "cat.png.exe",
        ".png",
        "кот.png",
        "a b'\"&;$(x).png",
        "%00.png",
        "-rf",
        "CON",
        "x" * 250,
        "\U0001f600.png",
    )
    for filename in names:
        yield ImageCase(f"named-{filename[:20]}", data, filename, rgb=scene())
    yield ImageCase("tail-html", data + b"<html><script>alert(1)</script></html>", "tail.png", rgb=scene())
    yield ImageCase("tail-zip", encode(full, "BMP") + b"PK\3\4" + b"\0" * 60, "tail.bmp", rgb=scene())
    photo = encode(full, "JPEG")
    yield ImageCase("tail-JPEG", photo + b"\0" * 64 + b"phone trailer", "tail.jpg", rgb=decoded(photo))


GROUPS = (orientations, plain_modes, transparent_modes, deep_modes, print_modes, animations, shapes, bombs, truncated, damaged, foreign)


@cache
def image_cases(*groups: str) -> tuple[ImageCase, ...]:
    """The whole corpus in a fixed order, or only the groups (functions above) of these names."""
    return tuple(case for group in GROUPS if not groups or group.__name__ in groups for case in group())
