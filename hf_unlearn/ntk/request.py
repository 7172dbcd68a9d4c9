# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""One unlearning request in the linearised model: from rows to the update of the tuned parameters."""

import copy
import itertools
import time
from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from datasets import Dataset
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ..data.rows import sample_rows
from ..runtime.processes import Processes, own, share_of
from .cache import GramCache
from .grams import centred_chunks, check_labels, measure_gram
from .jacobians import Jacobians
from .solvers import cgls, choose_solver, dual_coefficients, primal_update
from .targets import centred, make_targets


KERNELS = ("full", "classwise", "pseudo")
LINEARIZE = ("midpoint", "pretrained", "tuned")


@torch.no_grad()
def apply_update(named_parameters: Mapping[str, nn.Parameter], update: Mapping[str, Tensor]):
    """Add the update, by parameter name, in place: the sum is formed in fp64 and rounded once."""
    for name, step in update.items():
        parameter = named_parameters[name]
        parameter.copy_((parameter.double() + step.to(parameter.device)).to(parameter.dtype))


def solve_request(
    model: nn.Module,
    names: Sequence[str],
    settings,
    retain: Dataset,
    forget: Dataset,
    collator: Callable,
    *,
    start: Mapping[str, Tensor] | None = None,
    accelerator=None,
    seed: int = 0,
) -> tuple[dict[str, Tensor], dict]:
    """The update of the tuned parameters `names`, and a report: solver, rows, parameters, scale, ridge, seconds.

    `settings` are a `FastNTK`, `start` holds the values before tuning (needed unless it linearises at the tuned ones),
    and `seed` chooses its `retain_samples` rows. The model is unchanged.
    """
    began = time.perf_counter()
    processes = Processes(accelerator, "the Fast-NTK request")
    model = _full_precision(model)
    at, origin = _linearisation(model, names, settings.linearize, start)
    jacobians = Jacobians(model, names, at=at, origin=origin, outputs=settings.outputs, chunk_size=settings.chunk_size)
    loader = lambda rows: DataLoader(rows, batch_size=4 * settings.chunk_size, collate_fn=collator)
    everything, retain = retain, sample_rows(retain, settings.retain_samples, seed)
    targets, about = make_targets(settings, model, loader, (everything, retain, forget), processes, seed)
    classes = about.pop("classes")
    contrasts = {"retain": settings.contrasts, "forget": settings.forget_contrasts or settings.contrasts}
    contrasts = {name: min(count or classes, classes - 1) for name, count in contrasts.items()}
    rows = len(retain) * contrasts["retain"] + len(forget) * contrasts["forget"]
    primal_only = ("gram_cache", "retain_samples", "contrasts", "forget_contrasts")
    if settings.kernel != "full":
        solver = "dual"
    elif any(getattr(settings, name) is not None for name in primal_only):
        solver = "primal"
    else:
        solver = choose_solver(rows, jacobians.size, settings.solver)
    solve = {"primal": _primal, "dual": _dual, "cg": _matrix_free}[solver]
    # Of the retain rows that are taken each stands for so many.
    sample = {"weight": len(everything) / len(retain), "contrasts": contrasts} if solver == "primal" else {}
    flat, report = solve(jacobians, settings, targets, retain, forget, loader, processes, **sample)
    # All solved the same system; on unlike devices the last bits may differ, and the copies of the model must not.
    processes.broadcast(flat, 0)
    report = {
        "solver": solver,
        "samples": len(retain) + len(forget),
        "contrasts": contrasts,
        "parameters": jacobians.size,
        **about,
        "update_norm": float(flat.norm()),
        **report,
    }
    report["jacobian_seconds"] = time.perf_counter() - began - report["solve_seconds"]
    return jacobians.unflatten(flat), report


def _linearisation(model: nn.Module, names: Sequence[str], linearize: str, start: Mapping[str, Tensor] | None):
    """(at, origin) of `Jacobians`."""
    if linearize != "midpoint":
        return (start if linearize == "pretrained" else None), None
    tuned = dict(model.named_parameters())
    return {name: (start[name].to(tuned[name]) + tuned[name].detach()) / 2 for name in names}, start


