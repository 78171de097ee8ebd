"""The one entrance: `load` a model, `ask` it, `chat` with it. Command line, service, page and evaluation all come through here.

A picture is opened and encoded once and kept (a few of them, by content), so a second question about it costs no encoding; masks are decoded only for
`[SEG]` tokens that were generated in this turn.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lisaseg import prompts
from lisaseg.chat import Conversation, get_template, render, spans
from lisaseg.errors import InstructionError, UsageError
from lisaseg.imaging import ImageSource, Picture, Placement, open_image
from lisaseg.model.lisa import LisaModel
from lisaseg.model.memory import Setting, within_memory
from lisaseg.model.remembering import PictureMemory
from lisaseg.model.weighing import Asked, Priors, weigh_names
from lisaseg.startup import collector_paused
from lisaseg.tokenization import Tokenizer, clean_instruction
from lisaseg.types import MODES, PLUS_MODES, SEG_TEXT, Answer, Mode, Segment, Status, Turn
from lisaseg.vlms.base import Generation, ImageContext, left_pad

DEFAULT_NEW_TOKENS = 64
REMEMBERED_PICTURES = 8
MAX_SEGMENTS = 16  # masks of one answer: a model that repeats [SEG] must not fill the memory


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


@dataclass
class Encoded:
    """A picture that the model has looked at.

    features: mask features, made when the first mask is needed. placement: where the picture lies on the canvas of the masks; None until then if the
    mask decoder has pixels of its own. priors: see `weigh_names`.
    """

    picture: Picture
    placement: Placement | None
    context: ImageContext
    features: Any = field(default=None)
    priors: Priors = field(default_factory=dict)


@dataclass
class _Job:
    """One checked question on its way: picture, conversation with an open turn, mode, prompt ids; `encoded` follows once all are checked."""

    picture: Picture
    conversation: Conversation
    mode: Mode
    ids: list[int]
    instruction: str
    encoded: Encoded = field(init=False)


class Predictor:
    """A loaded model that answers questions about pictures. Get one from `lisaseg.load`. For one thread at a time; `lisaseg serve` is for many."""

    def __init__(self, model: LisaModel, tokenizer: Tokenizer, name: str, setting: Setting | None = None) -> None:
        self.model, self.tokenizer, self.name = model.eval(), tokenizer, name
        self.setting = setting or Setting(model.dtype)
        self.template = get_template(model.config.chat_template)
        self.stop_id = tokenizer.special(self.template.end)
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
            rows = self._force(jobs, [n for _, _, n in triples])
            masks = [self._masks(job.encoded, row) for job, row in zip(jobs, rows, strict=True)]
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

    def _job(self, picture: Picture, conversation: Conversation, text: str, mode: Mode, max_new_tokens: int) -> _Job:
        if mode not in self.modes:
            raise UsageError(f"Unknown mode {mode!r}.", next_step=f"Use one of: {', '.join(self.modes)}.")
        if isinstance(max_new_tokens, bool) or not isinstance(max_new_tokens, int | np.integer) or max_new_tokens < 1:
            raise UsageError(f"max_new_tokens is {max_new_tokens!r}.", next_step="Use a whole number, 1 or more.")
        instruction = clean_instruction(text)
        longer = conversation.ask(prompts.with_mode(instruction, mode, self.model.config.prompt_style))
        ids = self._ids(longer)
        limit = int(self.model.vlm.language_model.config.max_position_embeddings)
        if len(ids) + max_new_tokens > limit:
            raise InstructionError(
                f"The conversation has {len(ids):,} tokens; with {max_new_tokens} for the answer the limit is {limit:,}.",
                next_step="Shorten the instruction or start a new chat.",
                code="prompt_too_long",
            )
        return _Job(picture, longer, mode, ids, instruction)

    def _ids(self, conversation: Conversation) -> list[int]:
        return self.tokenizer.encode(render(conversation, self.template), self.model.vlm.n_image_tokens).ids

    @within_memory
    def _answer(
        self, jobs: Sequence[_Job], max_new_tokens: int, on_text: Callable[[int, str], None] | None = None
    ) -> list[tuple[Conversation, Answer]]:
        """Generate, decode masks, build answers: the whole line for several questions at once. All jobs have one mode."""
        begin = time.perf_counter()
        for job, encoded in zip(jobs, self.encode([job.picture for job in jobs]), strict=True):
            job.encoded = encoded
        start = time.perf_counter()
        with torch.inference_mode():
            rows = self._generate(jobs, max_new_tokens, on_text)
            forced = [k for k, row in enumerate(rows) if jobs[k].mode in prompts.MASK_MODES and not row.states and not self._refuses(row)]
            if forced:  # a mask was asked for and neither given nor refused: open the answer for the model
                tell = None if on_text is None else lambda row, text: on_text(forced[row], text)
                for k, row in zip(forced, self._generate([jobs[k] for k in forced], max_new_tokens, tell, prompts.FORCED_OPENING), strict=True):
                    rows[k] = row
            rows = [self._cut(row) for row in rows]
            generated = time.perf_counter()
            rows = [self._reconsider(job, row) for job, row in zip(jobs, rows, strict=True)]
            masks = [self._masks(job.encoded, row) for job, row in zip(jobs, rows, strict=True)]
        self._remembered.fit(REMEMBERED_PICTURES, self.remembered_bytes)  # mask features came on top
        done = time.perf_counter()
        times = {"encode": 1e3 * (start - begin), "generate": 1e3 * (generated - start), "mask": 1e3 * (done - generated)}
        return [self._build(job, row, *m, times) for job, row, m in zip(jobs, rows, masks, strict=True)]

    def _reconsider(self, job: _Job, row: Generation) -> Generation:
        """The answer with the name that fits the picture best; see `weigh_names`."""
        if job.mode == "text":
            return row
        encoded, neutral = job.encoded, self._ids(Conversation().ask(prompts.NEUTRAL_QUESTION))
        asked = Asked(job.ids, job.instruction, neutral, job.mode in prompts.DOUBTED_MODES)
        about = encoded.context, row, lambda states: self._decode(encoded, states)[1], encoded.priors
        return weigh_names(self.model, self.tokenizer, asked, *about)

    def _generate(
        self,
        jobs: Sequence[_Job],
        max_new_tokens: int,
        on_text: Callable[[int, str], None] | None = None,
        opening: str = "",
    ) -> list[Generation]:
        """Generate answers; `opening` is put in the model's mouth and a `[SEG]` behind it."""
        tokenizer, device = self.tokenizer, self.model.device
        head = tokenizer.encode([("answer", opening)], 0).ids if opening else []
        prompt = [torch.tensor(job.ids + head, device=device) for job in jobs]
        context = ImageContext.join([job.encoded.context for job in jobs])
        sofar = [list(head) for _ in jobs]

        def on_token(row: int, token: int) -> None:
            if on_text is not None and token != self.stop_id:
                sofar[row].append(token)
                on_text(row, tokenizer.decode(sofar[row]))

        text_only = jobs[0].mode == "text"
        bias = {} if text_only else {tokenizer.plain(prompts.NO_TARGET)[0]: float(self.model.config.refusal_bias)}
        if opening:
            bias = {tokenizer.seg_id: 1e6}
        rows = self.model.generate_answers(
            prompt,
            context,
            range(len(jobs)),
            stop_id=self.stop_id,
            max_new_tokens=max_new_tokens,
            ban=[tokenizer.seg_id] if text_only else [],
            bias=bias,
            on_token=on_token,
        )
        for row in rows:
            row.ids[:0] = head
        return rows

    def _force(self, jobs: Sequence[_Job], wanted: Sequence[int]) -> list[Generation]:
        """What `_generate` would give if the model had answered with so many masks, from one pass over prompt and answer."""
        ids, embeds = [], []
        for job, n in zip(jobs, wanted, strict=True):
            answer = self.model.config.evaluation_answer.replace(SEG_TEXT, ", ".join([SEG_TEXT] * n))
            turn = Turn(job.conversation.turns[-1].instruction, answer, (np.zeros((1, 1), np.uint8),) * n)
            ids.append(self._ids(job.conversation.answer(turn)))
            row = torch.tensor(ids[-1], device=self.model.device)
            embeds.append(self.model.vlm.embed(row[None], job.encoded.context.tokens, row.new_zeros(1))[0])
        feed, mask = left_pad(embeds)
        hidden = self.model.vlm.hidden_states(feed, mask, (mask.cumsum(1) - 1).clamp(min=0))
        shift = 1 if self.model.config.seg_state == "emit" else 0
        rows = []
        for job, row_ids, states in zip(jobs, ids, hidden, strict=True):
            places = [
                k - shift - len(row_ids) for k, token in enumerate(row_ids) if token == self.tokenizer.seg_id
            ]  # from the end: padding is in front
            rows.append(Generation(row_ids[len(job.ids) :], [states[k] for k in places], True))
        return rows

    def _cut(self, row: Generation) -> Generation:
        """An answer with too many `[SEG]` ends in front of the first that is too many."""
        if len(row.states) <= MAX_SEGMENTS:
            return row
        places = [k for k, token in enumerate(row.ids) if token == self.tokenizer.seg_id]
        return Generation(row.ids[: places[MAX_SEGMENTS]], row.states[:MAX_SEGMENTS], False)

    def _refuses(self, row: Generation) -> bool:
        return self.tokenizer.decode(row.ids).startswith(prompts.NO_TARGET_PREFIX)

    def _masks(self, encoded: Encoded, row: Generation) -> tuple[list[np.ndarray], list[float | None]]:
        """Masks (H, W) bool at the picture's size and scores; nothing is encoded or decoded for an answer without `[SEG]`."""
        if not row.states:
            return [], []
        placement = self._mask_features(encoded)
        logits, scores = self._decode(encoded, torch.stack(row.states))
        # one at a time: at the picture's own size a mask of logits can be large
        masks = [placement.undo(one[None].cpu())[0].gt(0).numpy() for one in logits]
        return masks, [None if s != s else round(float(s), 4) for s in scores.tolist()]

    def _decode(self, encoded: Encoded, states: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (N, h, w) on the canvas and scores (N,) for states (N, D) behind `[SEG]`, N > 0."""
        self._mask_features(encoded)
        index = torch.zeros(len(states), dtype=torch.long, device=states.device)
        return self.model.decode_masks(encoded.features, self.model.prompt_embeddings(states), index)

    def _mask_features(self, encoded: Encoded) -> Placement:
        """See to it that the picture is encoded for masks, once; returns where it lies on their canvas."""
        decoder: Any = self.model.mask_decoder
        if encoded.features is None:
            pixels = None
            if decoder.needs_pixels:
                pixels, encoded.placement = decoder.preprocess(encoded.picture.rgb)
                pixels = pixels[None].to(self.model.device)
            encoded.features = self.model.encode_mask_features(encoded.context, pixels)
        if encoded.placement is None:
            raise ValueError(f"Neither {self.model.vlm.family} nor the mask decoder says where the picture lies on the canvas.")
        return encoded.placement

    def _build(
        self, job: _Job, row: Generation, masks: list[np.ndarray], scores: list[float | None], times: dict[str, float]
    ) -> tuple[Conversation, Answer]:
        ids = row.ids[:-1] if row.ids and row.ids[-1] == self.stop_id else row.ids
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
