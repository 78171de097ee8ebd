"""Checkpoints of a run: one safetensors file each, written aside and renamed, so that what is there is complete.

`checkpoints/step-000500.safetensors` holds `param/<name>`, `adam/<name>/<moment>` and, as metadata, the state of the run. `best.json` names the best
one, which stays while older ones go.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from lisaseg.errors import TrainingError
from lisaseg.train.loop import save_atomic

_NAME = re.compile(r"step-(\d+)\.safetensors")


@dataclass
class Checkpoints:
    """Those of one run folder. keep: how many of the newest stay, beside the best."""

    run: Path
    keep: int = 2

    @property
    def folder(self) -> Path:
        """Where the files are."""
        return self.run / "checkpoints"

    def all(self) -> dict[int, Path]:
        """Step -> file, ascending."""
        found = {int(match[1]): path for path in self.folder.glob("step-*.safetensors") if (match := _NAME.fullmatch(path.name))}
        return dict(sorted(found.items()))

    def save(self, step: int, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        """Write a checkpoint, then remove those that are no longer wanted."""
        save_atomic(tensors, self.folder / f"step-{step:06d}.safetensors", {"format": "pt", "state": json.dumps(state | {"step": step})})
        best = self.best()
        for old in list(self.all())[: -self.keep]:
            if best is None or old != best[0]:
                self.all()[old].unlink()

    def set_best(self, step: int, score: float) -> None:
        """Name the best checkpoint; it is there already."""
        aside = self.run / f"best.json.{os.getpid()}"
        aside.write_text(json.dumps({"step": step, "iou": score}) + "\n")
        os.replace(aside, self.run / "best.json")

    def best(self) -> tuple[int, float] | None:
        """(step, score) of the best one, if one has been named and is there."""
        file = self.run / "best.json"
        if not file.is_file():
            return None
        values = json.loads(file.read_text())
        return (int(values["step"]), float(values["iou"])) if int(values["step"]) in self.all() else None

    def newest(self) -> Path | None:
        """The file to go on from."""
        found = list(self.all().values())
        return found[-1] if found else None

    def set_aside(self) -> None:
        """Begin anew: what is there is renamed, not deleted."""
        if not self.all():
            return
        number = 1
        while (old := self.run / f"checkpoints.old{number}").exists():
            number += 1
        self.folder.rename(old)
        (self.run / "best.json").unlink(missing_ok=True)


def read_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(tensors, state of the run); TrainingError if the file is damaged."""
    try:
        with safe_open(path, "pt") as file:
            state = json.loads(file.metadata()["state"])
            return {name: file.get_tensor(name) for name in file.keys()}, state  # noqa: SIM118 - not a dict
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise TrainingError(f"The checkpoint {path} is damaged: {error}.", next_step="Delete it: the run goes on from the one before.") from error


def read_parameters(path: Path) -> dict[str, Tensor]:
    """Name -> learned parameter."""
    return {name.removeprefix("param/"): tensor for name, tensor in read_checkpoint(path)[0].items() if name.startswith("param/")}
