"""docs/extending.md: the policy that it writes works, and its table of registries is whole."""

import importlib.util
import re
import shlex
from pathlib import Path

import documents
import pytest
from scheduling.abstract_host import AbstractHost

from gyges import Engine, EngineConfig, Request, SamplingParams
from gyges.scheduling.routing import POLICIES
from gyges.scheduling.specification import make_policy

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "extending.md").read_text()
FILES = {block.splitlines()[0].removeprefix("# "): block for block in documents.blocks(PAGE, "python")}


def load(name: str, folder: Path):
    """A file of the page as a module."""
    path = folder / Path(name).name
    path.write_text(FILES[name])
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def quiet(tmp_path_factory):
    """The page's policy, registered while this module's tests run."""
    before = dict(POLICIES.items())
    yield load("gyges/scheduling/quiet.py", tmp_path_factory.mktemp("policy")).Quiet
    for name in dict(POLICIES.items()).keys() - before.keys():
        del POLICIES._entries[name]


def test_the_page_holds_a_policy_and_its_test():
    assert set(FILES) == {"gyges/scheduling/quiet.py", "tests/scheduling/test_quiet.py"}


def test_the_policy_is_found_by_its_name_and_takes_its_option(quiet):
    policy = make_policy("quiet+after=2.5")
    assert isinstance(policy, quiet)
    assert policy.after == 2.5
    assert policy.transforms


def test_the_test_on_the_page_passes(quiet, tmp_path):
    module = load("tests/scheduling/test_quiet.py", tmp_path)
    tests = [value for name, value in vars(module).items() if name.startswith("test_")]
    assert tests
    for test in tests:
        test()


def test_the_policy_serves_a_trace_on_the_abstract_host(quiet):
    arrivals = {tick: [(6, 3)] for tick in range(0, 200, 3)} | {50: [(60, 5)], 120: [(200, 5)]}
    host = AbstractHost(make_policy("quiet+after=10"))
    fates = host.run(arrivals, limit=2000)
    assert all(fate.ended is not None for fate in fates)
    assert host.transformations >= 3, "two merges, and at least one split"


@pytest.mark.engine
def test_the_policy_drives_the_engine(quiet):
    """TP1 holds 656 tokens here: a longer request makes the two instances merge."""
    config = EngineConfig(model="tiny", instances=(1, 1), device_memory=11 << 20)
    sampling = SamplingParams(max_tokens=4, ignore_eos=True)
    with Engine(config, "quiet+after=0") as engine:
        requests = [Request("long", (5,) * 700, sampling), Request("short", (6,) * 20, sampling)]
        outputs = list(engine.generate(requests))
        assert {out.request_id: (out.finish_reason, len(out.token_ids)) for out in outputs if out.finished} == {
            "long": ("length", 4),
            "short": ("length", 4),
        }
        assert engine.reports[0].kind == "merge"


def test_its_commands_exist():
    lines = [line for block in documents.blocks(PAGE) for line in block.splitlines()]
    assert lines
    for line in lines:
        program, *arguments = shlex.split(line)
        assert program == "gyges"
        documents.parse(arguments)


def test_every_registry_is_on_the_page():
    found = set()
    for package in ("gyges", "cli", "workloads"):
        for path in (ROOT / package).rglob("*.py"):
            names = re.findall(r"^([A-Z_]+): Registry\[", path.read_text(), flags=re.M)
            found |= {(name, str(path.relative_to(ROOT))) for name in names}
    listed = set(re.findall(r"^\| .* \| `([A-Z_]+)` \| `(\S+)` \|$", PAGE, flags=re.M))
    assert listed | {("POLICIES", "gyges/scheduling/routing.py")} == found
