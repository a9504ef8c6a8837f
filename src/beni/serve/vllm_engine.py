"""The engine vLLM: beni makes the embeddings of a prompt, images included, and vLLM's copy of the llm goes on.

vLLM brings paged attention, continuous batching and several GPUs to any composition whose llm reads a plain sequence:
nothing but embeddings at consecutive positions, under causal attention. What else a fusion, a pruner or gates ask of
the llm's layers is refused. Answers are greedy or drawn by vLLM's own sampler, so a seed gives other answers here
than with ``engine=transformers``.

Source: https://docs.vllm.ai/en/latest/features/prompt_embeds.html
"""

from __future__ import annotations

import asyncio
import logging
import os
import tempfile
import uuid
from collections.abc import AsyncGenerator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from pathlib import Path
from typing import Any

import torch

from beni.errors import BeniError, CompositionError, ConfigError, ResourceError
from beni.model.speaking import Row, Sampling
from beni.serve.asking import facts_of, message_of, sampling_of
from beni.serve.batching import told
from beni.serve.completions import Usage
from beni.serve.engine import Chat, Piece, Seen
from beni.serve.metrics import WorkerMetrics
from beni.serve.refused import Refused
from beni.trained import Trained
from beni.types import Sequence

log = logging.getLogger("beni.serve.worker")
KV_CACHE_GIB = "1"
"""Memory of the key/value cache on a CPU, where ``VLLM_CPU_KVCACHE_SPACE`` does not say."""


class VllmEngine:
    """Answers with vLLM.

    Args:
        trained: the model.
        model: name under which it is served.
        most: answers that are given at a time.
        waiting: conversations that may wait.
        parallel: GPUs over which the llm is split (vLLM's tensor parallelism).

    Raises:
        ConfigError: when vLLM is not installed.
        CompositionError: when vLLM cannot have this model's llm.
        ResourceError: when vLLM does not start.
    """

    def __init__(self, trained: Trained, model: str, most: int, waiting: int, parallel: int = 1) -> None:
        self.trained, self.model, self.metrics = trained, model, WorkerMetrics()
        self.limit, self.running = most + waiting, 0
        self._thread = ThreadPoolExecutor(1, "beni-embeddings")
        self._folder = tempfile.TemporaryDirectory(prefix="beni-vllm-")
        try:
            self._engine = _started(trained, Path(self._folder.name), most, parallel)
        except BaseException:
            self._thread.shutdown()
            self._folder.cleanup()
            raise

    async def answer(self, chat: Chat) -> AsyncGenerator[Piece]:
        if self.running >= self.limit:
            raise Refused(429, f"{self.limit} conversations are answered or wait", "too_many_requests", wait=1.0)
        self.running += 1
        try:
            async for piece in self._answer(chat):
                yield piece
        finally:
            self.running -= 1

    async def look(self, chat: Chat, answer: str) -> list[Seen]:
        raise Refused(501, "engine=vllm draws nothing; a worker with engine=transformers does", "not_supported")

    def facts(self) -> dict[str, Any]:
        return facts_of("vllm", self.trained)

    def sound(self) -> bool:
        return not self._engine.errored

    def close(self) -> None:
        self._engine.shutdown()
        self._thread.shutdown(cancel_futures=True)
        self._folder.cleanup()

    async def prompt(self, chat: Chat) -> Sequence:
        """What the llm reads in front of the answer.

        Raises:
            Refused: when the conversation cannot be rendered, or vLLM cannot be told all that the llm reads.
        """
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, self._prompt, chat)
        except BeniError as error:
            raise Refused(400, told(error), "invalid_conversation") from None

    async def tokens(self, sequence: Sequence, how: Sampling, most: int) -> AsyncGenerator[int]:
        """New tokens behind a prompt, an end token included; closing the iterator ends them."""
        name, embeds, ended = uuid.uuid4().hex, sequence.embeds[0].to("cpu", self._dtype()), False
        try:
            async for output in self._engine.generate({"prompt_embeds": embeds}, self._sampled(how, most), name):
                ended = output.finished
                for token in output.outputs[0].token_ids:
                    yield token
        finally:
            if not ended:
                await self._engine.abort(name)

    async def _answer(self, chat: Chat) -> AsyncGenerator[Piece]:
        how, sequence = sampling_of(chat), await self.prompt(chat)
        taken = sequence.embeds.shape[1]
        row = Row(self.trained.renderer, how, min(how.max_new_tokens, self.trained.room(taken)))
        async with aclosing(self.tokens(sequence, how, row.most)) as tokens:
            async for token in tokens:
                if text := row.take(token):
                    yield Piece(text)
                if row.finish is not None:
                    break
        usage = Usage(taken, len(row.ids))
        self.metrics.answers.labels(row.finish or "length").inc()
        self.metrics.tokens.labels("prompt").inc(usage.prompt)
        self.metrics.tokens.labels("completion").inc(usage.completion)
        yield Piece("", row.finish or "length", usage)

    def _prompt(self, chat: Chat) -> Sequence:
        sequence = self.trained.prompt([message_of(turn) for turn in chat.turns])
        require_plain(sequence)
        return sequence

    def _sampled(self, how: Sampling, most: int) -> Any:
        from vllm import SamplingParams  # pyright: ignore[reportMissingImports]
        from vllm.sampling_params import RequestOutputKind  # pyright: ignore[reportMissingImports]

        return SamplingParams(
            temperature=how.temperature,
            top_p=how.top_p,
            seed=None if how.seed is None else how.seed % 2**63,
            max_tokens=most,
            ignore_eos=True,
            stop_token_ids=list(self.trained.renderer.tokens.eos),
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,
        )

    def _dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.trained.precision == "bf16" else torch.float32


