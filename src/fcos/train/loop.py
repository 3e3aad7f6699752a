"""The training loop, with logging, evaluation and checkpoints between optimizer steps."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch.utils.data import DataLoader

from fcos.config import TrainConfig
from fcos.cpu.training import for_training
from fcos.data.annotations import Annotations
from fcos.data.balance import epoch_length, repeat_factors
from fcos.data.batch import Batch
from fcos.data.loader import build_train_loader, last_mixed_step
from fcos.data.workers import loading
from fcos.metrics.rows import results_json
from fcos.model.fcos import FCOS
from fcos.predict.stop import StopSignal
from fcos.train.callbacks import Callback
from fcos.train.checkpoint import RunState, check_same_data, fingerprints, save_checkpoint, written_in_run
from fcos.train.ema import Ema
from fcos.train.evaluation import evaluate
from fcos.train.length import Length
from fcos.train.log import Meter
from fcos.train.optimizer import Schedule, build_optimizer
from fcos.train.output import RunOutput
from fcos.train.recompute import recompute_activations
from fcos.train.step import OptimizerStep
from fcos.weights.model_file import ModelCard, save_model


@dataclass
class Trainer:
    """A run: its objects and its loop.

    Attributes:
        model: freshly initialized or pretrained; moved to the device here.
        run: folder of the run.
        micro_batch: images per forward pass.
        accumulation: forward passes per step on each device.
        card: for the model files.
    """

    fabric: Fabric
    config: TrainConfig
    model: FCOS
    train_set: Annotations
    eval_set: Annotations | None
    run: Path
    micro_batch: int
    accumulation: int
    card: ModelCard
    callbacks: Sequence[Callback] = ()
    state: RunState = field(default_factory=RunState)

    def __post_init__(self) -> None:
        config = self.config
        self.factors = repeat_factors(self.train_set, config.repeat_threshold)
        self.images_per_epoch = len(self.train_set) if self.factors is None else epoch_length(self.factors)
        self.steps_per_epoch = self.images_per_epoch / config.nbatch_train
        self.state.total_steps = self.steps_of(config.epochs)
        self.length = self._new_length()
        self.meter = Meter(config.nbatch_train)

        self.memory_format = torch.channels_last if config.channels_last else torch.contiguous_format
        self.model = self.model.to(self.fabric.device).to(memory_format=self.memory_format)
        self.ema = Ema(self.model, config.ema_decay) if config.ema_decay else None
        # `network` runs in training (optimized, compiled, wrapped); `model`, with which it shares weights, is
        # evaluated and saved.
        network: Any = for_training(self.model) if self.fabric.device.type == "cpu" else self.model
        if config.activation_checkpointing:
            recompute_activations(network)
        network = torch.compile(network) if config.compile else network
        self.network, self.optimizer = self.fabric.setup(network, build_optimizer(config, self.model))
        schedule, names = Schedule(config, self.state.total_steps), self.train_set.class_names
        self.take_step = OptimizerStep(
            self.fabric, config, self.model, self.network, self.optimizer, schedule, self.run, names
        )

    def _new_length(self) -> Length:
        num_eval_images = 0 if self.eval_set is None else len(self.eval_set)
        full_steps = self.steps_of(self.config.epochs)
        return Length(self.config, full_steps, self.steps_per_epoch, num_eval_images, self.state.step)

    @property
    def evaluated_model(self) -> FCOS:
        """The EMA model if there is one, else the live model."""
        return self.ema.module if self.ema else self.model

    @property
    def epoch(self) -> int:
        """Completed passes over the data."""
        return min(self.config.epochs, self.state.step * self.config.nbatch_train // self.images_per_epoch)

    def steps_of(self, epochs: int) -> int:
        """Optimizer steps of this many passes over the data."""
        return math.ceil(epochs * self.images_per_epoch / self.config.nbatch_train)

    # The loop ---------------------------------------------------------------------------------------------

    def fit(self, stop: StopSignal) -> bool:
        """Train to the end, or until a signal on any device; True if the end was reached."""
        told = self.state, self.meter, self.steps_per_epoch
        self.output = RunOutput(self.fabric, self.config, self.run, *told, self.callbacks, self.length.stop)
        self.started_at = time.monotonic() - self.state.elapsed_s
        self.network.train()
        stopping = False
        try:
            self._end_epoch()  # if the run was stopped at the end of an epoch
            while self.state.step < self.state.total_steps and not stopping:
                with loading(self._loader()) as batches:
                    stopping = self._take_steps(batches, stop)
            if not stopping:
                self._finish()
        finally:
            self.output.close()
        return not stopping

    def _take_steps(self, batches: Iterator[Batch], stop: StopSignal) -> bool:
        """Take steps until the end, a signal (then return True), or a length change that affects the data."""
        config, state = self.config, self.state
        until = last_mixed_step(config, state.total_steps)
        log_every = max(1, min(50, int(self.steps_per_epoch / 5)))
        stopping = False
        while state.step < state.total_steps and not stopping:
            with self.output.clock.waiting():
                window = [
                    next(batches).to(self.fabric.device, self.memory_format) for _ in range(self.accumulation)
                ]
            with self.output.clock.computing(config.nbatch_train):
                report, stopping = self.take_step(window, state.step, stop)
                if self.ema:
                    self.ema.update(self.model, state.step)
            state.step += 1
            state.elapsed_s = time.monotonic() - self.started_at
            is_due = self.length.after_step(state.step, state.elapsed_s)
            self.output.after_step(report)
            if self.callbacks:
                is_due = self.fabric.broadcast(is_due or self.length.stop_asked)
            changed = is_due and self._decide_length()
            if state.step % log_every == 0 or state.step == state.total_steps:
                self.output.write_averages()
            if stopping or changed or state.step % config.save_steps == 0:
                self._save()
            if not stopping:  # an evaluation may take longer than the time left before the process is killed
                self._end_epoch()
            new_until = last_mixed_step(config, state.total_steps)
            if config.mixes_images and new_until != until and max(until, new_until) > state.step:
                self.output.clock.loader_runs = False
                break  # the last part of training, without mixed images, now begins at another step
        return stopping

    def _loader(self) -> DataLoader[Batch]:
        return build_train_loader(
            self.config,
            self.train_set,
            micro_batch=self.micro_batch,
            rank=self.fabric.global_rank,
            world=self.fabric.world_size,
            start_step=self.state.step,
            total_steps=self.state.total_steps,
            factors=self.factors,
        )

    # Between steps ----------------------------------------------------------------------------------------

    def _decide_length(self) -> bool:
        """Decide how long training is; True if that has changed."""
        state = self.state
        decision = self.length.decide(state.step, state.total_steps, state.elapsed_s, state.since_best)
        decision = self.fabric.broadcast(decision)  # by the clock of the first device
        state.decided_by, former = decision.decided_by, state.total_steps
        if decision.line:
            self.output.display.line(decision.line)
        self.lay_out(decision.total_steps)
        self.output.display.resize(state.total_steps)
        return state.total_steps != former

    def lay_out(self, total_steps: int) -> None:
        """Set the length of training and of the learning-rate schedule."""
        self.state.total_steps = total_steps
        self.take_step.schedule = Schedule(self.config, total_steps)

    def _end_epoch(self) -> None:
        """At the end of an epoch: evaluate if due, write model files, decide how long to train."""
        state, epoch = self.state, self.epoch
        if epoch <= state.epoch_evaluated:
            return
        self.output.write_times(epoch)
        self._save()  # so that no step is lost if the evaluation fails
        interval = self.config.eval_epochs
        is_due = epoch // interval > state.epoch_evaluated // interval or epoch == self.config.epochs
        self._write_model(epoch, evaluate=is_due)
        state.epoch_evaluated = epoch
        self.output.tell("on_epoch", self.output.measured if is_due else {})
        self._decide_length()
        if state.step < state.total_steps:
            self._save()

    def _finish(self) -> None:
        """At the end of training, which may be in the middle of an epoch."""
        if self.meter.num_steps:
            self.output.write_averages()
        if self.state.step_measured < self.state.step:
            epoch = round(self.state.step / self.steps_per_epoch, 2)
            self.output.write_times(epoch)
            self._save()
            self._write_model(epoch, evaluate=True)
        self.state.finished = True
        self._save()

    def _write_model(self, epoch: int | float, *, evaluate: bool) -> None:
        """Write the model files, after an evaluation if requested and possible."""
        state, started_at = self.state, time.monotonic()
        if self.eval_set is not None and evaluate:
            self._evaluate(self.eval_set, epoch)
            self.length.after_evaluation(time.monotonic() - started_at)
        else:
            self._save_model_file("last", {"epoch": epoch}, self.card.threshold)
        if evaluate:
            state.step_measured = state.step
        state.elapsed_s = time.monotonic() - self.started_at
        self.meter.restart_clock()

    def _evaluate(self, annotations: Annotations, epoch: int | float) -> None:
        """Compute and log COCO metrics; write the files of the last and the best model."""
        on_batch = self.output.display.evaluating(-(-len(annotations) // self.fabric.world_size))
        self.model.eval()  # with activation_checkpointing, the EMA copy runs parts of it
        model = self.evaluated_model
        found = evaluate(self.fabric, self.config, model, self.card, annotations, on_batch)
        self.model.train()
        if found is None:
            return
        is_best = found.metrics.map_mean > self.state.best_map
        self.state.since_best = 0 if is_best else self.state.since_best + 1
        self.output.write_evaluation(epoch, found, is_best=is_best)
        self._save_model_file("last", {"epoch": epoch, **found.numbers}, found.threshold)
        if is_best:
            self.state.best_map = found.metrics.map_mean
            self._save_model_file("best", {"epoch": epoch, **found.numbers}, found.threshold)
            with written_in_run(self.run / "results.json") as partial:
                partial.write_bytes(results_json(found.rows))

    def _save_model_file(self, name: str, metrics: dict[str, Any], threshold: float) -> None:
        if self.config.save and self.fabric.is_global_zero:
            card = replace(self.card, metrics=metrics, threshold=threshold)
            with written_in_run(self.run / f"{name}.safetensors") as partial:
                save_model(partial, self.evaluated_model.state_dict(), card)

    # Resuming --------------------------------------------------------------------------------------------

    def _save(self) -> None:
        if self.config.save and self.fabric.is_global_zero:
            save_checkpoint(self.run / "last.ckpt", self.checkpoint())
        self.fabric.barrier()

    def checkpoint(self) -> dict[str, Any]:
        """Everything that the next step depends on. (The order of the data depends only on the step.)"""
        return {
            "config": self.config.model_dump(mode="json"),
            "data": fingerprints(self.train_set, self.eval_set),
            "micro_batch": self.micro_batch,
            "state": asdict(self.state),
            "meter": self.meter.state_dict(),
            "model": self.model.state_dict(),
            "ema": self.ema.module.state_dict() if self.ema else None,
            "optimizer": self.optimizer.state_dict(),
            "precision": self.fabric.strategy.precision.state_dict(),
        }

    def restore(self, checkpoint: dict[str, Any]) -> None:
        """Resume from a checkpoint."""
        data = fingerprints(self.train_set, self.eval_set)
        check_same_data(checkpoint["data"], data, self.run / "last.ckpt")
        self.state = RunState(**({"total_steps": self.state.total_steps} | checkpoint["state"]))
        self.lay_out(self.state.total_steps)
        self.meter.load_state_dict(checkpoint["meter"])
        self.model.load_state_dict(checkpoint["model"])
        if self.ema:
            self.ema.module.load_state_dict(checkpoint["ema"])
        self.optimizer.load_state_dict(checkpoint["optimizer"])
        self.fabric.strategy.precision.load_state_dict(checkpoint["precision"])

    def extend(self) -> None:
        """Extend a restored run to the length in the current settings."""
        self.state.finished, self.state.since_best = False, 0
        self.lay_out(self.steps_of(self.config.epochs))
        self.length = self._new_length()
