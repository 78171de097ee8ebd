"""Fetch a picture from a URL without becoming somebody's way into the network behind the server (SSRF).

https only; the host must be allowed; its name is resolved once, every address must be public, and the connection goes to exactly the address that
was checked; redirects (three at most) pass the same checks; size and total time are bounded. Off unless `--allow-url-host` is given.
"""

from __future__ import annotations

import contextlib
import http.client
import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Callable, Sequence
from urllib.parse import urljoin, urlsplit

from lisaseg.apps.server.catalogue import ApiError

SECONDS, REDIRECTS, PORT = 5.0, 3, 443
REDIRECT = (301, 302, 303, 307, 308)
HEADERS = {"Accept": "image/*", "User-Agent": "lisaseg", "Accept-Encoding": "identity"}
# Networks through which an IPv6 address can mean an IPv4 one.
_CARRIERS = [(ipaddress.IPv6Network(net), shift) for net, shift in (("::ffff:0:0/96", 0), ("64:ff9b::/96", 0), ("2002::/16", 80), ("::/96", 0))]


def is_public(address: str) -> bool:
    """Whether an IP address belongs to the public internet, in whatever notation it comes."""
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(ip, ipaddress.IPv6Address):
        for network, shift in _CARRIERS:
            if ip in network:
                return is_public(str(ipaddress.IPv4Address((int(ip) >> shift) & 0xFFFFFFFF)))
        if ip.teredo is not None or ip in ipaddress.IPv6Network("64:ff9b:1::/48"):
            return False
    return ip.is_global and not ip.is_multicast


def fetch(
    url: str,
    hosts: Sequence[str],
    max_bytes: int,
    *,
    seconds: float = SECONDS,
    allowed: Callable[[str], bool] = is_public,
    connect: Callable[[str, str, int, float], http.client.HTTPConnection] | None = None,
) -> bytes:
    """The bytes behind `url`.

    Args:
        url: https://host/...
        hosts: host names that may be fetched from; "*" = every public one.
        max_bytes: more is refused.
        seconds: for everything together.
        allowed: decides about each address. connect: (address, host, port, seconds) -> connection. Both can be replaced by tests.

    Raises:
        ApiError: `url_not_allowed`, `url_fetch_failed`.
    """
    end = time.monotonic() + seconds
    for _ in range(REDIRECTS + 1):
        host, port, target = _split(url, hosts)
        address = _resolve(host, port, allowed)
        left = max(0.1, end - time.monotonic())
        connection = (connect or _connect)(address, host, port, left)
        headers = {"Host": host, **HEADERS}
        status, location, data = exchange(connection, "GET", target, headers, max_bytes, end)
        if status == 200:
            return data
        if status not in REDIRECT or not location:
            raise _failed(f"The URL answered with status {status}.")
        url = urljoin(url, location)
    raise _failed("The URL was redirected too often.")


def exchange(
    connection: http.client.HTTPConnection, method: str, target: str, headers: dict[str, str], max_bytes: int, end: float, body: bytes | None = None
) -> tuple[int, str, bytes]:
    """Send one request over a connection that stands, and close it.

    Args:
        max_bytes: more is refused. end: when all of it must be done (of `time.monotonic`).

    Returns:
        Status, `Location`, and the body of a 200; both may be empty.

    Raises:
        ApiError: `url_fetch_failed`.
    """
    alarm = threading.Timer(max(0.1, end - time.monotonic()), _hang_up, [connection.sock])  # a socket's own timeout starts anew with every byte
    alarm.start()
    try:
        connection.request(method, target, body, headers)
        response = connection.getresponse()
        data = _read(response, max_bytes, end) if response.status == 200 else b""
        return response.status, response.getheader("Location") or "", data
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise _failed() from error
    finally:
        alarm.cancel()
        connection.close()


def _split(url: str, hosts: Sequence[str]) -> tuple[str, int, str]:
    """Host, port and request target; ApiError if the URL is not one that may be fetched."""
    try:
        parts = urlsplit(url)
        host, port = (parts.hostname or "").rstrip("."), parts.port or PORT
    except ValueError as error:
        raise _refused("The URL is malformed.") from error
    if parts.scheme != "https" or not host or parts.username is not None or port != PORT:
        raise _refused("Only https URLs on the usual port and without a user name are fetched.")
    if "*" not in hosts and host.lower() not in {name.lower() for name in hosts}:
        raise _refused("The host of the URL is not on the list of this server.")
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    if not target.isascii() or any(c <= " " for c in target + host):
        raise _refused("The URL holds characters that must be percent-encoded.")
    return host, port, target


def _resolve(host: str, port: int, allowed: Callable[[str], bool]) -> str:
    """One address of the host; refused unless every address is allowed (a name that leads to several places may be a trap)."""
    try:
        found = [str(info[4][0]) for info in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
    except (OSError, UnicodeError) as error:
        raise _failed("The host of the URL is not known.") from error
    if not found or not all(allowed(address) for address in found):
        raise _refused("The URL leads into a network that is not public.")
    return found[0]


def _connect(address: str, host: str, port: int, seconds: float) -> http.client.HTTPConnection:
    """A TLS connection to `address` whose certificate must be that of `host`."""
    connection = http.client.HTTPSConnection(host, port, timeout=seconds)
    try:
        raw = socket.create_connection((address, port), timeout=seconds)
        connection.sock = ssl.create_default_context().wrap_socket(raw, server_hostname=host)
    except OSError as error:
        raise _failed() from error
    return connection


def _hang_up(connected: socket.socket) -> None:
    with contextlib.suppress(OSError):  # closed in between
        connected.shutdown(socket.SHUT_RDWR)


def _read(response: http.client.HTTPResponse, max_bytes: int, end: float) -> bytes:
    data = bytearray()
    while chunk := response.read1(64 * 1024):
        data += chunk
        if len(data) > max_bytes:
            raise _failed(f"The URL gives more than {max_bytes / 2**20:g} MiB.")
        if time.monotonic() > end:
            break
    if time.monotonic() > end or response.length:  # the alarm rang, or the host hung up
        raise _failed("The URL was too slow, or ended early.")
    return bytes(data)


def _refused(message: str) -> ApiError:
    return ApiError("url_not_allowed", message, param="image")


def _failed(message: str = "The URL could not be fetched.") -> ApiError:
    return ApiError("url_fetch_failed", message, param="image")
