"""Pictures with reasoning queries (lisaseg JSONL), as views with ready conversations."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from lisaseg import prompts
from lisaseg.chat import Conversation
from lisaseg.datasets.native import NativeJsonl
from lisaseg.imaging import open_image
from lisaseg.train.config import StageConfig
from lisaseg.train.texts import DUMMY, ask, single
from lisaseg.train.view_queries import Asked
from lisaseg.train.views import View, ViewInfo, place
from lisaseg.types import Query, Turn

P_EXPLAIN = 0.15
_NUMBERS = re.compile(r"\s*\(\d+(?:\s*(?:,|and|&)\s*\d+)*\)")  # "the golden tie (15)": numbers of regions that nobody else sees


class ReasonViews:
    """All pictures of some JSONL files with their queries.

    Args:
        paths: JSONL files; a query without a mask means that nothing fits.

    Raises:
        DataError: a file or a line is wrong; names it.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        grouped: dict[Path, list[Query]] = defaultdict(list)
        for path in paths:
            data = NativeJsonl(path)
            for sample in (data[i] for i in range(len(data))):
                assert isinstance(sample.image, Path)
                grouped[sample.image.resolve()] += sample.queries
        self.pictures = list(grouped.items())

    def draw(self, rng: np.random.Generator, config: StageConfig) -> tuple[View, Asked]:
        """One picture, plain (queries speak of places and colours), with at most `config.queries` of its queries in one of their wordings."""
        image, queries = self.pictures[int(rng.integers(len(self.pictures)))]
        chosen = [queries[int(i)] for i in rng.permutation(len(queries))[: config.queries]]
        info = ViewInfo(image.stem, "reason", (1.0, 1.0))
        masks = [q.masks[0] for q in chosen if q.masks]
        info.names = [q.name.split(",")[0].strip() for q in chosen if q.masks]
        info.texts, info.kinds = list(info.names), ["reason"] * len(masks)
        view = place((info, open_image(image).rgb, masks, []))
        targets = view.targets if masks else torch.zeros(0, 104, 104, dtype=torch.uint8)
        return view, Asked([self._conversation(q, rng) for q in chosen], targets, list(info.names))

    @staticmethod
    def _conversation(query: Query, rng: np.random.Generator) -> Conversation:
        text = prompts.choose((query.text, *query.rephrasings), rng)
        question = ask(text, prompts.looks_like_sentence(text), "reason", rng)
        if not query.masks:
            return single(Turn(question, prompts.NO_TARGET))
        name = query.name.split(",")[0].strip()
        answer = prompts.ANSWER_NAMED.format(name=name) if name else prompts.ANSWER_UNNAMED
        if query.explanation and rng.random() < P_EXPLAIN:
            question = prompts.join(question, prompts.choose(prompts.EXPLAIN_SUFFIXES, rng))
            answer = f"{answer} {_NUMBERS.sub('', query.explanation)}"
        return single(Turn(question, answer, (DUMMY,)))
