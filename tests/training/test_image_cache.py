"""The image cache: equal to reading the images themselves, whole or not there, and shared."""

import collections
import dataclasses
import errno
import functools
import json
import os
import pickle
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from training import image_cache
from training.config import Config
from training.data import UNREADABLE, Images, InputFormat
from training.image_cache import CachedSource, ImageCache, open_cache
from training.sources import ArraySource, Source, Stream, StreamedImage, load_folder
from training.sources.folders import load_tar
from training.tasks import SingleLabel

ROOT = Path(__file__).parent.parent.parent
FORMAT = InputFormat(img_size=32, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), interpolation='bicubic')


@pytest.fixture
def cache(tmp_path: Path) -> ImageCache:
    return ImageCache(tmp_path / 'cache', FORMAT.resized_side, FORMAT.interpolation, say=lambda text: None)


def folders(cache: ImageCache) -> list[str]:
    """What lies in the cache, without locks, which are left."""
    return sorted(path.name for path in cache.root.iterdir() if not path.name.endswith('.lock'))


@pytest.mark.parametrize('interpolation', ['bicubic', 'bilinear'])
@pytest.mark.parametrize('split', ['train', 'val'])
def test_the_network_sees_the_same(image_folder: Path, cache: ImageCache, interpolation: str, split: str) -> None:
    cache.interpolation = interpolation
    seen = dataclasses.replace(FORMAT, interpolation=interpolation)
    source = load_folder(image_folder / 'train')
    kept = cache.keep(source, 'train')
    transform = seen.train_transform(Config().resolved()) if split == 'train' else seen.eval_transform()
    plain, cached = (
        Images(source, transform, seed=0, task=SingleLabel()),
        Images(kept, transform, seed=0, task=SingleLabel()),
    )
    for index in range(len(plain)):
        torch.testing.assert_close(cached[2, index], plain[2, index], rtol=0, atol=0)


def test_images_are_decoded_once(image_folder: Path, cache: ImageCache, monkeypatch: pytest.MonkeyPatch) -> None:
    cache.keep(load_folder(image_folder / 'train'), 'train')
    source = load_folder(image_folder / 'train')
    monkeypatch.setattr(source, 'read', None)
    kept = cache.keep(source, 'train')
    assert [kept.read(index).size for index in range(24)] == [(36, 36)] * 24
    assert len(folders(cache)) == 1


def test_a_pickled_source_maps_its_file_anew(image_folder: Path, cache: ImageCache) -> None:
    kept = cache.keep(load_folder(image_folder / 'train'), 'train')
    expected = np.asarray(kept.read(3))
    assert len(pickle.dumps(kept)) < 20_000
    assert np.array_equal(np.asarray(pickle.loads(pickle.dumps(kept)).read(3)), expected)


