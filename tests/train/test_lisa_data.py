"""Laws of what a recipe reads."""

from __future__ import annotations

from pathlib import Path

from tests.datasets.recipe_root import make_root

from lisaseg.datasets import DATASETS
from lisaseg.datasets.mixture import PAPER_SETS
from lisaseg.train.lisa_config import DataSettings
from lisaseg.train.lisa_data import open_groups


def test_a_root_alone_is_the_papers_mixture_without_pictures_of_evaluation_splits(tmp_path: Path) -> None:
    data = DataSettings(root=make_root(tmp_path))
    groups = open_groups(data)
    assert [(group.rate, list(group.sets)) for group in groups] == [(9, [*PAPER_SETS["sem_seg"]]), (3, [*PAPER_SETS["refer_seg"]]),
                                                                  (3, [*PAPER_SETS["vqa"]]), (1, [*PAPER_SETS["reason_seg"]])]  # fmt: skip
    some = DataSettings(root=tmp_path, sets={"refer_seg": ["grefcoco"], "vqa": ["llava_instruct"]})
    sets = {name: one.inner for group in open_groups(some) for name, one in group.sets.items()}  # type: ignore[attr-defined]
    names = {name: [one[k].image.name for k in range(len(one))] for name, one in sets.items()}
    assert names == {"grefcoco": ["COCO_train2014_000000000001.jpg"], "llava_instruct": ["000000000001.jpg"]}
    assert len(DATASETS.get("llava_instruct")(tmp_path)) == 2, "its second picture is one of refCOCO's val"
