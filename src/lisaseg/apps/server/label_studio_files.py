"""Pictures that lie in Label Studio itself (uploads, its local files), read with the access token of one of its users.

Off unless the address and a token of that Label Studio are given: `LABEL_STUDIO_URL` and `LABEL_STUDIO_API_KEY`, the names that its own SDK
knows, whose way this is (label_studio_sdk 2.0, `label_studio_tools/core/utils/io.py`; tokens: `tokens/client_ext.py`). The address was chosen by
whoever runs this server, so http and private networks are allowed there, and nowhere else. The token goes to exactly that scheme, host and port:
only paths of files below the address are asked for, and a redirect to anything else is an error.
"""

from __future__ import annotations

import http.client
import json
import time
from urllib.parse import quote, unquote, urlsplit

from lisaseg.apps.server.catalogue import ApiError
from lisaseg.apps.server.fetching import HEADERS, REDIRECT, REDIRECTS, exchange
from lisaseg.errors import UsageError

SECONDS = 10.0  # for a picture, a new access token included
PLACES = ("/data/", "/storage-data/")  # uploads and local files; files that it passes on from its storage
_PORTS = {"http": 80, "https": 443}
_KEPT = "/?&=%:+,;@!$'()*~-._"  # of a path and query; all else is percent-encoded


class LabelStudioFiles:
    """The files of one Label Studio.

    Args:
        url: where it is, `http://host:8080` or `https://host/path`.
        key: a personal access token (a JWT, exchanged for short-lived ones), or a legacy token.

    Raises:
        UsageError: the URL is none, or there is no key for it.
    """

    def __init__(self, url: str, key: str) -> None:
        origin, path, query = _split(url) or ("", "", "")
        if not origin or query:
            raise UsageError("LABEL_STUDIO_URL is not the address of a Label Studio.", next_step="Write it like http://localhost:8080.")
        if not key.isascii() or not key.isprintable() or not key or " " in key:
            raise UsageError(
                "LABEL_STUDIO_URL is given, but LABEL_STUDIO_API_KEY holds no access token.",
                next_step="Set it to a token from Label Studio's Account & Settings, or unset LABEL_STUDIO_URL.",
            )
        self.origin, self.base, self.key = origin, path.rstrip("/"), key
        self.lasting = key.startswith("eyJ") and key.count(".") == 2  # a JWT: not taken itself, but for new ones
        self.token = ""

    def owns(self, address: str) -> bool:
        """Whether an address of a task is a file there: a path as Label Studio writes it, or a whole URL with its scheme, host and port."""
        return self._target(address) is not None

    def fetch(self, address: str, max_bytes: int) -> bytes:
        """The bytes of a file.

        Raises:
            ApiError: `url_not_allowed`, `url_fetch_failed`.
        """
        end, target = time.monotonic() + SECONDS, self._target(address)
        if target is None:
            raise ApiError("url_not_allowed", param="tasks")
        hops, fresh = REDIRECTS, not self.token
        while True:
            status, location, data = self._get(target, max_bytes, end)
            if status == 200:
                return data
            if status == 401 and self.lasting and not fresh:  # the short-lived token has run out
                self.token, fresh = "", True
                continue
            if status not in REDIRECT:
                raise _failed(status)
            target, hops = self._target(location), hops - 1
            if target is None or hops < 0:
                raise _failed(status)

    def _target(self, address: str) -> str | None:
        """Path and query to ask for; None if the address is no file of this Label Studio."""
        if address.startswith("/") and not address.startswith("//"):
            path, _, query = address.partition("#")[0].partition("?")
        else:
            origin, path, query = _split(address) or ("", "", "")
            if origin != self.origin:
                return None
        path = path.removeprefix(self.base) if path.startswith(f"{self.base}/") else path
        plain = unquote(unquote(path))
        if not path.startswith(PLACES) or "\\" in plain or {".", ".."} & set(plain.split("/")):
            return None
        return quote(f"{self.base}{path}" + (f"?{query}" if query else ""), safe=_KEPT)

    def _get(self, target: str, max_bytes: int, end: float) -> tuple[int, str, bytes]:
        if self.lasting and not self.token:
            self.token = self._short_lived(end)
        scheme = f"Bearer {self.token}" if self.lasting else f"Token {self.key}"
        headers = {**HEADERS, "Accept": "*/*", "Authorization": scheme}  # it answers 406 to `image/*`
        return exchange(self._connect(end), "GET", target, headers, max_bytes, end)

    def _short_lived(self, end: float) -> str:
        body, kind = json.dumps({"refresh": self.key}).encode(), {"Content-Type": "application/json"}
        status, _, data = exchange(self._connect(end), "POST", f"{self.base}/api/token/refresh/", kind, 65_536, end, body)
        if status != 200:
            raise _failed(status)
        try:
            token = json.loads(data)["access"]
        except (ValueError, KeyError, TypeError):
            token = None
        if not isinstance(token, str) or not token.isascii() or not token.isprintable():
            raise _failed(0)
        return token

    def _connect(self, end: float) -> http.client.HTTPConnection:
        scheme, _, place = self.origin.partition("://")
        kind = http.client.HTTPSConnection if scheme == "https" else http.client.HTTPConnection
        connection = kind(place, timeout=max(0.1, end - time.monotonic()))
        try:
            connection.connect()
        except OSError as error:
            step = "Look whether it runs at LABEL_STUDIO_URL, as seen from this server."
            raise ApiError("url_fetch_failed", "Label Studio cannot be reached.", next_step=step, param="tasks") from error
        return connection


def _split(url: str) -> tuple[str, str, str] | None:
    """(scheme://host:port, path, query) of a http or https URL without a user; None for anything else."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port or _PORTS.get(parts.scheme, 0)
    except ValueError:
        return None
    if not port or not host or "@" in parts.netloc or not host.isascii() or any(c <= " " for c in host):
        return None
    return f"{parts.scheme}://{f'[{host}]' if ':' in host else host}:{port}", parts.path, parts.query


def _failed(status: int) -> ApiError:
    if status in (401, 403):
        message = f"Label Studio refuses {'the access token' if status == 401 else 'the picture to the holder of the access token'} ({status})."
        step = "Set LABEL_STUDIO_API_KEY to a token of a user who sees the picture."
    elif status in REDIRECT:
        message = "Label Studio sends on to another place, to which its access token must not go."
        step = "If that is its login page, give a token of a user who sees the project; pictures in a bucket cannot be read this way."
    else:
        message, step = f"Label Studio did not give the picture (status {status}).", "Look whether the picture is still there."
    return ApiError("url_fetch_failed", message, next_step=step, param="tasks")
