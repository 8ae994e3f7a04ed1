"""Hardware files: complete, with sources, and refused by the name of the field that is wrong."""

from importlib.resources import files

import pytest

from gyges.errors import UnknownNameError, UserError
from gyges.sim.hardware import known_hardware, load_hardware, parse_hardware

H20 = (files("gyges.sim.hardware") / "h20.yaml").read_text()


@pytest.mark.parametrize("name", known_hardware())
def test_every_bundled_description_loads_and_a_source_stands_behind_each_figure(name):
    hardware, _ = load_hardware(name)
    assert len(hardware.sources) >= 7
    assert all(hardware.sources.values())
    assert 0 < hardware.memory_utilization <= 1


def test_the_issue_cards_have_the_figures_of_their_datasheets():
    for name, tflops, terabytes, gigabytes in [
        ("h20", 148, 4.0, 96),
        ("a100-40g", 312, 1.555, 40),
        ("h200", 989, 4.8, 141),
    ]:
        hardware, _ = load_hardware(name)
        found = hardware.flops["bfloat16"] / 1e12, hardware.memory_bytes_per_s / 1e12, hardware.memory_bytes / 1e9
        assert found == pytest.approx((tflops, terabytes, gigabytes))


def test_a_count_after_the_name_is_the_devices_of_a_host():
    assert load_hardware("h20x3")[1] == 3
    assert load_hardware("h20")[1] == 8  # the file's own
    with pytest.raises(UserError, match="at least one device"):
        load_hardware("h20x0")


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(UnknownNameError, match=r"h2O.*a100-40g.*h20"):
        load_hardware("h2O")


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("memory_bytes: 96.0e+9", "memory_bytes: 0", "memory_bytes must be a positive number"),
        ("memory_bytes: 96.0e+9", "", "missing field memory_bytes"),
        ("description:", "colour: green\ndescription:", "unknown field colour"),
        ("compute: 0.80", "compute: 1.8", "efficiency.compute is a share"),
        ("  flops: *sheet\n", "", "no source is given for flops"),
        ("flops: {bfloat16: 148.0e+12", "flops: {bfloat16: fast", "flops.bfloat16 must be a positive number"),
        ("flops: {", "flops: [", "not valid YAML"),
    ],
)
def test_a_bad_file_is_refused_by_the_name_of_the_field(before, after, said):
    assert before in H20
    with pytest.raises(UserError, match=said):
        parse_hardware("mine", H20.replace(before, after, 1))


def test_a_file_of_ones_own_is_read_by_its_path(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(H20.replace("memory_bytes: 96.0e+9", "memory_bytes: 50.0e+9"))
    assert load_hardware(str(path))[0].memory_bytes == 50e9
    with pytest.raises(UserError, match="no hardware file"):
        load_hardware(str(tmp_path / "other.yaml"))
