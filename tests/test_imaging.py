"""Pictures: what is opened, what is refused and how, and the numbers of the two resizes."""

from __future__ import annotations

import hashlib
import io
import os
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.corpora.image_files import encode, png, scene
from tests.corpora.images import ACCEPT, GROUPS, HOSTILE_PATHS, ImageCase, image_cases
from tests.golden.places import FOLDERS

from lisaseg.errors import DataError, ImageError, UsageError
from lisaseg.imaging import (
    CLIP_MEAN,
    CLIP_STD,
    LIMITS,
    SAM_MEAN,
    SAM_STD,
    ImageLimits,
    ImageSource,
    Picture,
    Placement,
    fit_longest_side,
    fit_shortest_crop,
    normalize,
    open_image,
)
from lisaseg.imaging.opening import _PLUGINS

CODES = {"image_not_found", "unsupported_format", "corrupt_image", "truncated_image", "image_too_large", "extreme_aspect_ratio"}
SECONDS = 2.0


def check_message(error: ImageError) -> None:
    text = str(error)
    assert error.code in CODES and error.exit_code == 2
    assert "0x" not in text and "object at" not in text and "Traceback" not in text and "\n" not in text, text
    assert error.next_step and text.endswith(error.next_step) and text.isprintable(), text


def verdict(case: ImageCase, source: ImageSource) -> str:
    """What is wrong with the way this case is treated, or an empty string."""
    start = time.perf_counter()
    try:
        picture = open_image(source)
    except ImageError as error:
        check_message(error)
        took = time.perf_counter() - start
        return "" if error.code == case.expected and took < SECONDS else f"{case.name}: {error.code} in {took:.1f} s, expected {case.expected}"
    if case.expected != ACCEPT or case.rgb is None:
        return f"{case.name}: accepted, expected {case.expected}"
    if picture.rgb.shape != case.rgb.shape or picture.size != case.rgb.shape[:2]:
        return f"{case.name}: shape {picture.rgb.shape}, expected {case.rgb.shape}"
    distance = np.abs(picture.rgb.astype(int) - case.rgb).mean()
    if distance > case.tolerance:
        return f"{case.name}: pixels are off by {distance:.2f}"
    if [code for code, _ in picture.warnings] != ([case.warning] if case.warning else []):
        return f"{case.name}: warnings {picture.warnings}, expected {case.warning!r}"
    if case.normalized and case.normalized not in picture.normalized:
        return f"{case.name}: normalized {picture.normalized}, expected {case.normalized!r}"
    assert picture.rgb.dtype == np.uint8 and picture.rgb.flags.c_contiguous
    return ""


@pytest.mark.parametrize("group", [group.__name__ for group in GROUPS])
@pytest.mark.filterwarnings("ignore:.*(EXIF|File Read|metadata).*:UserWarning")
def test_every_file_of_the_corpus_gets_its_outcome(group: str, tmp_path: Path) -> None:
    wrong = []
    for number, case in enumerate(image_cases(group)):
        (tmp_path / str(number)).mkdir()
        path = tmp_path / str(number) / case.filename
        path.write_bytes(case.data)
        for source in (case.data, io.BytesIO(case.data), path, str(path)):
            wrong.append(verdict(case, source))
    problems = [line for line in wrong if line]
    assert not problems, "\n".join(problems)


def test_corpus_is_large_and_names_are_unique() -> None:
    cases = image_cases()
    assert len(cases) >= 300 and len({case.name for case in cases}) == len(cases)
    assert sum(case.expected == ACCEPT for case in cases) >= 120
    assert {case.expected for case in cases} == CODES - {"image_not_found"} | {ACCEPT}
    assert all(case.rgb is not None for case in cases if case.expected == ACCEPT)


@pytest.mark.parametrize("group", ["bombs", "shapes"])
def test_what_is_too_large_is_never_decoded(group: str, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = []
    for plugin in _PLUGINS.values():
        monkeypatch.setattr(plugin, "load", lambda image: decoded.append(image))
    for case in image_cases(group):
        if case.expected in ("image_too_large", "extreme_aspect_ratio"):
            with pytest.raises(ImageError):
                open_image(case.data)
    assert not decoded


@pytest.mark.skipif(sys.platform != "linux", reason="reads peak memory in KiB")
def test_bombs_cost_little_memory(tmp_path: Path) -> None:
    for case in image_cases("bombs"):
        (tmp_path / case.filename).write_bytes(case.data)
    script = (
        "import pathlib, resource, sys\nfrom lisaseg.imaging import open_image\nfrom lisaseg.errors import ImageError\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "for path in pathlib.Path(sys.argv[1]).iterdir():\n    try:\n        open_image(path)\n    except ImageError:\n        pass\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, 'torch' in sys.modules)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=True, env=environment)
    grown, torch_loaded = done.stdout.split()
    assert int(grown) < 100 * 1024 and torch_loaded == "False"


