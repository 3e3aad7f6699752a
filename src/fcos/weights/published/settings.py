"""How to use a published weight file, as our settings (the decode profile).

Much of it is not in the file, but in the code base or its default configuration. Everything in the file is
used: widths and depths from shapes, MMDetection's configuration from the text in its files, pixel mean and
std if they are stored. If two configurations give equal files, the original file name decides; `fcos info`
says which was used.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

from torch import Tensor

from fcos.weights.published.layouts import Layout

ChannelOrder = Literal["rgb", "bgr"]

Shape = Callable[[str], tuple[int, ...] | None]  # of one of our tensors in their file

# BGR. First the official code and MMDetection's plain configuration, then the others.
CAFFE_MEAN = (102.9801, 115.9465, 122.7717)
DETECTRON_MEAN = (103.53, 116.28, 123.675)
DETECTRON_STD_OF_X101 = (58.395, 57.12, 57.375)  # RGB; only for its ResNeXt-101-32x8d, all others have 1
IMAGENET_MEAN_RGB, IMAGENET_STD_RGB = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)

# blocks of each stage, bottlenecks, groups, width of a group per 64 channels -> timm's name
RESNETS: dict[tuple[tuple[int, ...], bool, int, int], str] = {
    ((2, 2, 2, 2), False, 1, 64): "resnet18",
    ((3, 4, 6, 3), False, 1, 64): "resnet34",
    ((3, 4, 6, 3), True, 1, 64): "resnet50",
    ((3, 4, 23, 3), True, 1, 64): "resnet101",
    ((3, 8, 36, 3), True, 1, 64): "resnet152",
    ((3, 4, 6, 3), True, 32, 4): "resnext50_32x4d",
    ((3, 4, 23, 3), True, 32, 4): "resnext101_32x4d",
    ((3, 4, 23, 3), True, 32, 8): "resnext101_32x8d",
    ((3, 4, 23, 3), True, 64, 4): "resnext101_64x4d",
}
# The improved paper (2006.09214), the default of all code bases.
IMPROVED = {
    "box_activation": "relu",
    "normalize_targets": True,
    "quality": "centerness",
    "quality_tower": "box",
    "threshold_on": "class",
    "score_threshold": 0.05,
    "nms_iou": 0.6,
    "candidates_per_level": 1000,
    "detections_per_image": 100,
}
# The first paper (1904.01355): exp, pixels, centerness in the classification tower.
FIRST_VERSION = {"box_activation": "exp", "normalize_targets": False, "quality_tower": "classification"}
TORCHVISION = {
    "stride_in_1x1": False,
    "pixel_mean": list(IMAGENET_MEAN_RGB),
    "pixel_std": list(IMAGENET_STD_RGB),
    "threshold_on": "score",
    "score_threshold": 0.2,
}
MAX_CONFIG = 10**6  # characters; real ones have about ten thousand
USUAL_CHANNELS = [64, 64, 128, 256, 512]
RANGES = [64.0, 128.0, 256.0, 512.0]


def backbone_settings(shape: Shape) -> dict[str, Any] | None:
    """The ResNet of these shapes; None if timm does not have it."""
    blocks = tuple(
        next((i for i in range(100) if shape(f"backbone.body.layer{stage}.{i}.conv1.weight") is None), 100)
        for stage in (1, 2, 3, 4)
    )
    stem = shape("backbone.body.conv1.weight")
    if stem is None or 0 in blocks:
        return None
    has_bottlenecks = shape("backbone.body.layer1.0.conv3.weight") is not None
    inner, outer = ("conv2", "conv3") if has_bottlenecks else ("conv1", "conv2")
    planes, groups, share = [], 1, 64
    for stage in (1, 2, 3, 4):
        middle, last = (shape(f"backbone.body.layer{stage}.0.{conv}.weight") for conv in (inner, outer))
        if middle is None or last is None:
            return None
        planes.append(last[0] // 4 if has_bottlenecks else last[0])
        if has_bottlenecks and stage == 1:
            groups, share = middle[0] // middle[1], 64 * middle[1] // planes[0]
    name = RESNETS.get((blocks, has_bottlenecks, groups, share))
    if name is None:
        return None
    channels = [stem[0], *planes]
    return {"backbone": name, "backbone_channels": None if channels == USUAL_CHANNELS else channels}


def architecture_settings(shape: Shape) -> dict[str, Any]:
    """Settings of pyramid and head, from shapes that must exist."""
    fpn, c5 = (shape(f"pyramid.lateral.{i}.weight") or (0, 0) for i in (0, 2))
    tower = shape("head.box_tower.0.weight") or fpn
    num_levels = 3 + sum(shape(f"pyramid.extra.{i}.weight") is not None for i in (0, 1))
    extra = shape("pyramid.extra.0.weight") or (0, fpn[0])
    # the norm of the first block is a vector; without norms the second layer with weights is the next conv
    norm = "none"
    if len(shape("head.box_tower.1.weight") or ()) == 1:
        norm = "gn" if shape("head.box_tower.1.running_mean") is None else "bn"
    elif len(shape("head.box_tower.1.0.weight") or ()) == 1:
        norm = "bn_per_level"
    step = 2 if norm == "none" else 3
    num_convs = next((i for i in range(100) if shape(f"head.box_tower.{step * i}.weight") is None), 100)
    is_real_time = num_levels == 3
    return {
        "fpn_channels": fpn[0],
        "fpn_extra_from": "c5" if extra[1] == c5[1] != fpn[0] else "p5",
        "strides": [8, 16, 32, 64, 128][:num_levels],
        "regress_ranges": RANGES[: num_levels - 1],
        "head_channels": tower[0],
        "head_convs": num_convs,
        "head_norm": norm,
        # AdelaiDet's FCOS-RT has no P6 and P7, and was trained on small images
        "short_side": 512 if is_real_time else 800,
        "view_size": 736 if is_real_time else 1333,
    }


class Profile(NamedTuple):
    """How to use a network, besides its shapes.

    Attributes:
        settings: under our names.
        takes_bgr: the network takes blue, green, red.
        notes: assumptions, in sentences.
    """

    settings: dict[str, Any]
    takes_bgr: bool
    notes: tuple[str, ...] = ()


class Undecided(ValueError):
    """Neither a file nor its name says how to use it; the message is a sentence."""


def profile(
    layout: Layout,
    backbone: str,
    tensors: Mapping[str, Tensor],
    about: Mapping[str, Any],
    name: str,
    channel_order: ChannelOrder | None = None,
) -> Profile:
    """How to use the weights, besides what their shapes show.

    Args:
        layout: the code base.
        backbone: its timm name.
        tensors: of the file, under their names.
        about: the other entries of the file.
        name: of the file.
        channel_order: given by the user.

    Raises:
        Undecided: neither the file nor its name contains necessary information.
    """
    if layout.rules == "mmdetection":
        has_tricks = (
            "bbox_head.reg_convs.0.conv.bias" in tensors and "bbox_head.reg_convs.0.gn.bias" in tensors
        )
        return _mmdetection(config_text(about), name, backbone, channel_order, has_tricks=has_tricks)
    if layout.rules == "torchvision":
        return Profile(IMPROVED | TORCHVISION, takes_bgr=channel_order == "bgr")
    settings, notes = _default_settings(layout, backbone, tensors)
    if layout.rules == "official":
        if is_first_version(name):
            settings |= FIRST_VERSION
            notes.append("named like models of the first paper: exp, centerness in the classification tower")
        else:
            notes.append(
                "assumed to be a model of the improved paper (FCOS_R_50... would be the first paper)"
            )
    elif layout.rules == "detectron2":
        settings |= {"threshold_on": "score", "score_threshold": 0.2}
    elif re.search(r"(^|[_\W])iou([_\W]|$)", name.lower()):
        settings |= {"quality": "iou"}
        notes.append("its file name says that the quality branch predicts IoU")
    else:
        notes.append("unknown whether the quality branch predicts centerness or IoU; detections are the same")
    return Profile(settings, channel_order != "rgb", tuple(notes))


def _default_settings(
    layout: Layout, backbone: str, tensors: Mapping[str, Tensor]
) -> tuple[dict[str, Any], list[str]]:
    """The defaults of a code base, and a sentence that describes them."""
    settings: dict[str, Any] = {
        "stride_in_1x1": has_bottlenecks(backbone) and backbone.startswith("resnet"),
        "pixel_mean": list(reversed(CAFFE_MEAN if layout.rules == "official" else DETECTRON_MEAN)),
        "pixel_std": [1.0, 1.0, 1.0],
        **IMPROVED,
    }
    stored = [key for key in ("pixel_mean", "pixel_std") if key in tensors and tensors[key].numel() == 3]
    if stored:
        settings |= {key: tensors[key].flatten().flip(0).tolist() for key in stored}
    elif backbone == "resnext101_32x8d" and layout.rules != "official":
        settings["pixel_std"] = list(DETECTRON_STD_OF_X101)
    step = "1x1" if settings["stride_in_1x1"] else "3x3"
    of_file = f"; {' and '.join(stored)} are from the file" if stored else ""
    blocks = f"bottlenecks have their stride in the {step} convolution, " if has_bottlenecks(backbone) else ""
    return settings, [
        f"assumed as in the default configuration of {layout.origin}: {blocks}pixels are BGR, "
        f"mean {settings['pixel_mean'][::-1]}, std {settings['pixel_std'][::-1]}{of_file}; "
        "to change this, run `fcos import` with stride_in_1x1, channel_order, pixel_mean, pixel_std (both "
        "in the order RGB)"
    ]


def has_bottlenecks(backbone: str) -> bool:
    """Whether a timm ResNet or ResNeXt has blocks of three convolutions."""
    return backbone not in ("resnet18", "resnet34")


def is_first_version(name: str) -> bool:
    """Whether the name of an official file is that of a model of the first paper.

    Only the name shows it: FCOS_R_50_FPN_1x.pth has the same tensors as FCOS_imprv_R_50_FPN_1x.pth.
    """
    lower = name.lower()
    return "imprv" not in lower and re.match(r"fcos_(syncbn_)?(bs\d+_)?(r|x|mnv2)_", lower) is not None


def config_text(about: Mapping[str, Any]) -> str:
    """MMDetection's configuration in a file; empty if there is none. It is only searched, never executed."""
    meta = about.get("meta")
    texts = [meta.get(key) for key in ("config", "cfg")] if isinstance(meta, Mapping) else []
    return next((text[:MAX_CONFIG] for text in texts if isinstance(text, str)), "")


