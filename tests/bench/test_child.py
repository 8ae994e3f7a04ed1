"""Calls into a child process always end, and say why."""

import os
import select
import subprocess
import sys
import time

import pytest

from gyges.bench.child import Child, ChildError, peak_rss_bytes

pytestmark = pytest.mark.engine


def test_results_and_exceptions_come_back_and_the_child_goes_on():
    with Child("time:gmtime", 1) as child, pytest.raises(ChildError, match="AttributeError"):
        child.call("no_such_method", 20.0)
    with Child("collections:Counter", 1) as child:
        assert child.call("most_common", 20.0) == []
        with pytest.raises(ChildError, match="KeyError"):
            child.call("popitem", 20.0)
        assert child.call("total", 20.0) == 0


def test_a_call_that_takes_too_long_ends_the_child():
    with Child("threading:Event", 1) as child:
        started = time.monotonic()
        with pytest.raises(ChildError, match="did not finish within 1 s"):
            child.call("wait", 1.0)
        assert time.monotonic() - started < 10
        assert child.process.poll() is not None
        with pytest.raises(ChildError, match="the process ended"):
            child.call("is_set", 1.0)


def test_a_child_that_dies_is_reported_with_its_exit_code():
    with Child("threading:Event", 1) as child:
        child.call("is_set", 20.0)
        child.process.kill()
        with pytest.raises(ChildError, match="exit code -9"):
            child.call("is_set", 20.0)


def test_neither_a_child_nor_the_folder_it_guards_outlives_a_caller_that_is_killed(tmp_path):
    guarded = tmp_path / "guarded"
    (guarded / "inside").mkdir(parents=True)
    code = (
        "from gyges.bench.child import Child\n"
        f"child = Child('threading:Event', 1, guards={str(guarded)!r})\n"
        "child.call('is_set', 20.0)\n"
        "print(child.process.pid, flush=True)\n"
        "child.call('wait', 100.0)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as caller:
        assert caller.stdout is not None
        ended = os.pidfd_open(int(caller.stdout.readline()))
        caller.kill()
    # Readable once the process has ended, reaped or not.
    readable, _, _ = select.select([ended], [], [], 5)
    os.close(ended)
    assert readable, "the child outlived its caller"
    assert not guarded.exists()


def test_peak_rss_is_at_least_what_was_touched():
    held = bytearray(os.urandom(1) * (64 << 20))
    peak = peak_rss_bytes()
    assert peak is not None
    assert peak > len(held)
