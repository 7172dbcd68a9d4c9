# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""TOFU logs in open-unlearning's TOFU_EVAL.json layout: read, write, and turn per-item values into numbers.

A log maps a metric to `{"agg_value": ..., "value_by_index": {"0": {...}, ...}}` (membership scores hold one such pair
each for `forget` and `holdout`, and an `auc`). Every number here comes from `value_by_index`; a stored `agg_value` is
never read, so a log that was edited or aggregated otherwise gives the same summary.
"""

import gzip
import io
import json
import math
import warnings
import zlib
from collections.abc import Mapping
from pathlib import Path

from ..errors import InputError
from ..runtime.files import JSON_BYTES, JSON_DEPTH, atomic_write, read_bytes, write_json
from ..runtime.shapes import check_depth
from . import memorization, privacy


MIA_METRICS = ("loss", "zlib", "reference", "min_k", "min_k_plus_plus", "gradnorm")
UTILITY_PARTS = (
    *("retain_Q_A_Prob", "retain_Q_A_ROUGE", "retain_Truth_Ratio"),
    *("ra_Q_A_Prob_normalised", "ra_Q_A_ROUGE", "ra_Truth_Ratio"),
    *("wf_Q_A_Prob_normalised", "wf_Q_A_ROUGE", "wf_Truth_Ratio"),
)
# The original repository logs (and aggregates) at most so many rows of a split.
LEGACY_ROWS = 300
LEGACY_FILES = {
    "forget": "eval_log_forget.json",
    "retain": "eval_log.json",
    "ra": "eval_real_author_wo_options.json",
    "wf": "eval_real_world_wo_options.json",
}


def read_log(path: str | Path) -> dict:
    """Read a log from `.json` or `.json.gz`.

    Raises:
        InputError: no such file, or it does not hold a JSON object.
    """
    if not Path(path).exists():
        raise InputError(f"no log at {path}: evaluate the model first or correct the path")
    data = read_bytes(Path(path).resolve())
    try:
        if data[:2] == b"\x1f\x8b":
            with gzip.open(io.BytesIO(data)) as unpacked:
                data = unpacked.read(JSON_BYTES + 1)
            if len(data) > JSON_BYTES:
                raise InputError(f"{path} unpacks to more than {JSON_BYTES} bytes, which no log has")
        log = json.loads(data)
        check_depth(log, JSON_DEPTH)
    except InputError:
        raise
    except (ValueError, EOFError, OSError, zlib.error, RecursionError) as error:
        raise InputError(f"{path} is not a readable JSON log ({error}): evaluate the model again") from error
    if not isinstance(log, dict):
        raise InputError(f"{path} does not hold a JSON object: give a TOFU_EVAL.json")
    return log


def write_log(path: str | Path, log: Mapping) -> Path:
    """Write a log whole or not at all; `.gz` at the end of the name compresses it (equal logs give equal bytes)."""
    if not str(path).endswith(".gz"):
        return write_json(path, log)
    data = gzip.compress(json.dumps(log, allow_nan=False, ensure_ascii=False).encode("utf-8"), mtime=0)
    return atomic_write(path, lambda temporary: temporary.write_bytes(data))


def aggregates(log: Mapping, retain_log: Mapping | None = None) -> dict:
    """Every aggregate of a log, recomputed: metric -> number or None; the means of membership scores as
    "mia_loss/forget" and "mia_loss/holdout".

    Raises:
        InputError: a metric without usable per-item values, or a retain log of another forget set.
    """
    values: dict = {}
    for name, metric in log.items():
        if name.startswith("mia_"):
            scores = _membership(log, name)
            values |= {f"{name}/{part}": memorization.mean(found) for part, found in scores.items()}
            values[name] = privacy.auc(**scores)
        elif isinstance(metric, Mapping) and "value_by_index" in metric:
            field = "rougeL_recall" if name.endswith("_ROUGE") else "prob" if "_Prob" in name else "score"
            found = _values(metric, field, name)
            items = [memorization.mean(value) if isinstance(value, list) else value for value in found]
            if name == "forget_truth_ratio":
                values[name] = memorization.forget_truth_ratio_mean(items)
            elif name.endswith("_Truth_Ratio"):
                values[name] = memorization.retain_truth_ratio_mean(items)
            else:
                values[name] = memorization.mean(items)
    values["model_utility"] = memorization.harmonic_mean([values.get(part) for part in UTILITY_PARTS])
    test = forget_quality(log, retain_log)
    values["forget_quality"] = test and test.pvalue
    if values.get("mia_min_k") is not None:
        values["privleak"] = privacy.privleak(values["mia_min_k"], _retain_auc(retain_log))
    return values


def _values(metric, field: str, name: str) -> list:
    """The per-item values of one field, in the log's order; None where the item or the field has none."""
    try:
        values = [None if item is None else item.get(field) for item in metric["value_by_index"].values()]
    except (TypeError, KeyError, AttributeError):
        values = None
    numbers = (int, float, list, type(None))
    if not values or not all(isinstance(value, numbers) for value in values):
        raise InputError(f"the log has no per-item {field} under {name}: it is not in the TOFU_EVAL.json layout")
    return values


