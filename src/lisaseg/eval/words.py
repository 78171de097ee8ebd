"""The words of a report: what each number is called, means and rests on; for the page and for report.md."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lisaseg.eval.metrics import EMPTY_RULES
from lisaseg.eval.summary import Report

GROUP_TITLES = {"size": "size of the target", "kind": "kind of query", "is_sentence": "sentence", "source": "source"}


@dataclass(frozen=True)
class Score:
    """One number for people. value: formatted. range: its interval or "". about: one or two sentences."""

    name: str
    value: str
    about: str
    range: str = ""


def percent(value: float | None) -> str:
    """0.123 -> "12.3"; "-" for nothing to measure."""
    return "-" if value is None else f"{100 * value:.1f}"


def with_interval(group: dict[str, Any]) -> str:
    """ "12.3 (10.1 to 14.9)"."""
    interval = group.get("giou_ci95")
    return percent(group["giou"]) + (f" ({percent(interval[0])} to {percent(interval[1])})" if interval else "")


def lead(report: Report) -> str:
    """One sentence under the title."""
    how = "its own answers (generated)" if report["mode"] == "generated" else "answers put into its mouth (teacher-forced)"
    part = f", the first {report['limit']} samples only" if report.get("limit") else ""
    return f"{report['n']} queries about {report['pictures']} pictures, split {report['split']}{part}. Judged by {how}. All scores in percent."


def scores(report: Report) -> list[Score]:
    """The numbers of the report, the main one first; those without anything to measure are left out."""
    interval = report["giou_ci95"]
    found = [
        Score("gIoU", percent(report["giou"]), "The mean over all queries of IoU, the overlap of mask and truth. The main number.",
              f"95 % interval {percent(interval[0])} to {percent(interval[1])}" if interval else "one picture: no interval"),
        Score("cIoU", percent(report["ciou"]), "All overlaps together over all unions together. Large things weigh more."),
        Score("boundary IoU", percent(report["boundary_iou"]), "IoU of the outlines only, a band of 2 % of the diagonal: how clean the edges are."),
        Score("Prec@0.5", percent(report["prec_at"]["0.5"]), "Share of masks with an IoU of 50 % or more: “roughly the right thing”.",
              f"@0.7: {percent(report['prec_at']['0.7'])}, @0.9: {percent(report['prec_at']['0.9'])}"),
    ]  # fmt: skip
    if report["instances"]:
        ap = report["instances"]
        found.append(Score("AP", percent(ap["ap"]), "COCO’s average precision over queries with several targets, each with a mask of its own.",
                           f"AP50 {percent(ap['ap50'])}, AP75 {percent(ap['ap75'])}"))  # fmt: skip
    if report["t_acc"] is not None and report["mode"] == "generated":
        found.append(
            Score("T-acc", percent(report["t_acc"]), f"Of {report['n_target']} queries whose target is there: answered with a mask, any mask.")
        )
    if report["n_acc"] is not None and report["mode"] == "generated":
        found.append(
            Score("N-acc", percent(report["n_acc"]), f"Of {report['n_no_target']} queries about absent things: answered without a mask, as is right.")
        )
    if report["right_name"] is not None and report["mode"] == "generated":
        found.append(
            Score("right name", percent(report["right_name"]), f"Of {report['n_named']} targets with a known name: the answer says that name.")
        )
    return found


_FIGURE = (
    "<svg viewBox='0 0 250 92' role='img' aria-label='Two overlapping shapes; IoU is the overlap over everything covered'>"
    "<circle cx='78' cy='46' r='38' fill='var(--true)' opacity='.45'/><circle cx='118' cy='46' r='38' fill='var(--zero)' opacity='.45'/>"
    "<text x='62' y='50' class='c-ink' font-size='12' text-anchor='middle'>true</text><text x='136' y='50' class='c-ink' font-size='12'"
    " text-anchor='middle'>said</text><text x='98' y='50' class='c-ink' font-size='12' text-anchor='middle'>both</text>"
    "<text x='172' y='50' class='c-quiet' font-size='12'>both / any</text></svg>"
)


def explanations(report: Report) -> list[tuple[str, str, str]]:
    """(title, figure as SVG or "", text as HTML) for readers who have not read the paper."""
    forced = report["mode"] == "teacher_forced"
    mode = (
        "<b>This report: teacher-forced.</b> An answer with [SEG] was put into the model’s mouth and only the mask behind it was measured. All "
        "published numbers of the LISA line are of this kind. It cannot show that a model refuses, or answers without a mask."
        if forced
        else "<b>This report: generated.</b> The model’s own words decide whether there is a mask at all; a refusal or a wordy answer without a "
        "mask scores 0 where something is there. This is what a user gets. Published numbers of the LISA line are teacher-forced: the model is "
        "made to answer with a mask, so a refusal never costs anything. Do not compare the two."
    )
    overlap = (
        "IoU, intersection over union, is 100 when the two masks are the same and 0 when they do not touch; 50 already looks like a decent mask. "
        "<b>gIoU</b> is its mean over the queries, each counting the same. <b>cIoU</b> adds up all pixels first, so a few large targets decide it."
    )
    interval = (
        "With few queries a score is partly luck. The 95 % interval is found by drawing the pictures again and again with replacement (questions "
        "about one picture stay together). Two models whose intervals overlap may still differ: <code>lisaseg eval compare A B</code> decides "
        "that on the same queries."
    )
    absent = (
        "A query may ask for something that is not in the picture. By the rule of this report such a query "
        f"{rule_in_words(report)}. Pixels that people marked as ignored are left out of both masks."
    )
    return [
        ("IoU, gIoU, cIoU", _FIGURE, overlap),
        ("Generated or teacher-forced", "", mode),
        ("The interval", "", interval),
        ("Nothing there", "", absent),
    ]


def rule_in_words(report: Report) -> str:
    """The rule for empty targets as the end of a sentence."""
    texts = {
        "lisa": "scores 100 if no pixel is marked and 0 otherwise",
        "gres": "scores 100 if no pixel is marked and 0 otherwise, and does not count in Prec@",
        "zero": "always scores 0",
        "skip": "counts in N-acc only",
    }
    return texts[report["empty_target"]]


def facts(report: Report) -> list[tuple[str, str]]:
    """What a reader needs to repeat the evaluation."""
    rule = report["empty_target"]
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    return [
        ("model", str(report["model"])),
        ("model hash (weights and config)", str(report["model_hash"])),
        ("data", f"{report['data']}, split {report['split']}"),
        ("data hash (pictures, queries, masks)", str(report["data_hash"])),
        ("mode, template", f"{report['mode']}, {report['template']}"),
        ("empty targets", f"{rule}: {EMPTY_RULES[rule]}"),
        ("contaminated", f"{report['contaminated']}: {report.get('contamination', '')}"),
        ("number format of the weights", str(report["precision"])),
        ("versions", versions),
        ("seconds a query", f"{report['seconds_per_sample']:.2f}"),
    ]
