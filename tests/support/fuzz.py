# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Kinds of files that hf_unlearn reads, how each is made and read, and seeded ways to damage one."""

import contextlib
import gzip
import io
import json
import os
import random
import shutil
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
import yaml

from hf_unlearn import UpdateDelta
from hf_unlearn.cli.main import main
from hf_unlearn.curvature import KFAC, Curvature
from hf_unlearn.curvature.passes import Progress
from hf_unlearn.curvature.resume import FitCheckpoint
from hf_unlearn.data.sources import read_rows
from hf_unlearn.deltas import transfer
from hf_unlearn.errors import InputError
from hf_unlearn.evaluation.tofu_logs import read_log
from hf_unlearn.experiments.comparison import read_line
from hf_unlearn.experiments.finished_stages import FinishedStages
from hf_unlearn.experiments.settings import read_yaml
from hf_unlearn.methods.masking import MaskSettings
from hf_unlearn.methods.spe_state import SPEState, Sums
from hf_unlearn.requests.ledger import append_log
from hf_unlearn.runtime.cache import cached_folder, cached_json
from hf_unlearn.runtime.files import sha256_tensors, write_json, write_safetensors, write_sealed
from hf_unlearn.runtime.loading import load_model
from hf_unlearn.runtime.processes import Processes
from hf_unlearn.structure import StructureMask, find_structures
from hf_unlearn.trainer.run_folder import checkpoint_to_resume, claim_folder, seal_checkpoint
from tests.support.models import make_llama


@dataclass(frozen=True)
class Kind:
    """A file of a folder that `make(folder)` fills; `read(folder)` gives what a program gets of it, to compare.

    `sealed`: a hash covers it, so what is read is what was written, or nothing.
    """

    file: str
    make: Callable[[Path], object]
    read: Callable[[Path], object]
    sealed: bool = False


MASK = MaskSettings(sparsity=0.5)


def llama(**config):
    return make_llama(vocab_size=20, hidden_size=8, intermediate_size=12, layers=1, **config)


def make_delta(folder, shards="5GB"):
    shapes = {name: tensor.shape for name, tensor in llama().named_parameters()}
    delta = UpdateDelta(
        {name: torch.full(shape, 0.25) for name, shape in shapes.items()}, {"method": "KFade", "seed": 0}
    )
    delta.save_pretrained(folder / "delta", max_shard_size=shards)


def make_sharded_delta(folder):
    make_delta(folder, "1KB")


def read_delta(folder):
    return sha256_tensors(UpdateDelta.from_pretrained(folder / "delta").tensors)


def make_curvature(folder):
    rows = torch.arange(3, 15).reshape(2, 6)
    batch = {"input_ids": rows, "attention_mask": torch.ones_like(rows), "labels": rows}
    KFAC().fit(llama(), [batch], progress=False).save_pretrained(folder / "curvature")


def make_mask(folder):
    structures = find_structures(llama())
    mask = StructureMask.random(structures, 0.5, seed=0)
    elements = {name: mask.select(name, torch.ones(structures.shapes[name])).bool() for name in mask.names[:2]}
    StructureMask(structures, mask.chosen, elements, {"seed": 0}).save_pretrained(folder / "mask")


def read_mask(folder):
    mask = StructureMask.from_pretrained(folder / "mask", llama())
    return mask.hash, mask.settings, mask.share


def read_curvature(folder):
    found = Curvature.from_pretrained(folder / "curvature")
    return sha256_tensors(found.tensors), json.dumps(found.metadata)


def make_state(folder):
    """The state of a service after its first request, of one of three rows."""
    structures, rows, names = find_structures(llama()), torch.arange(3, 18).reshape(3, 5), [32 * one for one in "012"]
    batches = [{"input_ids": row, "attention_mask": torch.ones_like(row), "labels": row} for row in rows.split(1)]
    state = SPEState.prepare(llama(), batches, structures, MASK, names)
    blocks = bool(state.masks.blocks)
    state.forget(Sums.over(llama(), batches[:1], state.mask, blocks, gradients=True), names[:1])
    state.save(folder / "state")


