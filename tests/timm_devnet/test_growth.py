"""The growth language: what a name means, that printing reads it back, and what a wrong one is told."""

import itertools
import re
import time
from typing import Any

import pytest

from timm_devnet.growth import CONTROLS, KINDS, MAX_KERNEL, MAX_UNITS, PAPER_UNITS, Block, Growth, parse

LITE_UNITS = {'da': 10, 'wa': 20, 'dwa': 30, 'wwa': 40, 'mwa': 50, 'xwa': 60}
SPELLED = (
    'r1u5',
    'r2u256+r3u256',
    'r2u512at1+r1u1024',
    'r1r2u7',
    'r3r1u8',
    'r4u3at2+r3u2at1',
    'r2u0',
    'r2u0at1+r1u4',
    'r2u8k3',
    'r2u8k5at1+r1u4',
)
STEPS = (*(f'{kind}{units}' for kind in KINDS for units in (2, 2048, MAX_UNITS)), *CONTROLS, *SPELLED)


@pytest.mark.parametrize(
    ('text', 'blocks'),
    [
        ('da5', (Block(-1, (0,), 5),)),
        ('wa5', (Block(0, (1,), 5),)),
        ('dwa5', (Block(0, (1,), 5), Block(-1, (0,), 5))),
        ('wwa6', (Block(1, (2,), 3), Block(0, (1,), 6))),
        ('mwa6', (Block(0, (2,), 3), Block(0, (3,), 3))),
        ('xwa6', (Block(0, (2,), 3, kernel=3), Block(0, (3,), 3, kernel=3))),
        ('norm', ()),
        ('skip', (Block(0, (2,), 0), Block(0, (3,), 0))),
        ('r12r3u4at2', (Block(2, (12, 3), 4),)),
        ('r3u4k5at2', (Block(2, (3,), 4, kernel=5),)),
    ],
)
def test_a_name_means_these_blocks(text: str, blocks: tuple[Block, ...]) -> None:
    assert parse(text).steps == (blocks,)


@pytest.mark.parametrize('text', STEPS)
def test_print_reads_back(text: str) -> None:
    assert parse(str(parse(text))) == parse(text)


def test_print_reads_back_whatever_is_repeated() -> None:
    for pair in itertools.product(STEPS, repeat=2):
        growth = parse('_'.join(pair))
        assert parse(str(growth)) == growth, pair


@pytest.mark.parametrize('text', [f'{kind}{units}' for kind in KINDS for units in (2, 512, 2048)] + list(CONTROLS))
def test_a_name_prints_as_itself(text: str) -> None:
    assert str(parse(text)) == text


@pytest.mark.parametrize(
    ('spelled', 'name'),
    [
        ('r1u8', 'wa8'),
        ('r2u4at1+r1u8', 'wwa8'),
        ('r2u4+r3u4', 'mwa8'),
        ('r2u4k1+r3u4', 'mwa8'),
        ('r2u4k3+r3u4k3', 'xwa8'),
        ('r2u0+r3u0', 'skip'),
    ],
)
def test_spelled_out_blocks_print_as_their_name(spelled: str, name: str) -> None:
    assert str(parse(spelled)) == name


@pytest.mark.parametrize('units', [PAPER_UNITS, LITE_UNITS])
@pytest.mark.parametrize('kind', KINDS)
def test_a_name_without_number_has_the_default_number(kind: str, units: dict[str, int]) -> None:
    assert parse(kind, units) == parse(f'{kind}{units[kind]}')


def test_repeated_growth_is_a_list_of_steps() -> None:
    assert parse('wa2048_wa1024') == Growth((*parse('wa2048').steps, *parse('wa1024').steps))


@pytest.mark.parametrize('text', ['wwa3', 'mwa2047', 'xwa5', 'wa4_wwa1'])
def test_odd_numbers_cannot_be_shared_between_two_blocks(text: str) -> None:
    with pytest.raises(ValueError, match='even number'):
        parse(text)


WRONG = [
    *('WA2048', 'wa-1', 'wa0', 'wa01', 'wa2.5', 'wa 2', 'wa2048 ', 'wa2048\n', 'wa٣', '_', 'wa_', 'wa2__wa4', 'norm4'),
    *(
        'skip1',
        'vgg',
        'r2',
        'u5',
        'r2u',
        'r2u5at0',
        'r2u5+',
        '+',
        'wa99999999',
        'r1000u4',
        'r2u4k',
        'r2u4k03',
        'r2u4at1k3',
    ),
]


