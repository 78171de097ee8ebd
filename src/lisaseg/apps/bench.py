"""`lisaseg bench`: how long a person waits for an answer on this machine, cold and warm, and what it costs in memory."""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw

from lisaseg.errors import ModelLoadError

if TYPE_CHECKING:
    from lisaseg.predictor import Predictor
    from lisaseg.types import Answer

QUESTION = "Segment the red disc."
IMPLICIT = "Something that could be thrown."  # names nothing: lisa-tiny weighs what it would answer, which takes time
SECOND = "Segment the blue box."
BATCH = 8


def synthetic_picture(height: int = 480, width: int = 640) -> np.ndarray:
    """A red disc and a blue box on a grey ramp, uint8 `(height, width, 3)`; the same on every machine."""
    ramp = np.linspace(90, 200, width, dtype=np.float32).astype(np.uint8)
    picture = Image.fromarray(np.repeat(np.tile(ramp, (height, 1))[..., None], 3, axis=2))
    pen = ImageDraw.Draw(picture)
    pen.ellipse((width * 0.1, height * 0.3, width * 0.4, height * 0.7), fill=(200, 30, 30))
    pen.rectangle((width * 0.6, height * 0.25, width * 0.85, height * 0.75), fill=(30, 60, 200))
    return np.array(picture)


def measure(
    model: str,
    image: Path | None = None,
    *,
    runs: int = 5,
    device: str = "auto",
    dtype: str = "auto",
    quantize: str | None = None,
    device_map: str | None = None,
    offline: bool = False,
) -> dict[str, Any]:
    """All measurements, in this process and in one fresh one.

    Args:
        model: preset, folder or hub id.
        image: a picture, or None for the synthetic one.
        runs: warm questions, each on another picture, so that no cache answers.
        device, dtype, quantize, device_map, offline: as for `load`.

    Returns:
        JSON-ready: seconds end in `_s`, milliseconds in `_ms`, memory in `_mb`; None where this system cannot tell.

    Raises:
        LisaSegError: the picture or the model cannot be used.
    """
    from lisaseg.imaging import open_image

    rgb = synthetic_picture() if image is None else np.array(open_image(image).rgb)
    start = time.perf_counter()
    from lisaseg import predictor

    loaded = predictor.load(model, device=device, dtype=dtype, quantize=quantize, device_map=device_map, offline=offline)
    result: dict[str, Any] = {"model": model, "image": list(rgb.shape[:2]), "machine": _machine(), "load_s": time.perf_counter() - start}
    result["cold_ask_s"], _ = _timed(lambda: loaded.ask(rgb, QUESTION))
    result.update(_warm(loaded, rgb, runs))
    result.update(_second_question(loaded, rgb))
    result["peak_rss_mb"] = _peak_rss_mb()
    result["batch"] = _batch(loaded, rgb) | {"peak_rss_mb": _peak_rss_mb()}
    result["process_ask_s"] = _whole_process(rgb, model, {"device": device, "dtype": dtype, "quantize": quantize, "device-map": device_map})
    return result


def rows_of(result: dict[str, Any]) -> list[list[str]]:
    """The measurements as rows (measure, value, note)."""
    batch, encodings = result["batch"], result["image_encodings"]
    stages = ", ".join(f"{name} {ms:.0f} ms" for name, ms in result["stages_ms"].items())
    again = encodings["second_question"]
    return [
        ["load", f"{result['load_s']:.2f} s", f"{result['model']}, imports included"],
        ["first question", f"{result['cold_ask_s']:.2f} s", f"picture of {result['image'][1]} x {result['image'][0]} pixels"],
        ["warm question", f"{result['warm_ask_s']:.3f} s", f"median of {result['runs']} pictures; {stages}"],
        ["implicit question", f"{result['implicit_ask_s']:.3f} s", f"the same with {IMPLICIT!r}: names are weighed"],
        ["second question", f"{result['second_question_s']:.3f} s", f"same picture, encoded {again} more time{'' if again == 1 else 's'}"],
        [f"batch of {batch['n']}", f"{batch['batch_s']:.2f} s", f"{batch['speedup']:.2f} times as fast as a loop ({batch['loop_s']:.2f} s)"],
        ["peak memory", _mb(result["peak_rss_mb"]), f"resident, one question at a time; with the batch {_mb(batch['peak_rss_mb'])}"],
        ["whole process", f"{result['process_ask_s']:.2f} s", "`lisaseg ask` from the shell to the answer"],
    ]


