"""Download one file whose size and sha256 are known beforehand: resumable, retried, checked.

The file grows as `<file>.part` beside its target and is renamed when its sha256 is right. `<file>.part.json` keeps the server's ETag (or date),
so that a changed file starts anew (`If-Range`) instead of being glued to the old half.
"""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import os
import ssl
import time
from collections.abc import Callable, Mapping
from email.message import Message
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.parse import unquote, urlsplit
from urllib.request import HTTPSHandler, OpenerDirector, ProxyHandler, Request, build_opener

from lisaseg.errors import ModelLoadError

log = logging.getLogger(__name__)

Progress = Callable[[int, int | None], None]

_CHUNK = 1 << 18
_TELL_EVERY = 1 << 20  # bytes between two calls of `progress`
_STALL_SECONDS = 30.0  # a connection that sends nothing for this long is dead: drop it and resume
_TRANSIENT = {408, 416, 425, 429, 500, 502, 503, 504}  # 416: our part does not fit the file, it is dropped and asked for anew


class RefusedError(Exception):
    """An address that does not give the file to us; another way (pip with its credentials) may get it."""


def sha256_of(path: Path) -> str:
    """sha256 of a file, lower-case hex, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def matches(path: Path, size: int, sha256: str) -> bool:
    """Whether `path` is a file of exactly `size` bytes with this sha256."""
    return path.is_file() and path.stat().st_size == size and sha256_of(path) == sha256


def make_opener(settings: Mapping[str, str]) -> OpenerDirector:
    """An HTTP client with pip's `proxy` and `cert` (see `pip_settings`), else the environment's proxies and the system's certificates."""
    context = ssl.create_default_context()
    for bundle in (settings.get("cert"), os.environ.get("REQUESTS_CA_BUNDLE"), _certifi()):
        if bundle and Path(bundle).exists():
            context.load_verify_locations(**{"capath" if Path(bundle).is_dir() else "cafile": bundle})
    proxy = settings.get("proxy")
    return build_opener(ProxyHandler({"http": proxy, "https": proxy} if proxy else None), HTTPSHandler(context=context))


def _certifi() -> str | None:
    # Some Pythons come without any certificates; pip trusts this list too.
    try:
        import certifi
    except ImportError:
        return None
    return certifi.where()


def download(
    url: str,
    target: Path,
    *,
    size: int,
    sha256: str,
    progress: Progress | None = None,
    opener: OpenerDirector | None = None,
    attempts: int = 5,
    pause: float = 1.0,
) -> None:
    """Fetch `url` to `target` through `<target>.part`, going on where an earlier call stopped.

    Args:
        url: http or https.
        target: where the checked file is put, by a rename.
        size: of the right file, in bytes; a longer answer is cut off at once.
        sha256: of the right file, lower-case hex.
        progress: called with (bytes so far, bytes in all).
        opener: see `make_opener`.
        attempts: how many times in a row nothing may come before it gives up.
        pause: seconds before the second attempt; doubles each time.

    Raises:
        RefusedError: the server answers 4xx or a file of another size, or its certificate is not trusted.
        ModelLoadError: the sha256 is wrong (the file is removed), or the connection broke too often (the part is kept).
    """
    part = target.with_name(target.name + ".part")
    for again in (False, True):
        resumed = part.is_file() and part.stat().st_size > 0
        _transfer(url, part, size, progress, opener or make_opener({}), attempts, pause)
        got = sha256_of(part)
        if got == sha256:
            part.replace(target)
            _forget(part)
            return
        _forget(part)
        if again or not resumed:  # an old part may have been bad, so a resumed file gets one fresh start
            break
        log.warning("%s: the resumed file has a wrong sha256; fetching it from the start.", target.name)
    raise ModelLoadError(
        f"{target.name} from {_shown(url)} is not the pinned file: sha256 is {got}, expected {sha256}. It was removed.",
        next_step="Pull again; if that repeats, this address serves another file.",
        code="wrong_hash",
    )


