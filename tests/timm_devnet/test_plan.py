"""Who reads whom: the paper's networks on the levels of a VGG, and this project's own growths."""

import pytest

from timm_devnet.growth import parse
from timm_devnet.plan import MAX_LAYERS, Layer, Level, Phase, Plan, plan

VGG = [
    Level('fc7', 40, Phase.HEAD, ('pre_logits.fc2',)),
    Level('fc6', 30, Phase.HEAD, ('pre_logits.fc1',)),
    Level('pool5', 20, Phase.TRUNK, ()),
    Level('conv4', 10, Phase.TRUNK, ()),
]


def wired(growth: str, reconciled: bool = True, pool_mult: int = 1) -> Plan:
    return plan(VGG, 'pool5', parse(growth), reconciled, pool_mult)


def blocks_read(planned: Plan, name: str) -> tuple[str, ...]:
    """What an added layer reads, before it was reconciled."""
    layers = {layer.name: layer for layer in planned.layers}
    return tuple(
        layers[read].reads[0] if read in layers and layers[read].kind == 'scaled' else read
        for read in layers[name].reads
    )


def units(planned: Plan) -> dict[str, tuple[str, ...]]:
    return {layer.name: blocks_read(planned, layer.name) for layer in planned.layers if layer.kind == 'units'}


@pytest.mark.parametrize(
    ('growth', 'reads'),
    [
        ('da8', {'fca': ('fc7',)}),
        ('wa8', {'fc7_1': ('fc6',)}),
        ('dwa8', {'fc7_1': ('fc6',), 'fca': ('fc7', 'fc7_1')}),
        ('wwa8', {'fc6_1': ('pool5',), 'fc7_1': ('fc6', 'fc6_1')}),
        ('mwa8', {'fc7_1': ('pool5',), 'fc7_2': ('conv4',)}),
        ('xwa8', {'fc7_1': ('pool5',), 'fc7_2': ('conv4',)}),
        ('norm', {}),
        ('skip', {}),
        ('wa8_wa4', {'fc7_1': ('fc6',), 'fc7_2': ('fc6',)}),
        ('da8_da4', {'fca': ('fc7',), 'fcb': ('fca',)}),
        ('da8_wa4', {'fca': ('fc7',), 'fca_1': ('fc7',)}),
        ('da8_mwa4', {'fca': ('fc7',), 'fca_1': ('fc6',), 'fca_2': ('pool5',)}),
        ('wwa8_wa4', {'fc6_1': ('pool5',), 'fc7_1': ('fc6', 'fc6_1'), 'fc7_2': ('fc6', 'fc6_1')}),
    ],
)
def test_new_units_read(growth: str, reads: dict[str, tuple[str, ...]]) -> None:
    assert units(wired(growth)) == reads


@pytest.mark.parametrize('growth', ['r1u8k3', 'r2r1u8k3', 'da4_r2u8k3'])
def test_a_kernel_on_what_is_no_map_is_refused(growth: str) -> None:
    with pytest.raises(ValueError, match='A kernel of 3 needs maps of the trunk, and fc6 in this network is none'):
        wired(growth)


def test_units_with_a_kernel_are_not_like_the_old_layer_beside_them() -> None:
    assert [layer.like_old for layer in wired('r2u8k3at1+r2u8at1').layers if layer.kind == 'units'] == [False, True]


@pytest.mark.parametrize(
    ('growth', 'blocks'),
    [
        ('da8', ('fca',)),
        ('wa8', ('fc7', 'fc7_1')),
        ('dwa8', ('fca',)),
        ('wwa8', ('fc7', 'fc7_1')),
        ('mwa8', ('fc7', 'fc7_1', 'fc7_2')),
        ('norm', ('fc7',)),
        ('skip', ('fc7', 'fc7_1', 'fc7_2')),
        ('wa8_wa4', ('fc7', 'fc7_1', 'fc7_2')),
    ],
)
def test_the_classifier_reads(growth: str, blocks: tuple[str, ...]) -> None:
    assert wired(growth).blocks == blocks


@pytest.mark.parametrize('growth', ['da8', 'wa8', 'dwa8', 'wwa8', 'mwa8', 'norm', 'skip', 'wa8_wa4', 'da8_mwa4'])
def test_the_classifier_reads_every_block_reconciled_by_itself(growth: str) -> None:
    planned = wired(growth)
    scaled = {layer.name: layer.reads for layer in planned.layers if layer.kind == 'scaled'}
    assert [scaled[name] for name, _ in planned.top] == [(block,) for block in planned.blocks]


@pytest.mark.parametrize(
    ('growth', 'name', 'reads'),
    [
        ('wa8', 'fc7_1', ('fc6',)),  # one block is read as the old layer reads it
        ('wwa8', 'fc7_1', ('fc6_scaled', 'fc6_1_scaled')),  # several are reconciled first
        ('dwa8', 'fca', ('fc7_scaled', 'fc7_1_scaled')),
        ('da8', 'fca', ('fc7_scaled',)),
    ],
)
def test_new_units_read_reconciled_blocks_where_they_read_several_or_the_top(
    growth: str, name: str, reads: tuple[str, ...]
) -> None:
    assert {layer.name: layer.reads for layer in wired(growth).layers}[name] == reads


