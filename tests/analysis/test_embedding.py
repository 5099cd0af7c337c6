"""Features in a plane, and how well classes lie apart."""

import importlib.util

import numpy as np
import pytest

from analysis import embedding
from analysis.embedding import flatten, neighbour_accuracy, silhouette

# Two pairs far apart, and one point of the second class among the first.
POINTS = np.array([[0.0, 0.0], [0.0, 1.0], [10.0, 0.0], [10.0, 1.0], [0.0, 2.5]], np.float32)
TARGETS = np.array([0, 0, 1, 1, 1])


def test_neighbours_of_known_points() -> None:
    assert neighbour_accuracy(POINTS, TARGETS, count=1) == 80.0  # the stray is nearest to a point of the other class


def test_a_point_is_not_its_own_neighbour() -> None:
    assert neighbour_accuracy(POINTS[:2], np.array([0, 1])) == 0.0


def test_of_equal_votes_the_lowest_class_wins() -> None:
    points = np.array([[0.0], [1.0], [-1.1]], np.float32)
    assert neighbour_accuracy(points, np.array([0, 1, 0]), count=2) == pytest.approx(200 / 3)


def test_silhouette_of_known_points() -> None:
    pairs, targets = POINTS[:4], TARGETS[:4]
    apart = (10 + 101**0.5) / 2
    assert silhouette(pairs, targets) == pytest.approx(1 - 1 / apart, rel=1e-5)


@pytest.mark.parametrize('targets', [[0, 0, 0, 0, 0], [0, 1, 2, 3, 4]])
def test_silhouette_needs_classes_of_several(targets: list[int]) -> None:
    assert silhouette(POINTS, np.array(targets)) is None


def test_groups_stay_together_in_the_plane() -> None:
    random = np.random.default_rng(0)
    targets = np.repeat([0, 1, 2], 20)
    features = random.normal(size=(60, 80)).astype(np.float32) + 20 * random.normal(size=(3, 80))[targets]
    points = flatten(features.astype(np.float32))
    assert points.shape == (60, 2)
    assert neighbour_accuracy(points, targets, count=5) == 100.0
    assert np.array_equal(points, flatten(features.astype(np.float32)))  # the seed is all that it depends on


def test_too_few_points_are_refused() -> None:
    with pytest.raises(ValueError, match='at least 5 images, and these are 4'):
        flatten(POINTS[:4])


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = importlib.util.find_spec
    monkeypatch.setattr(embedding.importlib.util, 'find_spec', lambda name: None if name == 'openTSNE' else whole(name))
    with pytest.raises(ValueError, match=r"needs openTSNE: pip install 'timm_devnet\[analyze\]'"):
        embedding.require_packages()
