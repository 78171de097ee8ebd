"""Views show what the pictures show: masks follow the pixels through flip, crop and paste; the cache can be interrupted at any view."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.train.workshop import COLORS, CROWD, PICTURES, paint, shows, write_cutouts, write_pool

from lisaseg.datasets.cutouts import Cutouts
from lisaseg.datasets.pool import Pool
from lisaseg.errors import TrainingError
from lisaseg.imaging import fit_longest_side
from lisaseg.train.views import FEATURES, TARGET_SIDE, Raw, build_cache, composite_view, crop_box, plan_views, pool_views, read_view
from lisaseg.types import IGNORE
from lisaseg.vlms.tiny_trunk import CANVAS, TinyTrunk

SHAPES = {"s4": (88, 104, 104), "s8": (176, 52, 52), "s16": (376, 26, 26), "s32": (1120, 13, 13), "imagenet": (1000, 13, 13),
          "boxes": (48, 4), "scores": (48, 80)}  # fmt: skip
PICTURE_NAMES = list(PICTURES)


def masks_follow_pixels(raw: Raw) -> None:
    """Each thing of the painted pictures has a colour of its own: its mask is where that colour is."""
    info, rgb, masks, instances = raw
    assert len(info.names) == len(info.texts) == len(info.kinds) == len(masks) and len(info.instance_names) == len(instances)
    for name, mask in zip(info.names, masks, strict=True):
        assert mask.shape == rgb.shape[:2]
        assert np.array_equal(mask == 1, shows(rgb, COLORS[name])), name
        assert np.array_equal(mask == IGNORE, shows(rgb, CROWD) if name == "dog" else np.zeros(mask.shape, bool)), name
    for name, mask in zip(info.instance_names, instances, strict=True):
        assert mask.any() and shows(rgb, COLORS[name])[mask == 1].all()


@pytest.mark.parametrize("index", range(3))
def test_a_plain_view_is_the_picture(pool: Pool, index: int) -> None:
    raw = pool_views(pool, index, augment=False, seed=0)
    masks_follow_pixels(raw)
    info, rgb, _, _ = raw
    name = PICTURE_NAMES[index]
    assert info.id == name and info.source == "small_train" and np.array_equal(rgb, paint(name))
    assert set(info.names) == {thing for thing, _ in PICTURES[name][1]} and set(info.kinds) == {"category"} and info.texts == info.names
    assert not set(info.names) & set(info.absent)


def test_what_is_known_of_a_picture_is_kept(pool: Pool) -> None:
    wide, square = (pool_views(pool, k, False, 0)[0] for k in (0, 2))
    assert wide.captions == ["A coloured picture."] and "zebra" in wide.absent and {"car", "dog", "cup"} <= set(wide.scope)
    assert wide.instance_names == [], "a dog among a crowd of dogs is not counted"
    assert square.instance_names == ["cat", "cat"] and square.captions == square.absent == square.scope == []


@given(index=st.integers(0, 2), seed=st.integers(0, 2**32))
def test_a_flipped_view_has_flipped_masks(pool: Pool, index: int, seed: int) -> None:
    raw = pool_views(pool, index, augment=True, seed=seed)
    masks_follow_pixels(raw)
    info, rgb, masks, _ = raw
    t, left, b, r = crop_box(pool.size(index), np.random.default_rng([seed, index]))
    assert np.array_equal(rgb[:, ::-1], paint(PICTURE_NAMES[index])[t:b, left:r]), "a window of the picture, mirrored"
    assert info.captions == [], "what is said of the whole picture may not hold for a part"
    assert all((mask == 1).sum() >= 0.0005 * mask.size for mask in masks)
    again = pool_views(pool, index, augment=True, seed=seed)
    assert again[0] == info and np.array_equal(again[1], rgb) and all(np.array_equal(a, b) for a, b in zip(again[2], masks, strict=True))


@given(st.integers(1, 2000), st.integers(1, 2000), st.integers(0, 2**32))
def test_windows_lie_in_the_picture_and_are_not_small(height: int, width: int, seed: int) -> None:
    t, left, b, r = crop_box((height, width), np.random.default_rng(seed))
    assert 0 <= t < b <= height and 0 <= left < r <= width
    assert b - t >= min(height, 32) and r - left >= min(width, 32)
    if min(height, width) >= 100:
        assert 0.2 < (b - t) * (r - left) / (height * width) < 0.95


@pytest.fixture(scope="module")
def cutouts(tmp_path_factory: pytest.TempPathFactory) -> Cutouts:
    return Cutouts(write_cutouts(tmp_path_factory.mktemp("c") / "cutouts"))


@pytest.mark.parametrize("index", range(12))
def test_a_composite_knows_what_was_pasted(pool: Pool, cutouts: Cutouts, index: int) -> None:
    info, rgb, masks, instances = composite_view([pool], cutouts, index, seed=3)
    sizes = {(h, w) for (h, w), _ in PICTURES.values()}
    assert rgb.shape[:2] in sizes and instances == [] and (info.source, info.absent, info.scope) == ("cutouts", [], [])
    assert 1 <= len(info.names) == len(set(info.names)) == len(masks) <= 4 and info.kinds == ["cutout"] * len(masks)
    assert set(info.names) <= {"teapot", "lamp", "kite", "drum"}
    assert np.sum(masks, axis=0).max() == 1, "what hides another is not part of it"
    pasted = {"teapot": (True, False, False), "lamp": (False, True, False), "kite": (False, False, True), "drum": (True, True, False)}
    for name, mask in zip(info.names, masks, strict=True):
        assert ((rgb[mask == 1] > 0) == pasted[name]).all(), name
    hidden = np.sum(masks, axis=0) == 0  # the photos hold no pure colour: elsewhere nothing was pasted, but for slivers too small to name
    assert (rgb[hidden] == 0).any(-1).mean() < 0.01
    again = composite_view([pool], cutouts, index, seed=3)
    assert again[0] == info and np.array_equal(again[1], rgb)
    assert not np.array_equal(composite_view([pool], cutouts, index, seed=4)[1], rgb)


def test_a_plan_names_every_view_once(pool: Pool, cutouts: Cutouts) -> None:
    stems = [stem for stem, _ in plan_views([pool], {"small_train": 2}, cutouts, 2, seed=0)]
    assert stems == ["wide", "wide+a", "tall", "tall+a", "square", "square+a", "composite_0", "composite_1"]
    assert [stem for stem, _ in plan_views([pool], {}, None, 5, seed=0)] == PICTURE_NAMES
    many = [stem for stem, _ in plan_views([pool], {"small_train": 4}, None, 0, seed=0)]
    assert len(set(many)) == 12 and many[:4] == ["wide", "wide+a", "wide+b", "wide+c"]


def test_copies_of_a_picture_differ(pool: Pool) -> None:
    makers = dict(plan_views([pool], {"small_train": 3}, None, 0, seed=0))
    assert makers["square+a"]()[1].shape != makers["square+b"]()[1].shape


def test_pictures_of_one_name_are_refused(pool: Pool, tmp_path: Path) -> None:
    other = write_pool(tmp_path, "other_train")
    with pytest.raises(TrainingError, match=r"other_train\.json: the picture wide\.png has the name of one in .*small_train\.json"):
        list(plan_views([pool, other], {}, None, 0, seed=0))


def test_a_view_survives_its_file(pool: Pool, cached: list[Path], trunk: TinyTrunk) -> None:
    for path in cached:
        view = read_view(path)
        name, augmented = path.stem.removesuffix("+a"), path.stem.endswith("+a")
        info, rgb, masks, instances = pool_views(pool, PICTURE_NAMES.index(name), augmented, seed=int(augmented))
        canvas, placement = fit_longest_side(rgb, CANVAS)
        info.id, info.valid = path.stem, placement.valid_fraction
        assert view.info == info
        for stored, made in ((view.targets, masks), (view.instances, instances)):
            assert stored.dtype == torch.uint8 and stored.shape == (len(made), TARGET_SIDE, TARGET_SIDE)
            assert set(stored.unique().tolist()) <= {0, 1, 255}
            assert all(
                np.array_equal(s, placement.apply_mask(np.ascontiguousarray(m), TARGET_SIDE)) for s, m in zip(stored.numpy(), made, strict=True)
            )
        rows, columns = (round(share * TARGET_SIDE) for share in info.valid)
        padding = torch.ones(TARGET_SIDE, TARGET_SIDE, dtype=torch.bool)
        padding[: rows + 1, : columns + 1] = False  # the border cell may be either
        assert (view.targets[:, padding] == IGNORE).all() and (view.targets[:, : rows - 1, : columns - 1] != IGNORE).any()
        assert {k: tuple(v.shape) for k, v in view.trunk.items()} == SHAPES
        with torch.inference_mode():
            features = trunk(torch.from_numpy(canvas).permute(2, 0, 1)[None].float() / 255)
        for key in FEATURES:
            exact = key in ("boxes", "scores")
            assert view.trunk[key].dtype == (torch.float32 if exact else torch.bfloat16)
            torch.testing.assert_close(view.trunk[key].float(), features[key][0].float(), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("stop", [1, 4])
def test_an_interrupted_cache_goes_on_where_it_stopped(pool: Pool, trunk: TinyTrunk, cached: list[Path], tmp_path: Path, stop: int) -> None:
    plan, made = list(plan_views([pool], {"small_train": 2}, None, 0, seed=0)), []

    def interrupt(done: int, total: int) -> None:
        assert total == 6
        if done == stop:
            raise KeyboardInterrupt

    def counted(stem: str, make: object) -> object:
        return lambda: (made.append(stem), make())[1]  # type: ignore[operator]

    with pytest.raises(KeyboardInterrupt):
        build_cache(tmp_path, plan, trunk, interrupt)
    first = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert set(first) == {f"{stem}.safetensors" for stem, _ in plan[:stop]}
    build_cache(tmp_path, [(stem, counted(stem, make)) for stem, make in plan], trunk, lambda done, total: None)  # type: ignore[misc]
    assert made == [stem for stem, _ in plan[stop:]], "only what was missing is made"
    assert all((tmp_path / name).stat().st_mtime_ns == time for name, time in first.items())
    whole = {path.name: path.read_bytes() for path in cached}
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == whole, "the files are those of a run that never stopped"


def test_a_view_that_fails_leaves_no_file(pool: Pool, trunk: TinyTrunk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="no space"):
        build_cache(tmp_path, list(plan_views([pool], {}, None, 0, seed=0))[:1], trunk, lambda done, total: None)
    assert not list(tmp_path.glob("*.safetensors")), "half a view must not look like a whole one"


def test_shards_share_the_work(pool: Pool, trunk: TinyTrunk, cached: list[Path], tmp_path: Path) -> None:
    plan, told = list(plan_views([pool], {}, None, 0, seed=0)), []
    build_cache(tmp_path, plan, trunk, lambda done, total: told.append((done, total)), shard=(1, 2))
    assert {path.stem for path in tmp_path.iterdir()} == {"tall"} and told == [(1, 1)]
    build_cache(tmp_path, plan, trunk, lambda done, total: None, shard=(0, 2))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {path.name: path.read_bytes() for path in cached[:3]}
