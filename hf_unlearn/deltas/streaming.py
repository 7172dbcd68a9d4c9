# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Transfer of a saved update onto a checkpoint: each byte is read once and written once, copied or summed."""

import math
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import torch

from ..errors import InputError
from ..runtime.checkpoints import CHUNK, Shards, StoredTensor, shorten
from ..runtime.files import as_bytes, begin_tensor_hash, copy_bytes, write_json, write_text
from ..runtime.folders import flush, staged_folder
from ..runtime.hub import hide_places, public_name
from .adding import add, check_scale, warn_of_other_base
from .card import transfer_card
from .plan import Plan, Sum
from .reader import THREADS, DeltaReader
from .stored import checkpoint_of, read_group


# Weights in another format are those of the model as it was, so `transfer` does not carry them over.
NOT_TRANSFERRED = {".safetensors", ".bin", ".pt", ".pth", ".h5", ".msgpack", ".gguf", ".onnx"}


def transfer(delta_dir: str | Path, model_dir: str | Path, output_dir: str | Path, scale: float = 1.0) -> Path:
    """Apply a saved delta to a safetensors checkpoint, file by file, and write the result as a new checkpoint.

    Names of weights in memory and of tensors on disk are matched by transformers' own rules (`Conversion`): renamed
    tensors, a base model's prefix, experts that are fused in memory. Every stored copy of a tied weight is changed.

    Memory: a few MB, and for weights that transformers transposes or interleaves those of one layer, four times.
    Configuration and tokenizer files are copied; weights in other formats are not, and a card of its own takes the
    place of the card. The result is built in a hidden folder beside `output_dir` and renamed at the end, once the
    delta's hash is known to be true: neither a kill nor a damaged delta leaves anything. Delta and checkpoint (with
    `model.safetensors`, or shards and their index) are folders or Hub repositories; `output_dir` is new or empty.

    Raises:
        InputError: a folder is not what it should be, the delta is damaged, or the checkpoint lacks a tensor of it.
        OSError: the result could not be written (nothing is left behind).
    """
    check_scale(scale)
    output = Path(output_dir)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise InputError(f"{output} exists and is not an empty folder; choose another --output or remove it")
    reader = DeltaReader(delta_dir)
    if "stored_sha256" not in reader.config:  # of an earlier version
        reader.check()
    source, model = checkpoint_of(model_dir)
    plan = Plan(reader, Shards(source, "model.safetensors"), model)

    with staged_folder(output) as building:
        writer = _Writer(plan, building, scale)
        writer.run()
        if "stored_sha256" in reader.config:
            reader.compare_stored(writer.hashes, writer.finite)
        warn_of_other_base(reader.config, sorted(writer.other_base))
        for file in sorted(source.iterdir()):
            if file.is_file() and file.suffix not in NOT_TRANSFERRED and file.name != "README.md":
                shutil.copyfile(file, building / file.name)
        record = {"delta": reader.config, "model": public_name(model_dir), "scale": scale}
        record["other_base"] = sorted(writer.other_base)
        write_json(building / "unlearning_transfer.json", record)
        hide_places(building)
        write_text(building / "README.md", transfer_card(record, source, model))
    return output


