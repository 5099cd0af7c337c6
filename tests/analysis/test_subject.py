"""What is looked into: trained networks, what they began as, their images."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from accelerate import Accelerator
from torch import nn

import timm_devnet
from analysis.subject import Where, find_images, open_subject, rebuild_base, show
from tests.analysis.conftest import Train
from training.run_folder import RunFolder
from training.session import prepare

THREAD = Where(threads=1)


def assert_same(network: nn.Module, other: nn.Module) -> None:
    ours, theirs = network.state_dict(), other.state_dict()
    assert ours.keys() == theirs.keys()
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def moved(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    """What differs by more than updates at a rate of 1e-30 can do, to columns that began at zero."""
    return {name for name in after if not torch.allclose(before[name], after[name], rtol=0, atol=1e-20)}


@pytest.mark.parametrize('model', ['test_efficientnet_wa16', 'test_efficientnet', 'test_efficientnet_mwa16'])
def test_a_start_is_what_train_begins_with(train_run: Train, model: str) -> None:
    subject = open_subject(str(train_run(model=model)), THREAD)
    session = prepare(dataclasses.replace(subject.config, batch_size=8), Accelerator(cpu=True))
    assert_same(subject.start(), session.network)


@pytest.mark.parametrize(
    'options', [{}, {'grow': ('wa8',), 'keep_heads': True}], ids=['as it is', 'with its head kept']
)
def test_a_start_from_another_run_is_what_train_begins_with(train_run: Train, options: dict[str, Any]) -> None:
    run = train_run(model=str(train_run()), pretrained=True, **options)
    subject = open_subject(str(run), THREAD)
    session = prepare(dataclasses.replace(subject.config, batch_size=8), Accelerator(cpu=True))
    assert_same(subject.start(), session.network)


def test_what_a_frozen_run_did_not_touch_is_as_it_began(train_run: Train) -> None:
    subject = open_subject(str(train_run(regime='new', lr=1e-30)), THREAD)
    before, after = subject.start().state_dict(), subject.network.state_dict()
    statistics = ('running_mean', 'running_var', 'num_batches_tracked')
    assert moved(before, after) == {name for name in after if name.startswith('grown.') and name.endswith(statistics)}


def test_units_that_grew_in_the_middle_are_built_again(train_run: Train) -> None:
    run = train_run(model='test_efficientnet', grow=('wa16@1', 'wa8@2'), epochs=3, lr=1e-30, new_lr_mult=1.0)
    subject = open_subject(str(run / 'last'), THREAD)
    before, after = subject.start().state_dict(), subject.network.state_dict()
    assert not {name for name in moved(before, after) if name.endswith('weight')}
    assert sum(name.startswith('grown.') and name.endswith('conv.weight') for name in after) == 2


def test_another_base_is_refused(train_run: Train, tmp_path: Path) -> None:
    run = train_run()
    subject = open_subject(str(run), THREAD)
    other = RunFolder(tmp_path / 'run')
    base = {'model': None, 'revision': None, 'tensors': '0' * 64, 'license': None, 'origin': 'a file'}
    other.write_run({**RunFolder(run).read_run(), 'base': base})
    with pytest.raises(ValueError, match='checksum 000000000000'):
        dataclasses.replace(subject, run=other).start()


def test_last_is_looked_into_as_well_as_best(grown_run: Path) -> None:
    assert open_subject(str(grown_run / 'last'), THREAD).name.endswith('/last')
    assert open_subject(str(grown_run), THREAD).run is not None


def test_every_image_is_shown_once_in_order(grown_run: Path) -> None:
    subject = open_subject(str(grown_run), dataclasses.replace(THREAD, batch_size=4))
    source = find_images(subject, 'val')
    shown = list(show(source, subject.config, subject.input_format, subject.device))
    assert [len(images) for images, _, _ in shown] == [4, 4, 1]
    assert torch.cat([indices for _, _, indices in shown]).tolist() == list(range(9))
    assert torch.cat([targets for _, targets, _ in shown]).tolist() == list(source.targets)


def test_a_name_needs_images(grown_run: Path) -> None:
    subject = dataclasses.replace(open_subject(str(grown_run), THREAD), run=None)
    subject = dataclasses.replace(subject, config=dataclasses.replace(subject.config, data_dir=None))
    with pytest.raises(ValueError, match='--data-dir FOLDER'):
        find_images(subject, 'val')


def test_what_is_no_network_is_told_in_a_line() -> None:
    with pytest.raises(ValueError, match='no_such_network'):
        open_subject('no_such_network', THREAD)


def test_the_base_of_a_grown_network_has_its_own_classifier(grown_run: Path, lite_weights: Path) -> None:
    network = timm_devnet.grow(timm.create_model('tf_efficientnet_lite0', num_classes=3), 'wa16')
    subject = dataclasses.replace(open_subject(str(grown_run), THREAD), run=None, network=network)
    config = dataclasses.replace(subject.config, pretrained=True, img_size=None)
    base = rebuild_base(dataclasses.replace(subject, config=config))
    weights = timm_devnet.convert_lite(timm.models.load_state_dict(str(lite_weights)))
    assert torch.equal(base.conv_head.weight, weights['conv_head.weight'])
    assert torch.equal(base.classifier.weight, weights['classifier.weight'])
