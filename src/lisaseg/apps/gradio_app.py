"""A Gradio app around a model: for Spaces, Colab and whoever lives in Gradio. The page of `lisaseg serve` does more and needs none of this.

    from lisaseg.apps.gradio_app import launch
    launch(lisaseg.load("lisa-tiny"))                  # in a notebook; share=True for a public link, which goes through Gradio's servers

What is kept of a visitor is one conversation, in the visitor's own state: the picture at `MAX_SIDE` at most and `MAX_TURNS` turns. Visitors, their
time, the queue and the uploads are bounded (`BOUNDS`). Answers are shown as plain text, never as Markdown or HTML.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from lisaseg.drawing import colour_of
from lisaseg.errors import LisaSegError
from lisaseg.imaging import ImageLimits, open_image
from lisaseg.types import Answer

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # before gradio reads it

import gradio as gr

MAX_SIDE, MAX_TURNS = 1600, 12
VISITOR_SECONDS, QUEUE = 1800, 32
MAX_FILE = 25 * 2**20
BOUNDS = {"state_session_capacity": 50, "max_file_size": MAX_FILE, "ssr_mode": False}  # of `Blocks.launch`
EXAMPLES = Path(__file__).parent / "web" / "examples"
COLOURS = {f"mask {k + 1}": "#{:02x}{:02x}{:02x}".format(*colour_of(k)) for k in range(16)}
LIMITS = ImageLimits(max_bytes=MAX_FILE)


@dataclass
class Visit:
    """One visitor's conversation; `digest` tells whether the picture is still the same."""

    chat: Any
    digest: str


def build(model: Any) -> gr.Blocks:
    """The app around a `Predictor` or a `Client`; `launch` starts it."""
    with gr.Blocks(title="lisaseg", analytics_enabled=False, delete_cache=(600, VISITOR_SECONDS)) as app:
        visit = gr.State(None, time_to_live=VISITOR_SECONDS)
        with gr.Row():
            with gr.Column():
                picture = gr.Image(label="Picture", type="filepath", image_mode=None, sources=["upload", "clipboard"])
                mode = gr.Radio(
                    list(model.modes), value="auto", label="Mode", info="auto: the model decides; segment: a mask; explain: and why; text: words"
                )
                text = gr.Textbox(label="Instruction", placeholder="the thing one drinks from", max_length=2000)
                with gr.Row():
                    ask, undo, new = gr.Button("Ask", variant="primary"), gr.Button("Undo"), gr.Button("New chat")
                gr.Examples(examples(), [picture, text])
            with gr.Column():
                masks = gr.AnnotatedImage(label="Masks of the last answer", format="png", color_map=COLOURS)
                talk = gr.Chatbot(label="Conversation", render_markdown=False, height=320, buttons=["copy"])
        shown = [talk, masks, visit]

        def on_ask(image: str | None, text: str, mode: str, visit: Visit | None) -> tuple[Any, ...]:
            return (*answer(model, image, text, mode, visit), "")

        for trigger, name in ((ask.click, "ask"), (text.submit, False)):
            trigger(on_ask, [picture, text, mode, visit], [*shown, text], api_name=name, concurrency_id="model", concurrency_limit=1)
        undo.click(take_back, [visit], shown, api_name="undo")
        for begin, name in ((new.click, "new"), (talk.clear, False)):
            begin(lambda: ([], None, None), None, shown, api_name=name)
    return app.queue(max_size=QUEUE)


def answer(model: Any, path: str | None, text: str, mode: str, visit: Visit | None) -> tuple[list[dict[str, str]], Any, Visit]:
    """Ask about the picture at `path`, in the visitor's conversation if it is about the same picture; conversation, masks and state to show."""
    if not path:
        raise gr.Error("There is no picture. Choose one first.", print_exception=False)
    try:
        opened = open_image(path, LIMITS, name="The picture")
        if visit is None or visit.digest != opened.digest:
            small = Image.fromarray(opened.rgb)
            small.thumbnail((MAX_SIDE, MAX_SIDE))
            visit = Visit(model.chat(small), opened.digest)
        if len(visit.chat.turns) >= MAX_TURNS:
            raise gr.Error(f"The conversation has {MAX_TURNS} turns, as many as it may have. Start a new one.", print_exception=False)
        visit.chat.ask(text, mode=mode)
    except LisaSegError as error:
        raise gr.Error(str(error), print_exception=False) from error
    return *show(visit), visit


def take_back(visit: Visit | None) -> tuple[list[dict[str, str]], Any, Visit | None]:
    """The conversation without its last turn."""
    if visit is None:
        return [], None, None
    visit.chat.undo()
    return *show(visit), visit


def show(visit: Visit) -> tuple[list[dict[str, str]], Any]:
    """Messages of the chat, and the masks of its last answer."""
    said: list[dict[str, str]] = []
    for turn in visit.chat.turns:
        words = turn.text or {"no_target": "(nothing in the picture fits)"}.get(turn.status, "(no words)")
        said += [{"role": "user", "content": turn.instruction}, {"role": "assistant", "content": words}]
    return said, _annotated(visit.chat.turns[-1]) if visit.chat.turns else None


def _annotated(last: Answer) -> tuple[Any, list[tuple[Any, str]]]:
    return last.image, [(0.6 * segment.mask, f"mask {segment.index + 1}") for segment in last.segments]


def examples() -> list[list[str]]:
    """Picture and question of every example of the page."""
    found = json.loads((EXAMPLES / "examples.json").read_text("utf-8"))
    return [[str(EXAMPLES / one["file"]), one["turns"][0]["prompt"]] for one in found]


def launch(model: Any, *, host: str = "127.0.0.1", port: int = 0, share: bool = False, block: bool = False) -> gr.Blocks:
    """Start the app; port 0 = any free one from 7860 on. `block`: until Ctrl-C."""
    app = build(model)
    app.launch(server_name=host, server_port=port or None, share=share, quiet=True, prevent_thread_lock=True, **BOUNDS)
    print(f"lisaseg runs at {app.share_url or app.local_url}  (end with Ctrl-C)", file=sys.stderr, flush=True)
    if block:
        app.block_thread()
    return app
