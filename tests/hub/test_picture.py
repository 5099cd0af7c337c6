from pathlib import Path
from typing import Any

import pytest
import timm
import timm.models
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from PIL import Image

import timm_devnet
from hub.picture import describe_growth, draw_growth, join_words, write_picture

KINDS = ('da16', 'wa16', 'dwa16', 'wwa16', 'mwa16', 'skip', 'norm', 'wa16_wa8', 'dwa16_mwa16_wa8')


def grown(growth: str, base: str = 'tf_efficientnet_lite0', **options: Any) -> Any:
    return timm.create_model(f'{base}_wa', growth=growth, device='meta', **options)


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for axes in figure.axes for text in [*axes.texts, axes.title] if text.get_text()]


@pytest.mark.parametrize('growth', KINDS)
@pytest.mark.parametrize('base', ['tf_efficientnet_lite0', 'alexnet', 'vgg11'])
def test_every_new_layer_has_a_box_with_its_name(base: str, growth: str) -> None:
    network = grown(growth, base)
    layers = [layer for layer in network.plan.layers if layer.kind != 'scaled']
    figure = draw_growth(network)
    shown = texts(figure)
    for layer in layers:
        assert (layer.name if layer.kind == 'units' else layer.reads[0]) in shown
    assert [text for text in shown if text.endswith(' units') and text[0].isdigit()] == [
        f'{layer.width} units' for layer in layers if layer.kind == 'units'
    ]


@pytest.mark.parametrize('growth', [*KINDS, 'mwa16_mwa16_mwa16_mwa16'])
def test_no_text_overlaps_another_or_leaves_the_picture(growth: str) -> None:
    figure = draw_growth(grown(growth))
    renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    boxes = [text.get_window_extent(renderer) for axes in figure.axes for text in [*axes.texts, axes.title]]
    boxes = [box for box in boxes if box.width]
    width, height = figure.bbox.width, figure.bbox.height
    assert all(box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width and box.y1 <= height for box in boxes)
    pairs = [(one, other) for i, one in enumerate(boxes) for other in boxes[:i] if one.overlaps(other)]
    assert not pairs


def test_labels_fit_into_their_boxes() -> None:
    figure = draw_growth(grown('mwa16_mwa16_mwa16'))
    axes, renderer = figure.axes[0], figure.canvas.get_renderer()  # type: ignore[attr-defined]
    width = min(patch.get_window_extent(renderer).width for patch in axes.patches if isinstance(patch, FancyBboxPatch))
    assert all(
        text.get_window_extent(renderer).width <= width for text in axes.texts if text.get_text() != 'lower layers'
    )


def test_text_can_be_read_at_800_pixels() -> None:
    figure = draw_growth(grown('mwa16_mwa16_mwa16'))
    smallest = min(text.get_fontsize() for axes in figure.axes for text in axes.texts)
    assert figure.get_figwidth() == 8  # so that a point is 100/72 pixels
    assert smallest * 100 / 72 >= 9


def test_levels_that_nothing_new_reads_are_left_out() -> None:
    shown = texts(draw_growth(grown('mwa16')))
    assert {'conv_head', 'blocks.6', 'blocks.5', 'blocks.4', 'lower layers'} <= {*shown}
    assert 'blocks.3' not in shown


def test_steps_differ_in_colour() -> None:
    figure = draw_growth(grown('wa16_wa8'))
    boxes = [patch for patch in figure.axes[0].patches if isinstance(patch, FancyBboxPatch)]
    assert len({box.get_edgecolor() for box in boxes}) == 3  # old, first step, second step


def test_steps_of_an_earlier_task_are_called_so() -> None:
    assert 'added by wa16, for an earlier task' in texts(draw_growth(grown('wa16_wa8', settled=1)))


def test_without_reconciliation_nothing_speaks_of_it() -> None:
    network = grown('wa16', scale_init=0)
    assert not any('reconciled' in text or text == 'N' for text in texts(draw_growth(network)))
    assert 'L2 norm' not in describe_growth(network)


def test_the_file_is_a_light_picture_of_1600_pixels(tmp_path: Path) -> None:
    write_picture(grown('mwa16'), tmp_path / 'growth.png')
    with Image.open(tmp_path / 'growth.png') as picture:
        assert picture.width == 1600
        assert picture.convert('RGBA').getpixel((0, 0)) == (255, 255, 255, 255)
        assert 'Software' not in picture.info


def test_the_same_network_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ('one', 'other'):
        write_picture(grown('wa16'), tmp_path / name)
    assert (tmp_path / 'one').read_bytes() == (tmp_path / 'other').read_bytes()


def test_words_tell_the_same() -> None:
    assert describe_growth(grown('wwa16', 'vgg11')) == (
        'The layers of vgg11 read only each other, as before; fc6_1 has 8 new units beside fc6 that read pool5; fc7_1 '
        'has 16 new units beside fc7 that read fc6 and fc6_1; the classifier reads fc7 and fc7_1, each divided by its '
        'L2 norm and times a learnt scale.'
    )


def test_words_tell_the_steps() -> None:
    words = describe_growth(timm_devnet.grow(grown('wa16'), 'da8'))
    assert 'conv_head_1 (step 1) has 16 new units beside conv_head' in words
    assert 'fca (step 2) has 8 new units on top of the network that read conv_head and conv_head_1' in words


@pytest.mark.parametrize(('words', 'text'), [(['a'], 'a'), (['a', 'b'], 'a and b'), (['a', 'b', 'c'], 'a, b and c')])
def test_lists_are_joined(words: list[str], text: str) -> None:
    assert join_words(words) == text
