"""What `--data`, `--root` and `--split` open, and what a model has already seen of it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tests.datasets import recipe_root
from tests.eval import reason_data
from tests.eval.scripted import Scripted, answer_with

from lisaseg.datasets.check import PLACES
from lisaseg.errors import UsageError
from lisaseg.eval.data import open_data
from lisaseg.eval.provenance import contamination, trained_on
from lisaseg.eval.run import evaluate


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("root")
    recipe_root.refer_sets(folder)
    recipe_root.text_sets(folder)
    return folder


def test_a_jsonl_file_is_its_own_split(tmp_path: Path) -> None:
    data = open_data(str(reason_data.write(tmp_path / "reason", 3)))
    assert (data.title, data.name, data.split, len(data.dataset)) == ("reason/val.jsonl", "reason", "val", 7)
    assert [data.count(k) for k in range(7)] == [1] * 7
    with pytest.raises(UsageError, match="no splits"):
        open_data(str(tmp_path / "reason" / "val.jsonl"), split="test")


@pytest.mark.parametrize("where", ["", "reason_seg/ReasonSeg", "reason_seg/ReasonSeg/val"])
def test_reasonseg_is_found_from_every_folder_above_it(root: Path, where: str) -> None:
    data = open_data(str(root / where))
    assert (data.name, data.split, [data.dataset[k].id for k in range(len(data.dataset))]) == ("reasonseg", "val", ["c_0"])
    if not where.endswith("val"):
        assert open_data(str(root / where), split="test").dataset[0].id == "d_0"


@pytest.mark.parametrize(
    ("name", "split", "texts"),
    [
        ("refcoco", None, ["cup"]),
        ("refcoco", "testA", ["a cup without an outline"]),
        ("refcoco+", "val", ["cup"]),
        ("refcocog", "val(U)", ["cup"]),
        ("refcocog", "val(G)", ["cup"]),
        ("refclef", "testB", ["edge"]),
        ("grefcoco", "val", ["cup"]),
        ("grefcoco", "train", ["both cups", "the dog"]),
    ],
)
def test_referring_sets_are_opened_by_name(root: Path, name: str, split: str | None, texts: list[str]) -> None:
    data = open_data(name, root, split)
    found = [query.text for k in range(len(data.dataset)) for query in data.dataset[k].queries]
    assert found == texts and sum(data.count(k) for k in range(len(data.dataset))) == len(texts)
    assert data.name == name and data.split == (split or "val").partition("(")[0]


def test_both_splits_of_refcocog_can_be_told_apart(tmp_path: Path) -> None:
    recipe_root.refer_sets(tmp_path)
    other = [recipe_root.reference(0, 1, 1, "val", "as Google split it")]
    (tmp_path / "refer_seg/refcocog/refs(google).p").write_bytes(recipe_root.old_pickle(other))
    texts = {split: open_data("refcocog", tmp_path, split).dataset[0].queries[0].text for split in ("val", "val(U)", "val(G)")}
    assert texts == {"val": "cup", "val(U)": "cup", "val(G)": "as Google split it"}


def test_grefcoco_unites_targets_and_judges_absent_ones(root: Path) -> None:
    everything = Scripted(lambda rgb, text, mode: answer_with(rgb.shape[:2], [] if "dog" in text else [np.ones(rgb.shape[:2], bool)]))
    dataset = open_data("grefcoco", root, "train").dataset
    report = evaluate(everything, (dataset[k] for k in range(len(dataset))))
    assert (report["n"], report["n_acc"], report["t_acc"], report["n_target"], report["n_no_target"]) == (2, 1, 1, 1, 1)
    union = dataset[0].queries[0].masks[0].mean()
    assert report["giou"] == pytest.approx((union + 1) / 2, abs=1e-6)


def test_what_is_nothing_is_refused_with_the_forms_that_are_known(tmp_path: Path) -> None:
    for data, root, words in (("nowhere", None, "Sets: "), (str(tmp_path), None, "holds no evaluation data"), ("refcoco", None, "--root")):
        with pytest.raises(UsageError) as caught:
            open_data(data, root)
        assert words in str(caught.value)


def card(folder: Path, **fields: object) -> Path:
    (folder / "config.json").write_text(json.dumps(fields))
    return folder


SEEN = [{"name": "reason", "split": "train", "data_hash": "abc"}, {"name": "reasonseg", "split": "train"}, {"name": "coco", "split": "train2017"}]


@pytest.mark.parametrize(
    ("name", "split", "data", "verdict"),
    [
        ("reason", "train", "x", True),
        ("reason", "val", "x", False),
        ("other", "copy", "abc", True),  # the same queries under another name
        ("reasonseg", "train", "x", True),
        ("ReasonSeg", "train_val", "x", True),
        ("reasonseg", "val", "x", False),
        ("coco", "training", "x", True),
        ("refcoco", "val", "x", None),  # its pictures are COCO train pictures
        ("ade20k", "validation", "x", False),
    ],
)
def test_data_that_the_model_has_seen_is_named(tmp_path: Path, name: str, split: str, data: str, verdict: bool | None) -> None:
    entries = trained_on("m", card(tmp_path, trained_on=SEEN))
    found, words = contamination(entries, name, split, data)
    assert found is verdict and words


@pytest.mark.parametrize(
    ("model", "split", "verdict"),
    [
        ("xinlai/LISA-7B-v1", "val", True),
        ("xinlai/LISA-13B-llama2-v1-explanatory", "val", True),
        ("xinlai/LISA-13B-llama2-v0", "val", False),
        ("xinlai/LISA-7B-v1", "test", False),
        ("someone/else-v1", "val", None),
    ],
)
def test_of_the_published_checkpoints_only_v0_may_be_judged_by_val(model: str, split: str, verdict: bool | None) -> None:
    assert contamination(trained_on(model, None), "reasonseg", split, "x")[0] is verdict
    assert all(place.name != "reasonseg" or place.split in ("train", "val", "test") for place in PLACES)


@pytest.mark.parametrize("fields", [{}, {"trained_on": "COCO and others"}, {"trained_on": [{"split": "train"}]}])
def test_a_model_that_does_not_say_is_not_called_clean(tmp_path: Path, fields: dict[str, object]) -> None:
    assert contamination(trained_on("m", card(tmp_path, **fields)), "reason", "val", "x")[0] is None
    assert trained_on("m", tmp_path / "nowhere") is None


def test_the_shipped_model_says_what_it_saw() -> None:
    from lisaseg.store import preset_dir

    entries = trained_on("lisa-tiny", preset_dir("lisa-tiny"))
    assert entries and {"name": "coco", "split": "train2017"} in entries
    assert contamination(entries, "reason", "val", "x")[0] is False
