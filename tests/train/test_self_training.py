"""Self-training: masks that a model draws itself, features that are hidden, names that are not there."""

from __future__ import annotations

import inspect
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tests import tiny_random
from tests.train.test_stages import stage_of, step_of

import lisaseg
from lisaseg.apps.commands.data import pseudo_label
from lisaseg.datasets.pool import Pool
from lisaseg.errors import TrainingError
from lisaseg.formats import rle
from lisaseg.train.pseudo_labels import LEAST, add_pseudo_labels, mentioned
from lisaseg.train.stages import Workshop, drop_features

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
PHOTOS = {"cat.jpg": ["A cat that looks at you."], "coffee.jpg": []}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Pool:
    """Two example photos, with nothing labelled; of the cat's photo it is settled that no person is there."""
    root = tmp_path_factory.mktemp("photos")
    (root / "images").mkdir()
    images = []
    for number, (name, captions) in enumerate(PHOTOS.items()):
        shutil.copy(EXAMPLES / name, root / "images" / name)
        width, height = Image.open(EXAMPLES / name).size
        images.append({"id": number, "file_name": name, "width": width, "height": height, "captions": captions})
    images[0]["annotation_scope"] = "person_only"
    categories = [{"id": k, "name": name} for k, name in enumerate(("cat", "cup", "person", "zebra", "dining table"), 1)]
    (root / "photos.json").write_text(json.dumps({"images": images, "annotations": [], "categories": categories}))
    return Pool(root, "photos")


@pytest.fixture(scope="module")
def drawn(photos: Pool) -> Pool:
    """The same photos with what the shipped model is sure of."""
    predictor = lisaseg.load("lisa-tiny", dtype="float32", offline=True)
    add_pseudo_labels(photos, predictor.model, photos.root / "drawn.json")
    return Pool(photos.root, "drawn")


def test_what_the_model_is_sure_of_is_drawn(photos: Pool, drawn: Pool) -> None:
    assert "cat" in {q.name for q in drawn[0].queries} and "cup" in {q.name for q in drawn[1].queries}
    document = json.loads(drawn.path.read_text())
    assert all(a["kind"] == "pseudo" and 0.5 <= a["score"] <= 1 and a["area"] == rle.decode(a["segmentation"]).sum() for a in document["annotations"])
    assert len({a["id"] for a in document["annotations"]}) == len(document["annotations"])
    assert not {q.name for k in range(2) for q in drawn[k].queries} & {"zebra"} and "person" not in {q.name for q in drawn[0].queries}
    assert drawn.instances(0) == [] and drawn.labelled(0, drawn=False) == frozenset(), "a drawn mask is no single object, and no label"
    assert json.loads(photos.path.read_text())["annotations"] == [], "the file that was read stays as it is"


def test_drawing_again_draws_the_same(drawn: Pool, tmp_path: Path) -> None:
    predictor = lisaseg.load("lisa-tiny", dtype="float32", offline=True)
    add_pseudo_labels(drawn, predictor.model, tmp_path / "again.json")
    assert json.loads((tmp_path / "again.json").read_text()) == json.loads(drawn.path.read_text())


def test_what_is_labelled_is_not_drawn_over(photos: Pool, drawn: Pool, tmp_path: Path) -> None:
    document = json.loads(drawn.path.read_text())
    true = [{**a, "kind": "thing"} for a in document["annotations"]]
    (photos.root / "labelled.json").write_text(json.dumps({**document, "annotations": true}))
    predictor = lisaseg.load("lisa-tiny", dtype="float32", offline=True)
    add_pseudo_labels(Pool(photos.root, "labelled"), predictor.model, tmp_path / "more.json", least=0.0)
    pairs = [(a["image_id"], a["category_id"]) for a in json.loads((tmp_path / "more.json").read_text())["annotations"]]
    assert len(pairs) == len(set(pairs)) and {(a["image_id"], a["category_id"]) for a in true} <= set(pairs)


