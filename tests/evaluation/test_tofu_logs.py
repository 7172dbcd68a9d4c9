# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Parity with published logs: every aggregate is recomputed from per-item values and compared with what is printed."""

import copy
import math

import pytest

from hf_unlearn.errors import InputError
from hf_unlearn.evaluation.tofu import read_log, summarize, write_log
from hf_unlearn.evaluation.tofu_logs import aggregates


# The retain models whose logs served as reference; retain logs themselves had none.
RETAIN = {"forget01": "retain99", "forget05": "retain95", "forget10": "retain90"}
LOGS = [
    *(f"tofu_Llama-3.2-1B-Instruct_full_{split}_EVAL" for split in RETAIN),
    *(f"tofu_Llama-3.2-1B-Instruct_{split}_EVAL" for split in RETAIN.values()),
    "tofu_Llama-3.2-3B-Instruct_full_forget10_EVAL_numeric",
    "tofu_Llama-3.2-3B-Instruct_retain90_EVAL_numeric",
]


def _log(folder, name):
    return read_log(folder / "tofu_evals" / "open_unlearning" / f"{name}.json.gz")


def _retain_of(folder, name):
    for forget, retain in RETAIN.items():
        if f"full_{forget}" in name:
            return _log(folder, name.replace(f"full_{forget}", retain))
    return None


def _printed(log):
    """Every agg_value and auc that stands in a log, with its path."""
    for name, metric in log.items():
        yield name, metric["agg_value"]
        for part in ("forget", "holdout"):
            if part in metric:
                yield f"{name}/{part}", metric[part]["agg_value"]
        if "auc" in metric:
            yield name, metric["auc"]


@pytest.mark.parametrize("name", LOGS)
def test_every_aggregate_of_the_published_logs(shared_data, name):
    log, retain = _log(shared_data, name), _retain_of(shared_data, name)
    values = aggregates(log, retain)
    printed = list(_printed(log))
    assert len(printed) >= 45
    for path, value in printed:
        if value is None:
            assert path == "forget_quality" and retain is None and values[path] is None
        else:
            # Relative: forget quality is 1e-22, and 1e-6 absolute would let any value pass.
            assert values[path] == pytest.approx(value, rel=1e-6, abs=0), path


@pytest.mark.parametrize("name", LOGS)
def test_published_summaries(shared_data, name):
    published = read_log(shared_data / "tofu_evals" / "open_unlearning_summaries.json.gz")
    key = name.split("_EVAL")[0].replace("full_forget", "full/evals_forget")
    summary = summarize(_log(shared_data, name), _retain_of(shared_data, name))
    assert len(published[key]) >= 11
    for metric, value in published[key].items():
        assert summary[metric] == pytest.approx(value, rel=1e-6, abs=0), metric


def test_stored_aggregates_are_never_read(shared_data):
    log, retain = _log(shared_data, LOGS[2]), _retain_of(shared_data, LOGS[2])
    broken = copy.deepcopy([log, retain])
    changed = 0
    for part in broken:
        for metric in part.values():
            for holder in (metric, metric.get("forget"), metric.get("holdout")):
                for key in ("agg_value", "auc"):
                    if holder and key in holder:
                        holder[key] = -7.0
                        changed += 1
    assert changed > 90
    assert summarize(*broken) == summarize(log, retain)


def test_figures_of_the_1b_model(shared_data):
    summary = summarize(_log(shared_data, LOGS[2]), _retain_of(shared_data, LOGS[2]))
    assert summary["model_utility"] == pytest.approx(0.5991534707, abs=1e-9)
    assert summary["forget_truth_ratio"] == pytest.approx(0.4755638962, abs=1e-9)
    assert summary["forget_quality"] == pytest.approx(3.9054713571e-22, rel=1e-9)
    assert summary["log10_forget_quality"] == pytest.approx(math.log10(3.9054713571e-22), abs=1e-9)
    assert summary["n"] == 400
    assert summary["privleak"] == pytest.approx(-99.45739, abs=1e-5)
    small = summarize(_log(shared_data, LOGS[0]), _retain_of(shared_data, LOGS[0]))
    assert (small["n"], small["ks_statistic"]) == (40, 15 / 40)


def test_without_a_retain_log(shared_data):
    summary = summarize(_log(shared_data, LOGS[5]))
    assert summary["forget_quality"] is None and summary["log10_forget_quality"] is None
    assert summary["privleak_retain_auc"] == 0.5
    assert summary["privleak"] == pytest.approx(23.4775, abs=1e-6)


