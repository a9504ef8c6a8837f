"""A user's mistake costs a second and one screen: the value, what was expected, and the override that fixes it."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from beni.components import DESCRIBED
from beni.config.compose import compose
from beni.errors import BeniError, ConfigError
from beni.paths import conf_dir

Command = Callable[..., subprocess.CompletedProcess[str]]

MISTAKES = {
    # misspelt and unknown keys
    "resampler=perceiver resampler.depthh=2": ("resampler.depthh", "did you mean resampler.depth?"),
    "resampler=perceiver +resampler.depthh=2": ("resampler.depthh", "did you mean resampler.depth?"),
    "+resampler.depthh=2": ("resampler=none has no keys", "did you mean resampler.depth with resampler="),
    "trian.steps=3": ("trian.steps", "did you mean train.steps?"),
    "train.plan.lmm=full": ("train.plan.lmm", "did you mean train.plan.llm?"),
    "lr=1e-3": ("unknown key lr", "did you mean optim.lr?"),
    "train.steps.now=3": ("unknown key train.steps.now", "leave out train.steps.now"),
    "+nonsense=3": ("unknown key nonsense", "leave out nonsense"),
    "~resampler": ("resampler is missing", "leave out ~resampler"),
    "~resampler.depth": ("~resampler.depth", "leave out"),
    # misspelt options
    "experiment=stampz": ("experiment=stampz", "did you mean experiment=stamps?"),
    "recipe=llava16": ("recipe=llava16", "did you mean recipe=llava15?"),
    "optim=zzz": ("optim=zzz", "expected one of: adafactor, adamw, "),
    "resampler=null": ("resampler=null: an option is the name of a file, not null", "write resampler=none"),
    "vision=true": ("vision=true: an option is the name of a file, not true", "write vision="),
    "optim=3": ("optim=3: an option is the name of a file, not 3", "write optim=adafactor"),
    "+resampler=perceiver": ("second option", "without the plus"),
    "resampler=[none,perceiver]": ("resampler takes one option", "-m resampler=A,B"),
    "optim=[adamw,lion]": ("optim takes one option", "-m optim=A,B"),
    "template=[chat,plain]": ("template takes one option", "-m template=A,B"),
    "launcher=[local,slurm_node]": ("launcher takes one option", "-m launcher=A,B"),
    # types
    "train.steps=abc": ("train.steps=abc", "expected a whole number"),
    "train.steps=1.5": ("train.steps=1.5", "set train.steps="),
    "train.steps=null": ("train.steps=null", "set train.steps="),
    "train.steps=true": ("train.steps=true", "expected a whole number"),
    "checkpoint.export=1": ("checkpoint.export=1", "expected true or false"),
    "compute.precision=fp23": ("compute.precision=fp23", "set compute.precision=fp32"),
    "train.plan.llm=half": ("train.plan.llm=half", "one of auto, frozen, full, lora"),
    "train.plan=full": ("train.plan", "set train.plan."),
    "train.steps=1e3": ("train.steps=1000.0, expected a whole number", "set train.steps=1000"),
    "train.steps={now:3}": ("unknown key train.steps.now", "leave out train.steps.now"),
    "data.size=lots": ("data.size=lots", "set data.size="),
    "optim.betas=[0.9,high]": ("optim.betas", "list[float]"),
    # mappings: the entry that is wrong is named, not the mapping
    "vision={hidden:3}": ("unknown key vision.hidden", "vision=tiny_vit has the keys"),
    "data=mixture data.weights.shapes=much": ("data.weights.shapes=much, expected a number", "data.weights.shapes=0.1"),
    "train.plan={lmm:full}": ("unknown key train.plan.lmm", "did you mean train.plan.llm?"),
    "adapter=lora train.plan.llm=lora adapter.targets.llm=3": (
        "adapter.targets.llm=3",
        "adapter.targets.llm=all-linear",
    ),
    "llm=smollm2 llm.architecture.hidden_size=64": ("llm.architecture.hidden_size=64, but", "set llm.weights=random"),
    "vision.name=mine": ("vision.name=mine is not read", "vision.architecture=null"),
    "+resampler._partial_=true": ("unknown key resampler._partial_", "leave out resampler._partial_"),
    # ranges of parts
    "connector=linear connector.dropout=1.5": ("connector.dropout=1.5, expected", "set connector.dropout=0.1"),
    "resampler=perceiver resampler.attention_dropout=nan": ("attention_dropout=nan, expected", "attention_dropout=0.1"),
    "resampler=perceiver resampler.num_heads=0": ("num_heads=0, expected a whole number of at least 1", "num_heads=1"),
    "resampler=gemma3 resampler.init_std=-1": ("init_std=-1, expected", "set resampler.init_std=0.02"),
    "vision.image_size=0": ("vision.image_size=0, expected a whole number of at least 1", "set vision.image_size=1"),
    "vision.std=[0,1,1]": ("each a finite number above 0", "set 'vision.std=[0.1, 1, 1]'"),
    "vision.mean=[nan,1,1]": ("vision.mean=[nan, 1, 1], expected", "set 'vision.mean=[0.1, 1, 1]'"),
    "vision=mof vision.encoders.clip.image_size=0": ("vision.encoders.clip.image_size=0", "clip.image_size=1"),
    "llm.architecture.hidden_size=0": ("hidden_size=0, expected whole numbers between 1", "hidden_size=1 or more"),
    "vision.architecture.num_hidden_layers=1000000": ("expected whole numbers between 1 and 1000", "layers=1 or more"),
    "llm.architecture.attention_dropout=1.5": (
        "attention_dropout=1.5, expected",
        "llm.architecture.attention_dropout=0.1",
    ),
    # ranges
    "train.steps=0": ("train.steps=0", "set train.steps=1 or more"),
    "log.watchdog_s=-1": ("log.watchdog_s=-1", "set log.watchdog_s=300, or 0 to disable"),
    "log.watchdog_s=inf": ("log.watchdog_s=inf, expected a finite number", "set log.watchdog_s=300"),
    "checkpoint.keep_best=accuracy": ("checkpoint.keep_best=accuracy", "set checkpoint.keep_best=eval/accuracy"),
    "checkpoint.keep_best=eval/loss": ("eval.every=0 makes only the last", "set eval.every"),
    "eval.ablations=[noise,swapped,noise]": ("names one of them twice", "set 'eval.ablations=[noise,swapped]'"),
    "eval.ablations=[blank]": ("eval.ablations=['blank'], expected", "fix: set"),
    "checkpoint.on_error=stop": ("checkpoint.on_error=stop", "set checkpoint.on_error="),
    "train.seed=-1": ("train.seed=-1", "set train.seed=0 or more"),
    "train.accumulation=65": ("train.batch_size=32", "set train.accumulation=32 or less"),
    "optim.lr=0": ("optim.lr=0", "set optim.lr="),
    "optim.clip=nan": ("optim.clip=nan", "set optim.clip=0 or more"),
    "optim.warmup_ratio=1": ("optim.warmup_ratio=1", "set optim.warmup_ratio="),
    "optim.min_lr=1": ("exceeds optim.lr", "set optim.min_lr=0.0"),
    "optim.betas=[0.9]": ("optim.betas=[0.9]", "two numbers"),
    "optim.eps=0": ("optim.eps=0", "set optim.eps=1e-8"),
    "optim.layer_decay.llm=1.1": ("optim.layer_decay.llm=1.1", "set optim.layer_decay.llm="),
    "optim.layer_decay.vision=0": ("optim.layer_decay.vision=0", "set optim.layer_decay.vision="),
    "optim=muon optim.momentum=1": ("optim.momentum=1", "set optim.momentum=0.95"),
    "optim=muon optim.ns_steps=0": ("optim.ns_steps=0", "set optim.ns_steps=5"),
    "optim=adafactor optim.beta2_decay=0.8": ("optim.beta2_decay=0.8", "set optim.beta2_decay=-0.8"),
    "optim=adafactor optim.min_scale=-1": ("optim.min_scale=-1", "set optim.min_scale="),
    "optim=adafactor optim.clip_threshold=0.5": ("optim.clip_threshold=0.5", "set optim.clip_threshold=1.0"),
    "optim.schedule=wsd": ("optim.decay_ratio=null", "set optim.decay_ratio=0.2"),
    "optim.schedule=wsd optim.decay_ratio=0": ("optim.decay_ratio=0,", "set optim.decay_ratio=0.2"),
    "optim.schedule=linear optim.decay_ratio=0.2": ("not by linear", "set optim.schedule=wsd"),
    "optim.schedule=wsd optim.decay_ratio=0.9 optim.warmup_ratio=0.2": ("exceed 1 together", "decay_ratio=0.8"),
    "train.ema=1": ("train.ema=1,", "set train.ema=0.999"),
    "train.ema=-0.1": ("train.ema=-0.1,", "set train.ema=0.999"),
    "train.thaw.llm=1": ("train.thaw.llm=1,", "set train.thaw.llm="),
    "train.thaw.vision=0.5 train.plan.vision=frozen": ("but train.plan.vision=frozen", "set train.plan.vision=full"),
    "train.thaw.vision=0.5 vision=siglip": ("train.thaw.vision=0.5, but", "set train.plan.vision=full"),
    "train.thaw.llm=0.99 train.steps=10": (
        "leaves llm no trainable step of train.steps=10",
        "set train.thaw.llm lower",
    ),
    "eval.gallery=-1": ("eval.gallery=-1", "set eval.gallery=0 or more"),
    "study.name=a/b": ("study.name=a/b", "set study.name="),
    "study.name=..": ("study.name=..", "set study.name="),
    "study.match=flops": ("study.match=flops, expected", "set study.match=train_flops"),
    "study.match=tokens study.budget=0": ("study.budget=0, expected a finite number above 0", "set study.budget=1e15"),
    "study.match=params": ("study.solve=train.steps does not change it", "or to null in one with none"),
    "study.match=steps study.solve=train.batch_size": ("does not change them", "set study.solve=train.steps"),
    "study.match=params study.solve=resampler.num_latents": ("resampler.num_latents is not there", "or to null"),
    "study.match=params study.solve=train.plan": ("study.solve=train.plan is {", "or to null"),
    "study.budget=1e15": ("study.budget is not read under study.match=null", "set study.match=train_flops"),
    "study.solve=null": ("study.solve is not read under study.match=null", "or leave out study.solve"),
    "paths.runs=": ("paths.runs", "set paths.runs=runs"),
    # values that nobody reads where they stand
    "schedule.tokens=64": ("schedule.tokens is not read under schedule.unit=sample", "set schedule=packs"),
    "schedule.window=64": ("schedule.window is not read under", "schedule.group=length"),
    "train.guard.threshold=5": ("not read under train.guard.spike=accept", "set train.guard.spike=skip"),
    "train.guard.most=5": ("train.guard.most is not read under", "set train.guard.nonfinite=skip"),
    "compute.memory_budget=0.3": (
        "not read under compute.activation_checkpointing=none",
        "=memory_budget compute.comp",
    ),
    "fsdp.reshard_after_forward=false": ("not read under fsdp.mode=none", "set fsdp=full"),
    "data=vqa data.path=~/x.jsonl": ("a value cannot begin with ~", "data.path=$HOME/x.jsonl"),
    "resampler=none,perceiver": ("several values for one run", "python -m beni.train -m resampler=none,perceiver"),
    "eval=[]": ("eval=[], expected a mapping with the keys", "set eval."),
    "tracker=[[a]]": ("an option is the name of a file", "write tracker="),
    "llm=tiny_llama llm.weights=pretrained": ("llm.name=null says of no weights", "set llm.weights=random"),
    "data.size=1000000000000": ("data.size=1000000000000, expected", "set data.size="),
    "adapter=???": ("adapter=??? chooses no option", "set adapter=dora"),
    "connector=linear connector.hidden=64": ("connector.hidden is not read under connector.depth=1", "depth=2"),
    "llm.architecture={model_type:null}": (
        "model_type=null, expected the name of a type of model",
        "llm.architecture.model_type=llama",
    ),
    "vision.levels=[1,2]": (
        "vision.levels is not read under resampler=none",
        "set resampler=tokenpacker",
    ),
    "views=native vision=siglip2_naflex views.min_patches=9": (
        "views.min_patches is not read under views.fill=true",
        "set views.fill=false",
    ),
    "images.retries=5": ("images.retries is not read under data=shapes, which fetches", "or leave out images.retries"),
    "data=mixture images.ahead=5": ("images.ahead is not read under data=mixture", "or leave out images.ahead"),
    "template.name=plain": ("template.name=plain is a label", "set template=plain"),
    # values that cannot be resolved
    "study.name=???": ("study.name", "set study.name="),
    "study.name=${nowhere}": ("'nowhere' not found", "set study.name"),
    "train.seed=[1": ("train.seed=[1", "KEY=VALUE"),
    "resampler": ("'resampler' is not an override", "KEY=VALUE"),
    # values of another option
    "optim=lion optim.eps=1e-8": ("unknown key optim.eps", "did you mean optim.eps with optim=adamw"),
    "optim=lion +optim.eps=1e-8": ("unknown key optim.eps", "did you mean optim.eps with optim=adamw"),
    "optim=adafactor optim.betas=[0.9,0.99]": ("unknown key optim.betas", "did you mean optim.betas with optim="),
    "optim.optimizer=lion": ("optim.optimizer=lion, but optim=adamw", "set optim=lion"),
    "optim.optimizer=adam": ("optim.optimizer=adam,", "set optim.optimizer=adamw"),
    "optim.schedule=cos": ("optim.schedule=cos,", "set optim.schedule=cosine"),
    # combinations
    "optim=adafactor fsdp=full": ("optim=adafactor factors", "set optim=adamw, optim=lion or optim=muon"),
    "optim=adamw_8bit fsdp=full": ("optim=adamw_8bit quantizes", "or fsdp=none"),
    "optim=adafactor fsdp=ddp": ("optim=adafactor factors", "or fsdp=none"),
    "optim=adamw_8bit fsdp=hybrid": ("fsdp.mode=hybrid shards tensors", "or fsdp=none"),
    "fsdp=full fsdp.shard_size=2": ("fsdp.shard_size=2 with fsdp.mode=full", "choose fsdp=hybrid"),
    "fsdp=hybrid fsdp.shard_size=0": ("fsdp.shard_size=0", "set fsdp.shard_size=null"),
    "fsdp.offload=true": ("fsdp.offload=true with fsdp.mode=none", "set fsdp=full"),
    "fsdp.frozen=shard": ("fsdp.frozen=shard with fsdp.mode=none", "set fsdp=full or fsdp=hybrid"),
    "fsdp=ddp fsdp.frozen=shard": ("every process holds the whole model", "or fsdp.frozen=replicate"),
    "fsdp=full fsdp.frozen=shard compute.feature_bank=bank train.plan.vision=frozen": (
        "fsdp.frozen=shard",
        "set fsdp.frozen=replicate",
    ),
    "compute.activation_checkpointing=memory_budget": ("compute.compile=false", "set compute.compile=true"),
    "log.peak_tflops=0": ("log.peak_tflops=0, expected a finite number above 0 or null", "set log.peak_tflops=null"),
    "images.max_bad=2": ("images.max_bad=2, expected a number of at least 0 and at most 1", "set images.max_bad=0.05"),
    "images.timeout=inf": ("images.timeout=inf, expected a finite number above 0", "set images.timeout=30"),
    "eval.examples=-1": ("eval.examples=-1, expected a whole number of at least 0 or auto", "set eval.examples=0"),
    "train.thaw.lmm=0.5": ("train.thaw.lmm", "did you mean train.thaw.llm?"),
    "optim.layer_decay.fusion=0.5": ("unknown key optim.layer_decay.fusion", "optim.layer_decay."),
    "log.profile=3-4": ("log.profile=3-4, expected steps first:last between 1 and", "set log.profile=4:6"),
    "train.guard.window=2": ("train.guard.window=2, expected a whole number of at least 8", "set train.guard.window=8"),
    "compute.memory_budget=2": ("compute.memory_budget=2", "set compute.memory_budget=0.5"),
    "train.plan.llm=lora": ("train.plan.llm=lora", "set adapter=lora"),
    "adapter=lora adapter.r=0": ("adapter.r=0", "set adapter.r=8"),
    "adapter=lora": ("adapter=lora, but no component's plan is lora", "set train.plan.llm=lora, or adapter=none"),
    "adapter=lora adapter.alpha=0": ("adapter.alpha=0, expected a whole number of at least 1", "set adapter.alpha=16"),
    "adapter=lora adapter.targets={head:all-linear}": ("targets.head is no component", "leave head out"),
    "optim.lr_scale.llm=0.1 train.plan.llm=frozen": ("optim.lr_scale.llm=0.1, but", "set optim.lr_scale.llm=1.0"),
    "optim.layer_decay.vision=0.9 train.plan.vision=frozen": ("layer_decay.vision=0.9, but", "train.plan.vision=full"),
    "quantization=hqq quantization.group_size=0": (
        "group_size=0, expected a whole number of at least 1",
        "group_size=64",
    ),
    "quantization=bnb_int8 quantization.threshold=-1": (
        "threshold=-1, expected a finite number of at least 0",
        "threshold=6.0",
    ),
    "quantization=bnb_nf4 quantization.targets={head:all-linear}": ("targets.head is no component", "leave head out"),
    "adapter=lora adapter.dropout=1": ("adapter.dropout=1", "set adapter.dropout=0.05"),
    "adapter=lora adapter.targets=linear": ("adapter.targets=linear", "set adapter.targets=all-linear"),
    "adapter=lora adapter.targets={vision:[q_proj]}": ("train.plan.vision is full, not lora", "train.plan.vision=lora"),
    "adapter=lora adapter.targets={llm:[q_proj]} train.plan.llm=lora train.plan.vision=lora": (
        "adapter.targets names modules of ['llm'] only",
        "set +adapter.targets.vision=all-linear",
    ),
    # targets
    "llm._target_=os.system": ("os.system is not trusted", "choose an option"),
    "model._target_=os.system": ("os.system is not trusted", "choose an option"),
    "+data.augment._target_=os.system": ("data.augment._target_=os.system", "choose an option"),
    "llm._target_=my_pkg.Llm": ("my_pkg.Llm is not trusted", "BENI_TRUSTED=my_pkg"),
    "train._target_=beni.run.os.system": ("beni.run.os.system", "choose an option"),
    "llm._target_=beni.llm.hf.Nope": ("defines no class or function Nope", "choose an option"),
}


@pytest.mark.parametrize("overrides", MISTAKES)
def test_a_mistake_is_answered_with_the_value_and_the_fix(overrides: str) -> None:
    with pytest.raises(ConfigError) as caught:
        compose(overrides.split())
    message = str(caught.value)
    for words in MISTAKES[overrides]:
        assert words in message
    assert "fix:" in message
    assert len(message.splitlines()) == 2, "one mistake, one problem and its fix"


def test_a_rate_that_does_not_fall_may_lie_below_one_that_nobody_reads() -> None:
    assert compose(["optim.schedule=constant", "optim.lr=1e-5"])["optim"]["min_lr"] > 1e-5


@pytest.mark.parametrize(
    "target", ["os.system", "beni.run.os.system", "beni.runs.identity.subprocess.run", "builtins.eval"]
)
def test_a_target_hidden_in_a_parts_mapping_is_refused(target: str) -> None:
    with pytest.raises(ConfigError, match="_target_"):
        compose(["data=llava_pretrain", f"+data.augment._target_={target}"])


def test_a_module_of_the_standard_library_is_not_offered_for_trust() -> None:
    with pytest.raises(ConfigError) as caught:
        compose(["llm._target_=os.system"])
    assert "BENI_TRUSTED" not in str(caught.value)


def test_several_mistakes_are_all_named() -> None:
    with pytest.raises(ConfigError) as caught:
        compose(["+train.stepz=3", "data.size=lots", "compute.precision=fp23"])
    assert [line.split()[0] for line in str(caught.value).splitlines() if "fix:" not in line] == [
        "data.size=lots,",
        "unknown",
        "compute.precision=fp23,",
    ]


MUST_SHOW = {
    "resampler.depthh=2": "did you mean resampler.depth with resampler=",
    "+train.stepz=3": "did you mean train.steps?",
    "resampler=perciever": "did you mean resampler=perceiver?",
    "llm._target_=os.system": "choose an option of the group",
    "train.steps=abc": "set train.steps=",
    "vision=siglip vision.weights=pretrained": "set vision.weights=random",
}


@pytest.mark.parametrize("overrides", MUST_SHOW)
def test_the_command_answers_on_one_screen_without_torch_and_writes_nothing(
    command: Command, written: Callable[[], list[str]], heavy: Callable[[Any], list[str]], overrides: str
) -> None:
    done = command(*overrides.split())
    assert done.returncode == 2
    assert MUST_SHOW[overrides] in done.stderr
    assert len((done.stdout + done.stderr).splitlines()) < 25
    assert "Traceback" not in done.stderr
    assert "Error executing job" not in done.stderr
    assert heavy(done) == []
    assert written() == []


def test_an_impossible_shape_is_answered_before_anything_is_written(
    command: Command, written: Callable[[], list[str]]
) -> None:
    done = command("resampler=perceiver", "resampler.num_kv_heads=3")
    assert done.returncode == 2
    assert "E-HEADS" in done.stderr
    assert "fix: set resampler.num_kv_heads" in done.stderr
    assert "Traceback" not in done.stderr
    assert written() == []


@pytest.mark.parametrize(
    "overrides", ["--help", "--cfg job", "vision=siglip llm=tinyllama resampler=perceiver --cfg job"]
)
def test_showing_a_run_imports_no_torch_and_writes_nothing(
    command: Command, written: Callable[[], list[str]], heavy: Callable[[Any], list[str]], overrides: str
) -> None:
    done = command(*overrides.split())
    assert done.returncode == 0
    assert "num_latents: 64" in done.stdout or "perceiver" not in overrides
    assert "hidden_size" in done.stdout
    assert heavy(done) == []
    assert written() == []


def test_a_mistake_in_one_arm_of_a_sweep_starts_nothing(
    command: Command, written: Callable[[], list[str]], heavy: Callable[[Any], list[str]]
) -> None:
    done = command("-m", "train.steps=2,abc")
    assert done.returncode == 2
    assert "train.steps=abc, expected a whole number" in done.stderr
    assert heavy(done) == []
    assert written() == []


MINE = """
from dataclasses import replace
from beni.resampler.none import NoResampler


