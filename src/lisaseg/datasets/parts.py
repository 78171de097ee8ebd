"""Objects and their parts in COCO's format: categories "object" and "object:part"."""

from __future__ import annotations

from lisaseg.datasets.coco import CocoInstances


def _plain(name: str) -> str:
    return name.split("_(")[0].replace("_", " ").strip()


class Parts(CocoInstances):
    """Parts of a category's instances are one target: "car wheel" is every labelled wheel of every labelled car.

    A part's text is "{object} {part}", its rephrasing "{part} of the {object}": templates put the article in front.
    """

    def texts(self, category: str) -> tuple[str, ...]:
        """Texts for "object" or "object:part"; what follows "_(" is dropped."""
        thing, _, part = category.strip().partition(":")
        thing, part = _plain(thing), _plain(part)
        return (f"{thing} {part}", f"{part} of the {thing}") if part else (thing,)
