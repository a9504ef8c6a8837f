"""Hydra's errors, said again; ours and bugs go through as they are."""

import pytest
from hydra.errors import ConfigCompositionException, MissingConfigException
from omegaconf import OmegaConf
from omegaconf.errors import ConfigKeyError

from beni.config.explain import explained
from beni.errors import ConfigError, DataError


def said(error: Exception) -> str:
    with pytest.raises(ConfigError) as caught, explained():
        raise error
    assert caught.value.__cause__ is error
    return str(caught.value)


def test_a_missing_option_lists_the_others() -> None:
    error = MissingConfigException("gone", "resampler/perciever", ["none", "perceiver"])
    assert said(error) == (
        "resampler=perciever is not an option; expected one of: none, perceiver\n"
        "  fix: did you mean resampler=perceiver?"
    )


def test_a_group_without_options_says_so() -> None:
    assert "has none yet" in said(MissingConfigException("gone", "planet/mars", []))


def test_a_message_that_is_not_known_is_kept() -> None:
    assert said(ConfigCompositionException("something new\nwith a second line")) == "something new\nwith a second line"


def test_an_unresolvable_value_names_its_key() -> None:
    config = OmegaConf.create({"study": {"name": "${nowhere}"}})
    with pytest.raises(ConfigError, match=r"study\.name: Interpolation key 'nowhere' not found\n  fix: "), explained():
        OmegaConf.to_container(config, resolve=True)


def test_an_omegaconf_error_without_a_node_is_kept() -> None:
    assert said(ConfigKeyError("no such key")) == "no such key"


@pytest.mark.parametrize("error", [DataError("x"), ValueError("a bug"), KeyError("a bug")])
def test_other_errors_go_through(error: Exception) -> None:
    with pytest.raises(type(error)) as caught, explained():
        raise error
    assert caught.value is error