def require_plain(sequence: Sequence) -> None:
    """Return when embeddings are all that an llm has to be told of a prompt.

    Raises:
        CompositionError: when its layers are told of more.
    """
    positions = torch.arange(sequence.embeds.shape[1], device=sequence.position_ids.device)
    beyond = {
        "its tokens look ahead": sequence.blocks is not None and bool((sequence.blocks >= 0).any()),
        "its tokens have gates": sequence.log_gate is not None,
        "something stands between its layers": bool(sequence.visitors),
        "tokens leave between its layers": sequence.pruning is not None,
        "its positions have gaps": not torch.equal(sequence.position_ids[0], positions),
    }
    if why := [reason for reason, true in beyond.items() if true]:
        raise CompositionError(
            "E-VLLM",
            f"vLLM reads embeddings under causal attention and nothing else, and here {' and '.join(why)}",
            groups=("fusion", "pruner", "llm"),
            fix="serve it with --engine transformers",
        )


def _started(trained: Trained, folder: Path, most: int, parallel: int) -> Any:
    """vLLM with the weights of the llm, which are written for it."""
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", KV_CACHE_GIB)
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")  # it reports its use to its makers otherwise
    try:
        from vllm.engine.arg_utils import AsyncEngineArgs  # pyright: ignore[reportMissingImports]
        from vllm.v1.engine.async_llm import AsyncLLM  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ConfigError(
            f"--engine vllm needs the package vllm, which cannot be imported ({error})\n"
            "  fix: make vllm, and start the worker with .venv-vllm/bin/python; or set --engine transformers"
        ) from None
    save_llm(trained, folder)
    arguments = AsyncEngineArgs(
        model=str(folder),
        skip_tokenizer_init=True,
        enable_prompt_embeds=True,
        dtype="bfloat16" if trained.precision == "bf16" else "float32",
        max_model_len=trained.model.llm.max_positions,
        max_num_seqs=most,
        tensor_parallel_size=parallel,
        enforce_eager=trained.device.type == "cpu",
        enable_prefix_caching=False,  # prompts of embeddings have no ids to be found by
        disable_log_stats=True,
    )
    try:
        return AsyncLLM.from_engine_args(arguments)
    except Exception as error:  # of many kinds: memory, an architecture or sizes that it has not
        raise ResourceError(
            f"vLLM has not started with the llm of this model ({error})\n"
            "  fix: read what it has printed above; or serve with --engine transformers"
        ) from error


def save_llm(trained: Trained, folder: Path) -> None:
    """Writes the llm as transformers' class, with merged adapters.

    Raises:
        CompositionError: when it is no class of transformers.
    """
    model = trained.model
    model.merge_adapters()
    own = getattr(model.llm, "model", None)
    if own is None or not hasattr(own, "save_pretrained"):
        raise CompositionError(
            "E-VLLM",
            f"the llm ({type(model.llm).__name__}) is no class of transformers, which vLLM would know",
            groups=("llm",),
            fix="serve it with --engine transformers",
        )
    own.save_pretrained(folder)