@pytest.mark.parametrize('text', WRONG)
def test_an_unknown_name_is_told_the_grammar(text: str) -> None:
    with pytest.raises(ValueError, match='one or more of da, wa, dwa, wwa, mwa, xwa .* and norm, skip'):
        parse(text)


@pytest.mark.parametrize('text', ['', 'wa2_' * 60, None, 3, b'wa2', ['wa2']])
def test_what_is_no_name_at_all_is_told_the_grammar(text: Any) -> None:
    with pytest.raises(ValueError, match='1 to 200 characters.*one or more of da, wa'):
        parse(text)


@pytest.mark.parametrize('word', ['wa2_', 'r1', 'r1u5+', 'x', '_', '1'])
def test_a_text_of_ten_million_characters_is_refused_at_once_and_not_repeated(word: str) -> None:
    started = time.process_time()
    with pytest.raises(ValueError, match='1 to 200 characters') as caught:
        parse(word * (10_000_000 // len(word)))
    assert time.process_time() - started < 1
    assert len(str(caught.value)) < 1_000


@pytest.mark.parametrize(
    ('text', 'nearest'),
    [('WA2048', 'wa2048'), ('wwwa1024', 'wwa1024'), ('dwaa512', 'dwa512'), ('nrom', 'norm'), ('skip5', 'skip')],
)
def test_an_unknown_name_is_told_the_nearest_one(text: str, nearest: str) -> None:
    with pytest.raises(ValueError, match=f"Did you mean '{nearest}'"):
        parse(text)


@pytest.mark.parametrize('text', [*WRONG, 'mma5', 'wvwa7', 'xyz0', 'wwa-3', 'mwaa000001'])
def test_the_nearest_name_is_valid(text: str) -> None:
    with pytest.raises(ValueError, match='Unknown growth') as caught:
        parse(text)
    suggested = re.search(r"Did you mean '(.*)'\?", str(caught.value))
    assert suggested and parse(suggested[1])


@pytest.mark.parametrize('text', [f'da{MAX_UNITS + 1}', f'wwa{MAX_UNITS + 2}', 'r1u9999999'])
def test_no_block_is_larger_than_the_most(text: str) -> None:
    with pytest.raises(ValueError, match=f'0 to {MAX_UNITS} units'):
        parse(text)


@pytest.mark.parametrize('text', ['r0u4', 'r1u4at1', 'r3r1u4at2'])
def test_a_block_reads_below_itself(text: str) -> None:
    with pytest.raises(ValueError, match='levels below it'):
        parse(text)


@pytest.mark.parametrize(('level', 'reads', 'units'), [(-1, (1,), 4), (-1, (0, 1), 4), (-1, (0,), 0), (-2, (0,), 4)])
def test_a_block_on_top_has_units_and_reads_the_top(level: int, reads: tuple[int, ...], units: int) -> None:
    with pytest.raises(ValueError, match=r'on top \(level -1\) has units and reads level 0'):
        Block(level, reads, units)


@pytest.mark.parametrize('kernel', [0, 2, 17, -1])
def test_a_kernel_is_odd_and_not_too_large(kernel: int) -> None:
    with pytest.raises(ValueError, match=f'odd number from 1 to {MAX_KERNEL}, not {kernel}'):
        Block(0, (2,), 4, kernel)


@pytest.mark.parametrize(('level', 'reads', 'units'), [(-1, (0,), 4), (0, (2,), 0)])
def test_only_units_that_read_maps_have_a_kernel(level: int, reads: tuple[int, ...], units: int) -> None:
    with pytest.raises(ValueError, match='none on top and no block of 0'):
        Block(level, reads, units, kernel=3)


def test_a_block_reads_something() -> None:
    with pytest.raises(ValueError, match='reads one or more levels'):
        Block(0, (), 4)


@pytest.mark.parametrize('step', [(Block(0, (2,), 4), Block(-1, (0,), 8)), (Block(-1, (0,), 3), Block(0, (1,), 5))])
def test_a_spelled_out_step_may_put_units_on_top(step: tuple[Block, ...]) -> None:
    assert parse(str(Growth((step,)))) == Growth((step,))
