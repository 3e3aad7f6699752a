"""The training loop, and what happens between optimizer steps: logging, evaluation, checkpoints."""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch.utils.data import DataLoader

from fcos.config import TrainConfig
from fcos.cpu.training import for_training
from fcos.data.annotations import Annotations
from fcos.data.batch import Batch
from fcos.data.loader import build_train_loader
from fcos.data.workers import loading
from fcos.metrics.coco import measure
from fcos.metrics.rows import Rows, results_json
from fcos.model.build import build_postprocess
from fcos.model.fcos import FCOS
from fcos.predict.predictor import Predictor, TorchBackend
from fcos.predict.stop import StopSignal
from fcos.train.checkpoint import check_same_data, fingerprint, save_checkpoint, written_in_run
from fcos.train.ema import Ema
from fcos.train.log import Display, Meter
from fcos.train.optimizer import Schedule, build_optimizer
from fcos.train.recompute import recompute_activations
from fcos.train.step import OptimizerStep
from fcos.train.throughput import EpochClock, advice, describe
from fcos.train.writers import MetricsWriter, open_writers
from fcos.weights.model_file import ModelCard, save_model


@dataclass
class RunState:
    """Where a run stands, besides weights and optimizer.

    Attributes:
        step: optimizer steps done.
        epoch_evaluated: last epoch whose end was dealt with: measured where due, model files written.
        best_map: best map_mean so far.
        elapsed_s: seconds of training and evaluation, over all sessions of the run.
    """

    step: int = 0
    epoch_evaluated: int = 0
    best_map: float = -math.inf
    elapsed_s: float = 0.0


