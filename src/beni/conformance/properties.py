"""The properties of a stage, each a function from the stage under test to what was measured, in words.

Their names are what the kit prints and what the tests are called. Two class attributes of a stage document what would
otherwise be a failure:

    zero_at_start = True              the published initial weights make every token alike
    silent_at_start = ("*.gate",)     parameters (patterns of names) that get their first gradient in the second step
"""

from __future__ import annotations

from collections.abc import Callable

from beni.conformance import behaviour, gates, noise, structure
from beni.conformance.subject import Subject

Property = Callable[[Subject], str]

PROPERTIES: tuple[Property, ...] = (
    structure.makes_what_its_spec_says,
    structure.keeps_mask_places_and_sizes_in_order,
    structure.conserves_the_patches_its_tokens_stand_for,
    structure.carries_what_its_spec_says,
    structure.takes_a_grid_that_is_not_square,
    structure.is_counted_without_weights,
    structure.draws_every_parameter,
    structure.leaves_the_auxiliary_losses_it_declares,
    structure.saves_parameters_only_and_loads_again,
    behaviour.ignores_padding,
    behaviour.keeps_the_images_of_a_batch_apart,
    behaviour.reads_the_prompt_it_asks_for,
    gates.lets_no_closed_token_influence_an_open_one,
    gates.weighs_tokens_by_the_gates_it_reads,
    gates.passes_gradients_to_the_gates_it_reads,
    behaviour.repeats_under_its_stream,
    noise.draws_what_belongs_to_the_sample_and_the_step,
    noise.does_in_evaluation_what_no_step_changes,
    behaviour.is_near_itself_in_bf16,
    behaviour.passes_gradients_to_every_parameter_and_token,
    behaviour.trains_from_its_initial_weights,
    behaviour.keeps_distinct_tokens_distinct_at_the_start,
)
"""All properties, in the order in which the kit prints them."""