LEGACY = {
    "phi": ("ft_epoch5_lr2e-05_phi", 0.522074, 0.503353, 2.1943e-16),
    "llama": ("ft_epoch5_lr1e-05_llama2-7b", 0.622677, 0.585886, 1.8341e-21),
}


@pytest.mark.parametrize("model", LEGACY)
def test_legacy_logs(shared_data, model):
    stem, geometric, arithmetic, pvalue = LEGACY[model]
    folder = shared_data / "tofu_evals" / "locuslab_tofu"
    read = lambda part: read_log(folder / f"{stem}_{part}_wd0.01_eval_log_aggregated.json.gz")
    summary = summarize(read("full"), read("retain90"), legacy=True)
    assert summary["model_utility"] == pytest.approx(geometric, abs=1e-6)
    assert summary["model_utility_arithmetic"] == pytest.approx(arithmetic, abs=1e-6)
    assert summary["forget_quality"] == pytest.approx(pvalue, rel=1e-4)
    assert summary["n"] == 300
    with pytest.raises(InputError, match="300 forget items, the retain log 200"):
        summarize(read("full"), read("retain95"), legacy=True)
    with pytest.raises(InputError, match="legacy=True"):
        summarize(read("full"))


def test_legacy_retain_models(shared_data):
    folder = shared_data / "tofu_evals" / "locuslab_tofu"
    for part, utility in {"retain90": 0.613745, "retain95": 0.600577, "retain99": 0.620744}.items():
        log = read_log(folder / f"ft_epoch5_lr1e-05_llama2-7b_{part}_wd0.01_eval_log_aggregated.json.gz")
        assert summarize(log, legacy=True)["model_utility"] == pytest.approx(utility, abs=1e-6)


def _scores(values):
    return {"agg_value": 0.123, "value_by_index": {str(i): {"score": value} for i, value in enumerate(values)}}


def test_completely_separated_samples_have_a_finite_log10_p():
    for n in (400, 1500):
        log = {"forget_truth_ratio": _scores([0.1 + i / n / 10 for i in range(n)])}
        retain = {"forget_truth_ratio": _scores([0.7 + i / n / 10 for i in range(n)])}
        summary = summarize(log, retain)
        floor = math.log10(2) - (math.lgamma(2 * n + 1) - 2 * math.lgamma(n + 1)) / math.log(10)
        assert summary["log10_forget_quality"] == pytest.approx(floor, abs=1e-6)
        assert summary["ks_statistic"] == 1
    assert summary["forget_quality"] == 0  # 1e-900 is no float: only its logarithm is
    assert summary["log10_forget_quality"] == pytest.approx(-901, abs=1)


def test_items_without_a_value_are_skipped():
    log = {"exact_memorization": _scores([None, 0.5, 1.0]), "forget_truth_ratio": _scores([None, 0.5, 2.0])}
    summary = summarize(log)
    assert summary["exact_memorization"] == 0.75
    assert summary["forget_truth_ratio"] == pytest.approx(0.5)
    assert summary["model_utility"] is None and summary["n"] == 3


@pytest.mark.parametrize(
    "log, message",
    [
        ({"exact_memorization": {"value_by_index": {"0": {"score": "high"}}}}, "per-item score under exact_memoriz"),
        ({"forget_Q_A_Prob": {"value_by_index": {}}}, "per-item prob under forget_Q_A_Prob"),
        ({"mia_loss": {"agg_value": 1}}, "under mia_loss/forget"),
    ],
)
def test_broken_logs_are_named(log, message):
    with pytest.raises(InputError, match=message):
        summarize(log)


def test_retain_log_of_another_split():
    log, retain = ({"forget_truth_ratio": _scores([0.5] * n)} for n in (3, 4))
    with pytest.raises(InputError, match="3 forget items, the retain log 4"):
        summarize(log, retain)
    with pytest.raises(InputError, match="no forget_truth_ratio"):
        summarize(log, {})


@pytest.mark.parametrize("name", ["log.json", "log.json.gz"])
def test_log_files(tmp_path, name):
    log = {"exact_memorization": _scores([0.25, None])}
    path = write_log(tmp_path / name, log)
    assert read_log(path) == log
    first = path.read_bytes()
    assert write_log(path, log).read_bytes() == first
    with pytest.raises(ValueError):
        write_log(path, {"x": float("nan")})
    assert path.read_bytes() == first and len(list(tmp_path.iterdir())) == 1
    path.write_bytes(first[: len(first) // 2])
    with pytest.raises(InputError, match="not a readable JSON log"):
        read_log(path)
    with pytest.raises(InputError, match="no log at"):
        read_log(tmp_path / "absent.json")
