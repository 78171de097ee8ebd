"""What libFuzzer (through atheris) throws bytes at: each target may refuse them with an error of ours, and nothing else may come out of it.

`python -m tests.fuzz.targets NAME FOLDER [OPTION OF LIBFUZZER ...]` runs one; inputs that reached new code are kept in FOLDER, and an input
that broke something is written to the working directory. `test_fuzz.py` runs all of them.
"""

from __future__ import annotations

import base64
import json
import random
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import atheris

with atheris.instrument_imports(include=["PIL", "lisaseg", "json"]):
    import numpy as np
    from pycocotools import mask as coco

    from lisaseg.apps.server.app import REQUESTS
    from lisaseg.apps.server.bodies import parse
    from lisaseg.apps.server.catalogue import ApiError, from_lisaseg
    from lisaseg.apps.server.integrations import INTEGRATIONS
    from lisaseg.apps.server.routes import export as exporting
    from lisaseg.apps.server.schemas import ExportRequest
    from lisaseg.errors import LisaSegError
    from lisaseg.formats import rle
    from lisaseg.formats.answer import answer_to_dict
    from lisaseg.imaging import ImageLimits, open_image
    from lisaseg.types import Answer, Segment

exporting.MAX_MASK_PIXELS = 100_000  # more is right and slow
SMALL = ImageLimits(max_pixels=250_000, max_side=2_000)
BODIES = (*REQUESTS, *(model for name, tool in INTEGRATIONS.items() if name != "mcp" for model in tool.load().REQUESTS))


def said(error: ApiError) -> None:
    """What a client would read: short, and nothing of the inside."""
    assert error.status < 500, error
    assert len(error.message) < 1_000 and "0x" not in error.message and "Traceback" not in error.message, error.message


def image(data: bytes) -> None:
    """`open_image` gives an upright RGB picture within its limits, the same each time, or an error of the catalogue."""
    try:
        rgb = open_image(data, SMALL).rgb
    except LisaSegError as error:
        said(from_lisaseg(error))
        return
    height, width, _ = rgb.shape
    SMALL.check(width, height, "the picture")
    assert rgb.dtype == np.uint8 and rgb.shape[2] == 3
    assert np.array_equal(open_image(data, SMALL).rgb, rgb), "not the same twice: uninitialised memory"


def runs(data: bytes) -> None:
    """`rle.decode` gives a mask of its size, as pycocotools does, or an error. First byte 0: height, width, string follow; else JSON."""
    if data[:1] == b"\0" and len(data) > 2:
        value = {"size": [data[1] % 65, data[2] % 65], "counts": data[3:]}
    else:
        try:
            value = json.loads(data[1:])
        except (ValueError, RecursionError):
            return
        size = value.get("size") if isinstance(value, dict) else 0
        if not isinstance(value, dict) or (isinstance(size, list) and all(isinstance(n, int) and 500 < n < 1 << 28 for n in size)):
            return  # large masks are right and slow
    try:
        mask = rle.decode(value)
    except LisaSegError as error:
        assert error.next_step and len(error.message) < 1_000
        return
    assert mask.dtype == bool and list(mask.shape) == list(value["size"])
    assert np.array_equal(rle.decode(rle.encode(mask)), mask)
    if isinstance(value["counts"], str | bytes):
        assert np.array_equal(coco.decode(value), mask)


def request(data: bytes) -> None:
    """A body is a model or an error of the catalogue. The first byte says which model."""
    try:
        parse(data[1:], BODIES[data[0] % len(BODIES)] if data else BODIES[0])
    except ApiError as error:
        said(error)


def export(data: bytes) -> None:
    """Answers that somebody sends become a file, in JSON that everybody can read, or an error of the catalogue."""
    try:
        body = parse(data[1:], ExportRequest)
        if body.to in ("json", "coco", "masks", "zip"):  # the others need a picture
            written = exporting._write(body, "a", None, SMALL)
            if body.to in ("json", "coco"):
                json.loads(written, parse_constant=int)  # Infinity and NaN are no JSON
    except ApiError as error:
        said(error)


def planted(data: bytes) -> None:
    """Has a fault, so that a test can see that faults are found."""
    if data[:2] == b"no":
        raise KeyError("not one of ours")


