"""Repeat-factor sampling (LVIS, arXiv 1908.03195): images of rare classes are repeated in an epoch.

A class in a fraction f of the images has the factor max(1, sqrt(t / f)); an image has the largest factor of
its classes. Fractional factors are rounded at random in each epoch.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Float64, Int64
from numpy.typing import NDArray
from torch import Tensor

from fcos.data.annotations import Annotations


def images_per_class(annotations: Annotations, *, crowds: bool = False) -> NDArray[np.int64]:
    """Number of images in which each class has a box; crowd regions count only with `crowds`."""
    chosen = annotations.has_known_class & (crowds | ~annotations.is_crowd)
    num_classes = annotations.num_classes
    # An image and a class as one number, so that each counts once.
    pairs = np.unique(annotations.image_of_box[chosen] * num_classes + annotations.labels[chosen])
    return np.bincount(pairs % max(1, num_classes), minlength=num_classes)


def repeat_factors(annotations: Annotations, threshold: float) -> Float64[Tensor, " images"] | None:
    """How often to use each image in an epoch, at least once; None if all are used once.

    Factors are scaled up so that their sum is an integer: every epoch has the same length, so a position in
    the stream gives its epoch without going through the previous ones.

    Args:
        threshold: t above; classes in a smaller fraction of the images are repeated.
    """
    share = images_per_class(annotations) / len(annotations)
    of_class = np.sqrt(np.maximum(1, threshold / np.maximum(share, 1 / len(annotations))))
    if (of_class == 1).all():
        return None
    learned = ~annotations.is_crowd & annotations.has_known_class
    factors = np.ones(len(annotations))
    np.maximum.at(factors, annotations.image_of_box[learned], of_class[annotations.labels[learned]])
    total = float(factors.sum())
    return torch.from_numpy(factors * (math.ceil(round(total, 6)) / total))


def epoch_length(factors: Float64[Tensor, " images"]) -> int:
    """Number of images in an epoch, including repeats."""
    return round(float(factors.sum()))


def repeated(
    order: Int64[Tensor, " images"], factors: Float64[Tensor, " images"], random: torch.Generator
) -> Int64[Tensor, " places"]:
    """The images of an epoch in random order, each repeated by its factor, rounded up or down.

    Image i is repeated once for each integer between the cumulative sums of factors before and after it, all
    shifted by one random number: the expected count is the factor, and the total is always the same.

    Args:
        order: the images, in random order.
    """
    ends = factors[order].cumsum(0)
    ends[-1] = epoch_length(factors)
    ends = (ends + torch.rand((), generator=random, dtype=torch.float64)).floor().long()
    places = order.repeat_interleave(ends.diff(prepend=ends.new_zeros(1)))
    return places[torch.randperm(len(places), generator=random)]
