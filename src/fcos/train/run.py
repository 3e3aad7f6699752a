"""A whole run: build data, model and run folder from the settings, then run the loop."""

from __future__ import annotations

import math
import signal
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning_fabric import Fabric

from fcos.config import TrainConfig, dump_config
from fcos.config.checks import check_paths, split_batch
from fcos.data.annotations import Annotations
from fcos.data.summary import write_summaries
from fcos.errors import TrainingError
from fcos.machine import package_versions
from fcos.model.backbone import check_backbone
from fcos.model.build import build_model
from fcos.predict.stop import StopSignal
from fcos.terminal import counted
from fcos.train.callbacks import Callback
from fcos.train.checkpoint import (
    check_checkpoint,
    check_same_settings,
    load_checkpoint,
    resume_command,
    settings_of,
    without_new_presets,
)
from fcos.train.data import check_same_everywhere, load_data
from fcos.train.devices import build_fabric, local_world_size, slow_precision
from fcos.train.launch import launched
from fcos.train.length import LENGTH_SETTINGS
from fcos.train.log import say
from fcos.train.loggers import check_loggers
from fcos.train.loop import Trainer
from fcos.train.micro_batch import find_micro_batch
from fcos.train.optimizer import Schedule
from fcos.train.recompute import backbone_blocks
from fcos.train.run_folder import (
    FolderInUseError,
    check_run_folder,
    find_run_folder,
    in_use,
    is_fresh,
    is_named_exactly,
    next_run_folder,
    numbered_folders,
)
from fcos.train.throughput import too_many_workers
from fcos.weights.imagenet import load_imagenet_weights
from fcos.weights.load import LoadedModel, model_settings
from fcos.weights.model_file import ModelCard
from fcos.weights.published.coco import coco_file
from fcos.weights.start import adopt, adopt_settings, find_start, load_start


class Trained(NamedTuple):
    """Data and device of a finished training run."""

    train_set: Annotations
    eval_set: Annotations | None
    device: torch.device


@dataclass(frozen=True)
class Run:
    """The result of `train`.

    Attributes:
        finished: False if a signal stopped it; `load=true` resumes it.
        exit_code: for the command line: 0, or 128 plus the signal, as in shells (on the first process).
        trained: its data, for the report; only on the first process, and only if training finished in this
            call.
    """

    folder: Path
    finished: bool
    exit_code: int = 0
    trained: Trained | None = None


def train(config: TrainConfig, callbacks: Sequence[Callback] = ()) -> Run:
    """Train with these settings; with `load`, resume a stopped run.

    With more than one device, the other processes run the same command again: in your own script, protect the
    entry point with ``if __name__ == "__main__"``.
    """
    check_paths(config)
    check_backbone(config.backbone, config.origin("backbone"))
    check_loggers(config)
    check_run_folder(config)
    fabric = build_fabric(config.device, config.num_processes, config.precision)
    with launched(fabric), ExitStack() as held, memory_in_words(fabric):
        config, folder, checkpoint = claim(config, fabric, held)
        if checkpoint is not None and is_finished(config, checkpoint):
            say(fabric, already_finished(folder, config, checkpoint))
            return Run(folder, True)
        start = None
        if checkpoint is None:  # a resumed run does not need its initial weights, which may be gone
            config, start = adopt_start(config, fabric)
        trainer = prepare(config, fabric, start, folder, checkpoint, held, callbacks)
        say(fabric, describe(trainer))
        if fabric.is_global_zero:
            for warning in warnings_about(trainer):
                say(fabric, f"warning: {warning}")
        with StopSignal(announce=fabric.is_global_zero) as stop:
            finished = trainer.fit(stop)
        if not finished:
            say(fabric, how_to_resume(trainer))
            exit_code = 128 + (stop.number or signal.SIGTERM) if fabric.is_global_zero else 0
            return Run(trainer.run, finished, exit_code)
        trained = Trained(trainer.train_set, trainer.eval_set, fabric.device)
    return Run(trainer.run, finished, trained=trained if fabric.is_global_zero else None)


def adopt_start(config: TrainConfig, fabric: Fabric) -> tuple[TrainConfig, LoadedModel | None]:
    """The detector that training starts from, if any, and the settings with those adopted from it."""
    if config.pretrain == "coco":
        if fabric.is_global_zero:
            coco_file()
        fabric.barrier()  # the others wait for the download
    start = find_start(config)
    if start is None:
        return config, None
    config, changes = adopt_settings(config, start)
    if changes:
        say(fabric, f"settings adopted from {start.path.name}: {', '.join(changes)}")
    return config, start


