"""``python -m beni.chat RUN --image x.jpg``: a conversation with a trained model, at a terminal or through a pipe.

Answers appear while they are generated. What was said before is part of what is asked next, images too. A line that
begins with a slash is a command; /help lists them. Through a pipe a question that fails is answered by an empty line.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO, final

from beni.console import printing_command
from beni.errors import BeniError, ConfigError, DataError

if TYPE_CHECKING:
    from beni.model.speaking import Answer, Sampling
    from beni.trained import Trained

COMMANDS = {
    "/help": "this list",
    "/image PATH": "put an image in front of the next question; again for several",
    "/images": "the images of the next question, and how many the conversation has",
    "/system TEXT": "begin anew with this system message; without TEXT, with the one of training",
    "/set NAME VALUE": "temperature, top_p, max_new_tokens, seed or stop; without NAME, show them",
    "/undo": "take back the last question and its answer",
    "/reset": "begin anew",
    "/quit": "end (so does the end of the input)",
}
"""What a line that begins with a slash may be."""
NUMBERS: dict[str, Callable[[str], Any]] = {"temperature": float, "top_p": float, "max_new_tokens": int, "seed": int}
"""Settings that are numbers, and what reads them."""
ESCAPED = str.maketrans({code: "\ufffd" for code in (*range(9), 11, 12, *range(14, 32), 127, *range(128, 160))})
"""Control characters: what a model says must not steer the terminal."""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    command = argparse.ArgumentParser(prog="python -m beni.chat", description=(__doc__ or "").split("\n\n")[1])
    command.add_argument("run", type=Path, help="run folder, or a saved model such as <run>/model")
    command.add_argument("overrides", nargs="*", help="another template, such as template=chatml (see --other-prompt)")
    command.add_argument("--image", action="append", default=[], help="image of the first question; may be repeated")
    command.add_argument("--checkpoint", default="last", help="last, best or the number of a step (%(default)s)")
    command.add_argument("--temperature", type=float, default=0.0, help="0 takes the most likely token (%(default)s)")
    command.add_argument("--top-p", type=float, default=1.0, help="share of the probability drawn from (%(default)s)")
    command.add_argument("--max-new-tokens", type=int, default=256, help="longest answer (%(default)s)")
    command.add_argument("--seed", type=int, help="of what is drawn; default: another one for each answer")
    command.add_argument("--stop", action="append", default=[], help="text that ends an answer; may be repeated")
    command.add_argument("--system", help="system message (default: that of training)")
    command.add_argument("--device", choices=("auto", "cpu", "cuda"), help="%(choices)s (default: as the run)")
    command.add_argument("--other-prompt", action="store_true", help="allow prompts that differ from those of training")
    return command


@printing_command
def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; the exit code is 2 when the model or the first images cannot be had, and 1 when something went
    wrong with what came through a pipe.
    """
    arguments = parser().parse_intermixed_args(argv)
    from beni.config.command import report
    from beni.config.partial import sections_of

    try:
        from beni.model.speaking import Sampling

        sampling = Sampling(
            temperature=arguments.temperature,
            top_p=arguments.top_p,
            max_new_tokens=arguments.max_new_tokens,
            stop=tuple(arguments.stop),
            seed=arguments.seed,
        )
        for path in arguments.image:
            require_image(path)
        from transformers.utils.logging import disable_progress_bar

        from beni.trained import Trained, trained_with

        with_run = trained_with(arguments.run) if arguments.overrides else {}
        template = sections_of(arguments.overrides, ("template",), trained=with_run).get("template")
        disable_progress_bar()
        trained = Trained.load(
            arguments.run,
            arguments.checkpoint,
            device=arguments.device,
            template=template,
            other_prompt=arguments.other_prompt,
        )
    except BeniError as error:
        report(error)
        return 2
    piped = not sys.stdin.isatty()
    talk = Talk(trained, sampling, arguments.system, sys.stdout, sys.stderr, piped)
    talk.images += arguments.image
    if not piped:
        talk.tell(
            f"{arguments.run}" + ("" if trained.step is None else f" after step {trained.step}") + "; /help helps"
        )
    for line in lines(sys.stdin):
        if not talk.hear(line):
            break
    return 1 if piped and talk.failed else 0


def lines(source: TextIO) -> Iterator[str]:
    """What somebody types, or a pipe gives, line by line; at a terminal after a prompt. Bytes that are no text end one
    question, not the talk.
    """
    if not source.isatty():
        if isinstance(source, io.TextIOWrapper):
            source.reconfigure(errors="surrogateescape")
        yield from (line.rstrip("\r\n") for line in source)
        return
    import readline  # noqa: F401  # gives input() a history and keys

    while True:
        try:
            yield input("> ")
        except (EOFError, KeyboardInterrupt):
            return


def require_image(path: str) -> None:
    """Return when an image can be shown.

    Raises:
        DataError: when it cannot be read.
    """
    from beni.data.images import decode
    from beni.model.messages import as_image

    if not path:
        raise DataError("no image is named\n  fix: write /image PATH")
    decode(as_image(path))


