"""ReasonSeg: implicit questions with polygons. `reason_seg/ReasonSeg/<split>/*.jpg` + `*.json`, explanations in `explanatory/train.json`."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

from lisaseg.datasets.base import Indexed, excluded_keys, image_key, list_files
from lisaseg.formats.reading import checked_text, field, load_json, picture_size
from lisaseg.formats.reasonseg import query_of, read_annotation
from lisaseg.types import Sample


class ReasonSeg(Indexed):
    """One sample a picture with one query; further texts of the file are its rephrasings, the first one is the benchmark's.

    Args:
        root: data root.
        split: "train", "val", "test", or several joined by "_" ("train_val").
        folder: the place of the splits under root.
        exclude: pictures to leave out (file names, stems or paths).

    Raises:
        DataError: a folder is missing; on access, an entry is wrong; names the file.
    """

    name = "reasonseg"

    def __init__(
        self, root: str | Path, split: str = "train", *, folder: str | Path = "reason_seg/ReasonSeg", exclude: Collection[str | int | Path] = ()
    ) -> None:
        base, hidden = Path(root) / folder, excluded_keys(exclude)
        paths = [path for part in split.split("_") for path in list_files(base / part, "*.json")]
        self._paths = [path for path in paths if image_key(path) not in hidden]
        self._joined = "_" in split
        self._explanations = _explanations(base / "explanatory" / "train.json")

    def __len__(self) -> int:
        """Number of pictures."""
        return len(self._paths)

    def _count(self, index: int) -> int:
        return 1

    def _sample(self, index: int, picks: Sequence[int]) -> Sample:
        path = self._paths[index]
        picture = path.with_suffix(".jpg")
        query = query_of(read_annotation(path), picture_size(picture, str(path)), str(path))
        query = replace(query, explanation=self._explanations.get(picture.name, query.explanation))
        key = f"{path.parent.name}/{path.stem}" if self._joined else path.stem
        return Sample(id=key, image=picture, queries=tuple(query for _ in picks), source=self.name)


def _explanations(path: Path) -> dict[str, str]:
    """Explanations by the picture's file name; the file is optional."""
    if not path.is_file():
        return {}
    found = {}
    for k, entry in enumerate(load_json(path, list)):
        where = f"{path}, entry {k}"
        found[Path(str(field(entry, "image", where))).name] = checked_text(field(entry, "outputs", where), f"{where}, field 'outputs'")
    return found
