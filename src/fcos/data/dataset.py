"""Records to samples: decode, turn upright, resize, augment."""

from __future__ import annotations

import numpy as np
import torch
from torch.utils.data import Dataset

from fcos.data.annotations import Annotations, Record
from fcos.data.batch import GroundTruth, Sample
from fcos.data.image import DecodedImage, EnoughSize, read_image, read_reduced
from fcos.data.sampler import stream_seed
from fcos.data.transforms import EvalTransform, TrainTransform


class TrainDataset(Dataset[Sample]):
    """Training samples; the same (index, position) gives the same sample, in any process.

    Args:
        annotations: of the training images; crowd regions are no targets.
        transform: resizing and augmentation.
        seed: of the augmentation.
        batch_size: images of one optimizer step; what augmentation draws for a whole step, they share.
    """

    def __init__(
        self, annotations: Annotations, transform: TrainTransform, seed: int, batch_size: int
    ) -> None:
        self.annotations, self.transform = annotations, transform
        self.seed, self.batch_size = seed, batch_size

    def __len__(self) -> int:
        return len(self.annotations)

    def __getitem__(self, place: tuple[int, int]) -> Sample:
        index, position = place
        record = self.annotations[index]
        decoded, truth = read_sample(record, self.transform.enough)
        with torch.random.fork_rng(devices=[]):
            turned = self.transform.augment.quarter_turns and self._turns(position // self.batch_size)
            # torch.manual_seed keeps a stack trace for GPUs: a third of the time of a small image
            torch.default_generator.manual_seed(stream_seed(self.seed, position))
            image, boxes, labels = self.transform(
                decoded.pixels, truth.boxes_xyxy, truth.labels, turned=turned
            )
        return Sample(image, GroundTruth(boxes, labels), record.image_id, decoded.size_hw, position)

    def _turns(self, step: int) -> bool:
        """Whether the images of a step are turned; another stream of seeds than that of positions."""
        return stream_seed(self.seed, -1 - step) % 2 == 1


class EvalDataset(Dataset[Sample]):
    """Evaluation samples: resized only, no ground truth (the metric reads it from the annotations)."""

    def __init__(self, annotations: Annotations, transform: EvalTransform) -> None:
        self.annotations, self.transform = annotations, transform

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
    """Upright image (`enough` as in `read_reduced`) and its boxes to learn from, without crowd regions.

    Boxes are clipped to the image and in the frame of its pixels, reduced or not.
    """
    decoded = read_reduced(record.path, enough)
    height, width = decoded.size_hw
    learned = ~record.is_crowd
    boxes = record.boxes_xyxy[learned].clip(0, (width, height, width, height))
    boxes = decoded.boxes_in_pixels(boxes).astype(np.float32)
    return decoded, GroundTruth(torch.from_numpy(boxes), torch.from_numpy(record.labels[learned]))
