"""The one entrance: `load` a model, `ask` it, `chat` with it. Command line, service, page and evaluation all come through here.

A picture is opened and encoded once and kept (a few of them, by content), so a second question about it costs no encoding; masks are decoded only for
`[SEG]` tokens that were generated in this turn.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from lisaseg import prompts
from lisaseg.chat import Conversation, spans
from lisaseg.errors import InstructionError, UsageError
from lisaseg.imaging import ImageSource, Picture, open_image
from lisaseg.model.answering import Answering, Encoded, Job
from lisaseg.model.lisa import LisaModel
from lisaseg.model.memory import Setting, within_memory
from lisaseg.model.remembering import PictureMemory
from lisaseg.startup import collector_paused
from lisaseg.tokenization import Tokenizer, clean_instruction
from lisaseg.types import MODES, PLUS_MODES, Answer, Mode, Segment, Status, Turn
from lisaseg.vlms.decoding import Generation

DEFAULT_NEW_TOKENS = 64
REMEMBERED_PICTURES = 8


def load(
    name: str | Path = "lisa-tiny",
    *,
    device: str = "auto",
    dtype: str = "auto",
    quantize: str | None = None,
    device_map: str | Mapping[str, str | int] | None = None,
    offline: bool = False,
) -> Predictor:
    """Load a model completely, or raise.

    Args:
        name: preset ("lisa-tiny"), folder of a model, or hub id of a published checkpoint ("xinlai/LISA-7B-v1").
        device: "auto" (cuda, mps, else cpu) or a torch device.
        dtype: "auto" (bfloat16 where the hardware computes in it, else float32), "float32", "bfloat16", "float16". Prompts and mask decoder stay in
            float32.
        quantize: None, "8bit" or "4bit" (bitsandbytes): the layers of a published checkpoint's language model; all else keeps its precision.
        device_map: None; "auto" spreads a published checkpoint's language model over the GPUs, then memory, then disk; or a table {module: device}.
        offline: open no network connection.

    Raises:
        ModelLoadError: not found, not fetched, incomplete; names the file or tensor.
        UsageError: unknown name or option.
    """
    from lisaseg.model.assemble import load_model, pick_device, pick_dtype
    from lisaseg.model.quantize import check_quantize

    check_quantize(quantize)
    where = pick_device(device)
    setting = Setting(pick_dtype(dtype, where), quantize)
    with collector_paused():
        model, tokenizer = load_model(name, setting.dtype, offline, where, quantize, device_map)
    return Predictor(model, tokenizer, name=str(name), setting=setting)


class Predictor:
    """A loaded model that answers questions about pictures. Get one from `lisaseg.load`. For one thread at a time; `lisaseg serve` is for many."""

    def __init__(self, model: LisaModel, tokenizer: Tokenizer, name: str, setting: Setting | None = None) -> None:
        self.model, self.tokenizer, self.name = model.eval(), tokenizer, name
        self.setting = setting or Setting(model.dtype)
        self.answering = Answering(self.model, tokenizer)
        self.remembered_bytes: int | None = None  # the service bounds what is kept by size instead of by number
        self._remembered = PictureMemory()

    def __repr__(self) -> str:
        return f"<lisaseg.Predictor {self.name} in {self.setting} on {self.model.device}>"

    @property
    def counters(self) -> dict[str, int]:
        """How often the costly parts ran since loading: image_encodings, mask_encodings (both in pictures)."""
        return {"image_encodings": self.model.image_encodings, "mask_encodings": self.model.mask_encodings}

    @property
    def modes(self) -> tuple[Mode, ...]:
        """What `mode` may be: `MODES`, and LISA++'s own where the checkpoint knows them."""
        return MODES if self.model.config.prompt_style == "lisa" else MODES + PLUS_MODES

    def ask(
        self,
        image: ImageSource,
        text: str,
        *,
        mode: Mode = "auto",
        max_new_tokens: int = DEFAULT_NEW_TOKENS,
        on_text: Callable[[str], None] | None = None,
    ) -> Answer:
        """Ask one question about one picture.

        Args:
            image: path, bytes, PIL image, or uint8 (H, W, 3).
            text: the instruction.
            mode: "auto" the model decides; "segment" a mask or a stated no_target; "explain" mask and reason; "text" words only. LISA++ also has
                "instances" and "explain_instances", a mask for each object, and "reason", step by step (see `modes`).
            max_new_tokens: length limit of the answer.
            on_text: called with the raw text so far after each token, for streaming.

        Raises:
            ImageError, InstructionError: the input cannot be used.
        """
        return self.chat(image).ask(text, mode=mode, max_new_tokens=max_new_tokens, on_text=on_text)

    def ask_batch(self, pairs: Sequence[tuple[ImageSource, str]], *, mode: Mode = "auto", max_new_tokens: int = DEFAULT_NEW_TOKENS) -> list[Answer]:
        """Ask many questions together: equal to a loop of `ask`, and faster. Answers come in the order of `pairs`; their times are of all together.

        Memory grows with the number of pairs: cut thousands into batches, as `lisaseg batch` does. Raises as `ask`, before anything is asked.
        """
        if not pairs:
            return []
        jobs = [self._job(open_image(image), Conversation(), text, mode, max_new_tokens) for image, text in pairs]
        return [answer for _, answer in self._answer(jobs, max_new_tokens)]

    def ask_forced(self, triples: Sequence[tuple[ImageSource, str, int]]) -> list[Answer]:
        """Put the checkpoint's evaluation answer ("It is [SEG].") into the model's mouth and draw its masks: the protocol of the published numbers.

        Nothing is generated, so this shows how well the model draws what it is told to answer, not whether it would have answered with a mask.

        Args:
            triples: (image, instruction, number of masks, 1 or more).

        Raises:
            ImageError, InstructionError: the input cannot be used.
        """
        if not triples:
            return []
        begin = time.perf_counter()
        jobs = [self._job(open_image(image), Conversation(), text, "auto", 1) for image, text, _ in triples]
        for job, encoded in zip(jobs, self.encode([job.picture for job in jobs]), strict=True):
            job.encoded, job.mode = encoded, "segment"  # a mask is certain: no refusal by its score
        start = time.perf_counter()
        with torch.inference_mode():
            rows = self.answering.force(jobs, [n for _, _, n in triples])
            masks = [self.answering.masks(job.encoded, row) for job, row in zip(jobs, rows, strict=True)]
        times = {"encode": 1e3 * (start - begin), "generate": 0.0, "mask": 1e3 * (time.perf_counter() - start)}
        return [self._build(job, row, *m, times)[1] for job, row, m in zip(jobs, rows, masks, strict=True)]

    def chat(self, image: ImageSource) -> Chat:
        """Start a conversation about a picture; it is opened now and encoded at the first question."""
        return Chat(self, open_image(image))

    def encode(self, pictures: Sequence[Picture]) -> list[Encoded]:
        """Encode pictures that are not remembered, together; each content once."""
        new = {p.digest: p for p in pictures if p.digest not in self._remembered}
        found = {p.digest: self._remembered[p.digest] for p in pictures if p.digest in self._remembered}
        if new:
            ready = [self.model.vlm.preprocess(p.rgb) for p in new.values()]
            inputs = {k: torch.stack([r[0][k] for r in ready]).to(self.model.device) for k in ready[0][0]}
            with torch.inference_mode():
                contexts = self.model.encode_image(inputs).split()
            for (digest, picture), (_, placement), context in zip(new.items(), ready, contexts, strict=True):
                found[digest] = Encoded(picture, placement, context)
        for digest, entry in found.items():
            self._remembered[digest] = entry
            self._remembered.move_to_end(digest)
        self._remembered.fit(REMEMBERED_PICTURES, self.remembered_bytes)
        return [found[p.digest] for p in pictures]

    def _job(self, picture: Picture, conversation: Conversation, text: str, mode: Mode, max_new_tokens: int) -> Job:
        if mode not in self.modes:
            raise UsageError(f"Unknown mode {mode!r}.", next_step=f"Use one of: {', '.join(self.modes)}.")
        if isinstance(max_new_tokens, bool) or not isinstance(max_new_tokens, int | np.integer) or max_new_tokens < 1:
            raise UsageError(f"max_new_tokens is {max_new_tokens!r}.", next_step="Use a whole number, 1 or more.")
        instruction = clean_instruction(text)
        longer = conversation.ask(prompts.with_mode(instruction, mode, self.model.config.prompt_style))
        ids = self.answering.prompt_ids(longer)
        limit = int(self.model.vlm.language_model.config.max_position_embeddings)
        if len(ids) + max_new_tokens > limit:
            raise InstructionError(
                f"The conversation has {len(ids):,} tokens; with {max_new_tokens} for the answer the limit is {limit:,}.",
                next_step="Shorten the instruction or start a new chat.",
                code="prompt_too_long",
            )
        return Job(picture, longer, mode, ids, instruction)

    @within_memory
    def _answer(
        self, jobs: Sequence[Job], max_new_tokens: int, on_text: Callable[[int, str], None] | None = None
    ) -> list[tuple[Conversation, Answer]]:
        """Generate, decode masks, build answers: the whole line for several questions at once. All jobs have one mode."""
        begin = time.perf_counter()
        for job, encoded in zip(jobs, self.encode([job.picture for job in jobs]), strict=True):
            job.encoded = encoded
        start = time.perf_counter()
        with torch.inference_mode():
            rows = self.answering.answer(jobs, max_new_tokens, on_text)
            generated = time.perf_counter()
            rows = [self.answering.reconsider(job, row) for job, row in zip(jobs, rows, strict=True)]
            masks = [self.answering.masks(job.encoded, row) for job, row in zip(jobs, rows, strict=True)]
        self._remembered.fit(REMEMBERED_PICTURES, self.remembered_bytes)  # mask features came on top
        done = time.perf_counter()
        times = {"encode": 1e3 * (start - begin), "generate": 1e3 * (generated - start), "mask": 1e3 * (done - generated)}
        return [self._build(job, row, *m, times) for job, row, m in zip(jobs, rows, masks, strict=True)]

    def _build(
        self, job: Job, row: Generation, masks: list[np.ndarray], scores: list[float | None], times: dict[str, float]
    ) -> tuple[Conversation, Answer]:
        ids = row.ids[:-1] if row.ids and row.ids[-1] == self.answering.stop_id else row.ids
        raw = self.tokenizer.decode(ids).strip()
        if job.mode in prompts.DOUBTED_MODES and masks and all(s is not None and s < self.model.config.min_score for s in scores):
            raw, masks = prompts.NO_TARGET, []  # the decoder found nothing that looks like what the answer names
        text, places, phrases = spans(raw)
        segments = tuple(Segment.from_mask(k, m, places[k], scores[k], phrases[k]) for k, m in enumerate(masks))
        status: Status = "masks" if segments else "no_mask_requested"
        if not segments and job.mode != "text" and raw.startswith(prompts.NO_TARGET_PREFIX):
            status = "no_target"
        if not row.finished:
            status = "truncated"
        picture = job.picture
        usage = {"prompt_tokens": len(job.ids), "completion_tokens": len(row.ids), "image_tokens": self.model.vlm.n_image_tokens}
        answer = Answer(
            text, raw, status, segments, picture.size, job.instruction, self.name, picture.rgb, dict(times), usage, tuple(picture.warnings)
        )
        turn = Turn(job.conversation.turns[-1].instruction, raw, tuple(np.zeros((1, 1), np.uint8) for _ in segments))
        return job.conversation.answer(turn), answer


class Chat:
    """A conversation about one picture. `turns` are the answers so far, oldest first."""

    def __init__(self, predictor: Predictor, picture: Picture) -> None:
        self.predictor, self.picture = predictor, picture
        self.conversation = Conversation()
        self.turns: list[Answer] = []

    def __repr__(self) -> str:
        return f"<lisaseg.Chat with {self.predictor.name} about {self.picture!r}, {len(self.turns)} turns>"

    def ask(
        self, text: str, *, mode: Mode = "auto", max_new_tokens: int = DEFAULT_NEW_TOKENS, on_text: Callable[[str], None] | None = None
    ) -> Answer:
        """Ask the next question; the model reads all earlier turns. If it fails, the chat is as it was."""
        job = self.predictor._job(self.picture, self.conversation, text, mode, max_new_tokens)
        tell = None if on_text is None else lambda _, text: on_text(text)
        self.conversation, answer = self.predictor._answer([job], max_new_tokens, tell)[0]
        self.turns.append(answer)
        return answer

    def undo(self) -> Answer | None:
        """Forget the last turn and return it; None if there is none."""
        self.conversation = self.conversation.undo()
        return self.turns.pop() if self.turns else None