@pytest.mark.parametrize('change', ['pixels', 'time', 'name', 'side', 'interpolation', 'Pillow'])
def test_what_changes_the_pixels_makes_another_cache(
    image_folder: Path, cache: ImageCache, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.keep(load_folder(image_folder / 'train'), 'train')
    path = image_folder / 'train' / 'red' / '0.png'
    if change == 'pixels':
        Image.new('RGB', (9, 9)).save(path)
    elif change == 'time':
        os.utime(path, ns=(1, 1))
    elif change == 'name':
        path.rename(path.with_name('other.png'))
    elif change == 'side':
        cache.side = 40
    elif change == 'interpolation':
        cache.interpolation = 'bilinear'
    else:
        monkeypatch.setattr('PIL.__version__', '0.1')
    cache.keep(load_folder(image_folder / 'train'), 'train')
    assert len(folders(cache)) == 2


def test_folders_that_moved_keep_their_cache(image_folder: Path, cache: ImageCache) -> None:
    cache.keep(load_folder(image_folder / 'train'), 'train')
    image_folder.rename(image_folder.with_name('moved'))
    cache.keep(load_folder(image_folder.with_name('moved') / 'train'), 'train')
    assert len(folders(cache)) == 1


@pytest.mark.parametrize('kind', ['arrays', 'tar'])
def test_other_sources_with_the_same_names(kind: str, image_folder: Path, cache: ImageCache) -> None:
    source: Source
    other: Source
    if kind == 'arrays':
        pixels = np.zeros((4, 9, 9), dtype=np.uint8)
        source, other = (ArraySource(pixels + value, [0, 1, 0, 1], ['a', 'b']) for value in (0, 1))
    else:
        shutil.make_archive(str(image_folder / 'train'), 'tar', image_folder / 'train')
        shutil.make_archive(str(image_folder / 'other' / 'train'), 'tar', image_folder / 'train')
        os.utime(image_folder / 'other' / 'train.tar', ns=(1, 1))
        source, other = load_tar(image_folder / 'train.tar'), load_tar(image_folder / 'other' / 'train.tar')
    cache.keep(source, 'train')
    cache.keep(other, 'train')
    assert len(folders(cache)) == 2


def test_an_unreadable_image_stays_unreadable_until_it_is_repaired(image_folder: Path, cache: ImageCache) -> None:
    path = image_folder / 'train' / 'blue' / '1.png'
    whole = path.read_bytes()
    path.write_bytes(whole[:60])
    kept = cache.keep(load_folder(image_folder / 'train'), 'train')
    images = Images(kept, FORMAT.train_transform(Config().resolved()), seed=0, task=SingleLabel())
    assert [images[0, index][1] for index in range(3)] == [0, UNREADABLE, 0]
    path.write_bytes(whole)  # as after a short failure of a network disk
    assert images[0, 1][1] == 0


@pytest.mark.parametrize('fault', ['short pixels', 'index', 'facts', 'no index', 'other bytes'])
def test_a_damaged_cache_is_noticed(image_folder: Path, cache: ImageCache, fault: str) -> None:
    source = load_folder(image_folder / 'train')
    expected = np.asarray(cache.keep(source, 'train').read(0))
    [folder] = [cache.root / name for name in folders(cache)]
    if fault == 'short pixels':
        os.truncate(folder / 'pixels.bin', 500)
    elif fault == 'index':
        contents = bytearray((folder / 'index.npz').read_bytes())
        contents[len(contents) // 4] ^= 255
        (folder / 'index.npz').write_bytes(contents)
    elif fault == 'facts':
        (folder / 'facts.json').write_text('{')
    elif fault == 'no index':
        (folder / 'index.npz').unlink()
    else:
        with open(folder / 'pixels.bin', 'r+b') as file:
            file.seek(100)
            file.write(b'garbage')
    said: list[str] = []
    cache.say = said.append
    kept = cache.keep(source, 'train')
    assert any('is damaged' in line for line in said) == (fault != 'other bytes')
    assert np.array_equal(np.asarray(kept.read(0)), expected)


def test_a_disk_without_room_is_told_before(
    image_folder: Path, cache: ImageCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = collections.namedtuple('usage', 'free')
    monkeypatch.setattr(shutil, 'disk_usage', lambda path: usage(24 * 36 * 36 * 3 - 1))
    with pytest.raises(ValueError, match=r'needs 0.0 GB for train and .* has only 0.0: give another --cache-dir, or'):
        cache.keep(load_folder(image_folder / 'train'), 'train')
    assert folders(cache) == []


def test_a_disk_that_fills_leaves_nothing(
    image_folder: Path, cache: ImageCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object) -> None:
        raise OSError(errno.ENOSPC, 'No space left on device')

    monkeypatch.setattr(image_cache, 'sync', fail)
    with pytest.raises(ValueError, match=r'is full, so the image cache of train cannot be there'):
        cache.keep(load_folder(image_folder / 'train'), 'train')
    assert folders(cache) == []


# Makes a cache slowly; tells how many images it decoded itself, and a checksum of all.
BUILD = """
import sys, time, zlib
from pathlib import Path
from training.image_cache import ImageCache
from training.sources import load_folder

root, folder, pause_s = Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3])
source = load_folder(folder)
read, reads = source.read, []

def slow_read(index):
    time.sleep(pause_s)
    reads.append(index)
    return read(index)

source.read = slow_read
kept = ImageCache(root, 36, 'bicubic', say=lambda text: None).keep(source, 'train')
pixels = b''.join(kept.read(index).tobytes() for index in range(24))
print(len(reads), zlib.crc32(pixels))
"""


def start_building(cache: ImageCache, image_folder: Path, pause_s: float) -> subprocess.Popen:
    command = [sys.executable, '-c', BUILD, str(cache.root), str(image_folder / 'train'), str(pause_s)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def test_a_kill_while_it_is_made_leaves_no_harm(image_folder: Path, cache: ImageCache) -> None:
    with start_building(cache, image_folder, pause_s=60.0) as victim:
        while not list(cache.root.glob('.*.unfinished/pixels.bin')):
            assert victim.poll() is None
            time.sleep(0.01)
        victim.kill()
    assert len(folders(cache)) == 1  # what the dead process left
    kept = cache.keep(load_folder(image_folder / 'train'), 'train')
    assert [name for name in folders(cache) if name.endswith('.unfinished')] == []
    assert kept.kept.readable.all()


def test_of_two_processes_one_makes_it(image_folder: Path, cache: ImageCache) -> None:
    with start_building(cache, image_folder, 0.1) as one, start_building(cache, image_folder, 0.1) as other:
        answers = [process.communicate(timeout=120)[0].split() for process in (one, other)]
    assert sorted(int(reads) for reads, _ in answers) == [0, 24]
    assert answers[0][1] == answers[1][1]


def test_without_locks_the_slower_process_takes_the_faster_ones(
    image_folder: Path, cache: ImageCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = load_folder(image_folder / 'train')
    cache.keep(source, 'train')
    monkeypatch.setattr(cache, 'find', lambda path: None)
    cache.keep(source, 'train')
    assert len(folders(cache)) == 1


def make_stream(count: int, broken: int | None = None, names: list[str] | None = None) -> Stream:
    def images() -> collections.abc.Iterator[StreamedImage]:
        for index in range(count):
            encoded = np.full((20, 30, 3), index, dtype=np.uint8)
            yield StreamedImage(f'{index}.png', index % 2, functools.partial(decode, index, encoded))

    def decode(index: int, pixels: np.ndarray) -> Image.Image:
        if index == broken:
            raise OSError('broken')
        return Image.fromarray(pixels)

    return Stream('a stream', f'{count} {broken}', names, images)


def test_a_stream_becomes_a_source(cache: ImageCache) -> None:
    source = cache.keep_stream(make_stream(100, broken=7, names=['even', 'odd']))
    assert (source.classes, source.targets) == (['even', 'odd'], [0, 1] * 50)
    assert [source.name(index) for index in (0, 99)] == ['0.png', '99.png']
    assert np.asarray(source.read(33)).flatten().tolist() == [33] * (36 * 36 * 3)
    with pytest.raises(OSError, match=r'7.png was unreadable in the stream'):
        source.read(7)


def test_a_stream_is_read_once(cache: ImageCache) -> None:
    cache.keep_stream(make_stream(5))
    again = dataclasses.replace(make_stream(5), images=lambda: pytest.fail('read again'))
    assert cache.keep_stream(again).classes == ['0', '1']


def test_a_stream_without_images_is_refused(cache: ImageCache) -> None:
    with pytest.raises(ValueError, match=r'a stream has no images'):
        cache.keep_stream(make_stream(0))
    assert folders(cache) == []


def test_where_the_cache_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = Config(model='test_efficientnet', cache_images=True)
    assert open_cache(Config()) is None
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    opened = open_cache(config)
    assert opened is not None
    assert (opened.root, opened.side) == (tmp_path / 'timm_devnet' / 'images', 182)
    given = open_cache(dataclasses.replace(config, cache_dir='here', img_size=32))
    assert given is not None
    assert (given.root, given.side) == (Path('here'), 36)


def test_crops_of_whole_images_are_refused() -> None:
    with pytest.raises(ValueError, match=r'--train-crop-mode rrc crops whole images, and the image cache keeps them'):
        open_cache(Config(model='test_efficientnet', cache_images=True, train_crop_mode='rrc'))


def test_facts_are_readable_by_people(image_folder: Path, cache: ImageCache) -> None:
    kept = cache.keep(load_folder(image_folder / 'train'), 'train')
    assert isinstance(kept, CachedSource)
    facts = json.loads((kept.kept.path / 'facts.json').read_text())
    assert facts == {**facts, 'format': 2, 'side': 36, 'interpolation': 'bicubic', 'images': 24, 'of': 'train'}
    assert kept.kept.path.name.startswith('train-36px-')


def test_no_progress_bar_without_a_terminal(
    image_folder: Path, cache: ImageCache, capsys: pytest.CaptureFixture[str]
) -> None:
    cache.say = print
    cache.keep(load_folder(image_folder / 'train'), 'train')
    printed = capsys.readouterr()
    assert printed.out.startswith('24 images of train come from the cache ')
    assert printed.err == ''