def claim(
    config: TrainConfig, fabric: Fabric, held: ExitStack
) -> tuple[TrainConfig, Path, dict[str, Any] | None]:
    """Find the run folder; with `load`, lock it, read its checkpoint, and adapt the settings to it.

    A new folder is created and locked later, once the data is known to be usable (`prepare`).
    """
    wanted = Path(config.run_folder)
    exact = is_named_exactly(config)
    folder = Path(fabric.broadcast(str(find_run_folder(wanted, load=config.load, exact=exact))))
    if not config.load:
        return config, folder, None
    file, checkpoint = folder / "last.ckpt", None
    if fabric.is_global_zero:  # read once: the run folder is on the first machine
        check_checkpoint(file)
        held.enter_context(in_use(folder))
        if not exact and len(numbered_folders(wanted)) > 1:
            say(fabric, f"resuming the newest run of {wanted}: {folder}")
        checkpoint = load_checkpoint(file)
    checkpoint = fabric.broadcast(checkpoint)
    assert checkpoint is not None
    config = without_new_presets(config, checkpoint)
    if isinstance(config.pretrain, str):
        config, _ = adopt(config, settings_of(checkpoint), file)
    check_same_settings(settings_of(checkpoint), config.model_dump(mode="json"), file)
    return config, folder, checkpoint


def is_finished(config: TrainConfig, checkpoint: dict[str, Any]) -> bool:
    """Whether the run has already finished; more epochs do not extend a run that reached its time limit."""
    former, state = settings_of(checkpoint), checkpoint["state"]
    changed = [key for key in LENGTH_SETTINGS if getattr(config, key) != former[key]]
    if state.get("decided_by") == "time_limit" and "time_limit" not in changed:
        changed = []
    return not changed and bool(state.get("finished", state["epoch_evaluated"] == former["epochs"]))


def prepare(
    config: TrainConfig,
    fabric: Fabric,
    start: LoadedModel | None,
    folder: Path,
    checkpoint: dict[str, Any] | None,
    held: ExitStack,
    callbacks: Sequence[Callback] = (),
) -> Trainer:
    """Data, model and run folder; restored from a checkpoint if there is one."""
    micro_batch, accumulation = split_batch(config.nbatch_train, fabric.world_size, config.micro_batch)
    train_set, eval_set, cards = load_data(config, fabric)
    if config.micro_batch == "auto":
        share = micro_batch
        micro_batch = find_micro_batch(config, fabric, train_set, share, checkpoint)
        accumulation = share // micro_batch

    torch.manual_seed(config.seed)
    model = build_model(config, train_set.num_classes)
    if checkpoint is None:
        if fabric.is_global_zero:
            folder = hold_new_folder(Path(config.run_folder), folder, held)
        folder = Path(fabric.broadcast(str(folder)))
        if start is not None:
            known = load_start(model, train_set.class_names, start)
            shared = f"including the outputs of {', '.join(known)}" if known else "except its class outputs"
            say(fabric, f"detector: weights of {start.card.origin or 'fcos'} from {start.path}, {shared}")
        elif config.pretrain:
            source = load_imagenet_weights(model.backbone, config.backbone, config.pretrain)
            say(fabric, f"backbone: ImageNet weights from {source}")
        if fabric.is_global_zero:
            dump_config(config.model_copy(update={"run_folder": str(folder)}), folder / "config.json")
            write_summaries(cards, folder)
    fabric.barrier()

    card = ModelCard(
        settings=model_settings(config),
        class_names=train_set.class_names,
        category_ids=train_set.category_ids,
        versions=package_versions("fcos-torch", "torch", "timm"),
    )
    check_same_everywhere(fabric, train_set, eval_set)
    trainer = Trainer(
        fabric, config, model, train_set, eval_set, folder, micro_batch, accumulation, card, callbacks
    )
    if checkpoint is not None:
        trainer.restore(checkpoint)
        say(fabric, f"resuming after step {trainer.state.step} of {trainer.state.total_steps}")
        former = settings_of(checkpoint)
        if any(getattr(config, key) != former[key] for key in LENGTH_SETTINGS):
            before = trainer.take_step.schedule
            trainer.extend()
            say(fabric, extended(trainer, before, former["epochs"]))
            if fabric.is_global_zero:  # so that the next `load=true` resumes with these settings
                as_new = config.model_copy(update={"run_folder": str(folder), "load": False})
                dump_config(as_new, folder / "config.json")
    return trainer


def hold_new_folder(wanted: Path, folder: Path, held: ExitStack) -> Path:
    """Create the folder of a new run; use the next number of `wanted` if another run has just taken it."""
    lock = ExitStack()
    try:
        lock.enter_context(in_use(folder))
    except FolderInUseError:
        return hold_new_folder(wanted, next_run_folder(wanted), held)
    if not is_fresh(folder):
        lock.close()
        return hold_new_folder(wanted, next_run_folder(wanted), held)
    held.enter_context(lock)
    return folder


