# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""The processes of a launch: what one raises all raise, and every exchange between them says what it was for.

A fit goes in rounds of one batch for each process, and each round ends with an exchange. Collectives over data would
deadlock when processes have unequal numbers of batches; here they cannot, because every process reads the whole
dataloader and computes its share: all know when a round is the last, and one without a batch in it takes part with no
rows.
"""

import atexit
import contextlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from ..errors import InputError, LimitError, NumericalError, first_line
from .folders import locked


T = TypeVar("T")


class LostProcess(ConnectionError):
    """Another process stopped; this one cannot go on. Commands exit with code 1."""


class Processes:
    """The processes that do one piece of work together; errors say that they were `doing` it."""

    def __init__(self, accelerator=None, doing: str = "the curvature fit"):
        self.rank, self.size = 0, 1  # one process when there is no accelerator
        if accelerator is not None:
            self.rank, self.size = accelerator.process_index, accelerator.num_processes
        self.doing = doing

    def share(self, work: Callable[[], T]) -> list[T]:
        """Call `work()` on every process: what it returned on each, in rank order. Collective.

        Raises:
            what `work` raised on any process (its own error when alone), on all of them: an InputError, NumericalError
            or OSError as such, anything else as RuntimeError; one line that names the process.
            LostProcess: another process has stopped.
        """
        error = value = None
        if self.size == 1:
            return [work()]
        try:
            value = work()
        except LostProcess:
            raise
        except Exception as raised:
            error = raised
        found = self.gather((_describe(error), value))
        failures = {rank: failure for rank, (failure, _) in enumerate(found) if failure is not None}
        if failures:
            rank, (kind, text) = next(iter(failures.items()))
            everywhere = len(failures) == self.size and len({text for _, text in failures.values()}) == 1
            where = "" if everywhere else f"process {rank} of {self.size}: "
            raise ERRORS[kind](f"{where}{text}") from error
        return [value for _, value in found]

    def gather(self, value) -> list:
        """The value of each process, in rank order. Collective; values must be picklable."""
        if self.size == 1:
            return [value]
        found = [None] * self.size
        with self._connected():
            torch.distributed.all_gather_object(found, value)
        return found

    def agree(self, identity: Mapping):
        """Refuse to go on where processes have not the same `identity`, words -> picklable value. Collective.

        Raises:
            InputError: something differs; the message, the same on all processes, says what and where.
        """
        first, *others = self.gather(dict(identity))
        for rank, other in enumerate(others, 1):
            if different := [key.replace("_", " ") for key in first if other.get(key) != first[key]]:
                raise InputError(
                    f"process {rank} has other {' and '.join(different)} than process 0: start all processes with the "
                    "same package, settings, rows and model"
                )

    def broadcast(self, tensor: Tensor, owner: int):
        """Overwrite the tensor with the owner's. Collective."""
        if self.size > 1:
            with self._connected():
                torch.distributed.broadcast(tensor, owner)

    def add(self, tensor: Tensor) -> Tensor:
        """The sum over the processes, in place. Collective."""
        if self.size > 1:
            with self._connected():
                torch.distributed.all_reduce(tensor)
        return tensor

    def exchange(self, outgoing: Tensor, sent: list[int], received: list[int]) -> list[Tensor]:
        """Send bytes `outgoing` (uint8, `sent[r]` of them to process r); those from each process. Collective."""
        incoming = torch.empty(sum(received), dtype=torch.uint8, device=outgoing.device)
        with self._connected():
            torch.distributed.all_to_all_single(incoming, outgoing, received, sent)
        return list(incoming.split(received))

    @contextlib.contextmanager
    def _connected(self):
        with connected(self.doing, nothing_else=True):
            yield


@contextlib.contextmanager
def connected(doing: str, nothing_else: bool = False):
    """Say in one line that another process has stopped, where all that torch says is where the connection broke.

    Args:
        nothing_else: an exchange is all that is done inside; else errors are told apart by the backend's name.

    Raises:
        LostProcess: in place of the error.
    """
    try:
        yield
    except RuntimeError as error:  # gloo's, and torch's DistBackendError
        if not nothing_else and not re.search("gloo|nccl", str(error), re.IGNORECASE):
            raise
        raise LostProcess(
            f"another process stopped during {doing}: its own output says why; start again, and what was saved goes "
            "on from there"
        ) from error


ERRORS = {kind.__name__: kind for kind in (InputError, NumericalError, LimitError, OSError, RuntimeError)}


def _describe(error: Exception | None) -> tuple[str, str] | None:
    if error is None:
        return None
    kind = next((name for name, kind in ERRORS.items() if isinstance(error, kind)), "RuntimeError")
    text = first_line(error)
    known = type(error) is ERRORS[kind] or kind != "RuntimeError"
    return kind, text if known else f"{type(error).__name__}: {text}"


def assign(costs: Mapping[str, float], size: int) -> dict[str, int]:
    """Name -> rank: the costliest first, each to the process with the least work so far."""
    load, owners = [0.0] * size, {}
    for name in sorted(costs, key=lambda name: (-costs[name], name)):
        owners[name] = load.index(min(load))
        load[owners[name]] += costs[name]
    return owners


def announced_processes():
    """The `PartialState` of this launch, after the main process has printed how many processes there are.

    The process group, if this makes it, goes at exit: gloo's threads now and then abort a program that only ends.
    """
    from accelerate import PartialState

    made_before = torch.distributed.is_initialized()
    # Without cpu=True, processes of torchrun on a machine without CUDA would each run alone, on the same files.
    state = PartialState(cpu=not torch.cuda.is_available())
    if torch.distributed.is_initialized() and not made_before:
        atexit.register(_leave)
    state.print(f"processes: {state.num_processes} on {state.device.type}")
    return state


def _leave():
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def on_main_process(action: Callable[[], object]):
    """Let one process do what touches files; the others wait until it is done, and raise what it raises."""
    from accelerate import PartialState

    state = PartialState()
    Processes(state, "writing").share(lambda: action() if state.is_main_process else None)


@contextlib.contextmanager
def held(folder: str | Path, processes: Processes, make: bool = True):
    """Keep other runs out of an output folder (`locked`), which the main process holds for all. Collective.

    Raises:
        InputError: another run is at work there.
    """
    with contextlib.ExitStack() as stack:
        processes.share(lambda: stack.enter_context(locked(folder, make)) if processes.rank == 0 else None)
        yield


def own(processes: Processes, work: Callable[[], T]) -> T:
    """What `work()` gives on this process; what it raises on any process all raise. Collective.

    Between two collectives: without it the others would wait in the next one for a process that has stopped.
    """
    kept = []
    processes.share(lambda: kept.append(work()))
    return kept[0]


def share_of(batches: Iterable[Mapping], processes: Processes) -> Iterator[Mapping]:
    """The batches of this process: every n-th."""
    return (batch for number, batch in enumerate(batches) if number % processes.size == processes.rank)
