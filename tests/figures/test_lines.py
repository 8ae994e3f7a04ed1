"""A line says what the paper has, what is here, and how far apart the two are."""

import pytest

from gyges.figures.base import Line, shown


@pytest.mark.parametrize(
    ("paper", "here", "unit", "deviation", "text"),
    [
        (100.0, 110.0, "tokens", 0.1, "+10.0 %"),
        (100.0, 80.0, "tok/s", -0.2, "-20.0 %"),
        ((100.0, 200.0), 150.0, "s", 0.0, "within"),
        ((100.0, 200.0), 250.0, "s", 0.25, "+25.0 %"),
        ((100.0, 200.0), 50.0, "s", -0.5, "-50.0 %"),
        ((-0.422, -0.189), -0.5, "share", -0.078, "-7.8 points"),
        (-0.61, -0.71, "share", -0.1, "-10.0 points"),
        (None, 3.0, "count", None, "-"),
        (3.0, None, "count", None, "-"),
    ],
)
def test_a_deviation_is_relative_and_of_shares_in_points(paper, here, unit, deviation, text):
    line = Line("it", paper, here, unit, "simulated")
    assert line.deviation == (None if deviation is None else pytest.approx(deviation))
    assert line.deviation_text == text


def test_a_line_is_one_sentence_with_everything_in_it():
    line = Line("context of TP4", 120_500.0, 116_250.0, "tokens", "simulated", "a reason")
    assert line.text() == "context of TP4: paper 120.5K tokens, here 116.2K tokens, deviation -3.5 %, simulated"


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (None, "s", "-"),
        (0.00315, "s", "3.15 ms"),
        (40e-6, "s", "40 us"),
        (2.24, "s", "2.24 s"),
        (70e6, "bytes", "70 MB"),
        (0.001, "share", "0.1 %"),
        (-0.61, "share", "-61.0 %"),
        (6.57, "x", "6.57x"),
        (1792.0, "tok/s", "1792 tok/s"),
        (0.0, "bytes", "0 B"),
    ],
)
def test_figures_have_their_unit(value, unit, text):
    assert shown(value, unit) == text