def describe(trainer: Trainer) -> str:
    """Describe the run in a few lines."""
    config, fabric = trainer.config, trainer.fabric
    millions = sum(parameter.numel() for parameter in trainer.model.parameters()) / 1e6
    device = f"{fabric.world_size} x {fabric.device.type}" if fabric.world_size > 1 else str(fabric.device)
    evaluation = f", {len(trainer.eval_set):,} for evaluation" if trainer.eval_set is not None else ""
    repeated = (
        f", {trainer.images_per_epoch:,} in an epoch with repeats" if trainer.factors is not None else ""
    )
    is_split = trainer.micro_batch < config.nbatch_train
    split = f" ({trainer.accumulation} x {trainer.micro_batch} on each device)" if is_split else ""
    return (
        f"{config.model} ({config.backbone}, {millions:.1f} M parameters), "
        f"{counted(trainer.train_set.num_classes, 'class', 'classes')}, "
        f"{counted(len(trainer.train_set), 'image')} for training{repeated}{evaluation}\n"
        f"{counted(config.epochs, 'epoch')}, {counted(trainer.state.total_steps, 'step')} of "
        f"{counted(config.nbatch_train, 'image')}{split}, {device}, {config.precision}\n"
        f"learning rate {config.lr_base:g} ({config.origin('lr_base')})\n"
        f"run folder: {trainer.run}"
    )


def warnings_about(trainer: Trainer) -> Iterator[str]:
    """Warnings about settings that are valid, but rarely intended."""
    config, fabric = trainer.config, trainer.fabric
    if too_many := too_many_workers(config, local_world_size(fabric)):
        yield too_many
    if slow := slow_precision(config.precision, fabric.device.type):
        yield slow
    if config.activation_checkpointing and not backbone_blocks(trainer.model):
        yield (
            f"activation_checkpointing has no effect on the backbone: {config.backbone} has no blocks; "
            "it saves memory only in the head"
        )
    if config.pretrain is False and (config.freeze_stages or config.freeze_bn):
        yield (
            "pretrain=false, but freeze_stages and freeze_bn freeze random weights: set freeze_stages=0 and "
            "freeze_bn=false"
        )
    evaluations = math.ceil(config.epochs / config.eval_epochs)
    if config.patience and config.patience >= evaluations - 1:  # the first one is the best so far
        yield (
            f"patience={config.patience} cannot end training early: there are only "
            f"{counted(evaluations, 'evaluation')} (epochs={config.epochs}, eval_epochs={config.eval_epochs})"
        )
    yield from trainer.take_step.schedule.problems()


def how_to_resume(trainer: Trainer) -> str:
    """The command that resumes a stopped run."""
    stopped = f"stopped after step {trainer.state.step} of {trainer.state.total_steps}"
    if not trainer.config.save:
        return f"{stopped}; nothing was saved, because save=false"
    return f"{stopped}; resume with: {resume_command(trainer.run)}"


def already_finished(folder: Path, config: TrainConfig, checkpoint: dict[str, Any]) -> str:
    """The message about a run that has already finished."""
    state, longer = checkpoint["state"], f"epochs={2 * config.epochs}"
    ended = f"has completed all {counted(config.epochs, 'epoch')}"
    if state.get("decided_by") == "time_limit":
        ended, longer = "has reached its time_limit", f"time_limit={2 * (config.time_limit or 0):g}"
    elif state.get("decided_by") == "patience":
        ended, longer = "was ended by patience", f"patience={2 * (config.patience or 0)}"
    elif state.get("decided_by") == "callback":
        ended = "was ended by a callback"
    return f"already finished: {folder} {ended}\ntrain longer with: {resume_command(folder)} {longer}"


def extended(trainer: Trainer, former: Schedule, former_epochs: int) -> str:
    """Describe how a new length changes the learning rate, which depends only on step and length."""
    config, step = trainer.config, trainer.state.step
    before, after = former.factor(max(0, step - 1)), trainer.take_step.schedule.factor(step)
    done = f"extended from {former_epochs} to {counted(config.epochs, 'epoch')}"
    if config.epochs == former_epochs:
        done = f"extended to at most {counted(config.epochs, 'epoch')}"
    return (
        f"{done}: learning rate {config.lr_base * before:.3g} in the last step, "
        f"{config.lr_base * after:.3g} in the next"
    )


@contextmanager
def memory_in_words(fabric: Fabric) -> Iterator[None]:
    """Turn an out-of-memory error into advice on what to change."""
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
            raise
        raise TrainingError(
            f"out of memory on {fabric.device}: {str(error).splitlines()[0]}",
            fix="use a smaller micro_batch, or micro_batch=auto (same optimizer step), "
            "activation_checkpointing=true, precision=bf16, or a smaller view_size and short_side",
        ) from error
