"""LISA's training mixture: groups of data sets by rates (semantic : referring : visual questions : reasoning = 9 : 3 : 3 : 1), at random access.

What stands at an index depends on (seed, index) alone, so a run resumes by its step number, and any number of workers may read in any order.
Draws are not independent: each block of indices holds every set exactly as often as its rate says, in a shuffled order, and each set is gone through
in a new order of its own, every picture once, before any picture comes again.
"""

from __future__ import annotations

import hashlib
import math
import operator
import zlib
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import SupportsIndex

import numpy as np

from lisaseg.datasets import SegmentationDataset
from lisaseg.datasets.base import Indexed
from lisaseg.datasets.questions import conversations
from lisaseg.errors import DataError, UsageError
from lisaseg.types import Sample, Turn

PAPER_RATES: Mapping[str, float] = {"sem_seg": 9, "refer_seg": 3, "vqa": 3, "reason_seg": 1}
PAPER_SETS: Mapping[str, tuple[str, ...]] = {
    "sem_seg": ("ade20k", "cocostuff", "pascal_part", "paco_lvis", "mapillary"),
    "refer_seg": ("refclef", "refcoco", "refcoco+", "refcocog"),
    "vqa": ("llava_instruct",),
    "reason_seg": ("reasonseg",),
}
_BLOCK, _ORDER, _TALK = 1, 2, 3  # streams of random numbers
_LONGEST_BLOCK = 1 << 20
_KEPT = 64  # blocks and orders that stay in memory
_TRIES = 64  # how many pictures in a row may have nothing to ask


@dataclass(frozen=True, eq=False)
class Group:
    """Data sets that share a rate evenly. rate: > 0, relative to the other groups'. sets: name -> data set."""

    rate: float
    sets: Mapping[str, SegmentationDataset]


@dataclass(frozen=True, eq=False)
class Task:
    """What one step of training learns from one picture.

    Attributes:
        sample: the picture, and the queries that were picked (not always all of them are asked).
        conversations: independent chats about it; each answer holds one `[SEG]` for each mask of its turn.
        set_name: the data set. place: its index there.
    """

    sample: Sample
    conversations: tuple[tuple[Turn, ...], ...]
    set_name: str
    place: int

    @property
    def masks(self) -> tuple[np.ndarray, ...]:
        """All masks in the order of their `[SEG]`, uint8 `(H, W)` {0, 1, 255}."""
        return tuple(mask for turns in self.conversations for turn in turns for mask in turn.masks)


