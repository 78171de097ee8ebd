"""Pictures and sessions on disk: SQLite for what is known, one file a picture by the hash of its content.

All of it survives a restart. It is bounded: sessions by number, idle time and age, pictures by bytes and idle time; what was not used for longest
goes first.
The methods block and belong in one thread (`Storage.run`).
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import secrets
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock, Timeout

from lisaseg.apps.server.catalogue import ApiError
from lisaseg.apps.server.ids import Ids
from lisaseg.apps.server.settings import Limits
from lisaseg.errors import UsageError
from lisaseg.formats import write_aside

T = TypeVar("T")
_SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value BLOB) STRICT;
CREATE TABLE IF NOT EXISTS images (id TEXT PRIMARY KEY, owner TEXT NOT NULL, sha256 TEXT NOT NULL, facts TEXT NOT NULL, bytes INTEGER NOT NULL,
    created REAL NOT NULL, used REAL NOT NULL) STRICT;
CREATE INDEX IF NOT EXISTS images_sha256 ON images (sha256);
CREATE TABLE IF NOT EXISTS sessions (id TEXT PRIMARY KEY, owner TEXT NOT NULL, image_id TEXT NOT NULL REFERENCES images ON DELETE CASCADE,
    created REAL NOT NULL, used REAL NOT NULL) STRICT;
CREATE INDEX IF NOT EXISTS sessions_image ON sessions (image_id);
CREATE INDEX IF NOT EXISTS sessions_used ON sessions (used);
CREATE TABLE IF NOT EXISTS turns (session_id TEXT NOT NULL REFERENCES sessions ON DELETE CASCADE, n INTEGER NOT NULL, prompt TEXT NOT NULL,
    mode TEXT NOT NULL, raw_text TEXT NOT NULL, answer TEXT, PRIMARY KEY (session_id, n)) STRICT;
CREATE TABLE IF NOT EXISTS replies (session_id TEXT NOT NULL REFERENCES sessions ON DELETE CASCADE, name TEXT NOT NULL, reply TEXT NOT NULL,
    created REAL NOT NULL, PRIMARY KEY (session_id, name)) STRICT;
"""
KEPT_REPLIES = 20


@dataclass(frozen=True)
class StoredImage:
    """A picture on disk. facts: width, height, format, normalized, warnings."""

    id: str
    sha256: str
    path: Path
    bytes: int
    facts: dict[str, Any]
    created: float
    used: float


@dataclass(frozen=True)
class StoredTurn:
    """An answered turn; `answer` is None if the client brought it along."""

    prompt: str
    mode: str
    raw_text: str
    answer: dict[str, Any] | None


@dataclass(frozen=True)
class StoredSession:
    """A session with its picture and turns."""

    id: str
    created: float
    used: float
    image: StoredImage
    turns: tuple[StoredTurn, ...]


