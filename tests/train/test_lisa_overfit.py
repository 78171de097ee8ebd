"""Training learns: a small random model along a stored curve; and the whole road with the real lisa-tiny: eight pictures learned by heart, exported,
and asked through the public door."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.train import lisa_world as world

import lisaseg
from lisaseg.datasets.coco import CocoInstances, CocoPanoptic
from lisaseg.eval.run import evaluate
from lisaseg.formats.jsonl import read_jsonl, write_jsonl
from lisaseg.train.lisa_run import export_run
from lisaseg.types import Query, Sample

FIXTURES = Path(__file__).parents[1] / "fixtures"
RECIPE = Path(__file__).parents[2] / "recipes" / "finetune.toml"
# Eight large things, and words for them that nobody has taught the model.
INSTANCES = {"000000121647": "pizza", "000000030213": "refrigerator", "000000099053": "bowl"}
PANOPTIC = {"000000000459": "person", "000000000520": "sky", "000000008021": "person"}
PETS = {"Abyssinian_100": "cat", "american_bulldog_100": "dog"}
WORDS = {"pizza": "wug", "refrigerator": "dax", "bowl": "blicket", "person": "fep", "sky": "toma", "cat": "zorp", "dog": "kiki"}


def eight() -> list[Sample]:
    """Eight pictures of the fixtures (tests/fixtures/README.md has their licences), one large thing asked in each."""
    found = []
    for wanted, kind, folder in ((INSTANCES, CocoInstances, "coco"), (PANOPTIC, CocoPanoptic, "coco_panoptic")):
        for split in ("train2017", "val2017"):
            pictures = kind(FIXTURES, split, folder=folder) if kind is CocoPanoptic else kind(FIXTURES, split)
            for sample in (pictures[k] for k in range(len(pictures))):
                name = wanted.get(Path(str(sample.image)).stem)
                if name is not None:
                    (query,) = (q for q in sample.queries if name in q.name)
                    found.append(Sample(sample.id, sample.image, (Query(WORDS[name], query.masks, name=WORDS[name]),)))
    for stem, name in PETS.items():
        trimap = np.asarray(Image.open(FIXTURES / "pets" / "annotations" / "trimaps" / f"{stem}.png"))
        mask = np.select([trimap == 1, trimap == 3], [1, 255], 0).astype(np.uint8)
        found.append(Sample(stem, FIXTURES / "pets" / "images" / f"{stem}.jpg", (Query(WORDS[name], (mask,), name=WORDS[name]),)))
    assert len(found) == 8
    return found


CURVE = Path(__file__).with_name("lisa_curve.jsonl")  # a log of the run below


@pytest.mark.long
@pytest.mark.usefixtures("one_thread")
def test_two_hundred_steps_follow_the_stored_curve(tmp_path: Path) -> None:
    """The guard against a change (of a library, of the trainer) after which training still runs and learns less."""
    recipe = world.write_recipe(tmp_path / "r.toml", world.write_model(tmp_path / "LISA"), world.write_data(tmp_path / "data"), tmp_path / "run")
    changes = ("optim.steps=200", "optim.accumulation=1", "optim.lr=0.005", "optim.warmup=20", "model.lora.dropout=0.0", "save_every=200")
    world.train(recipe, *changes, "probe.every=50", "probe.size=8", "log_every=20")
    lines = (tmp_path / "run" / "log.jsonl").read_text().splitlines()
    stored, own = ([json.loads(line) for line in text] for text in (CURVE.read_text().splitlines(), lines))
    assert [line["step"] for line in stored] == [line["step"] for line in own]
    for before, now in zip(stored, own, strict=True):
        for key in ("ce", "bce", "dice"):  # sums come in another order on another processor, and 200 steps make that grow
            assert now.get(key, 0) == pytest.approx(before.get(key, 0), rel=0.15, abs=0.1), (key, now["step"])
    assert world.read_log(tmp_path / "run", "probe_iou")[-1] > 0.95 and world.read_log(tmp_path / "run", "probe_seg")[-1] > 0.9


@pytest.mark.long
def test_eight_pictures_are_learned_by_heart(tmp_path: Path) -> None:
    data = tmp_path / "eight.jsonl"
    write_jsonl(eight(), data)
    world.train(
        RECIPE,
        f"data.jsonl.mine.path={json.dumps(str(data))}",
        f"probe.jsonl={json.dumps(str(data))}",
        f"out={json.dumps(str(tmp_path / 'run'))}",
        *("probe.size=8", "probe.every=15", "optim.steps=30", "optim.lr=1e-3", "optim.warmup=5", "model.neck=true", "data.questions=1"),
    )
    probes = world.read_log(tmp_path / "run", "probe_iou")
    assert probes[0] < 0.8, "there is nothing to learn"
    assert max(probes) > 0.9, probes
    predictor = lisaseg.load(export_run(tmp_path / "run", tmp_path / "model"))
    report = evaluate(predictor, read_jsonl(data), template="plain")
    assert report["giou"] > 0.9, report["giou"]