@final
class Talk:
    """A conversation.

    Args:
        sampling: how answers are chosen.
        system: message that it begins with; None leaves it to the template.
        out: gets what the model says, a line at the end of each answer.
        told: gets all else.
        lined: ``out`` gets a line for each question, an empty one where there is no answer.

    Attributes:
        failed: something that was said could not be done.
        images: paths of those of the next question.
        messages: what was said.
    """

    def __init__(
        self, trained: Trained, sampling: Sampling, system: str | None, out: TextIO, told: TextIO, lined: bool = False
    ) -> None:
        self.trained, self.sampling, self.out, self.told, self.lined = trained, sampling, out, told, lined
        self.failed = False
        self.images: list[str] = []
        self.messages: list[dict[str, Any]] = []
        self.begin(system)

    def begin(self, system: str | None) -> None:
        """Forgets what was said."""
        self.system = system
        self.messages = [] if system is None else [{"role": "system", "content": system}]

    def tell(self, text: str) -> None:
        """A line that is not the model's."""
        print(text, file=self.told, flush=True)

    def hear(self, line: str) -> bool:
        """Answers a question, or does what a command says; False where that is to end. What goes wrong is told."""
        text = line.strip()
        if not text:
            return True
        if text in ("/quit", "/exit"):
            return False
        command = text.startswith("/") and not text.startswith("//")
        try:
            if command:
                self.command(*text.partition(" ")[::2])
            else:
                self.ask(text.removeprefix("/") if text.startswith("//") else text)
        except BeniError as error:
            self.tell(f"{type(error).__name__}: {error}")
            self.failed = True
            if self.lined and not command:
                self._write("\n")
        return True

    def command(self, name: str, value: str) -> None:
        """Carries out a command.

        Raises:
            BeniError: when there is no such command, or its value cannot be.
        """
        value = value.strip()
        if name == "/help":
            self.tell("\n".join(f"{usage:<16} {what}" for usage, what in COMMANDS.items()))
            self.tell("//text           a question that begins with a slash")
        elif name == "/image":
            require_image(value)
            self.images.append(value)
        elif name == "/images":
            shown = sum(part["type"] == "image" for turn in self.messages for part in _parts(turn))
            self.tell(f"next question: {', '.join(self.images) or 'none'}; before: {shown}")
        elif name == "/system":
            self.begin(value or None)
        elif name == "/set":
            self.set(*value.partition(" ")[::2])
        elif name == "/undo":
            self.undo()
        elif name == "/reset":
            self.begin(self.system)
            self.images.clear()
        else:
            known = ", ".join(usage.split()[0] for usage in COMMANDS)
            raise ConfigError(
                f"{name} is no command, expected one of {known}\n  fix: write //... to say it to the model"
            )

    def set(self, name: str, value: str) -> None:
        """Changes one of the settings of the next answers, or shows all.

        Raises:
            ConfigError: when there is no such setting, or it has another range.
        """
        from dataclasses import asdict, replace

        if name and name not in (*NUMBERS, "stop"):
            raise ConfigError(f"/set {name}, expected one of {', '.join(NUMBERS)}, stop\n  fix: write /set alone")
        if name == "stop":
            self.sampling = replace(self.sampling, stop=(value,) if value else ())
        elif name == "seed" and value in ("", "none"):
            self.sampling = replace(self.sampling, seed=None)
        elif name:
            try:
                self.sampling = replace(self.sampling, **{name: NUMBERS[name](value)})
            except ValueError:
                raise ConfigError(f"/set {name} {value}, expected a number\n  fix: write /set {name} 1") from None
        self.tell(", ".join(f"{key}={one!r}" for key, one in asdict(self.sampling).items()))

    def undo(self) -> None:
        """Takes back the last question with its answer.

        Raises:
            ConfigError: when nothing was asked.
        """
        if not self.messages or self.messages[-1]["role"] == "system":
            raise ConfigError("nothing was asked that could be taken back\n  fix: ask a question first")
        del self.messages[-2:]

    def ask(self, text: str) -> None:
        """Asks a question and writes the answer as it comes; Ctrl-C ends an answer, which is kept as far as it went.

        Raises:
            BeniError: when it cannot be asked; it is forgotten then, and its images wait for the next one.
        """
        asked = self.trained.processor.question(list(self.images), text)
        answer = self._answered([*self.messages, asked])
        self.images.clear()
        self.messages += [asked, {"role": "assistant", "content": answer.text}]
        if answer.finish == "length":
            self.tell(f"(the answer has reached {answer.tokens} tokens; /set max_new_tokens allows more)")

    def _answered(self, conversation: list[dict[str, Any]]) -> Answer:
        import signal

        from beni.signals import handling

        interrupted: list[int] = []
        with handling([signal.SIGINT], lambda number, frame: interrupted.append(number)):
            said = self.trained.say(
                [conversation], self.sampling, lambda _, piece: self._write(piece), lambda _: bool(interrupted)
            )
        self._write("\n")
        return said[0]

    def _write(self, text: str) -> None:
        self.out.write(text.translate(ESCAPED))
        self.out.flush()


def _parts(turn: dict[str, Any]) -> list[dict[str, Any]]:
    return [] if isinstance(turn["content"], str) else turn["content"]


if __name__ == "__main__":
    raise SystemExit(main())
