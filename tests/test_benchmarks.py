# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""The benchmarks, on shapes so small that their numbers mean nothing: they run, add up and leave files."""

import contextlib
import importlib
import json
import os
import subprocess
import sys
import unittest.mock
from pathlib import Path

import pytest
import torch

from tests.support.models import make_experts


ROOT = Path(__file__).resolve().parents[1]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
SMALL = (
    "--device cpu --hidden 16 --intermediate 24 --heads 2 --layers 3 --vocab 40 "
    "--length 8 --batch_size 2 --sequences 6"
).split()


@contextlib.contextmanager
def program(folder: str, name: str):
    """A benchmark's module: run in this process, as a new one spends seconds on imports."""
    with unittest.mock.patch.object(sys, "path", [str(ROOT / folder), *sys.path]):
        yield importlib.import_module(name)


@pytest.fixture(scope="module")
def llama2_7b():
    with program("benchmarks/gpu", "llama2_7b") as module:
        yield module


@pytest.fixture(scope="module")
def sharding():
    with program("benchmarks", "sharding") as module:
        yield module


def run(module, output: Path, *more: str) -> int:
    with unittest.mock.patch.object(sys, "argv", ["llama2_7b.py", *SMALL, "--output", str(output), *more]):
        return module.main()


@pytest.fixture(scope="module")
def gpu_results(llama2_7b, tmp_path_factory) -> dict:
    output = tmp_path_factory.mktemp("gpu") / "results.json"
    # The clock of the program starts at its import, which other tests may have done long ago.
    assert run(llama2_7b, output, "--target_layers", "1-2", "--minutes", "1000") == 0
    return json.loads(output.read_text())


def test_gpu_benchmark_measures_every_stage(gpu_results):
    assert gpu_results["finished"] and not gpu_results["failed"] and set(gpu_results["skipped"]) <= {"kronfluence"}
    stages = gpu_results["stages"]
    wanted = {
        "build",
        "gram 16",
        "gram 24",
        "eigh 16 fp32",
        "eigh 24 fp32",
        "eigh 24 fp64",
        "fit",
        "solve and step",
        "all MLPs",
    }
    assert wanted | {"forward + backward", "forward + backward to the targets"} <= stages.keys()
    assert all(row["peak_memory_bytes"] > 0 and row["stage_seconds"] >= 0 for row in stages.values())
    # Llama: q, k, v, o; gate, up, down; two norms; embedding and head; the last norm.
    assert stages["build"]["parameters"] == 3 * (4 * 16**2 + 3 * 16 * 24 + 2 * 16) + 2 * 40 * 16 + 16
    # A layer has A of gate/up (shared) and S of down, 16 wide, and S of gate, S of up and A of down, 24 wide.
    assert stages["fit"]["layers"] == [1, 2] and stages["fit"]["eigh"]["factors"] == {"16": 4, "24": 6}
    assert stages["all MLPs"]["eigh"]["factors"] == {"16": 6, "24": 9}
    assert stages["fit"]["tokens"] == stages["fit"]["sequences"] * 8
    assert (
        gpu_results["seed"] == 0 and "llama2_7b.py" in gpu_results["command"] and gpu_results["environment"]["torch"]
    )


def test_gpu_benchmark_extrapolates_from_what_it_measured(gpu_results):
    stages, extrapolated = gpu_results["stages"], gpu_results["extrapolated"]
    assert extrapolated["what"].startswith("not measured")
    times = {size: stages[f"eigh {size} fp32"]["with_rayleigh_quotients_seconds"] for size in ("16", "24")}
    for name, counts in (("fit", (4, 6)), ("all MLPs", (6, 9))):
        row = extrapolated[name]
        assert row["factors"] == pytest.approx(4000 * 8 / stages[name]["factors"]["tokens_per_second"])
        assert row["eigh"] == pytest.approx(counts[0] * times["16"] + counts[1] * times["24"])
        assert row["ekfac_fit"] == pytest.approx(row["factors"] + row["eigh"] + row["correction"])
    step = (
        extrapolated["fit"]["kfade_step"] - extrapolated["fit"]["ekfac_fit"] - extrapolated["fit"]["forget_gradient"]
    )
    assert step == pytest.approx(stages["solve and step"]["step_seconds"])
    limit = gpu_results["achieved"]["fit"]
    assert (
        limit["limit_microseconds_per_token"] > stages["forward + backward to the targets"]["microseconds_per_token"]
    )
    assert limit["achieved_over_limit"] == pytest.approx(
        stages["fit"]["factors"]["microseconds_per_token"] / limit["limit_microseconds_per_token"]
    )


