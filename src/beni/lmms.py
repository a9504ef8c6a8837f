"""The model ``beni`` of lmms-eval 0.7: ``python -m lmms_eval --model beni --model_args run=RUN --tasks mme``.

lmms-eval finds it by the entry point ``lmms_eval.models``. Its tasks hand over conversations with images in place
(``Chat``) or, with ``--force_simple``, a text and the images in front of it (``Simple``); likelihoods are asked for in
the second form alone. Answers are those of ``Trained.say``, likelihoods those that ``beni.evaluate`` reads.

Source: https://github.com/EvolvingLMMs-Lab/lmms-eval (``api/model.py``, ``models/registry_v2.py``).
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, final

from PIL import Image as PILImage

from beni.errors import ConfigError, DataError

if TYPE_CHECKING:
    import torch

    from beni.data.metric import Reading
    from beni.model.messages import Conversation, Picture
    from beni.model.speaking import Sampling
    from beni.trained import Trained

NAME = "beni"
"""What ``--model`` says."""
ARGUMENTS = ("run", "checkpoint", "precision", "other_prompt", "device", "batch_size")
"""What ``--model_args`` may say; the last two have options of their own."""
OBEYED = ("until", "max_new_tokens", "do_sample", "temperature", "top_p", "seed")
"""Settings of a task's ``generation_kwargs`` that decide an answer."""
NEUTRAL = {"num_beams": (1,), "repetition_penalty": (1,), "top_k": (None, 0, -1)}
"""Settings that change nothing at these values, which many tasks spell out."""
OF_OTHERS = ("image_aspect_ratio",)
"""Settings by which tasks tell models of LLaVA's family how to cut images."""
IMAGES_ALONE = "and the model reads texts and images alone\n  fix: choose a task without it"
IMAGES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")


def manifest() -> Any:
    """What lmms-eval's registry is told."""
    from lmms_eval.models.registry_v2 import ModelManifest  # pyright: ignore[reportMissingImports]

    return ModelManifest(NAME, simple_class_path=f"{__name__}.Simple", chat_class_path=f"{__name__}.Chat")


def __getattr__(name: str) -> type:
    """``Chat`` and ``Simple``: they derive from a class of lmms-eval, without which this module can be imported too."""
    if name not in ("Chat", "Simple"):
        raise AttributeError(f"module {__name__} has no attribute {name}")
    return _classes()[name]


