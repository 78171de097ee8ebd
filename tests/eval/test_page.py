"""The report's files: they hold the numbers of report.json, need nothing else, and no text of model or data can act in them."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tests.eval import reason_data
from tests.eval.scripted import Scripted, answer_with

from lisaseg.eval import charts, sheets
from lisaseg.eval.data import OpenedData, open_data
from lisaseg.eval.page import write_report
from lisaseg.eval.run import Asking, answer_rows, head_of
from lisaseg.eval.summary import report_of

EVIL = "<script>alert(1)</script>"


def reply(rgb: np.ndarray, text: str, mode: str) -> Any:
    seen = reason_data.colour_of(rgb, text)
    return answer_with(rgb.shape[:2], [] if seen is None else [seen if "red" in text else ~seen], f"the {EVIL}")


class Written:
    """One report on disk with what it came from."""

    def __init__(self, folder: Path) -> None:
        self.data: OpenedData = open_data(str(reason_data.write(folder / "reason")))
        samples = [(k, self.data.dataset[k]) for k in range(len(self.data.dataset))]
        self.rows = [row for batch in answer_rows(Scripted(reply), samples, Asking(), {}) for row, *_ in batch]
        head = head_of(Scripted(reply), Asking()) | {"data": EVIL, "split": "val", "model_hash": "0f" * 32}
        self.report = report_of(self.rows, head) | {"contaminated": True, "contamination": f"Seen: {EVIL}."}
        self.out = folder / "out"
        self.files = write_report(self.out, self.report, self.rows, self.data.dataset)
        self.html = (self.out / "report.html").read_text()


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Written:
    return Written(tmp_path_factory.mktemp("page"))


class Tags(HTMLParser):
    """Collects tags and attributes; checks that they are nested."""

    VOID = ("meta", "img", "rect", "line", "circle", "br")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_well_formed_needs_nothing_and_runs_nothing(written: Written) -> None:
    tags = Tags(written.html)
    assert not tags.open
    names = {tag for tag, _ in tags.seen}
    assert not names & {"script", "link", "iframe", "object", "b0"} and "svg" in names
    sources = [attrs["src"] or "" for tag, attrs in tags.seen if "src" in attrs]
    assert sources and all(source.startswith("data:image/webp;base64,") for source in sources)
    assert not [attrs for _, attrs in tags.seen if any(key.startswith("on") or key == "href" for key in attrs)]
    assert "http" not in re.sub(r'xmlns="[^"]*"', "", written.html) and "url(" not in written.html
    assert EVIL not in written.html and "&lt;script&gt;" in written.html
    assert "prefers-color-scheme: dark" in written.html and "$" not in re.sub(r"data:image[^']*", "", written.html)


def test_page_and_markdown_hold_the_numbers(written: Written) -> None:
    report, markdown = written.report, (written.out / "report.md").read_text()
    assert 0.2 < report["giou"] < 0.9
    for value in (report["giou"], report["ciou"], report["boundary_iou"], report["n_acc"], report["t_acc"], *report["giou_ci95"]):
        assert f"{100 * value:.1f}" in written.html and f"{100 * value:.1f}" in markdown
    for group in ("function", "safety", "absent"):
        assert f"| {group} | " in markdown and f">{group}</text>" in written.html
    for plot in re.findall(r"\(plots/([^)]*)\)", markdown):
        assert (written.out / "plots" / plot).is_file()
    assert "CONTAMINATED" in markdown and "CONTAMINATED" in written.html
    assert {path.name for path in written.files} >= {"report.json", "report.md", "report.html", "iou_histogram.png", "worst.png", "best.png"}


def test_worst_and_best_are_the_ends_and_share_nothing(written: Written) -> None:
    worst, best = sheets.pick(written.rows, 4)
    assert len(worst) == len(best) == 4 and not {r["digest"] for r in worst} & {r["digest"] for r in best}
    assert max(r["iou"] for r in worst) <= sorted(r["iou"] for r in written.rows)[3] + 0.1
    assert min(r["iou"] for r in best) >= sorted((r["iou"] for r in written.rows), reverse=True)[3] - 0.1
    assert [r["digest"] for r in sheets.pick(written.rows[::-1], 4)[0]] == [r["digest"] for r in worst], "the order of the file does not show"
    assert len({r["picture"] for r in best}) == 4, "another picture each"
    few = sheets.pick(written.rows[:1])
    assert len(few[0]) == 1 and few[1] == []


def test_panels_show_truth_on_the_left_and_the_answer_on_the_right(written: Written) -> None:
    row = next(row for row in written.rows if row["kind"] == "safety")  # the answer is everything but the target
    pair = np.asarray(sheets.panels(row, written.data.dataset)).astype(int)
    width = (pair.shape[1] - sheets.GAP) // 2
    true = written.data.dataset[row["at"][0]].queries[0].masks[0] > 0
    y, x = (int(v.mean()) for v in np.nonzero(true))
    y, x = (np.array([y + 0.5, x + 0.5]) * pair.shape[0] / true.shape[0]).astype(int)
    left, right = pair[y, x], pair[y, x + width + sheets.GAP]
    grey = pair[2, width - 4], pair[2, -4]  # the corner: background of the truth, part of the answer
    assert left[1] > left[0] and abs(left - right).sum() > 60
    assert abs(grey[0] - grey[0].mean()).max() < 12 and grey[1][0] > grey[1][2] + 40


def opened(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


IOUS = st.lists(st.floats(0, 1).map(lambda v: round(v, 6)), min_size=1, max_size=40)


@given(IOUS)
def test_the_histogram_counts_every_query_once(ious: list[float]) -> None:
    shapes = charts.iou_histogram(ious).shapes
    counts = [int(s[3]) for s in shapes if s[0] == "text" and s[4] == "middle" and s[5] == "ink"]
    assert sum(counts) == len(ious)
    heights = [s[4] for s in shapes if s[0] == "rect"]
    assert heights[0] == pytest.approx(max(heights) * sum(v == 0 for v in ious) / max(counts))


def inside(chart: charts.Chart) -> Iterator[bool]:
    for kind, *v in chart.shapes:
        if kind == "text":
            continue
        x2, y2 = (v[0] + v[2], v[1] + v[3]) if kind == "rect" else (v[2], v[3])
        yield min(v[0], x2) >= 0 and max(v[0], x2) <= charts.WIDTH and min(v[1], y2) >= 0 and max(v[1], y2) <= chart.height


@given(st.lists(st.tuples(st.text(min_size=1, max_size=60), st.floats(0, 1), st.floats(0, 1), st.booleans()), min_size=1, max_size=12))
def test_bars_stay_on_the_chart_whatever_the_groups_are_called(groups: list[tuple[str, float, float, bool]]) -> None:
    rows = [(name, {"giou": max(a, b) if full else None, "giou_ci95": sorted((a, b)) if full else None, "n": 3}) for name, a, b, full in groups]
    chart = charts.bars("x", "Title", "", rows)
    assert all(inside(chart))
    widths = [s[3] for s in chart.shapes if s[0] == "rect"]
    for (_, one), w in zip(rows, widths, strict=True):
        assert w * max(widths) == pytest.approx(max(widths) ** 2 * (one["giou"] or 0) / max(max(v["giou"] or 0 for _, v in rows), 1e-9), abs=1e-3)


def test_plots_are_pictures(written: Written) -> None:
    for chart in charts.charts_of(written.report):
        image = opened(chart.png())
        assert image.size[0] == 2 * charts.WIDTH and len(np.unique(np.asarray(image.convert("RGB")).reshape(-1, 3), axis=0)) > 3
    assert opened((written.out / "plots" / "worst.png").read_bytes()).width > 1000
