"""What each block of a grown network says alone, heard while it is evaluated."""

import dataclasses
from pathlib import Path

import pytest
import torch

import timm_devnet
import train
from tests.conftest import Build
from tests.test_train import metrics
from training.blocks import BlockVoices
from training.config import Config
from training.run_folder import RunFolder


def test_voices_are_the_blocks_own_logits(build_grown: Build, images: torch.Tensor) -> None:
    network = build_grown(num_classes=5).eval()
    with torch.no_grad(), BlockVoices(network) as voices:
        network(images)
        heard = voices.take()
        read = network.forward_head(network.forward_features(images), pre_logits=True)
    expected = timm_devnet.block_logits(network, read) if len(timm_devnet.block_names(network)) > 1 else []
    torch.testing.assert_close(heard, expected, rtol=0, atol=0)


def test_nothing_is_heard_twice_or_after_leaving(build_grown: Build, images: torch.Tensor) -> None:
    network = build_grown(num_classes=5).eval()
    with torch.no_grad(), BlockVoices(network) as voices:
        network(images)
        voices.take()
        assert voices.take() == []
    with torch.no_grad():
        network(images)
    assert voices.take() == []


@pytest.mark.parametrize(
    'changes',
    [{}, {'block_loss': 1.0}, {'model_ema': True}, {'regime': 'new', 'cache_features': 1}],
    ids=['plain', 'block loss', 'averaged', 'cached'],
)
def test_a_run_measures_each_block_alone(config: Config, changes: dict) -> None:
    config = dataclasses.replace(config, model='test_efficientnet_wa16', epochs=1, report=True, **changes)
    if config.cache_features:
        config = dataclasses.replace(config, no_aug=True)
    run = train.main(config)['run']
    [row] = metrics(run)
    alone = {name: float(value) for name, value in row.items() if name.startswith('top1_')}
    assert list(alone) == ['top1_conv_head', 'top1_conv_head_1']
    page = (Path(run) / 'report.html').read_text()
    assert 'Top-1 of each block alone' in page
    for value in alone.values():  # the best weights, measured once more for the report, are those of this epoch
        assert f'{value:.2f} %' in page


def test_a_network_of_one_block_has_no_such_columns(config: Config) -> None:
    run = train.main(dataclasses.replace(config, model='test_efficientnet_norm', epochs=1, report=False))['run']
    assert not [name for name in RunFolder(Path(run)).read_metrics()[0] if name.startswith('top1_')]


def test_with_several_labels_blocks_are_measured_by_their_average_precision(
    labelled_folder: Path, config: Config
) -> None:
    config = dataclasses.replace(
        config, model='test_efficientnet_wa16', data_dir=str(labelled_folder), multi_label=True, epochs=1, report=False
    )
    [row] = metrics(train.main(config)['run'])
    assert [name for name in row if name.startswith('map_')] == ['map_conv_head', 'map_conv_head_1']
    assert all(0 < float(row[name]) <= 100 for name in row if name.startswith('map_'))
