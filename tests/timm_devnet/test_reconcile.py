"""The L2 norm and the learnt scale: the paper's equations, zero blocks, half precision, gradients."""

import pytest
import torch
from torch import Tensor, nn

from timm_devnet import Reconcile, reconcile

SHAPES = [(3, 6), (3, 6, 1, 1), (3, 6, 4, 5)]


def by_hand(block: Tensor, scale: Tensor) -> Tensor:
    """Equations 1 and 2 in double precision, number by number."""
    rows = block.double().movedim(1, -1).reshape(-1, block.shape[1])
    factors = scale.double().repeat(block.shape[1] // len(scale))
    out = torch.stack([factors * row / sum(float(number) ** 2 for number in row) ** 0.5 for row in rows])
    return out.reshape(*block.movedim(1, -1).shape).movedim(-1, 1)


def activations(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return (torch.rand(shape) + 0.01).to(dtype)


@pytest.mark.parametrize('shape', SHAPES)
def test_equations_1_and_2(shape: tuple[int, ...]) -> None:
    block, scale = activations(*shape, dtype=torch.float64), torch.rand(6, dtype=torch.float64)
    torch.testing.assert_close(reconcile(block, scale), by_hand(block, scale), rtol=1e-14, atol=0)


@pytest.mark.parametrize('shape', [(3, 12), (3, 12, 2, 2), (3, 18)])
def test_blocks_of_several_statistics_share_the_scale_of_a_channel(shape: tuple[int, ...]) -> None:
    block, scale = activations(*shape, dtype=torch.float64), torch.rand(6, dtype=torch.float64)
    torch.testing.assert_close(reconcile(block, scale), by_hand(block, scale), rtol=1e-14, atol=0)


def test_every_sample_has_the_norm_of_the_scale() -> None:
    out = reconcile(activations(5, 7), torch.full((7,), 10.0))
    torch.testing.assert_close(out.norm(dim=1), torch.full((5,), 10.0))


def test_samples_do_not_see_each_other() -> None:
    block, scale = activations(4, 6), torch.rand(6)
    assert torch.equal(reconcile(block, scale)[1:2], reconcile(block[1:2], scale))


@pytest.mark.parametrize('shape', SHAPES)
def test_a_zero_block_gives_zero(shape: tuple[int, ...]) -> None:
    block = activations(*shape)
    block[1] = 0
    assert torch.equal(reconcile(block, torch.full((6,), 10.0))[1], torch.zeros(shape[1:]))


@pytest.mark.parametrize('small', [0.0, 1e-30, 1e-8])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64, torch.bfloat16])
def test_a_block_of_next_to_nothing_has_a_zero_gradient(small: float, dtype: torch.dtype) -> None:
    block = torch.full((2, 6), small, dtype=dtype, requires_grad=True)
    reconcile(block, torch.full((6,), 10.0, dtype=dtype)).sum().backward()
    assert torch.equal(block.grad, torch.zeros_like(block))


def test_a_zero_block_leaves_the_scale_without_a_gradient_from_it() -> None:
    scale = nn.Parameter(torch.ones(6))
    reconcile(torch.zeros(2, 6), scale).sum().backward()
    assert torch.equal(scale.grad, torch.zeros(6))


def test_a_zero_sample_leaves_the_gradients_of_the_others_alone() -> None:
    block, scale = activations(2, 6), torch.rand(6)
    alone, beside = block[:1].clone().requires_grad_(), torch.cat([block[:1], torch.zeros(1, 6)]).requires_grad_()
    reconcile(alone, scale)[0, 0].backward()
    reconcile(beside, scale)[0, 0].backward()
    assert torch.equal(beside.grad[:1], alone.grad)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
@pytest.mark.parametrize('shape', [(4, 4096), (2, 512, 3, 3)])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    block, scale = (activations(*shape) * 30).to(dtype), (torch.rand(shape[1]) * 10).to(dtype)
    rounding = (
        torch.finfo(dtype).eps / 2 * 1.01
    )  # of the exact result to half precision, with some room for float32's own
    torch.testing.assert_close(reconcile(block, scale).double(), by_hand(block, scale), rtol=rounding, atol=6e-8)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_result_has_the_type_of_the_block(dtype: torch.dtype) -> None:
    assert reconcile(activations(2, 6, dtype=dtype), torch.ones(6)).dtype == dtype


def test_large_half_precision_numbers_do_not_overflow() -> None:
    block = torch.full((1, 4096), 60000.0, dtype=torch.float16)
    assert torch.equal(reconcile(block, torch.full((4096,), 64.0)), torch.ones(1, 4096, dtype=torch.float16))


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_under_autocast_float32_stays_float32(dtype: torch.dtype) -> None:
    block, scale = activations(4, 4096), torch.rand(4096)
    with torch.autocast('cpu', dtype=dtype):
        out = reconcile(block, scale)
    assert torch.equal(out, reconcile(block, scale))


@pytest.mark.parametrize('shape', [(3, 4), (2, 4, 2, 2), (2, 8)])
def test_gradients_are_those_of_finite_differences(shape: tuple[int, ...]) -> None:
    block = activations(*shape, dtype=torch.float64).requires_grad_()
    scale = torch.rand(4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(reconcile, (block, scale))


@pytest.mark.parametrize('scale_init', [1.0, 10.0, 20.0])
def test_the_scale_starts_where_it_is_told(scale_init: float) -> None:
    assert torch.equal(Reconcile(5, scale_init).scale, torch.full((5,), scale_init))


def test_the_layer_is_the_function_with_its_own_scale() -> None:
    layer, block = Reconcile(6), activations(3, 6)
    nn.init.uniform_(layer.scale)
    assert torch.equal(layer(block), reconcile(block, layer.scale))


def test_the_layer_lives_where_it_is_told() -> None:
    layer = Reconcile(6, device='meta', dtype=torch.bfloat16)
    assert (layer.scale.device.type, layer.scale.dtype) == ('meta', torch.bfloat16)
