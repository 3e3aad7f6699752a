from __future__ import annotations

from collections import OrderedDict
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection.fcos import FCOSHead
from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork, LastLevelP6P7

from fcos.model.assign import StaticAssigner
from fcos.model.fcos import FCOS, PRIOR, FeaturePyramid, Head
from fcos.model.losses import FcosLoss

from .conftest import RANGES

# Pyramid --------------------------------------------------------------------------------------------------

CHANNELS = [4, 6, 8]


def random_features(height: int = 21, width: int = 13) -> list[Tensor]:
    """C3, C4, C5 with odd sides, as of an image whose size no stride divides."""
    generator = torch.Generator().manual_seed(0)
    sizes = [(-(-height // d), -(-width // d)) for d in (1, 2, 4)]
    return [torch.randn(2, c, h, w, generator=generator) for c, (h, w) in zip(CHANNELS, sizes, strict=True)]


def identity(pyramid: FeaturePyramid) -> FeaturePyramid:
    """Every convolution passes the pixel under its center on."""
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


# Head -----------------------------------------------------------------------------------------------------

STRIDES = (8, 16)


def levels(channels: int = 32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, channels, *size, generator=generator) for size in ((4, 6), (2, 3))]


def make(num_convs: int = 1, **options: Any) -> Head:
    torch.manual_seed(0)
    return Head(32, 32, 5, num_convs, STRIDES, **options)


def randomize(head: nn.Module) -> None:
    for parameter in head.parameters():
        nn.init.normal_(parameter, std=0.1)


def test_outputs_are_torchvisions() -> None:
    torch.manual_seed(0)
    theirs = FCOSHead(32, 1, 5, 4)
    randomize(theirs)
    ours = make(4, normalize_targets=False)  # torchvision's head predicts in strides
    ours.classification_tower.load_state_dict(theirs.classification_head.conv.state_dict())
    ours.box_tower.load_state_dict(theirs.regression_head.conv.state_dict())
    ours.logits.load_state_dict(theirs.classification_head.cls_logits.state_dict())
    ours.distances.load_state_dict(theirs.regression_head.bbox_reg.state_dict())
    assert ours.quality is not None
    ours.quality.load_state_dict(theirs.regression_head.bbox_ctrness.state_dict())
    output, expected = ours(levels()), theirs(levels())
    torch.testing.assert_close(output.logits, expected["cls_logits"])
    torch.testing.assert_close(output.distances, expected["bbox_regression"])
    torch.testing.assert_close(output.quality, expected["bbox_ctrness"][..., 0])


def test_points_are_in_the_order_of_the_grid() -> None:
    head = make(0)
    nn.init.zeros_(head.logits.weight)
    nn.init.zeros_(head.logits.bias)
    head.logits.weight.data[:, 0, 1, 1] = 1  # logits are channel 0 of the level
    inputs = [torch.zeros(1, 32, 2, 3), torch.zeros(1, 32, 1, 2)]
    inputs[0][0, 0], inputs[1][0, 0] = torch.tensor([[0.0, 1, 2], [3, 4, 5]]), torch.tensor([[6.0, 7]])
    assert head(inputs).logits[0, :, 0].tolist() == list(range(8))


def test_a_fresh_head_gives_every_class_the_prior_probability() -> None:
    head = make(4)
    scores = head(levels()).logits.sigmoid()
    assert PRIOR == 0.01
    assert scores.mean().item() == pytest.approx(0.01, rel=0.05)
    assert head.logits.bias is not None
    torch.testing.assert_close(head.logits.bias.sigmoid(), torch.full((5,), 0.01))


def test_each_level_has_its_own_scale_and_unit() -> None:
    head = make()
    randomize(head)
    head.scales.data = torch.tensor([1.0, 1.0])
    before = head(levels()).distances
    head.scales.data = torch.tensor([2.0, 3.0])
    after = head(levels()).distances
    torch.testing.assert_close(after[:, :24], before[:, :24] * 2)
    torch.testing.assert_close(after[:, 24:], before[:, 24:] * 3)
    head.units = [1.0, 1.0]
    torch.testing.assert_close(head(levels()).distances[:, 24:], after[:, 24:] / 16)


def test_exp_makes_distances_positive_after_the_scale() -> None:
    relu, exp = make(), make(box_activation="exp")
    randomize(relu)
    exp.load_state_dict(relu.state_dict())
    exp.scales.data = torch.tensor([2.0, 2.0])
    raw = relu.distances(relu.box_tower(levels()[0])).permute(0, 2, 3, 1).flatten(1, 2)
    torch.testing.assert_close(exp(levels()).distances[:, :24], (2 * raw).exp() * 8)
    assert (relu(levels()).distances == 0).any()


@pytest.mark.parametrize(
    ("activation", "start", "strides"),
    [("relu", 0.0, 0.0), ("relu", 4.0, 4.0), ("exp", 0.0, 1.0), ("exp", 4.0, 4.0)],
)
def test_a_fresh_head_predicts_the_distances_that_it_is_told(
    activation: Any, start: float, strides: float
) -> None:
    distances = make(4, box_activation=activation, distance_init=start)(levels()).distances
    assert distances[:, :24].mean().item() / 8 == pytest.approx(strides, rel=0.05, abs=0.1)
    assert distances[:, 24:].mean().item() / 16 == pytest.approx(strides, rel=0.05, abs=0.1)


@pytest.mark.parametrize(("tower", "other"), [("box", "classification"), ("classification", "box")])
def test_quality_reads_the_tower_that_it_is_told(tower: Any, other: str) -> None:
    head = make(quality_tower=tower)
    quality = head(levels()).quality
    assert quality is not None
    assert quality.shape == (2, 30)
    quality.sum().backward()
    assert getattr(head, f"{tower}_tower")[0].weight.grad is not None
    assert getattr(head, f"{other}_tower")[0].weight.grad is None


def test_without_quality_branch_there_is_no_quality() -> None:
    head = make(quality_tower=None)
    assert head(levels()).quality is None
    assert not any(name.startswith("quality") for name in head.state_dict())


@pytest.mark.parametrize(
    ("options", "kinds"),
    [
        ({"norm": "gn"}, ["Conv2d", "GroupNorm", "ReLU"] * 2),
        ({"norm": "bn"}, ["Conv2d", "BatchNorm2d", "ReLU"] * 2),
        ({"norm": "none"}, ["Conv2d", "ReLU"] * 2),
        ({"conv": "separable"}, ["Conv2d", "Conv2d", "GroupNorm", "ReLU"] * 2),
    ],
)
def test_towers_are_made_of_the_layers_that_are_asked_for(options: Any, kinds: list[str]) -> None:
    head = make(2, **options)
    assert [type(layer).__name__ for layer in head.box_tower] == kinds
    assert [type(layer).__name__ for layer in head.classification_tower] == kinds
    assert head(levels()).logits.shape == (2, 30, 5)


@pytest.mark.parametrize(("channels", "groups"), [(256, 32), (96, 32), (48, 16), (20, 4)])
def test_groups_divide_a_width_that_32_does_not(channels: int, groups: int) -> None:
    norm = Head(8, channels, 2, 1, STRIDES).box_tower[1]
    assert isinstance(norm, nn.GroupNorm)
    assert norm.num_groups == groups


def test_plain_convolutions_start_with_the_papers_deviation_and_depthwise_ones_pass_their_input_on() -> None:
    torch.manual_seed(0)
    assert Head(64, 64, 2, 1, STRIDES).box_tower[0].weight.std().item() == pytest.approx(0.01, rel=0.05)
    depthwise, pointwise = Head(64, 64, 2, 1, STRIDES, conv="separable").box_tower[:2]
    assert depthwise.weight.std().item() == pytest.approx((1 / 25) ** 0.5, rel=0.1)
    assert pointwise.weight.std().item() == pytest.approx(0.01, rel=0.1)


def test_kaiming_towers_start_by_their_number_of_inputs_and_predictors_as_before() -> None:
    head = Head(64, 64, 2, 2, STRIDES, init="kaiming")
    for tower in (head.classification_tower, head.box_tower):
        for conv in (tower[0], tower[3]):
            assert conv.weight.std().item() == pytest.approx((2 / (9 * 64)) ** 0.5, rel=0.05)
    assert head.logits.weight.std().item() == pytest.approx(0.01, rel=0.1)
    assert head.logits.bias.sigmoid()[0].item() == pytest.approx(PRIOR)
    pointwise = Head(64, 64, 2, 1, STRIDES, conv="separable", init="kaiming").box_tower[1]
    assert pointwise.weight.std().item() == pytest.approx((2 / 64) ** 0.5, rel=0.05)


def test_distances_are_float32_in_half_precision() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        output = make()(levels())
    assert output.logits.dtype == torch.bfloat16
    assert output.distances.dtype == torch.float32


# Network --------------------------------------------------------------------------------------------------


def random_images(number: int, height: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (number, 3, height, width), dtype=torch.uint8, generator=generator)


def test_pixels_are_normalized_by_hand(network: FCOS) -> None:
    images = torch.tensor([0, 100, 255], dtype=torch.uint8).reshape(1, 3, 1, 1)
    normal = network.normalize(images, torch.tensor([[1, 1]]))
    expected = [(0 - 123.675) / 58.395, (100 - 116.28) / 57.12, (255 - 103.53) / 57.375]
    assert normal.flatten().tolist() == pytest.approx(expected)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_memory_order_does_not_change_normalisation(network: FCOS, dtype: torch.dtype) -> None:
    images = random_images(2, 4, 6).to(dtype)
    sizes = torch.tensor([[4, 6], [2, 3]])
    given = images.to(memory_format=torch.channels_last, copy=True)
    normal = network.normalize(given, sizes)
    assert normal.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(normal, network.normalize(images, sizes))
    assert torch.equal(given, images)  # what was given is not written over


def test_padding_is_zero_after_normalisation(network: FCOS) -> None:
    normal = network.normalize(random_images(2, 4, 6), torch.tensor([[4, 6], [2, 3]]))
    assert (normal[0] != 0).any(dim=0).all()
    assert (normal[1, :, :2, :3] != 0).any(dim=0).all()
    assert (normal[1, :, 2:] == 0).all()
    assert (normal[1, :, :, 3:] == 0).all()


def test_what_stands_in_the_padding_does_not_matter(network: FCOS) -> None:
    images, sizes = random_images(1, 64, 64), torch.tensor([[50, 40]])
    other = images.clone()
    other[:, :, 50:] = 0
    other[:, :, :, 40:] = 255
    with torch.no_grad():
        torch.testing.assert_close(network(images, sizes), network(other, sizes), rtol=0, atol=0)


def test_an_image_is_the_same_alone_and_in_a_batch(network: FCOS) -> None:
    images, sizes = random_images(2, 64, 96), torch.tensor([[64, 96], [40, 70]])
    with torch.no_grad():
        together = network(images, sizes)
        for i in range(2):
            alone = network(images[i : i + 1], sizes[i : i + 1])
            for a, b in zip(together, alone, strict=True):
                torch.testing.assert_close(a[i], b[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size_hw", [(64, 96), (96, 32), (33, 47), (130, 65)])
def test_there_is_one_prediction_for_each_point_at_any_size(network: FCOS, size_hw: tuple[int, int]) -> None:
    with torch.no_grad():
        output = network(random_images(1, *size_hw), torch.tensor([size_hw]))
    num_points = len(network.grid(size_hw).points)
    assert output.logits.shape == (1, num_points, 3)
    assert output.distances.shape == (1, num_points, 4)
    assert output.quality is not None
    assert output.quality.shape == (1, num_points)
    assert network.num_classes == 3


def test_p6_and_p7_round_up(network: FCOS) -> None:
    assert network.grid((160, 224)).level_sizes == ((20, 28), (10, 14), (5, 7), (3, 4), (2, 2))
    with torch.no_grad():
        levels = network.pyramid(network.backbone(torch.zeros(1, 3, 160, 224)))
    assert tuple(tuple(level.shape[2:]) for level in levels) == network.grid((160, 224)).level_sizes


def test_memory_order_of_the_images_does_not_change_the_result(network: FCOS) -> None:
    images, sizes = random_images(2, 64, 96), torch.tensor([[64, 96], [40, 70]])
    with torch.no_grad():
        expected = network(images, sizes)
        network = network.to(memory_format=torch.channels_last)
        found = network(images.contiguous(memory_format=torch.channels_last), sizes)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_training_and_evaluation_give_the_same_predictions(network: FCOS) -> None:
    images, sizes = random_images(1, 64, 64), torch.tensor([[64, 64]])
    with torch.no_grad():
        torch.testing.assert_close(network.train()(images, sizes), network.eval()(images, sizes))


def test_statistics_of_the_pixels_travel_with_the_weights(network: FCOS) -> None:
    state = network.state_dict()
    assert state["pixel_mean"].flatten().tolist() == pytest.approx([123.675, 116.28, 103.53])
    assert state["pixel_std"].flatten().tolist() == pytest.approx([58.395, 57.12, 57.375])


@pytest.mark.parametrize("num_boxes", [0, 1])
def test_every_trained_parameter_gets_a_gradient(network: FCOS, num_boxes: int) -> None:
    images, sizes = random_images(1, 64, 64), torch.tensor([[64, 64]])
    grid = network.grid((64, 64))
    boxes = torch.tensor([[5.0, 5.0, 50.0, 45.0]])[:num_boxes]
    targets = StaticAssigner(RANGES, 1.5)(grid, [boxes], [torch.tensor([1])[:num_boxes]])
    losses = FcosLoss()(network.train()(images, sizes), grid, targets, targets.normalizers())
    torch.stack(list(losses.values())).sum().backward()
    trained = {name: p.grad for name, p in network.named_parameters() if p.requires_grad}
    assert [name for name, gradient in trained.items() if gradient is None] == []
    assert all(gradient.isfinite().all() for gradient in trained.values() if gradient is not None)
    assert network.head.logits.weight.grad is not None
    assert network.head.logits.weight.grad.abs().sum() > 0
