"""Carved-out validation images and class maps."""

import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from training.config import Config
from training.sources import Source, carve_out, load_folder, load_sources
from training.sources.splits import number_targets


def names(source: Source) -> list[str]:
    return [source.name(index) for index in range(len(source.targets))]


def test_validation_images_are_carved_out_of_each_class(image_folder: Path) -> None:
    shutil.rmtree(image_folder / 'val')
    sources = load_sources(Config(data_dir=str(image_folder), val_split='0.25'))
    assert np.bincount(sources['train'].targets).tolist() == [6, 6, 6]
    assert np.bincount(sources['val'].targets).tolist() == [2, 2, 2]
    every = names(sources['train']) + names(sources['val'])
    assert sorted(every) == sorted(names(load_folder(image_folder / 'train')))
    for split in sources.values():
        folders = [name.partition('/')[0] for name in names(split)]
        assert folders == [split.classes[target] for target in split.targets]
        pixel = np.asarray(split.read(0)).mean(axis=(0, 1))
        assert ['red', 'green', 'blue'][pixel.argmax()] == folders[0]


def test_the_carved_split_does_not_depend_on_the_seed(image_folder: Path) -> None:
    first, second = (
        load_sources(Config(data_dir=str(image_folder), val_split='.2', seed=seed))['val'] for seed in (0, 1)
    )
    assert names(first) == names(second)


def test_a_new_image_moves_at_most_one(image_folder: Path) -> None:
    before = {*names(carve_out(load_folder(image_folder / 'train'), 0.25)[1])}
    joined = []
    for number in range(30):
        new = f'blue/!{number}.png'  # first of all in its class
        Image.new('RGB', (9, 9)).save(image_folder / 'train' / new)
        after = {*names(carve_out(load_folder(image_folder / 'train'), 0.25)[1])}
        (image_folder / 'train' / new).unlink()
        joined.append(new in after)
        assert after == before or (joined[-1] and len(before - after) == 1)
    assert 0 < sum(joined) < 30


def test_a_small_class_gives_one_image_and_keeps_one(image_folder: Path) -> None:
    for index in range(2, 8):
        (image_folder / 'train' / 'red' / f'{index}.png').unlink()
    for share in (0.01, 0.99):
        train, val = carve_out(load_folder(image_folder / 'train'), share)
        assert (train.targets.count(2), val.targets.count(2)) == (1, 1)
    (image_folder / 'train' / 'red' / '1.png').unlink()
    with pytest.raises(ValueError, match=r"--val-split 0.1: class 'red' has one image only"):
        carve_out(load_folder(image_folder / 'train'), 0.1)


def test_classes_directly_in_the_data_folder(image_folder: Path) -> None:
    root = str(image_folder / 'train')
    with pytest.raises(ValueError, match=r'also --train-split \. if the classes lie directly in this folder'):
        load_sources(Config(data_dir=root, val_split='0.25'))
    sources = load_sources(Config(data_dir=root, val_split='0.25', train_split='.'))
    assert (len(sources['train'].targets), len(sources['val'].targets)) == (18, 6)


@pytest.mark.parametrize('value', ['0.0', '1.0', '1.5', '-0.1'])
def test_shares_out_of_range(value: str) -> None:
    with pytest.raises(ValueError, match=rf'--val-split {value} is out of range: .* above 0 and below 1'):
        Config(val_split=value).validate()


@pytest.mark.parametrize('value', ['val', '10', 'v0.1', 'test.tar'])
def test_names_are_no_shares(value: str) -> None:
    assert Config(val_split=value).val_share is None


def test_demonstrations_bring_their_validation_images() -> None:
    with pytest.raises(ValueError, match=r'--dataset digits brings its validation images: leave out --val-split 0.1'):
        load_sources(Config(dataset='digits', val_split='0.1'))


def write_map(path: Path, classes: list[str]) -> str:
    if path.suffix == '.txt':
        path.write_text(''.join(f'{name}\n' for name in classes))
    else:
        path.write_bytes(pickle.dumps({name: number for number, name in enumerate(classes)}))
    return str(path)


@pytest.mark.parametrize('suffix', ['.txt', '.pkl'])
def test_a_class_map_numbers_the_classes(image_folder: Path, tmp_path: Path, suffix: str) -> None:
    path = write_map(tmp_path / f'map{suffix}', ['red', 'white', 'blue', 'green'])
    sources = load_sources(Config(data_dir=str(image_folder), class_map=path))
    for source in sources.values():
        assert source.classes == ['red', 'white', 'blue', 'green']
        assert [source.classes[target] for target in source.targets] == [
            name.partition('/')[0] for name in names(source)
        ]


def test_a_class_that_the_map_lacks_is_refused(image_folder: Path, tmp_path: Path) -> None:
    path = write_map(tmp_path / 'map.txt', ['red', 'blue'])
    with pytest.raises(ValueError, match=r"lacks 1 of the classes that have images, such as \['green'\]"):
        load_sources(Config(data_dir=str(image_folder), class_map=path))


@pytest.mark.parametrize(
    ('name', 'contents', 'message'),
    [
        ('map.csv', b'', 'must be a file: .txt with a class a line'),
        ('map.txt', b'red\n\nblue\n', 'must number its classes 0, 1, 2'),
        ('map.txt', b'red\nred\nblue\n', 'must number its classes 0, 1, 2'),
        ('map.txt', b'red\n', 'must number its classes 0, 1, 2'),
        ('map.pkl', pickle.dumps({'red': 0, 'blue': 0}), 'must number its classes 0, 1, 2'),
        ('map.pkl', pickle.dumps(Path('code')), 'cannot be read: Global pathlib.*is not permitted'),
    ],
)
def test_faulty_class_maps(image_folder: Path, tmp_path: Path, name: str, contents: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(contents)
    with pytest.raises(ValueError, match=message):
        load_sources(Config(data_dir=str(image_folder), class_map=str(tmp_path / name)))


def test_labels_without_names_are_ordered_naturally() -> None:
    assert number_targets([10, 2, 10], None, 'here') == ([1, 0, 1], ['2', '10'])
    assert number_targets(['b', 'a'], None, 'here') == ([1, 0], ['a', 'b'])


def test_labels_that_are_no_class() -> None:
    with pytest.raises(ValueError, match=r'here has labels \[2\], but its classes are numbered 0 to 1'):
        number_targets([0, 2], ['a', 'b'], 'here')
