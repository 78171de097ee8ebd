"""The files of a report: report.json for programs, report.md for a repository, report.html for people, plots and contact sheets as PNG."""

from __future__ import annotations

import base64
import html
import io
import json
from collections.abc import Sequence
from pathlib import Path
from string import Template
from typing import Any

from lisaseg.datasets import SegmentationDataset
from lisaseg.eval import sheets, words
from lisaseg.eval.charts import Chart, charts_of
from lisaseg.eval.metrics import EMPTY_RULES
from lisaseg.eval.summary import Report, Row
from lisaseg.formats import write_aside

_MAX_ROWS = 2000  # of the page's table; report.json holds all


def write_report(out: Path, report: Report, rows: Sequence[Row], dataset: SegmentationDataset) -> list[Path]:
    """Write all files of a report into `out`; returns their paths.

    Args:
        report: of `lisaseg.eval.summary.report_of`.
        rows: with the predicted masks. dataset: where their pictures and true masks are.
    """
    charts = charts_of(report)
    worst, best = ([(row, sheets.panels(row, dataset)) for row in some] for some in sheets.pick(rows))
    written = [write_aside(out / "plots" / f"{chart.name}.png", chart.png()) for chart in charts]
    for name, some in (("worst", worst), ("best", best)):
        if some:
            written.append(write_aside(out / "plots" / f"{name}.png", sheets.sheet(some, f"{report['model']}: the {name} answers")))
    text = json.dumps(report, indent=1, ensure_ascii=False) + "\n"
    written.append(write_aside(out / "report.json", text.encode("utf-8", "backslashreplace")))
    written.append(write_aside(out / "report.md", markdown(report, [path.name for path in written[:-1]]).encode("utf-8", "backslashreplace")))
    written.append(write_aside(out / "report.html", page(report, charts, worst, best).encode("utf-8", "backslashreplace")))
    return written


def markdown(report: Report, plots: Sequence[str]) -> str:
    """report.md: the main table, groups, plots."""
    lines = [f"# {report['model']} on {report['data']}", "", words.lead(report), ""]
    if report["contaminated"]:
        lines += [f"**CONTAMINATED.** {report['contamination']}", ""]
    lines += ["| measure | value |", "|---|---|"]
    lines += [f"| {score.name} | {score.value}{f' ({score.range})' if score.range else ''} |" for score in words.scores(report)]
    for tag, title in words.GROUP_TITLES.items():
        groups = report["by"][tag]
        if len(groups) > 1:
            lines += ["", f"| {title} | n | gIoU (95 % interval) | cIoU |", "|---|---|---|---|"]
            lines += [f"| {name} | {value['n']} | {words.with_interval(value)} | {words.percent(value['ciou'])} |" for name, value in groups.items()]
    lines += ["", *(f"![{name.removesuffix('.png')}](plots/{name})" for name in plots), ""]
    lines += [f"{name}: `{value}`  " for name, value in words.facts(report)]
    return "\n".join(lines) + "\n"


def page(report: Report, charts: Sequence[Chart], worst: Sequence[sheets.Tile], best: Sequence[sheets.Tile]) -> str:
    """report.html: one file that needs nothing else, light or dark as the reader's system is."""
    template = Template(Path(__file__).with_name("report.html").read_text(encoding="utf-8"))
    misses = sum(row["iou"] == 0 for row in report["per_sample"])
    shown = report["per_sample"][:_MAX_ROWS]
    rows = [[row["id"], row["text"], row["answer"], f"{100 * row['iou']:.0f}"] for row in shown]
    more = f"<p class='quiet'>The first {_MAX_ROWS}; report.json holds all.</p>" if len(shown) < report["n"] else ""
    return template.substitute(
        title=_escape(f"{report['model']} on {report['data']}"),
        lead=_escape(words.lead(report)),
        banner=_banner(report),
        scores="".join(_score(score) for score in words.scores(report)),
        words="".join(
            f"<div class='card'><h3>{_escape(title)}</h3>{figure}<p>{text}</p></div>" for title, figure, text in words.explanations(report)
        ),
        charts="".join(f"<div class='card'><h3>{_escape(c.title)}</h3><p>{_escape(c.about)}</p>{c.svg()}</div>" for c in charts),
        worst=_tiles(worst),
        best=_tiles(best),
        worst_note=_escape(f"{misses} of {report['n']} answers miss completely; these were drawn from the worst without regard to what they show."),
        tables=_tables(report),
        n=report["n"],
        rows=more + _table(["id", "query", "answer", "IoU %"], rows, numbers=(3,)),
        facts=_table(["", ""], [[name, value] for name, value in words.facts(report)]),
    )


