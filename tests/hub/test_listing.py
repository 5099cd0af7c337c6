"""The grown networks of an account, as a table."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hub.listing import Listed, format_table, list_models
from tests.hub_server import HubServer, rate_limited

CARD = b'---\ntags:\n- timm\n- timm_devnet\n---\n# Grown\n'
Stage = Callable[..., Path]


def publish(hub: HubServer, name: str, folder: Path, **files: bytes | None) -> str:
    """Put a staged folder on the Hub, some files changed or left out; return the commit."""
    changes = {key.replace('_', '.'): content for key, content in files.items()}
    contents = {**{path.name: path.read_bytes() for path in folder.iterdir()}, **changes}
    return hub.commit(name, {key: content for key, content in contents.items() if content is not None}).oid


def test_facts(hub: HubServer, staged: Path) -> None:
    commit = publish(hub, 'team/digits', staged)
    (listed,) = list_models('team')
    assert listed.date and listed.date.startswith(hub.repos['team/digits'].find('main').date[:19])
    assert dataclasses.replace(listed, date=None) == Listed(
        repo_id='team/digits',
        growth='mwa512',
        base='tf_efficientnet_lite0.in1k',
        dataset='digits',
        regime='all',
        top1=98.2,
        size_bytes=(staged / 'model.safetensors').stat().st_size,
        commit=commit,
    )


def test_facts_become_json(hub: HubServer, staged: Path) -> None:
    publish(hub, 'team/digits', staged)
    assert json.loads(json.dumps([dataclasses.asdict(network) for network in list_models('team')]))[0]['top1'] == 98.2


def test_table(hub: HubServer, stage: Stage) -> None:
    publish(hub, 'team/wrecked', stage('c'), config_json=b'{')
    publish(hub, 'team/labels', stage('b', metrics={'map': 71.24}, base=None, delta=True, dataset=None))
    publish(hub, 'team/a', stage('a'))
    dates = [hub.repos[name].find('main').date[:10] for name in ('team/a', 'team/labels')]
    assert format_table(list_models('team')).splitlines() == [
        'repository    growth  base                        data set  top-1     size            last commit',
        f'team/a        mwa512  tf_efficientnet_lite0.in1k  digits    98.2      400.1 kB        {dates[0]}',
        f'team/labels   mwa512  random start                -         71.2 mAP  400.1 kB delta  {dates[1]}',
        'team/wrecked  broken: config.json is no JSON: Expecting property name enclosed in double quotes: '
        'line 1 column 2 (char 1)',
    ]


def test_none_are_listed(hub: HubServer) -> None:
    assert list_models('team') == []
    assert format_table([]) == 'repository  growth  base  data set  top-1  size  last commit'


def test_others_are_left_out(hub: HubServer, staged: Path) -> None:
    hub.commit('team/plain', {'config.json': b'{}', 'model.safetensors': b'x'})
    hub.commit('team/tagged', {'config.json': b'{}', 'model.safetensors': b'x', 'README.md': CARD})
    publish(hub, 'teamwork/net', staged)
    publish(hub, 'team/ours', staged)
    assert [network.repo_id for network in list_models('team')] == ['team/ours']
    assert not hub.requests('GET', 'team/plain'), 'not even asked about'


def test_all_pages(hub: HubServer, staged: Path) -> None:
    hub.page_size = 2
    names = [f'team/net{number}' for number in range(5)]
    for name in names:
        publish(hub, name, staged)
    assert [network.repo_id for network in list_models('team')] == names[::-1], 'newest first'


def test_limit(hub: HubServer, staged: Path) -> None:
    for number in range(5):
        publish(hub, f'team/net{number}', staged)
    assert [network.repo_id for network in list_models('team', limit=3)] == ['team/net4', 'team/net3', 'team/net2']
    assert len({entry.path for entry in hub.requests('GET', '/api/models/team/')}) == 3


@pytest.mark.parametrize(
    ('org', 'limit', 'message'),
    [
        ('team/net', None, "'team/net' is no account on the Hub: give the name alone"),
        ('', None, "'' is no account"),
        ('a b', None, 'is no account'),
        ('team', 0, '--limit 0: give at least 1'),
    ],
)
def test_wrong_arguments(hub: HubServer, org: str, limit: int | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        list_models(org, limit=limit)


def section(**changes: Any) -> bytes:
    return json.dumps({'timm_devnet': {'format': 1, 'growth': 'wa16', **changes}}).encode()


@pytest.mark.parametrize(
    ('config', 'problem'),
    [
        (None, 'there is no config.json'),
        (b'', 'config.json is no JSON'),
        (b'"\xff"', 'config.json is text in UTF-8; byte 1 is not'),
        (b'[' * 200_000, 'config.json is nested at most 16 deep'),
        (b'{"timm_devnet": {"format": ' + b'9' * 5000 + b'}}', 'config.json has a number beyond 64 bits'),
        (b'[1]', 'holds no object'),
        (b' ' * 10_000_001, 'config.json has 10.0 MB'),
        (b'{"timm_devnet": "x"}', 'timm_devnet in config.json is no object'),
        (b'{"timm_devnet": {}}', 'format in config.json is no version'),
        (section(format=True), 'format in config.json is no version'),
        (section(format=2), 'written by a later timm_devnet (format 2): update yours'),
        (section(growth=None), 'growth in config.json is missing'),
        (section(growth=['wa16']), 'growth in config.json is no text'),
        (section(base='vgg16'), 'base in config.json is no object'),
        (section(base={'model': 16}), 'model in config.json is no text'),
        (section(delta='no'), 'delta in config.json is neither true nor false'),
        (section(metrics=[98]), 'metrics in config.json is no object'),
        (section(metrics={'top1': '98'}), 'top1 in config.json is no percentage'),
        (section(metrics={'top1': True}), 'top1 in config.json is no percentage'),
        (section(metrics={'top1': float('nan')}), 'config.json has NaN'),
        (section(metrics={'map': 10**400}), 'config.json has a number beyond 64 bits'),
        (section(metrics={'top1': -1}), 'top1 in config.json is no percentage'),
    ],
)
def test_broken_ones_are_listed_with_the_reason(
    hub: HubServer, staged: Path, config: bytes | None, problem: str
) -> None:
    publish(hub, 'team/net', staged, config_json=config)
    (listed,) = list_models('team')
    assert problem in (listed.problem or '')
    assert listed.growth is None


def test_large_config_is_not_fetched(hub: HubServer, staged: Path) -> None:
    publish(hub, 'team/net', staged, config_json=b' ' * 10_000_001)
    list_models('team')
    assert not hub.requests('GET', '/resolve/')


def test_missing_weights(hub: HubServer, staged: Path) -> None:
    publish(hub, 'team/net', staged, model_safetensors=None)
    assert list_models('team')[0].problem == 'there is no model.safetensors'


def test_refused_one_leaves_the_others(hub: HubServer, stage: Stage) -> None:
    publish(hub, 'team/b', stage('b'))
    publish(hub, 'team/a', stage('a'))
    hub.fail('GET', '/api/models/team/a', status=403)
    broken, whole = list_models('team')
    assert 'you may not do this with team/a' in (broken.problem or '')
    assert whole.growth == 'mwa512'


def test_what_a_terminal_would_obey_is_stripped(hub: HubServer, staged: Path) -> None:
    wild = {'growth': 'wa\x1b[2J16\n', 'dataset': 'a\u202eb\x9b31m', 'base': {'model': '\x07vgg16' + 'x' * 500}}
    publish(hub, 'team/net', staged, config_json=section(**wild))
    (listed,) = list_models('team')
    assert (listed.growth, listed.dataset, listed.base) == ('wa[2J16', 'ab31m', 'vgg16' + 'x' * 52 + '...')
    assert all(line.isprintable() for line in format_table([listed]).splitlines())


def test_rate_limit_is_waited_for(hub: HubServer, staged: Path, waits: list[float]) -> None:
    publish(hub, 'team/net', staged)
    hub.fail('GET', '/api/models/team/net', status=429, headers=rate_limited(7))
    assert list_models('team')[0].growth == 'mwa512'
    assert waits == [8]


def test_offline(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_OFFLINE', True)
    with pytest.raises(ValueError, match='team cannot be reached: HF_HUB_OFFLINE is set'):
        list_models('team')
