"""What the tables know of a base network."""

import pytest

from experiments.bases import count_new, describe_base


def test_the_hidden_layer_learns_as_many_parameters_as_wa() -> None:
    base = describe_base('tf_efficientnet_lite0', 10)
    hidden = count_new(f'tf_efficientnet_lite0_da{base.hidden}', 10, scale_init=0.0)
    wide = count_new(f'tf_efficientnet_lite0_wa{base.units["wa"]}', 10)
    assert abs(hidden - wide) <= (1280 + 1 + 10) / 2  # half a unit's


def test_regimes_are_named_by_their_place() -> None:
    assert dict(describe_base('tf_efficientnet_lite0', 10).regimes) == {
        'New': 'new',
        'FC7-New': 'conv_head-new',
        'FC6-New': 'blocks.6-new',
        'All': 'all',
    }


@pytest.mark.parametrize('name', ['vgg16_wa2048', 'alexnot'])
def test_only_plain_networks_are_bases(name: str) -> None:
    with pytest.raises(ValueError, match=f'--model {name} is no plain network of timm'):
        describe_base(name, 10)
