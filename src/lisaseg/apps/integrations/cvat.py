"""CVAT: an auto-annotation function that finds what an instruction describes, for `cvat-cli` and `cvat_sdk.auto_annotation.annotate_task`.

    cvat-cli task auto-annotate ID --function-module lisaseg.apps.integrations.cvat -p prompt=str:"the dog"

The label is the instruction without its article ("dog"), or what `-p label=str:...` says; the task must have it. With `-p url=str:http://...` the
question goes to a running `lisaseg serve`; otherwise the model is loaded here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, get_args

import cvat_sdk.auto_annotation as cvataa
from cvat_sdk.masks import encode_mask

import lisaseg
from lisaseg.apps.integrations.labels import without_article
from lisaseg.errors import UsageError
from lisaseg.formats.contours import mask_to_polygons
from lisaseg.tokenization import clean_instruction
from lisaseg.types import Mode

if TYPE_CHECKING:
    from PIL.Image import Image

LABEL_ID = 0


class Function:
    """What `create` returns: `spec` names the one label, `detect` asks about one picture. See `cvat_sdk.auto_annotation.DetectionFunction`."""

    def __init__(self, model: Any, prompt: str, label: str, mode: Mode) -> None:
        self.model, self.prompt, self.mode = model, prompt, mode
        self.spec = cvataa.DetectionFunctionSpec(labels=[cvataa.label_spec(label, LABEL_ID, type="mask")])

    def detect(self, context: cvataa.DetectionFunctionContext, image: Image) -> list[Any]:
        """Masks of one picture, or polygons grouped by mask (`--conv-mask-to-poly`). A mask without a score passes every `--conf-threshold`."""
        answer = self.model.ask(image, self.prompt, mode=self.mode)
        shapes: list[Any] = []
        for segment in answer.segments:
            if not segment.area or (segment.score is not None and segment.score < (context.conf_threshold or 0.0)):
                continue
            if not context.conv_mask_to_poly:
                shapes.append(cvataa.mask(LABEL_ID, encode_mask(segment.mask)))
                continue
            parts = mask_to_polygons(segment.mask)
            group = segment.index + 1 if len(parts) > 1 else 0
            shapes += [cvataa.polygon(LABEL_ID, part.astype(float).ravel().tolist(), group=group) for part in parts]
        return shapes


def create(
    prompt: str,
    label: str = "",
    model: str = "lisa-tiny",
    mode: str = "segment",
    device: str = "auto",
    dtype: str = "auto",
    url: str = "",
    key: str = "",
) -> Function:
    """The function for one instruction; each argument is a `-p NAME=str:VALUE` of `cvat-cli`.

    Args:
        prompt: what to find.
        label: of the masks; the instruction without its article if left out.
        model, device, dtype: as in `lisaseg.load`.
        mode: as in `Predictor.ask`; "segment" finds a mask or nothing.
        url, key: of a running `lisaseg serve` that is asked instead; the key may be in the environment's LISASEG_KEY.

    Raises:
        InstructionError, UsageError: the instruction is empty or too long, or there is no such mode.
        ModelLoadError: the model could not be loaded.
    """
    asked = clean_instruction(prompt)
    if mode not in get_args(Mode):
        raise UsageError(f"Unknown mode {mode!r}.", next_step=f"Use one of: {', '.join(get_args(Mode))}.")
    source: Any = lisaseg.Client(url, key or None) if url else lisaseg.load(model, device=device, dtype=dtype)
    return Function(source, asked, label or without_article(asked), mode)  # type: ignore[arg-type]
