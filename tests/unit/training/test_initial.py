"""``train.init_from``: another run's weights where they fit, and an error where they cannot."""

from __future__ import annotations

import pytest
import torch

from beni.errors import ResumeError
from beni.model.configuration import BeniConfig
from beni.model.modeling import BeniForConditionalGeneration
from beni.runs.frozen import save_frozen
from beni.training.initial import load_initial

PERCEIVER = ("resampler=perceiver", "resampler.num_latents=3", "resampler.num_heads=2", "resampler.head_dim=8")
SWIN = (
    "vision.architecture={model_type: swin, embed_dim: 16, depths: [1], num_heads: [2], num_attention_heads: [2], "
    "window_size: 1}"
)
LORA = ("adapter=lora", "train.plan.llm=lora")


@pytest.fixture
def saved(tiny_model, tmp_path):
    """saved(*overrides): another seed's model, in the ``model`` folder of a run."""

    def make(*overrides):
        model = tiny_model("train.seed=7", *overrides)
        model.save_pretrained(tmp_path / "run" / "model")
        return model, tmp_path / "run"

    return make


def test_all_weights_come_from_the_other_run(saved, tiny_model):
    theirs, folder = saved()
    ours = tiny_model()
    assert load_initial(ours, folder).kept == []
    for name, tensor in theirs.state_dict().items():
        assert ours.state_dict()[name].equal(tensor), name


@pytest.mark.parametrize(
    "renamed",
    [
        (SWIN,),
        ("llm.architecture.model_type=mixtral", "++llm.architecture.num_local_experts=4"),
    ],
)
def test_weights_that_published_files_name_otherwise_come_too(saved, tiny_model, renamed):
    theirs, folder = saved(*renamed)
    ours = tiny_model(*renamed)
    report = load_initial(ours, folder)
    assert (report.kept, report.left) == ([], [])
    again = BeniForConditionalGeneration.from_pretrained(folder / "model")
    for name, tensor in theirs.state_dict().items():
        assert ours.state_dict()[name].equal(tensor), name
        assert again.state_dict()[name].equal(tensor), name


@pytest.fixture
def study(tiny_run, tiny_model, tmp_path):
    """study(name, seed): adds a finished run to a study; its folder."""

    def make(name, seed):
        run = tiny_run(f"train.seed={seed}")
        folder = tmp_path / "study" / name
        tiny_model(f"train.seed={seed}").save_pretrained(folder / "model")
        save_frozen(folder, run)
        return folder

    return make


def test_of_a_study_the_run_with_this_seed_is_meant(study, tiny_model):
    folder = study("a-s0", 0).parent
    study("a-s1", 1)
    for seed in (0, 1):
        ours, theirs = tiny_model(f"train.seed={seed}"), tiny_model(f"train.seed={seed}")
        with torch.no_grad():
            ours.connector.layers[0].weight.zero_()
        report = load_initial(ours, folder)
        assert report.folder.parent.name == f"a-s{seed}"
        assert all(tensor.equal(ours.state_dict()[name]) for name, tensor in theirs.state_dict().items())


def test_a_study_without_one_run_of_this_seed_lists_its_runs(study, tiny_model):
    folder = study("a-s0", 0).parent
    with pytest.raises(
        ResumeError, match=r"no run with train\.seed=3 has[^$]*a-s0[^$]*fix: set train\.init_from=\S+a-s0"
    ):
        load_initial(tiny_model("train.seed=3"), folder)
    study("b-s0", 0)
    with pytest.raises(ResumeError, match=r"2 runs with train\.seed=0 have[^$]*fix: set train\.init_from=\S+a-s0"):
        load_initial(tiny_model("train.seed=0"), folder)


def test_a_part_the_other_run_lacks_keeps_its_own_weights_and_is_named(saved, tiny_model):
    _, folder = saved()
    ours, untouched = tiny_model(*PERCEIVER), tiny_model(*PERCEIVER)
    kept = load_initial(ours, folder).kept
    assert kept
    assert all(name.startswith("resampler.") for name in kept)
    assert ours.resampler.latents.equal(untouched.resampler.latents)


def test_weights_that_adapters_stand_beside_are_loaded_too(saved, tiny_model):
    theirs, folder = saved()
    ours = tiny_model(*LORA)
    kept = load_initial(ours, folder).kept
    assert all("lora_" in name for name in kept)
    inside = ours.llm.model.model.layers[0].self_attn.q_proj.base_layer.weight
    assert inside.equal(theirs.llm.model.model.layers[0].self_attn.q_proj.weight)


