# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Grams kept on disk: a later request on the same model measures only its own rows."""

import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from datasets import Dataset

from ..data.rows import hash_of_rows, row_hashes
from ..errors import InputError
from ..runtime.files import (
    open_safetensors,
    parse_json,
    read_tensors,
    sha256_json,
    sha256_tensor,
    sha256_tensors,
    write_safetensors,
)
from ..runtime.processes import Processes, own
from .grams import TENSORS, Gram
from .jacobians import Jacobians


logger = logging.getLogger(__name__)


class GramCache:
    """Grams of sets of rows at the weights of one request, told apart by all that they depend on.

    The first process writes, all read; the number of processes makes no difference. The folder is made when absent;
    `loader` makes batches of rows, and `contrasts` are drawn for each sample, as `measure_gram` takes them.
    """

    def __init__(
        self,
        folder: str | Path,
        jacobians: Jacobians,
        loader: Callable,
        processes: Processes,
        contrasts: int | None = None,
    ):
        self.folder, self.loader, self.processes, self.device = Path(folder), loader, processes, str(jacobians.device)
        frozen = {name: value for name, value in jacobians.model.state_dict().items() if name not in jacobians.values}
        # Once for all Grams of a request: weights are hashed at some 1 GB a second.
        self.weights = {
            "at": sha256_tensors(jacobians.values),
            "origin": jacobians.origin and sha256_tensors(jacobians.origin),
            "frozen": sha256_tensors(frozen),
            "outputs": jacobians.outputs,
            "contrasts": contrasts,
        }

    def get(self, parts: Sequence[Dataset], measure: Callable[[], Gram]) -> Gram:
        """The Gram of the rows of all parts, in any order; `measure()` makes it when it is not there. Collective."""
        count = sum(map(len, parts))
        file = self.folder / f"gram-{own(self.processes, lambda: self._key(parts))[:16]}.safetensors"
        # Only where all see the file: folders that are not shared between machines hold it on some.
        found = self._read(file)
        if all(self.processes.share(lambda: found is not None)):
            logger.info(f"the Gram of {count} rows is read from {file}")
            return Gram(*map(found.get, TENSORS), count)
        gram = measure()
        self.processes.share(lambda: self._keep(file, gram) if self.processes.rank == 0 else None)
        return gram

    def _read(self, file: Path) -> dict | None:
        """The tensors of a Gram; None when there is none, or it is no longer what was written."""
        if not file.exists():
            return None
        try:
            with open_safetensors(file) as saved:
                hashes = parse_json((saved.metadata() or {}).get("sha256", ""), file, {str: str})
            return read_tensors(file, TENSORS, hashes, self.device)
        except InputError as error:
            logger.warning(f"a Gram that was kept is not used and is made again: {error}")
            return None

    def _keep(self, file: Path, gram: Gram):
        try:
            hashes = {name: sha256_tensor(tensor) for name, tensor in gram.tensors().items()}
            write_safetensors(file, gram.tensors(), {"sha256": json.dumps(hashes)})
        except OSError as error:
            logger.warning(f"a Gram could not be kept, and would be made again: {error}")

    def _key(self, parts: Sequence[Dataset]) -> str:
        places = sorted(
            (row, part, place) for part, rows in enumerate(parts) for place, row in enumerate(row_hashes(rows))
        )
        # Size and normalisation of images are the collator's: what it makes of one row, the same in any order, tells.
        _, part, place = places[0]
        example = next(iter(self.loader(parts[part].select([place]))))
        rows = hash_of_rows(row for row, *_ in places)
        return sha256_json(self.weights | {"rows": rows, "example": sha256_tensors(example)})
