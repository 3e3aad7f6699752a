"""A convolution by Winograd is the convolution: values, gradients, edges."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fcos.cpu import winograd
from fcos.cpu.winograd import conv3x3, conv3x3_ahead, pays, transform_weight


def error(found: Tensor, exact: Tensor, scale: Tensor | None = None) -> float:
    """Largest difference, as a part of the largest value, or of that of `scale`."""
    largest = (exact if scale is None else scale).detach().abs().max()
    return float((found.detach().double() - exact.detach()).abs().max() / largest)


def tensors(n: int, channels: int, out: int, height: int, width: int, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, channels, height, width, generator=generator)
    weight = torch.randn(out, channels, 3, 3, generator=generator) / (3 * channels**0.5)
    bias = torch.randn(out, generator=generator)
    return [t.requires_grad_() for t in (x.contiguous(memory_format=torch.channels_last), weight, bias)]


@settings(deadline=None, max_examples=60)
@given(
    n=st.integers(1, 3),
    channels=st.integers(1, 5),
    out=st.integers(1, 5),
    height=st.integers(1, 21),
    width=st.integers(1, 21),
    tiles=st.integers(1, 40),
    has_bias=st.booleans(),
)
def test_values_and_gradients_for_any_size_and_blocks(
    n: int, channels: int, out: int, height: int, width: int, tiles: int, has_bias: bool
) -> None:
    x, weight, bias = tensors(n, channels, out, height, width)
    inputs = [x, weight, bias] if has_bias else [x, weight]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(winograd, "TILES_OF_BLOCK", tiles)
        result = conv3x3(*inputs)
        back = torch.randn(result.shape, generator=torch.Generator().manual_seed(1))
        gradients = torch.autograd.grad(result, inputs, back)
    exact_inputs = [t.detach().double().requires_grad_() for t in inputs]
    exact = F.conv2d(*exact_inputs, padding=1)  # type: ignore[arg-type]
    exact_gradients = torch.autograd.grad(exact, exact_inputs, back.double())
    # Sums may cancel: rounding is a part of what is summed.
    sizes = [t.detach().abs().requires_grad_() for t in exact_inputs]
    scale = F.conv2d(*sizes, padding=1)  # type: ignore[arg-type]
    scales = torch.autograd.grad(scale, sizes, back.abs().double())
    assert result.shape == exact.shape
    assert error(result, exact, scale) < 2e-6
    for found, wanted, of in zip(gradients, exact_gradients, scales, strict=True):
        assert found.shape == wanted.shape
        assert error(found, wanted, of) < 2e-6


def test_as_exact_as_the_direct_convolution() -> None:
    x, weight, bias = tensors(1, 256, 256, 57, 63)
    exact = F.conv2d(x.double(), weight.double(), bias.double(), padding=1)
    direct = error(F.conv2d(x, weight, bias, padding=1), exact)
    assert error(conv3x3(x, weight, bias), exact) < 3 * direct


def test_an_image_gives_the_same_in_any_batch() -> None:
    x, weight, bias = tensors(3, 192, 192, 60, 60)
    with torch.no_grad():
        together = conv3x3(x, weight, bias)
        for i in range(3):
            assert torch.equal(conv3x3(x[i : i + 1], weight, bias), together[i : i + 1])


def test_with_weights_transformed_ahead_it_is_the_same() -> None:
    x, weight, bias = tensors(2, 96, 128, 40, 57)
    with torch.no_grad():
        assert torch.equal(conv3x3_ahead(x, transform_weight(weight), bias), conv3x3(x, weight, bias))


@pytest.mark.parametrize(("threads", "least_channels"), [(1, 96), (2, 128)])
def test_ahead_it_pays_for_smaller_maps_and_on_one_core_for_fewer_channels(
    threads: int, least_channels: int
) -> None:
    def there(channels: int, side: int, *, ahead: bool) -> bool:
        x = torch.zeros(1, channels, side, side).contiguous(memory_format=torch.channels_last)
        return pays(x, nn.Conv2d(channels, channels, 3, padding=1), ahead=ahead)

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert there(least_channels, 46, ahead=True)  # 12 x 12 tiles
        assert not there(least_channels, 44, ahead=True)
        assert not there(least_channels - 32, 46, ahead=True)
        assert there(128, 60, ahead=False)
        assert not there(128, 46, ahead=False)
        assert not there(96, 60, ahead=False)
    finally:
        torch.set_num_threads(before)


def test_only_what_is_asked_for_has_a_gradient() -> None:
    x, weight, bias = tensors(1, 4, 4, 8, 8)
    weight.requires_grad_(False)
    conv3x3(x, weight, bias).sum().backward()
    assert x.grad is not None
    assert bias.grad is not None
    assert weight.grad is None


LARGE = torch.zeros(1, 192, 60, 60).contiguous(memory_format=torch.channels_last)


def test_an_activation_in_place_may_follow() -> None:
    x, weight, bias = tensors(1, 4, 5, 9, 10)
    inputs = x, weight, bias
    found = torch.autograd.grad(torch.relu_(conv3x3(*inputs)).square().sum(), inputs)
    wanted = torch.autograd.grad(F.conv2d(*inputs, padding=1).relu().square().sum(), inputs)
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("x", "conv"),
    [
        (LARGE.contiguous(), nn.Conv2d(192, 192, 3, padding=1)),
        (LARGE.double(), nn.Conv2d(192, 192, 3, padding=1).double()),
        (LARGE.bfloat16(), nn.Conv2d(192, 192, 3, padding=1)),
        (LARGE[:, :, :40], nn.Conv2d(192, 192, 3, padding=1)),
        (LARGE, nn.Conv2d(192, 80, 3, padding=1)),
        (LARGE, nn.Conv2d(192, 192, 3)),
        (LARGE, nn.Conv2d(192, 192, 3, padding=1, stride=2)),
        (LARGE, nn.Conv2d(192, 192, 3, padding=1, groups=2)),
        (LARGE, nn.Conv2d(192, 192, 3, padding="same")),
        (LARGE, nn.Conv2d(192, 192, 3, padding=1, padding_mode="reflect")),
        (LARGE, nn.Conv2d(192, 192, 1)),
    ],
)
def test_any_other_convolution_stays_as_it_is(x: Tensor, conv: nn.Conv2d) -> None:
    assert not pays(x, conv)


def test_not_in_mixed_precision() -> None:
    conv = nn.Conv2d(192, 192, 3, padding=1)
    assert pays(LARGE, conv)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not pays(LARGE, conv)