def _mb(megabytes: float | None) -> str:
    return "unknown" if megabytes is None else f"{megabytes:.0f} MB"


def _timed(call: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    value = call()
    return time.perf_counter() - start, value


def _variants(rgb: np.ndarray, n: int, first: int) -> list[np.ndarray]:
    """`n` pictures of the same cost that no cache has seen: shifted sideways by `first`, `first` + 1, ... pixels, with one pixel as a mark."""
    pictures = [np.roll(rgb, k, axis=1) for k in range(first, first + n)]
    for k, picture in enumerate(pictures, start=first):
        picture[0, 0] = (k % 256, k // 256 % 256, 7)  # a picture of one colour does not change when it is shifted
    return pictures


def _warm(loaded: Predictor, rgb: np.ndarray, runs: int) -> dict[str, Any]:
    timed: list[tuple[float, Answer]] = [_timed(lambda p=picture: loaded.ask(p, QUESTION)) for picture in _variants(rgb, runs, 1)]  # type: ignore[misc]
    names = timed[0][1].timings_ms
    stages = {name: statistics.median(answer.timings_ms.get(name, 0.0) for _, answer in timed) for name in names}
    implicit = [_timed(lambda p=picture: loaded.ask(p, IMPLICIT))[0] for picture in _variants(rgb, runs, 500)]  # type: ignore[misc]
    warm = statistics.median(seconds for seconds, _ in timed)
    return {"runs": runs, "warm_ask_s": warm, "stages_ms": stages, "implicit_ask_s": statistics.median(implicit)}


def _encodings(loaded: Predictor) -> int:
    return sum(n for name, n in dict(loaded.counters).items() if "encod" in name)


def _second_question(loaded: Predictor, rgb: np.ndarray) -> dict[str, Any]:
    chat = loaded.chat(_variants(rgb, 1, 1000)[0])
    before = _encodings(loaded)
    chat.ask(QUESTION)
    between = _encodings(loaded)
    seconds, _ = _timed(lambda: chat.ask(SECOND))
    counts = {"first_question": between - before, "second_question": _encodings(loaded) - between}
    return {"second_question_s": seconds, "image_encodings": counts}


def _batch(loaded: Predictor, rgb: np.ndarray) -> dict[str, Any]:
    loop_s, _ = _timed(lambda: [loaded.ask(picture, QUESTION) for picture in _variants(rgb, BATCH, 2000)])
    batch_s, _ = _timed(lambda: loaded.ask_batch([(picture, QUESTION) for picture in _variants(rgb, BATCH, 3000)]))
    return {"n": BATCH, "loop_s": loop_s, "batch_s": batch_s, "speedup": loop_s / batch_s}


def _peak_rss_mb() -> float | None:
    from lisaseg.model.host_memory import peak_bytes

    peak = peak_bytes()
    return None if peak is None else peak / 1e6


def _whole_process(rgb: np.ndarray, model: str, settings: dict[str, str | None]) -> float:
    """Seconds of `lisaseg ask` in a fresh process, offline: by now the model is in the cache."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "picture.png"
        Image.fromarray(rgb).save(path)
        given = [text for name, value in settings.items() if value is not None for text in (f"--{name}", value)]
        options = ["-m", model, *given, "--offline", "--json"]
        command = [sys.executable, "-m", "lisaseg", "ask", str(path), QUESTION, *options]
        seconds, run = _timed(lambda: subprocess.run(command, capture_output=True, text=True))
    if run.returncode not in (0, 4):
        next_step = "Run `lisaseg ask` yourself to see why."
        raise ModelLoadError(
            f"`lisaseg ask` in a fresh process ended with exit code {run.returncode}: {run.stderr.strip()[-300:]}", next_step=next_step
        )
    return seconds


def _machine() -> dict[str, Any]:
    import torch
    import transformers

    return {
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "cuda": torch.cuda.get_device_name(0) if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "transformers": transformers.__version__,
    }
