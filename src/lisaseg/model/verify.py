"""`lisaseg models verify` for published and converted checkpoints: everything is read once and compared with whatever the folder says of itself."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lisaseg.errors import LisaSegError, ModelLoadError
from lisaseg.formats import rle, write_aside
from lisaseg.model.assemble import model_folder
from lisaseg.model.convert import tensor_sha256
from lisaseg.model.published import added_tokens, is_published, read_config
from lisaseg.model.streaming import empty_model, fitting_tensors, read_tower, weight_files
from lisaseg.store import Check, check_files, read_manifest
from lisaseg.tokenization import SentencePieceTokenizer
from lisaseg.types import SEG_TEXT

if TYPE_CHECKING:
    from lisaseg.predictor import Predictor

QUESTION = "Segment the red disc."
MIN_IOU = 0.95  # of a mask and the stored one; other hardware and library versions move some pixels of an edge
_AGAIN = "Fetch the checkpoint again, or convert it again."


def verify_checkpoint(name: str | Path, *, offline: bool = False, load: Callable[[Path, str], Predictor] | None = None) -> list[Check]:
    """Check a published checkpoint, original or converted, in a folder or on the hub.

    Args:
        name: folder or hub id.
        offline: open no connection.
        load: opens (folder, dtype) to repeat the stored picture, where there is one; None leaves it out.

    Returns:
        One `Check` for each file with a stored hash, then config, tokens, tensors, vision tower, and the picture. What is wrong is a failed check.

    Raises:
        ModelLoadError: the folder cannot be had or is no published checkpoint.
    """
    folder = model_folder(name, offline)
    if not is_published(folder):
        raise ModelLoadError(f"{folder} is no published LISA checkpoint.", next_step="Give the folder with its config.json.", code="not_a_model")
    manifest = read_manifest(folder)
    checks = check_files(folder.name, folder, _AGAIN) if manifest else [_tried("files", lambda: _pickles(folder))]
    tower = folder / "vision_tower"
    checks += check_files("vision_tower", tower, _AGAIN) if read_manifest(tower) else []
    checks.append(_tried("added tokens", lambda: _tokens(folder)))
    checks.append(_tried("tensors", lambda: _tensors(folder, manifest.get("tensors", {}), offline)))
    if "picture" in manifest and load is not None:
        checks.append(_tried("picture", lambda: _picture(load(folder, manifest["picture"]["dtype"]), manifest["picture"])))
    return checks


def record_picture(folder: Path, predictor: Predictor) -> None:
    """Ask a converted checkpoint about the test picture and keep its answer in the manifest, for `verify_checkpoint` to repeat."""
    manifest = read_manifest(folder)
    if not manifest:
        raise ModelLoadError(f"{folder} has no manifest.", next_step="Convert the checkpoint first.", code="not_a_model")
    answer = predictor.ask(sample_picture(), QUESTION, mode="segment")
    dtype = str(predictor.setting.dtype).removeprefix("torch.")
    manifest["picture"] = {"question": QUESTION, "dtype": dtype, "answer": answer.raw_text, "masks": [rle.encode(mask) for mask in answer.masks]}
    write_aside(folder / "manifest.json", (json.dumps(manifest, indent=1) + "\n").encode())


def sample_picture(height: int = 240, width: int = 320) -> np.ndarray:
    """A red disc and a blue box on a ramp, uint8 (H, W, 3): the same on every machine, whole numbers only."""
    y, x = np.mgrid[:height, :width]
    picture = np.repeat((90 + x * 110 // width)[..., None], 3, axis=2).astype(np.uint8)
    picture[(y - height // 2) ** 2 + (x - width // 4) ** 2 < (height // 5) ** 2] = (200, 30, 30)
    picture[height // 4 : height * 3 // 4, width * 6 // 10 : width * 9 // 10] = (30, 60, 200)
    return picture


def _tried(name: str, check: Callable[[], str]) -> Check:
    try:
        return Check(name, True, check())
    except LisaSegError as error:
        return Check(name, False, error.message, error.next_step)


def _pickles(folder: Path) -> str:
    """Without a manifest the `.bin` files still hold a CRC of each part, which a load does not look at."""
    files, _, _ = weight_files(folder)
    for file in files:
        if file.suffix == ".bin" and zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as archive:
                wrong = archive.testzip()
            if wrong is not None:
                raise ModelLoadError(f"{file.name} is damaged at {wrong}.", next_step="Fetch this file again.")
    kind = "their own checksums agree" if files[0].suffix == ".bin" else "no checksums to compare with"
    return f"{len(files)} weight files, no manifest; {kind}"


def _tokens(folder: Path) -> str:
    added = added_tokens(folder)
    SentencePieceTokenizer(folder / "tokenizer.model", added, -1)  # raises if the ids do not follow the pieces
    return ", ".join(f"{token}={number}" for token, number in sorted(added.items(), key=lambda pair: pair[1]))


def _tensors(folder: Path, hashes: dict[str, str], offline: bool) -> str:
    config, source = read_config(folder, offline=offline)
    model, count = empty_model(config), 0
    for key, _, tensor in fitting_tensors(model, folder):
        count += 1
        if hashes and tensor_sha256(key, tensor) != hashes.get(key):
            raise ModelLoadError(f"{key} has another sha256 than manifest.json says.", next_step=_AGAIN)
    wanted = {name: tuple(p.shape) for name, p in model.vlm.vision.state_dict().items()}  # type: ignore[union-attr]
    found = {name: tuple(p.shape) for name, p in read_tower(source).state_dict().items()}
    if wanted != found:
        raise ModelLoadError(f"The vision tower {source} has other shapes than its config.", next_step=_AGAIN)
    known = "sha256 of each agrees" if hashes else "names, shapes and finite values checked"
    return f"{count} tensors and the vision tower's {len(found)}: {known}; {SEG_TEXT} is {config.vlm['seg_token_id']}"


def _picture(predictor: Predictor, stored: dict[str, Any]) -> str:
    answer = predictor.ask(sample_picture(), stored["question"], mode="segment")
    wanted = [rle.decode(mask) for mask in stored["masks"]]
    ious = [float((a & b).sum() / max(1, (a | b).sum())) if (a | b).any() else 1.0 for a, b in zip(answer.masks, wanted, strict=False)]
    if answer.raw_text != stored["answer"] or len(answer.masks) != len(wanted) or min(ious, default=1.0) < MIN_IOU:
        raise ModelLoadError(
            f"The test picture gives {answer.raw_text!r} with {len(answer.masks)} masks (IoU {[round(iou, 3) for iou in ious]}), "
            f"stored are {stored['answer']!r} with {len(wanted)}.",
            next_step="If the other checks are right, another version of torch or transformers computes something else: see constraints.txt.",
        )
    return f"{stored['answer']!r}, {len(wanted)} masks, IoU with the stored ones {min(ious, default=1.0):.3f}"
