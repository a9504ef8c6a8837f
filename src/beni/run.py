"""One run, from frozen config to report: plan, build, train, evaluate, render. Reads from top to bottom."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from beni import hub
from beni.analysis.terminal_tables import run_table
from beni.config.build import build
from beni.config.check import check, profiled_steps
from beni.data.batch.loader import Steps, first_pictures
from beni.data.batch.probe import probe_samples
from beni.data.fetch.ahead import LookAhead
from beni.data.fetch.fetcher import Fetcher
from beni.data.fetch.verdicts import Verdicts
from beni.data.order.index import Index
from beni.data.order.lengths import RunLengths
from beni.data.order.schedule import Schedule, needs_lengths
from beni.data.render.template import Renderer
from beni.data.sample import Bind, at_hand
from beni.data.source import Source
from beni.distributed.collectives import Peers, anywhere, barrier
from beni.distributed.environment import Environment, process_group, read_environment
from beni.distributed.fsdp import is_sharded, require_offload, shard
from beni.distributed.hand_out import hand_out, tensors_of
from beni.distributed.host import use_host
from beni.distributed.watchdog import Watchdog
from beni.evals.evaluation import Evaluation
from beni.evals.subject import Subject
from beni.llm.layout import Layout, layout_of
from beni.llm.probes import require_embeddings
from beni.llm.tokenizer import load_tokenizer
from beni.measure import memory
from beni.measure.peak import Peak, find_peak
from beni.measure.profile import Profile
from beni.model.costing.counts import Costs
from beni.model.costing.memory import estimate_memory, remedies
from beni.model.costing.table import SpecTable, propagate, spec_table
from beni.model.loss import resolve
from beni.model.modeling import BeniForConditionalGeneration
from beni.model.plan import apply_plan, count_parameters
from beni.model.quantized import packed_layers
from beni.model.viewer import Viewer
from beni.nn.precision import autocast
from beni.reporter import Reporter
from beni.runs import files
from beni.runs.backlog import room_for
from beni.runs.folder import RunFolder
from beni.runs.read import collect_run
from beni.tracker.progress import index_progress
from beni.training.blocks import prepare_blocks, recomputing
from beni.training.checkpoint.tensors import whole_on_main
from beni.training.initial import load_initial
from beni.training.loop import Job, Trainer
from beni.training.preempt import Preemption
from beni.training.trainable import store_frozen_in_bf16
from beni.training.window import Meter
from beni.vision.feature_bank import FeatureBank, describe


def plan(run: Mapping[str, Any]) -> BeniForConditionalGeneration:
    """The run's model on the meta device, without weights.

    Raises:
        BeniError: when the run cannot be: unknown keys, weights that cannot be had, parts that do not fit.
    """
    check(dict(run))
    hub.require_weights(run)
    return propagate(run)


def train(run: Mapping[str, Any]) -> Path:
    """Runs a frozen run (``beni.compose``) to its end, or goes on where it was interrupted.

    Returns:
        The run folder. A run that has already finished is not repeated.

    Raises:
        BeniError: everything that a change of configuration, data or machine can fix, before anything is written.
        Preempted: a signal has ended the run; the same call goes on.
    """
    started = time.perf_counter()
    planned = plan(run)
    settings = run["train"]
    environment = read_environment(settings["device"])
    planned.quantization.require(environment.device)
    require_offload(environment.device, run["fsdp"])
    use_host(environment, settings["threads"])
    with Preemption(anywhere if environment.world > 1 else None) as preemption:
        return _train(run, planned, environment, preemption, started)


def _train(
    run: Mapping[str, Any],
    planned: BeniForConditionalGeneration,
    environment: Environment,
    preemption: Preemption,
    started: float,
) -> Path:
    settings, handed = run["train"], is_sharded(environment.world, run["fsdp"])

    # what the run will see and cost, known without weights
    tokenizer = load_tokenizer(run["llm"])
    renderer = Renderer(tokenizer, run["template"])
    fetcher = Fetcher(run["images"])
    source: Source = build(run["data"], settings["seed"])
    viewer = planned.viewer  # of the twin without weights: loader processes may have to copy it
    schedule = make_schedule(run, source, renderer, viewer, environment.is_main, fetcher.bind)
    schedule.require(environment.world, settings["accumulation"])
    probe = probe_samples(source, renderer, viewer, fetcher.bind)
    table = spec_table(planned, run, probe.length, probe.label_rows, probe.image)
    laid_out = probe.laid_out(settings["layout"])
    sizes = (environment.world, *laid_out, environment.local_world, environment.on_first_machine)
    need = estimate_memory(planned, run, *sizes)
    doubts = memory.require(need, environment.device, lambda: remedies(planned, run, environment.device, *sizes))
    if doubts and environment.is_main:
        Console(stderr=True).print("\n".join(doubts), highlight=False)

    folder = RunFolder(run, writes=environment.is_main)
    if folder.finished() and run["checkpoint"]["resume"] == "auto":
        if environment.is_main:
            Console().print(f"already finished: {folder.path} (checkpoint.resume=never runs it again)")
            Console().print(run_table(collect_run(folder.path)))
        return folder.path
    with (
        process_group(environment, sharded=handed),
        folder.opened(),
        closing(fetcher),
        Watchdog(settings["watchdog_s"], environment.rank, environment.world, folder.hung) as watchdog,
    ):
        # from here on what is bad stays bad, for every rank and for who resumes
        fetcher.verdicts = Verdicts(folder.path / files.BAD_IMAGES, environment.rank)
        barrier()  # no rank looks into the folder before rank 0 has prepared it
        peers, main = Peers(), environment.is_main
        model = _build(run, renderer, with_weights=main or not handed)
        apply_plan(model, settings["plan"])
        preemption.meet()
        # the others may have no weights yet
        peers.from_main(lambda: _write_identity(folder, run, source, schedule, renderer, model, table))
        layout = peers.from_main(lambda: _layout(model, settings["layout"], folder))
        loss = peers.from_main(lambda: resolve(model.llm, settings["loss"]))
        if settings["precision"] == "bf16":
            store_frozen_in_bf16(model, settings["plan"])
        if not handed:
            torch.nn.Module.to(model, environment.device)
        steps = Steps(
            source,
            renderer,
            viewer,
            schedule,
            settings["accumulation"],
            layout,
            environment.rank,
            environment.world,
            pixel_keys=settings["feature_bank"] is not None,
            on_bad=run["images"]["on_bad"],
            look_ahead=LookAhead(fetcher, run["images"]["ahead"], settings["steps"]) if probe.remote else None,
            bind=fetcher.bind,
        )
        if model.fusion.calibrates and settings["init_from"] is None and (main or not handed):
            device = torch.device("cpu") if handed else environment.device
            with autocast(device, settings["precision"]):
                model.eval().calibrate(first_pictures(steps).to(device))
        prepare_blocks(model, settings)
        whole = tensors_of(model) if main else {}
        shard(model, model.sharding_units(), environment, run["fsdp"], settings["precision"])
        if handed:
            hand_out(model, whole, environment, run["fsdp"]["offload"])
        del whole

        peak = find_peak(environment.device, settings["precision"], settings["peak_tflops"])
        if environment.is_main:
            Console(stderr=True).print(peak.describe(), highlight=False)
            folder.update(peak_tflops=peak.rate / 1e12, measured_tflops=peak.measured / 1e12)

        def between() -> None:
            """Between two batches of an evaluation: the run moves, and may have been asked to end."""
            watchdog.beat()
            preemption.meet()

        subject = Subject(
            model,
            renderer,
            viewer,
            layout,
            settings["precision"],
            run["eval"]["batch_size"],
            environment.device,
            together=handed and environment.world > 1,
            between=between,
        )
        with (
            Reporter(folder, run, model, environment) as report,
            _feature_bank(model, settings, report),
        ):
            evaluation = _evaluation(run, subject, source, schedule, fetcher, report)
            trainer: Trainer = build(run["train"] | {"loss": loss})
            preemption.meet()
            trainer.fit(
                Job(
                    model=model,
                    steps=steps,
                    environment=environment,
                    optim=run["optim"],
                    checkpoint=run["checkpoint"],
                    checkpoints=folder.path / files.CHECKPOINTS,
                    signature=folder.identity["signature"],
                    max_bad=run["images"]["max_bad"],
                    eval_every=run["eval"]["every"],
                    evaluate=evaluation.score,
                    log=report,
                    preemption=preemption,
                    watchdog=watchdog,
                    meter=_meter(planned, renderer, settings, peak),
                    profile=_profile(settings, folder, report, main),
                    spent=float(folder.status.get("wall_s", 0.0)),
                    started=started,
                )
            )
            watchdog.beat("end", settings["steps"])
            preemption.meet()
            if run["checkpoint"]["export"]:
                whole = whole_on_main(model, environment.is_main)
                with room_for(folder.path / files.MODEL):
                    if environment.is_main:
                        if "lora" in settings["plan"].values():
                            model.save_adapters(folder.path / files.ADAPTERS, whole)
                        model.save_pretrained(folder.path / files.MODEL, state_dict=whole)  # which empties it
                        tokenizer.save_pretrained(folder.path / files.MODEL)
            report.end(evaluation.gallery())
        barrier()
    if environment.is_main:
        Console().print(run_table(collect_run(folder.path)))
    return folder.path


def make_schedule(
    run: Mapping[str, Any],
    source: Source,
    renderer: Renderer,
    viewer: Viewer,
    progress: bool = False,
    bind: Bind = at_hand,
) -> Schedule:
    """The run's schedule, with an index where it needs one; that is built now or found in the cache.

    Args:
        progress: show how far the build is.
        bind: how pictures of the source can be opened.

    Raises:
        DataError: when samples cannot be used, or do not fit into a pack.
    """
    settings, train = run["schedule"], run["train"]
    lengths = None
    with index_progress(progress) as told:
        index = Index(source, renderer, viewer.sized, train["workers"] or 1, told, bind)
        source.measure(index.mean_tokens)
        if needs_lengths(settings):
            each = settings["tokens_per_image"]
            lengths = RunLengths(index, viewer, run["template"], None if each == "auto" else each)
            lengths.loads(0)
    return Schedule(train["seed"], len(source), train["batch_size"], settings, lengths)


def _evaluation(
    run: Mapping[str, Any], subject: Subject, source: Source, schedule: Schedule, fetcher: Fetcher, report: Reporter
) -> Evaluation:
    settings = run["eval"]
    return Evaluation(
        subject,
        source,
        fetcher,
        report,
        examples=schedule.samples(run["train"]["steps"]) if settings["examples"] == "auto" else settings["examples"],
        shown=settings["gallery"],
        ahead=run["images"]["ahead"] or 1,
    )


def _profile(settings: Mapping[str, Any], folder: RunFolder, report: Reporter, main: bool) -> Profile | None:
    """Of the steps that the run asks for, on the first process; a report shows what comes of it."""
    steps = None if settings["profile"] is None else profiled_steps(settings["profile"])
    if steps is None or not main:
        return None

    def tell(line: str, shares: Mapping[str, float]) -> None:
        report.notice(line)
        folder.update(**{f"profile/{part}": share for part, share in shares.items()})

    return Profile(steps, folder.path / files.PROFILE, tell)


def _meter(planned: BeniForConditionalGeneration, renderer: Renderer, settings: Mapping[str, Any], peak: Peak) -> Meter:
    mode = settings["activation_checkpointing"]
    again = partial(recomputing, mode=mode) if mode in ("full", "selective") else None
    # selective keeps what attention made; what the compiler chooses to compute again nobody is told
    costs = Costs(planned, renderer.tokens.image, again, attention_kept=mode == "selective")
    return Meter(costs, peak, recomputes=mode != "memory_budget")


def _build(run: Mapping[str, Any], renderer: Renderer, with_weights: bool) -> BeniForConditionalGeneration:
    model = build(run["model"], run, renderer.tokens.image, with_weights)
    if run["train"]["init_from"] is not None and with_weights:
        taken = load_initial(model, Path(run["train"]["init_from"]))
        Console(stderr=True).print(taken.describe(), highlight=False)
    return model


@contextmanager
def _feature_bank(
    model: BeniForConditionalGeneration, settings: Mapping[str, Any], report: Reporter
) -> Iterator[FeatureBank | None]:
    """Inside the block the model has the bank of its encoder as it is now: loaded, on its device, in its precision."""
    if settings["feature_bank"] is None:
        yield None
        return
    description = describe(model.vision, model.config.parts["vision"], settings["precision"])
    bank = FeatureBank(Path(settings["feature_bank"]).expanduser(), description, report.notice)
    report.notice(f"feature bank: {bank.path} holds {len(bank)} views of this vision encoder")
    model.feature_bank = bank
    try:
        yield bank
    finally:
        bank.close()


def _layout(model: BeniForConditionalGeneration, wanted: Layout, folder: RunFolder) -> Layout:
    """``padded`` where the llm cannot keep packed samples apart."""
    require_embeddings(model.llm)
    said = model.llm.describe()
    if model.llm.capabilities.varying_positions:
        Console(stderr=True).print(
            f"rope_type={said.rope_type}: a sample of more positions than this llm was first made for changes what the "
            "others of its micro-batch get, as it does in transformers"
        )
    layout = layout_of(model.llm, wanted, looks_ahead=model.fusion.looks_ahead, gated=model.specs["llm"].gated)
    if layout != wanted:
        Console(stderr=True).print(
            f"{said.kind} does not pass beni's segment attention on, so packed samples would see each other: "
            "this run uses train.layout=padded"
        )
        folder.update(layout="padded")
    return layout


def _write_identity(
    folder: RunFolder,
    run: Mapping[str, Any],
    source: Source,
    schedule: Schedule,
    renderer: Renderer,
    model: BeniForConditionalGeneration,
    table: SpecTable,
) -> None:
    """Everything that proves two runs comparable: data order, template, initial weights of each component.

    Raises:
        ResumeError: when the run has checkpoints of other data or frozen weights.
    """
    settings = run["train"]
    folder.identity |= {
        "data_fingerprint": source.fingerprint(),
        "template_hash": renderer.hash(),
        "special_tokens": vars(renderer.tokens),
        "hashes": {
            "data_order": f"{source.fingerprint()}-{schedule.hash(settings['steps'])}",
            "init": {name: _hash_weights(module) for name, module in model.named_children()},
        },
    }
    # checkpoints lack what is frozen, and what waits for train.thaw
    exact = {name for name, how in settings["plan"].items() if how != "full" or settings["thaw"].get(name)}
    if run["adapter"].get("init", "zero") != "zero":  # what is computed another machine may round otherwise
        exact -= {name for name, how in settings["plan"].items() if how == "lora"}
    for notice in folder.require_same(exact - {name.partition(".")[0] for name, _ in packed_layers(model)}):
        Console(stderr=True).print(notice, highlight=False)
    folder.write_json(files.IDENTITY, folder.identity)
    folder.write_json(files.SPEC, table.to_dict())
    folder.update(parameters=count_parameters(model))


def _hash_weights(module: torch.nn.Module) -> str | None:
    digest = hashlib.sha256()
    state = module.state_dict()
    for name, tensor in sorted(state.items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16] if state else None
