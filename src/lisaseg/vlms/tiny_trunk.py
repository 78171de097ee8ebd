"""The frozen eyes of lisa-tiny: YOLOv3-tiny's convolutional trunk (darknet, COCO) beside EfficientNet-Lite2 (ImageNet-1k).

Both read the same canvas: RGB in [0, 1], longest side scaled to 416, grey padding at the right and bottom. Batch norms are folded into the
convolutions, so a trunk is convolutions with bias and activations only. Shapes: B images, H W of the feature grid, K detections, V class names.

Sources: YOLOv3-tiny, https://pjreddie.com/darknet/yolo (cfg and weights, "do anything" licence); EfficientNet-Lite, tensorflow/tpu (Apache-2.0).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CANVAS = 416
# (expand, kernel, stride, out, repeats) of EfficientNet-Lite2: width 1.1, depth 1.2; stem and head are not scaled in the Lite family.
_LITE2 = ((1, 3, 1, 16, 1), (6, 3, 2, 24, 3), (6, 5, 2, 48, 3), (6, 3, 2, 88, 4), (6, 5, 1, 120, 4), (6, 5, 2, 208, 5), (6, 3, 1, 352, 1))
_ANCHORS = (((81, 82), (135, 169), (344, 319)), ((10, 14), (23, 27), (37, 58)))  # pixels at 416, for the 13x13 and the 26x26 head (masks 3-5 and 0-2)


class SameConv(nn.Conv2d):
    """Convolution with TensorFlow's SAME padding (the odd pixel goes to the right and bottom)."""

    def forward(self, x: Tensor) -> Tensor:
        k, s = self.kernel_size[0], self.stride[0]
        pad_h = max((-(-x.shape[-2] // s) - 1) * s + k - x.shape[-2], 0)
        pad_w = max((-(-x.shape[-1] // s) - 1) * s + k - x.shape[-1], 0)
        if pad_h or pad_w:
            x = F.pad(x, (pad_w // 2, pad_w - pad_w // 2, pad_h // 2, pad_h - pad_h // 2))
        return super().forward(x)


class InvertedResidual(nn.Module):
    """EfficientNet-Lite block: expand 1x1, depthwise, project 1x1; ReLU6, no squeeze-and-excitation."""

    def __init__(self, c_in: int, c_out: int, expand: int, kernel: int, stride: int) -> None:
        super().__init__()
        mid = c_in * expand
        self.expand = SameConv(c_in, mid, 1) if expand > 1 else None
        self.depthwise = SameConv(mid, mid, kernel, stride, groups=mid)
        self.project = SameConv(mid, c_out, 1)
        self.residual = stride == 1 and c_in == c_out

    def forward(self, x: Tensor) -> Tensor:
        y = x if self.expand is None else F.relu6(self.expand(x))
        y = self.project(F.relu6(self.depthwise(y)))
        return x + y if self.residual else y


class EfficientNetLite2(nn.Module):
    """ImageNet-1k classifier run densely.

    `forward(pixels)`: (B, 3, S, S) in [0, 1] -> features of strides 4, 8, 16, 32 and class logits (B, 1000, S/32, S/32).
    """

    channels = (24, 48, 120, 352)

    def __init__(self) -> None:
        super().__init__()
        self.stem = SameConv(3, 32, 3, 2)
        blocks, c_in, self.taps = [], 32, []
        for expand, kernel, stride, c_out, repeats in _LITE2:
            for r in range(repeats):
                blocks.append(InvertedResidual(c_in, c_out, expand, kernel, stride if r == 0 else 1))
                c_in = c_out
            self.taps.append(len(blocks) - 1)
        self.blocks = nn.ModuleList(blocks)
        self.head = SameConv(352, 1280, 1)
        self.classifier = nn.Conv2d(1280, 1000, 1)

    def forward(self, pixels: Tensor) -> tuple[list[Tensor], Tensor]:
        x = F.relu6(self.stem((pixels * 255.0 - 127.0) / 128.0))
        keep = (self.taps[1], self.taps[2], self.taps[4], self.taps[6])
        features = []
        for i, block in enumerate(self.blocks):
            x = block(x)
            if i in keep:
                features.append(x)
        return features, self.classifier(F.relu6(self.head(x)))


class YoloTiny(nn.Module):
    """YOLOv3-tiny.

    `forward(pixels)`: (B, 3, 416, 416) in [0, 1] -> features of strides 4, 8, 16, 32 and the raw heads (B, 255, 13, 13), (B, 255, 26, 26).
    """

    channels = (64, 128, 256, 768)
    _plan = ((3, 16), (16, 32), (32, 64), (64, 128), (128, 256), (256, 512), (512, 1024))

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.ModuleList(nn.Conv2d(i, o, 3, padding=1) for i, o in self._plan)
        self.squeeze = nn.Conv2d(1024, 256, 1)
        self.deep = nn.Conv2d(256, 512, 3, padding=1)
        self.head13 = nn.Conv2d(512, 255, 1)
        self.lateral = nn.Conv2d(256, 128, 1)
        self.fine = nn.Conv2d(384, 256, 3, padding=1)
        self.head26 = nn.Conv2d(256, 255, 1)

    def in_darknet_order(self) -> list[nn.Conv2d]:
        """The 13 convolutions in the order of the weights file."""
        return [*self.down, self.squeeze, self.deep, self.head13, self.lateral, self.fine, self.head26]  # type: ignore[list-item]

    def forward(self, pixels: Tensor) -> tuple[list[Tensor], Tensor, Tensor]:
        x, outs = pixels, []
        for i, conv in enumerate(self.down):
            x = F.leaky_relu(conv(x), 0.1)
            outs.append(x)
            if i < 5:
                x = F.max_pool2d(x, 2)
            elif i == 5:  # darknet's stride-1 pool pads at the right and bottom
                x = F.max_pool2d(F.pad(x, (0, 1, 0, 1), value=float("-inf")), 2, 1)
        squeezed = F.leaky_relu(self.squeeze(x), 0.1)
        deep = F.leaky_relu(self.deep(squeezed), 0.1)
        up = F.interpolate(F.leaky_relu(self.lateral(squeezed), 0.1), scale_factor=2.0)
        fine = F.leaky_relu(self.fine(torch.cat([up, outs[4]], 1)), 0.1)
        return [outs[2], outs[3], fine, torch.cat([deep, squeezed], 1)], self.head13(deep), self.head26(fine)


def detections(head13: Tensor, head26: Tensor, k: int = 48, floor: float = 0.03) -> tuple[Tensor, Tensor]:
    """Decode both heads: (B, 255, 13, 13) and (B, 255, 26, 26) -> boxes (B, K, 4) cx cy w h in [0, 1] of the canvas and scores (B, K, 80), float32.

    The `k` boxes with the best class score, after suppressing boxes of the same best class with IoU > 0.45; always k rows, empty ones are 0.
    Formulas: YOLOv3 (arXiv 1804.02767), section 2.1.
    """
    boxes, scores = [], []
    for head, anchors in zip((head13, head26), _ANCHORS, strict=True):
        b, g, device = len(head), head.shape[-1], head.device
        p = head.detach().float().view(b, 3, 85, g, g)
        ys, xs = torch.meshgrid(torch.arange(g, device=device), torch.arange(g, device=device), indexing="ij")
        a = torch.tensor(anchors, dtype=torch.float32, device=device).view(3, 2, 1, 1) / CANVAS
        cx = (p[:, :, 0].sigmoid() + xs) / g
        cy = (p[:, :, 1].sigmoid() + ys) / g
        wh = p[:, :, 2:4].clamp(max=8).exp() * a
        boxes.append(torch.stack([cx, cy, wh[:, :, 0], wh[:, :, 1]], -1).view(b, -1, 4))
        scores.append((p[:, :, 4:5].sigmoid() * p[:, :, 5:].sigmoid()).permute(0, 1, 3, 4, 2).reshape(b, -1, 80))
    box, score = torch.cat(boxes, 1), torch.cat(scores, 1)
    top = score.amax(-1).topk(min(4 * k, box.shape[1])).indices[..., None]  # best first
    box, score = box.gather(1, top.expand(-1, -1, 4)), score.gather(1, top.expand(-1, -1, 80))
    keep = _suppress(box, *score.max(-1), floor)
    order = keep.long().argsort(dim=1, descending=True, stable=True)[:, :k, None]  # the kept ones, best first
    kept = keep.gather(1, order[..., 0])[..., None]
    return box.gather(1, order.expand(-1, -1, 4)) * kept, score.gather(1, order.expand(-1, -1, 80)) * kept


def _suppress(box: Tensor, best: Tensor, label: Tensor, floor: float) -> Tensor:
    """Greedy suppression in order of score, for all pictures at once: box (B, n, 4), best and label (B, n) -> which are kept, bool (B, n)."""
    corners = torch.cat([box[..., :2] - box[..., 2:] / 2, box[..., :2] + box[..., 2:] / 2], -1).clamp(0, 1)
    one, two = corners[:, :, None], corners[:, None]
    inter = (torch.minimum(one[..., 2:], two[..., 2:]) - torch.maximum(one[..., :2], two[..., :2])).clamp(min=0).prod(-1)
    area = (corners[..., 2:] - corners[..., :2]).prod(-1)
    iou = inter / (area[:, :, None] + area[:, None] - inter + 1e-9)
    clash = (iou > 0.45) & (label[:, :, None] == label[:, None])
    keep = best >= floor
    for i in range(1, box.shape[1]):
        keep[:, i] &= ~(clash[:, i, :i] & keep[:, :i]).any(1)
    return keep


def class_map(boxes: Tensor, scores: Tensor, grid: int = 52) -> Tensor:
    """Draw detections as soft ellipses: the best score of each class at each cell.

    boxes (B, K, 4), scores (B, K, 80) -> (B, 80, grid, grid) in [0, 1]. Scores up to 0.03 are not drawn.
    """
    centre = (torch.arange(grid, dtype=boxes.dtype, device=boxes.device) + 0.5) / grid
    dx = (centre[None, None, :] - boxes[..., 0:1]) / (boxes[..., 2:3] / 2).clamp(min=0.5 / grid)  # (B, K, grid)
    dy = (centre[None, None, :] - boxes[..., 1:2]) / (boxes[..., 3:4] / 2).clamp(min=0.5 / grid)
    b, k, c = (scores > 0.03).nonzero(as_tuple=True)  # a handful of the K * 80
    inside = torch.sigmoid(6.0 * (1.15 - dx[b, k][:, None, :] ** 2 - dy[b, k][:, :, None] ** 2)).flatten(1)  # (n, grid * grid)
    drawn = inside * scores[b, k, c, None]
    out = boxes.new_zeros(len(boxes) * 80, grid * grid)
    out = out.scatter_reduce(0, (b * 80 + c)[:, None].expand_as(drawn), drawn, "amax")
    return out.view(-1, 80, grid, grid)


class TinyTrunk(nn.Module):
    """Both trunks. `forward(pixels)`: (B, 3, 416, 416) in [0, 1] -> dict of

    s4 (B, 88, 104, 104), s8 (B, 176, 52, 52), s16 (B, 376, 26, 26), s32 (B, 1120, 13, 13), imagenet (B, 1000, 13, 13) logits,
    boxes (B, 48, 4) and scores (B, 48, 80) float32.
    """

    channels = tuple(a + b for a, b in zip(YoloTiny.channels, EfficientNetLite2.channels, strict=True))

    def __init__(self) -> None:
        super().__init__()
        self.yolo = YoloTiny()
        self.lite = EfficientNetLite2()

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        pixels = pixels.to(self.yolo.squeeze.weight.dtype).contiguous(memory_format=torch.channels_last)
        yolo, head13, head26 = self.yolo(pixels)
        lite, imagenet = self.lite(pixels)
        out = {f"s{4 << i}": torch.cat([y, e], 1) for i, (y, e) in enumerate(zip(yolo, lite, strict=True))}
        out["imagenet"] = imagenet
        out["boxes"], out["scores"] = detections(head13, head26)
        return out
