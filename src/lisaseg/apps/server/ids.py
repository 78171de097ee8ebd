"""Ids that carry a signature over kind and owner: one that existed and went away is told from one that never did without remembering it."""

from __future__ import annotations

import hashlib
import hmac
import secrets


class Ids:
    """Makes and checks ids. secret: random bytes of this server."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    def new(self, kind: str, owner: str) -> str:
        """An id that nobody can guess."""
        return self._signed(kind, owner, secrets.token_hex(16))

    def of_content(self, kind: str, owner: str, content: str) -> str:
        """The same id for the same content of the same owner; another owner cannot tell that it exists."""
        return self._signed(kind, owner, self._mac(f"content {owner} {content}")[:32])

    def issued(self, kind: str, owner: str, given: str) -> bool:
        """Whether `new` or `of_content` made this id for this owner."""
        payload = given.removeprefix(f"{kind}_")[:32]
        return hmac.compare_digest(given.encode(), self._signed(kind, owner, payload).encode())

    def _signed(self, kind: str, owner: str, payload: str) -> str:
        return f"{kind}_{payload}{self._mac(f'{kind} {owner} {payload}')[:12]}"

    def _mac(self, text: str) -> str:
        return hmac.new(self._secret, text.encode(), hashlib.sha256).hexdigest()