def _primal(jacobians, settings, targets, retain, forget, loader, processes, weight, contrasts):
    rows = {"retain": retain, "forget": forget}
    measure = lambda name: measure_gram(jacobians, loader(rows[name]), processes, contrasts[name])
    if settings.gram_cache is None:
        part = measure("forget")
        whole = weight * measure("retain") + part
    else:
        # Another request on the same model divides the same rows in another way: their Gram is known, and only the
        # rows to be forgotten are new.
        cache = GramCache(settings.gram_cache, jacobians, loader, processes, settings.contrasts)
        part = cache.get([forget], lambda: measure("forget"))
        whole = cache.get([retain, forget], lambda: measure("retain") + part)
    rest = whole - part
    began = time.perf_counter()
    ridge = settings.ridge * whole.mean_diagonal
    b, b_r = whole.residual(targets.scale, targets.everything), rest.residual(targets.scale, targets.retained)
    update = own(processes, lambda: primal_update(rest.matrix, b_r, part.matrix, b, ridge))
    return update, {"ridge": ridge, "solve_seconds": time.perf_counter() - began}


def _dual(jacobians, settings, targets, retain, forget, loader, processes):
    if settings.kernel == "pseudo":
        return _pseudo(jacobians, settings, targets, retain, forget, loader, processes)
    chunks_of = lambda rows: [
        chunk for batch in share_of(loader(rows), processes) for chunk in centred_chunks(jacobians, batch)
    ]
    parts = [_gather(chunks_of, rows, jacobians.device, processes)[0] for rows in (retain, forget)]
    count = len(parts[0][0])
    jacobian, outputs, unit = (torch.cat(pair) for pair in zip(*parts))
    began = time.perf_counter()
    ridge = settings.ridge * float(jacobian.square().sum(dtype=torch.float64)) / jacobians.size
    e, e_r = targets.residuals(unit, outputs, count)

    def solve() -> Tensor:
        if settings.kernel == "full":
            flat = jacobian.flatten(0, 1).double()
            coefficients = dual_coefficients(flat @ flat.T, e.flatten()[:, None], e_r.flatten()[:, None], ridge)
            return flat.T @ coefficients[:, 0]
        update = torch.zeros(jacobians.size, dtype=torch.float64, device=jacobian.device)
        for label in range(e.shape[1]):
            flat = jacobian[:, label].double()
            update += flat.T @ dual_coefficients(flat @ flat.T, e[:, label, None], e_r[:, label, None], ridge)[:, 0]
        return update

    return own(processes, solve), {"ridge": ridge, "solve_seconds": time.perf_counter() - began}


def _pseudo(jacobians, settings, targets, retain, forget, loader, processes):
    """Kernel of the summed logit over sqrt(C), one for all classes (Mohamadi et al. 2023); two backwards a sample."""

    def chunks_of(rows: Dataset) -> list[tuple[Tensor, Tensor, Tensor]]:
        chunks = []
        for batch in share_of(loader(rows), processes):
            labels = batch["labels"].to(jacobians.device)
            for outputs, row in jacobians.products(batch, lambda z: torch.full_like(z, z.shape[1] ** -0.5)):
                part, labels = labels.split([len(outputs), len(labels) - len(outputs)])
                unit = F.one_hot(check_labels(part, outputs.shape[1]), outputs.shape[1])
                chunks.append((row.double(), centred(outputs), centred(unit)))
        return chunks

    parts, firsts = zip(*[_gather(chunks_of, side, jacobians.device, processes) for side in (retain, forget)])
    rows, outputs, unit = (torch.cat(pair) for pair in zip(*parts))
    e, e_r = targets.residuals(unit, outputs, len(retain))
    began = time.perf_counter()
    kernel = rows @ rows.T
    ridge = settings.ridge * float(kernel.diagonal().sum()) / jacobians.size
    coefficients = own(processes, lambda: dual_coefficients(kernel, e, e_r, ridge))
    seconds = time.perf_counter() - began

    def pull_back() -> Tensor:
        update = torch.zeros(jacobians.size, dtype=torch.float64, device=rows.device)
        for side, first in ((retain, firsts[0]), (forget, len(retain) + firsts[1])):
            for batch in share_of(loader(side), processes):
                part = coefficients[first : first + len(batch["labels"])]
                first += len(part)
                update += jacobians.flatten(jacobians.vjp(batch, part))
        return update

    return processes.add(own(processes, pull_back)), {"ridge": ridge, "solve_seconds": seconds}


