"""CVAT: what its driver accepts, and masks that its own decoder gives back to the bit."""

from __future__ import annotations

import importlib
import logging
from typing import Any

import cvat_sdk.auto_annotation as cvataa
import numpy as np
import pytest
from cvat_sdk import models
from cvat_sdk.auto_annotation.driver import _AnnotationMapper, _DetectionFunctionContextImpl
from cvat_sdk.masks import decode_mask
from PIL import Image
from tests.tiny_random import ABSENT, GREETING, ONE, TWO, noise

import lisaseg
from lisaseg.apps.integrations.cvat import Function, create
from lisaseg.errors import InstructionError, LisaSegError, UsageError
from lisaseg.formats import rle
from lisaseg.predictor import Predictor

MODULE = "lisaseg.apps.integrations.cvat"


def dataset_label(name: str, kind: str = "mask", label_id: int = 77) -> models.Label:
    return models.Label(id=label_id, name=name, type=kind, attributes=[], sublabels=[])


def driven(function: Any, image: Image.Image, *, label: str, kind: str = "mask", **context: Any) -> list[models.LabeledShapeRequest]:
    """What CVAT's driver makes of a picture: `annotate_task` without its download and upload."""
    mapper = _AnnotationMapper(
        logging.getLogger("test"),
        function.spec.labels,
        [dataset_label(label, kind)],
        allow_unmatched_labels=False,
        conv_mask_to_poly=context.get("conv_mask_to_poly", False),
    )
    tags, shapes = mapper.validate_and_remap(function.detect(_DetectionFunctionContextImpl(frame_name="a.png", **context), image), 5)
    assert tags == [] and all((shape.frame, shape.label_id, shape.source) == (5, 77, "auto") for shape in shapes)
    return shapes


@pytest.fixture
def image() -> Image.Image:
    return Image.fromarray(noise(0))


@pytest.mark.parametrize(("prompt", "count"), [(ONE, 1), (TWO, 2), (ABSENT, 0), (GREETING, 0)])
def test_masks_come_back_to_the_bit(predictor: Predictor, image: Image.Image, prompt: str, count: int) -> None:
    function = Function(predictor, prompt, "thing", "auto")
    shapes = driven(function, image, label="thing")
    truth = [segment.mask for segment in predictor.ask(image, prompt).segments if segment.area]
    assert len(shapes) == len(truth) <= count
    for shape, mask in zip(shapes, truth, strict=True):
        assert shape.type.value == "mask"
        assert np.array_equal(decode_mask(shape.points, image_width=image.width, image_height=image.height), mask)


def test_a_model_with_masks_was_asked(predictor: Predictor, image: Image.Image) -> None:
    assert driven(Function(predictor, TWO, "thing", "auto"), image, label="thing"), "the test above has something to compare"


def test_polygons_are_made_where_cvat_wants_them(predictor: Predictor, image: Image.Image) -> None:
    shapes = driven(Function(predictor, ONE, "thing", "auto"), image, label="thing", kind="polygon", conv_mask_to_poly=True)
    truth = [segment.mask for segment in predictor.ask(image, ONE).segments if segment.area]
    assert {shape.type.value for shape in shapes} == {"polygon"} and len({shape.group for shape in shapes}) == len(truth)
    drawn = rle.polygons_to_mask([shape.points for shape in shapes], image.height, image.width)
    both = np.logical_or.reduce(truth)
    assert (drawn & both).sum() >= 0.97 * (drawn | both).sum()


def test_a_threshold_leaves_out_what_is_below(predictor: Predictor, image: Image.Image) -> None:
    scores = [segment.score for segment in predictor.ask(image, TWO).segments if segment.area]
    function = Function(predictor, TWO, "thing", "auto")
    for threshold in (0.0, 0.5, 1.0):
        kept = [score for score in scores if score is None or score >= threshold]
        assert len(driven(function, image, label="thing", conf_threshold=threshold)) == len(kept)


def test_the_label_must_be_the_tasks(predictor: Predictor, image: Image.Image) -> None:
    with pytest.raises(cvataa.BadFunctionError, match="not in dataset"):
        driven(Function(predictor, ONE, "thing", "auto"), image, label="other")
    with pytest.raises(cvataa.BadFunctionError, match="polygon"):
        driven(Function(predictor, ONE, "thing", "auto"), image, label="thing", kind="polygon")


def test_the_command_line_of_cvat_makes_the_function(predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    """`FunctionLoader` of cvat-cli: import the module, call `create` with the parameters, look for `spec`."""
    monkeypatch.setattr(lisaseg, "load", lambda *_, **__: predictor, raising=False)
    function = importlib.import_module(MODULE).create(prompt="  the dog ")
    (label,) = function.spec.labels
    assert (label.name, label.type) == ("dog", "mask") and isinstance(function.spec, cvataa.DetectionFunctionSpec)
    assert create(prompt="the dog", label="animal").spec.labels[0].name == "animal"
    assert create(prompt="What barks?").prompt == create(prompt="What barks?").spec.labels[0].name == "What barks?"


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        (InstructionError, {"prompt": " "}), (InstructionError, {"prompt": "x" * 2001}), (UsageError, {"prompt": "x", "mode": "loud"}),
        (UsageError, {"prompt": "x", "url": "localhost:8000"}), (LisaSegError, {"prompt": "x", "model": "no-such-model"}),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_said_before_a_picture_is_fetched(kind: type[LisaSegError], arguments: dict[str, str]) -> None:
    with pytest.raises(kind):
        create(**arguments)
