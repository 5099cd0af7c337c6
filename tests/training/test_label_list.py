"""A folder with a list of what its images show."""

import itertools
import shutil
from pathlib import Path

import numpy as np
import pytest

from training.config import Config
from training.sources import FileSource, carve_out, fingerprint, load_listed, load_sources, load_validation

LINES = ['1.png,blue', '2.png,green', 'deep/0.png', 'deep/3.png,green,blue']


@pytest.fixture
def four(labelled_folder: Path) -> Path:
    """Leave four training images."""
    keep(labelled_folder, 'train', *(line.partition(',')[0] for line in LINES))
    write(labelled_folder, *LINES)
    return labelled_folder


def write(root: Path, *lines: str, split: str = 'train') -> None:
    (root / split / 'labels.csv').write_text('\n'.join(lines) + '\n', encoding='utf-8')


def shown(source: FileSource) -> dict[str, list[str]]:
    return {
        source.name(index): [source.classes[label] for label in target] for index, target in enumerate(source.targets)
    }


def test_a_list_tells_what_each_image_shows(four: Path) -> None:
    source = load_listed(str(four), 'train')
    assert source.classes == ['blue', 'green']
    assert shown(source) == {'1.png': ['blue'], '2.png': ['green'], 'deep/0.png': [], 'deep/3.png': ['blue', 'green']}
    colours = np.array([np.asarray(source.read(index)).mean((0, 1)) > 120 for index in range(4)])
    assert colours[:, [2, 1]].tolist() == [[True, False], [False, True], [False, False], [True, True]]


@pytest.mark.parametrize(
    'lines',
    [
        LINES[::-1],
        ['\ufeff1.png, blue ', '', '2.png,green,,', './deep/0.png,,', 'deep/3.png,blue,green,blue'],
        ['"1.png","blue"', '2.png,green\r', 'deep/0.png', 'deep/3.png,green,blue'],
    ],
)
def test_ways_of_writing_the_same(four: Path, lines: list[str]) -> None:
    before = load_listed(str(four), 'train')
    write(four, *lines)
    again = load_listed(str(four), 'train')
    assert shown(again) == shown(before)
    assert fingerprint(again) == fingerprint(before)


def test_classes_are_in_natural_order_and_may_have_any_name(four: Path) -> None:
    write(four, '1.png,10,9', '2.png,"sky, cloudy"', 'deep/0.png,ö', 'deep/3.png,Zoo')
    assert load_listed(str(four), 'train').classes == ['9', '10', 'sky, cloudy', 'Zoo', 'ö']


def test_another_name_of_the_list(four: Path) -> None:
    (four / 'train' / 'labels.csv').rename(four / 'train' / 'tags.txt')
    assert len(load_listed(str(four), 'train', 'tags.txt').targets) == 4
    assert len(load_listed(str(four), 'train', str(four / 'train' / 'tags.txt')).targets) == 4


@pytest.mark.parametrize(
    ('lines', 'message'),
    [
        (
            [*LINES, 'other.png,blue'],
            r"1 of 5 lines name no image below .*train, such as line 5 \('other.png'\): a",
        ),
        (['file,labels', *LINES], r"such as line 1 \('file'\): .* none has headings"),
        ([*LINES, '../val/1.png,blue'], r"line 5 \('../val/1.png'\)"),
        (LINES[:3], r"labels.csv has no line for 1 of 4 images, such as \['deep/3.png'\]: add them"),
        ([*LINES, './1.png'], r"labels.csv: lines 1 and 5 are both about '1.png'"),
        ([], 'labels.csv is empty: it must have a line IMAGE,LABEL,LABEL'),
        (['', ',', ''], 'labels.csv is empty'),
        (['1.png,"blue'], 'labels.csv is no CSV in UTF-8'),
    ],
)
def test_mistakes_in_a_list(four: Path, lines: list[str], message: str) -> None:
    write(four, *lines)
    with pytest.raises(ValueError, match=message):
        load_listed(str(four), 'train')


def test_what_is_no_list(four: Path) -> None:
    (four / 'train' / 'labels.csv').write_bytes(b'1.png,\xff\n')
    with pytest.raises(ValueError, match='labels.csv is no CSV in UTF-8'):
        load_listed(str(four), 'train')
    (four / 'train' / 'labels.csv').unlink()
    with pytest.raises(ValueError, match=r'train/labels.csv is not a file: --multi-label needs in it a line'):
        load_listed(str(four), 'train')
    with pytest.raises(ValueError, match="has no folder 'test'"):
        load_listed(str(four), 'test')


@pytest.mark.parametrize(
    ('val', 'message'),
    [
        (
            ['1.png,blue', '2.png,red'],
            r"only val has the labels \['red'\], so they cannot be learnt: give",
        ),
        (['1.png', '2.png'], 'no image of val has a label, so nothing can be measured'),
    ],
)
def test_splits_that_do_not_go_together(four: Path, val: list[str], message: str) -> None:
    keep(four, 'val', '1.png', '2.png')
    write(four, *val, split='val')
    with pytest.raises(ValueError, match=message):
        load_sources(Config(data_dir=str(four), multi_label=True))