@pytest.mark.parametrize("kind", ["dora", "pissa", "olora"])
def test_adapters_that_depend_on_the_weights_begin_anew_beside_those_that_came(
    saved, tiny_run, tiny_model, steps_of, kind
):
    theirs, folder = saved()
    ours = tiny_model(f"adapter={kind}", "train.plan.llm=lora")
    batch = steps_of(tiny_run(), ours)[0][0]
    load_initial(ours, folder)
    with torch.no_grad():
        loss, expected = ours(**batch.model_inputs()).loss, theirs.eval()(**batch.model_inputs()).loss
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("theirs", "ours"), [("lora", "pissa"), ("pissa", "lora"), ("lora", "dora")])
def test_adapters_of_another_kind_are_an_error(saved, tiny_model, theirs, ours):
    _, folder = saved(f"adapter={theirs}", "train.plan.llm=lora")
    with pytest.raises(ResumeError, match=r"another kind[^$]*lora_[^$]*fix: set adapter"):
        load_initial(tiny_model(f"adapter={ours}", "train.plan.llm=lora"), folder)


@pytest.mark.parametrize("kind", ["lora", "pissa"])
def test_adapters_beside_weights_that_came_from_another_run_are_read_beside_those_only(
    saved, tiny_model, tmp_path, kind
):
    _, folder = saved()
    overrides = (f"adapter={kind}", "train.plan.llm=lora", "train.plan.vision=frozen")
    ours, again = tiny_model(*overrides), tiny_model(*overrides)
    load_initial(ours, folder)
    with torch.no_grad():
        ours.llm.model.model.layers[0].self_attn.q_proj.lora_B.default.weight.add_(0.1)
    ours.save_adapters(tmp_path / "adapters")
    with pytest.raises(ResumeError, match=r"beside llm weights that come from \S+run \(.*no other run[^$]*fix: call"):
        again.load_adapters(tmp_path / "adapters")
    assert str(folder) in (tmp_path / "adapters" / "llm" / "adapter_config.json").read_text()
    moved = folder.rename(tmp_path / "moved")
    load_initial(again, moved)
    again.load_adapters(tmp_path / "adapters")
    assert all(tensor.equal(again.state_dict()[name]) for name, tensor in ours.state_dict().items())
    bare = tiny_model(*overrides)
    bare.save_adapters(tmp_path / "bare")
    with pytest.raises(ResumeError, match=r"come from no other run[^$]*fix: build the model without train\.init_from"):
        again.load_adapters(tmp_path / "bare")


