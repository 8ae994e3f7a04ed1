"""Arrays that are made without pandas are those that pyarrow makes."""

import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gyges.metrics.arrow import arrow_array

INTEGERS = st.integers(-(2**31), 2**31 - 1)
KINDS = {
    pa.float64(): st.floats(allow_nan=False),
    pa.int64(): st.integers(-(2**63), 2**63 - 1),
    pa.bool_(): st.booleans(),
    pa.string(): st.text(max_size=9),
    pa.list_(pa.float64()): st.lists(st.floats(allow_nan=False), max_size=4),
    pa.list_(pa.int32()): st.lists(INTEGERS, max_size=4).map(tuple),
}


@pytest.mark.parametrize("kind", KINDS, ids=str)
@settings(deadline=None)
@given(data=st.data())
def test_an_array_is_the_one_that_pyarrow_makes(kind, data):
    values = data.draw(st.lists(st.one_of(st.none(), KINDS[kind]), max_size=20))
    made = arrow_array(values, kind)
    made.validate(full=True)
    assert made.equals(pa.array(values, kind))


def test_lists_may_be_arrays_views_included():
    base = np.arange(6.0)
    made = arrow_array([base[1:3], base[::2], np.empty(0)], pa.list_(pa.float64()))
    assert made.to_pylist() == [[1.0, 2.0], [0.0, 2.0, 4.0], []]


def test_writing_results_does_not_load_pandas():
    code = (
        "import sys\nfrom gyges.metrics.records import RequestRecord, TimelineSample\nfrom gyges.metrics import tables\n"
        "tables.request_table([RequestRecord('a', 0.0, token_times=[1.0])])\n"
        "tables.timeline_table([TimelineSample(0.0, 'i0', (0,), 1, 0, 0, 0, 1)], [])\n"
        "sys.exit('pandas' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
