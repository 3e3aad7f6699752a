"""One optimizer step, with the same result for any split into micro-batches and devices.

A step uses `nbatch_train` images, as micro-batches on one or many devices. The normalizers of the losses
(number of positives, sum of centerness) are sums over all of them, so the split changes nothing but rounding.
They are known before the first forward pass, unless the assigner uses predictions: then the losses are
divided by a guess, and the gradients are rescaled after the last backward pass, which is equivalent.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any, NoReturn

import torch
from lightning_fabric import Fabric

from fcos.config import TrainConfig
from fcos.data.batch import Batch
from fcos.errors import TrainingError
from fcos.model.assign import Assigner, Targets
from fcos.model.build import build_assigner, build_loss, build_static_assigner
from fcos.model.fcos import FCOS, HeadOutput
from fcos.model.points import PointGrid
from fcos.predict.stop import StopSignal
from fcos.train.checkpoint import written_in_run
from fcos.train.log import StepReport
from fcos.train.optimizer import Schedule


@dataclass
class OptimizerStep:
    """Assign, forward, losses, backward, clip, update.

    Attributes:
        model: the model whose weights are trained.
        network: the module that runs: the model itself, or compiled, or wrapped for several devices.
        run: folder of the run, in which a batch with a non-finite loss is saved.
    """

    fabric: Fabric
    config: TrainConfig
    model: FCOS
    network: Any
    optimizer: Any
    schedule: Schedule
    run: Path
    class_names: Sequence[str] = ()

    def __post_init__(self) -> None:
        self.first_assigner: Assigner = build_static_assigner(self.config)
        self.assigner: Assigner = build_assigner(self.config)
        self.loss = build_loss(self.config, self.class_names)

    def __call__(self, window: list[Batch], step: int, stop: StopSignal) -> tuple[StepReport, bool]:
        """Take step `step` (from 0) with the micro-batches of this device.

        Returns:
            Metrics of the step, and whether any device was asked to stop.
        """
        config, fabric = self.config, self.fabric
        starts = step < config.static_start * self.schedule.total_steps
        assigner = self.first_assigner if starts else self.assigner
        window = self._padded_alike(window)
        grids = [self.model.grid((batch.images.shape[2], batch.images.shape[3])) for batch in window]
        known, normalizers = self._before_predictions(assigner, window, grids)

        losses, counted = torch.zeros((), device=fabric.device), torch.zeros_like(normalizers)
        for i, (batch, grid) in enumerate(zip(window, grids, strict=True)):
            with fabric.no_backward_sync(self.network, enabled=i < len(window) - 1):
                output = self._forward(batch)
                targets = known[i] if known else assign(assigner, grid, batch, output)
                parts = self.loss(output, grid, targets, normalizers)
                # DDP averages gradients over devices; the normalizers are sums over devices.
                fabric.backward(torch.stack(list(parts.values())).sum() * fabric.world_size)
            losses = losses + torch.stack(list(parts.values())).detach()
            counted += targets.normalizers()
        if not known:
            counted = self._sum(counted)
            correction = normalizers[0] / counted[1].clamp(min=1)
            self._scale_gradients(correction)
            losses, normalizers = losses * correction, counted
        grad_norm = fabric.clip_gradients(
            self.network,
            self.optimizer,
            max_norm=config.grad_clip or math.inf,
            error_if_nonfinite=False,
        )
        assert grad_norm is not None

        asked_to_stop = losses.new_tensor([float(stop.number)])
        summed = self._sum(torch.cat([losses, asked_to_stop]))
        # The only synchronization with the device in a step.
        numbers = torch.cat([summed, normalizers[2:], grad_norm.reshape(1)]).tolist()
        *values, stopping, num_positive, norm = numbers
        lr = config.lr_base * self.schedule.factor(step)
        report = StepReport(dict(zip(parts, values, strict=True)), num_positive, norm, lr)
        # With fp16 the gradient scaler skips a step whose gradient overflows, and lowers its scale.
        if not math.isfinite(report.loss) or not (math.isfinite(norm) or config.precision == "fp16"):
            self._fail_not_finite(report, window, step + 1)

        for group in self.optimizer.param_groups:
            group["lr"] = lr * group.get("lr_factor", 1.0)  # checkpoints of old versions have none
        self.optimizer.step()
        self.optimizer.zero_grad()
        return report, stopping > 0

    def _forward(self, batch: Batch) -> HeadOutput:
        try:
            output: HeadOutput = self.network(batch.images, batch.sizes_hw)
        except ValueError as error:  # PyTorch's batch norm
            if "more than 1 value per channel" not in str(error):
                raise
            raise TrainingError(
                "batch norm cannot be trained on a single value: one image on a level with one point",
                where=f"images of {batch.images.shape[2]} x {batch.images.shape[3]} pixels, padded",
                fix="use a micro_batch of at least 2, a larger short_side, freeze_bn=true, or head_norm=gn",
            ) from error
        return output

    def _padded_alike(self, window: list[Batch]) -> list[Batch]:
        """Pad all images of a step to one size, whatever the split, since group norm includes padding."""
        if self.fabric.world_size == len(window) == 1:
            return window
        sizes = torch.tensor([batch.images.shape[2:] for batch in window], device=self.fabric.device)
        largest = self.fabric.all_reduce(sizes.amax(dim=0), reduce_op="max")
        assert isinstance(largest, torch.Tensor)
        height, width = largest.tolist()
        return [batch.padded_to((height, width)) for batch in window]

    def _before_predictions(
        self, assigner: Assigner, window: list[Batch], grids: list[PointGrid]
    ) -> tuple[list[Targets], torch.Tensor]:
        """Targets and normalizers of a step; if they depend on predictions, no targets, and a guess."""
        if not assigner.needs_predictions:
            known = [assign(assigner, grid, batch) for grid, batch in zip(grids, window, strict=True)]
            return known, self._sum(torch.stack([targets.normalizers() for targets in known]).sum(dim=0))
        # The number of objects: the right order of magnitude, so that no gradient overflows in fp16.
        num_boxes = sum(len(truth.labels) for batch in window for truth in batch.ground_truth)
        guess = torch.full((3,), float(num_boxes), device=self.fabric.device)
        return [], self._sum(guess).clamp(min=1)

    def _scale_gradients(self, factor: torch.Tensor) -> None:
        for parameter in self.model.parameters():
            if parameter.grad is not None:
                parameter.grad *= factor

    def _sum(self, numbers: torch.Tensor) -> torch.Tensor:
        """Sum over all devices."""
        summed = self.fabric.all_reduce(numbers, reduce_op="sum")
        assert isinstance(summed, torch.Tensor)
        return summed

    def _fail_not_finite(self, report: StepReport, window: list[Batch], step: int) -> NoReturn:
        """Save the batch and raise; every device comes here in the same step."""
        file = self.run / f"not_finite_step_{step}_rank_{self.fabric.global_rank}.pt"
        with written_in_run(file) as partial:
            torch.save([asdict(batch.to(torch.device("cpu"))) for batch in window], partial)
        image_ids: list[Any] = [image_id for batch in window for image_id in batch.image_ids]
        if self.fabric.world_size > 1:
            everyone: list[Any] = [None] * self.fabric.world_size
            torch.distributed.all_gather_object(everyone, image_ids)
            image_ids = list(chain.from_iterable(everyone))
        raise TrainingError(
            f"loss or gradient is not finite at step {step}: "
            + ", ".join(f"{name} {value:g}" for name, value in report.numbers().items()),
            where=f"image ids {', '.join(map(str, image_ids))}; the batch is in {file}",
            fix="use a smaller lr_base, a longer warmup_iter, or grad_clip; instead of fp16, try bf16. "
            "To resume from the last checkpoint, which is from before this step, use load=true",
        )


@torch.no_grad()
def assign(assigner: Assigner, grid: PointGrid, batch: Batch, output: HeadOutput | None = None) -> Targets:
    """Targets of a batch; `output` is for assigners that use predictions."""
    boxes = [truth.boxes_xyxy for truth in batch.ground_truth]
    return assigner(grid, boxes, [truth.labels for truth in batch.ground_truth], output)