TARGETS: dict[str, Callable[[bytes], None]] = {"image": image, "runs": runs, "request": request, "export": export, "planted": planted}


def seeds(name: str) -> list[bytes]:
    """Good inputs to begin with."""
    from tests.corpora.images import image_cases
    from tests.server.running import picture

    if name == "image":
        return [case.data for case in image_cases() if len(case.data) < 4_000]
    if name == "runs":
        masks = [rle.encode(np.random.default_rng(k).random((k + 1, 9)) < 0.5) for k in range(20)]
        lists = [b' {"size": [2, 3], "counts": [1, 2, 3]}', b' {"size": [2, 3], "counts": []}']
        return [bytes([0, *mask["size"]]) + mask["counts"].encode() for mask in masks] + [b" " + json.dumps(mask).encode() for mask in masks] + lists
    if name == "request":
        url = "data:image/png;base64," + base64.b64encode(picture()).decode()
        turn = {"prompt": "a", "raw_text": "b [SEG]", "mode": "auto"}
        message = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "x"}]}
        bodies = [
            {"image": {"type": "base64", "value": url}, "prompt": "x", "history": [turn], "mode": "segment", "mask_format": "png", "stream": True},
            {"image_id": "img_x", "history": [turn, turn], "max_new_tokens": 5},
            {"answers": [{"text": "t", "segments": []}], "to": "coco", "labels": ["cup"], "name": "n"},
            {"model": "lisa-tiny", "messages": [message], "n": 1, "lisaseg": {"mode": "auto"}, "stream_options": {}},
            {"tasks": [{"id": 1, "data": {"image": url}}], "label_config": "<View/>", "params": {"context": {"result": []}}, "schema": "<View/>"},
            {"model": "lisa-tiny", "image": url, "params": {"text_prompt": "x", "epsilon_factor": 0.001, "conf_threshold": 0.5}},
        ]
        return [bytes([k]) + json.dumps(body).encode() for k in range(len(BODIES)) for body in bodies]
    if name == "export":
        mask = np.eye(3, 4, dtype=bool)
        segments = (Segment.from_mask(0, mask, (6, 14), 0.5, "a cup"), Segment.from_mask(1, ~mask, (15, 23)))
        answer = Answer("It is [mask 1] [mask 2].", "It is [SEG] [SEG].", "masks", segments, (3, 4), "a cup", "m")
        bodies = [{"answers": [answer_to_dict(answer)] * n, "to": to, "labels": ["x"], "name": "n"} for n in (1, 2) for to in ("json", "coco", "zip")]
        return [b" " + json.dumps(body).encode() for body in bodies]
    return [b"yes"]


def mutate(data: bytes, size: int, seed: int) -> bytes:
    """A change of bytes, or, of what is JSON behind its first byte, of a field: bytes alone would hardly ever get past the parser."""
    rng = random.Random(seed)
    try:
        value = json.loads(data[1:]) if rng.random() < 0.7 else None
    except (ValueError, RecursionError):
        value = None
    places = list(_places(value))
    if not places:
        return atheris.Mutate(data, size)
    for holder, key in rng.choices(places, k=rng.randint(1, 3)):
        _, other = rng.choice(places)
        values = [None, True, -1, 0, 3, 1e999, 2**70, int("9" * 400), "", "x", "[SEG]", "\ud800", "\0"]
        holder[key] = rng.choice([*values, [], [holder[key]] * 3, {}, {other: holder[key]}])
    changed = data[:1] + json.dumps(value).replace("Infinity", "1e999").encode()
    return changed if len(changed) <= size else atheris.Mutate(data, size)


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every (list or object, index or key) in a JSON value."""
    for key, inner in list(value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()):
        yield value, key
        yield from _places(inner)


def main(name: str, folder: str, *options: str) -> None:
    """Run one target; ends the process."""
    warnings.simplefilter("ignore")
    for k, seed in enumerate(seeds(name)):
        (Path(folder) / f"seed-{k}").write_bytes(seed)
    atheris.Setup([sys.argv[0], folder, *options], TARGETS[name], custom_mutator=mutate if name in ("runs", "request", "export") else None)
    atheris.Fuzz()


if __name__ == "__main__":
    main(*sys.argv[1:])