def _mmdetection(
    text: str, name: str, backbone: str, channel_order: ChannelOrder | None, *, has_tricks: bool
) -> Profile:
    """MMDetection has two recipes (the paper's and "tricks") and two kinds of ImageNet weights.

    The configuration states both. If a file has none, the biases of the towers show the recipe (only the
    "tricks" have them before group norm), and the file names of MMDetection the kind of weights.
    """
    settings = IMPROVED | ({} if has_tricks else {**FIRST_VERSION, "nms_iou": 0.5})
    flags = {
        "normalize_targets": ("norm_on_bbox", True, False),
        "box_activation": ("norm_on_bbox", "relu", "exp"),
        "quality_tower": ("centerness_on_reg", "box", "classification"),
    }
    if text:
        settings |= {key: yes if _is_true(text, flag) else no for key, (flag, yes, no) in flags.items()}
        if overlap := re.search(
            r"""nms['"]?\s*[=:]\s*(?:dict\(|\{)[^)}]{0,300}?iou_thr(?:eshold)?['"]?\s*[=:]\s*([\d.]+)""", text
        ):
            settings["nms_iou"] = float(overlap.group(1))
    mean, std = (_numbers(text, word) for word in ("mean", "std"))
    stated_style, stated_rgb = _stated_style(text), _is_true(text, "(?:bgr_)?to_rgb")
    style = stated_style or _style_of_name(name, backbone)
    states_pixels = bool(mean and std)
    if not (channel_order or states_pixels or style):
        raise Undecided(
            "it contains no configuration, and its name does not say whether its ImageNet weights were "
            'those of Caffe ("caffe": BGR, std 1, stride in the 1x1 convolutions) or of PyTorch '
            "(RGB, std 58.395, 57.12, 57.375, stride in the 3x3)"
        )
    is_rgb = stated_rgb if states_pixels else style == "pytorch"
    if channel_order is not None:
        is_rgb = channel_order == "rgb"
    style = style or ("pytorch" if is_rgb else "caffe")
    if states_pixels:
        step = 1 if stated_rgb else -1
        mean, std = mean[::step], std[::step]
    elif is_rgb:
        mean, std = list(IMAGENET_MEAN_RGB), list(IMAGENET_STD_RGB)
    else:
        usual = DETECTRON_MEAN if has_tricks or not backbone.startswith("resnet") else CAFFE_MEAN
        mean, std = list(reversed(usual)), [1.0, 1.0, 1.0]
    settings |= {
        "stride_in_1x1": style == "caffe" and has_bottlenecks(backbone) and backbone.startswith("resnet"),
        "pixel_mean": mean,
        "pixel_std": std,
    }
    if states_pixels and stated_style:
        return Profile(settings, not is_rgb, ("read from the configuration in the file",))
    kind = "tricks" if has_tricks else "plain"
    source = "as given by channel_order" if channel_order else "judging by its name"
    found = "its configuration is incomplete" if text else "the file contains no configuration"
    return Profile(
        settings,
        not is_rgb,
        (
            f"{found}: read as the {kind} one, judging by the biases of its towers, with ImageNet weights of "
            f"{'PyTorch' if style == 'pytorch' else 'Caffe'} (pixels as {'RGB' if is_rgb else 'BGR'} over "
            f"{std[0]:g}), {source}; `fcos import` corrects it with channel_order, "
            "stride_in_1x1, pixel_mean, pixel_std, box_activation, normalize_targets, quality_tower, nms_iou",
        ),
    )


