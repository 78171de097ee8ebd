"""Batches of a run. What stands in a batch depends on (seed, step, place in the step) alone: not on how many processes share the step, nor on where a
run was interrupted.

Shapes: B pictures, M masks of a picture, H W its pixels, h w those at which masks are compared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lisaseg.batching import Batch, pack_encoded
from lisaseg.chat import Conversation, render
from lisaseg.datasets import DATASETS, SegmentationDataset
from lisaseg.datasets.base import Indexed
from lisaseg.datasets.mixture import Group, Mixture, Task
from lisaseg.datasets.native import NativeJsonl
from lisaseg.datasets.questions import conversations
from lisaseg.datasets.refer import evaluation_images
from lisaseg.errors import DataError, ImageError, LisaSegError
from lisaseg.imaging import Placement, open_image
from lisaseg.tokenization import Encoded
from lisaseg.train.lisa_config import DataSettings, LisaRecipe
from lisaseg.train.lisa_model import Trainee
from lisaseg.train.lisa_talk import named_conversations
from lisaseg.types import Sample, Turn

TALKS: dict[str, Callable[..., tuple[tuple[Turn, ...], ...]]] = {"lisa": conversations, "named": named_conversations}


class Opened(Indexed):
    """A data set whose samples come with their pictures opened (uint8 `(H, W, 3)`): a picture that cannot be used is a fault of its sample."""

    def __init__(self, name: str, inner: SegmentationDataset) -> None:
        self.name, self.inner = name, inner

    def __len__(self) -> int:
        return len(self.inner)

    def _count(self, index: int) -> int:
        return self.inner.query_count(index) if isinstance(self.inner, Indexed) else len(self.inner[index].queries)

    def _sample(self, index: int, picks: Sequence[int]) -> Sample:
        if isinstance(self.inner, Indexed):
            sample = self.inner.partial(index, picks)
        else:
            sample = self.inner[index]
            sample = replace(sample, queries=tuple(sample.queries[pick] for pick in picks))
        where = self.inner.where(index) if isinstance(self.inner, NativeJsonl) else f"{self.name}[{index}], {sample.id}"
        try:
            rgb = open_image(sample.image).rgb
        except ImageError as error:
            raise DataError(f"{where}: the picture {sample.image}: {error.message}", next_step=error.next_step) from error
        for query in sample.queries:
            for mask in query.masks:
                if mask.shape != rgb.shape[:2]:
                    raise DataError(f"{where}: a mask is {mask.shape}, the picture {rgb.shape[:2]}.", next_step="Correct or remove the sample.")
        return replace(sample, image=rgb)


def open_groups(data: DataSettings) -> list[Group]:
    """The sets of a recipe, opened; pictures of evaluation splits are left out."""
    hidden = evaluation_images(data.root) if data.root is not None else frozenset()
    groups = []
    for group, names in data.sets.items():
        split = {name: (data.splits[name],) if name in data.splits else () for name in names}
        if names:
            groups.append(Group(data.rates[group], {n: Opened(n, DATASETS.get(n)(data.root, *split[n], exclude=hidden)) for n in names}))
    return groups + [Group(one.rate, {name: Opened(name, NativeJsonl(one.path))}) for name, one in data.jsonl.items()]


def mix(groups: list[Group], data: DataSettings, seed: int, length: int, on_fault: Callable[[DataError], None] | None = None) -> Mixture:
    """The groups as one sequence of `length` tasks."""
    explanation = None if data.explanation < 0 else data.explanation
    talk = TALKS[data.templates]
    return Mixture(groups, seed=seed, length=length, questions=data.questions, explanation=explanation, on_fault=on_fault, talk=talk)


@dataclass
class MicroBatch:
    """What goes through the model at once.

    Attributes:
        inputs: stacked outputs of the family's `preprocess`. pixels: (B, 3, S, S) of a mask decoder that has its own, or None.
        placements: where each picture lies, at the size at which its masks are compared. batch: packed conversations and targets.
        faults: messages of samples that were passed over.
    """

    inputs: dict[str, Tensor]
    pixels: Tensor | None
    placements: list[Placement]
    batch: Batch
    faults: list[str] = field(default_factory=list)

    @property
    def n_labels(self) -> int:
        """Tokens that are learned."""
        return len(self.batch.labels)

    @property
    def n_masks(self) -> int:
        """Masks that are learned."""
        return len(self.batch.seg_row)

    def to(self, device: torch.device) -> MicroBatch:
        """The same on another device."""
        moved = {f.name: _moved(getattr(self.batch, f.name), device) for f in fields(Batch)}
        inputs = {key: value.to(device, non_blocking=True) for key, value in self.inputs.items()}
        pixels = None if self.pixels is None else self.pixels.to(device, non_blocking=True)
        return replace(self, inputs=inputs, pixels=pixels, batch=Batch(**moved))


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, list):
        return [_moved(one, device) for one in value]
    return value.to(device, non_blocking=True) if isinstance(value, Tensor) else value


class Collator:
    """Tasks -> `MicroBatch`: pictures fitted, conversations encoded and cut, masks at the size of the loss."""

    def __init__(self, trainee: Trainee, data: DataSettings) -> None:
        self.trainee, self.data = trainee, data

    def __call__(self, tasks: Sequence[Task]) -> MicroBatch:
        vlm, decoder = self.trainee.model.vlm, self.trainee.model.mask_decoder
        inputs, pixels, placements, encoded, targets = [], [], [], [], []
        for task in tasks:
            rgb = np.asarray(task.sample.image)
            ready, placement = vlm.preprocess(rgb)
            if decoder.needs_pixels:
                own, placement = decoder.preprocess(rgb)  # type: ignore[operator]
                pixels.append(own)
            assert placement is not None  # one of the two knows where the picture lies
            placement = bounded(placement, self.data.loss_side)
            rows, masks = self._encode(task)
            inputs.append(ready)
            placements.append(placement)
            encoded.append(rows)
            small = [resized(mask, placement.original_hw) for mask in masks]
            targets.append(torch.from_numpy(np.stack(small)) if small else torch.zeros(0, *placement.original_hw, dtype=torch.uint8))
        seg_state = self.trainee.model.config.seg_state
        batch = pack_encoded(encoded, targets, self.trainee.tokenizer.seg_id, seg_state, max_tokens=1 << 20)
        stacked = {key: torch.stack([one[key] for one in inputs]) for key in inputs[0]}
        return MicroBatch(stacked, torch.stack(pixels) if pixels else None, placements, batch)

    def _encode(self, task: Task) -> tuple[list[Encoded], list[np.ndarray]]:
        """Encoded conversations, cut at the limit, and the masks whose `[SEG]` is left."""
        trainee, rows, masks = self.trainee, [], []
        n_image = trainee.model.vlm.n_image_tokens
        limit = n_image + self.data.max_text_tokens
        for turns in task.conversations:
            conversation = Conversation(turns).read_as(trainee.model.config.read_as)
            whole = trainee.tokenizer.encode(render(conversation, trainee.template), n_image)
            cut = Encoded(whole.ids[:limit], whole.labels[:limit], whole.prefix)
            rows.append(cut)
            masks += [mask for turn in turns for mask in turn.masks][: cut.labels.count(trainee.tokenizer.seg_id)]
        return rows, masks


def bounded(placement: Placement, side: int) -> Placement:
    """The placement of the same picture made smaller: its longest side at most `side`; 0 leaves it."""
    longest = max(placement.original_hw)
    if side == 0 or longest <= side:
        return placement
    height, width = (max(1, round(length * side / longest)) for length in placement.original_hw)
    return replace(placement, original_hw=(height, width))


def resized(mask: np.ndarray, hw: tuple[int, int]) -> np.ndarray:
    """A mask (H, W) at another size (h, w), nearest neighbour."""
    if mask.shape == hw:
        return mask
    ys, xs = (((np.arange(new) + 0.5) * (old / new)).astype(np.int64) for new, old in zip(hw, mask.shape, strict=True))
    return np.ascontiguousarray(mask[np.ix_(ys, xs)])


class Steps(torch.utils.data.Dataset):
    """Index -> the micro-batch of one process. Micro-batch m of a step holds the same tasks however many processes there are.

    Args:
        recipe: for seed, sizes and data.
        collate: makes the batches.
        rank, world: this process and their number.
    """

    def __init__(self, recipe: LisaRecipe, collate: Collator, rank: int = 0, world: int = 1) -> None:
        optim = recipe.optim
        self.collate, self.rank, self.world, self.batch = collate, rank, world, optim.batch
        self.micros = optim.accumulation * world
        self._faults: list[str] = []
        on_fault = self._note if recipe.data.skip_faults else None
        self.groups = open_groups(recipe.data)
        self.mixture = mix(self.groups, recipe.data, recipe.seed, optim.steps * self.micros * self.batch, on_fault)

    def _note(self, error: DataError) -> None:
        self._faults.append(error.message)

    def __len__(self) -> int:
        return len(self.mixture) // self.batch // self.world

    def __getitem__(self, index: int) -> MicroBatch | LisaSegError:
        """Micro-batch `index` of this process, counted from the first step; an error is handed over, for it may arise in another process."""
        first = (index * self.world + self.rank) * self.batch
        self._faults = []
        try:
            micro = self.collate([self.mixture[first + k] for k in range(self.batch)])
        except LisaSegError as error:
            return error
        return replace(micro, faults=self._faults)


def micro_batches(steps: Steps, start: int, workers: int) -> Iterator[MicroBatch]:
    """Micro-batches from number `start` on, read ahead by `workers` processes; raises what went wrong in one."""
    order = range(start, len(steps))
    loader = torch.utils.data.DataLoader(
        steps, batch_size=None, sampler=order, num_workers=workers, collate_fn=_same, prefetch_factor=4 if workers else None
    )
    for micro in loader:
        if isinstance(micro, LisaSegError):
            raise micro
        yield micro


def _same(value: Any) -> Any:
    return value


def probe_batches(recipe: LisaRecipe, collate: Collator, groups: list[Group]) -> list[MicroBatch]:
    """The fixed mini-set: pictures with masks, one a batch; of `probe.jsonl`, or of the training data's `groups`."""
    probe = recipe.probe
    if probe.jsonl is not None:
        groups = [Group(1, {"probe": Opened("probe", NativeJsonl(probe.jsonl))})]
    plain = recipe.data.model_copy(update={"explanation": -1.0})
    mixture = mix(groups, plain, recipe.seed + 1, 20 * probe.size, lambda error: None)
    found: list[MicroBatch] = []
    seen: set[tuple[str, int]] = set()
    for index in range(len(mixture)):
        if len(found) == probe.size or mixture.where(index) in seen:
            continue
        seen.add(mixture.where(index))
        micro = collate([mixture[index]])
        if micro.n_masks:
            found.append(micro)
    if not found:
        where = probe.jsonl or Path(str(recipe.data.root or "the data"))
        raise DataError(f"{where}: no picture with a mask for the mini-set.", next_step="Add samples with masks, or set probe.every=0.")
    return found
