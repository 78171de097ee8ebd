"""Copy-paste: what is pasted hides what is behind it, its mask is exact, and nothing else changes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.train import workshop

from lisaseg.datasets.pool import Pool, names_close_to
from lisaseg.train.copy_paste import Donors, paste
from lisaseg.train.view_sources import LiveViews
from lisaseg.train.views import window_view
from lisaseg.types import IGNORE

SEEDS = st.integers(0, 2**32 - 1)


@pytest.fixture(scope="module")
def donors(pool: Pool) -> Donors:
    return Donors([pool])


@settings(deadline=None, max_examples=60)
@given(index=st.integers(0, 2), most=st.integers(1, 3), seed=SEEDS)
def test_what_is_pasted_hides_what_is_behind_it(pool: Pool, donors: Donors, index: int, most: int, seed: int) -> None:
    before = window_view(pool, index, None, flip=False)
    info, rgb, masks, instances = paste(before, donors, most, np.random.default_rng(seed))
    old, new = dict(zip(before[0].names, before[2], strict=True)), dict(zip(info.names, masks, strict=True))
    changed = (rgb != before[1]).any(-1)
    assert rgb.shape == before[1].shape and len(info.names) == len(masks) == len(info.texts) == len(info.kinds)
    assert len(info.instance_names) == len(instances) and set(info.kinds) == {"category"}
    for name, mask in new.items():
        assert mask.dtype == np.uint8 and set(np.unique(mask)) <= {0, 1, IGNORE} and (mask == 1).any()
        known = old.get(name, np.zeros_like(mask))
        gained = (mask == 1) & (known != 1)
        assert not gained[~changed].any(), "where no pixel changed, nothing is found that was not there"
        for other, hidden in new.items():
            assert other == name or not (gained & (hidden == 1)).any(), "a pasted pixel belongs to what was pasted alone"
    for name in set(old) - set(new):
        assert (old[name] == 1)[changed].any(), "only what was hidden is gone"


@settings(deadline=None, max_examples=40)
@given(index=st.integers(0, 2), seed=SEEDS)
def test_names_that_were_pasted_are_absent_no_longer(pool: Pool, donors: Donors, index: int, seed: int) -> None:
    before = window_view(pool, index, None, flip=False)
    info, *_ = paste(before, donors, 3, np.random.default_rng(seed))
    pasted = set(info.names) - set(before[0].names)
    assert not names_close_to(pasted) & set(info.absent) and set(info.absent) <= set(before[0].absent)
    assert info.captions == [] and info.scope == before[0].scope


@settings(deadline=None, max_examples=20)
@given(seed=SEEDS)
def test_a_paste_depends_on_the_generator_alone_and_leaves_its_source_as_it_is(pool: Pool, donors: Donors, seed: int) -> None:
    raw = window_view(pool, 0, None, flip=True)
    kept = raw[1].copy(), [mask.copy() for mask in raw[2]]
    one, two = (paste(raw, donors, 3, np.random.default_rng(seed)) for _ in range(2))
    assert one[0] == two[0] and np.array_equal(one[1], two[1]) and all(map(np.array_equal, one[2], two[2]))
    assert np.array_equal(raw[1], kept[0]) and all(map(np.array_equal, raw[2], kept[1]))


def test_donors_are_single_things_and_never_people(pool: Pool, donors: Donors) -> None:
    rng = np.random.default_rng(0)
    drawn = [thing for _ in range(200) if (thing := donors.draw(rng)) is not None]
    names = {name for name, _ in drawn}
    assert "person" not in names and {"cat", "cup"} <= names
    for name, rgba in drawn:
        visible = rgba[rgba[..., 3] == 255][:, :3]
        assert len(visible) and (visible == workshop.COLORS[name]).all(), "the mask covers the thing and nothing else"


def test_live_views_paste_in_the_share_that_is_asked_for(pool: Pool) -> None:
    def names(share: float) -> list[set[str]]:
        live = LiveViews([pool], None, 0, plain=0.0, paste=share, window=0.89)
        return [set(live.draw(1, np.random.default_rng(seed)).info.names) for seed in range(60)]

    own = {"tree", "cat", "person"}
    assert all(found <= own for found in names(0.0))
    assert sum(not found <= own for found in names(1.0)) > 20
