"""Data sets that are read through other libraries: tar files, Hugging Face, webdataset, TensorFlow."""

import dataclasses
import io
import json
import os
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import train
from tests.test_train import assert_same_weights, stop_after
from training.config import Config
from training.image_cache import ImageCache
from training.interruption import InterruptedRun
from training.sources import Source, load_sources

# webdataset does not close the shards that it has read, and TensorFlow uses what others have deprecated.
UNCLOSED = pytest.mark.filterwarnings('default')


@pytest.fixture
def cache(tmp_path: Path) -> ImageCache:
    return ImageCache(tmp_path / 'cache', 36, 'bicubic', say=lambda text: None)


@pytest.fixture
def config(config: Config, tmp_path: Path) -> Config:
    """Configure a short run on the cached folder."""
    return dataclasses.replace(config, drop=None, epochs=1, experiment=None, cache_dir=str(tmp_path / 'cache'))


def read_all(source: Source) -> list[tuple[str, list[int]]]:
    """Class and a pixel of each image, in no order."""
    return sorted(
        (source.classes[target], list(source.read(index).getpixel((5, 5))))
        for index, target in enumerate(source.targets)
    )


def pack(folder: Path, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, 'w') as tar:
        tar.add(folder, arcname='.')


def lay_out(image_folder: Path, root: Path, layout: str) -> Path:
    """Put the images into tar files; returns --data-dir."""
    if layout == 'one file':
        pack(image_folder, root / 'all.tar')
        return root / 'all.tar'
    for split in ('train', 'val'):
        if layout == 'a file a split':
            pack(image_folder / split, root / f'{split}.tar')
        elif layout == 'a file a class':
            for folder in (image_folder / split).iterdir():
                pack(folder, root / split / f'{folder.name}.tar')
        else:
            for folder in (image_folder / split).iterdir():
                pack(folder, root / 'inner' / split / f'{folder.name}.tar')
            pack(root / 'inner' / split, root / split / 'tars.tar')
    return root


@pytest.mark.parametrize('layout', ['one file', 'a file a split', 'a file a class', 'tars in a tar'])
def test_tar_files_hold_the_same_as_folders(image_folder: Path, tmp_path: Path, layout: str) -> None:
    packed = load_sources(Config(data_dir=str(lay_out(image_folder, tmp_path / 'tars', layout))))
    plain = load_sources(Config(data_dir=str(image_folder)))
    for split in ('train', 'val'):
        assert packed[split].classes == plain[split].classes
        assert read_all(packed[split]) == read_all(plain[split])
        assert len({packed[split].name(index) for index in range(len(packed[split].targets))}) == len(
            plain[split].targets
        )
        assert packed[split].size(0) == plain[split].size(0)


def test_a_tar_file_without_the_split(image_folder: Path, tmp_path: Path) -> None:
    pack(image_folder / 'train', tmp_path / 'x.tar')
    with pytest.raises(ValueError, match=r"has no folder 'train' with CLASS/\*.jpg in it \(it has \['blue', 'green',"):
        load_sources(Config(data_dir=str(tmp_path / 'x.tar')))
    sources = load_sources(Config(data_dir=str(tmp_path / 'x.tar'), train_split='.', val_split='0.25'))
    assert (len(sources['train'].targets), len(sources['val'].targets)) == (18, 6)


