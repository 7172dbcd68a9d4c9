# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Fits that stop inside a pass go on to the same bits; a process that is killed ends the launch with the cause."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from accelerate import debug_launcher

from hf_unlearn.curvature import Curvature, plan
from tests.support.curvature import (
    Counted,
    Stopping,
    assert_same_solution,
    fitted,
    launched,
    rows,
    same_bits,
    solved,
    tiny,
)


def stop_and_go_on(folder, accelerator=None):
    """Stop at several places of both passes and go on; every batch is computed at most `every` times too often."""
    size = 1 if accelerator is None else accelerator.num_processes
    options = {"accelerator": accelerator, "checkpoint_dir": folder / "progress", "checkpoint_every": 2}
    whole = fitted(accelerator=accelerator)
    # One batch is read to see what shares an input; with two processes a round, and a writing, is two batches.
    for after, remaining in ((4, 12), (6, 10), (8, 7), (12, 3)):
        with Counted() as counted:
            with pytest.raises(OSError, match="stopped"):
                fitted(data=Stopping(rows(), after), **options)
            assert list((folder / "progress").glob("fit-*/*.safetensors"))
        with Counted() as counted:
            same_bits(whole, fitted(**options))
        assert not (folder / "progress").exists()
        if size == 1:
            assert counted.count == remaining, after
        else:
            assert counted.count < 8
    # Another seed, other data and other weights begin anew.
    for other in ({"seed": 1}, {"data": rows()[::-1]}, {"model": changed()}):
        with pytest.raises(OSError, match="stopped"):
            fitted(data=Stopping(rows(), 6), **options)
        with Counted() as counted:
            again = fitted(**other, **options)
        assert counted.count == (14 if size == 1 else 8 - accelerator.process_index * 2)
        same_bits(again, fitted(**other, accelerator=accelerator))
        assert not (folder / "progress").exists()


def changed():
    model = tiny()
    model.lm_head.weight.data[0, 0] += 0.5
    return model


def test_one_process_goes_on(tmp_path):
    stop_and_go_on(tmp_path)


def two_go_on(folder):
    stop_and_go_on(folder, launched(2))


@pytest.mark.multi_process
def test_two_processes_go_on(tmp_path):
    debug_launcher(two_go_on, (tmp_path,), num_processes=2)


@pytest.mark.parametrize("kind", ["ekfac", "kfac", "diagonal"])
def test_blocks_give_the_bits_of_one(kind, tmp_path):
    whole = fitted(kind)
    largest = {"ekfac": (72 + 2 * 156 + 2 * 96) * 8, "kfac": (72 + 2 * 156) * 8, "diagonal": 2 * 96 * 8}[kind]
    blocks = fitted(kind, max_factor_memory=largest)
    same_bits(whole, blocks)
    for stage in blocks.metadata["stages"].values():
        assert stage["factor_bytes"] <= largest
    costs = plan(tiny(), kind=kind, sequences=13, sequence_length=5, max_factor_memory=f"{largest / 1e3}KB")
    assert costs.blocks == 8 and costs.factor_bytes == largest and "8 blocks" in str(costs)
    assert whole.metadata["stages"].keys() == blocks.metadata["stages"].keys()
    # A step needs nothing of a block but one weight's bases at a time.
    (steps, norm), (other, other_norm) = solved(whole), solved(blocks)
    assert norm == other_norm and all(torch.equal(step, other[name]) for name, step in steps.items())
    # A fit of several blocks goes on too: here from the third of eight.
    options = {"max_factor_memory": largest, "checkpoint_dir": tmp_path, "checkpoint_every": 3}
    with pytest.raises(OSError, match="stopped"):
        fitted(kind, data=Stopping(rows(), 1 + 7 * 4 + 5), **options)
    with Counted() as counted:
        same_bits(whole, fitted(kind, **options))
    assert counted.count == 7 * (16 if kind == "ekfac" else 8) - 7 * 4 - 3


def environment():
    root = Path(__file__).parents[2]
    return os.environ | {"PYTHONPATH": f"{root}", "OMP_NUM_THREADS": "1"}


def bare(folder, after):
    """Two processes started by hand, with nobody to watch them: (exit code, standard error) of each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    started = []
    for rank in ("0", "1"):
        variables = {
            "RANK": rank,
            "LOCAL_RANK": rank,
            "WORLD_SIZE": "2",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
        }
        started.append(
            subprocess.Popen(
                [sys.executable, Path(__file__).parents[1] / "support" / "killed_fit.py", folder, str(after)],
                env=environment() | variables,
                stderr=subprocess.PIPE,
                text=True,
            )  # fmt: skip
        )
    return [(process.communicate(timeout=120)[1], process.returncode)[::-1] for process in started]


@pytest.mark.multi_process
def test_a_killed_process_ends_the_launch_and_the_rerun_goes_on(tmp_path):
    started = time.monotonic()
    (code, errors), (killed, _) = bare(tmp_path, 12)
    assert time.monotonic() - started < 60
    assert killed == -9 and code == 1
    (line,) = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert "another process stopped during round" in line and "of the correction of a curvature fit" in line
    assert "Traceback" not in errors
    assert list((tmp_path / "progress").glob("fit-*/000-done-0.safetensors"))

    # The rerun, under torchrun this time, reads less than a whole fit: no more than the correction.
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    program = [sys.executable, *command, Path(__file__).parents[1] / "support" / "killed_fit.py", tmp_path]
    subprocess.run([*program, "1000"], env=environment(), check=True, timeout=120)
    assert_same_solution(solved(fitted()), solved(Curvature.from_pretrained(tmp_path / "fitted")))
    assert not (tmp_path / "progress").exists()

    started = time.monotonic()
    launch = subprocess.run([*program, "5"], env=environment(), capture_output=True, text=True, timeout=60)
    assert launch.returncode == 1 and time.monotonic() - started < 60
    assert "SIGKILL" in launch.stderr or "Signal 9" in launch.stderr
