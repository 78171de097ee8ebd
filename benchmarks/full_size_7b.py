"""A full-size LISA-7B on this machine: write it with random weights in the public layout, load it, ask one question, and say what that took.

    python benchmarks/full_size_7b.py --folder /tmp/lisa-7b                       16.3 GB of disk; bfloat16 wants about 18 GB of memory
    python benchmarks/full_size_7b.py --folder /tmp/lisa-7b --quantize 4bit       about 9 GB
    python benchmarks/full_size_7b.py --folder /tmp/lisa-7b --device-map disk     about 4 GB, and 14 GB of disk more

The weights mean nothing and the answer is noise, but every tensor has its size, name, file and type, so time and memory are those of the real one.
The folder is deleted at the end. If the machine runs short of memory, the script gives up before the system does.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from lisaseg import load
from lisaseg.errors import LisaSegError
from lisaseg.formats import write_aside
from lisaseg.model.memory import CLIP_L14, PUBLIC, Setting, available_bytes, bytes_of, empty_public
from lisaseg.model.published import published_key
from lisaseg.model.verify import sample_picture

NAME = "LISA-7B"
SHARDS = 12  # the hub's three hold 10 GB each; a shard is held in memory while it is written
ADDED = {"<im_patch>": 32000, "<im_start>": 32001, "<im_end>": 32002, "[SEG]": 32003}
PIECES = 32000
MIN_FREE = 1_500_000_000
QUESTION = "the red disc"


class Watch(threading.Thread):
    """Samples this process's own memory (not the files that it has mapped), and ends it if the machine runs short."""

    def __init__(self, folder: Path | None) -> None:
        super().__init__(daemon=True)
        self.folder, self.peaks, self.phase = folder, dict[str, float](), "start"  # folder: what to delete then, or None

    def run(self) -> None:
        while True:
            self.peaks[self.phase] = max(self.peaks.get(self.phase, 0.0), own_memory())
            free = available_bytes(torch.device("cpu"))
            if free is not None and free < MIN_FREE:
                print(f"gave up: {free / 1e9:.1f} GB of memory left (in phase {self.phase}, own memory {own_memory():.1f} GB)", flush=True)
                if self.folder is not None:
                    shutil.rmtree(self.folder, ignore_errors=True)
                os._exit(3)
            time.sleep(0.05)


def own_memory() -> float:
    """Anonymous resident memory of this process in GB; 0 where the system does not say."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) * 1024 / 1e9 for line in lines if line.startswith("RssAnon")), 0.0)


class Noise:
    """Small random numbers of any shape, cut from one pool: seven billion new ones would take minutes."""

    def __init__(self, seed: int = 0) -> None:
        self.pool = torch.randn(1 << 25, generator=torch.Generator().manual_seed(seed)).mul_(0.02)
        self.at = 0

    def of(self, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        out = torch.empty(shape, dtype=dtype)
        flat, done = out.view(-1), 0
        while done < len(flat):
            n = min(len(flat) - done, len(self.pool) - self.at)
            flat[done : done + n] = self.pool[self.at : self.at + n]
            done, self.at = done + n, (self.at + n) % len(self.pool)
        return out + 1 if len(shape) == 1 else out  # vectors are norms' weights, mostly


def public_tensors() -> Iterator[tuple[str, torch.Size, torch.dtype]]:
    """(key, shape, stored dtype) of every tensor of the public checkpoint, and nothing twice."""
    seen: set[str] = set()
    for name, p in empty_public(NAME).state_dict(keep_vars=True).items():
        key = published_key(name)
        if key is not None and key not in seen:
            seen.add(key)
            yield key, p.shape, torch.bfloat16 if name.startswith("vlm.") else torch.float32


def write_checkpoint(folder: Path, form: str) -> int:
    """Write weights shard by shard, index, config, tokenizer and tower; returns bytes."""
    folder.mkdir(parents=True)
    noise, tensors = Noise(), list(public_tensors())
    total, places = sum(shape.numel() * dtype.itemsize for _, shape, dtype in tensors), {}
    stem = ("pytorch_model", "bin") if form == "bin" else ("model", "safetensors")
    files = [f"{stem[0]}-{k + 1:05d}-of-{SHARDS:05d}.{stem[1]}" for k in range(SHARDS)]
    shard: dict[str, Tensor] = {}
    held = k = 0
    for i, (key, shape, dtype) in enumerate(tensors):
        shard[key], places[key] = noise.of(shape, dtype), files[k]
        held += shape.numel() * dtype.itemsize
        if held * SHARDS >= total * (k + 1) or i == len(tensors) - 1:
            if form == "bin":
                torch.save(shard, folder / files[k])
            else:
                save_file(shard, folder / files[k], metadata={"format": "pt"})
            shard, k = {}, k + 1
    (folder / f"{'.'.join(stem)}.index.json").write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": places}))
    (folder / "config.json").write_text(json.dumps(PUBLIC[NAME] | {"vision_tower": "./clip", "torch_dtype": "bfloat16"}, indent=1))
    (folder / "added_tokens.json").write_text(json.dumps(ADDED))
    write_tokenizer(folder / "tokenizer.model")
    write_tower(folder / "clip")
    return total


def write_tokenizer(path: Path) -> None:
    """A sentencepiece model of 32 000 pieces: those of the tests' small one, and filling."""
    from sentencepiece import sentencepiece_model_pb2

    model = sentencepiece_model_pb2.ModelProto()
    model.ParseFromString((Path(__file__).parents[1] / "tests" / "golden" / "tokens_a" / "tokenizer.model").read_bytes())
    for k in range(len(model.pieces), PIECES):
        model.pieces.add(piece=f"\u2581filling{k}", score=-1e4 - k)
    path.write_bytes(model.SerializeToString())


