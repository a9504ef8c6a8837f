"""One run, from frozen config to report: plan, build, train, evaluate, render. Reads from top to bottom."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import torch

from beni import hub
from beni.assemble import DataPipeline, assemble, held_out
from beni.config.build import build
from beni.config.check import check
from beni.config.foreign import dropped_notices
from beni.config.sections.log import profiled_steps
from beni.console import unfailing_output
from beni.data.batch.loader import first_pictures
from beni.data.batch.probe import Probe
from beni.data.fetch.verdicts import Verdicts
from beni.data.render.identity import specimen
from beni.distributed.collectives import Peers, any_rank, barrier
from beni.distributed.environment import Environment, process_group, read_environment
from beni.distributed.fsdp import is_sharded, require_offload
from beni.distributed.host import use_host
from beni.distributed.watchdog import Watchdog
from beni.evals.evaluation import Evaluation
from beni.evals.heldout import HeldOut
from beni.evals.subject import Subject
from beni.llm.layout import Layout
from beni.measure import memory
from beni.measure.peak import Peak, find_peak
from beni.measure.profile import Profile
from beni.model.costing.bill import Bill, bill_of
from beni.model.costing.counts import Costs
from beni.model.costing.memory import estimate_memory, remedies
from beni.model.costing.table import SpecTable, propagate, spec_table
from beni.model.inputs import Loss
from beni.model.loss import resolve
from beni.model.modeling import BeniForConditionalGeneration
from beni.model.plan import count_parameters, plan_notices
from beni.model.quantized import packed_layers
from beni.model.saving import save
from beni.place import build_model, feature_bank, layout_for, place
from beni.reporter import Reporter
from beni.runs import files
from beni.runs.backlog import room_for
from beni.runs.folder import RunFolder
from beni.training.blocks import recomputing
from beni.training.checkpoint.tensors import whole_on_main
from beni.training.initial import saved_folder
from beni.training.loop import Trainer, TrainingJob
from beni.training.preempt import Preemption
from beni.training.settings import TrainerSettings
from beni.training.throughput import Meter

BILLED = 64
"""Steps whose samples are counted for a bill: packs hold more or less of them."""


def plan(run: Mapping[str, Any]) -> BeniForConditionalGeneration:
    """The run's model on the meta device, without weights.

    Raises:
        BeniError: when the run cannot be: unknown keys, weights that cannot be had, parts that do not fit.
    """
    check(dict(run))
    hub.require_weights(run)
    return propagate(run)


def bill(run: Mapping[str, Any]) -> Bill:
    """What the run would be billed for, by a few samples of its data as its spec table is.

    Raises:
        BeniError: when the run cannot be, or its data cannot be read here.
    """
    planned = plan(run)
    data = assemble(run, planned.viewer)
    with closing(data.fetcher):
        probe = data.probe()
    samples = data.schedule.samples(BILLED) / BILLED
    return bill_of(planned, run, probe.length, probe.label_rows, probe.image, samples)


@unfailing_output()
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
    environment = read_environment(run["compute"]["device"])
    planned.quantization.require(environment.device)
    require_offload(environment.device, run["fsdp"])
    use_host(environment, run["compute"]["threads"])
    folder = RunFolder(run, writes=environment.is_main)
    report = Reporter(folder, run, environment)
    if folder.finished() and run["checkpoint"]["resume"] != "never":
        report.already_finished()
        return folder.path
    if run["train"]["init_from"] is not None:
        saved_folder(Path(run["train"]["init_from"]), run["train"]["seed"])  # before anything is written
    with Preemption(any_rank if environment.world > 1 else None) as preemption:
        _train(run, planned, environment, preemption, folder, report, started)
    report.table()
    return folder.path


def _train(
    run: Mapping[str, Any],
    planned: BeniForConditionalGeneration,
    environment: Environment,
    preemption: Preemption,
    folder: RunFolder,
    report: Reporter,
    started: float,
) -> None:
    for notice in (*dropped_notices(run), *plan_notices(planned, run)):
        report.notice(notice)
    data, probe, held = _data(run, planned, environment, report)  # what it will see and cost, known without weights
    table = spec_table(planned, run, probe.length, probe.label_rows, probe.image)
    _require_memory(run, planned, probe, environment, report)
    with (
        process_group(environment, sharded=is_sharded(environment.world, run["fsdp"])),
        folder.opened(),
        closing(data.fetcher),
        Watchdog(run["log"]["watchdog_s"], environment.rank, environment.world, folder.hung) as watchdog,
        report,
    ):
        # from here on what is bad stays bad, for every rank and for who resumes
        data.fetcher.verdicts = Verdicts(folder.path / files.BAD_IMAGES, environment.rank)
        barrier()  # no rank looks into the folder before rank 0 has prepared it
        model = build_model(run, data.renderer.tokens.image, environment, report.notice)
        preemption.sync_point()

        peers = Peers()  # what only the first process can tell: the others may have no weights yet
        peers.from_main(lambda: _write_identity(folder, run, data, model, table, report))
        layout: Layout = peers.from_main(lambda: _layout(model, run, folder, report))
        loss: Loss = peers.from_main(lambda: resolve(model.llm, run["compute"]["loss"]))
        steps = data.steps(layout, environment.rank, environment.world, look_ahead=probe.remote)
        place(model, run, environment, lambda: first_pictures(steps))

        with feature_bank(model, run["compute"], report.notice) as report.bank:
            subject = _subject(model, run, data, layout, environment, preemption, watchdog)
            evaluation = _evaluation(run, subject, data, held.places, report)
            preemption.sync_point()
            job = TrainingJob(
                model=model,
                steps=steps,
                environment=environment,
                checkpoints=folder.path / files.CHECKPOINTS,
                signature=folder.identity["signature"],
                evaluate=evaluation.score,
                log=report,
                preemption=preemption,
                watchdog=watchdog,
                meter=_meter(run, planned, data, _peak(run, environment, folder, report)),
                profile=_profile(run, folder, report, environment.is_main),
                spent=float(folder.status.get("wall_s", 0.0)),
                started=started,
                faults=held.faults(),
            )
            _trainer(run, loss).fit(job)
            watchdog.beat("end", run["train"]["steps"])
            preemption.sync_point()
            _export(model, run, data, folder, environment)
            report.end(evaluation.gallery())
        barrier()


def _data(
    run: Mapping[str, Any], planned: BeniForConditionalGeneration, environment: Environment, report: Reporter
) -> tuple[DataPipeline, Probe, HeldOut]:
    """What the run learns from, what a few of its samples are like, and what it is scored on.

    Raises:
        DataError: when samples cannot be used.
    """
    data = assemble(run, planned.viewer, progress=environment.is_main, tell=report.notice)
    data.schedule.require(environment.world, run["train"]["accumulation"])
    held, told = held_out(data)
    for notice in told:
        report.notice(notice)
    return data, data.probe(), held


def _require_memory(
    run: Mapping[str, Any],
    planned: BeniForConditionalGeneration,
    probe: Probe,
    environment: Environment,
    report: Reporter,
) -> None:
    """Says what makes it doubtful that the run fits.

    Raises:
        ResourceError: when it does not.
    """
    laid_out = probe.laid_out(run["compute"]["layout"])
    sizes = (environment.world, *laid_out, environment.local_world, environment.on_first_machine)
    need = estimate_memory(planned, run, *sizes)
    for doubt in memory.require(need, environment.device, lambda: remedies(planned, run, environment.device, *sizes)):
        report.notice(doubt)


def _layout(model: BeniForConditionalGeneration, run: Mapping[str, Any], folder: RunFolder, report: Reporter) -> Layout:
    """The layout that the llm allows; status.json says so where it is not the one that was asked for."""
    wanted = run["compute"]["layout"]
    layout = layout_for(model, wanted, report.notice)
    if layout != wanted:
        folder.update(layout=layout)
    return layout


def _subject(
    model: BeniForConditionalGeneration,
    run: Mapping[str, Any],
    data: DataPipeline,
    layout: Layout,
    environment: Environment,
    preemption: Preemption,
    watchdog: Watchdog,
) -> Subject:
    """What is evaluated. Between two of its batches the run moves, and may have been asked to end."""

    def between() -> None:
        watchdog.beat()
        preemption.sync_point()

    return Subject(
        model,
        data.renderer,
        data.viewer,
        layout,
        run["compute"]["precision"],
        run["eval"]["batch_size"],
        environment.device,
        together=is_sharded(environment.world, run["fsdp"]) and environment.world > 1,
        between=between,
    )


def _evaluation(
    run: Mapping[str, Any], subject: Subject, data: DataPipeline, places: Sequence[int], report: Reporter
) -> Evaluation:
    return Evaluation(
        subject,
        data.source,
        data.fetcher,
        report,
        places=places,
        shown=run["eval"]["gallery"],
        attention=run["eval"]["attention"],
        ahead=run["images"]["ahead"] or 1,
        ablations=run["eval"]["ablations"],
        last=run["train"]["steps"],
    )


def _trainer(run: Mapping[str, Any], loss: Loss) -> Trainer:
    return build({"_target_": run["train"]["_target_"]}, TrainerSettings.of(run, loss))


def _peak(run: Mapping[str, Any], environment: Environment, folder: RunFolder, report: Reporter) -> Peak:
    """The rate that utilisation is a share of."""
    peak = find_peak(environment.device, run["compute"]["precision"], run["log"]["peak_tflops"])
    report.notice(peak.describe())
    folder.update(peak_tflops=peak.rate / 1e12, measured_tflops=peak.measured / 1e12)
    return peak


def _profile(run: Mapping[str, Any], folder: RunFolder, report: Reporter, main: bool) -> Profile | None:
    """The profile of the steps that the run asks for, on the first process; a report shows what comes of it."""
    wanted = run["log"]["profile"]
    steps = None if wanted is None else profiled_steps(wanted)
    if steps is None or not main:
        return None

    def tell(line: str, shares: Mapping[str, float]) -> None:
        report.notice(line)
        folder.update(**{f"profile/{part}": share for part, share in shares.items()})

    return Profile(steps, folder.path / files.PROFILE, tell)


def _meter(run: Mapping[str, Any], planned: BeniForConditionalGeneration, data: DataPipeline, peak: Peak) -> Meter:
    mode = run["compute"]["activation_checkpointing"]
    again = partial(recomputing, mode=mode) if mode in ("full", "selective") else None
    # selective keeps what attention made; what the compiler chooses to compute again nobody is told
    costs = Costs(planned, data.renderer.tokens.image, again, attention_kept=mode == "selective")
    return Meter(costs, peak, recomputes=mode != "memory_budget")


def _export(
    model: BeniForConditionalGeneration,
    run: Mapping[str, Any],
    data: DataPipeline,
    folder: RunFolder,
    environment: Environment,
) -> None:
    """Leaves the trained model, and its adapters where it has some, in the run folder, unless the run wants none."""
    if not run["checkpoint"]["export"]:
        return
    weights = whole_on_main(model, environment.is_main)
    if not environment.is_main:
        return
    with room_for(folder.path / files.MODEL):
        if "lora" in run["train"]["plan"].values():
            model.save_adapters(folder.path / files.ADAPTERS, weights)
        save(model, data.renderer, folder.path / files.MODEL, weights)


def _write_identity(
    folder: RunFolder,
    run: Mapping[str, Any],
    data: DataPipeline,
    model: BeniForConditionalGeneration,
    table: SpecTable,
    report: Reporter,
) -> None:
    """Everything that proves two runs comparable: data order, template, initial weights of each component.

    Raises:
        ResumeError: when the run has checkpoints of other data or frozen weights.
    """
    settings, fingerprint = run["train"], data.source.fingerprint()
    folder.identity |= {
        "data_fingerprint": fingerprint,
        "data_samples": {"training": len(data.source), "held out": len(data.source.heldout())},
        "template_hash": data.renderer.hash(),
        "specimen": specimen(data.renderer),
        "views": model.views.fingerprint(),
        "special_tokens": vars(data.renderer.tokens),
        "hashes": {
            "data_order": f"{fingerprint}-{data.schedule.hash(settings['steps'])}",
            "init": {name: _hash_weights(module) for name, module in model.named_children()},
        },
    }
    # checkpoints lack what is frozen, and what waits for train.thaw
    exact = {name for name, how in settings["plan"].items() if how != "full" or settings["thaw"].get(name)}
    if run["adapter"].get("init", "zero") != "zero":  # what is computed another machine may round otherwise
        exact -= {name for name, how in settings["plan"].items() if how == "lora"}
    for notice in folder.require_same(exact - {name.partition(".")[0] for name, _ in packed_layers(model)}):
        report.notice(notice)
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
