"""From a record to a batch: decode, turn upright, resize, augment, pad.

A batch goes from the loader to the device with its pixels in 0..255, and its ground truth.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, Real
from torch import Tensor
from torch.utils.data import Dataset

from fcos.data.annotations import Annotations, Record
from fcos.data.image import DecodedImage, EnoughSize, read_image, read_reduced
from fcos.data.mixing import NO_MIXING, Mixing
from fcos.data.transforms import Augmented, EvalTransform, TrainTransform, pad


@dataclass(frozen=True)
class GroundTruth:
    """Ground-truth boxes of one image of a batch."""

    boxes_xyxy: Float[Tensor, "boxes 4"]  # xyxy, network input pixels
    labels: Int64[Tensor, " boxes"]  # 0-based, contiguous


@dataclass(frozen=True)
class Sample:
    """One image, resized and augmented, before padding."""

    image: Real[Tensor, "3 height width"]  # RGB in 0..255, uint8 (float32 from a resize that does not round)
    ground_truth: GroundTruth  # in the frame of `image`
    image_id: int  # as in `Record`
    original_size_hw: tuple[int, int]  # of the upright image file, before resizing
    position: int  # in the training stream (in evaluation: index); seeds the augmentation


@dataclass(frozen=True)
class Batch:
    """Samples padded (bottom, right) to one size."""

    images: Real[Tensor, "batch 3 height width"]  # RGB in 0..255, uint8 or float32; padded with zeros
    sizes_hw: Int64[Tensor, "batch 2"]  # of each image inside the padding
    ground_truth: tuple[GroundTruth, ...]
    image_ids: tuple[int, ...]
    original_sizes_hw: Int64[Tensor, "batch 2"]  # of each upright image file
    positions: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.sizes_hw)

    def to(self, device: torch.device, memory_format: torch.memory_format = torch.preserve_format) -> Batch:
        """The batch on another device, with this memory format; does not wait for the copy."""
        images = self.images.to(device, non_blocking=True, memory_format=memory_format)
        return replace(self._moved(lambda tensor: tensor.to(device, non_blocking=True)), images=images)

    def padded_to(self, size_hw: tuple[int, int]) -> Batch:
        """The batch with more padding."""
        height, width = self.images.shape[2:]
        return replace(self, images=F.pad(self.images, (0, size_hw[1] - width, 0, size_hw[0] - height)))

    def pin_memory(self) -> Batch:
        """The batch in page-locked memory; the loader calls this if there is a GPU."""
        return replace(self._moved(Tensor.pin_memory), images=self.images.pin_memory())

    def _moved(self, move: Callable[[Tensor], Tensor]) -> Batch:
        """The batch with everything but the images moved."""
        return replace(
            self,
            sizes_hw=move(self.sizes_hw),
            ground_truth=tuple(GroundTruth(move(t.boxes_xyxy), move(t.labels)) for t in self.ground_truth),
            original_sizes_hw=move(self.original_sizes_hw),
        )


@dataclass(eq=False)
class TrainDataset(Dataset[Sample]):
    """Training samples; the same (index, position) gives the same sample, in any process.

    Attributes:
        annotations: of the training images; crowd regions are not targets.
        batch_size: images per optimizer step; they share augmentation that is drawn once per step.
    """

    annotations: Annotations
    transform: TrainTransform
    seed: int
    batch_size: int
    mixing: Mixing = NO_MIXING

    def __len__(self) -> int:
        return len(self.annotations)

    def __getitem__(self, place: tuple[int, int]) -> Sample:
        index, position = place
        # Whether the images of a step are turned: from a separate stream of seeds, not that of positions.
        step_seed = stream_seed(self.seed, -1 - position // self.batch_size)
        turned = self.transform.augment.quarter_turns and step_seed % 2 == 1

        def augmented(index: int) -> tuple[Augmented, tuple[int, int]]:
            decoded, truth = read_sample(self.annotations[index], self.transform.enough)
            arguments = decoded.pixels, truth.boxes_xyxy, truth.labels
            return self.transform(*arguments, turned=turned), decoded.size_hw

        with torch.random.fork_rng(devices=[]):
            # torch.manual_seed keeps a stack trace for GPUs: a third of the time of a small image
            torch.default_generator.manual_seed(stream_seed(self.seed, position))
            first, size_hw = augmented(index)
            image, boxes, labels = self.mixing(
                first, position, lambda: augmented(int(torch.randint(len(self), ())))[0]
            )
        image_id = self.annotations[index].image_id
        return Sample(image, GroundTruth(boxes, labels), image_id, size_hw, position)


def stream_seed(seed: int, position: int) -> int:
    """A seed for (seed, position); hashed, so that neighbors are unrelated."""
    mixed = (seed * 0x9E3779B97F4A7C15 + position * 0xBF58476D1CE4E5B9 + 0x94D049BB133111EB) % 2**64
    mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
    mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) % 2**64
    return (mixed ^ (mixed >> 31)) % 2**63


@dataclass(eq=False)
class EvalDataset(Dataset[Sample]):
    """Evaluation samples: resized only, no ground truth (the metric reads it from the annotations)."""

    annotations: Annotations
    transform: EvalTransform

    def __len__(self) -> int:
        return len(self.annotations)

    def __getitem__(self, place: tuple[int, int]) -> Sample:
        index, position = place
        record = self.annotations[index]
        image = read_image(record.path)
        nothing = GroundTruth(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
        return Sample(
            self.transform(image), nothing, record.image_id, (image.shape[1], image.shape[2]), position
        )


def read_sample(record: Record, enough: EnoughSize | None = None) -> tuple[DecodedImage, GroundTruth]:
    """An upright image (`enough` as in `read_reduced`) and its ground truth, without crowd regions.

    Boxes are clipped to the image, and in pixels of the decoded image, reduced or not.
    """
    decoded = read_reduced(record.path, enough)
    height, width = decoded.size_hw
    learned = ~record.is_crowd
    boxes = record.boxes_xyxy[learned].clip(0, (width, height, width, height))
    boxes = decoded.boxes_in_pixels(boxes).astype(np.float32)
    return decoded, GroundTruth(torch.from_numpy(boxes), torch.from_numpy(record.labels[learned]))


def collate(samples: Sequence[Sample], multiple: int, *, shared: bool = False) -> Batch:
    """Pad samples at the bottom and right to one size divisible by `multiple`; channels last in memory.

    With `shared` memory, a loader worker passes a batch to the main process without a copy.
    """
    zeros = _shared_zeros if shared else torch.zeros
    images, sizes_hw = pad([sample.image for sample in samples], multiple, zeros)
    return Batch(
        images,
        sizes_hw,
        tuple(s.ground_truth for s in samples),
        tuple(s.image_id for s in samples),
        torch.tensor([s.original_size_hw for s in samples]),
        tuple(s.position for s in samples),
    )


def _shared_zeros(shape: tuple[int, ...], *, dtype: torch.dtype) -> Tensor:
    num_bytes = math.prod(shape) * dtype.itemsize
    storage = torch.UntypedStorage._new_shared(num_bytes)  # type: ignore[no-untyped-call]  # fresh: zeros
    return torch.empty(0, dtype=dtype).set_(storage).view(shape)