class Mine(NoResampler):
    def __init__(self, tokens, *, width: int) -> None:
        super().__init__()
"""


@pytest.fixture
def third_party(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package ``my_pkg`` with a resampler, and a config folder with its option ``mine``; returns the folder."""
    package = tmp_path / "site" / "my_pkg"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise AssertionError('composing must not import the package of a part')\n")
    (package / "parts.py").write_text(MINE)
    option = tmp_path / "my conf" / "resampler" / "mine.yaml"
    option.parent.mkdir(parents=True)
    option.write_text("# Mine.\n_target_: my_pkg.parts.Mine\nwidth: 3\n")
    monkeypatch.syspath_prepend(package.parent)
    return option.parent.parent


def test_a_part_outside_beni_is_refused_until_its_package_is_trusted(
    third_party: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match="BENI_TRUSTED=my_pkg"):
        compose(["resampler=mine"], config_dir=third_party)
    monkeypatch.setenv("BENI_TRUSTED", "other, my_pkg")
    run = compose(["resampler=mine", "resampler.width=4"], config_dir=third_party)
    assert run["resampler"] == {"_target_": "my_pkg.parts.Mine", "width": 4}


def test_a_trusted_part_is_checked_like_beni_s_own(third_party: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BENI_TRUSTED", "my_pkg")
    with pytest.raises(BeniError, match=r"did you mean resampler\.width"):
        compose(["resampler=mine", "resampler.widht=4"], config_dir=third_party)
    with pytest.raises(BeniError, match=r"resampler\.width=wide, expected a whole number"):
        compose(["resampler=mine", "resampler.width=wide"], config_dir=third_party)


def test_trust_is_a_whole_package_name_and_no_prefix(third_party: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BENI_TRUSTED", "my")
    with pytest.raises(ConfigError, match="not trusted"):
        compose(["resampler=mine"], config_dir=third_party)


def test_the_command_finds_options_in_a_config_dir(command: Command, third_party: Path) -> None:
    done = command("--config-dir", str(third_party), "resampler=mine", "--cfg", "job")
    assert done.returncode == 0
    assert "_target_: my_pkg.parts.Mine" in done.stdout
    refused = command("--config-dir", str(third_party), "resampler=mine")
    assert refused.returncode == 2
    assert "BENI_TRUSTED=my_pkg" in refused.stderr


def test_a_misspelt_option_of_a_config_dir_is_suggested(command: Command, third_party: Path) -> None:
    done = command("--config-dir", str(third_party), "resampler=mien")
    assert done.returncode == 2
    assert "did you mean resampler=mine?" in done.stderr


ARCHITECTURES = {
    "llm.architecture.hiden_size=64": ("a llama has no such field", "did you mean llm.architecture.hidden_size?"),
    "vision.architecture.zzz=1": ("a siglip_vision_model has no such field", "leave out vision.architecture.zzz"),
    "vision=mof vision.encoders.clip.architecture.hiden_size=64": (
        "clip_vision_model has no",
        "clip.architecture.hidden",
    ),
    "llm.architecture.model_type=llamma": ("missing or unknown: llamma", "set llm.architecture.model_type=llama"),
}


@pytest.mark.parametrize("overrides", ARCHITECTURES)
def test_a_field_that_a_model_does_not_know_is_refused_while_planning(overrides: str) -> None:
    from beni.model.costing.table import propagate

    run = compose(overrides.split())
    with pytest.raises(ConfigError) as caught:
        propagate(run)
    for words in ARCHITECTURES[overrides]:
        assert words in str(caught.value)


@pytest.mark.parametrize("group", ["vision", "llm"])
def test_every_field_of_an_option_of_beni_is_one_that_its_model_knows(group: str) -> None:
    from beni.nn.architecture import require_fields

    for path in sorted((conf_dir() / group).glob("*.yaml")):
        node = yaml.safe_load(path.read_text(encoding="utf-8"))
        require_fields({key: {} for key in DESCRIBED} | {group: node})
