from __future__ import annotations

from collections import OrderedDict

import pytest
import torch
from torch import Tensor
from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork, LastLevelP6P7

from fcos.model.fpn import FeaturePyramid

CHANNELS = [4, 6, 8]


def random_features(height: int = 21, width: int = 13) -> list[Tensor]:
    """C3, C4, C5 with odd sides, as of an image whose size no stride divides."""
    generator = torch.Generator().manual_seed(0)
    sizes = [(-(-height // d), -(-width // d)) for d in (1, 2, 4)]
    return [torch.randn(2, c, h, w, generator=generator) for c, (h, w) in zip(CHANNELS, sizes, strict=True)]


def identity(pyramid: FeaturePyramid) -> FeaturePyramid:
    """Every convolution passes the pixel under its centre on."""
    for conv in [*pyramid.lateral, *pyramid.output, *pyramid.extra]:
        assert isinstance(conv, torch.nn.Conv2d)
        torch.nn.init.zeros_(conv.weight)
        middle = conv.kernel_size[0] // 2
        conv.weight.data[:, :, middle, middle] = 1
    return pyramid


def test_coarse_levels_are_added_to_finer_ones_by_hand() -> None:
    pyramid = identity(FeaturePyramid([1, 1, 1], 1, 3))
    c5 = torch.tensor([[1.0, 2.0]])[None, None]
    c4 = torch.tensor([[10.0, 20.0, 30.0, 40.0], [50.0, 60.0, 70.0, 80.0]])[None, None]
    p3, p4, p5 = pyramid([torch.zeros(1, 1, 4, 8), c4, c5])
    assert p5[0, 0].tolist() == [[1, 2]]
    assert p4[0, 0].tolist() == [[11, 21, 32, 42], [51, 61, 72, 82]]
    assert p3[0, 0, 0].tolist() == [11, 11, 21, 21, 32, 32, 42, 42]


def test_relu_stands_before_p7_only() -> None:
    pyramid = identity(FeaturePyramid([1, 1, 1], 1, 5))
    features = [torch.zeros(1, 1, 16, 16), torch.zeros(1, 1, 8, 8), torch.full((1, 1, 4, 4), -1.0)]
    p6, p7 = pyramid(features)[3:]
    assert (p6 == -1).all()
    assert (p7 == 0).all()


@pytest.mark.parametrize("size_hw", [(21, 13), (16, 24)])
def test_levels_are_torchvisions(size_hw: tuple[int, int]) -> None:
    torch.manual_seed(0)
    ours = FeaturePyramid(CHANNELS, 5, 5)
    theirs = FeaturePyramidNetwork(CHANNELS, 5, extra_blocks=LastLevelP6P7(5, 5))
    extra = theirs.extra_blocks
    pairs = [
        *zip(ours.lateral, (block[0] for block in theirs.inner_blocks), strict=True),
        *zip(ours.output, (block[0] for block in theirs.layer_blocks), strict=True),
        *zip(ours.extra, (extra.p6, extra.p7), strict=True),
    ]
    for conv, reference in pairs:
        conv.load_state_dict(reference.state_dict())
    features = random_features(*size_hw)
    expected = theirs(OrderedDict(enumerate(features)))
    torch.testing.assert_close(ours(features), list(expected.values()))


def test_p6_comes_from_c5_if_told_so() -> None:
    pyramid = FeaturePyramid(CHANNELS, 5, 5, extra_from="c5")
    features = random_features()
    p6, p7 = pyramid(features)[3:]
    torch.testing.assert_close(p6, pyramid.extra[0](features[-1]))
    torch.testing.assert_close(p7, pyramid.extra[1](p6.relu()))


@pytest.mark.parametrize("num_levels", [3, 4, 5, 6])
def test_there_are_as_many_levels_as_asked_for(num_levels: int) -> None:
    levels = FeaturePyramid(CHANNELS, 5, num_levels)(random_features())
    assert [tuple(level.shape[2:]) for level in levels] == [
        (21, 13),
        (11, 7),
        (6, 4),
        (3, 2),
        (2, 1),
        (1, 1),
    ][:num_levels]


def test_fresh_convolutions_have_no_bias_and_caffe2s_xavier_weights() -> None:
    pyramid = FeaturePyramid(CHANNELS, 5, 5)
    for conv in [*pyramid.lateral, *pyramid.output, *pyramid.extra]:
        assert isinstance(conv, torch.nn.Conv2d)
        limit = (3 / conv.weight[0].numel()) ** 0.5
        assert conv.bias is not None
        assert (conv.bias == 0).all()
        assert 0.5 * limit < conv.weight.abs().max() <= limit


def test_fresh_weights_are_those_of_the_official_code() -> None:
    """Caffe2's "Xavier": uniform up to sqrt(3 / inputs), biases 0."""
    pyramid = FeaturePyramid([256, 256, 256], 256, 5)
    for conv in [*pyramid.lateral, *pyramid.output, *pyramid.extra]:
        assert isinstance(conv, torch.nn.Conv2d)
        limit = (3 / (256 * conv.kernel_size[0] ** 2)) ** 0.5
        assert 0.99 * limit < conv.weight.abs().max() <= limit
        assert conv.bias is not None
        assert not conv.bias.any()
