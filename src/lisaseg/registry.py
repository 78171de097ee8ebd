"""Names for the parts that can be exchanged: a name leads to a class, and the class is imported only when it is asked for.

    DECODERS = Registry("mask_decoders", {"sam": "lisaseg.mask_decoders.sam:SamDecoder"})
    DECODERS.get("sam")                      # built in
    DECODERS.get("my_package.parts:Mine")    # any class on the Python path, without registration
    DECODERS.register("mine", "my_package.parts:Mine")

A package may also announce parts under the entry-point group `lisaseg.<kind>`; then its users only install it:

    [project.entry-points."lisaseg.mask_decoders"]
    mine = "my_package.parts:Mine"
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from functools import reduce
from importlib import import_module, metadata
from typing import Any

from lisaseg.errors import UsageError

_TARGET = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")


class Registry:
    """Names of one kind of part, and where their classes live.

    Args:
        kind: what the entries are, snake_case plural ("mask_decoders"); also the end of the entry-point group `lisaseg.<kind>`.
        entries: name -> "package.module:Class". Nothing is imported before `get`.

    On equal names, entries given here or by `register` win over entry points: installing a package cannot change what a built-in name means.
    """

    def __init__(self, kind: str, entries: Mapping[str, str] | None = None) -> None:
        self.kind = kind
        self._entries: dict[str, str] = {}
        self._announced: dict[str, str] | None = None  # read when first needed: it looks through all installed packages
        for name, target in (entries or {}).items():
            self.register(name, target)

    def register(self, name: str, target: str) -> None:
        """Add `name` for "package.module:Class".

        Raises:
            UsageError: the name is taken by another target, or name or target has the wrong form.
        """
        if not name or ":" in name or name != name.strip():
            raise UsageError(f"{self.kind}: {name!r} cannot be a name.", next_step="Use a short word without `:` and outer spaces.")
        if not _TARGET.fullmatch(target):
            raise UsageError(f"{self.kind} {name!r}: {target!r} is not a path to a class.", next_step="Write it as package.module:Class.")
        if self._entries.get(name, target) != target:
            raise UsageError(f"{self.kind} {name!r} is already {self._entries[name]}.", next_step="Register your class under another name.")
        self._entries[name] = target

    def names(self) -> tuple[str, ...]:
        """All known names, sorted; entry points of installed packages included."""
        return tuple(sorted(self._all()))

    def __contains__(self, name: object) -> bool:
        return name in self._all()

    def get(self, name: str) -> Any:
        """The class (or function) behind a name or behind "package.module:Class".

        Raises:
            UsageError: the name is unknown, or the path leads nowhere; the message lists the known names, the most similar first.
        """
        if ":" in name:
            return self._resolve(name, name)
        target = self._entries.get(name) or self._all().get(name)
        if target is None:
            known = ", ".join(self._by_similarity(name)) or "none"
            raise UsageError(
                f"{self.kind}: {name!r} is not known. Known are: {known}.",
                next_step="Take one of these, or name a class of your own as package.module:Class.",
            )
        return self._resolve(name, target)

    def _all(self) -> dict[str, str]:
        if self._announced is None:
            points = metadata.entry_points(group=f"lisaseg.{self.kind}")
            self._announced = {point.name: point.value.partition("[")[0].replace(" ", "") for point in points}  # "a.b:C [extra]" is legal there
        return {**self._announced, **self._entries}

    def _by_similarity(self, name: str) -> list[str]:
        known = {known.casefold(): known for known in self.names()}
        close = [known[match] for match in difflib.get_close_matches(name.casefold(), known, n=3, cutoff=0.5)]
        return close + [other for other in self.names() if other not in close]

    def _resolve(self, name: str, target: str) -> Any:
        where = f"{self.kind} {name!r}" if name == target else f"{self.kind} {name!r} ({target})"
        if not _TARGET.fullmatch(target):
            raise UsageError(f"{where} is not a path to a class.", next_step="Write it as package.module:Class.")
        module_name, _, attribute = target.partition(":")
        try:
            module = import_module(module_name)
        except ModuleNotFoundError as error:
            missing = error.name or module_name
            if module_name == missing or module_name.startswith(f"{missing}."):
                next_step = "Check the spelling, and that the package is installed or its folder is on PYTHONPATH."
            else:
                next_step = f"Install what provides {missing!r}."
            raise UsageError(f"{where}: there is no module {missing!r}.", next_step=next_step) from error
        except ImportError as error:
            raise UsageError(f"{where}: importing {module_name} failed: {error}.", next_step="Mend that import, then try again.") from error
        try:
            return reduce(getattr, attribute.split("."), module)
        except AttributeError as error:
            public = [known for known in vars(module) if not known.startswith("_")]
            near = difflib.get_close_matches(attribute, public, n=1)
            hint = f"Did you mean {module_name}:{near[0]}?" if near else f"Name something that {module_name} defines."
            raise UsageError(f"{where}: module {module_name} has no {attribute!r}.", next_step=hint) from error
