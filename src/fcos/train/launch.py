"""Starting the processes of a run (by ourselves, torchrun, or SLURM's srun), and shutting them down.

All three give the same run. We start the other processes of this machine with the same command line; torchrun
and srun have already started them, and set environment variables with their number and location.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning_fabric.plugins.environments.lightning import LightningEnvironment, find_free_network_port
from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment

from fcos.errors import DeviceError, FcosError, TrainingError
from fcos.terminal import counted

POLL_EVERY_S = 0.5
PATIENCE_S = 5.0  # for a process to notice by itself that a sibling died, and to finish writing its files
SECONDS_FOR_FIRST_TO_SPEAK = 2.0
SECONDS_TO_DISCONNECT = 1.0

_started: list[subprocess.Popen[bytes]] = []  # by this process; they take part in all of its runs


@dataclass(frozen=True)
class Launch:
    """The processes of a run.

    Attributes:
        environment: gives each process its rank.
        num_local: processes on each machine; None: as many as the device setting requires, started by us.
        num_machines: each with `num_local` processes.
    """

    environment: ClusterEnvironment
    num_local: int | None = None
    num_machines: int = 1


def find_launch() -> Launch:
    """Read the environment variables of torchrun and SLURM."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        machines = int(os.environ["GROUP_WORLD_SIZE"])
        return Launch(TorchElasticEnvironment(), int(os.environ["LOCAL_WORLD_SIZE"]), machines)
    # A batch script without srun also has SLURM's variables, except those of a step.
    num_tasks = int(os.environ.get("SLURM_STEP_NUM_TASKS", "1"))
    if num_tasks > 1:
        machines = int(os.environ.get("SLURM_STEP_NUM_NODES", "1"))
        if num_tasks % machines:
            raise DeviceError(
                f"srun started {counted(num_tasks, 'process', 'processes')} "
                f"on {counted(machines, 'machine')}, not the same number on each",
                where="environment of SLURM",
                fix="srun --nodes=N --ntasks-per-node=M ...",
            )
        # Fabric needs it, and srun sets it only if the option was given.
        os.environ.setdefault("SLURM_NTASKS_PER_NODE", str(num_tasks // machines))
        return Launch(SLURMEnvironment(auto_requeue=False), num_tasks // machines, machines)
    return Launch(LightningEnvironment())


def start_others(num_processes: int) -> None:
    """Start this command again for each other process of this machine; only the first process does, once."""
    if num_processes == 1 or "LOCAL_RANK" in os.environ:
        return
    port = str(find_free_network_port())
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "LOCAL_RANK": "0"}
    spec = sys.modules["__main__"].__spec__
    words = [os.path.abspath(sys.argv[0])] if spec is None else ["-m", spec.name]
    for rank in range(1, num_processes):
        environment = os.environ | {"LOCAL_RANK": str(rank)}
        _started.append(subprocess.Popen([sys.executable, *words, *sys.argv[1:]], env=environment))


@contextmanager
def launched(fabric: Fabric) -> Iterator[None]:
    """Connect the processes of a run, and shut them down together.

    If a process fails, the others would wait for it, so the first process kills those that it started. Most
    errors occur in all processes: the others wait a moment, so that the message appears once. A process that
    dies silently is detected by its siblings (or by torchrun or srun) and reported once.
    """
    started_by_us = isinstance(getattr(fabric.strategy, "cluster_environment", None), LightningEnvironment)
    if started_by_us:
        start_others(fabric.world_size)
    watch = Watch()
    watch.start()
    try:
        fabric.launch()
        yield
    except BaseException as error:
        lost = watch.lost(wait_s=0.0 if isinstance(error, FcosError) else 2 * POLL_EVERY_S)
        for process in _started:
            process.kill()
        if not fabric.is_global_zero and not (lost and fabric.local_rank == 1):
            time.sleep(SECONDS_FOR_FIRST_TO_SPEAK)
        watch.over.set()
        disconnect(wait_s=SECONDS_TO_DISCONNECT)
        if is_lost_connection(error) or (lost and isinstance(error, RuntimeError)):
            raise lost_process(lost) from error
        raise
    if torch.distributed.is_initialized():
        if started_by_us:
            # For the next run of these processes: this run's store keeps its port for as long as anything
            # refers to the process group.
            os.environ["MASTER_PORT"] = str(fabric.broadcast(find_free_network_port()))
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
    watch.over.set()


def disconnect(wait_s: float) -> None:
    """Destroy the process group: gloo threads that still run at exit may abort the process.

    It blocks inside a collective that other processes never entered, hence the timeout `wait_s`.
    """
    if torch.distributed.is_initialized() and torch.distributed.get_backend() == "gloo":
        leave = threading.Thread(target=torch.distributed.destroy_process_group, daemon=True)
        leave.start()
        leave.join(wait_s)


class Watch(threading.Thread):
    """Ends this process if a sibling dies and the network does not report it (NCCL waits for minutes)."""

    def __init__(self) -> None:
        super().__init__(daemon=True, name="watch")
        self.over = threading.Event()
        # The first process watches the processes that it started, and they watch it.
        self.parent = os.getppid() if "LOCAL_RANK" in os.environ and not _started else None
        if "TORCHELASTIC_RUN_ID" in os.environ or os.environ.get("LOCAL_RANK") == "0":
            self.parent = None

    def run(self) -> None:
        """Poll until the run is over."""
        while not self.over.wait(POLL_EVERY_S):
            if (lost := self.lost()) and not self.over.wait(PATIENCE_S):
                for process in _started:
                    process.kill()
                if _started or os.environ.get("LOCAL_RANK") == "1":
                    print(f"TrainingError: {lost_process(lost)}", file=sys.stderr, flush=True)
                os._exit(1)

    def lost(self, wait_s: float = 0.0) -> str:
        """Describe the process that died; "" if none did."""
        end = time.monotonic() + wait_s
        while True:
            for number, process in enumerate(_started, start=2):
                if (code := process.poll()) and code is not None:
                    how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
                    return f"process {number} of {len(_started) + 1} {how}"
            if self.parent is not None and os.getppid() != self.parent:
                return "process 1 of the run was killed"
            if time.monotonic() >= end:
                return ""
            time.sleep(POLL_EVERY_S / 5)


def is_lost_connection(error: BaseException) -> bool:
    """Whether another process of the run ended during a collective operation."""
    words = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "remote process exited")
    return isinstance(error, RuntimeError) and any(word in str(error) for word in words)


def lost_process(lost: str) -> TrainingError:
    """The error of a run that lost a process."""
    return TrainingError(
        f"{lost or 'another process of the run has ended'}; the run cannot continue without it",
        fix="see its own message above; if there is none, it was killed, probably out of memory. "
        "To resume from the last checkpoint, on any number of processes, use load=true",
    )