def read_state(folder):
    state = SPEState.load(folder / "state", find_structures(llama()), MASK)
    sums = [state.base, state.gradients, state.fisher.tensors]
    for masks in (state.masks, state.forgotten):
        sums += [masks.gradients, masks.squares, {key: one.matrix() for key, one in masks.blocks.items()}]
    counts = [one.counts.samples for one in (state.masks, state.forgotten)]
    told = [state.requests, state.before, state.after, state.others, sorted(state.left), sorted(state.served)]
    return [sha256_tensors(part) for part in sums], state.mask.hash, counts, told


def make_model(folder, shards="5GB"):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    llama().save_pretrained(folder / "model", max_shard_size=shards)
    words = Tokenizer(models.WordLevel({"a": 0, "b": 1, "?": 2}, unk_token="?"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="?").save_pretrained(folder / "model")


def make_sharded_model(folder):
    make_model(folder, "2KB")


def read_model(folder):
    load_model(str(folder / "model"))


def make_transfer(folder):
    make_model(folder), make_delta(folder)


def read_transfer(folder):
    transfer(folder / "delta", folder / "model", folder / "out")


def make_adapter(folder):
    from peft import LoraConfig, get_peft_model

    make_model(folder)
    get_peft_model(llama(), LoraConfig(target_modules=["q_proj"])).save_pretrained(folder / "adapter")
    config = folder / "adapter" / "adapter_config.json"
    config.write_text(
        config.read_text().replace(
            '"base_model_name_or_path": null', f'"base_model_name_or_path": "{folder / "model"}"'
        )
    )


def read_adapter(folder):
    load_model(str(folder / "adapter"))


ROWS = [{"question": "Who is A?", "answer": "A."}, {"question": "Who is B?", "answer": "B, née Ö."}]


def make_rows(name):
    def make(folder):
        import pandas

        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()
        content = {
            ".json": json.dumps(ROWS).encode(), ".jsonl": lines, ".gz": gzip.compress(lines), ".csv": b"text\nhello\n",
            ".tsv": b"text\tid\nhello\t1\n", ".txt": b"one document\n\nanother",
        }  # fmt: skip
        if name.endswith(".parquet"):
            pandas.DataFrame(ROWS).to_parquet(folder / name)
        else:
            (folder / name).write_bytes(content[Path(name).suffix])

    return make


def rows_kind(name):
    return Kind(name, make_rows(name), lambda folder: str(list(read_rows(folder / name))))


def make_run(folder):
    claim_folder(folder, {"method": {"name": "KFade"}, "arguments": {"seed": 0}}, write=True)
    (folder / "checkpoint-1").mkdir()
    for name in ("model.safetensors", "optimizer.pt", "trainer_state.json"):
        (folder / "checkpoint-1" / name).write_bytes(name.encode() * 20)
    seal_checkpoint(folder / "checkpoint-1")


def read_run(folder):
    claim_folder(folder, {"method": {"name": "KFade"}, "arguments": {"seed": 0}}, write=True)
    return inspect(folder)


def read_checkpoint(folder):
    last = checkpoint_to_resume(folder, True, clean=True)
    return last and {path.name: path.read_bytes() for path in Path(last).iterdir() if path.name != "complete"}


def inspect(folder):
    with contextlib.redirect_stdout(io.StringIO()) as said, contextlib.redirect_stderr(io.StringIO()) as wrong:
        try:
            main(["inspect", str(folder)])
        except SystemExit as end:
            if end.code not in (None, 0):
                text = wrong.getvalue()
                assert end.code in (1, 2) and len(text.splitlines()) == 1 and text.startswith("error: "), text
                raise InputError(text) from None
    return said.getvalue()


def make_ledger(folder):
    for number in range(2):
        append_log(
            folder, {"method": "K-FADE", "forget_rows": number, "settings": {"steps": 1}, "request": str(number)}
        )


def make_results(folder):
    row = {"method": "original", "model_utility": 0.5, "forget_quality": 0.1, "settings": {"a": 1}}
    write_json(folder / "results.json", [row, row | {"method": "K-FADE"}])
    write_json(folder / "report.json", {"title": "t", "summary": "s", "candidates": [row], "rows": [row]})


LOG = {
    "forget_quality": {"agg_value": 0.5},
    "forget_Q_A_Prob": {"agg_value": 0.5, "value_by_index": {"0": {"prob": 0.5}}},
}


def make_log(folder):
    write_json(folder / "TOFU_EVAL.json", LOG)
    (folder / "log.json.gz").write_bytes(gzip.compress(json.dumps(LOG).encode()))


def make_yaml(folder):
    text = yaml.safe_dump({"title": "t", "data": {"source": "tofu"}, "methods": [{"method": "kfade", "steps": 1}]})
    (folder / "config.yaml").write_text(text)


def read_cached(folder):
    return cached_json(folder / "kept.json", {"a": 1}, lambda: {"score": 0.5, "rows": [1, 2]})


def read_cached_folder(folder):
    before = os.environ.get("HF_UNLEARN_CACHE")
    os.environ["HF_UNLEARN_CACHE"] = str(folder / "cache")
    try:
        found = cached_folder({"a": 1}, lambda place: (place / "result").write_text("a result of some length"))
        return (found / "result").read_text()
    finally:
        os.environ.pop("HF_UNLEARN_CACHE") if before is None else os.environ.update(HF_UNLEARN_CACHE=before)


CACHED = "cache/cached"


def make_cached_folder(folder):
    read_cached_folder(folder)


def _fit(folder):
    return FitCheckpoint(folder / "fit", "0" * 64, Processes(), 1)


def make_fit(folder):
    for stage in (0, 1):
        _fit(folder).finish(stage, {"a": torch.arange(6.0)}, Progress(rounds=2, tokens=3))


def read_fit(folder):
    fit = _fit(folder)
    stage, _ = fit.find()
    return [(sha256_tensors(fit.load(done)[0]), fit.progress(done, None)) for done in range(stage)]


def make_stages(folder):
    kept = FinishedStages(folder, "key")
    kept.stages, kept.rows = 1, [{"method": "a"}]
    make_delta(folder)
    kept.best = 0, UpdateDelta.from_pretrained(folder / "delta")
    kept.save({"w": torch.ones(3)}, {"w": torch.zeros(3)})


def read_stages(folder):
    kept = FinishedStages(folder, "key")
    if not kept.begun:
        return None
    return kept.rows, [sha256_tensors(part) for part in kept.tensors()], kept.best and kept.best[1].sha256()


def make_line(folder):
    write_safetensors(folder / "kl.safetensors", {"per_token": torch.ones(3)})
    from hf_unlearn.runtime.files import sha256_file

    told = {"key": "k", "row": {"method": "a", "x": 0.5}, "candidates": [], "kl": {"mean": 0.5}}
    write_sealed(folder / "line.json", told | {"kl_sha256": sha256_file(folder / "kl.safetensors")})


def read_done(folder):
    return read_line(folder / "line.json")


KINDS = [
    Kind("delta/delta_config.json", make_delta, read_delta, True),
    Kind("delta/delta.safetensors", make_delta, read_delta, True),
    Kind("delta/delta.safetensors.index.json", make_sharded_delta, read_delta, True),
    Kind("delta/delta-00001-of-00002.safetensors", make_sharded_delta, read_delta, True),
    Kind("delta/delta_config.json", make_delta, lambda folder: inspect(folder / "delta")),
    Kind("curvature/curvature_config.json", make_curvature, read_curvature, True),
    Kind("curvature/curvature-00001-of-00001.safetensors", make_curvature, read_curvature, True),
    Kind("curvature/curvature_config.json", make_curvature, lambda folder: inspect(folder / "curvature")),
    Kind("mask/mask_config.json", make_mask, read_mask, True),
    Kind("mask/mask.safetensors", make_mask, read_mask, True),
    Kind("mask/mask_config.json", make_mask, lambda folder: inspect(folder / "mask")),
    Kind("state/state_config.json", make_state, read_state, True),
    Kind("state/state.safetensors", make_state, read_state, True),
    Kind("state/fisher/curvature_config.json", make_state, read_state, True),
    Kind("state/fisher/curvature-00001-of-00001.safetensors", make_state, read_state, True),
    Kind("model/model.safetensors", make_model, read_model),
    Kind("model/model.safetensors.index.json", make_sharded_model, read_model),
    Kind("model/config.json", make_model, read_model),
    Kind("model/generation_config.json", make_model, read_model),
    Kind("model/tokenizer.json", make_model, read_model),
    Kind("model/tokenizer_config.json", make_model, read_model),
    Kind("model/model.safetensors", make_transfer, read_transfer),
    Kind("model/config.json", make_transfer, read_transfer),
    Kind("delta/delta.safetensors", make_transfer, read_transfer),
    Kind("adapter/adapter_config.json", make_adapter, read_adapter),
    Kind("adapter/adapter_model.safetensors", make_adapter, read_adapter),
    *map(rows_kind, ("rows.json", "rows.jsonl", "rows.jsonl.gz", "rows.csv", "rows.tsv", "rows.parquet")),
    Kind("config.yaml", make_yaml, lambda folder: str(read_yaml(folder / "config.yaml", ""))),
    Kind("unlearning_log.jsonl", make_ledger, inspect),
    Kind("results.json", make_results, inspect),
    Kind("report.json", make_results, inspect),
    Kind("unlearn_run.json", make_run, read_run),
    Kind("checkpoint-1/complete", make_run, read_checkpoint, True),
    Kind("checkpoint-1/trainer_state.json", make_run, read_checkpoint, True),
    Kind("TOFU_EVAL.json", make_log, lambda folder: str(read_log(folder / "TOFU_EVAL.json"))),
    Kind("log.json.gz", make_log, lambda folder: str(read_log(folder / "log.json.gz"))),
    Kind("kept.json", read_cached, read_cached, True),
    Kind("fit/fit-0000000000000000/000-done-0.safetensors", make_fit, read_fit, True),
    Kind("finished/state.json", make_stages, read_stages, True),
    Kind("finished/training-0-stage-1.safetensors", make_stages, read_stages, True),
    Kind("line.json", make_line, read_done, True),
    Kind("kl.safetensors", make_line, read_done, True),
]

VALUES = [
    None,
    True,
    -1,
    0,
    2**40,
    10**400,
    1e308,
    "",
    "x",
    "../../etc/passwd",
    "\ud800",
    "\x1b[2J\n",
    [],
    {},
    [[]],
    [None],
    {"a": {}},
]


def _change_json(value, rng: random.Random):
    """One value somewhere in it replaced, left out, renamed or repeated."""
    places, level = [], [value]
    while level:
        part = level.pop()
        keys = list(part) if isinstance(part, dict) else list(range(len(part))) if isinstance(part, list) else []
        places += [(part, key) for key in keys]
        level += [part[key] for key in keys if isinstance(part[key], dict | list)]
    if not places:
        return rng.choice(VALUES)
    part, key = rng.choice(places)
    how = rng.randrange(4)
    if how == 0 and isinstance(part, dict):
        part[f"{key}x"] = part.pop(key)
    elif how == 1:
        del part[key]
    elif how == 2 and isinstance(part[key], int | float) and not isinstance(part[key], bool):
        part[key] = rng.choice([part[key] + 1, -part[key], part[key] * 1000, part[key] / 2, float(part[key])])
    else:
        part[key] = rng.choice(VALUES)
    return value


def damage(file: Path, rng: random.Random):
    """Damage a file in one of many ways."""
    content = bytearray(file.read_bytes())
    size, how = len(content), rng.randrange(16)
    at = rng.randrange(size) if size else 0
    if how <= 2 and size:
        for _ in range(rng.choice([1, 1, 2, 8])):
            content[rng.randrange(size)] ^= 1 << rng.randrange(8)
    elif how == 3:
        del content[at:]
    elif how == 4:
        content[at:at] = rng.randbytes(rng.choice([1, 7, 100]))
    elif how == 5:
        begin, end = sorted(rng.choices(range(size + 1), k=2))
        content[at:at] = content[begin:end]
    elif how == 6:
        content[at : at + 16] = bytes(16)
    elif how == 7:
        content = bytearray(
            rng.choice(
                [
                    b"",
                    b"[" * 200_000,
                    b'{"a":' * 5000,
                    b"\xff\xfe\x00",
                    b"null",
                    b"[]",
                    b"{}",
                    b"NaN",
                    b"1e999",
                    b"9" * 5000,
                ]
            )
        )
    elif how == 8:
        others = [path for path in file.parents[0].iterdir() if path.is_file() and path != file]
        content = bytearray(rng.choice(others).read_bytes() if others else rng.randbytes(64))
    elif how == 9:
        file.unlink()
        kind = rng.randrange(5)
        if kind == 0:
            file.mkdir()
        elif kind == 1:
            file.symlink_to("/etc/passwd")
        elif kind == 2:
            file.symlink_to(file.name)
        elif kind == 3:
            os.mkfifo(file)
        return
    elif file.suffix == ".safetensors" and size > 8:
        length = int.from_bytes(content[:8], "little")
        try:
            header = json.dumps(_change_json(json.loads(content[8 : 8 + length]), rng)).encode()
        except ValueError:
            header = b"{}"
        claimed = rng.choice([len(header)] * 6 + [2**60, 0, 10**8, len(header) + 1])
        content = bytearray(claimed.to_bytes(8, "little") + header + content[8 + length :])
    else:
        try:
            content = bytearray(json.dumps(_change_json(json.loads(content), rng)).encode())
        except ValueError:
            lines = bytes(content).split(b"\n")
            rng.shuffle(lines)
            content = bytearray(b"\n".join(lines))
    file.write_bytes(content)


class Hang(BaseException):
    """A file took longer than it may."""


@contextlib.contextmanager
def within(seconds: int):
    """Raise `Hang` in the body when it takes longer; not from the middle of a call into C."""

    def ring(*_):
        raise Hang(f"took longer than {seconds} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@dataclass
class Outcomes:
    """How often a damaged file was refused in one line, and read; and what went wrong, one line a case.

    `silent`: what a hash covers was read as something else, without a word.
    """

    tried: int = 0
    refused: int = 0
    read: int = 0
    tracebacks: list[str] = field(default_factory=list)
    hangs: list[str] = field(default_factory=list)
    silent: list[str] = field(default_factory=list)

    @property
    def faults(self) -> list[str]:
        return self.tracebacks + self.hangs + self.silent

    def add(self, case: str, read: Callable[[], object], is_right: Callable[[object], bool], seconds: int = 60):
        """Read something damaged, and count what comes of it."""
        self.tried += 1
        try:
            with contextlib.redirect_stderr(io.StringIO()), within(seconds):
                found = read()
            self.read += 1
            if not is_right(found):
                self.silent.append(f"{case}: another result in silence: {str(found)[:150]}")
        except InputError as error:
            self.refused += 1
            if len(str(error).splitlines()) != 1:
                self.tracebacks.append(f"{case}: several lines: {error}")
        except Hang as error:
            self.hangs.append(f"{case}: {error}")
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            self.tracebacks.append(f"{case}: {type(error).__name__}: {str(error)[:200]}")


def fuzz(kind: Kind, folder: Path, seeds) -> Outcomes:
    """Damage a file of one kind once for each seed, and read it."""
    made = folder / "made"
    made.mkdir(parents=True)
    kind.make(made)
    shutil.copytree(made, folder / "now", symlinks=True)
    shutil.move(made, folder / "kept")
    (folder / "now").rename(made)
    expected, outcomes = kind.read(made), Outcomes()
    for seed in seeds:
        shutil.rmtree(made)
        shutil.copytree(folder / "kept", made, symlinks=True)
        damage(made / kind.file, random.Random(f"{kind.file} {seed}"))
        is_right = lambda found: not kind.sealed or not found or found == expected
        outcomes.add(f"{kind.file} seed {seed}", lambda: kind.read(made), is_right)
    return outcomes
