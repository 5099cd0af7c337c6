"""From the Hub into its cache, looked at before and checked after; and from there into a folder."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import close_session, constants

from hub.pulling import copy_to, download
from tests.hub_server import HubServer, rate_limited

NAME = 'me/net'
Stage = Callable[..., Path]


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def published(hub: HubServer, staged: Path) -> dict[str, bytes]:
    """Put a staged folder on the Hub, beside files that do not belong."""
    files = files_of(staged)
    hub.commit(NAME, {**files, 'pytorch_model.bin': b'a pickle', 'sub/config.json': b'{}'})
    return files


def fetched(hub: HubServer) -> list[str]:
    return [entry.path for entry in hub.log if entry.method == 'GET' and '/resolve/' in entry.path]


def stored(hub: HubServer) -> list[Any]:
    """Requests for the contents of large files."""
    return hub.requests('GET', '/storage/')


def go_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', True)


def test_only_what_belongs_is_fetched(hub: HubServer, published: dict[str, bytes]) -> None:
    assert files_of(download(NAME)) == published
    assert not hub.requests('GET', 'pytorch_model.bin|sub/config.json')


def test_second_time_nothing_is_fetched(hub: HubServer, published: dict[str, bytes]) -> None:
    first = download(NAME)
    hub.log.clear()
    assert download(NAME) == first
    assert fetched(hub) == [] and stored(hub) == []


def test_cache_dir(hub: HubServer, published: dict[str, bytes], tmp_path: Path) -> None:
    assert download(NAME, cache_dir=tmp_path / 'elsewhere').is_relative_to(tmp_path / 'elsewhere')
    assert not Path(constants.HF_HUB_CACHE).exists()


@pytest.mark.parametrize('kind', ['branch', 'commit', 'proposal'])
def test_revision(hub: HubServer, published: dict[str, bytes], kind: str) -> None:
    old = hub.repos[NAME].find('main')
    hub.repos[NAME].refs.update({'v1': old.oid, 'refs/pr/1': old.oid})
    hub.commit(NAME, {'config.json': b'{"newer": true}'})
    revision = {'branch': 'v1', 'commit': old.oid, 'proposal': 'refs/pr/1'}[kind]
    assert (download(NAME, revision=revision) / 'config.json').read_bytes() == published['config.json']


def test_unknown_revision(hub: HubServer, published: dict[str, bytes]) -> None:
    with pytest.raises(ValueError, match='has no such revision'):
        download(NAME, revision='v9')


@pytest.mark.parametrize(
    ('files', 'message'),
    [
        ({'config.json': b'{}', 'pytorch_model.bin': b'x'}, 'no model.safetensors; pytorch_model.bin may run code'),
        ({'model.safetensors': b'x'}, 'it has no config.json'),
        ({}, 'it has no config.json and no model.safetensors'),
    ],
)
def test_other_repositories(hub: HubServer, files: dict[str, bytes], message: str) -> None:
    hub.commit(NAME, files)
    with pytest.raises(ValueError, match=message):
        download(NAME)
    assert fetched(hub) == []


@pytest.mark.parametrize('name', ['config.json', 'README.md', 'metrics.csv', 'growth.png'])
def test_large_files_are_not_begun(hub: HubServer, published: dict[str, bytes], name: str) -> None:
    hub.commit(NAME, {name: b' ' * 10_000_001})
    with pytest.raises(ValueError, match=f'{name} of me/net has 10.0 MB, and 10.0 MB are allowed'):
        download(NAME)
    assert fetched(hub) == []


def test_large_weights_are_not_begun(hub: HubServer, published: dict[str, bytes]) -> None:
    size = len(published['model.safetensors'])
    with pytest.raises(ValueError, match=r'model.safetensors of me/net has 400.1 kB.*allow more by max_bytes'):
        download(NAME, max_bytes=size - 1)
    assert fetched(hub) == []
    download(NAME, max_bytes=size)


@pytest.mark.parametrize('name', ['../x', 'a/../../x', '/etc/x', 'a//x', './x', '..\\x', 'C:x', 'a\x1bx', 'a\n', '..'])
def test_names_that_lead_elsewhere(hub: HubServer, published: dict[str, bytes], name: str) -> None:
    hub.commit(NAME, {name: b'x'})
    with pytest.raises(ValueError, match='a file with a name that leads elsewhere'):
        download(NAME)
    assert fetched(hub) == []


def test_cut_connection_goes_on_where_it_broke(
    hub: HubServer, published: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, waits: list[float]
) -> None:
    monkeypatch.setattr(constants, 'DOWNLOAD_CHUNK_SIZE', 10_000)  # what huggingface_hub writes down at once
    hub.fail('GET', '/storage/', times=4, cut_download=90_000)
    assert files_of(download(NAME)) == published
    requests = [entry for entry in stored(hub) if entry.span]
    assert len(requests) >= 2
    assert all(int(entry.span.removeprefix('bytes=').removesuffix('-')) >= 40_000 for entry in requests)
    whole = len(published['model.safetensors']) + len(published['growth.png'])
    assert sum(entry.sent for entry in stored(hub)) < whole + 4 * 10_000, 'no more than what was in the air'


def test_stalled_connection_goes_on(
    hub: HubServer, published: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, waits: list[float]
) -> None:
    monkeypatch.setattr(constants, 'HF_HUB_DOWNLOAD_TIMEOUT', 0.1)
    hub.fail('GET', '/storage/', delay_s=0.5)
    assert files_of(download(NAME)) == published


def test_killed_download(hub: HubServer, published: dict[str, bytes], child_environment: dict[str, str]) -> None:
    hub.fail('GET', '/storage/', times=2, delay_s=0.2)  # the picture's four pieces arrive, the weights' 25 do not
    code = f'from hub.pulling import download; download({NAME!r})'
    with subprocess.Popen([sys.executable, '-c', code], env=child_environment) as child:
        cache = Path(constants.HF_HUB_CACHE)
        deadline = time.monotonic() + 60
        while not any(cache.glob('*/snapshots/*/growth.png')):
            assert time.monotonic() < deadline and child.poll() is None
            time.sleep(0.01)
        child.kill()
    assert child.returncode == -signal.SIGKILL
    hub.log.clear()
    assert files_of(download(NAME)) == published
    # huggingface_hub 2.4 goes on with broken connections, not with files that a killed process left.
    assert [entry.sent for entry in stored(hub)] == [len(published['model.safetensors'])]


def test_offline_from_the_cache(hub: HubServer, published: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    online = download(NAME)
    go_offline(monkeypatch)
    hub.log.clear()
    said: list[str] = []
    assert download(NAME, say=said.append) == online
    assert hub.log == [] and said == [f'{NAME}: HF_HUB_OFFLINE is set; taken from the cache']


def test_offline_without_a_cache(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    go_offline(monkeypatch)
    with pytest.raises(ValueError, match=r'me/net: HF_HUB_OFFLINE is set, and the cache at .* does not have it: unset'):
        download(NAME)


def test_offline_with_half_a_cache(
    hub: HubServer, published: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    (download(NAME) / 'model.safetensors').unlink()
    go_offline(monkeypatch)
    with pytest.raises(ValueError, match='lacks model.safetensors of it'):
        download(NAME)


def test_offline_files_are_checked(
    hub: HubServer, published: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    (download(NAME) / 'model.safetensors').resolve().write_bytes(b'rotten')
    go_offline(monkeypatch)
    with pytest.raises(ValueError, match='model.safetensors of me/net is not what the Hub says'):
        download(NAME)


def test_unreachable(hub: HubServer, published: dict[str, bytes], waits: list[float]) -> None:
    online = download(NAME)
    hub.server.shutdown()
    hub.server.server_close()
    close_session()  # or what it has open goes on
    assert download(NAME) == online
    with pytest.raises(ValueError, match='the Hub cannot be reached .* does not have it: see to the connection'):
        download('me/other')


@pytest.mark.parametrize(('path', 'name'), [('/storage/', 'model.safetensors'), ('/README.md', 'README.md')])
def test_other_bytes_than_stated(hub: HubServer, published: dict[str, bytes], path: str, name: str) -> None:
    if name == 'model.safetensors':
        del hub.repos[NAME].find('main').files['growth.png']
    hub.fail('GET', path, is_corrupt=True)
    with pytest.raises(ValueError, match=f'{name} of me/net is not what the Hub says it is: .* pull again'):
        download(NAME)
    assert not list(Path(constants.HF_HUB_CACHE).glob(f'*/snapshots/*/{name}'))
    assert (download(NAME) / name).read_bytes() == published[name]


def test_link_out_of_the_cache(hub: HubServer, published: dict[str, bytes], tmp_path: Path) -> None:
    path = download(NAME) / 'config.json'
    (tmp_path / 'private.json').write_text('{}')
    path.unlink()
    path.symlink_to(tmp_path / 'private.json')
    with pytest.raises(ValueError, match='leads out of the cache'):
        download(NAME)
    assert (tmp_path / 'private.json').exists()


@pytest.mark.parametrize('token', ['', 'hf_thisTokenIsNotKnown'])
def test_private(hub: HubServer, published: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, token: str) -> None:
    hub.repos[NAME].is_private = True
    monkeypatch.setenv('HF_TOKEN', token)
    with pytest.raises(ValueError, match='hf auth login'):
        download(NAME)


@pytest.mark.parametrize(
    ('status', 'message'),
    [(403, 'you may not do this'), (404, 'does not have what was asked'), (429, 'asks to wait 7200 s')],
)
def test_refusals(hub: HubServer, published: dict[str, bytes], waits: list[float], status: int, message: str) -> None:
    hub.fail('GET', '/api/models/', status=status, headers=rate_limited(7200))
    with pytest.raises(ValueError, match=message) as refusal:
        download(NAME)
    assert '\n' not in str(refusal.value)


@pytest.mark.parametrize('status', [500, 503])
def test_trouble_of_the_hub_is_like_no_hub(hub: HubServer, published: dict[str, bytes], status: int) -> None:
    online = download(NAME)
    hub.fail('GET', '/api/models/', times=9, status=status)
    assert download(NAME) == online


@pytest.mark.parametrize('path', ['/api/models/', '/tree/', '/resolve/.*README', '/storage/'])
def test_rate_limit_is_waited_for(hub: HubServer, published: dict[str, bytes], waits: list[float], path: str) -> None:
    hub.fail('GET', path, status=429, headers=rate_limited(7))
    assert files_of(download(NAME)) == published
    assert waits == [8]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 0.3 MB."""
    path = tmp_path / 'disk'
    path.mkdir()
    if os.geteuid() != 0 or subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=300k', 'tmpfs', path]).returncode:
        pytest.skip('mounting a disk takes the rights to')
    yield path
    subprocess.run(['umount', path], check=True)


