"""`/docs` and `/docs/errors`: the OpenAPI document and the error catalogue as plain HTML, without a script."""

from __future__ import annotations

import html
import re
from typing import Any

from lisaseg.apps.server.catalogue import CATALOGUE

STYLE = """:root { color-scheme: light dark }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
code { font: 14px/1.4 ui-monospace, monospace }
summary { cursor: pointer; padding: .3rem 0 }
td, th { text-align: left; vertical-align: top; padding: .3rem .8rem .3rem 0 }
b.method { display: inline-block; min-width: 4.5rem }
"""


def document(title: str, body: str) -> str:
    """A page around `body` (HTML)."""
    head = f"<meta charset=utf-8><meta name=viewport content='width=device-width'><title>{title}</title><link rel=stylesheet href=/docs/style.css>"
    return f"<!doctype html><html lang=en><head>{head}</head><body><h1>{title}</h1>{body}</body></html>"


def errors_page() -> str:
    """The catalogue as a table; each code is an anchor."""
    head = "".join(f"<th>{title}</th>" for title in ("code", "status", "what it means", "what to do"))
    rows = ""
    for code, kind in CATALOGUE.items():
        cells = (f"<code>{code}</code>", str(kind.status), html.escape(kind.meaning), html.escape(kind.next_step))
        rows += f"<tr id='{code}'>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"
    return document("Error codes", f"<p><a href='/docs'>API</a></p><table><tr>{head}</tr>{rows}</table>")


def api_page(openapi: dict[str, Any]) -> str:
    """The OpenAPI document for people."""
    parts = ["<p>The contract: <a href='/openapi.json'>/openapi.json</a>. <a href='/docs/errors'>Error codes</a>.</p><h2>Requests</h2>"]
    for path, methods in openapi["paths"].items():
        parts += [_operation(path, method, operation) for method, operation in methods.items()]
    parts.append("<h2>Objects</h2>")
    for name, schema in sorted(openapi["components"]["schemas"].items()):
        rows = "".join(_field(field, value, field in schema.get("required", ())) for field, value in schema.get("properties", {}).items())
        about = html.escape(schema.get("description", ""))
        parts.append(f"<details id='{name}'><summary><code>{name}</code></summary><p>{about}</p><table>{rows}</table></details>")
    return document("lisaseg API", "".join(parts))


def _operation(path: str, method: str, operation: dict[str, Any]) -> str:
    responses = operation.get("responses", {})
    lines = [f"<p>Body: {_names(operation['requestBody'])}.</p>"] if "requestBody" in operation else []
    lines.append(f"<p>Returns {_names(responses.get('200') or responses.get('201') or {}) or 'nothing'}.</p>")
    title = f"<b class=method>{method.upper()}</b> <code>{html.escape(path)}</code> {html.escape(operation.get('summary', ''))}"
    return f"<details><summary>{title}</summary>{''.join(lines)}</details>"


def _field(name: str, value: dict[str, Any], required: bool) -> str:
    default = f" Default: <code>{html.escape(str(value['default']))}</code>." if "default" in value else ""
    about = html.escape(value.get("description", "")) + default
    title = f"<code>{name}</code>{'' if required else ' (optional)'}"
    return f"<tr><td>{title}</td><td>{_names(value) or value.get('type', '')}</td><td>{about}</td></tr>"


def _names(value: Any) -> str:
    """Links to the objects that a piece of the document names, or its content types."""
    found = dict.fromkeys(re.findall(r"#/components/schemas/([A-Za-z0-9_-]+)", str(value)))
    return ", ".join(f"<a href='#{name}'>{name}</a>" for name in found) or ", ".join(html.escape(kind) for kind in value.get("content", {}))
