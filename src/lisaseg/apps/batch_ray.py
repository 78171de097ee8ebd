"""`lisaseg batch --engine ray`: the same worker as actors of Ray Data's `map_batches`, one model each. Their answers come back to the driver.

Pictures and OUT must lie on a file system that all nodes see. All questions about one picture go to one actor, so that it is encoded once.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import Any

from lisaseg.apps.batch import Outcome, Worker
from lisaseg.apps.batch_inputs import Pair
from lisaseg.errors import UsageError


class RayWorker:
    """A `Worker` that takes and gives columns of JSON, as Ray Data hands them over. Made once in each actor; loads the model there."""

    def __init__(self, options: dict[str, Any], rest: tuple[Any, ...], batch_size: int) -> None:
        from lisaseg.predictor import load

        name = options["name"]
        self.worker = Worker(load(name, **{key: value for key, value in options.items() if key != "name"}), *rest)
        self.batch_size = batch_size

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[str]]:
        """`{"pairs": [JSON list of pairs, one a picture]}` -> `{"outcome": [JSON]}`."""
        pairs = [Pair(**pair) for text in batch["pairs"] for pair in json.loads(str(text))]
        outcomes = []
        for start in range(0, len(pairs), self.batch_size):
            outcomes += [json.dumps(asdict(outcome)) for outcome in self.worker(pairs[start : start + self.batch_size])]
        return {"outcome": outcomes}


def run_ray(options: dict[str, Any], pairs: Sequence[Pair], batch_size: int, workers: int, rest: tuple[Any, ...]) -> Iterator[Outcome]:
    """Outcomes as the actors finish them, in any order; a later run without --engine puts the file in order.

    Raises:
        UsageError: ray is not installed.
    """
    try:
        import ray.data
    except ImportError as error:
        raise UsageError("--engine ray needs Ray Data.", next_step='Install it: pip install "lisaseg[ray]".') from error
    out, mode, limits = rest
    rest = (Path(out).absolute() if out is not None else None, mode, limits)  # actors run in another folder
    absolute = [Pair(**{**asdict(pair), "file": str(Path(pair.file).absolute())}) for pair in pairs]
    rows = [{"pairs": json.dumps([asdict(pair) for pair in group])} for _, group in groupby(absolute, key=lambda pair: pair.path)]
    if not ray.is_initialized():
        ray.init(logging_level="WARNING")
    on_gpu = options["device"].startswith("cuda") or (options["device"] == "auto" and bool(ray.cluster_resources().get("GPU")))
    answered = ray.data.from_items(rows).map_batches(
        RayWorker,
        batch_size=batch_size,  # of pictures; the worker cuts them into batches of questions
        fn_constructor_kwargs={"options": options, "rest": rest, "batch_size": batch_size},
        concurrency=workers,
        num_gpus=1 if on_gpu else 0,
    )
    for row in answered.iter_rows():
        yield Outcome(**json.loads(row["outcome"]))