def test_a_killed_gpu_benchmark_leaves_what_it_had(tmp_path):
    output = tmp_path / "results.json"
    command = [sys.executable, str(ROOT / "benchmarks/gpu/llama2_7b.py"), *SMALL, "--target_layers", "0"]
    process = subprocess.Popen([*command, "--output", str(output)], env=ENVIRONMENT, stdout=subprocess.PIPE, text=True)
    try:
        for line in process.stdout:
            if "eigh 24 fp32: done" in line:
                break
    finally:
        process.kill()
        process.wait()
    results = json.loads(output.read_text())
    assert not results["finished"] and {"build", "gram 16", "eigh 24 fp32"} <= results["stages"].keys()
    assert "all MLPs" not in results["stages"]


def test_gpu_benchmark_without_time_says_what_it_skipped(llama2_7b, tmp_path):
    assert run(llama2_7b, tmp_path / "results.json", "--minutes", "0", "--target_layers", "0-1") == 0
    results = json.loads((tmp_path / "results.json").read_text())
    assert "s left" in results["skipped"]["build"] and results["finished"] and results["stages"] == {}


def test_gpu_benchmark_with_a_failed_stage_goes_on_and_fails(llama2_7b, tmp_path, monkeypatch):
    monkeypatch.setattr(llama2_7b, "solve_and_step", lambda *_: 1 / 0)
    assert run(llama2_7b, tmp_path / "results.json", "--target_layers", "0", "--minutes", "1000") == 1
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["failed"] == {"solve and step": "ZeroDivisionError: division by zero"}
    assert "all MLPs" in results["stages"]


@pytest.mark.parametrize(
    "more, words",
    [
        (["--target_layers", "2-3"], "0-2"),
        (["--sequences", "1"], "at least --batch_size"),
        (["--device", "cuda"], "no CUDA device"),
    ],
)
def test_gpu_benchmark_refuses_what_cannot_be(llama2_7b, tmp_path, capsys, monkeypatch, more, words):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(SystemExit, match="2"):
        run(llama2_7b, tmp_path / "r.json", *more)
    assert words in capsys.readouterr().err and not (tmp_path / "r.json").exists()


def test_sharding_benchmark_compares_minima_of_runs_that_take_turns(sharding, tmp_path, monkeypatch, capsys):
    order, seconds = [], {1: iter([4.0, 2.0, 3.0] * 4), 2: iter([1.5, 9.0, 1.2] * 4)}

    def run(processes, kind, case):
        order.append(processes)
        if processes == 4:
            return [{"peak_factor_bytes": peak, "held_bytes": 10} for peak in (30, 20, 25, 25)]
        slowest = next(seconds[processes])
        stage = {"factors": {"seconds": slowest / 2}}
        rows = [{"wall": slowest - rank, "cpu": slowest / 2, "stages": stage} for rank in range(2)]
        return [row | {"peak_factor_bytes": 100, "held_bytes": 40} for row in rows[:processes]]

    monkeypatch.setattr(sharding, "run", run)
    monkeypatch.setattr(sys, "argv", ["sharding.py", "--repeats", "3", "--output", str(tmp_path / "r.json")])
    assert sharding.main() == 0
    assert order[:6] == [1, 2, 1, 2, 1, 2]
    results = json.loads((tmp_path / "r.json").read_text())
    assert results["time"]["kfac"]["ratio_of_minima"] == pytest.approx(1.2 / 2.0)
    assert results["time"]["kfac"]["ratio_median"] == pytest.approx(1.2 / 3.0)
    assert results["time"]["kfac"]["stage_seconds_min"] == {"1": {"factors": 1.0}, "2": {"factors": 0.6}}
    assert results["memory"]["kfac"]["peak_factor_bytes"]["largest_over_share"] == pytest.approx(30 * 4 / 100)
    assert results["memory"]["kfac"]["held_bytes"]["largest_over_share"] == pytest.approx(1.0)
    assert "| kfac | 2.00 | 1.20 | 0.60 | 0.62 |" in capsys.readouterr().out


