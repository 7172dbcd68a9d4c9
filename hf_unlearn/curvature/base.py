# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""What every curvature does: fit on data, solve, norm, and files."""

import abc
import resource
import tempfile
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from ..errors import InputError, NumericalError
from ..files import open_safetensors, read_json, sha256_json, sha256_tensor, write_json, write_safetensors
from ..version import __version__
from .fisher import FISHERS
from .linalg import check_finite, matmul_precision
from .passes import run_pass
from .sharding import all_reduce
from .sums import SquareSums
from .targets import is_transposed, select_targets, unwrap


CONFIG_FILE = "curvature_config.json"
SHARD_BYTES = 5 * 10**9


class Curvature(abc.ABC):
    """A positive semi-definite matrix G over some weights of a model, block-diagonal over the weights.

    G is per predicted token: G = (1 / N) sum over sequences, N predicted tokens (samples for classifiers), so that for
    a small step v the mean KL between the model's predictions before and after is v^T G v / 2 nats a token. Biases
    are not in it. Every block is diagonal in a Kronecker product of two orthogonal bases; a subclass says which.

    Attributes:
        names: `state_dict` names of the weights.
        metadata: JSON-able account of the fit (kind, data, model, cost), see `fit`.
    """

    kind: str

    def __init__(self):
        self.metadata, self.tensors = {}, {}
        self._warned = False

    @property
    def names(self) -> list[str]:
        return list(self.metadata.get("targets", {}))

    def fit(
        self,
        model: nn.Module,
        dataloader: Iterable[Mapping],
        *,
        target_modules: str | list[str] | None = None,
        fisher: str = "sampled",
        seed: int = 0,
        accelerator=None,
        progress: bool = True,
    ) -> "Curvature":
        """Measure G on data. The model is left as it was found.

        Args:
            dataloader: dicts that the model takes: `input_ids`, `attention_mask`, `labels` (B, T) with -100 ignored,
                shifted for causal models as transformers does; or `pixel_values` / `input_ids` and `labels` (B,).
                Not prepared by an accelerator, and in the same order each time and on every process (a sampler that
                shuffles needs a seeded generator of its own).
            target_modules: see `select_targets`; None for the linear layers of the MLP blocks.
            fisher: "sampled": labels drawn from the model; "probe": random signs in place of a drawn label, as dear
                and a little more accurate; "exact": one backward per class and place, no randomness, for small
                models; "empirical": the labels of the data, which is not the Fisher but the usual shortcut.
            seed: of the draws. They depend on it and on a sequence's place in the data alone. A second pass (EK-FAC)
                draws the same labels again.
            accelerator: with several processes, each takes every n-th batch.

        Raises:
            InputError: empty dataloader, labels all ignored, no or unsuitable target, a target that never runs.
            NumericalError: a factor is not finite; the message names it.
        """
        if fisher not in FISHERS:
            raise InputError(f"fisher must be one of {', '.join(FISHERS)}, not {fisher!r}")
        if isinstance(dataloader, Iterator):
            raise InputError("the dataloader can be read only once; pass a DataLoader or a list of batches")
        targets = select_targets(model, target_modules)
        self.tensors, self._warned = {}, False
        self.metadata = {
            "kind": self.kind,
            "unit": "per predicted token",
            "fisher": fisher,
            "seed": seed,
            "targets": {
                name: {"shape": list(module.weight.shape), "transposed": is_transposed(module)}
                for name, module in targets.items()
            },
            "stages": {},
            **_identity(model, targets),
        }

        def measure(sums, description: str, tensors):
            """Run one pass and reduce `tensors()` over the processes; the number of predicted tokens."""
            with self._stage(description):
                counts = run_pass(
                    model,
                    dataloader,
                    targets,
                    sums,
                    fisher=fisher,
                    seed=seed,
                    accelerator=accelerator,
                    description=description,
                    progress=progress,
                )
                counts = counts.to(next(model.parameters()).device)
                all_reduce({"counts": counts}, accelerator)
                sequences, tokens = counts.tolist()
                if tokens == 0:
                    raise InputError(
                        "no token to predict in the curvature data: the dataloader is empty or all labels are -100"
                    )
                all_reduce(tensors(), accelerator)
            self.metadata |= {"sequences": sequences, "predicted_tokens": tokens}
            return tokens

        with torch.no_grad():
            self._fit(targets, measure, accelerator, progress)
        return self

    @abc.abstractmethod
    def _fit(self, targets, measure, accelerator, progress: bool):
        """Fill `self.tensors` with passes over the data: `measure(sums, description, tensors)` makes one."""

    def _measure_eigenvalues(self, sums: SquareSums, measure, description: str):
        """One pass that takes the mean squares of per-sequence gradients, in the basis of `sums`, as eigenvalues."""
        tokens = measure(sums, description, lambda: sums.squares)
        for name, total in sums.squares.items():
            check_finite(total, f"the {description} of {name}")
            self.tensors[f"eigenvalues.{name}"] = total.div_(tokens)

    @abc.abstractmethod
    def _eigenvalues(self, name: str) -> Tensor:
        """Eigenvalues of the block, (d_out, d_in) or a scalar, in the basis of `_rotate`."""

    def _rotate(self, name: str, matrix: Tensor) -> Tensor:
        """The matrix (d_out, d_in) in the block's eigenbasis; the identity unless a subclass has bases."""
        return matrix

    def _unrotate(self, name: str, matrix: Tensor) -> Tensor:
        return matrix

    def solve(self, gradients: Mapping[str, Tensor], damping: float) -> dict[str, Tensor]:
        """(G + damping I)^-1 applied to gradients of some of the weights: name -> step, shaped like the weight.

        Steps are fp32 (fp64 for an fp64 model) on the device of their gradient.

        Raises:
            InputError: a name or shape that was not fitted, a negative damping.
            NumericalError: the step is not finite.
        """
        return next(self.solve_many(gradients, [damping]))[0]

    def solve_many(
        self, gradients: Mapping[str, Tensor], dampings: Iterable[float]
    ) -> Iterator[tuple[dict[str, Tensor], float]]:
        """For each damping the step and its `norm`; the gradients are rotated into the eigenbasis only once."""
        with torch.no_grad(), matmul_precision("highest"):
            rotated = {name: self._to_basis(name, gradient) for name, gradient in gradients.items()}
        for damping in dampings:
            if not damping >= 0:
                raise InputError(f"damping must not be negative, got {damping}")
            self._check_damping(gradients, damping)
            steps, square = {}, 0.0
            with torch.no_grad(), matmul_precision("highest"):
                for name, matrix in rotated.items():
                    values = self._eigenvalues(name)
                    matrix = matrix / (values + damping)
                    square += _quadratic(matrix, values)
                    steps[name] = self._from_basis(name, matrix).to(gradients[name].device)
                    if not torch.isfinite(steps[name]).all():
                        raise NumericalError(f"the step of {name} is not finite at damping {damping:g}; raise damping")
            yield steps, square**0.5

    def norm(self, steps: Mapping[str, Tensor]) -> float:
        """sqrt(v^T G v) over all the steps together, without damping."""
        with torch.no_grad(), matmul_precision("highest"):
            return (
                sum(_quadratic(self._to_basis(name, v), self._eigenvalues(name)) for name, v in steps.items()) ** 0.5
            )

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write `curvature_config.json` and safetensors shards; the config comes last, so half a folder never loads."""
        folder, shards, size = Path(folder), [[]], 0
        for name, tensor in self.tensors.items():
            if shards[-1] and size + tensor.nbytes > SHARD_BYTES:
                shards.append([])
                size = 0
            shards[-1].append(name)
            size += tensor.nbytes
        files = {
            f"curvature-{number:05d}-of-{len(shards):05d}.safetensors": names for number, names in enumerate(shards, 1)
        }
        for file, names in files.items():
            write_safetensors(folder / file, {name: self.tensors[name] for name in names})
        write_json(folder / CONFIG_FILE, {**self.metadata, "format": 1, "files": files})
        return folder

    @staticmethod
    def from_pretrained(
        folder_or_repo: str | Path,
        *,
        model: nn.Module | None = None,
        device: str | torch.device = "cpu",
        revision: str | None = None,
    ) -> "Curvature":
        """Load what `save_pretrained` wrote, of whatever kind, from a folder or the Hub.

        Raises:
            InputError: nothing there, damaged, another format, or not of this `model` (see `check_model`).
        """
        from ..hub import fetch_folder
        from . import KINDS

        folder = fetch_folder(folder_or_repo, revision, ["curvature*"])
        if not (folder / CONFIG_FILE).is_file():
            raise InputError(
                f"{folder_or_repo} holds no {CONFIG_FILE}: give the folder or repository of a saved curvature"
            )
        metadata = read_json(folder / CONFIG_FILE)
        if metadata.pop("format", None) != 1 or metadata["kind"] not in KINDS:
            raise InputError(f"{folder_or_repo} was written by another version of hf_unlearn: fit the curvature again")
        curvature = KINDS[metadata["kind"]]()
        for file, names in metadata.pop("files").items():
            with open_safetensors(folder / file, str(device)) as shard:
                curvature.tensors |= {name: shard.get_tensor(name) for name in names}
        curvature.metadata = metadata
        if model is not None:
            curvature.check_model(model)
        return curvature

    def push_to_hub(self, repo: str, *, private: bool | None = None, token: str | None = None) -> str:
        """Upload to the Hub in one commit; the commit's URL."""
        from ..hub import push_folder

        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            return push_folder(repo, folder, private=private, commit_message="Add curvature", token=token)

    def check_model(self, model: nn.Module):
        """Raise InputError when a weight is missing or of another shape; warn when its values are not those fitted."""
        parameters = dict(model.named_parameters())
        for name, target in self.metadata["targets"].items():
            if name not in parameters:
                raise InputError(f"the curvature is of another architecture: the model has no {name}; fit it again")
            if list(parameters[name].shape) != target["shape"]:
                raise InputError(
                    f"the curvature is of another architecture: {name} is {list(parameters[name].shape)} in the model "
                    f"and {target['shape']} in the curvature; fit it again"
                )
        for name, digest in self.metadata["weights_sha256"].items():
            if sha256_tensor(parameters[name]) != digest:
                warnings.warn(
                    f"the curvature was fitted on other weights: {name} has changed since; refit it, or go on if the "
                    "change is small",
                    stacklevel=2,
                )
                return

    def _to_basis(self, name: str, matrix: Tensor) -> Tensor:
        target = self.metadata.get("targets", {}).get(name)
        if target is None:
            raise InputError(f"{name} has no curvature: fit it with target_modules that cover it")
        if list(matrix.shape) != target["shape"]:
            raise InputError(f"{name}: expected shape {target['shape']}, got {list(matrix.shape)}")
        matrix = matrix.to(self._eigenvalues(name))
        return self._rotate(name, matrix.T if target["transposed"] else matrix)

    def _from_basis(self, name: str, matrix: Tensor) -> Tensor:
        matrix = self._unrotate(name, matrix)
        return matrix.T.contiguous() if self.metadata["targets"][name]["transposed"] else matrix

    def _check_damping(self, names: Iterable[str], damping: float):
        """Kinds whose eigenvalues come from an eigendecomposition warn here."""

    def _stage(self, name: str):
        return _Stage(name, self.metadata["stages"])


