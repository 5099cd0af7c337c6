"""Sets made of packages' images: whole, and without anything of what measures in what trains."""

import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from experiments import sets


def few_examples() -> Iterator[sets.Example]:
    for split, label in itertools.product(('train', 'val'), 'ab'):
        yield split, label, Image.new('RGB', (4, 4))


def test_a_set_that_could_not_be_finished_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> Iterator[sets.Example]:
        yield from few_examples()
        raise OSError('the disk is full')

    monkeypatch.setitem(sets.SETS, 'scenes', broken)
    with pytest.raises(OSError, match='full'):
        sets.make_set('scenes', tmp_path)
    monkeypatch.setitem(sets.SETS, 'scenes', few_examples)
    assert len([*sets.make_set('scenes', tmp_path).glob('*/*/*.png')]) == 4


def test_patches_to_train_on_share_no_column_with_those_to_measure_on() -> None:
    columns = np.tile(np.arange(200, dtype=np.uint8), (120, 1))  # each pixel tells its column
    photograph, random = Image.fromarray(columns).convert('RGB'), np.random.default_rng(0)
    seen = [np.asarray(sets.cut(photograph, *part, random)) for part in [(0, 96), (104, 200)] for _ in range(50)]
    assert max(image.max() for image in seen[:50]) < 100 <= min(image.min() for image in seen[50:]) + 2