def _banner(report: Report) -> str:
    if report["contaminated"]:
        return f"<p class='banner bad'>CONTAMINATED: {_escape(report['contamination'])} These numbers say nothing about new pictures.</p>"
    if report["contaminated"] is None:
        return f"<p class='banner note'>Seen in training? {_escape(report.get('contamination') or 'Not known.')}</p>"
    return ""


def _score(score: words.Score) -> str:
    interval = f"<span class='range'>{_escape(score.range)}</span>" if score.range else ""
    top = f"<span class='name'>{_escape(score.name)}</span><b>{_escape(score.value)}</b>{interval}"
    return f"<div class='card score'>{top}<p>{_escape(score.about)}</p></div>"


def _tables(report: Report) -> str:
    parts = []
    for tag, title in words.GROUP_TITLES.items():
        groups = report["by"][tag]
        if len(groups) > 1:
            rows = [[name, str(v["n"]), words.with_interval(v), words.percent(v["ciou"])] for name, v in groups.items()]
            parts.append(
                f"<details><summary>By {_escape(title)}</summary>{_table([title, 'n', 'gIoU (95 % interval)', 'cIoU'], rows, (1, 2, 3))}</details>"
            )
    rules = [[name, words.percent(v["giou"]), words.percent(v["ciou"]), EMPTY_RULES[name]] for name, v in report["by_empty_rule"].items()]
    if any(row[1:3] != rules[0][1:3] for row in rules):
        text = f"<p>This report uses the rule “{_escape(report['empty_target'])}”. Other code counts queries without a target differently:</p>"
        table = _table(["rule", "gIoU", "cIoU", "a query without a target ..."], rules, (1, 2))
        parts.append(f"<details><summary>Other rules for queries without a target</summary>{text}{table}</details>")
    return "".join(parts)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], numbers: Sequence[int] = ()) -> str:
    kinds = ["n" if k in numbers else "text" for k in range(len(head))]
    top = "".join(f"<th class='{kind}'>{_escape(cell)}</th>" for kind, cell in zip(kinds, head, strict=True))
    body = "".join("<tr>" + "".join(f"<td class='{k}'>{_escape(cell)}</td>" for k, cell in zip(kinds, row, strict=True)) + "</tr>" for row in rows)
    return f"<table>{f'<tr>{top}</tr>' if any(head) else ''}{body}</table>"


def _tiles(tiles: Sequence[sheets.Tile]) -> str:
    parts = []
    for row, pair in tiles:
        buffer = io.BytesIO()
        pair.save(buffer, "WEBP", quality=82)
        picture = base64.b64encode(buffer.getvalue()).decode()
        alt = _escape(f"True target and the model's mask for: {row['text']}")
        caption = f"<span class='iou'>{100 * row['iou']:.0f} %</span>{_escape(row['text'])}<span class='answer'>{_escape(sheets.said(row))}</span>"
        image = f"<img width='{pair.width}' height='{pair.height}' alt='{alt}' src='data:image/webp;base64,{picture}'>"
        parts.append(f"<figure class='card'>{image}<figcaption>{caption}</figcaption></figure>")
    return "".join(parts)


def _escape(value: Any) -> str:
    return html.escape(str(value), quote=True)