class Mixture:
    """index -> `Task`; a function of (seed, index) and of the data sets.

    Args:
        groups: at least one, with sets that are not empty; names are unique over all groups.
        seed: of every draw.
        length: number of indices; the default is one pass over as many pictures as all sets have.
        questions: most questions about one picture.
        explanation: see `questions.conversations`; None leaves explanations out.
        on_fault: called with the error of a wrong entry, which is then replaced by another picture of its set; None: the error is raised.
        talk: puts questions and answers around the queries that were picked; called as `questions.conversations` is.

    Raises:
        UsageError: no group, a rate that is not positive, an empty set, or a name that is used twice.
    """

    def __init__(
        self,
        groups: Sequence[Group],
        *,
        seed: int = 0,
        length: int | None = None,
        questions: int = 3,
        explanation: float | None = 0.1,
        on_fault: Callable[[DataError], None] | None = None,
        talk: Callable[..., tuple[tuple[Turn, ...], ...]] = conversations,
    ) -> None:
        self.names, self._sets, self.counts = _slots(groups)
        if questions < 1 or seed < 0:
            raise UsageError(f"A mixture with {questions} questions and seed {seed} is not possible.", next_step="Use questions >= 1, seed >= 0.")
        self.seed, self.questions, self.explanation, self._on_fault = seed, questions, explanation, on_fault
        self._talk = talk
        self._block = np.repeat(np.arange(len(self._sets)), self.counts)
        self._length = sum(len(one) for one in self._sets) if length is None else length
        self._kept: OrderedDict[tuple[int, ...], np.ndarray] = OrderedDict()

    def __len__(self) -> int:
        """Number of indices."""
        return self._length

    def where(self, index: SupportsIndex) -> tuple[str, int]:
        """(name of the set, index in it) at an index, without reading anything.

        Raises:
            IndexError: outside of [0, len).
        """
        s, k = self._draw(operator.index(index))
        return self.names[s], self._picture(s, k)

    def __getitem__(self, index: SupportsIndex) -> Task:
        """The task at an index in [0, len).

        A picture with nothing to ask is replaced by another one of its set.

        Raises:
            IndexError: outside of [0, len).
            DataError: the entry is wrong and there is no `on_fault`; or nothing in a set can be used.
        """
        place = operator.index(index)
        s, k = self._draw(place)
        dataset, fault = self._sets[s], None
        for attempt in range(min(_TRIES, len(dataset))):
            # Half a set away: not one of the pictures that come next anyway.
            picture = self._picture(s, k if attempt == 0 else k + attempt + len(dataset) // 2)
            rng = np.random.default_rng([self.seed, _TALK, place, attempt])
            try:
                task = self._task(s, picture, rng)
            except DataError as error:
                if self._on_fault is None:
                    raise
                fault = error
                self._on_fault(error)
                continue
            if task.conversations:
                return task
        raise DataError(
            f"The set {self.names[s]}: {_TRIES} pictures in a row cannot be used{f'; the last fault: {fault.message}' if fault else ''}.",
            next_step="Run `lisaseg data check ROOT`, or leave the set out.",
        )

    def fingerprint(self) -> str:
        """16 hex digits that change when another index order or other questions would come out: compare them before a run is resumed."""
        parts = [(name, len(one), int(n)) for name, one, n in zip(self.names, self._sets, self.counts, strict=True)]
        return hashlib.sha256(repr((self.seed, self.questions, self.explanation, self._talk.__name__, parts)).encode()).hexdigest()[:16]

    def _task(self, s: int, picture: int, rng: np.random.Generator) -> Task:
        dataset = self._sets[s]
        if isinstance(dataset, Indexed):
            picks = rng.permutation(dataset.query_count(picture))[: self.questions]
            sample = dataset.partial(picture, [int(pick) for pick in picks])
        else:
            sample = dataset[picture]
            picks = rng.permutation(len(sample.queries))[: self.questions]
            sample = replace(sample, queries=tuple(sample.queries[int(pick)] for pick in picks))
        talks = self._talk(sample.queries, self.questions, rng, explanation=self.explanation)
        if sample.conversation:
            talks = (sample.conversation, *talks)[: self.questions]
        return Task(sample, talks, self.names[s], picture)

    def _draw(self, index: int) -> tuple[int, int]:
        """(set, how many times the set came before)."""
        if not 0 <= index < self._length:
            raise IndexError(f"The mixture has {self._length} tasks, there is no index {index}.")
        block, place = divmod(index, len(self._block))
        order = self._shuffled((_BLOCK, block), self._block)
        s = int(order[place])
        return s, block * int(self.counts[s]) + int((order[:place] == s).sum())

    def _picture(self, s: int, k: int) -> int:
        """The k-th picture of a set: its own order in every epoch, which does not depend on the other sets."""
        size = len(self._sets[s])
        epoch, place = divmod(k, size)
        return int(self._shuffled((_ORDER, zlib.crc32(self.names[s].encode()), epoch, size), np.arange(size))[place])

    def _shuffled(self, key: tuple[int, ...], values: np.ndarray) -> np.ndarray:
        found = self._kept.get(key)
        if found is None:
            found = np.random.default_rng([self.seed, *key]).permutation(values)
            self._kept[key] = found
            while len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
        return found


def _slots(groups: Sequence[Group]) -> tuple[tuple[str, ...], tuple[SegmentationDataset, ...], np.ndarray]:
    """Names, sets, and how often each stands in a block: the smallest whole numbers in the ratio of the rates."""
    names = [name for group in groups for name in group.sets]
    if not names or len(set(names)) != len(names):
        raise UsageError(f"The sets of a mixture must have names of their own, got {names}.", next_step="Give every set once.")
    shares: list[Fraction] = []
    for group in groups:
        if not (math.isfinite(group.rate) and group.rate > 0):
            raise UsageError(f"The rate of {list(group.sets)} must be positive, got {group.rate}.", next_step="Leave the group out instead.")
        shares += [Fraction(group.rate).limit_denominator(1000) / len(group.sets)] * len(group.sets)
    sets = tuple(one for group in groups for one in group.sets.values())
    empty = [name for name, one in zip(names, sets, strict=True) if not len(one)]
    if empty:
        raise UsageError(f"These sets are empty: {empty}.", next_step="Leave them out.")
    scale = math.lcm(*(share.denominator for share in shares))
    counts = np.array([int(share * scale) for share in shares], np.int64)
    counts //= np.gcd.reduce(counts)
    if counts.min() < 1 or counts.sum() > _LONGEST_BLOCK:
        raise UsageError(f"The rates {[group.rate for group in groups]} are too far apart.", next_step="Use rates like 9, 3, 3, 1.")
    return tuple(names), sets, counts