class Requests(ABC):
    """A trained model that answers lmms-eval's requests; the two kinds of model read them from their own form.

    Args:
        run: run folder, or a saved model such as ``<run>/model``.
        checkpoint: ``last``, ``best`` or the number of a step.
        precision: ``fp32`` or ``bf16``; None takes that of the run.
        other_prompt: allow prompts that differ from those of training.
        device: ``auto``, ``cpu`` or ``cuda``; None takes that of the run.
        batch_size: conversations that are answered, or texts that are read, at a time.

    Raises:
        ConfigError: when an argument is unknown, or its value is.
        BeniError: as ``Trained.load``.
    """

    task_dict: Mapping[str, Any]
    """Task -> split -> documents; lmms-eval fills it."""

    def __init__(
        self,
        run: Any = None,
        checkpoint: str | int = "last",
        precision: Any = None,
        other_prompt: Any = False,
        device: str | None = None,
        batch_size: str | int = 1,
        **unknown: Any,
    ) -> None:
        super().__init__()
        if unknown:
            given = ", ".join(f"{key}={value}" for key, value in unknown.items())
            raise ConfigError(
                f"--model_args {given}, and the model {NAME} has {', '.join(ARGUMENTS)}\n  fix: leave it out"
            )
        if run is None:
            raise ConfigError(f"--model {NAME} has no run\n  fix: set --model_args run=<folder of a run>")
        _require("precision", precision, (None, "fp32", "bf16"))
        _require("other_prompt", other_prompt, (True, False))
        _require("device", device, (None, "auto", "cpu", "cuda"), "; CUDA_VISIBLE_DEVICES chooses among several")
        if not str(batch_size).isdecimal() or int(batch_size) < 1:
            raise ConfigError(f"--batch_size={batch_size}, expected a number of at least 1\n  fix: set --batch_size=8")
        from beni.trained import Trained

        self.batch_size = int(batch_size)
        self.trained = Trained.load(str(run), checkpoint, device=device, precision=precision, other_prompt=other_prompt)
        self._told: set[str] = set()
        _use_host(self.trained)

    @abstractmethod
    def asked(self, request: Any) -> tuple[Conversation, Mapping[str, Any]]:
        """The conversation that a request of ``generate_until`` wants to be answered, and its settings."""

    @abstractmethod
    def read(self, request: Any) -> tuple[Conversation, str]:
        """The conversation of a request of ``loglikelihood``, and the text that is read as its answer."""

    @property
    def device(self) -> torch.device:
        """Where the model computes, and where lmms-eval gathers what several processes have."""
        return self.trained.device

    @property
    def chat_template(self) -> str:
        """Nothing that lmms-eval could apply.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(
            f"--apply_chat_template, and the model {NAME} always renders conversations as in training\n"
            "  fix: leave it out"
        )

    def generate_until(self, requests: Sequence[Any]) -> list[Any]:
        """An answer to each request, with the number of its tokens."""
        from lmms_eval.api.instance import GenerationResult, TokenCounts  # pyright: ignore[reportMissingImports]

        results = []
        for group in self._groups(requests, "answering"):
            asked = [self.asked(request) for request in group]
            samplings = [self._sampling(settings) for _, settings in asked]
            for answer in self.trained.say([conversation for conversation, _ in asked], samplings):
                results.append(GenerationResult(answer.text, TokenCounts(answer.prompt_tokens, answer.tokens)))
        return results

    def loglikelihood(self, requests: Sequence[Any]) -> list[Any]:
        """The mean loss of each text as an answer, and whether each of its tokens is the most likely one.

        lmms-eval's own models return a loss, and its multiple choice takes the smallest: ``acc`` is then the accuracy
        of ``task=choice``. Up to 0.7.3 its evaluator makes a text of a pair that stands by itself
        (``unwrap_generation_output``), and no multiple choice ends; what is wrapped it takes as it is.
        """
        from lmms_eval.api.instance import GenerationResult  # pyright: ignore[reportMissingImports]

        groups = self._groups(requests, "reading")
        readings = [reading for group in groups for reading in self._readings([self.read(one) for one in group])]
        return [GenerationResult((-reading.loglik, reading.exact)) for reading in readings]

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
        """Nothing.

        Raises:
            ConfigError: always.
        """
        raise _impossible(requests[0], "asks in rounds, each made of the answer before")

    def generate_visual_cot(self, requests: Sequence[Any]) -> list[str]:
        """Nothing.

        Raises:
            ConfigError: always.
        """
        raise _impossible(requests[0], "wants an image to be drawn")

    def clean(self) -> None:
        """Lets go of the model; lmms-eval calls it after the last request."""
        del self.trained
        super().clean()  # pyright: ignore[reportAttributeAccessIssue]

    def _groups(self, requests: Sequence[Any], title: str) -> Iterator[Sequence[Any]]:
        from beni.tracker.progress import index_progress

        with index_progress(os.environ.get("RANK", "0") == "0", title) as told:
            for first in range(0, len(requests), self.batch_size):
                group = requests[first : first + self.batch_size]
                yield group
                if told is not None:
                    told(first + len(group), len(requests))

    def _readings(self, texts: Sequence[tuple[Conversation, str]]) -> list[Reading]:
        """One forward pass, as ``beni.evaluate`` scores answers that it reads."""
        from beni.data.images import decode
        from beni.data.metric import LossOnly
        from beni.evals.ablations import TRUE
        from beni.evals.scores import read
        from beni.model.messages import as_sample

        samples = [as_sample([*asked, {"role": "assistant", "content": text}], True) for asked, text in texts]
        found = list(read(self.trained.subject(self.batch_size), LossOnly(), samples, TRUE))
        if len(found) < len(samples):  # it leaves out what cannot be decoded, and decoding says why
            for image in (image for sample in samples for image in sample.images):
                decode(image)
        return [reading for _, readings in found for reading in readings.values()]

    def _sampling(self, settings: Mapping[str, Any]) -> Sampling:
        """How an answer is chosen: greedily unless a temperature says otherwise, as transformers takes these words."""
        import torch

        from beni.model.speaking import LONGEST_ANSWER, Sampling

        given = {key: value for key, value in settings.items() if value is not None}
        temperature = float(given.get("temperature", 1.0 if given.get("do_sample") else 0.0))
        drawn = temperature > 0 and given.get("do_sample", True)
        self._require_obeyed(given, drawn)
        until = given.get("until", ())
        stop = (until,) if isinstance(until, str) else tuple(until)
        most = given.get("max_new_tokens", LONGEST_ANSWER)
        if not drawn:
            return Sampling(max_new_tokens=most, stop=stop)
        # lmms-eval has seeded torch's stream (--seed), so that repeats differ and evaluations do not
        seed = given["seed"] if "seed" in given else int(torch.randint(2**62, ()))
        return Sampling(temperature, float(given.get("top_p", 1.0)), most, stop, seed)

    def _require_obeyed(self, settings: Mapping[str, Any], drawn: bool) -> None:
        """Return when nothing but ``OBEYED`` could change an answer; a setting of other models is told, once.

        Raises:
            ConfigError: when something could.
        """
        from beni.console import to_stderr

        for key, value in settings.items():
            if key in OBEYED or value in NEUTRAL.get(key, ()) or (key == "top_k" and not drawn):
                continue
            if key not in OF_OTHERS:
                raise ConfigError(
                    f"generation_kwargs: {key}={value!r}, and the model {NAME} obeys {', '.join(OBEYED)}\n"
                    f"  fix: leave {key} out of the task"
                )
            if key not in self._told:
                self._told.add(key)
                to_stderr(f"{key}={value} is not obeyed: images are cut as in training")


@cache
def _classes() -> dict[str, type]:
    """The two kinds of lmms-eval's models."""
    from lmms_eval.api.model import lmms  # pyright: ignore[reportMissingImports]

    @final
    class Chat(Requests, lmms):
        is_simple = False

        def asked(self, request: Any) -> tuple[Conversation, Mapping[str, Any]]:
            _, messages_of, settings, number, task, split = request.args
            where = f"task {task}, document {number}"
            return [_message(one, where) for one in messages_of(self.task_dict[task][split][number])], settings

        def read(self, request: Any) -> tuple[Conversation, str]:
            raise _impossible(request, "asks for likelihoods in conversations", "set --force_simple")

    @final
    class Simple(Requests, lmms):
        is_simple = True

        def asked(self, request: Any) -> tuple[Conversation, Mapping[str, Any]]:
            context, settings, images_of, number, task, split = request.args
            return self._question(context, images_of, number, task, split), settings

        def read(self, request: Any) -> tuple[Conversation, str]:
            context, answer, *about = request.args
            if not about:  # what is likely without a question
                return [self.trained.processor.question(None, context)], answer
            images_of, number, task, split = about
            text = answer if isinstance(answer, str) else answer(self.task_dict[task][split][number])
            return self._question(context, images_of, number, task, split), str(text)

        def _question(self, context: str, images_of: Any, number: int, task: str, split: str) -> Conversation:
            where = f"task {task}, document {number}"
            shown = images_of(self.task_dict[task][split][number]) or ()
            return [self.trained.processor.question([_picture(one, where) for one in shown], context)]

    return {"Chat": Chat, "Simple": Simple}