@dataclass
class Trainer:
    """A run: its objects and its loop.

    Attributes:
        fabric: launched.
        config: resolved.
        model: fresh or with ImageNet weights; goes to the device here.
        train_set: to learn from.
        eval_set: to measure on after every epoch, or None.
        run: folder of the run.
        micro_batch: images of one forward pass.
        accumulation: forward passes of one step on each device.
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
    state: RunState = field(default_factory=RunState)

    def __post_init__(self) -> None:
        config = self.config
        self.postprocess = build_postprocess(config)
        self.steps_per_epoch = len(self.train_set) / config.nbatch_train
        self.total_steps = self.steps_of(config.epochs)
        self.schedule = Schedule(
            self.total_steps, config.warmup_iter, config.lr_policy, config.lr_schedule, config.lr_gamma
        )
        self.meter = Meter(config.nbatch_train)
        self.clock = EpochClock()
        self.advice_given: set[str] = set()

        self.memory_format = torch.channels_last if config.channels_last else torch.contiguous_format
        self.model = self.model.to(self.fabric.device).to(memory_format=self.memory_format)
        self.ema = Ema(self.model, config.ema_decay) if config.ema_decay else None
        # `network` is what runs in training (made fast, compiled, wrapped); `model` is the module that it
        # shares weights with, and what is evaluated and saved.
        network: Any = for_training(self.model) if self.fabric.device.type == "cpu" else self.model
        if config.activation_checkpointing:
            recompute_activations(network)
        network = torch.compile(network) if config.compile else network
        self.network, self.optimizer = self.fabric.setup(network, build_optimizer(config, self.model))
        self.take_step = OptimizerStep(
            self.fabric, config, self.model, self.network, self.optimizer, self.schedule, self.run
        )

    @property
    def evaluated_model(self) -> FCOS:
        """The average where there is one, else the live model."""
        return self.ema.module if self.ema else self.model

    @property
    def local_world_size(self) -> int:
        """Processes on this machine, one a device."""
        return self.fabric.world_size // getattr(self.fabric.strategy, "num_nodes", 1)

    @property
    def epoch(self) -> int:
        """Passes over the data that are complete."""
        return min(self.config.epochs, self.state.step * self.config.nbatch_train // len(self.train_set))

    def steps_of(self, epochs: int) -> int:
        """Optimizer steps of so many passes over the data."""
        return math.ceil(epochs * len(self.train_set) / self.config.nbatch_train)

    # The loop ---------------------------------------------------------------------------------------------

    def fit(self, stop: StopSignal) -> bool:
        """Train to the end, or until a signal on any device; True if the end was reached."""
        config, state, is_first = self.config, self.state, self.fabric.is_global_zero
        self.display = Display(self.total_steps, state.step, enabled=is_first)
        self.writers: list[MetricsWriter] = []
        if is_first:
            self.writers = open_writers(self.run, state.step + 1, tensorboard=config.tensorboard)
        self.started_at = time.monotonic() - state.elapsed_s
        self.network.train()
        stopping = False
        try:
            self._end_epoch()  # of a run that was stopped there
            stopping = self._take_steps(stop)
        finally:
            self.display.close()
            for writer in self.writers:
                writer.close()
        return not stopping

    def _take_steps(self, stop: StopSignal) -> bool:
        """The steps that are left; whether a signal stopped them."""
        config, state = self.config, self.state
        log_every = max(1, min(50, int(self.steps_per_epoch / 5)))
        stopping = False
        with loading(self._loader()) as batches:
            while state.step < self.total_steps and not stopping:
                with self.clock.waiting():
                    window = [
                        next(batches).to(self.fabric.device, self.memory_format)
                        for _ in range(self.accumulation)
                    ]
                with self.clock.computing(config.nbatch_train):
                    report, stopping = self.take_step(window, state.step, stop)
                    if self.ema:
                        self.ema.update(self.model, state.step)
                state.step += 1
                state.elapsed_s = time.monotonic() - self.started_at
                self.meter.add(report)
                self.display.step(state.step, self.meter.text)
                if state.step % log_every == 0 or state.step == self.total_steps:
                    self._log_line()
                if stopping or state.step % config.save_steps == 0:
                    self._save()
                if not stopping:  # an evaluation may take longer than there is time
                    self._end_epoch()
        return stopping

    def _loader(self) -> DataLoader[Batch]:
        return build_train_loader(
            self.config,
            self.train_set,
            micro_batch=self.micro_batch,
            rank=self.fabric.global_rank,
            world=self.fabric.world_size,
            start_step=self.state.step,
        )

    # Between steps ----------------------------------------------------------------------------------------

    def _log_line(self) -> None:
        state = self.state
        entry = {"step": state.step, "epoch": state.step / self.steps_per_epoch, **self.meter.take()}
        self._write("train", {**entry, "elapsed_s": state.elapsed_s})

    def _write(self, kind: str, entry: dict[str, Any]) -> None:
        for writer in self.writers:
            writer.write(kind, entry)

    def _end_epoch(self) -> None:
        """At the end of an epoch: measure where it is due, write the model files."""
        state, epoch = self.state, self.epoch
        if epoch == state.epoch_evaluated:
            return
        self._tell_times(epoch)
        self._save()  # an evaluation that fails costs no step
        interval = self.config.eval_epochs
        is_due = epoch // interval > state.epoch_evaluated // interval or epoch == self.config.epochs
        if self.eval_set is not None and is_due:
            self._evaluate(self.eval_set)
        else:
            self._save_model_file("last", {"epoch": epoch}, self.card.threshold)
        state.epoch_evaluated = epoch
        state.elapsed_s = time.monotonic() - self.started_at
        self.meter.restart_clock()
        self._save()

    def _tell_times(self, epoch: int) -> None:
        """Print the bottleneck of this epoch; nothing if this session only evaluates the end of one."""
        times = self.clock.take()
        if not times.num_images:
            return
        # A device that waits for images makes the others wait for it in their own steps.
        waited_s = torch.tensor(times.waited_s, device=self.fabric.device)
        waited_s = self.fabric.all_reduce(waited_s, reduce_op="max")  # type: ignore[assignment]
        times = times._replace(waited_s=round(waited_s.item(), 3))
        self._write("epoch", {"step": self.state.step, "epoch": epoch, **times._asdict()})
        device = self.fabric.device.type
        line, change = describe(times, epoch), advice(times, self.config, self.local_world_size, device)
        if change not in self.advice_given:  # each advice once
            self.advice_given.add(change)
            line += f": {change}"
        self.display.line(line)

    def _evaluate(self, annotations: Annotations) -> None:
        """Compute and log COCO metrics; write the files of the last and the best model."""
        started_at = time.monotonic()
        rows = self._find(annotations)
        if not self.fabric.is_global_zero:
            return
        network_s = time.monotonic() - started_at
        measured, threshold = measure(annotations, rows)
        numbers = {"map_mean": measured.map_mean, "map_50": measured.map_50, "map_75": measured.map_75}
        entry = {"step": self.state.step, "epoch": self.epoch, **numbers, "stats": list(measured.stats)}
        elapsed_s = time.monotonic() - started_at
        times = {"elapsed_s": elapsed_s, "network_s": network_s}
        self._write("eval", {**entry, "per_class": measured.per_class_ap, **times})
        is_best = measured.map_mean > self.state.best_map
        described = "  ".join(f"{name} {value:.4f}" for name, value in numbers.items())
        self.display.line(
            f"epoch {self.epoch:3d}/{self.config.epochs}  {described}" + ("  best" if is_best else "")
        )

        self._save_model_file("last", {"epoch": self.epoch, **numbers}, threshold)
        if is_best:
            self.state.best_map = measured.map_mean
            self._save_model_file("best", {"epoch": self.epoch, **numbers}, threshold)
            with written_in_run(self.run / "results.json") as partial:
                partial.write_bytes(results_json(rows))

    def _find(self, annotations: Annotations) -> Rows:
        """Detections of the evaluated model in every image, as rows of results; on the first device.

        Predicts like `fcos eval` and `Detector`, in float32 and with folded batch norm, so that the metrics
        are equal to the last digit. (Under autocast to bfloat16 the third digit differed.)
        """
        fabric = self.fabric
        self.model.eval()  # with activation_checkpointing parts of it run in its copy
        backend = TorchBackend(self.evaluated_model, self.postprocess)
        rows = Predictor(backend, self.config, self.card, self.run).find(
            annotations,
            batch_size=max(1, self.config.nbatch_eval // fabric.world_size),
            on_batch=self.display.evaluating(-(-len(annotations) // fabric.world_size)),
            fabric=fabric,
        )
        self.model.train()
        return rows

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
        """Everything that the next step depends on. (The order of the data depends on the step alone.)"""
        return {
            "config": self.config.model_dump(mode="json"),
            "data": self._fingerprints(),
            "state": asdict(self.state),
            "meter": self.meter.state_dict(),
            "model": self.model.state_dict(),
            "ema": self.ema.module.state_dict() if self.ema else None,
            "optimizer": self.optimizer.state_dict(),
            "precision": self.fabric.strategy.precision.state_dict(),
        }

    def restore(self, checkpoint: dict[str, Any]) -> None:
        """Resume from a checkpoint."""
        check_same_data(checkpoint["data"], self._fingerprints(), self.run / "last.ckpt")
        self.state = RunState(**checkpoint["state"])
        self.meter.load_state_dict(checkpoint["meter"])
        self.model.load_state_dict(checkpoint["model"])
        if self.ema:
            self.ema.module.load_state_dict(checkpoint["ema"])
        self.optimizer.load_state_dict(checkpoint["optimizer"])
        self.fabric.strategy.precision.load_state_dict(checkpoint["precision"])

    def _fingerprints(self) -> dict[str, str]:
        return {"training": fingerprint(self.train_set), "evaluation": fingerprint(self.eval_set)}
