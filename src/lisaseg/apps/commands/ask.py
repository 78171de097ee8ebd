"""`lisaseg ask` and `lisaseg chat`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lisaseg.apps.commands.options import (
    DEFAULT_MODEL,
    DeviceMapOption,
    DeviceOption,
    DtypeOption,
    FormatsOption,
    ImageArgument,
    ModelOption,
    ModeOption,
    OfflineOption,
    OutOption,
    QuantizeOption,
    TokensOption,
    load_predictor,
    picture_and_stem,
)
from lisaseg.errors import UsageError

if TYPE_CHECKING:
    from lisaseg.formats import Format
    from lisaseg.types import Answer

NO_MASK = 4


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    app.command()(ask)
    app.command()(chat)


def ask(
    image: ImageArgument,
    text: Annotated[str, typer.Argument(metavar="TEXT", help="The instruction: a question, a sentence or a noun phrase.")],
    model: ModelOption = DEFAULT_MODEL,
    out: OutOption = None,
    mode: ModeOption = "auto",
    formats: FormatsOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the answer as JSON, masks as COCO RLE.")] = False,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    quantize: QuantizeOption = None,
    device_map: DeviceMapOption = None,
    offline: OfflineOption = False,
    max_new_tokens: TokensOption = None,
) -> None:
    """Ask one question about one picture."""
    from lisaseg.apps import console
    from lisaseg.formats import FORMATS
    from lisaseg.formats.answer import place_of
    from lisaseg.prompts import MASK_MODES

    if formats and out is None:
        raise UsageError("--format says what to write, but not where.", next_step="Add -o DIR.")
    for name in formats or []:
        FORMATS.get(name)  # an unknown one must fail before the model is loaded
    picture, stem = picture_and_stem(image)
    if out is not None:
        place_of(out, stem)
    limits: dict[str, Any] = {} if max_new_tokens is None else {"max_new_tokens": max_new_tokens}
    answer = load_predictor(model, device, dtype, offline, quantize, device_map).ask(picture, text, mode=mode, **limits)
    files = answer.save(out, stem) if out is not None else []
    files += [_written(answer, picture, out, stem, FORMATS.get(name)) for name in formats or [] if out is not None]
    console.warn(answer.warnings)
    if as_json:
        typer.echo(json.dumps(answer.to_dict(), ensure_ascii=False))
    else:
        console.show_answer(answer, files)
    found = any(segment.area for segment in answer.segments)
    if not found and (mode in MASK_MODES or answer.status == "no_target"):
        raise typer.Exit(NO_MASK)


def _written(answer: Answer, picture: Any, out: Path, stem: str, form: Format) -> Path:
    """The answer as an annotation of the picture; one that came in memory is put beside it."""
    from lisaseg.formats import write_aside
    from lisaseg.formats.convert import write_answers
    from lisaseg.formats.pictures import png_bytes

    if not isinstance(picture, Path):
        picture = write_aside(out / f"{stem}.png", png_bytes(picture))
    ending = "masks" if form.name == "png" else form.name  # a folder called street.png would be taken for a picture, or meet one
    target = out / (f"{stem}{form.suffix}" if form.suffix == f".{form.name}" else f"{stem}.{ending}{form.suffix}")
    write_answers([(answer, picture, stem)], form, target)
    return target


def chat(
    image: Annotated[str, typer.Argument(metavar="IMAGE", help="Path of a picture.")],
    model: ModelOption = DEFAULT_MODEL,
    out: OutOption = None,
    mode: ModeOption = "auto",
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    quantize: QuantizeOption = None,
    device_map: DeviceMapOption = None,
    offline: OfflineOption = False,
) -> None:
    """Talk about one picture, turn by turn; reads lines from a pipe too."""
    from lisaseg.apps.console import ChatLoop

    if image == "-":
        raise UsageError("chat reads your lines from standard input, so the picture cannot come from there.", next_step="Pass the path of a picture.")
    picture, stem = picture_and_stem(image)
    ChatLoop(load_predictor(model, device, dtype, offline, quantize, device_map).chat(picture), mode=mode, out=out, stem=stem).run()
