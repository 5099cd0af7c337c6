"""Tasks of tables, as they are written on the command line."""

from pathlib import Path

import pytest

from experiments.sets import SIZES, make_set
from experiments.targets import SMALL_LABELS, read_target, small_target


def test_a_folder_is_a_task(image_folder: Path) -> None:
    target = read_target(str(image_folder))
    assert (target.name, target.classes, target.train_images, target.val_images) == ('colours', 3, 24, 9)
    assert dict(target.options) == {'data_dir': str(image_folder)}


def test_a_data_set_by_name_has_its_folder_after_it(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f'--dataset mit67: --data-dir {tmp_path} is not MIT-67'):
        read_target(f'mit67={tmp_path}')
    with pytest.raises(ValueError, match='give mit67=FOLDER'):
        read_target('mit67')


def test_sets_of_the_small_tables_are_theirs(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match='scenes is a set of the small tables: give --small'):
        read_target('scenes')
    with pytest.raises(ValueError, match='flowers is no set of the small tables: they have small-digits'):
        small_target('flowers', tmp_path)


def test_the_size_of_a_set_is_known_before_it_is_made(tmp_path: Path) -> None:
    pytest.importorskip('sklearn')
    root = make_set('small-digits', tmp_path)
    assert SIZES['small-digits'] == (len([*root.glob('val/*')]), len([*root.glob('val/*/*.png')]))
    assert min(len([*folder.iterdir()]) for folder in root.glob('train/*')) >= SMALL_LABELS['small-digits']
