"""`lisaseg data check|convert|stats`: what they print, where, and how they exit."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.datasets.recipe_root import make_root
from typer.testing import CliRunner, Result

from lisaseg.apps import cli
from lisaseg.apps.commands.data import FORMAT_NAMES
from lisaseg.datasets.stats import fingerprint
from lisaseg.formats import FORMATS, rle
from lisaseg.formats.jsonl import read_jsonl

H, W = 40, 60
FIXTURES = Path(__file__).parents[1] / "fixtures"


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli.app, ["data", *map(str, arguments)])


def photo(seed: int, size: tuple[int, int] = (W, H)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)


@pytest.fixture
def native(tmp_path: Path) -> Path:
    for k in range(3):
        photo(k).save(tmp_path / f"{k}.png")
    mask = np.zeros((H, W), bool)
    mask[:10, :30] = True
    records = [
        {"id": "a", "image": "0.png", "text": "The dog?", "is_sentence": True, "mask": rle.encode(mask), "kind": "relation", "explanation": "x"},
        {"id": "b", "image": "0.png", "text": "the cat", "mask": [rle.encode(mask), rle.encode(~mask)], "ignore": [rle.encode(mask), None]},
        {"id": "c", "image": "1.png", "text": "a zebra here", "mask": None},
    ]
    (tmp_path / "d.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return tmp_path / "d.jsonl"


def test_a_file_without_faults(native: Path) -> None:
    result = run("check", native)
    assert (result.exit_code, result.stdout) == (0, "") and "3 samples, no faults" in result.stderr
    assert json.loads(run("check", native, "--json").stdout) == {"path": str(native), "kind": "jsonl", "samples": 3, "faulty": 0, "faults": []}


def test_every_fault_is_named_and_not_only_the_first(native: Path) -> None:
    bad = [
        '{"id": "a", "image": "0.png", "text": " ", "is_sentence": 1, "mask": ["none.png", 7], "rephrasings": "r", "explanaton": 1}',
        "{",
        '{"id": "e", "image": "gone.png", "text": "x", "mask": null}',
        '{"id": "f", "image": "2.jpg", "text": "x", "mask": null, "ignore": "none.png"}',
    ]
    with native.open("a") as file:
        file.write("\n" + "\n".join(bad) + "\n")
    photo(2, (640, 480)).save(native.parent / "whole.jpg")
    (native.parent / "2.jpg").write_bytes((native.parent / "whole.jpg").read_bytes()[:-2000])
    result = run("check", native)
    assert result.exit_code == 2 and "7 samples, 4 of them faulty" in result.stderr
    lines = result.stdout.splitlines()
    assert all(line.startswith(f"{native}:") and line.endswith((".", "?")) for line in lines)
    fifth = [line for line in lines if line.startswith(f"{native}:5,")]
    assert [line.split("'")[1] for line in fifth] == ["explanaton", "text", "is_sentence", "rephrasings", "mask[0]", "mask[1]", "id"]
    assert f"{native}:6: not JSON" in result.stdout and f"{native}:7, field 'image'" in result.stdout
    assert f"{native}:8, field 'image'" in result.stdout, "a truncated picture"
    assert f"{native}:8, field 'ignore'" in run("check", native, "--headers-only").stdout
    document = json.loads(run("check", native, "--json").stdout)
    assert document["faulty"] == 4 and {"file", "line", "field", "problem", "next_step"} == set(document["faults"][0])
    with pytest.raises(Exception, match=r":5, field"):
        list(read_jsonl(native))


def test_a_root_of_published_sets(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    result = run("check", tmp_path / "empty")
    assert result.exit_code == 2 and "missing" in result.stdout and "get it from: cocodataset.org" in result.stdout and "0 found" in result.stderr
    root = make_root(tmp_path / "root")
    assert run("check", root, "--every").exit_code == 0
    rows = json.loads(run("check", root, "--json", "--set", "ade20k").stdout)["sets"]
    assert [row["name"] for row in rows] == ["ade20k"] and rows[0]["count"] > 0 and rows[0]["source"]
    (root / "vlpart/pascal_part/train.json").write_text("{")
    broken = run("check", root)
    assert broken.exit_code == 2 and "train.json is not JSON" in broken.stdout
    assert run("check", tmp_path / "none").exit_code == 2 and run("check", root, "--set", "imagenet").exit_code == 2


def test_convert_says_what_is_lost_and_never_overwrites(native: Path, tmp_path: Path) -> None:
    out = tmp_path / "coco.json"
    result = run("convert", native, out, "--from", "jsonl", "--to", "coco")
    assert result.exit_code == 0 and result.stdout == f"{out}\n" and "is_sentence" in result.stderr and "3 texts written" in result.stderr
    before = out.read_bytes()
    again = run("convert", native, out, "--from", "jsonl", "--to", "coco")
    assert again.exit_code == 2 and "exists already" in again.stderr and out.read_bytes() == before
    assert run("convert", out, tmp_path / "back.jsonl", "--from", "coco", "--to", "jsonl").exit_code == 0
    found = {s.queries[0].text: s.queries[0] for s in read_jsonl(tmp_path / "back.jsonl")}
    assert {text: len(query.masks) for text, query in found.items()} == {"The dog?": 1, "the cat": 1, "a zebra here": 0}, "an empty mask is left out"
    nothing = run("convert", native, tmp_path / "x", "--from", "jsonl", "--to", "nonsense")
    assert nothing.exit_code == 2 and "labelme" in nothing.stderr and not (tmp_path / "x").exists()


def test_published_files_with_their_pictures_elsewhere(tmp_path: Path) -> None:
    source = FIXTURES / "coco/annotations/instances_val2017.json"
    missing = run("convert", source, tmp_path / "o.jsonl", "--from", "coco", "--to", "jsonl")
    assert missing.exit_code == 2 and "--images" in missing.stderr and not (tmp_path / "o.jsonl").exists()
    assert run("convert", source, tmp_path / "o.jsonl", "--from", "coco", "--to", "jsonl", "--images", FIXTURES / "coco/val2017").exit_code == 0
    assert run("check", tmp_path / "o.jsonl").exit_code == 0
    report = json.loads(run("stats", tmp_path / "o.jsonl", "--json").stdout)
    assert report["pictures"] == 4 and report["queries"] == len((tmp_path / "o.jsonl").read_text().splitlines())


def test_stats_count(native: Path) -> None:
    report = json.loads(run("stats", native, "--json").stdout)
    expected = {
        "samples": 3,
        "pictures": 2,
        "queries": 3,
        "no_target": 1,
        "masks": 3,
        "empty_masks": 1,
        "masks_with_ignored_pixels": 1,
        "sentences": 1,
    }
    assert {name: report[name] for name in expected} == expected
    assert report["masks_per_query"] == {"0": 1, "1": 1, "2": 1} and report["kinds"] == {"reasoning": 2, "relation": 1}
    assert report["words"]["min"] == 2 and report["words"]["max"] == 3 and report["explanations"] == 1
    assert report["mask_area_percent"]["max"] == pytest.approx(87.5) and report["picture_sides"]["< 256"] == 2
    assert not report["duplicates"]["pictures_of_equal_bytes"] and not report["duplicates"]["same_question_twice"]
    rows = dict(line.split("\t") for line in run("stats", native).stdout.splitlines())
    assert rows["queries"] == "3" and "median" in rows["words"]
    assert run("stats", native.parent / "none.jsonl").exit_code == 2


def test_stats_finds_duplicates_and_contamination(native: Path, tmp_path: Path) -> None:
    test = tmp_path / "test"
    test.mkdir()
    (test / "copy.png").write_bytes((tmp_path / "0.png").read_bytes())
    photo(1).resize((W * 2, H * 2)).save(test / "bigger.jpg", quality=60)  # 1.png, resized and recompressed
    photo(9).save(test / "new.png")
    photo(8).save(test / "2.png")
    names = ["copy.png", "copy.png", "bigger.jpg", "new.png", "2.png"]
    (test / "t.jsonl").write_text("".join(json.dumps({"image": name, "text": "the dog", "mask": None}) + "\n" for name in names))
    (test / "2.png").rename(test / "1.png")
    (test / "t.jsonl").write_text((test / "t.jsonl").read_text().replace("2.png", "1.png"))
    report = json.loads(run("stats", test / "t.jsonl", "--against", native, "--json").stdout)
    assert report["duplicates"]["same_question_twice"] == 1 and report["duplicates"]["texts_used_more_than_once"] == 1
    shared = report["overlap"]
    assert shared["pictures_of_equal_bytes"] == 1 and shared["pictures_that_look_alike"] == 2 and shared["contaminated"]
    assert shared["pictures_of_equal_name"] == 1 and shared["equal_texts"] == 1
    assert any("bigger.jpg" in example for example in shared["examples"])
    assert json.loads(run("stats", native, "--against", native, "--json").stdout)["overlap"]["pictures_of_equal_bytes"] == 2
    Image.new("RGB", (W, H)).save(test / "flat.png")
    assert fingerprint(test / "flat.png") is None, "all flat pictures would look alike"


def test_formats_in_the_help_are_those_of_the_library() -> None:
    assert sorted(FORMAT_NAMES.split(", ")) == sorted(FORMATS.names())
