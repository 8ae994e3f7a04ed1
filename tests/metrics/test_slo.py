import pytest

from gyges.errors import UserError
from gyges.metrics.slo import Slo, parse_slo


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ttft=10,tpot=0.1", Slo(ttft_s=10.0, tpot_s=0.1)),
        (" TTFT = 500ms , e2e=60s", Slo(ttft_s=0.5, e2e_s=60.0)),
        ("tpot=250us", Slo(tpot_s=0.00025)),
        ("tpot=5e-2", Slo(tpot_s=0.05)),
    ],
)
def test_limits_are_read_in_seconds(text, expected):
    assert parse_slo(text) == expected


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("itl=1", "unknown SLO key 'itl'; known: e2e, tpot, ttft"),
        ("ttft", "known: ttft, tpot, e2e"),
        ("", "known: ttft, tpot, e2e"),
        ("ttft=1,", "write for example ttft=10"),
        ("ttft=1,ttft=2", "given twice"),
        ("ttft=fast", "cannot read 'fast'"),
        ("ttft=1h", "cannot read '1h'"),
        ("ttft=0", "must be positive"),
        ("ttft=-1", "cannot read '-1'"),
        ("ttft=inf", "cannot read 'inf'"),
        ("ttft=1e999", "must be positive and finite"),
    ],
)
def test_errors_name_the_fault_and_the_remedy(text, says):
    with pytest.raises(UserError) as caught:
        parse_slo(text)
    assert says in str(caught.value)
