"""Which TP degrees a host can take where nobody says so. Engines are made here and not started."""

from dataclasses import replace

import pytest

from gyges import Engine, EngineConfig
from gyges.engine.placement import default_degrees
from gyges.errors import UserError
from gyges.models.hub import resolve_model

FOUR = EngineConfig(model="tiny", instances=(1, 1, 1, 1))


def test_a_policy_that_transforms_gets_what_makes_sense_and_others_what_they_have():
    assert Engine(FOUR, "on-demand").config.candidate_degrees == (1, 2, 4)
    assert Engine(replace(FOUR, tp_degrees=(1, 4)), "on-demand").config.candidate_degrees == (1, 4)
    assert Engine(FOUR, "static").config.candidate_degrees == (1,)


def test_powers_of_two_and_divisors_of_the_devices_that_the_model_allows():
    tiny = resolve_model("tiny").config.geometry("float32")
    assert default_degrees(tiny, 4) == (1, 2, 4)
    assert default_degrees(tiny, 8) == (1, 2, 4), "12 query heads cannot be cut in 8"
    many = replace(tiny, num_heads=24, num_kv_heads=24)
    assert default_degrees(many, 3) == (1, 2, 3)
    assert default_degrees(many, 6) == (1, 2, 3, 4, 6)
    assert default_degrees(many, 8) == (1, 2, 4, 8)


@pytest.mark.parametrize(
    ("changes", "remedy"),
    [
        ({"instances": (1,)}, r"--devices 2 and --tp-degrees 1,2"),
        ({"tp_degrees": (1,)}, r"give --tp-degrees 1,2,4"),
        ({"instances": (1, 1), "tp_degrees": (1,)}, r"give --tp-degrees 1,2"),
    ],
)
def test_one_degree_is_refused_with_the_remedy(changes, remedy):
    with pytest.raises(UserError, match=f"'on-demand' changes TP degrees.*TP1 only.*{remedy}.*static"):
        Engine(replace(FOUR, **changes), "on-demand")
