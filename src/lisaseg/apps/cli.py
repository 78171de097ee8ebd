"""The command line. Results go to stdout, everything else to stderr; exit codes are part of the contract (see `EPILOG`).

Nothing heavy is imported before a command needs it: `lisaseg --help` loads typer and nothing of torch, numpy or Pillow.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from lisaseg import __version__
from lisaseg.errors import LisaSegError, UsageError

if TYPE_CHECKING:
    from lisaseg.predictor import Predictor

EPILOG = (
    "Exit codes: 0 done; 1 done, with failures; 2 wrong use or bad input; 3 the model could not be loaded; "
    "4 the answer holds no mask although one was asked for; 130 interrupted."
)
NO_MASK = 4
DEFAULT_MODEL = "lisa-tiny"

Mode = Literal["auto", "segment", "explain", "text"]  # a copy of lisaseg.types.Mode, which would load numpy; a test holds them equal
ImageArgument = Annotated[str, typer.Argument(metavar="IMAGE", help="Path of a picture, or - for standard input.")]
ModelOption = Annotated[str, typer.Option("--model", "-m", help="Preset, folder, or hub id.")]
ModeOption = Annotated[
    Mode, typer.Option("--mode", help="auto: the model decides; segment: always a mask; explain: mask and reason; text: words only.")
]
OutOption = Annotated[Path | None, typer.Option("--out", "-o", metavar="DIR", help="Write overlay, masks and JSON here.")]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")]
DtypeOption = Annotated[str, typer.Option(help="auto, float32, bfloat16, float16.")]
OfflineOption = Annotated[bool, typer.Option("--offline", help="Open no network connection.")]
TokensOption = Annotated[int | None, typer.Option("--max-new-tokens", min=1, help="Length limit of the answer; default: the model's.")]


class Doors(TyperGroup):
    """Turns every `LisaSegError` of every command into one line on stderr and its exit code."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command; see the class."""
        try:
            return super().invoke(ctx)
        except LisaSegError as error:
            from lisaseg.apps.console import printable

            if ctx.params.get("debug"):
                traceback.print_exc()
            typer.secho("error: ", fg="red", bold=True, err=True, nl=False)
            typer.echo(printable(str(error)), err=True)
            raise typer.Exit(error.exit_code) from error


