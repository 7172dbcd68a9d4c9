# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Exchange of rows between processes: kept in the backward, packed into one message to the owner of their group."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..runtime.processes import Processes
from .batches import Batch


ALIGNMENT = 16  # bytes: a tensor of any type can be viewed in the middle of a message


@dataclass
class Rows:
    """What one batch holds of one group."""

    leader: str
    lengths: list[int]  # rows of each sequence
    inputs: Tensor  # (n, d_in), the rows of all sequences one after another
    gradients: dict[str, list[Tensor]] = field(default_factory=dict)  # name -> (n, d_out), one for each backward

    def tensors(self) -> list[Tensor]:
        """In the order in which they are sent."""
        return [self.inputs, *(one for _, gradients in sorted(self.gradients.items()) for one in gradients)]


class RowKeeper:
    """Takes the place of the sums in a pass of several processes: keeps one batch's rows, without its padding."""

    def __init__(self, leaders: Mapping[str, str]):
        self.leaders, self.rows = leaders, {}

    def start(self, batch: Batch):
        self.batch, self.rows = batch, {}

    def on_input(self, name: str, tensor: Tensor) -> None:
        if self.leaders[name] == name:
            inputs, lengths = self.batch.rows(name, tensor)
            self.rows[name] = Rows(name, lengths, inputs)

    def on_gradient(self, name: str, kept: None, gradient: Tensor):
        rows, _ = self.batch.rows(name, gradient)
        self.rows[self.leaders[name]].gradients.setdefault(name, []).append(rows)

    def end(self):
        self.batch = None


def contents(rows: Mapping[str, Rows]) -> list[tuple]:
    """What the receivers must know: leader, lengths, the name of each gradient, type and width of each tensor."""
    return [
        (
            leader,
            group.lengths,
            [name for name, gradients in sorted(group.gradients.items()) for _ in gradients],
            [(tensor.dtype, tensor.shape[1]) for tensor in group.tensors()],
        )
        for leader, group in sorted(rows.items())
    ]


def exchange_rows(
    rows: dict[str, Rows],
    tables: list[list[tuple]],
    owners: Mapping[str, int],
    processes: Processes,
    device: torch.device,
) -> Iterator[Rows]:
    """Send every group's rows to its owner; yields those of this process's groups, in order of the sender's rank.

    Rows (by leader, emptied as they are packed) are sent in their own type, in one message to each process, on the
    model's device; a process's own are not sent. `tables` are the `contents` of each process's batch. Collective.
    """
    rank, everyone = processes.rank, range(processes.size)

    def message_bytes(sender: int, receiver: int) -> int:
        return sum(
            _padded(sum(lengths) * width * dtype.itemsize)
            for leader, lengths, _, kinds in tables[sender]
            for dtype, width in kinds
            if owners[leader] == receiver and receiver != sender
        )

    own = {leader: rows.pop(leader) for leader in sorted(rows) if owners[leader] == rank}
    sent = [message_bytes(rank, receiver) for receiver in everyone]
    received = [message_bytes(sender, rank) for sender in everyone]
    outgoing = torch.empty(sum(sent), dtype=torch.uint8, device=device)
    place = 0
    for leader in sorted(rows, key=lambda leader: (owners[leader], leader)):
        group = rows.pop(leader)
        for tensor in group.tensors():
            outgoing[place : place + tensor.nbytes].view(tensor.dtype).view(tensor.shape).copy_(tensor)
            place += _padded(tensor.nbytes)
    messages = processes.exchange(outgoing, sent, received)
    del outgoing
    for sender, table in enumerate(tables):
        if sender == rank:
            yield from own.values()
            continue
        message, place = messages[sender], 0
        for leader, lengths, names, kinds in table:
            if owners[leader] != rank:
                continue
            tensors = []
            for dtype, width in kinds:
                size = sum(lengths) * width * dtype.itemsize
                tensors.append(message[place : place + size].view(dtype).view(sum(lengths), width))
                place += _padded(size)
            group = Rows(leader, lengths, tensors[0])
            for name, gradient in zip(names, tensors[1:]):
                group.gradients.setdefault(name, []).append(gradient)
            yield group


def _padded(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
