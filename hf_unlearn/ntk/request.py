# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""One unlearning request in the linearised model: from rows to the update of the tuned parameters."""

import copy
import hashlib
import itertools
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from datasets import Dataset, concatenate_datasets
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ..curvature.sharding import Processes
from ..data.rows import row_hashes
from ..errors import InputError
from ..evaluation.scoring import evaluation_mode
from ..files import open_safetensors, sha256_json, sha256_tensors, write_safetensors
from .grams import Gram, centred_chunks, check_labels, measure_gram, share_of
from .jacobians import Jacobians, model_inputs
from .solvers import cgls, choose_solver, dual_coefficients, primal_update


logger = logging.getLogger(__name__)

KERNELS = ("full", "classwise", "pseudo")


class ClosedForm(torch.optim.Optimizer):
    """An optimiser of one step: adds the update that `solve` gives, by parameter name, whatever the gradients are."""

    def __init__(self, named_parameters: Mapping[str, nn.Parameter], solve: Callable[[], Mapping[str, Tensor]]):
        self.named, self.solve = dict(named_parameters), solve
        super().__init__(list(self.named.values()), {"lr": 1.0})

    @torch.no_grad()
    def step(self, closure=None):
        loss = None if closure is None else torch.enable_grad()(closure)()
        for name, update in self.solve().items():
            parameter = self.named[name]
            parameter.copy_((parameter.double() + update.to(parameter.device)).to(parameter.dtype))
        return loss


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
) -> tuple[dict[str, Tensor], dict]:
    """The update of the parameters `names`, and a report: solver, rows, parameters, scale, ridge, seconds.

    Args:
        settings: a `FastNTK`.
        start: values to linearise at; the model's own when None.
    """
    began = time.perf_counter()
    processes = Processes(accelerator, "the Fast-NTK request")
    model = _full_precision(model)
    jacobians = Jacobians(model, names, at=start, outputs=settings.outputs, chunk_size=settings.chunk_size)
    loader = lambda rows: DataLoader(rows, batch_size=4 * settings.chunk_size, collate_fn=collator)
    classes, margin = mean_margin(model, loader(retain), processes)
    scale = settings.target_scale
    if scale == "auto":
        scale = 1.0 if settings.outputs == "probabilities" else margin
    rows = (len(retain) + len(forget)) * classes
    if settings.kernel != "full":
        solver = "dual"
    elif settings.gram_cache is not None:
        solver = "primal"
    else:
        solver = choose_solver(rows, jacobians.size, settings.solver)
    solve = {"primal": _primal, "dual": _dual, "cg": _matrix_free}[solver]
    flat, report = solve(jacobians, settings, scale, retain, forget, loader, processes)
    report = {
        "solver": solver,
        "samples": len(retain) + len(forget),
        "parameters": jacobians.size,
        "target_scale": scale,
        "update_norm": float(flat.norm()),
        **report,
    }
    report["jacobian_seconds"] = time.perf_counter() - began - report["solve_seconds"]
    return jacobians.unflatten(flat), report


def _primal(jacobians, settings, scale, retain, forget, loader, processes):
    def gram(*parts: Dataset, measure: Callable[[], Gram]) -> Gram:
        return (
            measure() if settings.gram_cache is None else _cached_gram(jacobians, settings, parts, measure, processes)
        )

    part = gram(forget, measure=lambda: measure_gram(jacobians, loader(forget), processes))
    # Another request on the same model divides the same rows in another way: their Gram is known, and only the rows to be
    # forgotten are new.
    whole = gram(retain, forget, measure=lambda: measure_gram(jacobians, loader(retain), processes) + part)
    rest = whole - part
    began = time.perf_counter()
    ridge = settings.ridge * whole.mean_diagonal
    update = primal_update(rest.matrix, rest.residual(scale), part.matrix, part.residual(scale), ridge)
    return update, {"ridge": ridge, "solve_seconds": time.perf_counter() - began}


