# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""A trainer's model that is spread over processes (FSDP2): which launches give the right result, and rows for all."""

from torch.utils.data import Dataset

from ..errors import InputError
from ..objectives import IGNORE
from ..runtime.processes import Processes


def check_launch(trainer):
    """Refuse the launches that would give a wrong result, or none. Collective.

    Raises:
        InputError: one process with several GPUs; FSDP1; weights that only one process has loaded; a model that
            `fully_shard` has spread where Trainer does not know of it.
    """
    args = trainer.args
    if args.n_gpu > 1:
        raise InputError(
            f"one process sees {args.n_gpu} GPUs, which torch's DataParallel would share: start with "
            "`accelerate launch`, or show it one GPU with CUDA_VISIBLE_DEVICES=0"
        )
    if trainer.is_fsdp_enabled and not trainer.accelerator.is_fsdp2:
        raise InputError("FSDP1 flattens the weights, which have no names then: start with --fsdp_version 2")
    if not trainer.is_fsdp_enabled and trainer.is_sharded and not trainer.is_distributed_loading_by_transformers:
        raise InputError(
            "the model was spread by fully_shard, and Trainer would wrap it in DDP: load it with "
            "from_pretrained(..., distributed_config=DistributedConfig(fsdp_size=...)), or start with `accelerate "
            "launch --use_fsdp --fsdp_version 2` and leave the spreading to it"
        )
    Processes(trainer.accelerator, "the start of training").share(lambda: _check_loaded(trainer.model))


def _check_loaded(model):
    if any(parameter.is_meta for parameter in model.parameters()):
        raise InputError(
            "the weights are not loaded here, but every process must know those that it starts from: launch with "
            "--fsdp_cpu_ram_efficient_loading false"
        )


class PaddedRows(Dataset):
    """Rows, and copies of the first without its labels, which count for nothing."""

    def __init__(self, rows, blanks: int):
        self.rows, self.blanks = rows, blanks

    def __len__(self) -> int:
        return len(self.rows) + self.blanks

    def __getitem__(self, index: int) -> dict:
        if index < len(self.rows):
            return self.rows[index]
        row = self.rows[0]
        return row | {"labels": [IGNORE] * len(row["labels"]) if isinstance(row["labels"], list) else IGNORE}


def pad_rows(rows, batch_size: int, processes: int):
    """The rows in a number of batches that the processes can share evenly, for each forward needs all of them.

    A repeated row would count twice in the step, so what is added has no label.
    """
    batches = -(-len(rows) // batch_size)
    missing = -batches % processes
    return PaddedRows(rows, (batches + missing - 1) * batch_size + 1 - len(rows)) if missing else rows