def test_what_is_no_tar_file(tmp_path: Path) -> None:
    (tmp_path / 'x.tar').write_bytes(b'no tar')
    with pytest.raises(ValueError, match=r'x.tar has no images in it, or is not a plain tar file'):
        load_sources(Config(data_dir=str(tmp_path / 'x.tar')))


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'target_key': 'label'}, '--target-key label has no meaning for these images: leave it out'),
        ({'dataset': 'torch/cifar10', 'input_key': 'x'}, '--input-key x has no meaning'),
        ({'input_key': '.jpg'}, 'has no images'),
    ],
)
def test_keys_that_nothing_reads(image_folder: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_sources(Config(data_dir=str(image_folder), **options))


def test_a_missing_package_is_named(cache: ImageCache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
    with pytest.raises(ValueError, match=r'--dataset wds/x needs the package webdataset: pip install webdataset'):
        load_sources(Config(dataset='wds/x'), cache)


@pytest.fixture
def hub_folder(image_folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The images as a local data set of the library datasets, which calls the second split validation."""
    pytest.importorskip('datasets')
    (image_folder / 'val').rename(image_folder / 'validation')
    monkeypatch.setattr('datasets.config.HF_DATASETS_CACHE', tmp_path / 'datasets')
    return image_folder


@pytest.mark.parametrize('kind', ['hfds', 'hfids'])
def test_hugging_face(hub_folder: Path, cache: ImageCache, kind: str, tmp_path: Path) -> None:
    plain = load_sources(Config(data_dir=str(hub_folder), val_split='validation', cache_images=True), cache)
    options = {'dataset': f'{kind}/{hub_folder}', 'val_split': 'validation', 'data_dir': str(tmp_path / 'datasets')}
    sources = load_sources(Config(**options, cache_images=True), cache)
    for split in ('train', 'val'):
        assert sources[split].classes == ['blue', 'green', 'red']
        assert read_all(sources[split]) == read_all(plain[split])
        assert sources[split].name(0).endswith('0.png')


@pytest.mark.parametrize('kind', ['hfds', 'hfids'])
def test_a_broken_image_of_hugging_face(hub_folder: Path, cache: ImageCache, kind: str, tmp_path: Path) -> None:
    (hub_folder / 'train' / 'green' / '0.png').write_bytes(b'no image')
    options = {'dataset': f'{kind}/{hub_folder}', 'val_split': 'validation', 'data_dir': str(tmp_path / 'datasets')}
    source = load_sources(Config(**options), cache)['train']
    assert len(source.targets) == 24
    with pytest.raises(OSError, match=r'0.png was unreadable|cannot identify image'):
        source.read(8)
    assert source.read(9).getbands() == ('R', 'G', 'B')


def test_columns_that_hugging_face_does_not_have(hub_folder: Path, cache: ImageCache, tmp_path: Path) -> None:
    options = {'dataset': f'hfids/{hub_folder}', 'data_dir': str(tmp_path / 'datasets')}
    with pytest.raises(ValueError, match=r"no column 'colour' but \['image', 'label'\]: give --input-key and --target"):
        load_sources(Config(**options, target_key='colour'), cache)


@pytest.fixture
def shards(image_folder: Path, tmp_path: Path) -> Path:
    """The images in two shards a split, with the class in .cls and in a field of .json."""
    pytest.importorskip('webdataset')
    root = tmp_path / 'shards'
    root.mkdir()
    for split in ('train', 'val'):
        paths = sorted((image_folder / split).rglob('*.png'), key=lambda path: (path.name, path.parent.name))
        for shard in range(2):
            with tarfile.open(root / f'{split}-{shard}.tar', 'w') as tar:
                for path in paths[shard::2]:
                    number = ['blue', 'green', 'red'].index(path.parent.name)
                    key = f'{path.parent.name}_{path.stem}'
                    meta = json.dumps({'colour': {'name': path.parent.name}}).encode()
                    for ending, contents in (('png', path.read_bytes()), ('cls', b'%d' % number), ('json', meta)):
                        info = tarfile.TarInfo(f'{key}.{ending}')
                        info.size = len(contents)
                        tar.addfile(info, io.BytesIO(contents))
    return root


@UNCLOSED
@pytest.mark.parametrize('target_key', [None, 'colour/name'])
def test_webdataset(shards: Path, image_folder: Path, cache: ImageCache, target_key: str | None) -> None:
    plain = load_sources(Config(data_dir=str(image_folder), cache_images=True), cache)
    options = {'train_split': 'train-{0..1}.tar', 'val_split': 'val-{0..1}.tar', 'target_key': target_key}
    sources = load_sources(Config(dataset='wds/', data_dir=str(shards), **options), cache)
    names = ['0', '1', '2'] if target_key is None else ['blue', 'green', 'red']
    for split in ('train', 'val'):
        assert sources[split].classes == names
        sources[split].classes = plain[split].classes
        assert read_all(sources[split]) == read_all(plain[split])
    assert sources['train'].name(0) == 'blue_0'


@UNCLOSED
def test_another_shard_makes_another_cache(shards: Path, cache: ImageCache) -> None:
    options = {'train_split': 'train-0.tar', 'val_split': 'train-1.tar'}
    load_sources(Config(dataset='wds/', data_dir=str(shards), **options), cache)
    before = len([path for path in cache.root.iterdir() if path.is_dir()])
    os.utime(shards / 'train-0.tar', ns=(1, 1))
    load_sources(Config(dataset='wds/', data_dir=str(shards), **options), cache)
    assert len([path for path in cache.root.iterdir() if path.is_dir()]) == before + 1 == 3


@UNCLOSED
def test_a_stream_trains_and_goes_on_bit_for_bit(shards: Path, config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    config = dataclasses.replace(
        config, dataset='wds/', data_dir=str(shards), train_split='train-{0..1}.tar', val_split='0.25', epochs=2
    )
    unbroken = train.main(dataclasses.replace(config, experiment='unbroken'))['run']
    with monkeypatch.context() as patch:
        stop_after(6, patch)
        with pytest.raises(InterruptedRun):
            train.main(config)
    assert_same_weights(train.main(dataclasses.replace(config, resume='auto'))['run'], unbroken)
    facts = json.loads(Path(unbroken, 'run.json').read_text())
    assert (facts['data']['train_images'], facts['data']['val_images']) == (18, 6)


@UNCLOSED
def test_tensorflow_datasets(image_folder: Path, cache: ImageCache, tmp_path: Path) -> None:
    tfds: Any = pytest.importorskip('tensorflow_datasets')
    (image_folder / 'val').rename(image_folder / 'validation')
    for path in image_folder.rglob('*.png'):  # timm decodes JPEG only
        Image.open(path).resize((36, 36)).save(path.with_suffix('.jpeg'), quality=95)
        path.unlink()
    builder_type = type('Colours', (tfds.core.GeneratorBasedBuilder,), colours_of(tfds, image_folder))
    builder_type(data_dir=str(tmp_path / 'tfds')).download_and_prepare()
    options = {'dataset': 'tfds/colours', 'data_dir': str(tmp_path / 'tfds'), 'val_split': 'validation'}
    sources = load_sources(Config(**options), cache)
    plain = load_sources(Config(data_dir=str(image_folder), val_split='validation', cache_images=True), cache)
    for split in ('train', 'val'):
        assert sources[split].classes == ['blue', 'green', 'red']
        ours, theirs = read_all(sources[split]), read_all(plain[split])
        assert [name for name, _ in ours] == [name for name, _ in theirs]
        assert np.abs(np.array([pixel for _, pixel in ours]) - [pixel for _, pixel in theirs]).max() < 40


def colours_of(tfds: Any, image_folder: Path) -> dict[str, Any]:
    """The members of a builder of TensorFlow's data sets."""

    def info(builder: Any) -> Any:
        label = tfds.features.ClassLabel(names=['blue', 'green', 'red'])
        features = tfds.features.FeaturesDict({'image': tfds.features.Image(shape=(36, 36, 3)), 'label': label})
        return tfds.core.DatasetInfo(builder=builder, features=features)

    def examples(builder: Any, folder: Path) -> Any:
        for path in sorted(folder.rglob('*.jpeg')):
            yield f'{path.parent.name}{path.stem}', {'image': str(path), 'label': path.parent.name}

    def splits(builder: Any, manager: Any) -> Any:
        return {split: examples(builder, image_folder / split) for split in ('train', 'validation')}

    return {
        'VERSION': tfds.core.Version('1.0.0'),
        '_info': info,
        '_split_generators': splits,
        '_generate_examples': examples,
    }
