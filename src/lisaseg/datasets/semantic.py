"""Label maps: one PNG a picture, whose pixel values are categories. One query a category; all its objects are one target."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from lisaseg.datasets.base import CHECK, Indexed, excluded_keys, image_key, labelled, list_files
from lisaseg.errors import DataError
from lisaseg.formats.reading import check_picture
from lisaseg.types import Query, Sample


class LabelMaps(Indexed):
    """Pictures with label maps of the same stem.

    Args:
        pictures: folder of `<stem><suffix>`.
        labels: folder of `<stem>.png`; one channel or palette, values are categories.
        names: pixel value -> name of the category.
        ignore: values without a verdict; their pixels are 255 in every mask and never background.
        exclude: pictures to leave out (ids, file names or paths).
        suffix: of the pictures.

    Raises:
        DataError: no label maps are there; on access also a missing picture, a size that differs, or a value without a name.
    """

    def __init__(
        self,
        pictures: Path,
        labels: Path,
        names: Mapping[int, str],
        *,
        ignore: Collection[int] = (),
        exclude: Collection[str | int | Path] = (),
        suffix: str = ".jpg",
    ) -> None:
        hidden = excluded_keys(exclude)
        self._pictures, self._suffix = pictures, suffix
        self._labels = [path for path in list_files(labels, "*.png") if image_key(path) not in hidden]
        self._names = dict(names)
        self._ignore = np.array(sorted(ignore), np.int64)
        self._last: tuple[int, np.ndarray, list[int]] | None = None  # counting and picking read the same map twice in a row

    def __len__(self) -> int:
        """Number of label maps that are not excluded."""
        return len(self._labels)

    def label_map(self, index: int) -> np.ndarray:
        """`(H, W)` array of pixel values as in the file."""
        return self._read(self._place(index))[0]

    def _count(self, index: int) -> int:
        return len(self._read(index)[1])

    def _sample(self, index: int, picks: Sequence[int]) -> Sample:
        label, values = self._read(index)
        path = self._labels[index]
        picture = self._pictures / f"{path.stem}{self._suffix}"
        check_picture(picture, (label.shape[0], label.shape[1]), str(path))
        hidden = np.isin(label, self._ignore)
        queries = []
        for pick in picks:
            name = self._names[values[pick]]
            queries.append(Query(text=name, name=name, masks=(labelled(label == values[pick], hidden),), kind="category"))
        return Sample(id=path.stem, image=picture, queries=tuple(queries), source=self.name)

    def _read(self, index: int) -> tuple[np.ndarray, list[int]]:
        """The map and the values in it that can be asked for, ascending."""
        last = self._last
        if last is not None and last[0] == index:
            return last[1], last[2]
        path = self._labels[index]
        try:
            with Image.open(path, formats=("PNG",)) as image:
                label = np.asarray(image)
        except FileNotFoundError as error:
            raise DataError(f"{path} does not exist any more.", next_step=CHECK) from error
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise DataError(f"{path} cannot be opened as a PNG.", next_step="Download the file again.") from error
        if label.ndim != 2 or label.dtype == np.bool_:
            raise DataError(f"{path} is no label map: it is an array of shape {label.shape}.", next_step="Give a PNG with one channel or a palette.")
        values = sorted(set(np.unique(label).tolist()) - set(self._ignore.tolist()))
        unknown = [value for value in values if value not in self._names]
        if unknown:
            raise DataError(
                f"{path}: the values {unknown[:5]} are no category of {self.name or 'this set'}.",
                next_step="Check that the label maps are of the right version.",
            )
        self._last = (index, label, values)
        return label, values