def test_disk_that_is_too_small(hub: HubServer, published: dict[str, bytes], disk: Path) -> None:
    with pytest.raises(ValueError, match=r'me/net needs 450.* kB, and the disk of .*/disk has 3.* kB left'):
        download(NAME, cache_dir=disk)
    assert fetched(hub) == []


def test_disk_that_fills_up(
    hub: HubServer, published: dict[str, bytes], disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(disk)
    monkeypatch.setattr('shutil.disk_usage', lambda path: usage._replace(free=10**9))
    with pytest.raises(ValueError, match='^no space is left on the disk') as refusal:
        download(NAME, cache_dir=disk)
    assert '\n' not in str(refusal.value)
    assert not list(disk.rglob('model.safetensors'))


def test_read_only_cache(hub: HubServer, published: dict[str, bytes], disk: Path) -> None:
    subprocess.run(['mount', '-o', 'remount,ro,size=1m', disk], check=True)
    with pytest.raises(ValueError, match='^nothing can be written at .*HF_HUB_CACHE') as refusal:
        download(NAME, cache_dir=disk)
    assert '\n' not in str(refusal.value)


def test_read_only_cache_that_has_it(hub: HubServer, published: dict[str, bytes], disk: Path) -> None:
    subprocess.run(['mount', '-o', 'remount,size=1m', disk], check=True)
    folder = download(NAME, cache_dir=disk)
    subprocess.run(['mount', '-o', 'remount,ro', disk], check=True)
    assert download(NAME, cache_dir=disk) == folder


@pytest.mark.parametrize('exists', [False, True])
def test_copy(hub: HubServer, published: dict[str, bytes], tmp_path: Path, exists: bool) -> None:
    target = tmp_path / 'mine'
    if exists:
        target.mkdir()
    assert copy_to(download(NAME), target) == target
    assert files_of(target) == published
    assert not any(path.is_symlink() for path in target.iterdir())
    assert list(tmp_path.glob('.*unfinished')) == []


def test_copy_overwrites_nothing(hub: HubServer, published: dict[str, bytes], tmp_path: Path) -> None:
    (tmp_path / 'mine').mkdir()
    (tmp_path / 'mine' / 'thesis.tex').write_text('dear')
    with pytest.raises(ValueError, match='exists and is not an empty folder'):
        copy_to(download(NAME), tmp_path / 'mine')
    assert files_of(tmp_path / 'mine') == {'thesis.tex': b'dear'}


def test_copy_is_whole_or_none(hub: HubServer, published: dict[str, bytes], disk: Path) -> None:
    snapshot = download(NAME)
    with pytest.raises(ValueError, match='no space is left on the disk'):
        copy_to(snapshot, disk / 'mine')
    assert list(disk.iterdir()) == []
