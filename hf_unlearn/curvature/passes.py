# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""One pass over the data: forward, gradients at the outputs, backward; the same for every curvature."""

import contextlib
import hashlib
import itertools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..objectives import logits_of
from ..runtime.files import sha256_tensor
from ..runtime.labels import check_classes, find_labels, is_regression
from ..runtime.modules import is_causal, model_device, positions_behind_padding, takes_positions
from ..runtime.processes import LostProcess, Processes
from ..runtime.sharded import is_sharded, reshard
from .batches import Batch, check_readable, read_batch
from .capture import Capture
from .exchange import RowKeeper, contents, exchange_rows
from .fisher import output_gradients
from .layout import Layout
from .targets import Target, unwrap


@dataclass
class Progress:
    """How far a pass has come, all processes together: its rounds (one batch for each process), and what they held.

    `digest` is a chained hash of the batches, the same for any number of processes.
    """

    rounds: int = 0
    sequences: int = 0
    tokens: int = 0
    digest: str = ""


def run_pass(
    model: nn.Module,
    dataloader: Iterable[Mapping],
    targets: Mapping[str, Target],
    sums,
    *,
    layout: Layout,
    processes: Processes,
    progress: Progress,
    after_round: Callable[[Progress], None],
    fisher: str,
    seed: int,
    description: str,
    show: bool,
):
    """Feed `sums` with every batch; `progress` counts them, and the rounds that it has already are skipped.

    Every process reads the whole dataloader. In round r the process of rank k computes batch r * size + k; then the
    rows of each group go to its owner, whose `sums` add them in order of rank. One process alone adds as it goes.
    `after_round` is called when a round is in the sums.

    Raises:
        InputError: the processes read different data.
        LostProcess: another process has stopped.
    """
    from tqdm.auto import tqdm

    rank, size = processes.rank, processes.size
    reshard(model)
    device, causal, sharded = model_device(model), is_causal(model), is_sharded(model)
    if sharded and fisher == "exact":
        raise InputError(
            "fisher='exact' makes as many backwards as a batch has places, and on a sharded model all processes must "
            "make the same number: choose 'sampled' or 'probe'"
        )
    keeper = RowKeeper(layout.leaders) if size > 1 else None
    receiver = sums if keeper is None else keeper
    batches, raws, digests, first, failed = None, [], [], 0, None

    def read() -> list[str]:
        nonlocal batches, raws, digests
        if failed is not None:
            raise failed
        batches = iter(dataloader) if batches is None else batches
        raws = list(itertools.islice(batches, size))
        digests = [batch_digest(raw) for raw in raws]
        return digests

    def compute() -> tuple[int, int, list[tuple]]:
        """This process's batch: its sequences, its predicted tokens, and which rows of it there are to send."""
        starts = [first, *(first + rows for rows in itertools.accumulate(map(_rows, raws)))]
        numbered = list(zip(raws, starts))
        own = read_batch(*numbered[rank], causal, device) if rank < len(raws) else None
        if own is not None:
            check_readable(model, own)
            backward(own)
        elif sharded:
            # The others' forwards need the weights that lie here, and so a forward of this process too.
            others = (read_batch(*other, causal, device) for other in numbered)
            if (other := next((batch for batch in others if batch is not None), None)) is not None:
                backward(other, recorded=False)
        if own is None and keeper is not None:
            keeper.rows = {}
        counts = (len(own.sequences), len(own.labels)) if own is not None else (0, 0)
        return *counts, contents(keeper.rows) if keeper is not None else []

    total = len(dataloader) if hasattr(dataloader, "__len__") else None
    bar = tqdm(total=total, desc=description, unit="batch", disable=not show or rank != 0)
    with Capture(model, targets, receiver.on_input, receiver.on_gradient) as capture, bar:
        backward = Backward(model, capture, receiver, targets, fisher, seed, splits=causal and not sharded)
        for number in itertools.count():
            processes.doing = f"round {number + 1} of the {description} of a curvature fit"
            _check_same(processes.share(read), number * size)
            if not raws:
                break
            bar.update(len(raws))
            if number >= progress.rounds:
                found = processes.share(compute)
                try:
                    if keeper is not None:
                        tables = [table for *_, table in found]
                        for rows in exchange_rows(keeper.rows, tables, layout.owners, processes, device):
                            sums.add(rows)
                    progress.rounds += 1
                    progress.sequences += sum(sequences for sequences, *_ in found)
                    progress.tokens += sum(tokens for _, tokens, _ in found)
                    progress.digest = chain(progress.digest, digests)
                    after_round(progress)
                except LostProcess:
                    raise
                except Exception as error:
                    if size == 1:
                        raise
                    failed = error  # the others hear of it in the next round
            first += sum(map(_rows, raws))
    processes.doing = "the curvature fit"