def _membership(log: Mapping, name: str) -> dict[str, list]:
    return {part: _values(log[name].get(part), "score", f"{name}/{part}") for part in ("forget", "holdout")}


def _retain_auc(retain_log: Mapping | None) -> float:
    known = retain_log is not None and "mia_min_k" in retain_log
    return privacy.auc(**_membership(retain_log, "mia_min_k")) if known else 0.5


def forget_quality(log: Mapping, retain_log: Mapping | None) -> privacy.KSTest | None:
    """The KS test between the truth ratios of a log and of a retain log; None when either has none."""
    if retain_log is None or "forget_truth_ratio" not in log:
        return None
    if "forget_truth_ratio" not in retain_log:
        raise InputError("the retain log has no forget_truth_ratio: evaluate the retain model on the forget set")
    _check_comparable(log, retain_log)
    metrics = (either["forget_truth_ratio"] for either in (log, retain_log))
    return _ks_test(*(_values(metric, "score", "forget_truth_ratio") for metric in metrics))


def _ks_test(mine: list[float | None], theirs: list[float | None]) -> privacy.KSTest:
    if len(mine) != len(theirs):
        raise InputError(
            f"the log has {len(mine)} forget items, the retain log {len(theirs)}: give logs of one forget split"
        )
    return privacy.ks_test([x for x in mine if x is not None], [x for x in theirs if x is not None])


def _check_comparable(log: Mapping, retain_log: Mapping) -> None:
    mine, theirs = log.get("hf_unlearn"), retain_log.get("hf_unlearn")
    if not mine or not theirs:  # of open-unlearning
        return
    if mine["data_sha256"].get("forget") != theirs["data_sha256"].get("forget"):
        raise InputError("log and retain log come from different forget rows: evaluate both on the same rows")
    if mine["template_sha256"] != theirs["template_sha256"]:
        warnings.warn("log and retain log used different prompt templates: forget quality is off", stacklevel=2)


