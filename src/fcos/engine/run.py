"""A whole run: settings to data, model and run folder, then the loop, then pictures of the result."""

from __future__ import annotations

import importlib.metadata
import json
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from lightning_fabric import Fabric

from fcos.build import MODEL_SETTINGS, build_model
from fcos.config import TrainConfig, dump_config
from fcos.config_rules import check_backbone, check_classes, check_paths, split_batch
from fcos.data.annotations import Annotations
from fcos.data.check import check, common_pictures, drop_invalid
from fcos.data.classes import with_classes_of
from fcos.data.formats import read_annotations, read_names
from fcos.engine.checkpoint import check_same_settings, load_checkpoint
from fcos.engine.devices import build_fabric
from fcos.engine.log import track
from fcos.engine.train import Trainer
from fcos.model.pretrained import load_imagenet_weights
from fcos.model.weights import ModelCard


@dataclass(frozen=True)
class Run:
    """What `train` leaves.

    Attributes:
        folder: of the run.
        finished: False if a signal stopped it; `load=true` goes on.
    """

    folder: Path
    finished: bool


def train(config: TrainConfig) -> Run:
    """Train as the settings say; goes on with a stopped run where they say `load`.

    With more than one device, the other processes run the same command again: from a script of your own,
    protect the entry point with ``if __name__ == "__main__"``.
    """
    check_paths(config)
    check_backbone(config)
    fabric = build_fabric(config)
    fabric.launch()
    micro_batch, accumulation = split_batch(config.nbatch_train, fabric.world_size, config.micro_batch)
    train_set, eval_set = load_data(config, fabric)

    folder = Path(fabric.broadcast(str(find_run_folder(Path(config.run_folder), load=config.load))))
    checkpoint = load_checkpoint(folder / "last.ckpt") if config.load else None
    if checkpoint is not None:
        check_same_settings(checkpoint["config"], config.model_dump(mode="json"), folder / "last.ckpt")

    torch.manual_seed(config.seed)
    model = build_model(config, train_set.num_classes)
    if config.pretrain and checkpoint is None:
        say(fabric, f"backbone: ImageNet weights from {load_imagenet_weights(model.backbone, config.backbone, config.pretrain)}")
    if fabric.is_global_zero:
        folder.mkdir(parents=True, exist_ok=True)
        dump_config(config.model_copy(update={"load": False, "run_folder": str(folder)}), folder / "config.json")
    fabric.barrier()

    card = ModelCard(
        settings={key: value for key, value in config.model_dump(mode="json").items() if key in MODEL_SETTINGS},
        class_names=train_set.class_names,
        category_ids=train_set.category_ids,
        versions={name: importlib.metadata.version(name) for name in ("fcos-torch", "torch", "timm")},
    )
    trainer = Trainer(fabric, config, model, train_set, eval_set, folder, micro_batch, accumulation, card)
    if checkpoint is not None:
        trainer.restore(checkpoint)
        say(fabric, f"going on after step {trainer.state.step} of {trainer.total_steps}")
    say(fabric, describe(trainer))
    finished = trainer.fit()
    if fabric.is_global_zero and finished and eval_set is not None and config.save:
        draw(folder, eval_set)
    if not finished:
        say(fabric, f"stopped after step {trainer.state.step}; go on with: fcos train {folder / 'config.json'} load=true")
    return Run(folder, finished)


def load_data(config: TrainConfig, fabric: Fabric) -> tuple[Annotations, Annotations | None]:
    """Training and evaluation annotations, checked on the first process before anything else happens."""
    names = None
    if config.name_file:
        names, had_background = read_names(Path(config.name_file))
        if not had_background:
            say(fabric, f"{config.name_file} does not begin with 'background': every line is a class")
    train_set = read_annotations(
        Path(config.list_train), root=_folder(config.root_train), names=names, format=config.data_format
    )
    check_classes(config, train_set.class_names)
    train_set = usable(train_set, "training", config, fabric)
    if not config.list_eval:
        say(fabric, "no list_eval: nothing is measured, and the last model is the result")
        return train_set, None
    eval_set = read_annotations(
        Path(config.list_eval), root=_folder(config.root_eval), names=names, format=config.data_format
    )
    eval_set = with_classes_of(usable(eval_set, "evaluation", config, fabric), train_set.class_names)
    if common := common_pictures(train_set, eval_set):
        say(
            fabric,
            f"warning: {len(common)} pictures are in both training and evaluation, for example {common[0][0].name}: "
            "the numbers will be too good",
        )
    return train_set, eval_set


def usable(annotations: Annotations, what: str, config: TrainConfig, fabric: Fabric) -> Annotations:
    """The annotations after the data check; refuses problems unless told to leave them out."""
    report = None
    if fabric.is_global_zero:
        report = check(annotations, track=partial(track, what=f"checking {what} pictures"))
        if not config.skip_invalid:
            report.raise_problems()
        if report.problems:
            say(fabric, f"{what}: {report.summary()} and are left out")
    report = fabric.broadcast(report)
    assert report is not None
    return drop_invalid(annotations, report)


def find_run_folder(wanted: Path, *, load: bool) -> Path:
    """The folder to write to: a new one (`name`, `name-2`, ...), or with `load` the newest that is there."""
    if wanted.name and not wanted.exists():
        return wanted
    numbered = [wanted]
    while (following := wanted.with_name(f"{wanted.name}-{len(numbered) + 1}")).exists():
        numbered.append(following)
    if not load:
        return wanted if not any(wanted.iterdir()) else following
    with_checkpoint = [folder for folder in numbered if (folder / "last.ckpt").is_file()]
    return max(with_checkpoint, key=lambda folder: (folder / "last.ckpt").stat().st_mtime, default=wanted)


def describe(trainer: Trainer) -> str:
    """What is about to be trained, in a few lines."""
    config, fabric = trainer.config, trainer.fabric
    millions = sum(parameter.numel() for parameter in trainer.model.parameters()) / 1e6
    device = f"{fabric.world_size} x {fabric.device.type}" if fabric.world_size > 1 else str(fabric.device)
    evaluation = f", {len(trainer.eval_set)} for evaluation" if trainer.eval_set is not None else ""
    return (
        f"{config.model} ({config.backbone}, {millions:.1f} M parameters), {trainer.train_set.num_classes} classes, "
        f"{len(trainer.train_set)} images for training{evaluation}\n"
        f"{config.epoches} epochs, {trainer.total_steps} steps of {config.nbatch_train} images "
        f"({trainer.accumulation} x {trainer.micro_batch} on each device), {device}, {config.precision}\n"
        f"run folder: {trainer.run}"
    )


def draw(folder: Path, eval_set: Annotations) -> None:
    """Curves and report of a finished run."""
    from fcos.plots.curves import plot_curves
    from fcos.plots.report import write_report

    plot_curves([folder], folder / "curves.png")
    results = json.loads((folder / "results.json").read_text())
    write_report(folder, annotations=eval_set, results=results)


def say(fabric: Fabric, text: str) -> None:
    """A line for the user, from one process."""
    if fabric.is_global_zero:
        print(text, file=sys.stderr, flush=True)


def _folder(path: str) -> Path | None:
    return Path(path) if path else None