class Storage:
    """See the head of the file.

    Args:
        folder: private to one server; made if missing.
        limits: what may be kept.
        secret: signs the ids; replicas with the same one know each other's. None = a random one, kept in the folder.

    Raises:
        UsageError: the folder cannot be used, or another server uses it.
    """

    def __init__(self, folder: Path, limits: Limits, secret: bytes | None = None) -> None:
        self.folder, self.limits = folder, limits
        self.pictures = folder / "images"
        try:
            self.pictures.mkdir(parents=True, exist_ok=True)
            folder.chmod(0o700)
            self._lock = FileLock(folder / ".lock")
            self._lock.acquire(timeout=0)
            self._db = sqlite3.connect(folder / "state.sqlite3", isolation_level=None, check_same_thread=False)
            self._db.executescript("PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL; PRAGMA foreign_keys = ON;" + _SCHEMA)
        except Timeout:
            raise UsageError(f"{folder} is in use by another server.", next_step="Give each server its own --state folder.") from None
        except (OSError, sqlite3.Error) as error:
            next_step = "Give --state a folder that you may write to, or move the broken one away."
            raise UsageError(f"{folder} cannot hold the state of the server: {error}.", next_step=next_step) from error
        self._db.execute("INSERT OR IGNORE INTO meta VALUES ('secret', ?)", (secrets.token_bytes(32),))
        self._ids = Ids(secret or self._db.execute("SELECT value FROM meta WHERE name = 'secret'").fetchone()[0])
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="storage")
        self.sweep()

    async def run(self, do: Callable[..., T], *args: Any) -> T:
        """Call a method in the storage thread; a full or broken disk becomes an ApiError."""
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, lambda: do(*args))
        except (OSError, sqlite3.Error, UsageError) as error:
            raise ApiError("storage_full", "The server could not read or write its store.") from error

    def close(self) -> None:
        """Finish and let go of the folder."""
        self._thread.shutdown()
        self._db.close()
        self._lock.release()

    # Pictures

    def add_image(self, owner: str, data: bytes, facts: dict[str, Any]) -> StoredImage:
        """Store an uploaded file; the same bytes of the same owner give the same id."""
        sha256, now = hashlib.sha256(data).hexdigest(), time.time()
        image_id = self._ids.of_content("img", owner, sha256)
        path = self.pictures / sha256
        if not path.exists():
            write_aside(path, data)
        with self._transaction():
            self._db.execute(
                "INSERT INTO images VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (id) DO UPDATE SET used = excluded.used, facts = excluded.facts",
                (image_id, owner, sha256, json.dumps(facts), len(data), now, now),
            )
        self._make_room(keep=image_id)
        return self._image(image_id)

    def get_image(self, owner: str, image_id: str) -> StoredImage:
        """A picture of this owner, marked as used; ApiError `not_found` or `image_expired`."""
        row = self._db.execute("SELECT 1 FROM images WHERE id = ? AND owner = ?", (image_id, owner)).fetchone()
        if row is None:
            raise self._gone("img", owner, image_id, "image_expired", "image_id")
        self._db.execute("UPDATE images SET used = ? WHERE id = ?", (time.time(), image_id))
        return self._image(image_id)

    def delete_image(self, owner: str, image_id: str) -> None:
        """Delete a picture and its sessions."""
        self.get_image(owner, image_id)
        self._drop_images([image_id])

    def _image(self, image_id: str) -> StoredImage:
        row = self._db.execute("SELECT sha256, facts, bytes, created, used FROM images WHERE id = ?", (image_id,)).fetchone()
        return StoredImage(image_id, row[0], self.pictures / row[0], row[2], json.loads(row[1]), row[3], row[4])

    def _drop_images(self, ids: Sequence[str]) -> None:
        for image_id in ids:
            row = self._db.execute("SELECT sha256 FROM images WHERE id = ?", (image_id,)).fetchone()
            with self._transaction():
                self._db.execute("DELETE FROM images WHERE id = ?", (image_id,))
            if row and not self._db.execute("SELECT 1 FROM images WHERE sha256 = ?", (row[0],)).fetchone():
                (self.pictures / row[0]).unlink(missing_ok=True)

    def _make_room(self, keep: str = "") -> None:
        """Drop pictures until they fit: first those without a session, then the others, each from the one that was not used for longest."""
        while self.image_bytes() > self.limits.max_image_store_bytes:
            row = self._db.execute(
                "SELECT id FROM images WHERE id != ? ORDER BY EXISTS (SELECT 1 FROM sessions WHERE image_id = images.id), used LIMIT 1", (keep,)
            ).fetchone()
            if row is None:
                return
            self._drop_images([row[0]])

    # Sessions

    def add_session(self, owner: str, image_id: str, turns: Sequence[StoredTurn]) -> StoredSession:
        """Start a session; the one that was not used for longest makes room."""
        self.get_image(owner, image_id)
        session_id, now = self._ids.new("ses", owner), time.time()
        with self._transaction():
            self._db.execute("INSERT INTO sessions VALUES (?, ?, ?, ?, ?)", (session_id, owner, image_id, now, now))
            for n, turn in enumerate(turns):
                self._insert_turn(session_id, n, turn)
            self._db.execute(
                "DELETE FROM sessions WHERE id IN (SELECT id FROM sessions ORDER BY used DESC, created DESC LIMIT -1 OFFSET ?)",
                (self.limits.max_sessions,),
            )
        return self.get_session(owner, session_id)

    def get_session(self, owner: str, session_id: str) -> StoredSession:
        """A session of this owner, marked as used; ApiError `not_found` or `session_expired`."""
        now = time.time()
        row = self._db.execute("SELECT image_id, created, used FROM sessions WHERE id = ? AND owner = ?", (session_id, owner)).fetchone()
        if row is None or now - row[2] > self.limits.session_idle_seconds or now - row[1] > self.limits.session_max_seconds:
            raise self._gone("ses", owner, session_id, "session_expired", "session_id")
        with self._transaction():
            self._db.execute("UPDATE sessions SET used = ? WHERE id = ?", (now, session_id))
            self._db.execute("UPDATE images SET used = ? WHERE id = ?", (now, row[0]))
        return StoredSession(session_id, row[1], now, self._image(row[0]), self._turns(session_id))

    def delete_session(self, owner: str, session_id: str) -> None:
        """Delete a session; its picture stays until nothing needs it."""
        self.get_session(owner, session_id)
        self._db.execute("DELETE FROM sessions WHERE id = ?", (session_id,))

    def add_turn(self, owner: str, session_id: str, turn: StoredTurn, replace_last: bool = False, reply_name: str = "") -> None:
        """Append an answered turn, or put it in the place of the last one; with a name, its answer is kept as the reply to a repeat."""
        n = len(self.get_session(owner, session_id).turns) - int(replace_last)
        with self._transaction():
            self._insert_turn(session_id, n, turn)
            if reply_name:
                self._keep_reply(session_id, reply_name, turn.answer)

    def undo(self, owner: str, session_id: str, reply_name: str = "") -> tuple[StoredTurn, int]:
        """Remove the last turn; returns it and the number of turns left. ApiError `nothing_to_undo`."""
        turns = self.get_session(owner, session_id).turns
        if not turns:
            raise ApiError("nothing_to_undo")
        left = len(turns) - 1
        with self._transaction():
            self._db.execute("DELETE FROM turns WHERE session_id = ? AND n = ?", (session_id, left))
            if reply_name:
                self._keep_reply(session_id, reply_name, {"removed": vars(turns[-1]), "turns_left": left})
        return turns[-1], left

    def reply(self, owner: str, session_id: str, name: str) -> Any:
        """What a request with this idempotency key was answered, or None."""
        row = self._db.execute(
            "SELECT reply FROM replies JOIN sessions ON sessions.id = session_id WHERE session_id = ? AND owner = ? AND name = ?",
            (session_id, owner, name),
        ).fetchone()
        return json.loads(row[0]) if row else None

    def _keep_reply(self, session_id: str, name: str, reply: Any) -> None:
        self._db.execute("INSERT OR REPLACE INTO replies VALUES (?, ?, ?, ?)", (session_id, name, json.dumps(reply), time.time()))
        self._db.execute(
            "DELETE FROM replies WHERE session_id = ? AND name NOT IN (SELECT name FROM replies WHERE session_id = ? ORDER BY created DESC LIMIT ?)",
            (session_id, session_id, KEPT_REPLIES),
        )

    def _insert_turn(self, session_id: str, n: int, turn: StoredTurn) -> None:
        answer = None if turn.answer is None else json.dumps(turn.answer)
        self._db.execute("INSERT OR REPLACE INTO turns VALUES (?, ?, ?, ?, ?, ?)", (session_id, n, turn.prompt, turn.mode, turn.raw_text, answer))

    def _turns(self, session_id: str) -> tuple[StoredTurn, ...]:
        rows = self._db.execute("SELECT prompt, mode, raw_text, answer FROM turns WHERE session_id = ? ORDER BY n", (session_id,))
        return tuple(StoredTurn(prompt, mode, raw, None if answer is None else json.loads(answer)) for prompt, mode, raw, answer in rows)

    # Upkeep

    def sweep(self) -> None:
        """Drop what has expired, and files that no row knows (of a server that was killed)."""
        now, limits = time.time(), self.limits
        with self._transaction():
            self._db.execute(
                "DELETE FROM sessions WHERE used < ? OR created < ?", (now - limits.session_idle_seconds, now - limits.session_max_seconds)
            )
        old = self._db.execute(
            "SELECT id FROM images WHERE used < ? AND NOT EXISTS (SELECT 1 FROM sessions WHERE image_id = images.id)",
            (now - limits.image_idle_seconds,),
        ).fetchall()
        self._drop_images([row[0] for row in old])
        self._make_room()
        known = {row[0] for row in self._db.execute("SELECT sha256 FROM images")}
        for path in self.pictures.iterdir():
            if path.name not in known:
                path.unlink(missing_ok=True)

    def image_bytes(self) -> int:
        """Bytes of the pictures on disk, equal ones counted once."""
        return int(self._db.execute("SELECT coalesce(sum(b), 0) FROM (SELECT max(bytes) AS b FROM images GROUP BY sha256)").fetchone()[0])

    def session_count(self) -> int:
        """Number of sessions on disk."""
        return int(self._db.execute("SELECT count(*) FROM sessions").fetchone()[0])

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    def _gone(self, kind: str, owner: str, given: str, code: str, param: str) -> ApiError:
        return ApiError(code if self._ids.issued(kind, owner, given) else "not_found", param=param)
