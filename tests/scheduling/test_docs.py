"""docs/scheduling.md names every policy, every option, and no others."""

import inspect
import re
from pathlib import Path

from gyges.scheduling.gyges import Gyges
from gyges.scheduling.routing import POLICIES
from gyges.scheduling.specification import VARIANTS, make_policy

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "scheduling.md").read_text()


def first_cells(heading: str) -> list[str]:
    """The names in the first column of the table under this head."""
    table = PAGE.split(f"| {heading} |", 1)[1].split("\n\n", 1)[0]
    return re.findall(r"^\| `([^`]+)` \|", table, flags=re.M)


def test_every_policy_and_variant_is_in_the_table_and_can_be_made():
    listed = first_cells("name")
    assert {name.partition(":")[0] for name in listed} == set(POLICIES.names())
    assert set(VARIANTS.names()) <= set(listed)
    for name in listed:
        make_policy(name)


def test_every_switch_is_explained_and_every_number_has_its_default():
    options = inspect.signature(Gyges).parameters.values()
    assert first_cells("switch") == [option.name for option in options if isinstance(option.default, bool)]
    for option in options:
        if not isinstance(option.default, bool):
            assert re.search(rf"`{option.name}` prices of (its|the) split \({option.default:g}\)", PAGE), option.name