def _transfer(url: str, part: Path, size: int, progress: Progress | None, opener: OpenerDirector, attempts: int, pause: float) -> None:
    failures = 0
    while True:
        before = part.stat().st_size if part.is_file() else 0
        try:
            return _receive(url, part, size, progress, opener)
        except HTTPError as error:
            error.close()
            if error.code not in _TRANSIENT:
                raise RefusedError(f"{_shown(url)} answered {error.code} {error.reason}") from error
            if error.code == 416:
                _forget(part)
            reason: Exception = error
        except (URLError, HTTPException, TimeoutError, ConnectionError, ssl.SSLError) as error:
            if isinstance(error, URLError) and isinstance(error.reason, ssl.SSLError):
                raise RefusedError(f"{_shown(url)}: {error.reason}") from error
            reason = error
        now = part.stat().st_size if part.is_file() else 0
        failures = 1 if now > before else failures + 1  # a slow, often broken line that moves on is not a failure
        if failures >= attempts:
            raise ModelLoadError(
                f"The download of {part.stem} broke {failures} times in a row at {now} of {size} bytes: {reason}.",
                next_step="Pull again when the network is better: it goes on where it stopped.",
                code="download_failed",
            ) from reason
        log.info("%s: %s; attempt %d of %d follows.", part.stem, reason, failures + 1, attempts)
        time.sleep(pause * 2 ** (failures - 1))


def _receive(url: str, part: Path, size: int, progress: Progress | None, opener: OpenerDirector) -> None:
    have = part.stat().st_size if part.is_file() else 0
    if have > size:
        _forget(part)
        have = 0
    if have == size:
        return
    headers = {"User-Agent": "lisaseg", "Accept-Encoding": "identity"}
    if have:
        headers |= {"Range": f"bytes={have}-"} | _if_range(part, url)
    with opener.open(_request(url, headers), timeout=_STALL_SECONDS) as response:
        done = _start(response.status, response.headers, have, size)
        _note(part, url, response.headers)
        told = -_TELL_EVERY
        with part.open("r+b" if done else "wb") as file:
            file.seek(done)
            while chunk := response.read1(_CHUNK):
                done += len(chunk)
                if done > size:
                    break
                file.write(chunk)
                if progress is not None and (done - told >= _TELL_EVERY or done == size):
                    told = done
                    progress(done, size)
    if done > size:
        _forget(part)
        raise RefusedError(f"{_shown(url)} sends more than the {size} bytes of the pinned file")
    if done < size:
        raise ConnectionError(f"the connection closed after {done} of {size} bytes")


def _request(url: str, headers: dict[str, str]) -> Request:
    parts = urlsplit(url)
    user, _, host = parts.netloc.rpartition("@")
    request = Request(parts._replace(netloc=host).geturl(), headers=headers)
    if user:  # urllib would look the whole "user:password@host" up; unredirected: another host must not see the password
        request.add_unredirected_header("Authorization", "Basic " + base64.b64encode(unquote(user).encode()).decode())
    return request


def _start(status: int, headers: Message, have: int, size: int) -> int:
    """Offset of the first byte of an answer: `have` if the server goes on there, 0 if it sends everything anew."""
    if status == 206:
        unit, _, rest = headers.get("Content-Range", "").partition(" ")
        span, _, total = rest.partition("/")
        if unit != "bytes" or span.partition("-")[0] != str(have) or total not in {str(size), "*"}:
            raise RefusedError(f"the answer to a request from byte {have} of {size} has Content-Range {headers.get('Content-Range')!r}")
        return have
    length = headers.get("Content-Length")
    if length is not None and length != str(size):
        raise RefusedError(f"the server sends a file of {length} bytes, the pinned one has {size}")
    return 0


def _forget(part: Path) -> None:
    drop(part)
    drop(_notes_of(part))


def _notes_of(part: Path) -> Path:
    return part.with_name(part.name + ".json")


def _note(part: Path, url: str, headers: Message) -> None:
    tag = headers.get("ETag") or ""
    validator = tag if tag and not tag.startswith("W/") else headers.get("Last-Modified", "")  # RFC 9110: no weak tags in If-Range
    _notes_of(part).write_text(json.dumps({"url": _shown(url), "validator": validator}), "utf-8")


def _if_range(part: Path, url: str) -> dict[str, str]:
    # Another mirror has other tags for the same bytes: then only the sha256 at the end decides.
    try:
        notes = json.loads(_notes_of(part).read_text("utf-8"))
        return {"If-Range": notes["validator"]} if notes["url"] == _shown(url) and notes["validator"] else {}
    except (OSError, ValueError, LookupError, TypeError):
        return {}


def _shown(url: str) -> str:
    """The address without credentials and query, for messages and notes."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def drop(path: Path) -> None:
    """Remove a file if it is there."""
    path.unlink(missing_ok=True)