def _stated_style(text: str) -> str | None:
    """`style` of the backbone in a configuration."""
    found = re.search(r"""\bstyle['"]?\s*[=:]\s*['"](caffe|pytorch)['"]""", text)
    return found.group(1) if found else None


def _style_of_name(name: str, backbone: str) -> str | None:
    """The kind of ImageNet weights, from a file name of MMDetection: `fcos_r50-caffe_fpn_...`."""
    lower = name.lower()
    if "caffe" in lower:
        return "caffe"
    # "fcos_r50_fpn_..." and "fcos_x101-64x4d_fpn_...": names without "caffe" mean PyTorch
    if re.search(r"fcos\w*[_-](r\d+|x\d+[-_]\d+x\d+d)[_-]fpn", lower) or backbone == "resnext101_64x4d":
        return "pytorch"
    return None


def _is_true(text: str, flag: str) -> bool:
    return re.search(rf"""\b{flag}['"]?\s*[=:]\s*True""", text) is not None


def _numbers(text: str, word: str) -> list[float]:
    """The three numbers after `word=[`; empty if there are none."""
    found = re.search(rf"""\b{word}['"]?\s*[=:]\s*[\[(]([^\])]{{0,200}})[\])]""", text)
    numbers = [float(part) for part in re.findall(r"\d+\.?\d*|\.\d+", found.group(1))] if found else []
    return numbers if len(numbers) == 3 else []