@pytest.mark.parametrize("path", HOSTILE_PATHS, ids=lambda path: ascii(path)[:24])
def test_hostile_paths_are_not_found(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ImageError) as caught:
        open_image(path)
    check_message(caught.value)
    assert caught.value.code == "image_not_found" and len(str(caught.value)) < 200


def test_folders_pipes_devices_and_locked_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    for path, words in ((tmp_path, "is a folder"), (tmp_path / "pipe.png", "not a regular file"), (Path("/dev/zero"), "not a regular file")):
        with pytest.raises(ImageError, match=words) as caught:
            open_image(path)
        check_message(caught.value)
        assert caught.value.code == "image_not_found"
    locked = tmp_path / "locked.png"
    locked.write_bytes(encode(scene(), "PNG"))
    locked.chmod(0)
    if not os.access(locked, os.R_OK):  # root reads everything
        with pytest.raises(ImageError, match=r"locked\.png may not be read"):
            open_image(locked)


def test_messages_name_the_file_and_what_it_is(tmp_path: Path) -> None:
    path = tmp_path / "report.jpg"
    path.write_bytes(b"%PDF-1.7")
    with pytest.raises(ImageError, match=r"^report\.jpg is a PDF document"):
        open_image(path)
    with pytest.raises(ImageError, match=r"^upload 3 is a web page"):
        open_image(b"<html>", name="upload 3")
    with pytest.raises(ImageError, match=r"13000 x 13000 \(169\.0 megapixels\); the limit is 50 megapixels"):
        open_image(image_cases("bombs")[0].data)
    with path.open("rb") as file, pytest.raises(ImageError, match=r"^report\.jpg"):
        open_image(file)


