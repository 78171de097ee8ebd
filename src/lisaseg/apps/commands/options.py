"""Arguments and options that several commands share, and how they become a predictor and a picture."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from lisaseg.errors import UsageError

if TYPE_CHECKING:
    from lisaseg.predictor import Predictor

DEFAULT_MODEL = "lisa-tiny"

# A copy of lisaseg.types.Mode, which would load numpy; a test holds them equal.
Mode = Literal["auto", "segment", "explain", "text", "instances", "explain_instances", "reason"]
ImageArgument = Annotated[str, typer.Argument(metavar="IMAGE", help="Path of a picture, or - for standard input.")]
ModelOption = Annotated[str, typer.Option("--model", "-m", help="Preset, folder, or hub id.")]
ModeOption = Annotated[
    Mode,
    typer.Option(
        "--mode",
        help="auto: the model decides; segment: a mask, or a stated refusal; explain: mask and reason; text: words only. The others are LISA++'s: a "
        "mask for each object; reasoning step by step.",
    ),
]
OutOption = Annotated[Path | None, typer.Option("--out", "-o", metavar="DIR", help="Write overlay, masks and JSON here.")]
FormatsOption = Annotated[list[str] | None, typer.Option("--format", metavar="F", help="Also write coco, labelme, ...; may be repeated.")]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")]
DtypeOption = Annotated[str, typer.Option(help="auto, float32, bfloat16, float16.")]
QuantizeOption = Annotated[
    Literal["8bit", "4bit"] | None, typer.Option("--quantize", help="Smaller weights for the published checkpoints (needs bitsandbytes).")
]
DeviceMapOption = Annotated[
    Literal["auto"] | None, typer.Option("--device-map", help="auto: spread a published checkpoint over GPUs, memory and disk.")
]
OfflineOption = Annotated[bool, typer.Option("--offline", help="Open no network connection.")]
TokensOption = Annotated[int | None, typer.Option("--max-new-tokens", min=1, help="Length limit of the answer; default: the model's.")]


def load_predictor(name: str, device: str, dtype: str, offline: bool, quantize: str | None = None, device_map: str | None = None) -> Predictor:
    """`lisaseg.load`, imported now."""
    from lisaseg.startup import collector_paused

    with collector_paused():
        from lisaseg import predictor

    smaller = {option: value for option, value in (("quantize", quantize), ("device_map", device_map)) if value is not None}
    return predictor.load(name, device=device, dtype=dtype, offline=offline, **smaller)


def need_package(name: str, extra: str) -> None:
    """Say how to install an optional package before something fails for want of it."""
    if importlib.util.find_spec(name) is None:
        raise UsageError(f"This needs the package {name}, which is not installed.", next_step=f"pip install 'lisaseg[{extra}]'")


def picture_and_stem(image: str) -> tuple[Any, str]:
    """What `Predictor` takes, and the stem of the files to write. A picture that cannot be used fails here, before the model is loaded."""
    from lisaseg.apps import console
    from lisaseg.imaging import LIMITS, open_image

    if image != "-":
        open_image(image)  # the predictor opens it again: a fraction of a second, and the answer then names file and warnings
        return Path(image), Path(image).stem
    picture = open_image(sys.stdin.buffer.read(LIMITS.max_bytes + 1), name="The picture from standard input")
    console.warn(picture.warnings)
    return picture.rgb, "stdin"
