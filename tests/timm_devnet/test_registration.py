"""What timm knows after the import: names, listings, cfgs, tags."""

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from timm.models import get_pretrained_cfg

from timm_devnet import resolve_name
from timm_devnet.growth import parse
from timm_devnet.models import alexnet, efficientnet_grown, vgg_grown

Build = Callable[..., Any]
PAPER = [
    *(f'da{units}' for units in (1024, 2048, 4096, 6144)),
    *('wa1024', 'wa2048', 'dwa1024', 'dwa2048', 'wwa1024', 'wwa2048', 'wwa4096', 'da', 'wa', 'dwa', 'wwa'),
]
LITE = ['wa256', 'wa512', 'wa1024', 'da512', 'da1024', 'dwa512', 'wwa512', 'mwa256', 'mwa512', 'mwa1024']
VGGS = [f'vgg{depth}{norm}' for depth in (11, 13, 16, 19) for norm in ('', '_bn')]
LITES = [f'tf_efficientnet_lite{size}' for size in range(5)]
OURS = ['mwa', 'norm', 'skip']


@pytest.mark.parametrize('base', ['alexnet', *VGGS])
@pytest.mark.parametrize('growth', [*PAPER, *OURS])
def test_every_growth_of_the_paper_is_registered(base: str, growth: str) -> None:
    assert timm.is_model(f'{base}_{growth}')


@pytest.mark.parametrize('base', LITES)
@pytest.mark.parametrize('growth', [*LITE, *OURS, 'da', 'wa', 'dwa', 'wwa'])
def test_every_growth_of_lite_is_registered(base: str, growth: str) -> None:
    assert timm.is_model(f'{base}_{growth}')


@pytest.mark.parametrize(
    ('name', 'resolved'),
    [
        ('vgg16_wa300.tv_in1k', ('vgg16_wa.tv_in1k', {'growth': 'wa300'})),
        # What comes first is a registered name too, and not the base.
        ('alexnet_dwa1024_mwa512_wa64', ('alexnet_dwa', {'growth': 'dwa1024_mwa512_wa64'})),
    ],
)
def test_names_of_any_size_are_resolved(name: str, resolved: tuple[str, dict[str, str]]) -> None:
    assert resolve_name(name) == resolved


@pytest.mark.parametrize('tag', ['', '.in1k'])
def test_a_network_without_registered_growths_is_devnets(tag: str) -> None:
    expected = 'devnet', {'source': f'cspresnet50{tag}', 'growth': 'wa64'}
    assert resolve_name(f'cspresnet50_wa64{tag}') == expected


def test_alexnet_itself_is_registered() -> None:
    assert timm.list_models('alexnet') == ['alexnet']


@pytest.mark.parametrize(
    ('pattern', 'count'), [('*_wa2048', 18), ('vgg16_*mwa*', 8), ('tf_efficientnet_lite0_skip', 1)]
)
def test_timm_lists_the_names(pattern: str, count: int) -> None:
    assert len(timm.list_models(pattern)) == count


@pytest.mark.parametrize('module', ['alexnet', 'vgg_grown', 'efficientnet_grown'])
def test_timm_lists_the_families(module: str) -> None:
    assert module in timm.list_modules()


@pytest.mark.parametrize('module', ['vgg', 'efficientnet'])
def test_timms_own_families_are_not_touched(module: str) -> None:
    names = timm.list_models(module=module)
    assert names and not any('wa' in name.split('_')[-1] for name in names)


@pytest.mark.parametrize(
    ('name', 'tags'),
    [
        ('alexnet', ['tv_in1k']),
        ('alexnet_wa2048', ['tv_in1k']),
        ('vgg16_bn_da', ['tv_in1k']),
        ('tf_efficientnet_lite0_mwa', ['in1k']),
    ],
)
def test_tags_are_the_bases(name: str, tags: list[str]) -> None:
    assert timm.list_pretrained(f'{name}.*') == [f'{name}.{tag}' for tag in tags]


def test_grown_weights_are_found_where_the_bases_are(grown_names: list[str], base_of: Callable[[str], str]) -> None:
    for name in grown_names:
        own, base = get_pretrained_cfg(name), get_pretrained_cfg(base_of(name))
        assert own and base and (own.source, own.url, own.hf_hub_id) == (base.source, base.url, base.hf_hub_id), name


def test_the_hub_id_is_whole() -> None:
    cfg = get_pretrained_cfg('vgg16_wa2048')
    assert cfg and cfg.hf_hub_id == 'timm/vgg16.tv_in1k'


def test_a_name_says_what_has_grown(grown_names: list[str], base_of: Callable[[str], str], on_meta: Build) -> None:
    for name in grown_names:
        model = on_meta(name)
        growth = name.removeprefix(base_of(name) + '_')
        assert parse(model.growth) == parse(growth, type(model).default_units), name


def test_the_cfg_has_the_name_and_tag(grown_names: list[str], on_meta: Build) -> None:
    for name in grown_names:
        assert on_meta(name).pretrained_cfg['architecture'] == name, name


def test_the_paper_names_without_number_have_the_papers_best_number() -> None:
    numbers = {growth: parse(growth, vgg_grown.GrownVGG.default_units) for growth in ('da', 'wa', 'dwa', 'wwa')}
    best = {'da': 'da6144', 'wa': 'wa2048', 'dwa': 'dwa2048', 'wwa': 'wwa2048'}
    assert {growth: str(number) for growth, number in numbers.items()} == best


@pytest.mark.parametrize('module', [alexnet, vgg_grown, efficientnet_grown])
def test_the_listed_growths_are_all_different_networks(module: Any) -> None:
    names = [
        growth
        for growth in module.GROWTHS
        if any(character.isdigit() for character in growth) or growth in ('norm', 'skip')
    ]
    assert not [pair for pair in itertools.combinations(names, 2) if parse(pair[0]) == parse(pair[1])]


def test_growth_can_be_given_as_an_argument() -> None:
    assert timm.create_model('vgg16_wa', growth='r2u256+r3u256', device='meta').growth == 'mwa512'


@pytest.mark.parametrize(('growth', 'message'), [('foo', 'Unknown growth'), ('r40u4', 'reads level 40')])
def test_a_wrong_growth_is_refused(growth: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        timm.create_model('vgg16_wa', growth=growth, device='meta')


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        *(
            ({'scale_init': value}, 'scale_init is a positive')
            for value in (-1, float('nan'), float('inf'), 1e300, '5')
        ),
        *(({'new_init': value}, 'new_init is') for value in ('zero', 0, ['copy'])),
        *(({'in_chans': value}, 'in_chans is a whole number from 1') for value in (0, -3, True, '3', 1.5)),
        *(({'num_classes': value}, 'num_classes is a whole number from 0') for value in (-1, '5', [5])),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        timm.create_model('vgg16_wa', device='meta', **options)


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_everything_is_where_and_what_was_asked_for(shape_name: str, dtype: torch.dtype) -> None:
    model = timm.create_model(shape_name, device='meta', dtype=dtype)
    kinds = {(x.device.type, x.dtype) for x in [*model.parameters(), *model.buffers()] if x.is_floating_point()}
    assert kinds == {('meta', dtype)}