def _cached_gram(jacobians, settings, parts: Sequence[Dataset], measure: Callable[[], Gram], processes) -> Gram:
    """The Gram of a set of rows at these weights, measured at most once (`settings.gram_cache` is the folder)."""
    hashes = sorted(row for rows in parts for row in row_hashes(rows))
    frozen = {name: value for name, value in jacobians.model.state_dict().items() if name not in jacobians.values}
    key = sha256_json(
        {
            "rows": hashlib.sha256("".join(hashes).encode()).hexdigest(),
            "at": sha256_tensors(jacobians.values),
            "frozen": sha256_tensors(frozen),
            "outputs": settings.outputs,
        }
    )
    file = Path(settings.gram_cache) / f"gram-{key[:16]}.safetensors"
    if file.is_file():
        with open_safetensors(file, str(jacobians.device)) as saved:
            logger.info(f"the Gram of {len(hashes)} rows is read from {file}")
            return Gram(*(saved.get_tensor(name) for name in ("matrix", "target", "output")), len(hashes))
    gram = measure()
    if processes.rank == 0:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_safetensors(file, {"matrix": gram.matrix, "target": gram.target, "output": gram.output})
    return gram


def _dual(jacobians, settings, scale, retain, forget, loader, processes):
    if settings.kernel == "pseudo":
        return _pseudo(jacobians, settings, scale, retain, forget, loader, processes)
    parts = [
        _gather([chunk for batch in share_of(loader(rows), processes) for chunk in centred_chunks(jacobians, batch)], processes)
        for rows in (retain, forget)
    ]  # fmt: skip
    count = len(parts[0][0])
    jacobian, outputs, targets = (torch.cat(pair) for pair in zip(*parts))
    began = time.perf_counter()
    ridge = settings.ridge * float(jacobian.square().sum(dtype=torch.float64)) / jacobians.size
    residual = scale * targets - outputs
    classes = residual.shape[1]
    if settings.kernel == "full":
        flat = jacobian.flatten(0, 1).double()
        coefficients = dual_coefficients(flat @ flat.T, residual.flatten()[:, None], count * classes, ridge)
        update = flat.T @ coefficients[:, 0]
    else:
        update = torch.zeros(jacobians.size, dtype=torch.float64, device=jacobian.device)
        for label in range(classes):
            flat = jacobian[:, label].double()
            update += flat.T @ dual_coefficients(flat @ flat.T, residual[:, label, None], count, ridge)[:, 0]
    return update, {"ridge": ridge, "solve_seconds": time.perf_counter() - began}


def _pseudo(jacobians, settings, scale, retain, forget, loader, processes):
    """Kernel of the summed logit over sqrt(C) (Mohamadi et al. 2023), the same for every class; two backwards a sample."""
    everything = concatenate_datasets([retain, forget])
    rows, outputs, targets = [], [], []
    for batch in loader(everything):
        for chunk, row in jacobians.products(batch, lambda z: torch.full_like(z, z.shape[1] ** -0.5)):
            outputs.append(chunk.double())
            rows.append(row)
        targets.append(batch["labels"])
    rows, outputs = torch.cat(rows).double(), torch.cat(outputs)
    targets = torch.nn.functional.one_hot(torch.cat(targets).to(outputs.device), outputs.shape[1]).double()
    residual = scale * (targets - targets.mean(1, keepdim=True)) - (outputs - outputs.mean(1, keepdim=True))
    began = time.perf_counter()
    kernel = rows @ rows.T
    ridge = settings.ridge * float(kernel.diagonal().sum()) / jacobians.size
    coefficients = dual_coefficients(kernel, residual, len(retain), ridge)
    seconds = time.perf_counter() - began
    update, first = torch.zeros(jacobians.size, dtype=torch.float64, device=rows.device), 0
    for batch in loader(everything):
        part = coefficients[first : first + len(batch["labels"])]
        first += len(part)
        update += jacobians.flatten(jacobians.vjp(batch, part))
    return update, {"ridge": ridge, "solve_seconds": seconds}