@pytest.fixture
def results_page(tmp_path, monkeypatch):
    """The program that writes docs/results.md, at work on a copy of it in `tmp_path`."""
    with program("benchmarks", "update_readme") as update_readme:
        monkeypatch.setattr(update_readme, "ROOT", tmp_path)
        (tmp_path / "docs").mkdir()
        (tmp_path / "docs/results.md").write_text((ROOT / "docs/results.md").read_text())
        yield update_readme


def test_the_page_says_what_was_measured(results_page, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(results_page, "PICTURES", {})
    page, text = tmp_path / "docs/results.md", (ROOT / "docs/results.md").read_text()
    assert results_page.main(["--check"]) == 0
    page.write_text(text.replace("| GradDiff | **0.054** |", "| GradDiff | **0.054321** |"))
    assert results_page.main(["--check"]) == 1 and "0.054321" in page.read_text()
    assert capsys.readouterr().out.startswith("docs/results.md, demo: not what benchmarks/results says")
    assert results_page.main([]) == 0 and page.read_text() == text
    page.write_text(text.replace("<!-- tofu:end -->", ""))
    with pytest.raises(SystemExit, match="no markers <!-- tofu:begin -->"):
        results_page.main([])


def test_pictures_are_drawn_from_the_recorded_rows(results_page, tmp_path, monkeypatch):
    recorded = results_page.read("demo")["rows"]
    (tmp_path / "docs/images").mkdir()
    assert results_page.main(["--check"]) == 0 and not list((tmp_path / "docs/images").iterdir())
    drawn, pareto = [], results_page.pareto
    monkeypatch.setattr(results_page, "pareto", lambda rows, *more: drawn.append(rows) or pareto(rows, *more))
    assert results_page.main([]) == 0
    assert drawn[0] == recorded and len(drawn) == 2
    assert sorted(path.name for path in (tmp_path / "docs/images").iterdir()) == ["demo_pareto.png", "wmdp_pareto.png"]


@pytest.mark.slow
@pytest.mark.multi_process
def test_sharding_benchmark_really_runs_two_processes(sharding):
    rows = sharding.run(2, "ekfac", "tiny")
    assert [row["processes"] for row in rows] == [2, 2]
    assert all({"factors", "eigh", "correction"} <= row["stages"].keys() and row["wall"] > 0 for row in rows)


def test_conversions_benchmark_tells_right_from_wrong(monkeypatch):
    from hf_unlearn.runtime.conversions import Conversion

    def make():
        with torch.device("meta"):
            return make_experts("mixtral")

    with program("benchmarks", "conversions") as conversions:
        found = conversions.examine(make)
        assert not found["wrong"] and (found["groups"], found["kinds"], found["filled"]) == (4, 2, 2)
        to_memory = Conversion.to_memory
        turned = lambda self, tensors: {name: value.flip(0) for name, value in to_memory(self, tensors).items()}
        monkeypatch.setattr(Conversion, "to_memory", turned)
        assert len(conversions.examine(make)["wrong"]) == 2


def test_ntk_benchmark_takes_the_path_of_the_recipes(monkeypatch):
    with program("benchmarks", "ntk") as ntk:
        monkeypatch.setattr(ntk, "JACOBIAN_SAMPLES", 2)
        model, names = ntk.make_model(None)
        ours, vmapped = (ntk.jacobian(way, None)() for way in ntk.WAYS)
    assert all("batch_norm_tuning_layers" in name or "modules_to_save" in name for name in names)
    assert ours.shape == (2, 10, sum(model.get_parameter(name).numel() for name in names)) == (2, 10, 2026)
    assert (ours - vmapped).norm() <= 1e-5 * vmapped.norm()


def test_mask_benchmark_compares_passes_that_take_turns(tmp_path, monkeypatch, capsys):
    with program("benchmarks", "mask_fisher") as module:
        output = tmp_path / "r.json"
        monkeypatch.setattr(module, "LENGTHS", (5,))
        monkeypatch.setattr(
            sys, "argv", ["mask_fisher.py", "--case", "tiny", "--repeats", "2", "--output", str(output)]
        )
        assert module.main() == 0
    results = json.loads(output.read_text())
    (row,) = results["lengths"]
    assert set(row["seconds"]) == {"plain", "activations", "masks", "blocks", "rows one by one"}
    assert all(len(seconds) == 2 for seconds in row["seconds"].values())
    assert row["over_plain"]["plain"] == row["over_activations"]["activations"] == 1
    assert results["command"].startswith("python benchmarks/mask_fisher.py") and results["settings"]["repeats"] == 2
    assert "| 5 | masks |" in capsys.readouterr().out


def test_masked_plans_are_those_of_the_page(tmp_path, monkeypatch):
    """The page has the table of the recorded rows, and these are what is planned today."""
    recorded = json.loads((ROOT / "benchmarks/results/masked_plans.json").read_text())["rows"]
    with program("benchmarks", "masked_plans") as benchmark:
        assert benchmark.report(recorded) in (ROOT / "docs/kfade.md").read_text()
        monkeypatch.setattr(benchmark, "SPARSITIES", (0.9,))
        of_7b = [row for row in recorded if row["model"] == "Llama-2-7B" and row["sparsity"] == 0.9]
        assert benchmark.make_plans("Llama-2-7B") == of_7b and {"1101", "1100"} < of_7b[0]["factors"].keys()
        output = tmp_path / "results.json"
        monkeypatch.setattr(sys, "argv", ["masked_plans.py", "--model", "tiny", "--output", str(output)])
        assert benchmark.main() == 0
    rows = json.loads(output.read_text())["rows"]
    assert [row["kind"] for row in rows[:3]] == ["kfac", "ekfac", "diagonal"] and rows[0]["factors"]


def test_diagonal_fisher_benchmark_measures_equal_sums(tmp_path, monkeypatch, capsys):
    with program("benchmarks", "diagonal_fisher") as benchmark:
        output = tmp_path / "r.json"
        monkeypatch.setattr(sys, "argv", ["diagonal_fisher.py", *f"--case tiny --repeats 2 --output {output}".split()])
        assert benchmark.main() == 0
    (found,) = json.loads(output.read_text())["cases"].values()
    assert found["largest_difference_over_largest_entry"] < 1e-5
    assert all(ratio[clock] > 0 for ratio in found["loop_over_batches"].values() for clock in ("wall", "cpu"))
    whole, masked = found["sums_bytes"].values()
    assert masked < whole and "| tiny | loop, these weights | batches |" in capsys.readouterr().out


def test_spe_step_benchmark_compares_requests():
    with program("benchmarks", "spe_step") as benchmark:
        found = {name: benchmark.serve(name, "tiny", None, 1) for name in benchmark.LINES}
        assert all(line["cpu_seconds"][0] > 0 and line["peak_growth_mb"][0] >= 0 for line in found.values())
        lines = {"SO": {"cpu_seconds": [4.0, 2.0], "peak_growth_mb": [10.0, 90.0]}}
        lines["other"] = {"cpu_seconds": [3.0], "peak_growth_mb": [5.0]}
        assert benchmark.compare(lines)["other"] == {"time": 1.5, "memory": 0.5}
