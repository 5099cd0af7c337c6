"""`devnet`, and the short names that stand for it."""

from typing import Any

import pytest
import timm
import torch
from timm.models import get_pretrained_cfg

import timm_devnet
from timm_devnet.models import devnet


def test_nothing_said_is_the_readmes_network() -> None:
    model = timm.create_model('devnet', device='meta')
    assert (
        model.state_dict().keys()
        == timm.create_model('tf_efficientnet_lite0_mwa512', device='meta').state_dict().keys()
    )


def test_at_least_forty_architectures_have_short_names() -> None:
    assert len(devnet.BASES) >= 40
    assert all(timm.is_model(f'{base}_wa{units}') for base, units in devnet.BASES.items())


@pytest.mark.parametrize(
    'base', ['resnet50', 'vit_base_patch16_224', 'mobilenetv3_small_100', 'mambaout_tiny', 'efficientnet_b0']
)
def test_short_names_without_a_number_mean_the_registered_one(base: str) -> None:
    model = timm.create_model(f'{base}_wa', device='meta')
    assert model.growth == f'wa{devnet.BASES[base]}'


@pytest.mark.parametrize('source', ['resnet18', 'resnet18.a1_in1k'])
def test_the_weights_are_the_sources(source: str) -> None:
    model = timm.create_model('devnet', source=source, growth='wa8', device='meta')
    cfg = get_pretrained_cfg(source)
    assert cfg is not None
    assert (model.pretrained_cfg['hf_hub_id'], model.pretrained_cfg['tag']) == (cfg.hf_hub_id, cfg.tag)
    assert model.pretrained_cfg['architecture'] == 'devnet'


def test_a_short_name_has_the_cfgs_of_its_base() -> None:
    cfg, base = get_pretrained_cfg('resnet50_wa512.a1_in1k'), get_pretrained_cfg('resnet50.a1_in1k')
    assert cfg is not None and base is not None and cfg.hf_hub_id == base.hf_hub_id


def test_a_network_that_was_grown_says_how_timm_builds_it() -> None:
    grown: Any = timm_devnet.grow(timm.create_model('test_resnet', num_classes=5), 'wa8')
    assert grown.pretrained_cfg['architecture'] == 'devnet'
    again = timm.create_model('devnet', **{**grown._model_args, 'num_classes': 5})
    again.load_state_dict(grown.state_dict())


def test_a_registered_growth_goes_by_its_name() -> None:
    grown: Any = timm_devnet.grow(timm.create_model('resnet18', device='meta'), 'wa')
    assert grown.pretrained_cfg['architecture'] == 'resnet18_wa128' and 'source' not in grown._model_args


@pytest.mark.parametrize(
    ('source', 'match'),
    [
        ('resnet_18', "one of timm's architectures.*Did you mean resnet18"),
        ('resnet18_wa128', 'has grown already'),
        ('devnet', 'has grown already'),
        ('resnet18.nowhere', 'no weights with the tag .nowhere.; it has these:'),
        ('crossvit_tiny_240', 'reads level 1; the network has these, from level 0 down: features'),
    ],
)
def test_sources_that_do_not_grow(source: str, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        timm.create_model('devnet', source=source, growth='wa8')


def test_arguments_go_to_the_source() -> None:
    model = timm.create_model('devnet', source='test_vit', growth='wa8', img_size=96, in_chans=1, num_classes=3)
    assert model(torch.rand(2, 1, 96, 96)).shape == (2, 3)


@pytest.mark.parametrize(('source', 'count'), [('test_resnet', 5), ('test_vit', 3)])
def test_feature_lists(source: str, count: int) -> None:
    model = timm.create_model('devnet', source=source, growth='mwa8', features_only=True)
    assert len(model(torch.rand(1, 3, 160, 160))) == count


def test_list_growable_tells_growths_and_reasons() -> None:
    told = timm_devnet.list_growable(['levit_128s', 'resnet18', 'crossvit_tiny_240'])
    assert told['resnet18'].growths == ('da256', 'wa128', 'dwa128', 'wwa128', 'mwa128', 'xwa128', 'norm', 'skip')
    assert told['levit_128s'].refused == {}
    assert 'reads level 2' in told['crossvit_tiny_240'].refused['skip']
    assert told['crossvit_tiny_240'].growths == ('da128', 'norm')


def test_grown_names_are_not_listed_as_growable() -> None:
    assert set(timm_devnet.list_growable('resnet18*')) == {'resnet18', 'resnet18d'}