def summarize(log: Mapping, retain_log: Mapping | None = None, legacy: bool = False) -> dict:
    """The numbers of one evaluation, recomputed from per-item values.

    Args:
        log (`Mapping`): as `evaluate` returns it or open-unlearning wrote it; with `legacy`, an
            `eval_log_aggregated.json` of the original TOFU repository.
        retain_log (`Mapping`, *optional*): of the model retrained without the forget set, same layout. Without it
            `forget_quality` is None and privleak takes AUC 0.5 for the retain model (`privleak_retain_auc` says
            which).
        legacy (`bool`, *optional*, defaults to `False`): aggregate as the original repository: the first 300 rows of a
            split, no epsilon, truth ratios as geometric means; `model_utility_arithmetic` is the older variant with
            arithmetic means.

    Returns:
        Always: model_utility (harmonic mean of nine, None when one is missing), forget_quality (KS p-value),
        log10_forget_quality (exact, also where p underflows), ks_statistic (D), n (forget items). Then every metric
        that the log holds, under its own name (probabilities and ratios in 0..1, `mia_*` as AUC, privleak in percent).

    Raises:
        InputError: the log has another layout, broken values, or the retain log belongs to other forget rows.
    """
    is_legacy = any(file in log for file in LEGACY_FILES.values())
    if is_legacy != legacy:
        layout = "the original TOFU repository's; pass legacy=True" if is_legacy else "not legacy; pass legacy=False"
        raise InputError(f"the log's layout is {layout}")
    if legacy:
        return _summarize_legacy(log, retain_log)
    values = aggregates(log, retain_log)
    test = forget_quality(log, retain_log)
    items = log.get("forget_truth_ratio", {}).get("value_by_index", {})
    summary = _head(values.pop("model_utility"), test, len(items) or None)
    values.pop("forget_quality")
    summary |= {name: value for name, value in sorted(values.items()) if "/" not in name}
    if "privleak" in summary:
        summary["privleak_retain_auc"] = _retain_auc(retain_log)
    return summary


def _head(model_utility: float | None, test: privacy.KSTest | None, n: int | None) -> dict:
    return {
        "model_utility": model_utility,
        "forget_quality": test and test.pvalue,
        "log10_forget_quality": test and test.log10_pvalue,
        "ks_statistic": test and test.statistic,
        "n": test.n if test else n,
    }


def _legacy_column(log: Mapping, part: str, column: str) -> list:
    try:
        return list(log[LEGACY_FILES[part]][column].values())[:LEGACY_ROWS]
    except (KeyError, AttributeError) as error:
        raise InputError(f"the legacy log has no {LEGACY_FILES[part]}/{column}: evaluate the model again") from error


def _legacy_ratios(log: Mapping, part: str, arithmetic: bool = False) -> list[float]:
    correct, wrong = (_legacy_column(log, part, f"{name}_loss") for name in ("avg_paraphrased", "average_perturb"))
    mean = memorization.mean
    if arithmetic:
        return [mean([math.exp(-x) for x in w]) / math.exp(-c) for c, w in zip(correct, wrong)]
    return [math.exp(c - mean(w)) for c, w in zip(correct, wrong)]


def _summarize_legacy(log: Mapping, retain_log: Mapping | None) -> dict:
    values, older = {}, {}
    for part in LEGACY_FILES:
        probabilities = [math.exp(-loss) for loss in _legacy_column(log, part, "avg_gt_loss")]
        name = f"{part}_Q_A_Prob"
        if part in ("ra", "wf"):
            name += "_normalised"
            wrong = _legacy_column(log, part, "average_perturb_loss")
            probabilities = [p / (p + sum(math.exp(-x) for x in w)) for p, w in zip(probabilities, wrong)]
        values[name] = memorization.mean(probabilities)
        values[f"{part}_Q_A_ROUGE"] = memorization.mean(_legacy_column(log, part, "rougeL_recall"))
        if part != "forget":
            for table, arithmetic in ((values, False), (older, True)):
                ratios = _legacy_ratios(log, part, arithmetic)
                table[f"{part}_Truth_Ratio"] = memorization.retain_truth_ratio_mean(ratios)
    forget = _legacy_ratios(log, "forget")
    values["forget_truth_ratio"] = memorization.mean([min(r, 1 / r) for r in forget])
    test = _ks_test(forget, _legacy_ratios(retain_log, "forget")) if retain_log is not None else None
    utility, utility_arithmetic = (
        memorization.harmonic_mean([table[part] for part in UTILITY_PARTS]) for table in (values, values | older)
    )
    head = _head(utility, test, len(forget))
    return head | dict(sorted(values.items())) | {"model_utility_arithmetic": utility_arithmetic}
