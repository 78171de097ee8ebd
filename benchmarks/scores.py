"""The numbers of the model card: reasoning questions, absent things and category names, asked zero-shot, in the model's own words.

    python benchmarks/scores.py -m lisa-tiny --reason DATA/reason --pool DATA/pool --out scores.json --sheets out/sheets
    python benchmarks/scores.py -m lisa-tiny --pool DATA/pool --refusal-bias=-1,0,1,2

The second form compares refusal biases on category names alone, so that one can be chosen without a look at the reasoning sets.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

import lisaseg
from lisaseg.datasets.pool import Pool
from lisaseg.drawing import draw_masks
from lisaseg.errors import LisaSegError, UsageError
from lisaseg.eval.provenance import folder_hash
from lisaseg.eval.run import evaluate
from lisaseg.eval.summary import Report
from lisaseg.formats import rle, write_aside
from lisaseg.formats.jsonl import read_jsonl
from lisaseg.imaging import open_image
from lisaseg.model.assemble import model_folder
from lisaseg.types import Answer, Query, Sample

REASON_SETS = ("val_plain", "val", "val_no_target")
POOL_FILES = {"coco_val": 1, "ccp_val": 1, "pets_val": 1, "camvid_val": 5, "humanseg_val": 1}  # every n-th picture: a drive repeats itself
N_CLASSES, PICTURES_A_CLASS, NAMES_A_PICTURE = 20, 25, 4
TARGETS = {"val_plain": ("giou", 42), "val": ("giou", 24), "val_no_target": ("refused_absent", 60), "categories": ("giou_of_classes", 50)}
COLUMNS = ("giou", "giou_ci95", "ciou", "n_acc", "refused_absent", "refused_present", "right_name", "seconds_per_sample")
HEADINGS = ("gIoU", "95 %", "cIoU", "N-acc", "refused: absent", "present", "right name", "s/question")


class Keeper:
    """Remembers answers in little memory (masks as RLE) until it is known which ones to draw."""

    def __init__(self) -> None:
        self.entries: list[dict[str, Any]] = []

    def __call__(self, sample: Sample, query: Query, answer: Answer, iou: float) -> None:
        """One answer; the `on_answer` of `evaluate`."""
        masks = [rle.encode(segment.mask) for segment in answer.segments]
        true = [rle.encode(mask == 1) for mask in query.masks]
        said = answer.text or answer.status
        self.entries.append({"image": sample.image, "question": query.text, "answer": said, "iou": iou, "masks": masks, "true": true})


def some(items: list[Any], limit: int | None, rng: np.random.Generator) -> list[Any]:
    """At most `limit` of the items, at random, in their order."""
    if limit is None or len(items) <= limit:
        return items
    return [items[i] for i in sorted(rng.choice(len(items), limit, replace=False))]


def reason_samples(path: Path, limit: int | None, seed: int) -> list[Sample]:
    """The samples of a JSONL file, or some of them."""
    return some(list(read_jsonl(path)), limit, np.random.default_rng(seed))


def category_picks(root: Path, limit: int | None, rng: np.random.Generator) -> tuple[list[tuple[Pool, int, set[str]]], dict[str, int]]:
    """Pictures with the names to ask about each, and how many pictures hold each of the most frequent names."""
    holders: dict[str, list[tuple[Pool, int]]] = defaultdict(list)
    for file, step in POOL_FILES.items():
        pool = Pool(root, file)
        for index in range(0, len(pool), step):
            for query in pool[index].queries:
                if query.kind == "category":
                    holders[query.name].append((pool, index))
    frequent = sorted(holders, key=lambda name: (-len(holders[name]), name))[:N_CLASSES]
    cap = PICTURES_A_CLASS if limit is None else min(PICTURES_A_CLASS, max(1, limit // N_CLASSES))
    picks: dict[tuple[str, int], tuple[Pool, int, set[str]]] = {}
    for name in frequent:
        for pool, index in some(holders[name], cap, rng):
            picks.setdefault((pool.path.stem, index), (pool, index, set()))[2].add(name)
    return list(picks.values()), {name: len(holders[name]) for name in frequent}


def category_samples(picks: Iterable[tuple[Pool, int, set[str]]]) -> Iterator[Sample]:
    """One sample a picture, with the picked category names only; masks are decoded as they are needed."""
    for pool, index, names in picks:
        sample = pool[index]
        yield replace(sample, queries=tuple(q for q in sample.queries if q.kind == "category" and q.name in names))


def by_class(report: Report, pictures: dict[str, int]) -> dict[str, dict[str, Any]]:
    """Per class, in the order of `pictures`: gIoU, number of questions, pictures that hold it, share of right names and of refusals."""
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in pictures}
    for row in report["per_sample"]:
        rows[row["name"]].append(row)
    return {
        name: {
            "giou": statistics.fmean(row["iou"] for row in found),
            "n": len(found),
            "pictures": pictures[name],
            "right_name": statistics.fmean(row["right_name"] for row in found),
            "refused": statistics.fmean(row["status"] == "no_target" for row in found),
        }
        for name, found in rows.items()
        if found
    }


def presence_samples(root: Path, limit: int | None, rng: np.random.Generator) -> list[Sample]:
    """COCO val pictures asked about as many names that are there as names that are verified not to be; at most a few a picture."""
    pool, samples = Pool(root, "coco_val"), []
    for index in some(list(range(len(pool))), None if limit is None else max(1, limit // NAMES_A_PICTURE), rng):
        sample = pool[index]
        there = [query for query in sample.queries if query.kind == "category"]
        n = min(len(there), len(sample.absent), NAMES_A_PICTURE)
        missing = [Query(text=name, name=name, kind="absent") for name in some(list(sample.absent), n, rng)]
        samples.append(replace(sample, queries=(*some(there, n, rng), *missing)))
    return samples


def compare_biases(predictor: lisaseg.Predictor, samples: list[Sample], biases: list[float], ask: Callable[..., Report]) -> list[dict[str, Any]]:
    """For each refusal bias, how often absent and present names are refused, and gIoU of the present ones. The model keeps its own bias."""
    config, rows = predictor.model.config, []
    before = config.refusal_bias
    try:
        for bias in biases:
            config.refusal_bias = bias
            report = ask(samples)
            present = [row["iou"] for row in report["per_sample"] if row["present"]]
            rows.append({"refusal_bias": bias, "n_present": len(present), "n_absent": report["n"] - len(present)})
            rows[-1] |= {key: report[key] for key in ("refused_absent", "refused_present", "n_acc", "t_acc")}
            rows[-1]["giou_present"] = statistics.fmean(present) if present else None
    finally:
        config.refusal_bias = before
    return rows


# --- printing -------------------------------------------------------------------------------------------------------------------------------------


def cell(key: str, value: Any) -> str:
    """A score for people: percent with one decimal, "-" for nothing to measure."""
    if value is None:
        return "-"
    if key == "giou_ci95":
        return f"{100 * value[0]:.1f}..{100 * value[1]:.1f}"
    return f"{value:.2f}" if key == "seconds_per_sample" else f"{100 * value:.1f}"


def print_table(rows: list[list[str]]) -> None:
    """Columns aligned, the first to the left."""
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    for row in rows:
        print("  ".join(text.ljust(w) if k == 0 else text.rjust(w) for k, (text, w) in enumerate(zip(row, widths, strict=True))).rstrip())


def print_scores(sets: dict[str, Report]) -> None:
    """The main table, with what is wanted, and one line a class."""
    rows = [["set", "n", *HEADINGS, "wanted"]]
    for name, report in sets.items():
        key, wanted = TARGETS[name]
        reached = report[key] is not None and 100 * report[key] >= wanted
        rows.append([name, str(report["n"]), *(cell(key, report[key]) for key in COLUMNS)])
        rows[-1].append(f"{key} {cell(key, report[key])} {'>=' if reached else '<'} {wanted}")
    print_table(rows)
    classes = sets["categories"]["classes"] if "categories" in sets else {}
    if classes:
        print()
        keys = ("giou", "right_name", "refused")
        print_table([["class", "n", "pictures", "gIoU", "right name", "refused"]] + [
            [name, str(row["n"]), str(row["pictures"]), *(cell(key, row[key]) for key in keys)] for name, row in classes.items()
        ])  # fmt: skip


def print_biases(rows: list[dict[str, Any]]) -> None:
    """One line a refusal bias."""
    keys = ("refused_absent", "n_acc", "refused_present", "t_acc", "giou_present")
    print(f"{rows[0]['n_absent']} absent and {rows[0]['n_present']} present names")
    print_table([["bias", "refused: absent", "no mask: absent", "refused: present", "mask: present", "gIoU: present"]] + [
        [f"{row['refusal_bias']:g}", *(cell(key, row[key]) for key in keys)] for row in rows
    ])  # fmt: skip


# --- contact sheets -------------------------------------------------------------------------------------------------------------------------------

PANEL, COLUMNS_A_PAGE, ROWS_A_PAGE, TEXT_LINES, LINE, FONT = 260, 3, 4, 5, 16, 13


def wrap(text: str, font: Any, width: int, lines: int) -> list[str]:
    """Words in at most `lines` lines of `width` pixels; what does not fit is cut off with "..."."""
    out = [""]
    for word in text.split():
        longer = f"{out[-1]} {word}".strip()
        if font.getlength(longer) <= width or not out[-1]:
            out[-1] = longer
        else:
            out.append(word)
    return out if len(out) <= lines else [*out[: lines - 1], f"{out[lines - 1]}..."]


def tile(entry: dict[str, Any]) -> Image.Image:
    """Answer and truth side by side, below them IoU, question and answer."""
    rgb, font = open_image(entry["image"]).rgb, ImageFont.load_default(FONT)
    out = Image.new("RGB", (2 * PANEL + 12, PANEL + LINE * TEXT_LINES + 10), "white")
    for k, masks in enumerate((entry["masks"], entry["true"])):
        panel = draw_masks(rgb, [rle.decode(mask) for mask in masks], legend=False)
        panel.thumbnail((PANEL, PANEL), Image.Resampling.LANCZOS)
        out.paste(panel, (k * (PANEL + 4) + (PANEL - panel.width) // 2, (PANEL - panel.height) // 2))
    pen = ImageDraw.Draw(out)
    lines = wrap(f"{100 * entry['iou']:.0f} | {entry['question']}", font, out.width - 8, TEXT_LINES - 2)
    for k, (line, colour) in enumerate([(line, "black") for line in lines] + [(x, "blue") for x in wrap(entry["answer"], font, out.width - 8, 2)]):
        pen.text((4, PANEL + 2 + k * LINE), line, colour, font)
    return out


def write_sheets(entries: list[dict[str, Any]], folder: Path, name: str, rng: np.random.Generator, each: int = 24) -> int:
    """PNG pages of the best, the worst and some random answers (answer left, truth right); returns the number of pages."""
    ranked = sorted(entries, key=lambda entry: -entry["iou"])
    chosen = {"best": ranked[:each], "worst": ranked[::-1][:each], "random": some(entries, each, rng)}
    a_page, pages = COLUMNS_A_PAGE * ROWS_A_PAGE, 0
    folder.mkdir(parents=True, exist_ok=True)
    for sort, found in chosen.items():
        for start in range(0, len(found), a_page):
            tiles = [tile(entry) for entry in found[start : start + a_page]]
            width, height = tiles[0].size
            page = Image.new("RGB", (COLUMNS_A_PAGE * (width + 8), -(-len(tiles) // COLUMNS_A_PAGE) * (height + 8)), "grey")
            for k, one in enumerate(tiles):
                page.paste(one, (k % COLUMNS_A_PAGE * (width + 8), k // COLUMNS_A_PAGE * (height + 8)))
            page.save(folder / f"{name}.{sort}.{start // a_page + 1}.png")
            pages += 1
    return pages


# --- the run --------------------------------------------------------------------------------------------------------------------------------------


def options(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("-m", "--model", default="lisa-tiny", help="preset or folder")
    parser.add_argument("--reason", type=Path, help=f"folder with {', '.join(f'{name}.jsonl' for name in REASON_SETS)}")
    parser.add_argument("--pool", type=Path, help=f"folder with {', '.join(f'{name}.json' for name in POOL_FILES)} and images/")
    parser.add_argument("--limit", type=int, help="at most about N questions of each set, chosen at random")
    parser.add_argument("--out", type=Path, help="JSON with everything")
    parser.add_argument("--summary", action="store_true", help="leave the single questions out of the JSON")
    parser.add_argument("--sheets", type=Path, help="folder for contact sheets")
    parser.add_argument("--refusal-bias", help="only compare these biases, separated by commas, on names of coco_val (write --refusal-bias=-1,0,1)")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    args = parser.parse_args(argv)
    if args.pool is None and (args.reason is None or args.refusal_bias):
        parser.error("give --reason DIR, --pool DIR or both; --refusal-bias needs --pool")
    if args.limit is not None and args.limit < 1:
        parser.error("--limit must be 1 or more")
    return args


def run_sets(args: argparse.Namespace, ask: Callable[..., Report]) -> dict[str, Report]:
    """Reports of all sets that were asked for; contact sheets are written on the way."""
    plans: dict[str, Callable[[], Iterable[Sample]]] = {}
    if args.reason:
        plans |= {name: partial(reason_samples, args.reason / f"{name}.jsonl", args.limit, args.seed) for name in REASON_SETS}
    pictures: dict[str, int] = {}
    if args.pool:
        picks, pictures = category_picks(args.pool, args.limit, np.random.default_rng(args.seed))
        plans["categories"] = partial(category_samples, picks)
    sets: dict[str, Report] = {}
    for name, samples in plans.items():
        keeper = Keeper()
        sets[name] = ask(samples(), on_answer=keeper if args.sheets else None)
        if name == "categories":
            classes = by_class(sets[name], pictures)
            sets[name] |= {"giou_of_classes": statistics.fmean(row["giou"] for row in classes.values()), "classes": classes}
        if args.sheets:
            write_sheets(keeper.entries, args.sheets, name, np.random.default_rng(args.seed))
    return sets


def main(argv: list[str] | None = None) -> int:
    """Run, print, write; returns the exit code."""
    args = options(argv)
    try:
        biases = parse_biases(args.refusal_bias)
        predictor = lisaseg.load(args.model, device=args.device, dtype=args.dtype)
        model, model_hash = Path(args.model).name, folder_hash(model_folder(args.model))

        def progress(done: int) -> None:
            if sys.stderr.isatty():
                print(f"\r{done} ", end="", file=sys.stderr, flush=True)

        def ask(samples: Iterable[Sample], **more: Any) -> Report:
            report = evaluate(predictor, samples, batch_size=args.batch_size, seed=args.seed, progress=progress, **more)
            return report | {"model": model, "model_hash": model_hash}

        out: dict[str, Any] = {"model": model, "model_hash": model_hash, "seed": args.seed, "limit": args.limit}
        if biases:
            rows = compare_biases(predictor, presence_samples(args.pool, args.limit, np.random.default_rng(args.seed)), biases, ask)
            print_biases(rows)
            out["refusal_biases"] = rows
        else:
            out |= {"refusal_bias": float(predictor.model.config.refusal_bias), "wanted": TARGETS, "sets": run_sets(args, ask)}
            print_scores(out["sets"])
            if args.summary:
                out["sets"] = {name: {k: v for k, v in report.items() if k != "per_sample"} for name, report in out["sets"].items()}
        if args.out:
            write_aside(args.out, (json.dumps(out, indent=1, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace"))
    except LisaSegError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def parse_biases(text: str | None) -> list[float]:
    """ "-1,0,1" -> numbers; none for None."""
    try:
        return [float(part) for part in text.split(",")] if text else []
    except ValueError:
        raise UsageError(f"--refusal-bias {text!r} is not a list of numbers.", next_step="Write --refusal-bias=-1,0,1.") from None


if __name__ == "__main__":
    raise SystemExit(main())