def _matrix_free(jacobians, settings, scale, retain, forget, loader, processes):
    """Conjugate gradients with J v and J^T u recomputed from the data at every step: O(p) memory beside the residuals."""
    sides = [list(share_of(loader(rows), processes)) for rows in (retain, forget)]
    centre = lambda z: (z - z.mean(1, keepdim=True)).double()

    def residuals(batches) -> list[Tensor]:
        found = []
        for batch in batches:
            outputs = jacobians.outputs_of(batch)
            targets = torch.nn.functional.one_hot(batch["labels"].to(outputs.device), outputs.shape[1]).double()
            found.append(scale * centre(targets) - centre(outputs))
        return found

    def products(batches, vector: Tensor) -> list[Tensor]:
        return [centre(jacobians.jvp(batch, jacobians.unflatten(vector))) for batch in batches]

    def transposed(batches, parts: Sequence[Tensor]) -> Tensor:
        total = torch.zeros(jacobians.size, dtype=torch.float64, device=jacobians.device)
        for batch, part in zip(batches, parts):
            total += jacobians.flatten(jacobians.vjp(batch, part - part.mean(1, keepdim=True)))
        return processes.add(total)

    began = time.perf_counter()
    e = [residuals(side) for side in sides]
    # The trace of the Gram in expectation: |J^T u|^2 over signs u (Hutchinson), 8 draws.
    generator = torch.Generator().manual_seed(processes.rank)
    signs = lambda parts: [torch.randint(2, part.shape, generator=generator).double() * 2 - 1 for part in parts]
    trace = sum(
        float(sum(transposed(side, signs(part)) for side, part in zip(sides, e)).square().sum()) for _ in range(8)
    ) / 8  # fmt: skip
    ridge = settings.ridge * trace / jacobians.size
    flat = lambda parts: (
        torch.cat([part.flatten() for part in parts]) if parts else torch.zeros(0, dtype=torch.float64)
    )

    def solution(batches, residual) -> Tensor:
        shapes = [part.shape for part in residual]

        def back(u: Tensor) -> Tensor:
            parts = u.split([shape.numel() for shape in shapes])
            return transposed(batches, [part.view(shape) for part, shape in zip(parts, shapes)])

        # Forward and reverse mode agree to fp32 rounding only, and so does the residual that can be reached.
        return cgls(
            lambda v: flat(products(batches, v)), back, flat(residual), ridge, tolerance=1e-5, max_iterations=500,
            reduce=processes.add,
        )  # fmt: skip

    update = solution(sides[0], e[0]) - solution(sides[0] + sides[1], e[0] + e[1])
    return update, {"ridge": ridge, "solve_seconds": time.perf_counter() - began}


@torch.no_grad()
def mean_margin(model: nn.Module, batches, processes: Processes) -> tuple[int, float]:
    """(C, mean over samples of z_y - mean of the other logits) of the model as it is tuned."""
    sums, classes = torch.zeros(2, dtype=torch.float64), 0
    with evaluation_mode(model):
        device = next(model.parameters()).device
        for batch in share_of(batches, processes):
            outputs = model(**model_inputs(model, batch))
            logits = (outputs if isinstance(outputs, Tensor) else outputs.logits).double()
            classes = logits.shape[1]
            right = logits.gather(1, check_labels(batch["labels"].to(device), classes)[:, None])[:, 0]
            margins = right - (logits.sum(1) - right) / (classes - 1)
            sums += torch.tensor([float(margins.sum()), len(margins)], dtype=torch.float64)
    processes.add(sums)
    classes = max(processes.gather(classes))
    margin = float(sums[0] / sums[1])
    if not margin > 0:
        raise InputError(
            f"the model gives retain rows a mean margin of {margin:.3g}: it was never tuned on them; tune it first"
        )
    return classes, margin


def _gather(chunks: list[tuple[Tensor, Tensor, Tensor]], processes: Processes) -> list[Tensor]:
    """Chunks of all processes, one after another: (Jacobian, outputs, targets)."""
    everyone = itertools.chain(*processes.gather(chunks))
    return [torch.cat(parts) for parts in zip(*everyone)]


def _full_precision(model: nn.Module) -> nn.Module:
    """The model, or an fp32 copy of one in half precision."""
    half = any(parameter.dtype in (torch.float16, torch.bfloat16) for parameter in model.parameters())
    return copy.deepcopy(model).float() if half else model
