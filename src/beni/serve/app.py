"""The page: a talk with images, settings of the answer, and what the model saw of the images."""

from __future__ import annotations

import base64
import io
import logging
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read when gradio is imported: nothing is told to others

import gradio as gr
from gradio.themes import Default
from PIL import Image as PILImage

from beni.serve.client import Client, Failed, message, messages_of
from beni.serve.examples import FORMATS, read_examples
from beni.serve.settings import EXAMPLES

log = logging.getLogger("beni.serve")
LARGEST = "10mb"
TITLE = "beni"
FONTS = ["system-ui", "sans-serif"]
MONO = ["ui-monospace", "monospace"]
"""Fonts of the reader's machine: a page that fetches them from elsewhere is slow, and broken without a network."""
HEIGHT = "calc(100vh - 150px)"


class Page:
    """The page.

    Args:
        client: of the gateway.
        examples: folder of images to begin with.
    """

    def __init__(self, client: Client, examples: Path | None) -> None:
        self.client, self.examples = client, read_examples(examples, EXAMPLES)

    def build(self) -> gr.Blocks:
        """The page as gradio has it."""
        with gr.Blocks(title=TITLE, fill_height=True, analytics_enabled=False) as page, gr.Row(equal_height=False):
            with gr.Column(scale=1, min_width=280):
                gr.Markdown(f"## {TITLE}")
                settings = self._settings(page)
                seen = gr.Gallery(
                    label="What the model saw",
                    columns=1,
                    height=420,
                    object_fit="contain",
                    interactive=False,
                    elem_id="seen",
                )
            with gr.Column(scale=3):
                gr.ChatInterface(
                    self.reply,
                    multimodal=True,
                    chatbot=gr.Chatbot(
                        height=HEIGHT, render_markdown=False, elem_id="talk", show_label=False, buttons=["copy"]
                    ),
                    textbox=gr.MultimodalTextbox(
                        file_types=list(FORMATS),
                        file_count="multiple",
                        placeholder="Ask about images",
                        show_label=False,
                        elem_id="ask",
                    ),
                    additional_inputs=settings,
                    additional_outputs=[seen],
                    examples=[[{"text": one.question, "files": [str(one.image)]}] for one in self.examples] or None,
                    cache_examples=False,
                    run_examples_on_click=False,
                    api_visibility="private",
                )
        return page

    def reply(
        self,
        asked: Mapping[str, Any],
        history: Sequence[Mapping[str, Any]],
        model: str | None,
        system: str | None,
        temperature: float,
        top_p: float,
        most: float,
        look: bool,
    ) -> Iterator[tuple[Any, Any]]:
        """The answer as it grows, then what the model saw.

        Raises:
            gr.Error: when there is no answer.
        """
        if not model:
            raise gr.Error("No model is served")
        talk = [*messages_of(history), message("user", asked["text"], asked["files"])]
        talk = [{"role": "system", "content": system}, *talk] if system and system.strip() else talk
        options = {"temperature": temperature, "top_p": top_p, "max_tokens": int(most)}
        said = ""
        try:
            for piece in self.client.answer(model, talk, **options):
                said += piece
                yield said, gr.skip()
            pictured = any(not isinstance(one["content"], str) for one in talk)
            yield said or "(no words)", self._seen(model, talk, said) if look and pictured else []
        except Failed as error:
            raise gr.Error(str(error), print_exception=False) from None

    def models(self) -> Any:
        """What there is to choose from."""
        try:
            served = self.client.models()
        except Failed as error:
            gr.Warning(str(error))
            served = []
        return gr.Dropdown(choices=served, value=served[0] if served else None)

    def _settings(self, page: gr.Blocks) -> list[Any]:
        model = gr.Dropdown(label="Model", choices=[], interactive=True, elem_id="model")
        page.load(self.models, outputs=model, api_visibility="private")
        with gr.Accordion("Settings", open=False):
            system = gr.Textbox("", label="System message", lines=2)
            temperature = gr.Slider(0.0, 2.0, 0.0, step=0.05, label="Temperature", info="0: the likeliest token")
            top_p = gr.Slider(0.05, 1.0, 1.0, step=0.05, label="Top p")
            most = gr.Slider(1, 1024, 256, step=1, label="New tokens at most")
            look = gr.Checkbox(True, label="Show what the model saw")
        return [model, system, temperature, top_p, most, look]

    def _seen(self, model: str, talk: Sequence[Any], said: str) -> Any:
        try:
            drawn = self.client.look(model, talk, said)
        except Failed as error:
            gr.Warning(f"What the model saw cannot be shown: {error}")
            return []
        return [(_opened(one["url"]), f"{one['name']}: {one['note']}") for one in drawn]


def serve_app(gateway: str, key: str | None, host: str, port: int, examples: Path | None) -> None:
    """Shows the page until it is interrupted.

    Raises:
        ConfigError: when the examples cannot be had.
        OSError: when the address cannot be had.
    """
    page = Page(Client(gateway, key), examples)
    theme = Default(font=FONTS, font_mono=MONO)
    folders = [str(examples.resolve())] if examples is not None else []
    shown = page.build().queue(default_concurrency_limit=16)
    shown.launch(
        server_name=host,
        server_port=port or None,
        quiet=True,
        share=False,
        ssr_mode=False,
        inbrowser=False,
        max_file_size=LARGEST,
        allowed_paths=folders,
        theme=theme,
        footer_links=[],
        run_history=False,
        prevent_thread_lock=True,
    )
    try:
        threading.Event().wait()
    finally:
        shown.close(verbose=False)


def _opened(url: str) -> PILImage.Image:
    return PILImage.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))
