"""list[Example] -> Batch: encoded conversations packed behind one visual prefix for each picture.

All conversations about a picture share its tokens: they stand behind one prefix in one row, see the prefix and themselves but not
each other, and their positions restart after the prefix. It computes what separate rows would (a test holds it to that) and reads the picture once.
Shapes: B pictures = rows, T tokens, M masks, S supervised positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lisaseg.chat import ChatTemplate, Conversation, render
from lisaseg.tokenization import IGNORED, Encoded, Tokenizer


@dataclass
class Example:
    """One picture and its conversations. targets: (M, h, w) uint8 in {0, 1, 255}, one for each `[SEG]`, in order of conversations and places."""

    conversations: list[Conversation]
    targets: Tensor


@dataclass
class Batch:
    """Packed rows.

    ids, position_ids (B, T) int64; attention (B, 1, T, T) bool, True = may look; label_row, label_col, labels (S,): position that predicts the label;
    seg_row, seg_col (M,): position whose state becomes the mask prompt; targets: list of (M_b, h, w); refusals etc. are ordinary labels.
    """

    ids: Tensor
    position_ids: Tensor
    attention: Tensor
    label_row: Tensor
    label_col: Tensor
    labels: Tensor
    seg_row: Tensor
    seg_col: Tensor
    targets: list[Tensor] = field(default_factory=list)


def pack(
    examples: Sequence[Example],
    tokenizer: Tokenizer,
    template: ChatTemplate,
    n_image_tokens: int,
    seg_state: str = "emit",
    max_tokens: int = 1024,
) -> Batch:
    """Encode and pack. A conversation that would make a row longer than `max_tokens` is a ValueError: split it before."""
    encoded = [[tokenizer.encode(render(c, template), n_image_tokens) for c in e.conversations] for e in examples]
    return pack_encoded(encoded, [e.targets for e in examples], tokenizer.seg_id, seg_state, max_tokens)


def pack_encoded(
    encoded: Sequence[Sequence[Encoded]], targets: Sequence[Tensor], seg_id: int, seg_state: str = "emit", max_tokens: int = 1024
) -> Batch:
    """Pack the encoded conversations of each picture; see `pack`."""
    rows = [_pack_row(e, len(t), seg_id, seg_state) for e, t in zip(encoded, targets, strict=True)]
    longest = max(len(r[0]) for r in rows)
    if longest > max_tokens:
        raise ValueError(f"A packed row has {longest} tokens, more than {max_tokens}.")
    b = len(rows)
    ids, positions = torch.zeros(b, longest, dtype=torch.long), torch.zeros(b, longest, dtype=torch.long)
    attention = torch.eye(longest, dtype=torch.bool).expand(b, 1, -1, -1).clone()  # padding looks at itself: no NaN
    label_at: list[tuple[int, int, int]] = []
    seg_at: list[tuple[int, int]] = []
    for r, (row_ids, row_positions, segment, labels, segs) in enumerate(rows):
        n = len(row_ids)
        ids[r, :n], positions[r, :n] = torch.tensor(row_ids), torch.tensor(row_positions)
        seg = torch.tensor(segment)
        same = (seg[:, None] == seg[None, :]) | (seg[None, :] == 0)
        attention[r, 0, :n, :n] = same & torch.ones(n, n, dtype=torch.bool).tril()
        label_at += [(r, c, y) for c, y in labels]
        seg_at += [(r, c) for c in segs]
    lab = torch.tensor(label_at, dtype=torch.long).view(-1, 3)
    at = torch.tensor(seg_at, dtype=torch.long).view(-1, 2)
    return Batch(
        ids,
        positions,
        attention,
        lab[:, 0],
        lab[:, 1],
        lab[:, 2],
        at[:, 0],
        at[:, 1],
        list(targets),
    )


def _pack_row(
    conversations: Sequence[Encoded], n_targets: int, seg_id: int, seg_state: str
) -> tuple[list[int], list[int], list[int], list[tuple[int, int]], list[int]]:
    """ids, positions, segment number of each token (0 = shared prefix), (column, label) pairs, columns of mask prompts."""
    ids: list[int] = []
    positions: list[int] = []
    segment: list[int] = []
    labels: list[tuple[int, int]] = []
    segs: list[int] = []
    for k, encoded in enumerate(conversations):
        p = encoded.prefix
        if k == 0:
            ids, positions, segment = encoded.ids[:p], list(range(p)), [0] * p
        offset = len(ids) - p
        for i in range(p, len(encoded.ids)):
            if encoded.labels[i] != IGNORED:
                labels.append((i - 1 + offset, encoded.labels[i]))
                if encoded.ids[i] == seg_id:
                    segs.append(i - 1 + offset if seg_state == "emit" else i + offset)
        ids += encoded.ids[p:]
        positions += list(range(p, len(encoded.ids)))
        segment += [k + 1] * (len(encoded.ids) - p)
    if len(segs) != n_targets:
        raise ValueError(f"The conversations hold {len(segs)} [SEG], {n_targets} targets are given.")
    return ids, positions, segment, labels, segs
