"""What selectors and pruners take and save: seconds of a prefill and of a decoded token beside all visual tokens.

The encoder is a ViT-B/16 at 384 pixels (576 tokens), the llm has the size of SmolLM2-135M; weights are random, as time
does not depend on them. A quarter of the tokens stays in all. Of gates and of the router the second phase is timed, in
which tokens are dropped. Each option and the model without it answer the same questions in turn.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch

from beni import compose
from beni.config.build import build as build_part
from beni.data.images import decode
from beni.data.render.template import Renderer
from beni.evals.subject import Asked, Subject
from beni.evals.tradeoff import generation_seconds
from beni.llm.tokenizer import load_tokenizer
from beni.measure.latency import Ratio, ratio
from beni.model.build import build
from beni.model.costing.plan import Assumed, plan_of
from harness import write_result

ENCODER = (
    *("vision=clip_b32", "vision.weights=random", "vision.image_size=384"),
    *("vision.architecture.image_size=384", "vision.architecture.patch_size=16"),
)
LLM = (
    *("llm.architecture.hidden_size=576", "llm.architecture.intermediate_size=1536"),
    *("llm.architecture.num_hidden_layers=30", "llm.architecture.num_attention_heads=9"),
    *("llm.architecture.num_key_value_heads=3", "llm.architecture.vocab_size=49152"),
)
ALL = (*ENCODER, *LLM, "data=shapes", "data.heldout=16", "compute.device=cpu")
KEPT = "selector.keep=0.25"
GATE = ("selector.phase=drop", KEPT)
OPTIONS: dict[str, tuple[str, ...]] = {
    **{
        f"selector={name}": (KEPT,)
        for name in (
            *("random", "uniform", "center", "norm", "attention", "pool", "divprune", "vispruner", "holov"),
            *("visionzip", "prumerge", "tome", "prompt_topk", "cdpruner"),
        )
    },
    "selector=prompt_topk selector.source=hidden": (KEPT,),
    "selector=threshold": ("selector.threshold=0.674",),  # the upper quartile of a normal distribution
    **{f"selector={name}": GATE for name in ("gate_gumbel", "gate_hard_concrete", "gate_hardkuma", "dynamicvit")},
    "selector=router": ("selector.phase=drop", "selector.coarse=0.25", "selector.threshold=0.99"),  # always coarse
    "pruner=fastv": ("pruner.keep=0.25",),
    "pruner=pyramiddrop": (),
    "pruner=sparsevlm": (),
    "pruner=dart": ("pruner.keep=0.25",),
    "views=downsample": ("views.keep=0.25",),
}
"""What is timed, and how it is told to leave a quarter; PyramidDrop and SparseVLM have the shares of their papers."""


@dataclass(frozen=True)
class Side:
    """A model, the questions it is asked, and FLOPs of its prefill by the plan."""

    subject: Subject
    asked: Sequence[Asked]
    prefill_flops: int

    @classmethod
    def of(cls, overrides: Sequence[str], precision: str) -> Side:
        run: dict[str, Any] = compose([*ALL, *overrides])
        model = build(run).eval()
        source = build_part(run["data"], run["train"]["seed"])
        renderer = Renderer(load_tokenizer(run["llm"]), run["template"])
        subject = Subject(model, renderer, model.viewer, "packed", precision, 1, torch.device("cpu"))
        asked = [Asked(sample, [decode(image) for image in sample.images]) for sample in source.heldout()]
        plan = plan_of(run, Assumed((384, 384), 24, 4, 1, 1))
        return cls(subject, asked, plan.table.prefill_flops)

    def prompts(self) -> list[Any]:
        return [self.subject.prompt(one) for one in self.asked]


def told(seconds: Sequence[float], times: Ratio) -> str:
    """Median milliseconds, and the ratio to all tokens with its interval."""
    return f"{1000 * median(seconds):.0f} ms, {times.median:.2f} ({times.low:.2f} to {times.high:.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7, help="questions that each is timed on (%(default)s)")
    parser.add_argument("--new-tokens", type=int, default=16, help="decoded tokens that are timed (%(default)s)")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--threads", type=int, default=0, help="of torch; 0 = all cores")
    parser.add_argument("--only", nargs="*", help="such as selector=random; default: all")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    chosen = {name: words for name, words in OPTIONS.items() if not arguments.only or name in arguments.only}
    whole = Side.of((), arguments.precision)
    rows, values = [], {}
    for name, words in chosen.items():
        side = Side.of((*name.split(), *words), arguments.precision)
        pair = (side.subject, whole.subject)
        prompts = [side.prompts(), whole.prompts()]
        prefill, decoding = generation_seconds(pair, prompts, arguments.rounds, arguments.new_tokens)
        flops = side.prefill_flops / whole.prefill_flops
        rows.append(
            [f"`{name}`", f"{flops:.2f}", told(prefill[0], ratio(*prefill)), told(decoding[0], ratio(*decoding))]
        )
        values[name] = {"prefill_flops": flops, "prefill": prefill, "decoding": decoding}
        print(" | ".join(rows[-1]), flush=True)
    write_result(
        "fewer_tokens",
        "A prefill and a decoded token with a quarter of 576 visual tokens, beside all of them.",
        ["option", "prefill FLOPs / all tokens", "prefill, ratio to all tokens", "decoded token, ratio to all tokens"],
        rows,
        [
            f"{arguments.precision}, one question at a time, ViT-B/16 at 384 pixels, llm of SmolLM2-135M's size, "
            "random weights",
            f"medians of {arguments.rounds} questions, both models in turn; the ratio is the median of each round's, "
            "in brackets its 95 % interval by bootstrap",
            "a prefill is all up to the first new token: the encoder, the selector and the llm",
            "threshold keeps as many as pass, and is billed for all; router is billed for the mean of both budgets and "
            "takes the small one here; pyramiddrop and sparsevlm have their papers' shares",
        ],
        measured=values,
    )


if __name__ == "__main__":
    main()
