"""benchmarks/scores.py on a small data set written here: it asks what it says, counts what it asks, and its table holds the numbers of its JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from benchmarks import scores
from PIL import Image
from tests.eval.scripted import Scripted, answer_with

import lisaseg
from lisaseg.formats import rle
from lisaseg.types import Answer

H, W = 24, 32
NAMES = ("cat", "dog", "tree")


def box(k: int) -> np.ndarray:
    mask = np.zeros((H, W), bool)
    mask[:, 8 * k : 8 * k + 8] = True
    return mask


def write_pool(root: Path) -> Path:
    """Five files; picture k holds a cat, and a dog if k is even. "zebra" and others are verified absences of COCO's scope."""
    for file in scores.POOL_FILES:
        images, annotations = [], []
        for k in range(6):
            path = root / "images" / f"{file}_{k}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.random.default_rng([k, len(file)]).integers(0, 256, (H, W, 3), np.uint8)).save(path)
            images.append({"id": k, "file_name": path.name, "width": W, "height": H, "annotation_scope": "instances80"})
            for c in [0] if k % 2 else [0, 1]:
                code = rle.encode(box(c))
                annotations.append({"id": len(annotations), "image_id": k, "category_id": c, "segmentation": code, "iscrowd": 0, "kind": "thing"})
        categories = [{"id": c, "name": name} for c, name in enumerate(NAMES)]
        (root / f"{file}.json").write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return root


def write_reason(root: Path, pool: Path) -> Path:
    root.mkdir()
    for name in scores.REASON_SETS:
        fields: dict[str, Any] = {"image": str(pool / "images" / "coco_val_0.png"), "is_sentence": False}
        fields |= {"mask": None} if name == "val_no_target" else {"mask": rle.encode(box(0)), "target": ["cat"]}
        lines = [json.dumps({"id": f"{name}{k}", "text": f"the purring one {k}", **fields}) for k in range(5)]
        (root / f"{name}.jsonl").write_text("\n".join(lines))
    return root


@pytest.fixture
def data(tmp_path: Path) -> tuple[Path, Path]:
    pool = write_pool(tmp_path / "pool")
    return write_reason(tmp_path / "reason", pool), pool


@pytest.fixture
def predictor(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Scripted:
    """Knows cats and their paraphrase; calls a dog a cat; refuses everything else once the bias is 1."""

    def reply(rgb: np.ndarray, text: str, mode: str) -> Answer:
        known = any(word in text for word in ("cat ", "dog ", "purring"))
        seen = known or model.model.config.refusal_bias < 1
        return answer_with(rgb.shape[:2], [box(0)] if seen else [], "the cat")

    model = Scripted(reply)
    weights = tmp_path / "weights"
    weights.mkdir()
    (weights / "config.json").write_text("{}")
    monkeypatch.setattr(lisaseg, "load", lambda *_, **__: model, raising=False)
    monkeypatch.setattr(scores, "model_folder", lambda _: weights)
    return model


def test_four_numbers_table_and_json_agree(data: tuple[Path, Path], predictor: Scripted, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out" / "scores.json"
    argv = [
        "-m",
        str(tmp_path / "weights"),
        "--reason",
        str(data[0]),
        "--pool",
        str(data[1]),
        "--out",
        str(out),
        "--sheets",
        str(tmp_path / "sheets"),
    ]
    assert scores.main(argv) == 0
    found = json.loads(out.read_text())
    sets = found["sets"]
    assert (sets["val"]["giou"], sets["val"]["right_name"], sets["val_no_target"]["refused_absent"]) == (1, 1, 0)
    assert sets["val"]["n"] == sets["val_plain"]["n"] == sets["val_no_target"]["n"] == 5
    # 4 files of 6 pictures, and every 5th of camvid: 26 cats; of them 13 + 1 with a dog, answered with the cat
    assert sets["categories"]["classes"]["cat"] == {"giou": 1, "n": 25, "pictures": 26, "right_name": 1, "refused": 0}
    assert sets["categories"]["classes"]["dog"] == {"giou": 0, "n": 13, "pictures": 13, "right_name": 0, "refused": 0}
    assert sets["categories"]["giou_of_classes"] == 0.5 and sets["categories"]["giou"] == pytest.approx(25 / 38, abs=1e-6)
    assert str(tmp_path) not in json.dumps({key: value for key, value in found.items() if key != "sets"}) and found["model"] == "weights"
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line.strip()}
    assert "giou 100.0 >= 24" in lines["val"] and "refused_absent 0.0 < 60" in lines["val_no_target"]
    assert "giou_of_classes 50.0 >= 50" in lines["categories"] and "65.8" in lines["categories"]
    pages = sorted(path.name for path in (tmp_path / "sheets").iterdir())
    assert {f"val.{sort}.1.png" for sort in ("best", "worst", "random")} <= set(pages) and "categories.worst.2.png" in pages
    with Image.open(tmp_path / "sheets" / "categories.best.1.png") as page:
        assert page.width > page.height > scores.PANEL * scores.ROWS_A_PAGE


def test_the_run_repeats_itself_and_limits_itself(data: tuple[Path, Path], predictor: Scripted, tmp_path: Path) -> None:
    texts = []
    for k in range(2):
        out = tmp_path / f"{k}.json"
        assert scores.main(["--reason", str(data[0]), "--pool", str(data[1]), "--limit", "3", "--out", str(out)]) == 0
        found = json.loads(out.read_text())
        for report in found["sets"].values():
            report.pop("seconds_per_sample")
        texts.append(found)
        assert found["sets"]["val"]["n"] == 3
        assert {row["n"] for row in found["sets"]["categories"]["classes"].values()} == {1}
    assert texts[0] == texts[1]


def test_refusal_biases_are_compared_on_names_and_put_back(
    data: tuple[Path, Path], predictor: Scripted, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "bias.json"
    assert scores.main(["--pool", str(data[1]), "--refusal-bias=-1,2", "--out", str(out)]) == 0
    low, high = json.loads(out.read_text())["refusal_biases"]
    assert (low["refusal_bias"], low["refused_absent"], low["refused_present"]) == (-1, 0, 0)
    assert (high["refusal_bias"], high["refused_absent"], high["refused_present"], high["n_acc"]) == (2, 1, 0, 1)
    assert low["n_present"] == low["n_absent"] == 9 and low["giou_present"] == high["giou_present"] == pytest.approx(6 / 9)
    assert predictor.model.config.refusal_bias == 0.5
    assert "9 absent and 9 present names" in capsys.readouterr().out


def test_absent_names_are_not_in_the_picture(data: tuple[Path, Path]) -> None:
    for sample in scores.presence_samples(data[1], None, np.random.default_rng(0)):
        there = {query.name for query in sample.queries if query.masks}
        missing = {query.name for query in sample.queries if not query.masks}
        assert there and len(there) == len(missing) and not missing & {"cat", *there}


@pytest.mark.parametrize("argv", [[], ["--reason", "x", "--refusal-bias=1"], ["--pool", "x", "--limit", "0"]])
def test_wrong_use_is_refused_before_a_model_is_loaded(argv: list[str]) -> None:
    with pytest.raises(SystemExit) as end:
        scores.main(argv)
    assert end.value.code == 2


@pytest.mark.parametrize("argv", [["--pool", "nowhere"], ["--reason", "nowhere"], ["--pool", "nowhere", "--refusal-bias=one"]])
def test_bad_input_is_reported_without_a_trace(argv: list[str], predictor: Scripted, capsys: pytest.CaptureFixture[str]) -> None:
    assert scores.main(argv) == 2
    assert capsys.readouterr().err.startswith("error: ")