@pytest.mark.parametrize("maximum", [None, 1, 100])
def test_the_process_wide_pixel_limit_of_pillow_plays_no_part(maximum: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", maximum)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for format in ("PNG", "JPEG", "GIF", "BMP"):
            assert open_image(encode(scene(), format)).size == (36, 48)
        for case in image_cases("bombs"):
            with pytest.raises(ImageError) as caught:
                open_image(case.data)
            assert caught.value.code == case.expected
        if maximum:  # this plugin checks by itself: then at least the code must be right
            with pytest.raises(ImageError, match="MAX_IMAGE_PIXELS") as caught:
                open_image(encode(scene(), "TIFF"))
            assert caught.value.code == "image_too_large"
    assert maximum == Image.MAX_IMAGE_PIXELS


def test_limits_are_inclusive_and_can_be_set() -> None:
    data = encode(scene(40, 100), "PNG")
    assert open_image(data, ImageLimits(max_pixels=4000, max_side=100, max_aspect=2.5, max_bytes=len(data))).size == (40, 100)
    tight: dict[str, Any] = {"max_pixels": 3999, "max_side": 99, "max_bytes": len(data) - 1, "max_aspect": 2.4}
    for field, value in tight.items():
        for source in (data, io.BytesIO(data)):
            with pytest.raises(ImageError) as caught:
                open_image(source, ImageLimits(**{field: value}))
            assert caught.value.code == ("extreme_aspect_ratio" if field == "max_aspect" else "image_too_large")
    for in_memory in (scene(40, 100), Image.fromarray(scene(40, 100))):
        with pytest.raises(ImageError):
            open_image(in_memory, ImageLimits(max_pixels=3999))
    assert ImageLimits() == LIMITS == ImageLimits(50_000_000, 16_384, 200.0, 64 * 2**20)


def test_large_photos_keep_their_size() -> None:
    data = encode(Image.new("RGB", (5000, 4000)), "JPEG")
    assert open_image(data).size == (4000, 5000)


def test_arrays() -> None:
    rgb = scene()
    alpha = np.where(np.arange(48) < 20, 0, 255).astype(np.uint8)[None].repeat(36, 0)
    assert (open_image(rgb).rgb == rgb).all()
    assert (open_image(rgb[::-1, ::2]).rgb == rgb[::-1, ::2]).all()
    assert (open_image(np.asfortranarray(rgb)).rgb == rgb).all()
    assert (open_image(rgb[..., 0]).rgb == rgb[..., :1]).all()
    assert (open_image(np.dstack([rgb, alpha])).rgb == np.where(alpha[..., None] == 0, 255, rgb)).all()
    source = rgb.copy()
    picture = open_image(source)
    source[:] = 0  # the caller's array lives on
    assert (picture.rgb == rgb).all() and source.flags.writeable
    shapes = ((3, 36, 48), (36, 48, 2), (36,), (1, 36, 48, 3), (0, 5, 3), (5, 0))
    for bad in (rgb / 255, rgb.astype(np.int64), rgb > 3, *(np.zeros(shape, np.uint8) for shape in shapes)):
        with pytest.raises(ImageError) as caught:
            open_image(bad)
        check_message(caught.value)


def test_pil_images() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    upright = open_image(Image.open(io.BytesIO(encode(scene(), "PNG", exif=exif))))
    assert upright.size == (48, 36) and upright.normalized == ("exif",)
    assert (open_image(Image.fromarray(scene())).rgb == scene()).all()
    lazy = Image.open(io.BytesIO(encode(scene(), "PPM")))  # would run a decoder that is not on the list
    with pytest.raises(ImageError, match="PPM") as caught:
        open_image(lazy)
    assert caught.value.code == "unsupported_format"
    assert (open_image(lazy.convert("RGB")).rgb == scene()).all()
    with Image.open(io.BytesIO(encode(scene(), "PNG")[:500])) as cut, pytest.raises(ImageError):
        open_image(cut)


class Broken(io.BytesIO):
    def read(self, size: int | None = -1) -> bytes:
        raise RuntimeError("at 0xdead")


@pytest.mark.parametrize("source", [None, 7, [1], io.StringIO("text"), Broken(b"x"), object()], ids=lambda source: type(source).__name__)
def test_other_things_are_refused(source: object) -> None:
    with pytest.raises(ImageError) as caught:
        open_image(source)  # type: ignore[arg-type]
    check_message(caught.value)


def test_files_are_read_from_where_they_stand_and_stay_open() -> None:
    file = io.BytesIO(b"head" + encode(scene(), "PNG"))
    file.seek(4)
    assert (open_image(file).rgb == scene()).all() and not file.closed


def test_pictures_are_frozen_and_digests_tell_shapes_apart() -> None:
    flat = np.arange(30 * 100 * 3, dtype=np.uint32).astype(np.uint8)
    wide, tall = open_image(flat.reshape(30, 100, 3)), open_image(flat.reshape(100, 30, 3))
    assert wide.rgb.tobytes() == tall.rgb.tobytes() and wide.digest != tall.digest
    assert wide.digest == open_image(encode(wide.rgb, "PNG")).digest == wide.digest
    assert len(wide.digest) == len(hashlib.sha256().hexdigest())
    with pytest.raises(ValueError, match="read-only"):
        wide.rgb[0, 0] = 0
    with pytest.raises(AttributeError):
        wide.rgb = tall.rgb  # type: ignore[misc]
    assert "array" not in repr(wide) and isinstance(wide, Picture)


def test_fit_longest_side_by_hand() -> None:
    rgb = np.full((30, 60, 3), 200, np.uint8)
    canvas, placement = fit_longest_side(rgb, 20, fill=(1, 2, 3))
    assert placement == Placement((30, 60), (10, 20), 20) and placement.valid_fraction == (0.5, 1.0)
    assert (canvas[:10] == 200).all() and (canvas[10:] == (1, 2, 3)).all() and canvas.dtype == np.uint8
    assert fit_longest_side(np.zeros((375, 500, 3), np.uint8), 1024)[1].resized_hw == (768, 1024)
    assert fit_longest_side(np.zeros((1, 200, 3), np.uint8), 64)[1].resized_hw == (1, 64)
    assert (fit_longest_side(scene(48, 48), 48)[0] == scene(48, 48)).all()


def test_downscaling_is_antialiased() -> None:
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    canvas, _ = fit_longest_side(stripes, 16)
    assert np.abs(canvas.astype(int) - 128).max() < 30


def test_undo_without_scaling_is_a_crop() -> None:
    logits = torch.randn(2, 16, 16)
    assert torch.equal(Placement((10, 16), (10, 16), 16).undo(logits), logits[:, :10])


def test_undo_takes_any_float_and_no_masks() -> None:
    placement = Placement((30, 60), (32, 64), 64)
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        out = placement.undo(torch.zeros(3, 16, 16, dtype=dtype))
        assert out.dtype == torch.float32 and out.shape == (3, 30, 60)
    assert placement.undo(torch.zeros(0, 16, 16)).shape == (0, 30, 60)
    for shape in ((16, 16), (1, 16, 8), (1, 17, 17), (1, 0, 0), (1, 1, 16, 16)):
        with pytest.raises(UsageError, match="divisor of 64"):
            placement.undo(torch.zeros(shape))


def test_apply_mask_by_hand() -> None:
    mask = np.zeros((4, 8), np.uint8)
    mask[:2, :4], mask[3, 7] = 1, 255
    target = Placement((4, 8), (4, 8), 8).apply_mask(mask)
    assert (target[:4] == mask).all() and (target[4:] == 255).all()
    half = Placement((4, 8), (4, 8), 8).apply_mask(mask, side=4)
    assert half.tolist() == [[1, 1, 0, 0], [0, 0, 0, 255], [255] * 4, [255] * 4]
    assert (Placement((200, 1), (64, 1), 64).apply_mask(np.ones((200, 1), bool), side=16)[:, 0] == 1).all()  # thinner than a cell, still there
    with pytest.raises(DataError, match=r"\(4, 7\)"):
        Placement((4, 8), (4, 8), 8).apply_mask(mask[:, :7])


def test_shortest_crop_and_normalize_by_hand() -> None:
    rgb = np.zeros((20, 60, 3), np.uint8)
    rgb[:, 20:40] = 255
    assert (fit_shortest_crop(rgb, 20) == 255).all()
    assert fit_shortest_crop(scene(37, 91), 24).shape == (24, 24, 3)
    pixels = np.zeros((2, 3, 3), np.uint8)
    pixels[1, 2] = (124, 116, 104)
    tensor = normalize(pixels, SAM_MEAN, SAM_STD)
    assert tensor.shape == (3, 2, 3) and tensor.dtype == torch.float32 and tensor.is_contiguous()
    assert tensor[:, 0, 0].tolist() == pytest.approx([-m / s for m, s in zip(SAM_MEAN, SAM_STD, strict=True)])
    assert tensor[:, 1, 2].abs().max() < 0.01
    assert normalize(np.full((1, 1, 3), 255, np.uint8), CLIP_MEAN, CLIP_STD).flatten().tolist() == pytest.approx(
        [1.930336, 2.074884, 2.145897], abs=1e-5
    )


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_numbers_equal_the_reference_implementation(folder: Path) -> None:
    from safetensors.torch import load_file

    inputs, outputs = load_file(folder / "inputs.safetensors"), load_file(folder / "outputs.safetensors")
    for i, (height, width) in enumerate(inputs["resize_hw"].tolist()):
        rgb = inputs[f"raw_rgb_{i}"].numpy()
        canvas, placement = fit_longest_side(rgb, inputs["images"].shape[-1])
        assert placement.resized_hw == (height, width)
        assert np.abs(canvas[:height, :width].astype(int) - inputs[f"sam_resized_rgb_{i}"].numpy()).max() <= 1, "one level, for other Pillows"
        pixels = normalize(canvas, SAM_MEAN, SAM_STD)
        pixels[:, height:], pixels[:, :, width:] = 0, 0
        assert (pixels - inputs["images"][i]).abs().max() < 0.02  # one level, for other versions of Pillow
        clip = normalize(fit_shortest_crop(rgb, inputs["images_clip"].shape[-1]), CLIP_MEAN, CLIP_STD)
        assert (clip - inputs["images_clip"][i]).abs().max() < 0.02
        assert torch.allclose(placement.undo(outputs[f"low_res_masks_{i}"]), outputs[f"pred_masks_{i}"], atol=1e-5)


@pytest.mark.long
@pytest.mark.parametrize("shape", [(37, 91), (300, 200), (224, 224), (5, 900)])
def test_clip_pixels_equal_the_library(shape: tuple[int, int]) -> None:
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    expected = CLIPImageProcessorPil()(Image.fromarray(scene(*shape)), return_tensors="pt")["pixel_values"][0]
    assert torch.allclose(normalize(fit_shortest_crop(scene(*shape), 224), CLIP_MEAN, CLIP_STD), expected, atol=1e-5)


def test_png_by_hand_is_a_png() -> None:
    assert open_image(png(8, 2, 1, 0, b"\0\xf0\0\x0f")).rgb[..., 0].tolist() == [[255] * 4 + [0] * 4, [0] * 4 + [255] * 4]
