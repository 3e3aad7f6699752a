"""The training loop: one optimizer step, whatever it is split into, and what happens between steps.

A step takes `nbatch_train` images, as micro-batches on one or many devices. The normalizers of the losses
(number of positives, sum of centerness) are summed over all of them before the first forward pass, so the
split changes nothing but rounding.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric

from fcos.build import build_assigner, build_eval_loader, build_loss, build_optimizer, build_postprocess
from fcos.build import build_train_loader
from fcos.config import TrainConfig
from fcos.data.annotations import Annotations
from fcos.data.batch import Batch
from fcos.engine.checkpoint import save_checkpoint
from fcos.engine.ema import Ema
from fcos.engine.evaluate import coco_results, detect, gather, result_rows
from fcos.engine.log import Display, Meter, MetricsFile
from fcos.engine.schedule import Schedule
from fcos.engine.stop import StopSignal
from fcos.errors import TrainingError
from fcos.metrics.coco import CocoMetrics, best_f1_threshold, evaluate_detections
from fcos.model.fcos import FCOS
from fcos.model.losses import Losses
from fcos.model.weights import ModelCard, save_model


@dataclass
class RunState:
    """Where a run stands, besides weights and optimizer.

    Attributes:
        step: optimizer steps done.
        best_map: best map_mean so far.
        elapsed_s: seconds of training and evaluation, over all sessions of the run.
        epoch_evaluated: last epoch that was measured.
    """

    step: int = 0
    best_map: float = -1.0
    elapsed_s: float = 0.0
    epoch_evaluated: int = 0


@dataclass
class Trainer:
    """A run: its objects and its loop.

    Attributes:
        fabric: launched.
        config: resolved.
        model: raw module, on the device.
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
        self.assigner = build_assigner(config)
        self.loss = build_loss(config)
        self.postprocess = build_postprocess(config)
        self.total_steps = self.step_of_epoch(config.epoches)
        self.schedule = Schedule(
            self.total_steps, config.warmup_iter, config.lr_policy, config.lr_schedule, config.lr_gamma
        )
        if config.channels_last:
            self.model = self.model.to(memory_format=torch.channels_last)
        self.ema = Ema(self.model, config.ema_decay) if config.ema_decay else None
        optimizer = build_optimizer(config, self.model)
        network = torch.compile(self.model) if config.compile else self.model
        # `network` is what runs in training (compiled, wrapped); `model` is the module that it shares
        # weights with, and what is evaluated and saved.
        self.network, self.optimizer = self.fabric.setup(network, optimizer)
        self.trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    @property
    def evaluated_model(self) -> FCOS:
        """The average where there is one, else the live model."""
        return self.ema.module if self.ema else self.model  # type: ignore[return-value]

    def step_of_epoch(self, epoch: int) -> int:
        """Steps after which `epoch` passes over the data are complete."""
        return math.ceil(epoch * len(self.train_set) / self.config.nbatch_train)

    # The loop ---------------------------------------------------------------------------------------------

    def fit(self) -> bool:
        """Train to the end, or until a signal; True if the end was reached."""
        fabric, state = self.fabric, self.state
        display = Display(self.total_steps, state.step, enabled=fabric.is_global_zero)
        metrics = MetricsFile(self.run, tensorboard=self.config.tensorboard) if fabric.is_global_zero else None
        meter = Meter(self.config.nbatch_train)
        batches = self._batches()
        started_at = time.monotonic() - state.elapsed_s
        log_every = max(1, min(50, self.step_of_epoch(1) // 5))
        self.network.train()
        try:
            with StopSignal() as stop:
                while state.step < self.total_steps:
                    window = [next(batches) for _ in range(self.accumulation)]
                    losses, grad_norm, num_positive, stopping = self._optimizer_step(window, stop.requested)
                    state.step += 1
                    state.elapsed_s = time.monotonic() - started_at
                    meter.add(losses, grad_norm, num_positive, self.optimizer.param_groups[0]["lr"])
                    if metrics and (state.step % log_every == 0 or state.step == self.total_steps):
                        epoch = state.step * self.config.nbatch_train / len(self.train_set)
                        metrics.write(
                            "train",
                            {"step": state.step, "epoch": epoch, **meter.take(), "elapsed_s": state.elapsed_s},
                        )
                    display.step(state.step, meter.text)
                    if self._ends_epoch():
                        self._after_epoch(metrics, display)
                        meter.restart_clock()
                        state.elapsed_s = time.monotonic() - started_at
                        self._save()
                    elif stopping or state.step % self.config.save_steps == 0:
                        self._save()
                    if stopping:
                        break
        finally:
            display.close()
            if metrics:
                metrics.close()
        return state.step >= self.total_steps

    def _batches(self) -> Iterator[Batch]:
        loader = build_train_loader(
            self.config,
            self.train_set,
            micro_batch=self.micro_batch,
            rank=self.fabric.global_rank,
            world=self.fabric.world_size,
            start_step=self.state.step,
        )
        for batch in loader:
            yield batch.to(self.fabric.device)

    def _optimizer_step(
        self, window: list[Batch], stop_requested: bool
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, bool]:
        """One step over a window of micro-batches.

        Returns:
            loss parts (classification, box, quality) of the whole step, gradient norm, positives, and
            whether any device was asked to stop.
        """
        fabric = self.fabric
        grids = [self.model.grid((batch.images.shape[2], batch.images.shape[3])) for batch in window]
        targets = [
            self.assigner(
                grid, [t.boxes_xyxy for t in batch.ground_truth], [t.labels for t in batch.ground_truth]
            )
            for batch, grid in zip(window, grids, strict=True)
        ]
        local = torch.stack([target.normalizers() for target in targets]).sum(dim=0)
        flag = torch.tensor([float(stop_requested)], device=local.device)
        summed = fabric.all_reduce(torch.cat([local, flag]), reduce_op="sum")
        assert isinstance(summed, torch.Tensor)
        normalizers, stopping = summed[:2], bool(summed[2])

        parts = torch.zeros(3, device=fabric.device)
        for i, (batch, grid, target) in enumerate(zip(window, grids, targets, strict=True)):
            images = batch.images
            if self.config.channels_last:
                images = images.contiguous(memory_format=torch.channels_last)
            with fabric.no_backward_sync(self.network, enabled=i < len(window) - 1):  # type: ignore[arg-type]
                output = self.network(images, batch.sizes_hw)
                losses: Losses = self.loss(output, grid, target, normalizers)
                # DDP averages gradients over devices; the normalizers are sums over devices.
                fabric.backward(losses.total() * fabric.world_size)
            parts += torch.stack(list(losses)).detach()
        parts = fabric.all_reduce(parts, reduce_op="sum")  # type: ignore[assignment]
        if not bool(parts.isfinite().all()):
            self._fail_not_finite(parts, window)

        for group in self.optimizer.param_groups:
            group["lr"] = self.config.lr_base * self.schedule.factor(self.state.step)
        limit = self.config.grad_clip or math.inf
        # With fp16 the scaler looks for overflow itself and skips the step.
        fp16 = self.config.precision == "fp16"
        grad_norm = fabric.clip_gradients(
            self.network, self.optimizer, max_norm=limit, error_if_nonfinite=not fp16  # type: ignore[arg-type]
        )
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.ema:
            self.ema.update(self.model, self.state.step)
        assert grad_norm is not None
        return parts, grad_norm, normalizers[0], stopping

    def _fail_not_finite(self, parts: torch.Tensor, window: list[Batch]) -> None:
        named = dict(zip(Losses._fields, parts.tolist(), strict=True))
        file = self.run / f"not_finite_step_{self.state.step}_rank_{self.fabric.global_rank}.pt"
        torch.save([asdict(batch) for batch in window], file)
        ids = [image_id for batch in window for image_id in batch.image_ids]
        raise TrainingError(
            f"the loss is not finite at step {self.state.step}: "
            + ", ".join(f"{name} {value:g}" for name, value in named.items()),
            where=f"image ids {ids}; the batch is in {file}",
            fix="a smaller lr_base, a longer warmup_iter, or grad_clip; with fp16 try bf16. "
            "The last checkpoint is from before this step: load=true goes on from it",
        )

    # Between steps ----------------------------------------------------------------------------------------

    @property
    def epoch(self) -> int:
        """Complete passes over the data."""
        return min(self.config.epoches, self.state.step * self.config.nbatch_train // len(self.train_set))

    def _ends_epoch(self) -> bool:
        return self.step_of_epoch(self.epoch) == self.state.step and self.epoch > self.state.epoch_evaluated

    def _after_epoch(self, metrics: MetricsFile | None, display: Display) -> None:
        epoch = self.epoch
        self.state.epoch_evaluated = epoch
        due = epoch % self.config.eval_epoches == 0 or self.state.step >= self.total_steps
        if self.eval_set is None or not due:
            self._save_model_file("last", {"epoch": epoch}, self.card.threshold)
            return
        started_at = time.monotonic()
        measured, rows = self.evaluate(self.eval_set, display)
        entry = {
            "step": self.state.step,
            "epoch": epoch,
            "map_mean": measured.map_mean,
            "map_50": measured.map_50,
            "map_75": measured.map_75,
            "stats": list(measured.stats),
            "per_class": measured.per_class_ap,
            "elapsed_s": time.monotonic() - started_at,
        }
        if metrics:
            metrics.write("eval", entry)
        is_best = measured.map_mean > self.state.best_map
        display.line(
            f"epoch {epoch:3d}/{self.config.epoches}  map_mean {measured.map_mean:.4f}  "
            f"map_50 {measured.map_50:.4f}  map_75 {measured.map_75:.4f}" + ("  best" if is_best else "")
        )
        summary = {key: entry[key] for key in ("epoch", "map_mean", "map_50", "map_75")}
        threshold = best_f1_threshold(self.eval_set, rows)
        self._save_model_file("last", summary, threshold)
        if is_best:
            self.state.best_map = measured.map_mean
            self._save_model_file("best", summary, threshold)
            if self.fabric.is_global_zero:
                (self.run / "results.json").write_text(json.dumps(coco_results(rows)))

    def evaluate(self, annotations: Annotations, display: Display) -> tuple[CocoMetrics, Any]:
        """COCO's numbers of the evaluated model, and the rows that they were made from."""
        loader = build_eval_loader(
            self.config, annotations, rank=self.fabric.global_rank, world=self.fabric.world_size
        )
        with self.fabric.autocast():
            found = detect(
                self.evaluated_model,
                self.postprocess,
                loader,
                channels_last=self.config.channels_last,
                on_batch=display.evaluating(-(-len(annotations) // self.fabric.world_size)),
            )
        rows = result_rows(gather(found, self.fabric), annotations)
        return evaluate_detections(annotations, rows), rows

    def _save_model_file(self, name: str, metrics: dict[str, Any], threshold: float) -> None:
        if self.config.save and self.fabric.is_global_zero:
            card = ModelCard(**{**asdict(self.card), "metrics": metrics, "threshold": threshold})
            save_model(self.run / f"{name}.safetensors", self.evaluated_model.state_dict(), card)

    # Going on ---------------------------------------------------------------------------------------------

    def _save(self) -> None:
        if not self.config.save:
            return
        if self.fabric.is_global_zero:
            save_checkpoint(self.run / "last.ckpt", self.checkpoint())
        self.fabric.barrier()

    def checkpoint(self) -> dict[str, Any]:
        """Everything that the next step depends on. (The order of the data depends on the step alone.)"""
        return {
            "config": self.config.model_dump(mode="json"),
            "state": asdict(self.state),
            "model": self.model.state_dict(),
            "ema": self.ema.module.state_dict() if self.ema else None,
            "optimizer": self.optimizer.state_dict(),
            "precision": self.fabric.strategy.precision.state_dict(),
        }

    def restore(self, checkpoint: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.state = RunState(**checkpoint["state"])
        self.model.load_state_dict(checkpoint["model"])
        if self.ema:
            self.ema.module.load_state_dict(checkpoint["ema"])
        self.optimizer.load_state_dict(checkpoint["optimizer"])
        self.fabric.strategy.precision.load_state_dict(checkpoint["precision"])
