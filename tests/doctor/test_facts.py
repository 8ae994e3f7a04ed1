"""Findings: true of this machine, and read rightly of machines that are not at hand."""

import json
import subprocess
import sys

import pytest
from doctor.machines import FakeLibcuda, bare, with_gpus

from gyges.doctor import cuda_facts, facts, machine_facts, package_facts
from gyges.doctor.ability import abilities
from gyges.doctor.facts import Fact, data_of, find, from_document, gather, to_document
from gyges.doctor.libcuda import Libcuda
from gyges.errors import UnknownNameError


def gpu_facts(library: FakeLibcuda) -> list[Fact]:
    return list(cuda_facts.driver_facts(lambda: Libcuda(library)))


def test_this_machine_runs_cpu_devices_and_every_remedy_stands_where_something_is_amiss():
    found = gather(["machine", "python", "engine"])
    assert abilities(found)[0].works
    assert find(found, "engine", "page pool").state == "good"
    assert data_of(found, "python", "torch")
    for fact in found:
        assert fact.value
        assert fact.remedy or fact.state in ("good", "note"), fact
    again = from_document(json.loads(json.dumps(to_document(found))))
    assert [f.name for f in again] == [f.name for f in found]


def test_a_probe_that_breaks_is_a_finding_not_an_end(monkeypatch):
    def breaks():
        yield Fact("broken", "first", "seen")
        raise OSError("no such thing")

    monkeypatch.setitem(facts.PROBES._entries, "broken", breaks)
    first, second = gather(["broken"])
    assert first.value == "seen"
    assert (second.state, second.value) == ("warn", "could not be finished: OSError: no such thing")


def test_an_unknown_group_lists_the_known_ones():
    with pytest.raises(UnknownNameError, match="machine"):
        gather(["weather"])


@pytest.mark.parametrize(("text", "cores"), [("max 100000", None), ("", None), ("250000 100000", 2.5)])
def test_the_quota_of_a_control_group_is_read(text, cores):
    assert machine_facts.cpu_quota(text) == cores


# -- packages ---------------------------------------------------------------------------------------------------------


def test_every_package_that_the_project_names_is_looked_for():
    needed, extras = package_facts.requirements()
    found = {fact.name for fact in package_facts.packages()}
    assert {"torch", "numba", "datasets"} <= found
    assert len(found) == 2 + len(needed) + sum(len(extras[extra]) for extra in package_facts.EXTRAS)


def test_a_package_that_is_missing_or_too_old_names_the_command(monkeypatch):
    versions = {"torch": "2.9.0", "numba": None, "datasets": None}
    monkeypatch.setattr(package_facts, "_installed", lambda name: versions.get(name, "99.0"))
    found = {fact.name: fact for fact in package_facts.packages()}
    assert (found["torch"].state, found["torch"].remedy) == ("warn", "pip install 'torch>=2.11,<2.14'")
    assert found["numba"].state == "missing"
    assert found["datasets"].state == "warn", "the engine runs without it"
    assert "hf:" in found["datasets"].value


# -- GPUs -------------------------------------------------------------------------------------------------------------


def test_a_machine_without_a_driver_is_fine(monkeypatch, tmp_path):
    def none():
        raise OSError("libcuda.so.1: cannot open shared object file")

    monkeypatch.setattr(cuda_facts, "_KERNEL_MODULE", tmp_path / "absent")
    (fact,) = cuda_facts.driver_facts(none)
    assert (fact.state, fact.remedy) == ("note", "")
    module = tmp_path / "version"
    module.write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.1.2  date")
    monkeypatch.setattr(cuda_facts, "_KERNEL_MODULE", module)
    (fact,) = cuda_facts.driver_facts(none)
    assert (fact.state, "--gpus all" in fact.remedy) == ("missing", True)


def test_a_driver_that_does_not_start_is_named_with_its_own_words():
    (fact,) = gpu_facts(FakeLibcuda(cuInit=999))
    assert fact.state == "missing"
    assert "cuInit: CUDA_ERROR_UNKNOWN (999)" in fact.value


def test_a_device_is_described_and_its_context_given_back():
    library = FakeLibcuda(devices=1)
    found = gpu_facts(library)
    assert find(found, "gpu", "driver").value.startswith("runs CUDA 13.0")
    about = data_of(found, "gpu", "device 0")
    assert (about["name"], about["capability"], about["memory_bytes"]) == ("NVIDIA Test 0", "9.0", 80 << 30)
    assert data_of(found, "gpu", "device 0 VMM") == 2 << 20
    assert all(fact.state in ("good", "note") for fact in found)
    assert library.retained == 0


def test_pairs_that_cannot_read_each_other_are_listed():
    library = FakeLibcuda(devices=3)
    library.blind = {(0, 2), (2, 0)}
    fact = find(gpu_facts(library), "gpu", "peer access")
    assert (fact.state, fact.value) == ("warn", "2 of 6 pairs cannot read: 0->2, 2->0")


@pytest.mark.parametrize(
    ("attribute", "value", "name", "words"),
    [
        (102, 0, "device 0 VMM", "no virtual memory management"),
        (103, 0, "device 0 VMM", "no descriptors"),
        (20, 3, "device 0 mode", "exclusive process"),
    ],
)
def test_what_a_device_lacks_is_a_finding(attribute, value, name, words):
    library = FakeLibcuda()
    library.attributes[attribute] = value
    fact = find(gpu_facts(library), "gpu", name)
    assert fact.state in ("warn", "missing")
    assert words in fact.value
    assert fact.remedy or fact.state == "missing"


def test_a_device_that_somebody_else_uses_is_a_warning():
    library = FakeLibcuda()
    library.free = 20 << 30
    assert find(gpu_facts(library), "gpu", "device 0").state == "warn"


# -- abilities --------------------------------------------------------------------------------------------------------


def works(found: list[Fact]) -> dict[str, bool]:
    return {ability.name: ability.works for ability in abilities(found)}


def test_what_a_missing_package_takes_with_it():
    assert works(bare())["engine on CPU devices"]
    assert not works(bare("numba"))["engine on CPU devices"]
    assert works(bare("numba"))["simulator"]
    assert not works(bare("datasets"))["traces from the hub"]
    assert works(bare("datasets"))["engine on CPU devices"]


def test_gpu_memory_needs_a_device_that_maps_and_the_bindings():
    assert not works(bare())["memory pool on GPUs"]
    assert works(with_gpus(2))["memory pool on GPUs"]
    assert works(with_gpus(2))["engine on GPUs"]
    assert works(with_gpus(2, "numba"))["memory pool on GPUs"]
    assert not works(with_gpus(2, "numba"))["engine on GPUs"]
    assert not works(with_gpus(2, "cuda-bindings"))["memory pool on GPUs"]
    cannot = [fact for fact in with_gpus(2) if fact.name != "device 1 VMM"]
    (ability,) = (a for a in abilities(cannot) if a.name == "memory pool on GPUs")
    assert (ability.works, "device 1" in ability.why) == (False, True)


def test_the_doctor_can_be_asked_where_much_is_missing():
    """Without datasets, msgspec and cuda-bindings, as on a machine that was set up for something else."""
    code = (
        "import sys\n"
        "for name in ('datasets', 'msgspec', 'cuda.bindings', 'torch'): sys.modules[name] = None\n"
        "import cli.main, cli.doctor_command\n"
        "from gyges.doctor.facts import gather\n"
        "from gyges.doctor.full import choose\n"
        "assert len(choose()) > 5 and gather(['machine', 'python'])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
