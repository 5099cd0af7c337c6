"""What fine-tuning changed."""

import copy
import csv
from pathlib import Path

import pytest
import timm
import torch

import timm_devnet
from analysis.change import change
from analysis.layer_changes import CLASSIFIER, EARLIER, HEAD, NEW, OLD, find_change, kind_of
from tests.training.test_report import Page


def grown(growth: str = 'wa16') -> torch.nn.Module:
    return timm_devnet.grow(timm.create_model('test_efficientnet', num_classes=3), growth)


def test_only_what_changed_has_moved() -> None:
    start = grown()
    tuned = copy.deepcopy(start)
    with torch.no_grad():
        tuned.conv_head.weight[5] *= 3
        tuned.bn2.running_mean += 2 * (tuned.bn2.running_var + tuned.bn2.eps).sqrt()
    found = find_change(start, tuned)
    moved = {layer.tensor: layer for layer in found.layers if layer.whole.moved}
    assert list(moved) == ['conv_head.weight']
    units = moved['conv_head.weight'].units
    assert {number: unit.relative for number, unit in enumerate(units) if unit.moved} == {5: pytest.approx(2.0)}
    assert {name for name in tuned.state_dict()} - {*found.unchanged} == {'conv_head.weight', 'bn2.running_mean'}
    shifts = {name: norm.mean_shift for name, _, norm in found.norms if norm.mean_shift}
    assert shifts == {'bn2': pytest.approx(2.0)}


def test_old_and_new_are_told_apart() -> None:
    network = grown('wa16')
    network = timm_devnet.grow(network, 'wa8', keep_head='first')
    kinds = {name: kind_of(network, name) for name, _ in network.named_parameters()}
    assert kinds['conv_stem.weight'] == OLD
    assert kinds['grown.conv_head_1.conv.weight'] == EARLIER
    assert kinds['grown.conv_head_2.conv.weight'] == NEW
    assert kinds['classifier.weight'] == CLASSIFIER
    assert kinds['heads.first.weight'] == HEAD


def test_the_classifier_is_told_apart_by_block() -> None:
    start = grown()
    tuned = copy.deepcopy(start)
    with torch.no_grad():
        tuned.classifier.weight[:, -16:] += 1
    moved = {layer.tensor: layer.whole.moved for layer in find_change(start, tuned).layers if layer.kind == CLASSIFIER}
    assert moved['classifier.weight[conv_head]'] == 0
    assert moved['classifier.weight[conv_head_1]'] == pytest.approx(48**0.5)


def test_a_network_of_other_tensors_is_refused() -> None:
    with pytest.raises(ValueError, match='not the base'):
        find_change(grown(), timm.create_model('test_efficientnet', num_classes=3))


def test_the_page_says_what_the_tables_say(grown_run: Path) -> None:
    path = change(str(grown_run))
    page = Page(path)
    assert path == grown_run / 'analysis' / 'change' / 'index.html'
    with open(path.with_name('layers.csv')) as file:
        rows = list(csv.DictReader(file))
    [new] = [row for row in rows if row['tensor'] == 'grown.conv_head_1.conv.weight']
    assert f'{100 * float(new["relative"]):.3g} %' in page.text
    assert page.count('svg', role='img') == 2
    for name in ('layers.png', 'layers.svg', 'norms.png', 'units.csv', 'norms.csv'):
        assert page.count('a', href=name) == 1
        assert path.with_name(name).stat().st_size > 0