def test_the_command_writes_a_copy_and_never_its_source(photos: Pool) -> None:
    def door(out: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "lisaseg", "data", "pseudo-label", str(photos.root), "photos", "--out", str(photos.root / out)]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    refused = door("photos.json")
    assert refused.returncode == 2 and "Give the copy a name of its own" in refused.stderr
    done = door("copy.json")
    assert done.returncode == 0 and done.stdout.strip() == str(photos.root / "copy.json") and "masks added in 2 photos" in done.stderr
    assert len(Pool(photos.root, "copy")[0].queries)


def test_the_command_asks_for_the_iou_that_the_function_does() -> None:
    assert inspect.signature(pseudo_label).parameters["least"].default == LEAST


def test_a_model_without_names_is_refused(photos: Pool, tmp_path: Path) -> None:
    model = tiny_random.build_model()
    model.config.nouns = []
    with pytest.raises(TrainingError, match="sees names"):
        add_pseudo_labels(photos, model, tmp_path / "out.json")
    assert not (tmp_path / "out.json").exists()


@pytest.mark.parametrize(
    ("caption", "name"), [("Two dogs run.", "dog"), ("A man at a DINING TABLE.", "dining table"), ("Several buses wait.", "bus"), ("Nothing.", "")]
)
def test_captions_confirm_names_in_one_or_many(caption: str, name: str) -> None:
    found = mentioned((caption,))
    assert (name in found) if name else not found


@given(most=st.floats(0.05, 0.95), seed=st.integers(0, 2**31))
def test_hidden_features_are_zero_and_the_others_keep_the_mean(most: float, seed: int) -> None:
    torch.manual_seed(seed)
    trunk = {f"s{k}": torch.ones(3, 400, 2, 2) for k in (4, 8, 16, 32)} | {"boxes": torch.ones(3, 48, 4), "scores": torch.ones(3, 48, 80)}
    out = drop_features(trunk, most)
    assert out.keys() == trunk.keys() and torch.equal(out["boxes"], trunk["boxes"])
    assert set(out["scores"].unique().tolist()) <= {0.0, 1.0} and torch.equal(out["scores"].amax(-1), out["scores"].amin(-1)), "whole boxes"
    for key in ("s4", "s8", "s16", "s32"):
        for picture in out[key]:
            assert torch.equal(picture.amax((1, 2)), picture.amin((1, 2))), "whole channels"
            kept = picture[picture > 0]
            assert len(kept) and kept.unique().numel() == 1 and 1 <= float(kept[0]) <= 1 / (1 - most) + 1e-5
            share = len(kept) / picture.numel()
            assert abs(share - 1 / float(kept[0])) < 0.15, "scaled up by what is left"


@pytest.mark.parametrize("kind", ["vision", "joint"])
def test_names_that_are_not_there_teach_the_estimate_alone(shop: Workshop, kind: str) -> None:
    plain, more = (stage_of(shop, kind, text_share=0.0, absent_names=n) for n in (0, 2))
    views = [shop.views.draw(i, np.random.default_rng(0)) for i in range(len(shop.views))]
    assert not len(plain.prepare(0).absent.prompts) and any(view.info.absent for view in views)
    steps = [more.prepare(k) for k in range(8)]
    made = next(step for step in steps if len(step.absent.prompts))
    assert len(made.absent.prompts) == len(made.absent.view) and len(made.absent.prompts) % 2 == 0
    shop.model.zero_grad()
    maps = shop.context(made.pictures)
    made.absent.loss(maps, shop.model.mask_decoder).backward()
    learned = {name for name, p in shop.model.mask_decoder.named_parameters() if p.grad is not None and p.grad.any()}
    assert any(name.startswith("score.") for name in learned) and not any(name.startswith(("hyper.", "up2.")) for name in learned)


def test_hidden_features_change_a_step_and_depend_on_its_number_alone(shop: Workshop) -> None:
    stages = [stage_of(shop, "vision", feature_dropout=p) for p in (0.0, 0.8)]
    losses = []
    for stage in (*stages, stages[1]):
        torch.manual_seed(3)
        with torch.no_grad():
            losses.append(float(step_of(stage, 0)[0]))
    assert losses[0] != losses[1] == losses[2]