class _Writer:
    """Writer of the new shards: several threads, of which each reads, hashes, adds and writes a piece at a time.

    Attributes:
        hashes (`dict[str, str]`): of the update's tensors as they are stored.
        finite (`bool`): whether all of them are.
        other_base (`set[str]`): tensors of the update that were made from other weights than the checkpoint's.
    """

    def __init__(self, plan: Plan, folder: Path, scale: float):
        self.plan, self.folder, self.scale = plan, folder, scale
        self.hashes: dict[str, str] = {}
        self.finite = True
        self.other_base: set[str] = set()

    def run(self):
        files = self.plan.checkpoint.files
        # (file and place of the first byte, what writes it, the files that it writes to)
        work = [piece for filename in self.plan.checkpoint.filenames for piece in self._begin(filename)]
        for one in self.plan.sums:
            first = self.plan.checkpoint.stored(one.onto[0])
            place = files[one.onto[0]], first.begin
            work.append((place, partial(self._write_sum, one), {files[name] for name in one.onto}))
        work.sort(key=lambda piece: piece[0])
        left = Counter(filename for _, _, written in work for filename in written)
        threads = torch.get_num_threads()
        # hashlib, torch and the system leave the interpreter to others while they work.
        pool = ThreadPoolExecutor(THREADS, initializer=torch.set_num_threads, initargs=(1,))
        try:
            running = [(pool.submit(write), written) for _, write, written in work]
            for group in self.plan.groups:  # one at a time
                self._write_group(group)
            for future, written in running:
                future.result()
                left.subtract(written)
                for filename in written:
                    if not left[filename]:
                        flush(self.folder / filename)  # while others are still computed
        finally:
            pool.shutdown(cancel_futures=True)
            torch.set_num_threads(threads)  # the initializer's call was for all threads to come

    def _begin(self, filename: str) -> Iterator[tuple[tuple[str, int], Callable, set[str]]]:
        """Make a file of the final size; what copies to it the bytes that stay: its header, and tensors between."""
        checkpoint = self.plan.checkpoint
        size = (checkpoint.folder / filename).stat().st_size
        with open(self.folder / filename, "xb") as file:
            file.truncate(size)
        touched = [checkpoint.stored(name) for name in self.plan.touched if checkpoint.files[name] == filename]
        begin = 0
        for stop, end in [*sorted((tensor.begin, tensor.end) for tensor in touched), (size, size)]:
            if begin < stop:
                yield (filename, begin), partial(self._copy, filename, begin, stop), {filename}
            begin = end

    def _copy(self, filename: str, begin: int, end: int):
        source, target = self.plan.checkpoint.folder / filename, self.folder / filename
        with open(source, "rb") as old, open(target, "r+b") as new:
            copy_bytes(old.fileno(), new.fileno(), begin, end)

    def _write_sum(self, one: Sum):
        """Add a tensor of the update to the stored tensors, a chunk at a time."""
        update, done = self.plan.reader.stored(one.update), 0
        parts = [self.plan.checkpoint.stored(name) for name in one.onto]
        hashes = _Hashes(update, parts[0].dtype)
        for name, base in zip(one.onto, parts):
            count = base.shape.numel()
            with open(self.folder / self.plan.checkpoint.files[name], "r+b") as file:
                file.seek(base.begin)
                for old, new in zip(base.chunks(), update.chunks(done, count), strict=True):
                    hashes.see(old, new)
                    file.write(as_bytes(add(old, new, self.scale, out=old)))
            done += count
        self._note(one.update, hashes)

    def _write_group(self, group: tuple[str, ...]):
        """Add to weights that are converted as a whole, as they are in memory."""
        conversion, sums = self.plan.conversion, {}
        weights = read_group(conversion, self.plan.checkpoint, group)
        for name in group:
            sums[name] = weights.pop(name).clone(memory_format=torch.contiguous_format)  # else of the file itself
            if name not in self.plan.moved:
                continue
            update = self.plan.reader.stored(self.plan.moved[name])
            hashes = _Hashes(update, sums[name].dtype)
            for old, new in zip(sums[name].view(-1).split(CHUNK), update.chunks(), strict=True):
                hashes.see(old, new)
                add(old, new, self.scale, out=old)
            self._note(self.plan.moved[name], hashes)
        on_disk = conversion.to_disk(sums)
        back = conversion.to_memory(on_disk)
        # By their bytes: what is no number in the base comes back as it was too.
        if not all(name in back and torch.equal(_bits(back[name]), _bits(sums[name])) for name in group):
            raise InputError(
                f"the update of {shorten(group)} does not come back from the form it has on disk: apply it with "
                "UpdateDelta.apply_to to the loaded model, and save that"
            )
        for name, tensor in on_disk.items():
            place = self.plan.checkpoint.stored(name)
            with open(self.folder / self.plan.checkpoint.files[name], "r+b") as file:
                file.seek(place.begin)
                file.write(as_bytes(tensor.contiguous().to(place.dtype)))

    def _note(self, name: str, hashes: "_Hashes"):
        self.hashes[name] = hashes.update.hexdigest()
        if not hashes.finite:
            self.finite = False
        if self.plan.reader.config.get("base_sha256", {}).get(name) not in (None, hashes.base.hexdigest()):
            self.other_base.add(name)


class _Hashes:
    """Hashes of a tensor of the update and of the weight that it is added to, which are seen a chunk at a time."""

    def __init__(self, update: StoredTensor, dtype: torch.dtype):
        self.update = begin_tensor_hash(update.dtype, update.shape)
        self.base = begin_tensor_hash(dtype, update.shape)
        self.finite = True

    def see(self, base: torch.Tensor, update: torch.Tensor):
        self.base.update(as_bytes(base))
        self.update.update(as_bytes(update))
        # NaN is the least and the greatest of all.
        self.finite = self.finite and all(math.isfinite(extreme) for extreme in torch.aminmax(update))


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().view(-1).view(torch.uint8)