def _matrix_free(jacobians, settings, targets, retain, forget, loader, processes):
    """Conjugate gradients with J v and J^T u recomputed at every step: O(p) memory beside data and residuals."""
    sides = own(processes, lambda: [list(share_of(loader(rows), processes)) for rows in (retain, forget)])

    def residuals(batch) -> tuple[Tensor, Tensor]:
        """(n, C) of training on all rows, and of retraining."""
        outputs = jacobians.outputs_of(batch)
        unit = F.one_hot(check_labels(batch["labels"].to(outputs.device), outputs.shape[1]), outputs.shape[1])
        return targets.residuals(centred(unit), centred(outputs))

    def products(batches, vector: Tensor) -> list[Tensor]:
        return [centred(jacobians.jvp(batch, jacobians.unflatten(vector))) for batch in batches]

    def transposed(batches, parts: Sequence[Tensor]) -> Tensor:
        def local() -> Tensor:
            total = torch.zeros(jacobians.size, dtype=torch.float64, device=jacobians.device)
            for batch, part in zip(batches, parts):
                total += jacobians.flatten(jacobians.vjp(batch, centred(part)))
            return total

        return processes.add(own(processes, local))

    began = time.perf_counter()
    batches = sides[0] + sides[1]
    found = own(processes, lambda: [residuals(batch) for batch in batches])
    e, e_r = [both[0] for both in found], [both[1] for both in found[: len(sides[0])]]

    def squares() -> Tensor:
        """Trace of the Gram over this process's rows: one backward a class, of (chunk_size, p) numbers each."""
        total = torch.zeros((), dtype=torch.float64, device=jacobians.device)
        for batch, part in zip(batches, e):
            for unit in centred(torch.eye(part.shape[1], device=jacobians.device)):
                for _, rows in jacobians.products(batch, lambda z, unit=unit: unit.to(z).expand_as(z)):
                    total += rows.square().sum(dtype=torch.float64)
        return total

    trace = float(processes.add(own(processes, squares)))
    ridge = settings.ridge * trace / jacobians.size
    exact = all(value.dtype == torch.float64 for value in jacobians.values.values())
    empty = torch.zeros(0, dtype=torch.float64, device=jacobians.device)
    flat = lambda parts: torch.cat([empty, *(part.flatten() for part in parts)])

    def solution(batches, residual) -> Tensor:
        shapes = [part.shape for part in residual]

        def back(u: Tensor) -> Tensor:
            parts = u.split([shape.numel() for shape in shapes])
            return transposed(batches, [part.view(shape) for part, shape in zip(parts, shapes)])

        # Forward and reverse mode agree to rounding only, and so does the residual that can be reached.
        return cgls(
            lambda v: flat(own(processes, lambda: products(batches, v))), back, flat(residual), ridge,
            tolerance=1e-9 if exact else 1e-5, max_iterations=500, reduce=processes.add,
        )  # fmt: skip

    update = solution(sides[0], e_r) - solution(batches, e)
    return update, {"ridge": ridge, "solve_seconds": time.perf_counter() - began}


def _gather(
    chunks_of: Callable[[Dataset], list[tuple[Tensor, ...]]], rows: Dataset, device, processes: Processes
) -> tuple[list[Tensor], int]:
    """The chunks of all processes, one after another, and at which of their rows this process's begin. Collective."""
    # On the CPU: what is pickled on a device would be put on the sender's.
    place = "cpu" if processes.size > 1 else device
    parts = processes.share(lambda: [tuple(part.to(place) for part in chunk) for chunk in chunks_of(rows)])
    first = sum(len(chunk[0]) for chunks in parts[: processes.rank] for chunk in chunks)
    return [torch.cat(tensors).to(device) for tensors in zip(*itertools.chain(*parts))], first


def _full_precision(model: nn.Module) -> nn.Module:
    """The model, or an fp32 copy of one in half precision."""
    half = any(parameter.dtype in (torch.float16, torch.bfloat16) for parameter in model.parameters())
    return copy.deepcopy(model).float() if half else model
