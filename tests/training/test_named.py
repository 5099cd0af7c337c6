"""Named data sets, from small archives in the official layout."""

import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import train
from training.config import Config
from training.sources import NAMED, load_sources
from training.sources.named import load_named


def draw(path: Path, value: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new('RGB', (40, 36), (value, 60, 255 - value)).save(path)


def write(path: Path, lines: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text('\n'.join(lines) + '\n')


def make_sun397(root: Path) -> None:
    folders = ['/a/abbey', '/a/apartment_building/outdoor', '/y/yard']
    write(root / 'SUN397' / 'ClassName.txt', folders)
    lists: dict[str, list[str]] = {'Training_01': [], 'Testing_01': [], 'Training_02': [], 'Testing_02': []}
    for value, folder in enumerate(folders):
        for index in range(8):
            draw(root / f'SUN397{folder}/sun_{index}.jpg', 100 * value)
            lists[('Training_01', 'Testing_01')[index % 2]].append(f'{folder}/sun_{index}.jpg')
            lists[('Testing_02', 'Training_02')[index % 2]].append(f'{folder}/sun_{index}.jpg')
    for name, lines in lists.items():
        write(root / f'{name}.txt', lines)


def make_mit67(root: Path) -> None:
    lists: dict[str, list[str]] = {'Train': [], 'Test': []}
    for value, name in enumerate(('bar', 'mall', 'gym')):
        for index in range(8):
            draw(root / 'Images' / name / f'photo {index}.jpg', 100 * value)  # official names have spaces, too
            lists[('Train', 'Test')[index % 2]].append(f'{name}/photo {index}.jpg')
    for split, lines in lists.items():
        write(root / f'{split}Images.txt', lines)


def make_flowers102(root: Path) -> None:
    scipy_io = pytest.importorskip('scipy.io')
    labels = np.array([1 + index % 3 for index in range(36)])
    for index, label in enumerate(labels):
        draw(root / 'jpg' / f'image_{index + 1:05d}.jpg', 100 * int(label - 1))
    ids = np.arange(1, 37)
    scipy_io.savemat(root / 'imagelabels.mat', {'labels': labels})
    scipy_io.savemat(root / 'setid.mat', {'trnid': ids[:12], 'valid': ids[12:24], 'tstid': ids[24:]})


def make_cub200(root: Path) -> None:
    folder = root / 'CUB_200_2011'
    names = ['001.Black_footed_Albatross', '002.Laysan_Albatross', '010.Wren']
    tables: dict[str, list[str]] = {'images': [], 'image_class_labels': [], 'train_test_split': []}
    for number in range(1, 25):
        label = (number - 1) // 8
        path = f'{names[label]}/bird_{number}.jpg'
        draw(folder / 'images' / path, 100 * label)
        tables['images'].append(f'{number} {path}')
        tables['image_class_labels'].append(f'{number} {label + 1}')
        tables['train_test_split'].append(f'{number} {number % 2}')
    for name, lines in tables.items():
        write(folder / f'{name}.txt', lines)
    write(folder / 'classes.txt', [f'{number + 1} {name}' for number, name in enumerate(names)])


def make_stanford40(root: Path) -> None:
    lists: dict[str, list[str]] = {'train': [], 'test': []}
    for value, name in enumerate(('applauding', 'blowing_bubbles', 'watching_TV')):
        for index in range(8):
            draw(root / 'JPEGImages' / f'{name}_{index:03d}.jpg', 100 * value)
            lists[('train', 'test')[index % 2]].append(f'{name}_{index:03d}.jpg')
    for split, lines in lists.items():
        write(root / 'ImageSplits' / f'{split}.txt', lines)


MAKERS: dict[str, Callable[[Path], None]] = {
    'sun397': make_sun397,
    'mit67': make_mit67,
    'flowers102': make_flowers102,
    'cub200': make_cub200,
    'stanford40': make_stanford40,
}


@pytest.fixture(params=MAKERS)
def named(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, Path]:
    """A small archive in the official layout, with twelve images in each split."""
    root = tmp_path / 'archive'
    root.mkdir()
    MAKERS[request.param](root)
    small = dict.fromkeys(NAMED[request.param].splits, 12)
    md5 = {
        path.name: hashlib.md5(path.read_bytes()).hexdigest()
        for path in root.rglob('*')
        if path.name in NAMED[request.param].md5
    }
    monkeypatch.setitem(NAMED, request.param, dataclasses.replace(NAMED[request.param], splits=small, md5=md5))
    return request.param, root


CLASSES = {
    'sun397': ['abbey', 'apartment_building/outdoor', 'yard'],
    'mit67': ['bar', 'gym', 'mall'],
    'cub200': ['001.Black_footed_Albatross', '002.Laysan_Albatross', '010.Wren'],
    'stanford40': ['applauding', 'blowing_bubbles', 'watching_TV'],
}


def test_official_splits(named: tuple[str, Path]) -> None:
    name, root = named
    sources = load_sources(Config(dataset=name, data_dir=str(root)))
    listed = [{source.paths[index] for index in range(12)} for source in sources.values()]  # type: ignore[attr-defined]
    assert not listed[0] & listed[1]
    for source in sources.values():
        assert np.bincount(source.targets).tolist() == [4, 4, 4]
        order = {'mit67': [0, 200, 100]}.get(name, [0, 100, 200])  # the colours in which the classes were drawn
        for index, target in enumerate(source.targets):
            assert abs(source.read(index).getpixel((9, 9))[0] - order[target]) < 9
        assert source.classes[:3] == CLASSES.get(
            name, ['pink primrose', 'hard-leaved pocket orchid', 'canterbury bells']
        )


def test_a_missing_file_is_named_and_where_to_get_it(named: tuple[str, Path]) -> None:
    name, root = named
    lists = [path for path in root.rglob('*') if path.suffix in ('.txt', '.mat') and '_02' not in path.name]
    for path in lists:
        contents = path.read_bytes()
        path.unlink()
        with pytest.raises(ValueError, match=rf'no {path.name} in .* It must have in it .*https?://'):
            load_sources(Config(dataset=name, data_dir=str(root)))
        path.write_bytes(contents)


def test_missing_images_are_named(named: tuple[str, Path]) -> None:
    name, root = named
    for path in [path for path in root.rglob('*.jpg')][:20]:
        path.unlink()
    with pytest.raises(ValueError, match=r'of 12 images are not in .*, such as \[.*https?://'):
        load_sources(Config(dataset=name, data_dir=str(root)))


def test_a_list_of_other_length_is_refused(named: tuple[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    name, root = named
    more = dict.fromkeys(NAMED[name].splits, 13)
    monkeypatch.setitem(NAMED, name, dataclasses.replace(NAMED[name], splits=more))
    with pytest.raises(ValueError, match=r'the split files list 12 images and the official ones 13: get them anew'):
        load_sources(Config(dataset=name, data_dir=str(root)))


def test_split_files_are_told_with_their_checksums(named: tuple[str, Path]) -> None:
    name, root = named
    files = load_named(name, str(root), 'train').split_files
    known = {'mit67', 'flowers102'}
    assert {facts['compared'] for facts in files.values()} == {'as published' if name in known else 'none is published'}
    for file, facts in files.items():
        [path] = root.rglob(file)
        assert facts['md5'] == hashlib.md5(path.read_bytes()).hexdigest()


def test_a_changed_split_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_mit67(tmp_path)
    monkeypatch.setitem(NAMED, 'mit67', dataclasses.replace(NAMED['mit67'], splits={'train': 12, 'test': 12}))
    with pytest.raises(
        ValueError, match=r'TestImages.txt is not the official file of MIT-67: its md5 is .*should be f'
    ):
        load_named('mit67', str(tmp_path), 'test')


def test_other_partitions_and_joined_splits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_sun397(tmp_path)
    small = dict.fromkeys(NAMED['sun397'].splits, 12)
    monkeypatch.setitem(NAMED, 'sun397', dataclasses.replace(NAMED['sun397'], splits=small))
    first, second = (load_named('sun397', str(tmp_path), split) for split in ('train', 'train_02'))
    assert not {*first.paths} & {*second.paths}
    both = load_named('sun397', str(tmp_path), 'train+test')
    assert len({*both.paths}) == 24
    for split in ('train_11', 'train+train', 'valid'):
        with pytest.raises(ValueError, match=r'SUN-397 has the splits train, test, .* which \+ joins, and not'):
            load_named('sun397', str(tmp_path), split)


def test_without_a_folder() -> None:
    with pytest.raises(ValueError, match=r'--dataset cub200 needs --data-dir: .* https://data.caltech.edu'):
        load_sources(Config(dataset='cub200'))


def test_a_run_tells_and_keeps_the_checksums(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_stanford40(tmp_path)
    small = {'train': 12, 'test': 12}
    monkeypatch.setitem(NAMED, 'stanford40', dataclasses.replace(NAMED['stanford40'], splits=small))
    config = Config(
        dataset='stanford40',
        data_dir=str(tmp_path),
        model='test_efficientnet',
        pretrained=False,
        img_size=32,
        batch_size=4,
        epochs=1,
        threads=1,
        output=str(tmp_path / 'runs'),
        val_split='0.25',
        cache_images=True,
        cache_dir=str(tmp_path / 'cache'),
    )
    run = Path(train.main(config)['run'])
    facts = json.loads((run / 'run.json').read_text())
    assert facts['data']['split_files']['train']['train.txt']['compared'] == 'none is published'
    assert facts['data']['val_images'] == 3
    assert run.name == 'test_efficientnet-stanford40'
    assert (
        f'train.txt (md5 {facts["data"]["split_files"]["val"]["train.txt"]["md5"]}, none is' in capsys.readouterr().out
    )
