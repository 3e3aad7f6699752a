"""`Detector`: the Python API of a trained model: load, predict, evaluate, train."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch

from fcos.config import TrainConfig, load_config
from fcos.data.annotations import Annotations
from fcos.data.check import valid_part
from fcos.data.formats import read_with_classes_of
from fcos.data.in_memory import Names, write_items
from fcos.data.names import with_classes_of
from fcos.data.splits import evaluation_part
from fcos.errors import ConfigError, DeviceError
from fcos.metrics.coco import CocoMetrics, evaluate_detections
from fcos.predict.device import torch_device
from fcos.predict.predictor import Predictor
from fcos.terminal import track
from fcos.weights.load import format_of, load_model

if TYPE_CHECKING:
    from fcos.train.callbacks import Callback


class Detector(Predictor):
    """A trained model, ready to use.

    detector = Detector.load("runs/train")
    detections = detector.predict("photo.jpg")
    detections.draw().show()
    """

    @classmethod
    def load(
        cls,
        source: str | os.PathLike[str],
        device: str | int | Sequence[int] | torch.device = "auto",
        *,
        agnostic_nms: bool | None = None,
        tile: int | None = None,
        overlap: float | None = None,
        tta: bool | None = None,
    ) -> Detector:
        """Load the best model of a run folder, a model file, an exported file, or published weights.

        `agnostic_nms`, `tile`, `overlap` and `tta` are as in `predict`, and apply to everything this detector
        does.

        Args:
            source: "everyday" (the detector in this package), a run folder, one of our `*.safetensors` files,
                an export of `fcos export`, or a `*.pth` file of AdelaiDet, detectron2, MMDetection, the
                official code or torchvision, which keeps its authors' preprocessing and post-processing.
            device: "auto", "cpu", "cuda", "mps", or the number of a GPU. Exported files run on the CPU.

        Raises:
            WeightsError: the file cannot be read, or is not a detector.
            DeviceError: the device is not available.
        """
        path = Path(source)
        if not isinstance(device, torch.device):
            device = [device] if isinstance(device, int) else device
            device = device if isinstance(device, str) else list(device)
            device = torch_device("cpu" if device == "auto" and format_of(path) else device)
        if format_of(path):
            from fcos.export.exported import open_exported  # not needed for a network

            exported = open_exported(path)
            if device.type != "cpu":
                raise DeviceError(
                    f"an exported file runs on the CPU, not on {device}",
                    where=str(path),
                    fix='use --device cpu (in Python device="cpu"), or the original model file',
                )
            detector = cls(exported, exported.config, exported.card, exported.path)
        else:
            detector = cls.of(load_model(path), device)
        return detector._with(agnostic_nms, tile, overlap, tta)

    @classmethod
    def train(
        cls,
        config: str | os.PathLike[str] | Mapping[str, Any] | TrainConfig,
        *,
        data: Any = None,
        eval_data: Any = None,
        names: Names | None = None,
        callbacks: Sequence[Callback] = (),
    ) -> Detector:
        """Train, and return the best model (the last one if there is no evaluation).

        Args:
            config: a train.json, its content as a dict, or the result of `load_config`.
            data: training data in memory, in place of `list_train`: a list or torch `Dataset` of (image,
                {"boxes": xyxy, "labels": ...}), or a `supervision.DetectionDataset`. They are read once and
                written to the folder `<run_folder>-data`.
            eval_data: evaluation data of the same kinds, in place of `list_eval`.
            names: class names of the labels of `data`, such as ["cat", "dog"] or {1: "cat", 3: "dog"};
                "background" at 0 is not a class. Default: `data.classes`.
            callbacks: called after each step and epoch; they may end the training.
        """
        from fcos.report.after_training import train_and_draw  # not needed to predict

        if not isinstance(config, TrainConfig):
            config = load_config(config if isinstance(config, Mapping) else Path(config))
        for split, items in (("train", data), ("eval", eval_data)):
            config = config if items is None else with_items(config, split, items, names)
        if not config.save:
            raise ConfigError(
                "with save=false there is no model to return",
                where=config.origin("save"),
                fix="remove it",
            )
        return cls.load(train_and_draw(config, callbacks).folder, config.device)

    def evaluate(
        self,
        list: Any,
        *,
        root: str | os.PathLike[str] | None = None,
        names: Sequence[str] | None = None,
        format: str = "auto",
        skip_invalid: bool = False,
        batch_size: int | None = None,
    ) -> CocoMetrics:
        """Compute COCO metrics on annotations with the classes of this model.

        Args:
            list: the annotations, as in the setting `list_eval`; a folder with splits, whose evaluation split
                is used; or data in memory, as in `train`.
            root: folder of the images.
            names: class names, if the file has none, or of the labels in memory; default: the model's.
            format: "auto", or the name of a format ("coco").
            skip_invalid: skip broken images and invalid boxes instead of raising an error.
            batch_size: images per forward pass.
        """
        if not isinstance(list, str | os.PathLike):
            of_model = dict(zip(self.category_ids, self.class_names, strict=True))
            with TemporaryDirectory() as folder:
                file = write_items(list, names or getattr(list, "classes", None) or of_model, Path(folder))
                return self.evaluate(file, skip_invalid=skip_invalid, batch_size=batch_size)
        part = evaluation_part(Path(list), None if root is None else Path(root), format)
        annotations = self.read_annotations(
            part.source, root=part.root, names=names, format=format, skip_invalid=skip_invalid
        )
        return evaluate_detections(annotations, self.predict_dataset(annotations, batch_size=batch_size))

    def read_annotations(
        self,
        source: str | os.PathLike[str],
        *,
        root: str | os.PathLike[str] | None = None,
        names: Sequence[str] | Path | None = None,
        format: str = "auto",
        skip_invalid: bool = False,
    ) -> Annotations:
        """Read annotations to evaluate on; arguments as in `evaluate`, but `names` may also be a file.

        Labels are this model's; boxes are in the frame of the upright images.

        Raises:
            DatasetError: the classes differ from the model's, or images or boxes are invalid.
        """
        source = Path(source)
        folder = None if root is None else Path(root)
        annotations = read_with_classes_of(source, self.class_names, root=folder, names=names, format=format)
        annotations = with_classes_of(annotations, self.class_names, self.category_ids)
        return valid_part(annotations, skip_invalid=skip_invalid, on_tiles=bool(self._views.tile))


def with_items(config: TrainConfig, split: str, items: Any, names: Names | None) -> TrainConfig:
    """The settings with data in memory as their "train" or "eval" list; the data is written to files."""
    key = f"list_{split}"
    if given := getattr(config, key):
        raise ConfigError(
            f'"{key}" is {given}, but data in memory is given too', where=config.origin(key), fix="keep one"
        )
    folder = Path(f"{config.run_folder}-data", split)  # both may hold 0.jpg with the same boxes
    file = write_items(items, names, folder, partial(track, what=f"writing {split} data"))
    return config.model_copy(update={key: str(file), f"root_{split}": str(folder), "data_format": "auto"})