def keep(root: Path, split: str, *names: str) -> None:
    """Leave these images only."""
    for path in (root / split).rglob('*.png'):
        if path.relative_to(root / split).as_posix() not in names:
            path.unlink()


@pytest.mark.parametrize('labels', [['', '', '', ''], ['blue', 'blue', '', '']])
def test_one_class_is_too_few(four: Path, labels: list[str]) -> None:
    write(four, *(f'{line.partition(",")[0]},{label}' for line, label in zip(LINES, labels, strict=True)))
    with pytest.raises(ValueError, match=r'train has one class only or none \(.*\): give at least two labels'):
        load_sources(Config(data_dir=str(four), multi_label=True))


def test_validation_images_may_lack_a_label(four: Path) -> None:
    keep(four, 'val', '1.png', '2.png')
    write(four, '1.png,green', '2.png', split='val')
    sources = load_sources(Config(data_dir=str(four), multi_label=True))
    assert sources['val'].classes == ['blue', 'green']
    assert sources['val'].targets == [(1,), ()]
    assert load_validation(Config(data_dir=str(four), multi_label=True)).classes == ['green']


def test_a_class_map_numbers_labels(four: Path, tmp_path: Path) -> None:
    (tmp_path / 'map.txt').write_text('green\nred\nblue\n')
    config = Config(data_dir=str(four), multi_label=True, class_map=str(tmp_path / 'map.txt'))
    assert load_sources(config)['train'].targets == [(2,), (0,), (), (0, 2)]
    (tmp_path / 'map.txt').write_text('green\nred\n')
    with pytest.raises(ValueError, match=r"lacks 1 of the classes that have images, such as \['blue'\]"):
        load_sources(config)


@pytest.mark.parametrize('option', ['input_key', 'target_key'])
def test_keys_have_no_meaning(four: Path, option: str) -> None:
    with pytest.raises(ValueError, match='has no meaning for these images'):
        load_sources(Config(data_dir=str(four), multi_label=True, **{option: 'x'}))


class TestCarvingOut:
    """Validation images where there are none."""

    @pytest.fixture
    def many(self, labelled_folder: Path) -> FileSource:
        """24 images: 6 of each combination, and a third label on three of those that have both others."""
        path = labelled_folder / 'train' / 'labels.csv'
        lines = path.read_text().splitlines()
        both = [line for line in lines if line.endswith('blue,green')][:3]
        path.write_text('\n'.join(f'{line},rare' if line in both else line for line in lines))
        return load_listed(str(labelled_folder), 'train')

    def test_by_the_rarest_label_of_each_image(self, many: FileSource) -> None:
        train, val = carve_out(many, 1 / 3)
        assert len(train.targets) + len(val.targets) == 24
        assert sorted([*map(train.name, range(len(train.targets))), *map(val.name, range(len(val.targets)))]) == sorted(
            many.name(index) for index in range(24)
        )
        # Of those with the rare label one, of the others with blue (the first of two that are equally rare) three of
        # nine, and two of each of the others.
        assert sum(2 in target for target in val.targets) == 1
        assert sum(0 in target and 2 not in target for target in val.targets) == 3
        assert val.targets.count((1,)) == val.targets.count(()) == 2

    def test_it_does_not_depend_on_seed_or_order(self, many: FileSource) -> None:
        root, names = many.root.parent, []
        for seed in (0, 1):
            lines = (root / 'train' / 'labels.csv').read_text().splitlines()
            write(root, *lines[::-1])
            source = load_sources(Config(data_dir=str(root), multi_label=True, val_split='.2', seed=seed))['val']
            names.append([source.name(index) for index in range(len(source.targets))])
        assert names[0] == names[1]

    def test_every_label_keeps_a_training_image(self, labelled_folder: Path) -> None:
        """Both images of the last label stand with one more image each, of an equally rare label."""
        names = ['1.png', '2.png', '4.png', '5.png']
        keep(labelled_folder, 'train', *names)
        for order in itertools.permutations(names):
            write(labelled_folder, *map(','.join, zip(order, ('a,z', 'a', 'b,z', 'b'), strict=True)))
            train, _ = carve_out(load_listed(str(labelled_folder), 'train'), 0.5)
            assert {label for target in train.targets for label in target} == {0, 1, 2}

    def test_an_image_that_stands_alone_is_trained_on(self, four: Path) -> None:
        lines = ['1.png,blue', '2.png,green', 'deep/0.png', 'deep/3.png,red']
        write(four, *lines)
        with pytest.raises(ValueError, match=r'--val-split 0.5: no two images share their rarest label'):
            carve_out(load_listed(str(four), 'train'), 0.5)
        shutil.copy(four / 'train' / '1.png', four / 'train' / '4.png')
        write(four, *lines, '4.png,blue')
        train, val = carve_out(load_listed(str(four), 'train'), 0.5)
        assert (len(train.targets), val.targets) == (4, [(0,)])
