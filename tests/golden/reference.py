"""The numbers of the reference implementation (see `places`), ready to be compared with ours."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from lisaseg.chat import ChatTemplate, Conversation, get_template
from lisaseg.imaging import Placement
from lisaseg.model.assemble import fill_published
from lisaseg.model.lisa import LisaModel
from lisaseg.model.published import read_config
from lisaseg.tokenization import IGNORED, Encoded
from lisaseg.types import SEG_TEXT, Turn

IMAGE = -200  # marks the picture in stored ids


def parse(rendered: str, template: ChatTemplate) -> Conversation:
    """A rendered prompt of the reference -> the conversation that it shows; an open last turn has no answer."""
    user = "".join(value for _, value in template.user)
    body = rendered.removeprefix("".join(v for kind, v in template.head if kind == "text") + user)
    assert body != rendered, f"not a prompt of {template.name}: {rendered[:80]!r}"
    body = re.sub(r"^(<im_start>)?<image>(<im_end>)?\n", "", body)
    between = template.end + "".join(v for _, v in template.between) + user
    assistant, turns = "".join(v for _, v in template.assistant), []
    for part in body.split(between):
        question, _, said = part.partition(assistant)
        answer = said.removesuffix(template.end).removeprefix(template.around[0])
        answer = answer[: len(answer) - len(template.around[1])]
        masks = tuple(np.zeros((1, 1), np.uint8) for _ in range(answer.count(SEG_TEXT)))
        turns.append(Turn(question, answer, masks) if said else Turn(question))
    return Conversation(tuple(turns))


@dataclass
class Golden:
    """One fixture: a small checkpoint in the public layout, inputs, and what the reference made of them."""

    folder: Path

    @cached_property
    def meta(self) -> dict[str, Any]:
        """meta.json."""
        return json.loads((self.folder / "meta.json").read_text("utf-8"))

    @cached_property
    def inputs(self) -> dict[str, Tensor]:
        """inputs.safetensors."""
        return load_file(self.folder / "inputs.safetensors")

    @cached_property
    def outputs(self) -> dict[str, Tensor]:
        """outputs.safetensors."""
        return load_file(self.folder / "outputs.safetensors")

    @property
    def template(self) -> ChatTemplate:
        """The chat template of the fixture."""
        return get_template(self.meta["conv_type"] + ("" if self.meta["use_mm_start_end"] else "_bare"))

    def load(self) -> LisaModel:
        """The checkpoint, read by the same code as a real one."""
        config, tower = read_config(self.folder, self.meta["added_vocab"], self.meta["conv_type"], offline=True)
        return fill_published(config, self.folder, tower, torch.float32, torch.device("cpu"))

    @cached_property
    def model(self) -> LisaModel:
        """`load`, once: do not change a weight."""
        return self.load()

    @property
    def n_images(self) -> int:
        """Number of pictures."""
        return len(self.inputs["offset"]) - 1

    def raw(self, b: int) -> np.ndarray:
        """Picture b, uint8 (H, W, 3)."""
        return self.inputs[f"raw_rgb_{b}"].numpy()

    def placement(self, b: int) -> Placement:
        """Where picture b lay on the reference's canvas."""
        (h, w), (rh, rw) = self.inputs["original_hw"][b].tolist(), self.inputs["resize_hw"][b].tolist()
        return Placement((h, w), (rh, rw), self.inputs["images"].shape[-1])

    def row(self, ids: Tensor, labels: Tensor | None = None, attention: Tensor | None = None) -> Encoded:
        """A stored row without padding, its image mark expanded in place."""
        n = self.model.vlm.n_image_tokens
        out_ids: list[int] = []
        out_labels: list[int] = []
        prefix = 0
        for i in range(len(ids) if attention is None else int(attention.sum())):
            token = int(ids[i])
            out_ids += [self.model.vlm.image_token_id] * n if token == IMAGE else [token]
            out_labels += [IGNORED] * n if token == IMAGE else [IGNORED if labels is None else int(labels[i])]
            prefix = len(out_ids) if token == IMAGE else prefix
        return Encoded(out_ids, out_labels, prefix)

    def rows(self) -> list[list[Encoded]]:
        """The training rows of each picture."""
        offset = self.inputs["offset"].tolist()
        stored = [self.inputs[key] for key in ("input_ids", "labels", "attention_masks")]
        return [[self.row(*(t[q] for t in stored)) for q in range(a, b)] for a, b in pairwise(offset)]


def difference(ours: Tensor, theirs: Tensor) -> float:
    """Largest absolute difference; 0 if both are empty."""
    assert ours.shape == theirs.shape, f"{tuple(ours.shape)} is not {tuple(theirs.shape)}"
    return float((ours.float() - theirs.float()).abs().max()) if ours.numel() else 0.0
