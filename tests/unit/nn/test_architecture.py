"""Fields that an architecture may set, with the transformers that is installed and with older ones."""

from __future__ import annotations

import pytest
from transformers import CONFIG_MAPPING, PreTrainedConfig

from beni.nn.architecture import fields_of


class Old(PreTrainedConfig):
    """A vision model as transformers before 5.23 declares it: its code asks for a field that this does not have."""

    model_type = "siglip_vision_model"
    hidden_size: int = 8


def test_a_field_that_older_models_read_undeclared_is_known():
    assert {"hidden_size", "vision_use_head", "transformers_version"} <= fields_of(Old)
    assert "rope_theta" not in fields_of(Old)


@pytest.mark.parametrize("kind", ["llama", "clip_vision_model"])
def test_it_is_not_known_of_others(kind):
    assert "vision_use_head" not in fields_of(CONFIG_MAPPING[kind])