@pytest.mark.parametrize("kind", ["lora", "pissa"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_run_that_left_the_backbones_alone_is_no_base_of_its_own(tiny_model, tmp_path, kind, dtype):
    """The align stage trains the connector only, and may have kept the backbones in 16 bits."""
    plan = ("train.plan.llm=frozen", "train.plan.vision=frozen")
    tiny_model(*plan).to(dtype).save_pretrained(tmp_path / "model")
    overrides = (f"adapter={kind}", "train.plan.llm=lora", plan[1])
    ours, again = tiny_model(*overrides), tiny_model(*overrides)
    load_initial(ours, tmp_path)
    assert ours.config.bases == {}
    ours.save_adapters(tmp_path / "adapters")
    again.load_adapters(tmp_path / "adapters")


@pytest.mark.parametrize(
    ("key", "overrides"),
    [("alpha=32", ["adapter.alpha=16"]), ("rslora=false", ["adapter.alpha=32", "adapter.rslora=true"])],
)
def test_adapters_of_another_scale_are_an_error(saved, tiny_model, key, overrides):
    _, folder = saved(*LORA, "adapter.alpha=32")
    with pytest.raises(ResumeError, match=rf"another kind[^$]*adapter\.{key}, here [^$]*fix: set adapter\.{key}"):
        load_initial(tiny_model(*LORA, *overrides), folder)


def test_adapters_that_have_no_place_are_an_error(saved, tiny_model):
    _, folder = saved(*LORA)
    with pytest.raises(ResumeError, match=r"adapters of another kind[^$]*lora_[^$]*fix: set adapter"):
        load_initial(tiny_model(), folder)


def test_another_shape_is_an_error_that_names_the_tensor(saved, tiny_model):
    _, folder = saved()
    with pytest.raises(ResumeError, match=r"does not fit this run: \S+ has shape"):
        load_initial(tiny_model("vision.architecture.intermediate_size=96"), folder)


def test_a_folder_without_a_model_is_an_error_that_says_what_to_set(tiny_model, tmp_path):
    with pytest.raises(ResumeError, match=r"holds no saved model[^$]*checkpoint\.export=true"):
        load_initial(tiny_model(), tmp_path)


def test_a_tied_head_stays_tied(saved, tiny_model):
    tied = "llm.architecture.tie_word_embeddings=true"
    theirs, folder = saved(tied)
    ours = tiny_model(tied)
    load_initial(ours, folder)
    assert ours.llm.model.lm_head.weight is ours.llm.model.model.embed_tokens.weight
    assert ours.llm.model.lm_head.weight.equal(theirs.llm.model.lm_head.weight)
    assert isinstance(ours.llm.model.lm_head.weight, torch.nn.Parameter)


@pytest.mark.parametrize(
    ("theirs", "ours", "said"),
    [
        ("connector=mlp2x_gelu", "connector=linear", r"its connector has \d+ tensors .* such as connector\."),
        ("llm.architecture.num_hidden_layers=3", "llm.architecture.num_hidden_layers=2", r"its llm has 9 tensors"),
    ],
)
def test_a_component_that_would_come_in_part_is_an_error(saved, tiny_model, theirs, ours, said):
    _, folder = saved(theirs)
    with pytest.raises(ResumeError, match=rf"{said}[^$]*fix: set (connector|llm) as that run has it"):
        load_initial(tiny_model(ours), folder)


def test_a_component_without_a_place_here_is_left_behind_and_told(saved, tiny_model):
    _, folder = saved(*PERCEIVER)
    taken = load_initial(tiny_model(), folder)
    assert {name.partition(".")[0] for name in taken.left} == {"resampler"}
    assert f"not loaded: resampler ({len(taken.left)} tensors)" in taken.describe()


def test_weights_that_were_packed_there_are_not_lost_here(saved, tiny_model):
    pytest.importorskip("hqq")
    packed = ("quantization=hqq", "quantization.group_size=32", *LORA)
    _, folder = saved(*packed)
    with pytest.raises(ResumeError, match=r"its llm has \d+ tensors [^$]*packed_[^$]*fix: set quantization"):
        load_initial(tiny_model(*LORA), folder)


def test_a_backbone_that_this_run_names_otherwise_stays_where_the_other_was_as_published(saved, tiny_model):
    frozen = ("train.plan.llm=frozen", "train.plan.vision=frozen")
    theirs, folder = saved(*frozen)
    ours = tiny_model(*frozen)
    ours.config.parts["llm"] = {**ours.config.parts["llm"], "name": "another"}
    own = {name: tensor.clone() for name, tensor in ours.llm.state_dict().items()}
    config = BeniConfig.from_pretrained(folder / "model")
    config.parts["llm"]["name"] = "one"
    config.save_pretrained(folder / "model")
    taken = load_initial(ours, folder)
    assert taken.named == ["llm"]
    assert all(tensor.equal(own[name]) for name, tensor in ours.llm.state_dict().items())
    assert all(t.equal(theirs.connector.state_dict()[n]) for n, t in ours.connector.state_dict().items())
    config.plan["llm"] = "full"
    config.save_pretrained(folder / "model")
    with pytest.raises(ResumeError, match=r"trained llm weights that began as one, and this run names another"):
        load_initial(ours, folder)


def test_what_is_no_model_says_what_it_is(saved, tiny_model, tmp_path):
    theirs, _ = saved(*LORA)
    theirs.save_adapters(tmp_path / "adapters")
    with pytest.raises(ResumeError, match=r"holds adapters without[^$]*fix: set it to the model/"):
        load_initial(tiny_model(*LORA), tmp_path / "adapters")
    step = tmp_path / "run" / "checkpoints" / "step_00000120"
    step.mkdir(parents=True)
    (step / "complete.json").touch()
    with pytest.raises(ResumeError, match=r"is a checkpoint[^$]*beni\.export \S+run --checkpoint 120"):
        load_initial(tiny_model(), step)
    with pytest.raises(ResumeError, match=r"no such folder, seen from /"):
        load_initial(tiny_model(), tmp_path / "nothing")
