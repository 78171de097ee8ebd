"""A complete lisaseg model in a few seconds: lisa-tiny's own parts with random weights and a language model of 0.1 M parameters.

The language model is taught a handful of answers by heart (`LESSONS`), through the same `forward` that training uses; so it emits `[SEG]`, refuses
and stops when it should, and every road of the predictor is walked with real states, real masks and no downloaded file. Masks show nothing real.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from lisaseg import prompts
from lisaseg.batching import Example, pack
from lisaseg.chat import CHATML, Conversation
from lisaseg.model.config import LisaConfig
from lisaseg.model.lisa import LisaModel
from lisaseg.tokenization import TextTokenizer
from lisaseg.types import SEG_TEXT, Turn
from lisaseg.vlms.base import ImageContext

NOUNS = ("dog", "cat", "cup", "table", "car", "tree", "person", "bottle", "chair", "sky", "wall", "grass")
SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
VOCABULARY = 600
LANGUAGE = {
    "model_type": "llama",
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 128,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
    "initializer_range": 0.1,
}

ONE, TWO, THREE = "What is red here?", "Show both animals.", "Three things, please!"
GREETING, ABSENT, LONG = "Hello there!", "Where is the zebra?", "Count for me."
ASKED = " Please output segmentation mask."
LESSONS = {
    ONE: "It is the cup [SEG].",
    TWO: "The dog [SEG] and the cat [SEG].",
    THREE: "[SEG], [SEG], the tree [SEG]",
    GREETING: "Hello! Ask me about the picture.",
    ABSENT: prompts.NO_TARGET,
    LONG: "One two three four five six seven eight nine ten eleven twelve.",
    ONE + ASKED: "It is the cup [SEG].",
    GREETING + ASKED: "Hello! Ask me about the picture.",
    ABSENT + ASKED: prompts.NO_TARGET,
    ONE + ASKED[:-1] + " and explain why.": "It is the cup [SEG]. It is red.",
    'I typed "[SEG]", [SEG].': "You typed it.",
}


def turn(instruction: str, answer: str) -> Turn:
    """An answered turn with a stand-in for each mask."""
    return Turn(instruction, answer, tuple(np.zeros((1, 1), np.uint8) for _ in range(answer.count(SEG_TEXT))))


def conversation(*pairs: tuple[str, str]) -> Conversation:
    """A conversation of (instruction, answer) pairs."""
    return Conversation(tuple(turn(*pair) for pair in pairs))


def write_tokenizer(folder: Path) -> Path:
    """A byte-level BPE `tokenizer.json` of SmolLM2's kind in `folder`; every byte string can be written with it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]  # type: ignore[list-item]
    )
    tokenizer.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - 8,
        special_tokens=list(SPECIALS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*LESSONS, *LESSONS.values(), "user\nassistant\n"] * 4, trainer)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def build_config() -> LisaConfig:
    """The configuration of the random model."""
    return LisaConfig(nouns=list(NOUNS), language_config=dict(LANGUAGE), prompt_width=256, seg_hidden=48)


def build_model(seed: int = 0) -> LisaModel:
    """The random model: nothing is zero, so that every part has an effect that a test can see.

    Its detector sees things of 2 classes, not of all 80 everywhere, whose drawing would take a third of an encoding; they weigh more instead, because
    what it sees is what gives a random mask its shape.
    """
    torch.manual_seed(seed)
    model = LisaModel(build_config())
    vision: Any = model.vlm.vision
    with torch.no_grad():
        for buffer in (vision.neck.nouns, vision.neck.coco_nouns, vision.neck.imagenet_nouns):
            buffer.copy_(torch.nn.functional.normalize(torch.randn(buffer.shape), dim=-1))
        for parameter in model.parameters():
            if parameter.ndim > 1 and not parameter.any():
                parameter.normal_(std=0.02)
        for head in (vision.trunk.yolo.head13, vision.trunk.yolo.head26):
            head.bias.view(3, 85)[:, 5 + 2 :] -= 20  # an anchor has box, objectness and 80 classes
        vision.neck.detector_gain.fill_(20)
    return model.eval()


def build_tokenizer(folder: Path, model: LisaModel) -> TextTokenizer:
    """The tokenizer in `folder` with the added tokens of `model`."""
    return TextTokenizer(folder, model.vlm.seg_token_id, model.vlm.image_token_id)


def noise(seed: int, height: int = 40, width: int = 60) -> np.ndarray:
    """A picture of coloured blocks, uint8 (height, width, 3)."""
    blocks = np.random.default_rng(seed).integers(0, 256, (-(-height // 8), -(-width // 8), 3), np.uint8)
    return np.ascontiguousarray(blocks.repeat(8, 0).repeat(8, 1)[:height, :width])


def encode_pictures(model: LisaModel, pictures: list[np.ndarray]) -> ImageContext:
    """The pictures as the model sees them."""
    ready = [model.vlm.preprocess(rgb)[0] for rgb in pictures]
    with torch.no_grad():
        return model.encode_image({key: torch.stack([one[key] for one in ready]) for key in ready[0]})


def teach(model: LisaModel, tokenizer: TextTokenizer, steps: int = 220, seed: int = 0) -> float:
    """Make the language side answer `LESSONS`, alone and after other turns; returns the last loss."""
    rng = np.random.default_rng(seed)
    context = encode_pictures(model, [noise(900), noise(901, 90, 30)])
    tokens = context.tokens.detach()
    learned = [*model.vlm.language_model.parameters(), model.vlm.seg_in, model.vlm.seg_out]
    optimizer = torch.optim.AdamW(learned, lr=4e-3, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 8e-3, total_steps=steps)
    lessons, loss = list(LESSONS.items()), float("inf")
    for step in range(steps):
        chats = [
            conversation(*(lessons[int(i)] for i in rng.integers(len(lessons), size=1 + (n + step) % 2)), lessons[(step * 4 + n) % len(lessons)])
            if n % 2
            else conversation(lessons[(step * 4 + n) % len(lessons)])
            for n in range(4)
        ]
        n_seg = sum(chat.n_seg for chat in chats)
        batch = pack([Example(chats, torch.zeros(n_seg, 1, 1, dtype=torch.uint8))], tokenizer, CHATML, model.vlm.n_image_tokens)
        out = model(batch, ImageContext(tokens[step % 2][None], None), masks=False)
        optimizer.zero_grad()
        out.losses["loss"].backward()
        torch.nn.utils.clip_grad_norm_(learned, 1.0)
        optimizer.step()
        schedule.step()
        loss = float(out.losses["loss"].detach())
    model.requires_grad_(True)
    model.zero_grad(set_to_none=True)
    return loss