def write_tower(folder: Path) -> None:
    from transformers import CLIPVisionConfig, CLIPVisionModel

    CLIPVisionModel(CLIPVisionConfig(**CLIP_L14)).save_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="a new folder on a disk with 20 GB free")
    parser.add_argument("--form", choices=["bin", "safetensors"], default="bin", help="of the weight files")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--quantize", choices=["8bit", "4bit"])
    parser.add_argument("--device-map", choices=["auto", "disk"], help="disk: the whole language model; runs in 4 GB, slowly")
    parser.add_argument("--once", action="store_true", help="ask one question instead of two about the same picture")
    parser.add_argument("--tokens", type=int, default=8, help="length of the answer")
    parser.add_argument("--keep", action="store_true", help="do not delete the folder; it is used again if it is there")
    parser.add_argument("--out", type=Path, help="write the numbers here as JSON")
    args = parser.parse_args()
    if args.folder.exists() and not args.keep:
        parser.error(f"{args.folder} exists; it would be deleted at the end")
    watch = Watch(None if args.keep else args.folder)
    watch.start()
    try:
        result = measure(args, watch)
    except LisaSegError as error:
        raise SystemExit(f"error: {error}") from None
    finally:
        if not args.keep:
            shutil.rmtree(args.folder, ignore_errors=True)
    print(json.dumps(result, indent=1))
    if args.out is not None:
        write_aside(args.out, (json.dumps(result, indent=1) + "\n").encode())


def measure(args: argparse.Namespace, watch: Watch) -> dict[str, Any]:
    """Write, load, ask; JSON-ready."""
    start = time.perf_counter()
    watch.phase = "write"
    if not args.folder.exists():
        write_checkpoint(args.folder, args.form)
    wrote = time.perf_counter()
    print(f"wrote {args.folder} in {wrote - start:.0f} s", flush=True)
    watch.phase = "load"
    spread = {"": "disk"} if args.device_map == "disk" else args.device_map
    model = load(args.folder, device=args.device, dtype=args.dtype, quantize=args.quantize, device_map=spread, offline=True)
    loaded = time.perf_counter()
    resident = own_memory()
    print(f"loaded in {loaded - wrote:.0f} s, {resident:.2f} GB", flush=True)
    watch.phase = "ask"
    cuda = torch.device(args.device).type == "cuda"
    if cuda:
        weights_on_gpu = torch.cuda.memory_allocated() / 1e9
    answer = model.ask(sample_picture(), QUESTION, mode="segment", max_new_tokens=args.tokens)
    asked = time.perf_counter()
    again = answer if args.once else model.ask(sample_picture(), QUESTION, mode="segment", max_new_tokens=args.tokens)  # the picture is remembered
    done = time.perf_counter()
    foreseen = sum(bytes_of(empty_public(NAME), Setting(getattr(torch, args.dtype), args.quantize)).values()) / 1e9
    shown = " ".join(f"--{k} {getattr(args, k.replace('-', '_'))}" for k in ("form", "device", "dtype", "quantize", "device-map")
                     if getattr(args, k.replace("-", "_")))  # fmt: skip
    result: dict[str, Any] = {
        "command": f"python benchmarks/full_size_7b.py --folder FOLDER {shown}",
        "machine": {"platform": platform.platform(), "cores": os.cpu_count(), "threads": torch.get_num_threads(), "torch": str(torch.__version__),
                    "cuda": torch.cuda.get_device_name() if cuda else None},
        "write_s": round(wrote - start, 1), "load_s": round(loaded - wrote, 1), "first_ask_s": round(asked - loaded, 1),
        "stages_s": {stage: round(ms / 1e3, 2) for stage, ms in answer.timings_ms.items()},
        "second_ask_s": None if args.once else round(done - asked, 1),
        "second_stages_s": None if args.once else {stage: round(ms / 1e3, 2) for stage, ms in again.timings_ms.items()},
        "tokens": {**answer.usage, "generated_twice": "the answer held no [SEG] and was asked for again, opened with It is [SEG]"},
        "masks": len(answer.masks), "weights_foreseen_gb": round(foreseen, 2), "memory_after_load_gb": round(resident, 2),
        "memory_peak_gb": {phase: round(peak, 2) for phase, peak in watch.peaks.items()},
    }  # fmt: skip
    if cuda:
        result["gpu"] = {"weights_gb": round(weights_on_gpu, 2), "peak_gb": round(torch.cuda.max_memory_allocated() / 1e9, 2)}
    return result


if __name__ == "__main__":
    main()
