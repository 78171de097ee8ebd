"""What the tests of training share: the small world of `tests.train.workshop`, written once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tests import tiny_random
from tests.train import workshop

from lisaseg.datasets.pool import Pool
from lisaseg.tokenization import TextTokenizer
from lisaseg.train import run as door
from lisaseg.train.stages import Workshop
from lisaseg.train.texts import NounBook
from lisaseg.train.view_sources import CachedViews
from lisaseg.train.views import build_cache, plan_views
from lisaseg.vlms.tiny_trunk import TinyTrunk


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Sums in one order: with several threads, the backward of float32 indexing adds in the order in which they arrive."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def trunk() -> TinyTrunk:
    """A trunk of random weights that neither grows nor shrinks what it sees too much; float32, eval mode."""
    torch.manual_seed(0)
    trunk = TinyTrunk()
    for layer in trunk.modules():
        if isinstance(layer, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(layer.weight)
            torch.nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    return trunk.eval()


@pytest.fixture(scope="session")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Pool:
    """Three pictures in COCO format."""
    return workshop.write_pool(tmp_path_factory.mktemp("pool"))


@pytest.fixture(scope="session")
def cached(pool: Pool, trunk: TinyTrunk, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A view of each picture and its augmented copy, plain ones first."""
    folder = tmp_path_factory.mktemp("views")
    plan = list(plan_views([pool], {"small_train": 2}, None, 0, seed=0))
    build_cache(folder, plan, trunk, lambda done, total: None)
    return [folder / f"{stem}.safetensors" for stem, _ in sorted(plan, key=lambda item: "+" in item[0])]


@pytest.fixture(scope="session")
def tiny_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> TextTokenizer:
    """The tokenizer of the tiny random model."""
    folder = tiny_random.write_tokenizer(tmp_path_factory.mktemp("tokenizer"))
    return TextTokenizer(folder, tiny_random.VOCABULARY, tiny_random.VOCABULARY + 1)


@pytest.fixture(scope="session")
def small_book(tmp_path_factory: pytest.TempPathFactory) -> NounBook:
    """A book of categories, common nouns and the nouns of a mini WordNet."""
    return NounBook(str(workshop.write_wordnet(tmp_path_factory.mktemp("wordnet"))), 10_000)


@pytest.fixture
def shop(tiny_tokenizer: TextTokenizer, small_book: NounBook, cached: list[Path], one_thread: None) -> Workshop:
    """Untrained, with cached views of the three pictures."""
    return workshop.build_shop(tiny_tokenizer, small_book, CachedViews(cached[:3]))


@pytest.fixture
def world(tmp_path: Path, trunk: TinyTrunk, tiny_tokenizer: TextTokenizer, one_thread: None, monkeypatch: pytest.MonkeyPatch) -> Path:
    """All that the recipe names, as files. The language model's cache would be filled from the network: the tiny random one is there instead."""
    tiny_tokenizer._tokenizer.save(str(tmp_path / "tokenizer.json"))
    workshop.write_pool(tmp_path / "pool")
    workshop.write_cutouts(tmp_path / "cutouts")
    workshop.write_wordnet(tmp_path / "wordnet")
    workshop.write_base(tmp_path / "base", trunk, (tmp_path / "tokenizer.json").read_bytes())
    language_model = tiny_random.build_model().vlm.language_model
    monkeypatch.setattr(door, "load_language_model", lambda name, dtype: (language_model.to(dtype), tmp_path))
    return workshop.write_recipe(tmp_path)