@pytest.mark.parametrize('growth', ['da8', 'wa8', 'dwa8', 'wwa8', 'mwa8', 'norm', 'skip'])
def test_without_reconciliation_no_block_is_scaled(growth: str) -> None:
    assert {layer.kind for layer in wired(growth, reconciled=False).layers} <= {'units', 'pass'}


def test_norm_adds_nothing_but_the_scale_of_the_old_top() -> None:
    assert [(layer.name, layer.kind) for layer in wired('norm').layers] == [('fc7_scaled', 'scaled')]


def test_skip_passes_lower_levels_on_with_their_own_width() -> None:
    passes = [layer for layer in wired('skip').layers if layer.kind == 'pass']
    assert [(layer.reads, layer.width) for layer in passes] == [(('pool5',), 20), (('conv4',), 10)]


@pytest.mark.parametrize(
    ('growth', 'widths'),
    [
        ('wa8', {'fc7_1': 8}),
        ('dwa8', {'fc7_1': 8, 'fca': 8}),
        ('wwa8', {'fc6_1': 4, 'fc7_1': 8}),
        ('mwa8', {'fc7_1': 4, 'fc7_2': 4}),
    ],
)
def test_units_are_as_many_as_the_name_says(growth: str, widths: dict[str, int]) -> None:
    assert {layer.name: layer.width for layer in wired(growth).layers if layer.kind == 'units'} == widths


@pytest.mark.parametrize('pool_mult', [1, 2])
def test_what_reads_pooled_maps_is_as_wide_as_the_pooling_makes_them(pool_mult: int) -> None:
    widths = {layer.name: layer.in_width for layer in wired('dwa8', pool_mult=pool_mult).layers}
    assert widths['fca'] == (40 + 8) * pool_mult


def test_maps_of_the_trunk_that_the_head_reads_are_handed_on_as_features() -> None:
    assert wired('r3u4at1+r1u8').features == (('pool5', 20), ('fc6_1', 4))


@pytest.mark.parametrize(('growth', 'taps'), [('wa8', ()), ('wwa8', ()), ('mwa8', ('conv4',)), ('skip', ('conv4',))])
def test_only_levels_below_the_last_map_are_tapped(growth: str, taps: tuple[str, ...]) -> None:
    assert wired(growth).taps == taps


LONGER = [
    ('wa8', 'wa8_wa4'),
    ('wa8', 'wa8_da4'),
    ('mwa8', 'mwa8_wwa4_norm'),
    ('da8', 'da8_wa4_da2'),
    ('norm', 'norm_wa4'),
]


@pytest.mark.parametrize(('short', 'long'), LONGER)
def test_a_longer_growth_begins_with_the_layers_of_the_shorter(short: str, long: str) -> None:
    begun = wired(short).layers
    assert wired(long).layers[: len(begun)] == begun


@pytest.mark.parametrize(('short', 'long'), LONGER)
def test_layers_of_a_later_step_are_marked_so(short: str, long: str) -> None:
    later = wired(long).layers[len(wired(short).layers) :]
    assert all(layer.step >= 1 for layer in later)


@pytest.mark.parametrize('growth', ['r4u8', 'r1r4u8', 'r5u8at4', 'wa8_r9u8', 'da8_r5u8'])
def test_reading_below_the_network_is_refused(growth: str) -> None:
    with pytest.raises(ValueError, match='reads level .* fc7, fc6, pool5, conv4'):
        wired(growth)


def test_blocks_that_multiply_from_step_to_step_are_refused() -> None:
    with pytest.raises(ValueError, match=f'adds at most {MAX_LAYERS} layers'):
        wired('_'.join(['r1r1r1r1r1r1r1r1u0_da1'] * 8))  # 8^8 of them


def test_as_many_steps_as_a_name_can_hold_are_planned() -> None:
    assert len(units(wired('wa1_' * 49 + 'wa1'))) == 50


def test_what_stands_on_top_moves_the_levels_down() -> None:
    assert units(wired('da8_r4u4')) == {'fca': ('fc7',), 'fca_1': ('conv4',)}


@pytest.mark.parametrize('growth', ['wa8', 'dwa8', 'wwa8', 'mwa8_wa4', 'skip_da4', 'wwa8_wwa8_da4', 'r3u0at1+r1u4'])
def test_every_layer_reads_what_was_computed_before_it(growth: str) -> None:
    planned, known = wired(growth), {level.name for level in VGG}
    for layer in planned.layers:
        assert set(layer.reads) <= known
        known.add(layer.name)


@pytest.mark.parametrize('growth', ['wa8', 'dwa8', 'wwa8', 'mwa8_wa4', 'skip_da4', 'wwa8_wwa8_da4', 'r3u0at1+r1u4'])
def test_no_layer_is_computed_before_the_phase_of_what_it_reads(growth: str) -> None:
    phases = {level.name: level.phase for level in VGG}
    for layer in wired(growth).layers:
        assert all(phases[read] <= layer.phase for read in layer.reads)
        phases[layer.name] = layer.phase


def test_a_plan_is_plain_data() -> None:
    assert wired('wwa8') == wired('wwa8') and isinstance(wired('wwa8').layers[0], Layer)
