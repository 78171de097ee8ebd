"""LLaVA-Instruct-150k: conversations about pictures, without masks. `llava_dataset/llava_instruct_150k.json`, pictures `coco/train2017/`."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from lisaseg.datasets.base import Indexed, excluded_keys, image_key
from lisaseg.errors import DataError
from lisaseg.formats.reading import checked_text, field, load_json, picture_size, text_field
from lisaseg.types import Sample, Turn

IMAGE_TEXT = "<image>"  # where the picture stood; here it always stands in front of the first instruction


class LlavaInstruct(Indexed):
    """One sample a conversation; it has turns and no queries.

    Args:
        root: data root.
        split: "train"; the set has no other.
        annotations, pictures: other places, for other files in this format.
        exclude: pictures to leave out (ids, file names or paths).

    Raises:
        DataError: the file is missing; on access, an entry is wrong; names file and entry.
    """

    name = "llava_instruct"

    def __init__(
        self,
        root: str | Path,
        split: str = "train",
        *,
        annotations: str | Path | None = None,
        pictures: str | Path | None = None,
        exclude: Collection[str | int | Path] = (),
    ) -> None:
        if split != "train":
            raise DataError(f"LLaVA-Instruct has no split {split!r}.", next_step='Use "train".')
        self.path = Path(annotations) if annotations else Path(root) / "llava_dataset" / "llava_instruct_150k.json"
        self._folder = Path(pictures) if pictures else Path(root) / "coco" / "train2017"
        hidden = excluded_keys(exclude)
        entries = enumerate(load_json(self.path, list))
        self._items = [(k, e) for k, e in entries if image_key(text_field(e, "image", f"{self.path}, entry {k}")) not in hidden]

    def __len__(self) -> int:
        """Number of conversations."""
        return len(self._items)

    def _count(self, index: int) -> int:
        return 0

    def _sample(self, index: int, picks: Sequence[int]) -> Sample:
        k, entry = self._items[index]
        where = f"{self.path}, entry {k} (id {entry.get('id')})"
        picture = self._folder / entry["image"]
        picture_size(picture, where)
        said = field(entry, "conversations", where)
        if not isinstance(said, list) or not said or len(said) % 2:
            raise DataError(f"{where}, field 'conversations': must be pairs of question and answer.", next_step="Correct the entry, or remove it.")
        texts = []
        for j, message in enumerate(said):
            place = f"{where}, conversations[{j}]"
            speaker = field(message, "from", place)
            if speaker != ("human", "gpt")[j % 2]:
                raise DataError(f"{place}: {speaker!r} speaks out of turn.", next_step="Questions are from 'human', answers from 'gpt'.")
            texts.append(checked_text(str(field(message, "value", place)).replace(IMAGE_TEXT, ""), place))
        turns = tuple(Turn(question, answer) for question, answer in zip(texts[0::2], texts[1::2], strict=True))
        return Sample(id=str(k), image=picture, conversation=turns, source=self.name)