app = typer.Typer(
    cls=Doors,
    epilog=EPILOG,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
models_app = typer.Typer(no_args_is_help=True, help="List, fetch and check weights.")
app.add_typer(models_app, name="models")


def main() -> None:
    """Entry point of `lisaseg`."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a console of another encoding shows an escape instead of failing
            stream.reconfigure(errors="backslashreplace")
    app(prog_name="lisaseg")


def _version(value: bool) -> None:
    if value:
        typer.echo(f"lisaseg {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", envvar="LISASEG_DEBUG", help="Show tracebacks and detailed logs.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log progress to stderr.")] = False,
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")] = False,
) -> None:
    """Ask a question about a picture, get the answer in words and in pixels."""
    level = logging.DEBUG if debug else logging.INFO if verbose else logging.WARNING
    logging.basicConfig(stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("lisaseg").setLevel(level)
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # transformers heeds it too


@app.command()
def ask(
    image: ImageArgument,
    text: Annotated[str, typer.Argument(metavar="TEXT", help="The instruction: a question, a sentence or a noun phrase.")],
    model: ModelOption = DEFAULT_MODEL,
    out: OutOption = None,
    mode: ModeOption = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print the answer as JSON, masks as COCO RLE.")] = False,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    offline: OfflineOption = False,
    max_new_tokens: TokensOption = None,
) -> None:
    """Ask one question about one picture."""
    from lisaseg.apps import console

    picture, stem = _picture(image)
    limits: dict[str, Any] = {} if max_new_tokens is None else {"max_new_tokens": max_new_tokens}
    answer = _load(model, device, dtype, offline).ask(picture, text, mode=mode, **limits)
    files = answer.save(out, stem) if out is not None else []
    console.warn(answer.warnings)
    if as_json:
        typer.echo(json.dumps(answer.to_dict(), ensure_ascii=False))
    else:
        console.show_answer(answer, files)
    found = any(segment.area for segment in answer.segments)
    if not found and (mode == "segment" or (mode == "auto" and answer.status == "no_target")):
        raise typer.Exit(NO_MASK)


@app.command()
def chat(
    image: ImageArgument,
    model: ModelOption = DEFAULT_MODEL,
    out: OutOption = None,
    mode: ModeOption = "auto",
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    offline: OfflineOption = False,
) -> None:
    """Talk about one picture, turn by turn; reads lines from a pipe too."""
    from lisaseg.apps.console import ChatLoop

    if image == "-":
        raise UsageError("chat reads your lines from standard input, so the picture cannot come from there.", next_step="Pass the path of a picture.")
    picture, stem = _picture(image)
    ChatLoop(_load(model, device, dtype, offline).chat(picture), mode=mode, out=out, stem=stem).run()


@models_app.command("list")
def models_list(as_json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False) -> None:
    """Models known by name, their licence, size and state."""
    from dataclasses import asdict

    from lisaseg.apps.console import show_table
    from lisaseg.store import presets

    known = presets()
    if as_json:
        typer.echo(json.dumps([asdict(info) for info in known], ensure_ascii=False))
        return
    rows = [[i.name, i.state, f"{i.size_mb} MB" if i.size_mb else "?", i.description, i.licence, i.trained_on] for i in known]
    show_table(["name", "state", "size", "what it is", "licence", "trained on"], rows)


@models_app.command("pull")
def models_pull(name: Annotated[str, typer.Argument(help="Name of a preset.")] = DEFAULT_MODEL, offline: OfflineOption = False) -> None:
    """Fetch, check and convert the weights of a model once; resumes after an interruption."""
    from lisaseg.apps.console import transfer_bar
    from lisaseg.store import pull

    with transfer_bar(name) as progress:
        folder = pull(name, progress=progress, offline=offline)
    typer.echo(str(folder))


@models_app.command("verify")
def models_verify(name: Annotated[str, typer.Argument(help="Name of a preset.")] = DEFAULT_MODEL) -> None:
    """Read every weight file and compare it with its checksum; exit 3 if one is wrong."""
    from lisaseg.apps.console import show_table
    from lisaseg.store import verify

    checks = verify(name)
    show_table(["", "check", "detail", "next step"], [["OK" if c.ok else "FAIL", c.name, c.detail, c.next_step] for c in checks])
    if not all(check.ok for check in checks):
        raise typer.Exit(3)


@models_app.command("convert")
def models_convert(
    source: Annotated[Path, typer.Argument(metavar="SRC", help="Folder of a published LISA checkpoint (.bin or safetensors).")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="New folder; an existing one is refused.")],
) -> None:
    """Turn a published checkpoint into safetensors with a manifest of every tensor."""
    from lisaseg.model.convert import convert_checkpoint

    convert_checkpoint(source, out)
    typer.echo(str(out))


@app.command()
def train(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="A TOML file, see recipes/.")],
    overrides: Annotated[list[str] | None, typer.Option("--set", metavar="K=V", help="Override one value; may be repeated.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check recipe, data and model, then stop.")] = False,
    resume: Annotated[bool, typer.Option(help="Go on from the last checkpoint of the run, if there is one.")] = True,
) -> None:
    """Train or fine-tune as a recipe says."""
    for override in overrides or []:
        if not override.partition("=")[0].strip() or "=" not in override:
            raise UsageError(f"--set {override!r} is not of the form key=value.", next_step="Write for example --set optim.lr=1e-4.")
    from lisaseg.train import run_recipe

    run_recipe(recipe, overrides or [], resume=resume, dry_run=dry_run)


@app.command("eval")
def evaluate(
    data: Annotated[Path, typer.Option("--data", metavar="F", help="A lisaseg JSONL file.")],
    model: ModelOption = DEFAULT_MODEL,
    out: OutOption = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Questions asked together.")] = 8,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    offline: OfflineOption = False,
) -> None:
    """Score a model on your data: gIoU, cIoU, refusals."""
    from lisaseg.apps.console import show_table
    from lisaseg.apps.evaluate import evaluate_file, rows_of

    show_table(["measure", "value"], rows_of(evaluate_file(_load(model, device, dtype, offline), data, out, batch_size)))


@app.command()
def doctor() -> None:
    """Check this machine and installation; exit 1 if something would fail."""
    from lisaseg.apps import doctor as checks
    from lisaseg.apps.console import show_table

    findings = checks.examine()
    show_table(["", "check", "detail", "next step"], [[f.level, f.name, f.detail, f.next_step] for f in findings])
    if any(finding.level == "FAIL" for finding in findings):
        raise typer.Exit(1)


@app.command()
def bench(
    image: Annotated[Path | None, typer.Argument(metavar="[IMAGE]", help="A picture; without one, a synthetic picture is made.")] = None,
    model: ModelOption = DEFAULT_MODEL,
    runs: Annotated[int, typer.Option(min=1, help="Warm questions to take the median of.")] = 5,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the numbers here as well.")] = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    offline: OfflineOption = False,
) -> None:
    """Measure how fast a model answers on this machine."""
    from lisaseg.apps.bench import measure, rows_of
    from lisaseg.apps.console import show_table

    result = measure(model, image, runs=runs, device=device, dtype=dtype, offline=offline)
    if json_file is not None:
        from lisaseg.formats import write_aside

        write_aside(json_file, (json.dumps(result, indent=1) + "\n").encode())
    show_table(["measure", "value", "note"], rows_of(result))


def _load(name: str, device: str, dtype: str, offline: bool) -> Predictor:
    from lisaseg import predictor

    return predictor.load(name, device=device, dtype=dtype, offline=offline)


def _picture(image: str) -> tuple[Any, str]:
    """What `Predictor` takes, and the stem of the files to write. A wrong path fails here, before the model is loaded."""
    from lisaseg.apps import console
    from lisaseg.imaging import LIMITS, open_image

    if image != "-":
        if not Path(image).is_file():
            open_image(image)  # says what is wrong
        return Path(image), Path(image).stem
    picture = open_image(sys.stdin.buffer.read(LIMITS.max_bytes + 1), name="The picture from standard input")
    console.warn(picture.warnings)
    return picture.rgb, "stdin"
