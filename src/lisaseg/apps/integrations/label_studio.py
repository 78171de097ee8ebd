"""Label Studio's words for a machine learning backend: a labelling setup in XML, tasks, a context; predictions made of results.

Protocol: Label Studio 1.23 `ml/api_connector.py` and `ml/models.py`, and label-studio-ml-backend `label_studio_ml/api.py`. What a person types while
annotating comes as the context: a list of results, among them that of a `TextArea`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

from lisaseg.apps.integrations.labels import label_for
from lisaseg.errors import UsageError
from lisaseg.formats import rle
from lisaseg.formats.labelstudio import CONFIG, encode_brush
from lisaseg.types import Mode

ANSWER = "answer"  # the TextArea of this name takes what the model says
PROMPT_FIELD = "prompt"  # of the task's data, unless the setup names another
_FIELD = re.compile(r"\$\w{1,80}")  # $image: the value is that field of the task's data
_STEP = f"Use a setup like {CONFIG}".replace("{}", '<Label value="dog"/>') + "."


@dataclass(frozen=True)
class Interface:
    """What of a labelling setup matters here.

    Attributes:
        brush: name of the first `BrushLabels` of a picture.
        image: name of that `Image`.
        image_field: field of a task's data that holds the picture.
        labels: of the brush; none = they come with each task.
        text_areas: names of the `TextArea`s that instructions are typed into.
        prompt_field: field of a task's data that holds the instruction.
        has_answer: a `TextArea` waits for what the model says.
    """

    brush: str
    image: str
    image_field: str
    labels: tuple[str, ...]
    text_areas: tuple[str, ...]
    prompt_field: str
    has_answer: bool

    @property
    def mode(self) -> Mode:
        """How to ask: with a reason only where there is a place for it."""
        return "explain" if self.has_answer else "segment"


def interface_of(config: str) -> Interface:
    """Read a labelling setup.

    Raises:
        UsageError: it is no XML, or has no brush for a picture.
    """
    if "<!DOCTYPE" in config or "<!ENTITY" in config:  # what no setup needs, and attacks on parsers do
        raise UsageError("The labelling setup declares a document type or entities.", next_step="Remove the declaration.")
    try:
        root = ElementTree.fromstring(config)
    except (ElementTree.ParseError, ValueError) as error:
        raise UsageError("The labelling setup is not XML.", next_step=_STEP) from error
    images = {tag.get("name", ""): tag.get("value", "") for tag in root.iter("Image")}
    brush = next((tag for tag in root.iter("BrushLabels") if tag.get("name") and tag.get("toName") in images), None)
    if brush is None:
        raise UsageError("The labelling setup has no BrushLabels for an Image.", next_step=_STEP)
    image = brush.get("toName", "")
    if not _FIELD.fullmatch(images[image]):
        raise UsageError("The Image of the labelling setup has no value like $image.", next_step=_STEP)
    areas = [tag for tag in root.iter("TextArea") if tag.get("toName") == image]
    typed = [tag for tag in areas if tag.get("name") != ANSWER]
    fields = [tag.get("value", "")[1:] for tag in typed if _FIELD.fullmatch(tag.get("value", ""))]
    labels = tuple(value for tag in brush.iter("Label") if (value := tag.get("value")))
    names = tuple(tag.get("name", "") for tag in typed)
    return Interface(brush.get("name", ""), image, images[image][1:], labels, names, (fields or [PROMPT_FIELD])[0], len(areas) > len(typed))


def prompt_of(interface: Interface, data: Mapping[str, Any], context: Mapping[str, Any] | None) -> str:
    """The instruction: what was typed last, else what stands in the task; "" if there is none."""
    results = (context or {}).get("result")
    for result in reversed(results if isinstance(results, list) else []):
        if isinstance(result, Mapping) and result.get("type") == "textarea" and result.get("from_name") in interface.text_areas:
            value = result.get("value")
            texts = value.get("text") if isinstance(value, Mapping) else None
            for text in reversed(texts if isinstance(texts, list) else [texts]):
                if isinstance(text, str) and text.strip():
                    return text
    stored = data.get(interface.prompt_field)
    return stored if isinstance(stored, str) and stored.strip() else ""


def address_of(interface: Interface, data: Mapping[str, Any], owns: Callable[[str], bool] = lambda address: False) -> str:
    """The picture of a task: a `data:` or https URL, or what `owns` says can be read out of Label Studio.

    Raises:
        UsageError: it is none of these (code `missing_image`, or `url_not_allowed` for a place that only Label Studio can read).
    """
    address = data.get(interface.image_field)
    if not isinstance(address, str) or not address:
        step = "Import tasks whose data has the field that the Image of the labelling setup names."
        raise UsageError(f"The task has no picture in its field {interface.image_field!r}.", next_step=step, code="missing_image")
    if not address.lower().startswith(("data:", "http://", "https://")) and not owns(address):
        message = "The picture of the task lies in Label Studio's own storage, which asks for an access token."
        step = (
            "For uploads and local files, start lisaseg with LABEL_STUDIO_URL and LABEL_STUDIO_API_KEY in its environment; instead of buckets, "
            "import tasks whose pictures are data: URLs, or https URLs of a host that `lisaseg serve --allow-url-host` names."
        )
        raise UsageError(message, next_step=step, code="url_not_allowed")
    return address


def prediction(interface: Interface, answer: Mapping[str, Any]) -> dict[str, Any]:
    """An answer of the service as a prediction. Masks lose nothing; empty ones are left out, because Label Studio cannot show them."""
    height, width = answer["image"]["height"], answer["image"]["width"]
    place = {"to_name": interface.image, "original_width": width, "original_height": height, "image_rotation": 0}
    results: list[dict[str, Any]] = []
    scores: list[float] = []
    for segment in answer["segments"]:
        if not segment["area"]:
            continue
        label = label_for(interface.labels, segment["phrase"], answer["instruction"])
        value = {"format": "rle", "rle": encode_brush(rle.decode(segment["mask"])), "brushlabels": [label]}
        result = {"id": f"{answer['id'][-12:]}{segment['index']}", "type": "brushlabels", "from_name": interface.brush, **place, "value": value}
        if segment["score"] is not None:
            result["score"] = segment["score"]
            scores.append(segment["score"])
        results.append(result)
    if interface.has_answer:
        said = {"type": "textarea", "from_name": ANSWER, "to_name": interface.image, "value": {"text": [answer["text"]]}}
        results.append({"id": f"{answer['id'][-12:]}t", **said})
    return {"result": results, "score": sum(scores) / len(scores) if scores else None, "model_version": answer["model"]}
