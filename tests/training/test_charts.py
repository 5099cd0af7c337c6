"""Charts as SVG."""

import re
import xml.etree.ElementTree as ElementTree

import pytest

from training.charts import line_chart


def heights(chart: str) -> list[float]:
    return [float(y) for y in re.findall(r'cy="([-\d.]+)"', chart)]


def test_charts_are_well_formed_and_say_what_they_show() -> None:
    chart = line_chart('Loss <&">', 'unit', {'a<b': [(1, 2.0), (2, 1.0)], 'c': [(1, 3.0)]})
    figure = ElementTree.fromstring(chart)
    assert figure.find('figcaption/h3').text == 'Loss <&">'
    assert figure.find('svg').get('aria-label') == 'Loss <&">: a<b from 2 to 1; c from 3 to 3'


def test_higher_values_stand_higher() -> None:
    low, high = heights(line_chart('', '', {'a': [(1, 1.0), (2, 5.0)]}))
    assert high < low


def test_powers_of_ten_are_evenly_spaced() -> None:
    chart = line_chart('', '', {'a': [(1, 0.1), (2, 0.01), (3, 0.001), (4, 0.0)]}, is_log=True)
    first, second, third = heights(chart)
    assert second - first == pytest.approx(third - second, abs=0.2)
    assert '>1e-3<' in chart


@pytest.mark.parametrize('values', [[float('nan')], [float('inf')], []])
def test_what_is_not_finite_is_left_out(values: list[float]) -> None:
    assert line_chart('', '', {'a': list(enumerate(values))}) == ''
    assert len(heights(line_chart('', '', {'a': list(enumerate([1.0, *values]))}))) == 1


@pytest.mark.parametrize('value', [0.0, 1e-12, 10.0, -3.0, 1e12])
def test_a_flat_line_is_drawn_inside(value: float) -> None:
    [first, second] = heights(line_chart('', '', {'a': [(1, value), (2, value)]}))
    assert first == second
    assert 0 < first < 210


def test_long_runs_are_lines_without_dots() -> None:
    assert not heights(line_chart('', '', {'a': [(epoch, 1.0) for epoch in range(500)]}))
