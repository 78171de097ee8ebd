"""Doors for other people's tools: each is closed until `--integrations` names it; then its routes stand beside the others.

They translate and nothing else: who comes in, how much and how fast is decided where it is decided for everybody. The one thing that they add is
where a tool puts the key, if it cannot send `Authorization: Bearer KEY`.
"""

from __future__ import annotations

import base64
import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from starlette.requests import Request

    from lisaseg.apps.server.service import Service
    from lisaseg.apps.server.storage import StoredImage
    from lisaseg.types import Mode


def basic_password(headers: Mapping[str, str]) -> str:
    """The password of `Authorization: Basic`; the user may have any name."""
    scheme, _, value = headers.get("authorization", "").partition(" ")
    try:
        pair = base64.b64decode(value.strip(), validate=True).decode("utf-8") if scheme.lower() == "basic" else ""
    except ValueError:
        return ""
    return pair.partition(":")[2]


def token_header(headers: Mapping[str, str]) -> str:
    """The header `Token`."""
    return headers.get("token", "").strip()


def no_other(headers: Mapping[str, str]) -> str:
    """The tool sends a bearer key."""
    return ""


@dataclass(frozen=True)
class Integration:
    """One tool.

    Attributes:
        module: in `routes`; has `router`, and in `REQUESTS` the models of its bodies for the OpenAPI document.
        prefix: of all its paths.
        other_key: headers (lower case) -> the key that came another way than as a bearer, or "".
    """

    module: str
    prefix: str
    other_key: Callable[[Mapping[str, str]], str] = no_other

    def load(self) -> Any:
        """The module with the routes."""
        return importlib.import_module(f"lisaseg.apps.server.routes.{self.module}")


IntegrationName = Literal["label-studio", "x-anylabeling", "mcp"]  # the names of INTEGRATIONS, for the contract; a test holds the two together
INTEGRATIONS = {
    "label-studio": Integration("label_studio", "/integrations/label-studio/", basic_password),
    "x-anylabeling": Integration("x_anylabeling", "/integrations/x-anylabeling/", token_header),
    "mcp": Integration("mcp", "/mcp/"),
}


def names_in(text: str) -> tuple[str, ...]:
    """ "a, b" -> ("a", "b"), each once."""
    return tuple(dict.fromkeys(name for part in text.split(",") if (name := part.strip().lower())))


async def ask(service: Service, request: Request, owner: str, stored: StoredImage, prompt: str, mode: Mode) -> dict[str, Any]:
    """One question without history, in the usual way of a question; the answer with masks as RLE. ApiError."""
    from lisaseg.apps.server.schemas import Ask

    job = service.job(owner, stored, Ask(mode=mode), prompt, mode, [])
    return await service.begin(job, stored).answer(request)
