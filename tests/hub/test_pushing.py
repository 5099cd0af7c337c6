"""A staged folder goes to the Hub as one commit, or not at all."""

import hashlib
import logging
import re
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hub.pushing import plan_push, push_folder
from tests.hub_server import TOKEN, HubServer, rate_limited

NAME = 'me/net'
Stage = Callable[..., Path]


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def files_on(hub: HubServer, ref: str = 'main') -> dict[str, bytes]:
    files = dict(hub.repos[NAME].find(ref).files)
    del files['.gitattributes']
    return files


def wait_for(is_true: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not is_true():
        assert time.monotonic() < deadline, 'it never came to this'
        time.sleep(0.005)


def upload_of(folder: Path, name: str = 'model.safetensors') -> str:
    return f'/objects/{hashlib.sha256((folder / name).read_bytes()).hexdigest()}'


def test_new_repository(hub: HubServer, staged: Path) -> None:
    pushed = push_folder(staged, NAME)
    assert files_on(hub) == files_of(staged)
    assert [commit.oid for commit in hub.repos[NAME].history('main')][:-1] == [pushed.commit]
    assert (pushed.url, pushed.repo_id) == (f'{hub.url}/{NAME}', NAME)


@pytest.mark.parametrize('private', [False, True])
def test_private(hub: HubServer, staged: Path, private: bool) -> None:
    push_folder(staged, NAME, private=private)
    assert hub.repos[NAME].is_private is private


def test_private_is_not_shown_in_a_public_repository(hub: HubServer, staged: Path) -> None:
    hub.create(NAME)
    with pytest.raises(ValueError, match='--private: me/net exists and is public'):
        push_folder(staged, NAME, private=True)
    assert files_on(hub) == {}


def test_message(hub: HubServer, staged: Path) -> None:
    push_folder(staged, NAME, message='Grown by 512 units')
    assert hub.repos[NAME].find('main').title == 'Grown by 512 units'


def test_other_files_are_deleted_by_the_same_commit(hub: HubServer, staged: Path) -> None:
    old = hub.commit(NAME, {'pytorch_model.bin': b'\0' * 1234, 'sub/notes.txt': b'x', 'README.md': b'old'})
    said: list[str] = []
    push_folder(staged, NAME, replaces=old.oid, say=said.append)
    assert files_on(hub) == files_of(staged)
    assert len(list(hub.repos[NAME].history('main'))) == 3
    assert '  deleted   pytorch_model.bin (1.2 kB)' in said and '  deleted   sub/notes.txt (1 B)' in said


def test_overwriting_needs_the_last_commit(hub: HubServer, staged: Path) -> None:
    old = hub.commit(NAME, {'model.safetensors': b'dear'}, title='Weeks \x1b[2Jof work')
    words = f'commit {old.oid[:12]} "Weeks \\[2Jof work" of {old.date[:10]} .*--replaces {old.oid[:12]}'
    with pytest.raises(ValueError, match=words):
        push_folder(staged, NAME)
    assert files_on(hub) == {'model.safetensors': b'dear'}


def test_files_of_the_first_commit_count_too(hub: HubServer, staged: Path) -> None:
    hub.create(NAME).find('main').files['README.md'] = b'made on the website'
    with pytest.raises(ValueError, match='holds something already'):
        push_folder(staged, NAME)


@pytest.mark.parametrize('digits', [7, 12, 40])
def test_named_commit_is_replaced(hub: HubServer, staged: Path, digits: int) -> None:
    old = hub.commit(NAME, {'model.safetensors': b'old'})
    push_folder(staged, NAME, replaces=old.oid[:digits].upper())
    assert files_on(hub) == files_of(staged)


def test_another_commit_is_not_replaced(hub: HubServer, staged: Path) -> None:
    older, last = hub.commit(NAME, {'a.txt': b'a'}), hub.commit(NAME, {'b.txt': b'b'})
    with pytest.raises(ValueError, match=f'another last commit by now, commit {last.oid[:12]}'):
        push_folder(staged, NAME, replaces=older.oid)
    assert set(files_on(hub)) == {'a.txt', 'b.txt'}


def test_nothing_to_replace(hub: HubServer, staged: Path) -> None:
    with pytest.raises(ValueError, match='does not exist, so nothing of it is replaced'):
        push_folder(staged, NAME, replaces='1234567')
    assert hub.repos == {}


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ({'replaces': '123456'}, "--replaces '123456' is no commit: give 7 to 40"),
        ({'replaces': 'latest!'}, 'is no commit'),
        ({'repo_id': 'net'}, "'net' is no repository: give ORG/NAME"),
        ({'repo_id': 'me/a/b'}, 'is no repository'),
        ({'repo_id': 'me/../x'}, 'is no repository'),
        ({'revision': 'a' * 40}, 'is a commit, which cannot be written to'),
        ({'revision': 'v2', 'create_pr': True}, 'leave out --revision v2'),
    ],
)
def test_wrong_arguments(hub: HubServer, staged: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        push_folder(staged, **{'repo_id': NAME, **arguments})
    assert hub.log == []


def add_pickle(folder: Path) -> None:
    (folder / 'pytorch_model.bin').write_bytes(b'x')


def add_link(folder: Path) -> None:
    (folder / 'curves.png').symlink_to(folder / 'growth.png')


def add_folder(folder: Path) -> None:
    (folder / 'curves.png').mkdir()


def bloat_card(folder: Path) -> None:
    (folder / 'README.md').write_bytes(b'x' * 10_000_001)


def drop_weights(folder: Path) -> None:
    (folder / 'model.safetensors').unlink()


@pytest.mark.parametrize(
    ('spoil', 'message'),
    [
        (add_pickle, 'pytorch_model.bin does not belong'),
        (add_link, 'curves.png does not belong'),
        (add_folder, 'curves.png does not belong'),
        (bloat_card, 'README.md has over 10.0 MB'),
        (drop_weights, 'it has no model.safetensors'),
    ],
)
def test_only_a_staged_folder(hub: HubServer, staged: Path, spoil: Callable[[Path], None], message: str) -> None:
    spoil(staged)
    with pytest.raises(ValueError, match=message):
        push_folder(staged, NAME)
    assert hub.log == []


def test_ignored_names_hold_a_push_up(hub: HubServer, staged: Path) -> None:
    old = hub.commit(NAME, {'.gitignore': b'*.safetensors\n'})
    with pytest.raises(ValueError, match='has a .gitignore'):
        push_folder(staged, NAME, replaces=old.oid)


def test_same_files_again_change_nothing(hub: HubServer, staged: Path) -> None:
    first = push_folder(staged, NAME)
    said: list[str] = []
    assert push_folder(staged, NAME, say=said.append) == first
    assert 'holds exactly these files already' in said[0]
    assert len(hub.requests('POST', '/commit/')) == 1


def test_what_did_not_change_is_not_sent(hub: HubServer, staged: Path) -> None:
    first = push_folder(staged, NAME)
    (staged / 'metrics.csv').write_text('epoch,val_top1\n1,99\n')
    push_folder(staged, NAME, replaces=first.commit)
    assert len(hub.requests('PUT', '/objects/')) == 2  # the weights and the picture, once
    assert files_on(hub) == files_of(staged)


@pytest.mark.parametrize('name', ['model.safetensors', 'metrics.csv'])
def test_other_contents_of_the_same_size_are_sent(hub: HubServer, staged: Path, name: str) -> None:
    first = push_folder(staged, NAME)
    contents = (staged / name).read_bytes()
    (staged / name).write_bytes(contents[:-1] + bytes([contents[-1] ^ 1]))
    push_folder(staged, NAME, replaces=first.commit)
    assert files_on(hub) == files_of(staged)


def test_new_branch_begins_empty(hub: HubServer, stage: Stage) -> None:
    first, second = stage('first'), stage('second', seed=1)
    push_folder(first, NAME)
    pushed = push_folder(second, NAME, revision='bf16')
    assert files_on(hub) == files_of(first)
    assert files_on(hub, 'bf16') == files_of(second)
    assert pushed.url == f'{hub.url}/{NAME}/tree/bf16'


def test_branch_that_was_left_empty_is_filled(hub: HubServer, stage: Stage) -> None:
    push_folder(stage('first'), NAME)
    second = stage('second', seed=1)
    hub.fail('POST', '/commit/bf16', status=500)
    with pytest.raises(ValueError, match='trouble of its own'):
        push_folder(second, NAME, revision='bf16')
    push_folder(second, NAME, revision='bf16')
    assert files_on(hub, 'bf16') == files_of(second)


def test_proposal_leaves_the_branch(hub: HubServer, staged: Path) -> None:
    hub.commit(NAME, {'model.safetensors': b'old'})
    pushed = push_folder(staged, NAME, create_pr=True)
    assert pushed.url == f'{hub.url}/{NAME}/discussions/1'
    assert files_on(hub) == {'model.safetensors': b'old'}
    assert files_on(hub, 'refs/pr/1') == files_of(staged)


def test_stranger_proposes(hub: HubServer, staged: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.commit('other/net', {'model.safetensors': b'old'})
    with pytest.raises(ValueError, match=r'you may not do this with other/net .*hf auth login'):
        push_folder(staged, 'other/net', replaces=hub.repos['other/net'].find('main').oid)
    assert push_folder(staged, 'other/net', create_pr=True).url.endswith('/discussions/1')


@pytest.mark.parametrize('create_pr', [False, True])
def test_lost_answer_to_a_commit(hub: HubServer, staged: Path, create_pr: bool) -> None:
    hub.create(NAME)
    hub.fail('POST', '/commit/', is_lost=True)
    with pytest.raises(ValueError, match='the connection to the Hub broke .*: start again'):
        push_folder(staged, NAME, create_pr=create_pr)
    pushed = push_folder(staged, NAME, create_pr=create_pr)
    ref = 'refs/pr/1' if create_pr else 'main'
    assert [commit.oid for commit in hub.repos[NAME].history(ref)][:-1] == [pushed.commit]
    assert len(hub.requests('POST', '/commit/')) == 1
    assert 'refs/pr/2' not in hub.repos[NAME].refs


def test_failed_commit_sends_nothing_again(hub: HubServer, staged: Path) -> None:
    hub.fail('POST', '/commit/', status=503)
    with pytest.raises(ValueError, match='trouble of its own'):
        push_folder(staged, NAME)
    assert files_on(hub) == {}
    sent = len(hub.requests('PUT', '/objects/'))
    push_folder(staged, NAME)
    assert files_on(hub) == files_of(staged)
    assert len(hub.requests('PUT', '/objects/')) == sent == 2


def test_killed_while_uploading(hub: HubServer, staged: Path, child_environment: dict[str, str]) -> None:
    old = hub.commit(NAME, {'model.safetensors': b'old'})
    weights, picture = upload_of(staged), upload_of(staged, 'growth.png')
    hub.fail('PUT', weights, delay_s=0.2)
    code = f'from hub.pushing import push_folder; push_folder({str(staged)!r}, {NAME!r}, replaces={old.oid!r})'
    with subprocess.Popen([sys.executable, '-c', code], env=child_environment) as child:
        wait_for(lambda: any(entry.received for entry in hub.requests('PUT', weights)))
        wait_for(lambda: any(entry.status for entry in hub.requests('PUT', picture)))
        child.kill()
    assert child.returncode == -signal.SIGKILL
    assert hub.repos[NAME].find('main') == old
    push_folder(staged, NAME, replaces=old.oid)
    assert files_on(hub) == files_of(staged)
    assert len(hub.requests('PUT', picture)) == 1, 'the picture had arrived'
    assert len(hub.requests('PUT', weights)) == 2


def test_cut_upload_is_sent_again(hub: HubServer, staged: Path, waits: list[float]) -> None:
    hub.fail('PUT', upload_of(staged), cut_upload=50_000)
    push_folder(staged, NAME)
    assert files_on(hub) == files_of(staged)


def test_upload_that_keeps_failing(hub: HubServer, staged: Path, waits: list[float]) -> None:
    hub.fail('PUT', upload_of(staged), times=99, status=500)
    with pytest.raises(ValueError, match='trouble of its own'):
        push_folder(staged, NAME)
    assert files_on(hub) == {}


def test_two_at_once(hub: HubServer, stage: Stage) -> None:
    old = hub.commit(NAME, {'model.safetensors': b'old'})
    folders = [stage('first', seed=1), stage('second', seed=2)]
    # Both have looked at the repository before either commits.
    hub.fail('POST', '/preupload/', times=2, barrier=threading.Barrier(2))
    outcomes: list[Any] = []

    def push(folder: Path) -> None:
        try:
            outcomes.append(push_folder(folder, NAME, replaces=old.oid))
        except ValueError as error:
            outcomes.append(str(error))

    threads = [threading.Thread(target=push, args=(folder,)) for folder in folders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (refused,) = [outcome for outcome in outcomes if isinstance(outcome, str)]
    assert refused.startswith(f'somebody else has written to {NAME} meanwhile')
    assert files_on(hub) in [files_of(folder) for folder in folders]
    assert len(list(hub.repos[NAME].history('main'))) == 3


@pytest.mark.parametrize(
    ('method', 'path'),
    [('GET', '/commits/'), ('POST', '/repos/create'), ('POST', '/preupload/'), ('POST', '/commit/'), ('PUT', '/obj')],
)
@pytest.mark.parametrize('headers', [rate_limited(7), {'Retry-After': '7'}], ids=['RateLimit', 'Retry-After'])
def test_rate_limit_is_waited_for(
    hub: HubServer, staged: Path, waits: list[float], method: str, path: str, headers: dict[str, str]
) -> None:
    hub.fail(method, path, status=429, headers=headers)
    push_folder(staged, NAME)
    assert waits == [8]  # a second more than told
    assert files_on(hub) == files_of(staged)


def test_rate_limit_of_hours_is_told(hub: HubServer, staged: Path, waits: list[float]) -> None:
    hub.fail('POST', '/commit/', status=429, headers=rate_limited(7200))
    with pytest.raises(ValueError, match='asks to wait 7200 s'):
        push_folder(staged, NAME)
    assert waits == []


@pytest.mark.parametrize(
    ('status', 'message'),
    [
        (401, 'does not know who you are .*hf auth login'),
        (403, 'you may not do this with me/net .*hf auth login'),
        (404, 'does not have what was asked of me/net'),
        (409, 'somebody else has written to me/net'),
        (413, r'refuses this for me/net \(413\)'),
        (500, r'trouble of its own \(500\)'),
        (503, r'trouble of its own \(503\)'),
    ],
)
def test_refusals_are_one_line(hub: HubServer, staged: Path, status: int, message: str) -> None:
    hub.fail('POST', '/commit/', status=status)
    with pytest.raises(ValueError, match=message) as refusal:
        push_folder(staged, NAME)
    assert '\n' not in str(refusal.value)
    assert files_on(hub) == {}


@pytest.mark.parametrize('token', ['', 'hf_thisTokenMayOnlyRead', 'hf_thisTokenIsNotKnown'])
def test_who_may_not_write(hub: HubServer, staged: Path, monkeypatch: pytest.MonkeyPatch, token: str) -> None:
    monkeypatch.setenv('HF_TOKEN', token)
    with pytest.raises(ValueError, match='hf auth login'):
        push_folder(staged, NAME)
    assert hub.repos == {}


def test_unreachable(hub: HubServer, staged: Path, waits: list[float]) -> None:
    hub.server.shutdown()
    hub.server.server_close()
    with pytest.raises(ValueError, match='the connection to the Hub broke'):
        push_folder(staged, NAME)


def test_offline(hub: HubServer, staged: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_OFFLINE', True)
    with pytest.raises(ValueError, match='HF_HUB_OFFLINE is set; unset it'):
        push_folder(staged, NAME)


FAULTS: list[dict[str, Any]] = [
    {'method': 'POST', 'path': '/commit/', 'status': 403, 'message': 'no\nno'},
    {'method': 'POST', 'path': '/commit/', 'is_lost': True},
    {'method': 'PUT', 'path': '/objects/', 'times': 9, 'status': 400},
    {'method': 'POST', 'path': '/nothing', 'status': 500},
]


@pytest.mark.parametrize('fault', FAULTS, ids=['refused', 'lost', 'not stored', 'well'])
def test_token_is_never_seen(
    hub: HubServer,
    staged: Path,
    fault: dict[str, Any],
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr('huggingface_hub.constants.HF_DEBUG', True)
    caplog.set_level(logging.DEBUG)
    monkeypatch.setattr(logging.getLogger('huggingface_hub'), 'propagate', True)
    logging.getLogger('huggingface_hub').setLevel(logging.DEBUG)
    hub.fail(**fault)
    told = ''
    try:
        push_folder(staged, NAME)
    except ValueError:
        told = traceback.format_exc()
    logging.getLogger('huggingface_hub').setLevel(logging.WARNING)
    output = capfd.readouterr()
    assert '/commit/main' in caplog.text or '/objects/' in caplog.text, 'something was logged'
    for text in (told, output.out, output.err, caplog.text, *map(repr, files_of(staged).values())):
        assert TOKEN not in text


@pytest.mark.parametrize('token', ['hf_secret\0', 'hf_secret\u00f1'])
def test_token_that_cannot_be_sent_is_not_quoted(hub: HubServer, staged: Path, token: str) -> None:
    with pytest.raises(ValueError, match='letters that no token has') as refusal:
        push_folder(staged, NAME, token=token)
    assert 'hf_secret' not in ''.join(traceback.format_exception(refusal.value))


def test_dry_run_tells_all_and_changes_nothing(hub: HubServer, staged: Path) -> None:
    old = hub.commit(NAME, {'model.safetensors': b'old', 'pytorch_model.bin': b'\0' * 2000})
    said: list[str] = []
    plan = plan_push(staged, NAME, say=said.append)
    assert (set(plan.replaced), plan.deleted) == ({'model.safetensors'}, {'pytorch_model.bin': 2000})
    text = '\n'.join(said)
    for words in ('new       README.md (', 'replaced  model.safetensors (400', 'deleted   pytorch_model.bin (2.0 kB)'):
        assert words in text
    assert '  # A grown network' in text, 'the card'
    assert re.search(f'would be refused: .*--replaces {old.oid[:12]}', text)
    assert not [entry for entry in hub.log if entry.method not in ('GET', 'HEAD')]


def test_dry_run_of_a_new_repository(hub: HubServer, staged: Path) -> None:
    said: list[str] = []
    plan_push(staged, NAME, say=said.append)
    assert said[0] == f'{NAME}: a new repository'
    assert hub.repos == {}
    assert not any('refused' in line for line in said)