class _Stage:
    """Context that writes seconds and peak memory of a stage. Without CUDA the peak is the process's so far."""

    def __init__(self, name: str, stages: dict):
        self.name, self.stages = name, stages

    def __enter__(self):
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        self.start = time.perf_counter()

    def __exit__(self, *_):
        if torch.cuda.is_available():
            torch.cuda.synchronize()
            peak = torch.cuda.max_memory_allocated()
        else:
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        self.stages[self.name] = {
            "seconds": round(time.perf_counter() - self.start, 3),
            "peak_memory_bytes": peak,
        }


def _quadratic(matrix: Tensor, values: Tensor) -> float:
    return float((matrix.square() * values).sum(dtype=torch.float64))


def _identity(model: nn.Module, targets: Mapping[str, nn.Module]) -> dict:
    """What tells this model from another: class, configuration, weights, versions."""
    import transformers

    inner = unwrap(model)
    config = inner.config.to_dict() if isinstance(inner, transformers.PreTrainedModel) else {}
    # Where the model came from and how it runs are not what it is.
    config = {
        key: value
        for key, value in config.items()
        if not key.startswith("_") and key not in ("transformers_version", "dtype", "use_cache")
    }
    return {
        "model_class": type(inner).__name__,
        "model_config_sha256": sha256_json(config),
        "weights_sha256": {name: sha256_tensor(module.weight) for name, module in targets.items()},
        "versions": {"hf_unlearn": __version__, "torch": torch.__version__, "transformers": transformers.__version__},
    }
