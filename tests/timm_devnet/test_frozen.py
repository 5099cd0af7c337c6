import copy

import pytest
import timm
import torch
from torch import Tensor, nn

import timm_devnet
from timm_devnet import split_frozen
from training.networks import BlockAnswers

CASES = {
    'alexnet': {},
    'alexnet_wa2048': {'growth': 'wa32'},
    'vgg11_bn_wwa': {'growth': 'wwa32'},
    'tf_efficientnet_lite0': {},
    'tf_efficientnet_lite0_skip': {},
    'tf_efficientnet_lite0_mwa512': {'growth': 'mwa32_da16'},
}


@pytest.fixture(params=CASES)
def model(request: pytest.FixtureRequest, narrow: None) -> nn.Module:
    return timm.create_model(request.param, num_classes=5, drop_rate=0.3, **CASES[request.param])


def regimes_below_all(model: nn.Module) -> list[str]:
    return timm_devnet.regimes(model)[:-1]


def test_trunk_and_head_are_the_network(model: nn.Module, images: Tensor) -> None:
    for regime in regimes_below_all(model):
        timm_devnet.parameter_groups(model, regime, lr=0.01, weight_decay=0.0)
        trunk, head = split_frozen(model, images)
        model.eval(), head.eval()
        with torch.no_grad():
            torch.testing.assert_close(head(*trunk(images)), model(images), rtol=0, atol=0)


def test_training_the_head_is_training_the_network(model: nn.Module, images: Tensor) -> None:
    for regime in regimes_below_all(model):
        timm_devnet.parameter_groups(model, regime, lr=0.01, weight_decay=0.0)
        trunk, head = split_frozen(model.train(), images)
        learning = {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
        assert {id(parameter) for parameter in head.parameters() if parameter.requires_grad} == learning
        assert not any(parameter.requires_grad for parameter in trunk.parameters())
        other = copy.deepcopy(model)
        torch.manual_seed(7)
        head(*trunk(images)).square().sum().backward()
        torch.manual_seed(7)
        other(images).square().sum().backward()
        for ours, theirs in zip(model.parameters(), other.parameters(), strict=True):
            if ours.requires_grad:
                torch.testing.assert_close(ours.grad, theirs.grad, rtol=0, atol=0)
        torch.testing.assert_close(dict(model.named_buffers()), dict(other.named_buffers()), rtol=0, atol=0)
        model.zero_grad()


def test_modes_are_left_as_they_were(model: nn.Module, images: Tensor) -> None:
    timm_devnet.parameter_groups(model, 'new', lr=0.01, weight_decay=0.0)
    for mode in (True, False):
        before = [module.training for module in model.train(mode).modules()]
        _, head = split_frozen(model, images)
        assert [module.training for module in model.modules()] == before
        assert head.training == mode


def test_what_is_kept_is_as_small_as_it_can_be(images: Tensor) -> None:
    # FC6 for the new units and FC7 for the classifier; the maps of the levels that mwa reads, and conv_head pooled.
    expected = {
        'alexnet_wa2048': [(2, 4096, 1, 1), (2, 4096)],
        'tf_efficientnet_lite0_mwa512': [(2, 112, 6, 6), (2, 192, 3, 3), (2, 1280)],
        'tf_efficientnet_lite0_wa512': [(2, 320, 3, 3), (2, 1280)],
    }
    for name, shapes in expected.items():
        model = timm.create_model(name, num_classes=5)
        timm_devnet.parameter_groups(model, 'new', lr=0.01, weight_decay=0.0)
        trunk, _ = split_frozen(model, images)
        assert [tuple(value.shape) for value in trunk(images)] == shapes


def test_blocks_answer_from_what_is_kept(images: Tensor) -> None:
    model = timm.create_model('tf_efficientnet_lite0_mwa512', num_classes=5)
    timm_devnet.parameter_groups(model, 'new', lr=0.01, weight_decay=0.0)
    answers = BlockAnswers(model).eval()
    trunk, head = split_frozen(answers, images)
    with torch.no_grad():
        torch.testing.assert_close(head(*trunk(images)), answers(images), rtol=0, atol=0)


def test_dropout_below_what_learns_is_not_frozen(images: Tensor) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 96 * 96, 4), nn.Dropout(0.5), nn.Linear(4, 2))
    model[1].requires_grad_(False)
    trunk, head = split_frozen(model, images)
    assert trunk(images)[0].shape == (2, 4)
    torch.manual_seed(0)
    values = trunk(images)
    assert not torch.equal(head(*values), head(*values))


def test_batch_statistics_are_not_frozen(images: Tensor) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.LazyLinear(2))
    model(images)
    model[:2].requires_grad_(False)
    assert split_frozen(model, images)[0](images)[0].shape == (2, 4, 94, 94)
    model[1].eval()
    model[1].train = lambda mode=True: model[1]  # type: ignore[method-assign]  # as regimes freeze it
    trunk, _ = split_frozen(model, images)
    assert trunk(images)[0].shape == (2, 4 * 94 * 94)


def test_networks_without_a_frozen_part_are_refused(images: Tensor) -> None:
    model = timm.create_model('test_efficientnet', num_classes=5)
    timm_devnet.parameter_groups(model, 'all', lr=0.01, weight_decay=0.0)
    with pytest.raises(ValueError, match='there is no frozen part whose outputs could be kept'):
        split_frozen(model, images)
    with pytest.raises(ValueError, match='Nothing of EfficientNet learns'):
        split_frozen(model.requires_grad_(False), images)


def test_networks_that_cannot_be_traced_are_refused(images: Tensor) -> None:
    class Untraceable(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x if x.sum() > 0 else -x)

    model = nn.Sequential(nn.Flatten(), Untraceable(3 * 96 * 96, 2))
    with pytest.raises(ValueError, match='Sequential cannot be traced, so its frozen part cannot be told'):
        split_frozen(model, images)
