"""Live views: the same draw gives the same view, masks follow the pixels, and the trunk learns where a recipe wants it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.train import workshop
from tests.train.test_stages import step_of
from torch import Tensor

from lisaseg.datasets.cutouts import Cutouts
from lisaseg.datasets.pool import Pool
from lisaseg.errors import DataError, TrainingError
from lisaseg.imaging import open_image
from lisaseg.tokenization import TextTokenizer
from lisaseg.train.config import StageConfig, load_recipe
from lisaseg.train.reason_views import ReasonViews
from lisaseg.train.run import STAGES, view_source
from lisaseg.train.stages import Workshop
from lisaseg.train.texts import NounBook
from lisaseg.train.view_sources import LiveViews, relight
from lisaseg.types import IGNORE
from lisaseg.vlms.tiny_trunk import TinyTrunk


@pytest.fixture(scope="module")
def live(pool: Pool, tmp_path_factory: pytest.TempPathFactory) -> LiveViews:
    return LiveViews([pool], Cutouts(workshop.write_cutouts(tmp_path_factory.mktemp("c") / "cutouts")), composites=2)


@pytest.fixture
def reason_file(pool: Pool, tmp_path: Path) -> Path:
    """Two queries about one picture, one of them about nothing, and one about another."""
    image = pool.root / "images/wide.png"
    dog = workshop.coded(workshop.shows(workshop.paint("wide"), workshop.COLORS["dog"]))
    explained = {"explanation": "The dog (3) barks, unlike cups (1, 2).", "rephrasings": ["Who barks here?"]}
    lines = [
        {"id": "a", "image": str(image), "text": "what would bark", "mask": dog, "target": ["dog"], **explained},
        {"id": "b", "image": str(image), "text": "what would neigh", "mask": None},
    ]
    (tmp_path / "reason.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    return tmp_path / "reason.jsonl"


def live_shop(tokenizer: TextTokenizer, book: NounBook, live: LiveViews, trunk: TinyTrunk) -> Workshop:
    shop = workshop.build_shop(tokenizer, book, live)
    shop.model.vlm.vision.trunk.load_state_dict(trunk.state_dict())  # type: ignore[union-attr]
    return shop


def same(a: Tensor | None, b: Tensor | None) -> bool:
    return (a is None) == (b is None) and (a is None or b is None or torch.equal(a, b))


@settings(deadline=None, max_examples=30)
@given(index=st.integers(0, 4), seed=st.integers(0, 2**32))
def test_a_draw_depends_on_index_and_generator_alone(live: LiveViews, index: int, seed: int) -> None:
    one, two = (live.draw(index, np.random.default_rng(seed)) for _ in range(2))
    assert one.info == two.info and same(one.pixels, two.pixels) and same(one.targets, two.targets) and same(one.instances, two.instances)
    assert one.pixels is not None and one.pixels.dtype == torch.uint8 and one.pixels.shape == (3, 416, 416) and not one.trunk
    assert one.targets.shape[0] == len(one.info.names) and set(one.targets.unique().tolist()) <= {0, 1, IGNORE}


def test_draws_differ_and_every_picture_comes(live: LiveViews) -> None:
    rng = np.random.default_rng(0)
    assert len(live) == 5
    assert {live.draw(i, rng).info.id for i in range(5)} == {"wide", "tall", "square", "composite_3", "composite_4"}
    drawn = [live.draw(0, rng).pixels for _ in range(6)]
    assert not any(same(drawn[0], other) for other in drawn[1:])


@given(seed=st.integers(0, 2**32))
def test_another_light_moves_no_edge(seed: int) -> None:
    rgb = workshop.paint("wide")
    lit = relight(rgb, np.random.default_rng(seed))
    assert lit.shape == rgb.shape and lit.dtype == np.uint8
    for color in {tuple(c) for c in rgb.reshape(-1, 3).tolist()}:
        assert len(np.unique(lit[workshop.shows(rgb, color)], axis=0)) == 1, "pixels of one colour keep one colour"


@pytest.mark.parametrize("kind", ["vision", "joint"])
def test_the_trunk_learns_where_it_has_a_rate(
    tiny_tokenizer: TextTokenizer, small_book: NounBook, live: LiveViews, trunk: TinyTrunk, kind: str
) -> None:
    for rate in (0.0, 1e-4):
        shop = live_shop(tiny_tokenizer, small_book, live, trunk)
        stage = STAGES[kind](kind, StageConfig(kind=kind, steps=2, batch=2, queries=2, trunk_lr=rate, text_share=0.0), shop)  # type: ignore[arg-type]
        learns = [name for _, group in stage.groups() for name in group if name.startswith("trunk.")]
        assert bool(learns) == (rate > 0) and all(name.startswith("trunk.lite.blocks") or name.startswith("trunk.lite.stem") for name in learns)
        step_of(stage, 0)[0].backward()
        stepped = {name for name, p in shop.model.vlm.vision.trunk.named_parameters() if p.grad is not None and p.grad.any()}  # type: ignore[union-attr]
        assert bool(stepped) == (rate > 0) and not any(name.startswith("yolo") for name in stepped), "the detector stays what it is"


def test_reasoning_samples_are_asked_as_they_were_written(
    tiny_tokenizer: TextTokenizer, small_book: NounBook, live: LiveViews, trunk: TinyTrunk, reason_file: Path
) -> None:
    views, config = ReasonViews([reason_file]), StageConfig(kind="joint", steps=1, batch=2, queries=2, reason_share=1.0, text_share=0.0)
    asked, answers = set(), set()
    for seed in range(40):
        view, more = views.draw(np.random.default_rng(seed), config)
        assert len(more.conversations) == 2 and more.noun_targets == ["dog"] and len(more.targets) == 1
        painted = open_image(Path(str(view.info.id) + ".png")).rgb if Path(str(view.info.id) + ".png").exists() else workshop.paint("wide")
        share = (more.targets[0] == 1).float().mean() / (more.targets[0] != IGNORE).float().mean()
        assert float(share) == pytest.approx(workshop.shows(painted, workshop.COLORS["dog"]).mean(), abs=0.03)
        asked |= {c.turns[0].instruction for c in more.conversations}
        answers |= {c.turns[0].answer for c in more.conversations}
    assert any("Who barks here?" in text for text in asked) and any("what would bark" in text for text in asked)
    assert "There is no such thing in this picture." in answers and "It is the dog [SEG]." in answers
    assert "It is the dog [SEG]. The dog barks, unlike cups." in answers, "numbers of regions that nobody sees are left out"
    shop = live_shop(tiny_tokenizer, small_book, live, trunk)
    shop.reason = views
    loss, values = step_of(STAGES["joint"]("joint", config, shop), 0)
    assert torch.isfinite(loss) and values["iou"] >= 0


def test_a_wrong_reasoning_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_text('{"image": "x.png"}\n')
    with pytest.raises(DataError, match=r"bad\.jsonl:1"):
        ReasonViews([tmp_path / "bad.jsonl"])


def test_a_trunk_cannot_learn_from_its_own_cached_features(pool: Pool, trunk: TinyTrunk, tmp_path: Path) -> None:
    recipe = load_recipe(Path("recipes/lisa-tiny.toml"), [f"out={tmp_path}", f"data.pool={pool.root}"])
    assert isinstance(view_source(recipe, [pool], None, trunk), LiveViews)
    recipe.data.live = False
    with pytest.raises(TrainingError, match=r"Stage vision trains the trunk.*data\.live=true"):
        view_source(recipe, [pool], None, trunk)