def _message(given: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A message of lmms-eval's protocol -> one as ``Trained`` takes it."""
    content = given["content"]
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    return {"role": given["role"], "content": [_part(part, where) for part in parts]}


def _part(given: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    if given["type"] == "text":
        return given
    if given["type"] != "image":
        raise DataError(f"{where} has a part of type {given['type']}, {IMAGES_ALONE}")
    return {"type": "image", "image": given["url"]}


def _picture(given: Any, where: str) -> Picture:
    """What ``doc_to_visual`` gives -> an image."""
    if isinstance(given, PILImage.Image) or (isinstance(given, str) and given.lower().endswith(IMAGES)):
        return given
    what = given if isinstance(given, str) else type(given).__name__
    raise DataError(f"{where} shows {what:.120}, {IMAGES_ALONE}")


def _impossible(request: Any, why: str, fix: str = "leave this task out") -> ConfigError:
    return ConfigError(f"task {request.task_name} {why}, which the model {NAME} cannot\n  fix: {fix}")


def _require(name: str, value: Any, expected: Sequence[Any], more: str = "") -> None:
    if value not in expected:
        known = ", ".join(str(one).lower() for one in expected if one is not None)
        raise ConfigError(f"--model_args {name}={value}, expected one of {known}{more}\n  fix: leave {name} out")


def _use_host(trained: Trained) -> None:
    """Gives torch the threads of the run, as ``beni.evaluate`` does.

    Raises:
        ConfigError: when there are processes that lmms-eval does not know of.
    """
    from beni.distributed.environment import read_environment
    from beni.distributed.host import use_host

    environment = read_environment(trained.device.type)
    if environment.world != int(os.environ.get("WORLD_SIZE", "1")):
        raise ConfigError(
            f"{environment.world} processes of SLURM, of which lmms-eval does not know: each would score everything\n"
            "  fix: start one process, or torchrun -m lmms_eval"
        )
    use_host(environment, 0 if trained.run is None else trained.run["compute"]["threads"])