class Backward:
    """One forward of a batch and its backwards, reported to `receiver` by the hooks of `capture`."""

    def __init__(self, model, capture: Capture, receiver, targets, fisher: str, seed: int, splits: bool):
        self.model, self.capture, self.receiver, self.targets = model, capture, receiver, targets
        self.fisher, self.seed, self.splits = fisher, seed, splits
        self.body, self.head, self._checked = None, None, False
        self.told = positions_behind_padding if takes_positions(model) else dict

    def __call__(self, batch: Batch, recorded: bool = True):
        """Without `recorded` nothing is reported: the model alone is run."""
        if self.body is None:
            splits = self.splits and len(batch.label_shape) == 2 and self.fisher != "exact"
            self.body, self.head = split_head(self.model, batch, self.targets) if splits else (self.model, None)
        self.receiver.start(batch)
        with self.capture.recording() if recorded else contextlib.nullcontext():
            outputs = forward(self.body, self.told(batch.inputs), self.head is not None)
        if outputs.shape[:-1] != batch.label_shape:
            raise InputError(
                f"the model gives outputs of shape {tuple(outputs.shape[:-1])} for labels of shape "
                f"{tuple(batch.label_shape)}; curvature needs one output per label (no virtual prompt tokens)"
            )
        if not is_regression(outputs):
            check_classes(batch.labels, len(self.head.weight) if self.head is not None else outputs.shape[-1])
        for gradient in output_gradients(outputs, self.head, batch, self.fisher, self.seed):
            outputs.backward(gradient, retain_graph=self.fisher == "exact")
        if recorded and not self._checked:
            self.capture.check_seen()
            self._checked = True
        self.receiver.end()


def batch_digest(raw: Mapping) -> str:
    """Hash of a dataloader's dict."""
    digest = hashlib.sha256()
    for key in sorted(raw):
        value = raw[key]
        digest.update(f"{key}:{sha256_tensor(value) if isinstance(value, Tensor) else value!r};".encode())
    return digest.hexdigest()


def chain(digest: str, digests: Iterable[str]) -> str:
    """The chained hash of batches, after some more of them."""
    for one in digests:
        digest = hashlib.sha256(f"{digest}{one}".encode()).hexdigest()
    return digest


def data_digest(dataloader: Iterable[Mapping], batches: int | None) -> str:
    """The chained hash of the first batches, or of all of them."""
    return chain("", map(batch_digest, itertools.islice(dataloader, batches)))


def _rows(raw: Mapping) -> int:
    labels = find_labels(raw)
    return 0 if labels is None else len(labels)


def _check_same(digests: list[list[str]], first: int):
    different = [rank for rank, found in enumerate(digests) if found != digests[0]]
    if different:
        place = next(number for number, found in enumerate(itertools.zip_longest(*digests)) if len(set(found)) > 1)
        raise InputError(
            f"process {', '.join(map(str, different))} read other data than process 0 (batch {first + place}): give "
            "all processes the same rows in the same order (a sampler that shuffles needs its own seeded generator)"
        )


def forward(body: nn.Module, inputs: Mapping, hidden: bool) -> Tensor:
    """Hidden states of a body, or logits of a model."""
    outputs = body(**inputs)
    if isinstance(outputs, Tensor):
        return outputs
    return outputs.last_hidden_state if hidden else logits_of(outputs, inputs.get("attention_mask"))


def split_head(model: nn.Module, batch: Batch, targets: Mapping[str, Target]):
    """(body, head) when the logits are exactly head(body's hidden states), else (model, None).

    Then logits can be made a few tokens at a time. Whether it holds (no soft-capping, scaling or prompt tokens) is
    tried on a few tokens rather than read from the configuration.
    """
    inner = unwrap(model)
    head, body = inner.get_output_embeddings(), inner.base_model
    if head is None or body is inner or any(head is target.module for target in targets.values()):
        return model, None
    one = batch.sample()
    with torch.no_grad():
        whole, split = forward(model, one, False), head(forward(body, one, True))
    tolerance = 1e-2 if whole.dtype in (torch.bfloat16, torch.float16) else 1e-5
    same = whole.shape == split.shape and (whole - split).abs().max() <= tolerance * whole.abs().max()
    return (body, head) if same else (model, None)
