# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""The model card of an unlearned model: what was removed, what it cost, and what was not shown."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..errors import InputError
from ..runtime.files import write_text
from ..runtime.hub import PLACE, is_repo_id
from ..version import __version__
from .eval_results import write_results
from .formats import format_number, format_p
from .loading import Loading
from .rendering import render
from .vocabulary import KINDS


# What an evaluation would have to show before a reader may believe it; a card drops the lines of what was tested.
NOT_SHOWN = {
    "relearning": "Relearning was not tested: fine-tuning, even on a few examples, may bring back what was removed.",
    "attacks": "Prompts made to extract the knowledge (paraphrases, other languages, jailbreaks, prefilled answers) "
    "were not tried.",
    "quantization": "The effect of quantising the model was not measured; rounding can undo small updates.",
    "privacy": "Membership inference was not measured.",
    "seeds": "The numbers are of one seed.",
}
# (key of a row, name, decimals, goal) of what a trainer measures on its own rows, and of every kind of rows.
RUN_METRICS = (
    ("forget_rows_loss", "loss on the removed rows, nats per label", 3, "higher"),
    ("forget_rows_probability", "probability of a label of the removed rows, geometric mean", 3, "lower"),
    ("retain_rows_loss", "loss on the rows to be kept, nats per label", 3, "as original"),
    ("retain_rows_probability", "probability of a label of the rows to be kept, geometric mean", 3, "as original"),
    ("forget_rows_kl", "KL from the original on the removed rows, nats per label", 4, "none"),
    ("retain_rows_kl", "KL from the original on the rows to be kept, nats per label", 4, "lower"),
)
KIND_METRICS = tuple(metric for kind in KINDS for metric in kind.card_metrics)
# Of these the scores that a benchmark is known for; the others explain them.
SCORES = ("forget_quality", "model_utility")
# Keys of a context and what they are when they are not given.
DEFAULTS = {
    **dict.fromkeys(("model_name", "repo_id", "base_model", "base_revision", "seed", "hardware", "language")),
    **dict.fromkeys(("license", "license_name", "license_link", "benchmark")),
    **dict.fromkeys(("datasets", "forget", "forget_rows", "forget_sha256", "retain", "retain_rows")),
    **{name: {} for name in ("paper", "settings", "original", "unlearned", "retrained", "delta", "environment")},
    **{name: {} for name in ("measured_on", "facts", "answers")},
    **dict.fromkeys(("evaluations", "tested", "limits", "row_notes"), ()),
    "loading": Loading(),
}


def render_card(context: Mapping) -> str:
    """Render a model card (README.md with a YAML header).

    Args:
        context (`Mapping`): `method` (its name) and, all optional:

            - model_name, repo_id, license, license_name, license_link, language, datasets: of the model that is
              published; without `repo_id` lines that load it have a place that `runtime.hub.push_folder` fills in;
            - base_model, base_revision: Hub id that unlearning started from (of anything else only that it is not on
              the Hub is told);
            - settings, seed, paper ({"title", "id", "bibtex"}): of the method;
            - forget, retain: what was removed and what was to be kept, in plain words; forget_rows, retain_rows (how
              many), forget_sha256;
            - original, unlearned, retrained: rows as in `report.page.write_report`, or with keys of `RUN_METRICS`;
            - measured_on: {"forget" or "retain": (rows that `RUN_METRICS` were measured on, of so many)};
            - facts: what the method says of the run beside settings and cost; row_notes: what became of the rows;
            - answers: {"forgotten" or "kept": [(prompt, the model's answer)]};
            - benchmark: what the table's metrics were measured on, when that is a dataset of the Hub: {"dataset" (id),
              "task" (its configuration)};
            - evaluations: further scores, a list of {"dataset", "task" (as above; both absent where the questions are
              no dataset of the Hub), "name", "metric", "value", "before", "lower_is_goal", "notes"}; `lower_is_goal`
              marks hazardous knowledge, which is not to be maximised;
            - delta: {"norm", "tensors", "sha256"} when the update is published beside the weights as `delta/`;
            - hardware, environment: where it ran, {library: version};
            - loading: a `Loading`, what is needed to load the model;
            - tested: keys of `NOT_SHOWN` that were tested after all; limits: further sentences on what was not shown.

    Raises:
        InputError: a key is unknown or `method` is missing.
    """
    unknown = sorted(set(context) - set(DEFAULTS) - {"method"})
    if unknown or not context.get("method"):
        what = f"unknown keys {', '.join(unknown)}" if unknown else "no 'method'"
        raise InputError(f"a card cannot be rendered: {what} in its context; known are method, {', '.join(DEFAULTS)}")
    card = {**DEFAULTS, **context}
    card["model_name"] = card["model_name"] or (card["repo_id"] or f"{card['method']} unlearned model").split("/")[-1]
    base = card["base_model"] if is_repo_id(card["base_model"]) else "path/to/the/base/model"
    place = card["repo_id"] or PLACE
    context = {
        **card,
        "place": place,
        "usage": card["loading"].code(place, base),
        "header": card_data(card).to_yaml(),
        "base_text": base_text(card["base_model"], card["base_revision"]),
        "metrics": metric_table(card["original"], card["unlearned"], card["retrained"]),
        "measured": measured_text(card["measured_on"]),
        "not_shown": [line for key, line in NOT_SHOWN.items() if key not in card["tested"]],
        "version": __version__,
    }
    return render("model_card.md", context)


def write_card(folder: Path, context: Mapping):
    """Write a model's card, and its scores on benchmarks of the Hub as `.eval_results/*.yaml` (`eval_results`).

    Raises:
        InputError: as `render_card`.
    """
    write_text(folder / "README.md", render_card(context))
    card = {**DEFAULTS, **context}
    scores, benchmark = list(card["evaluations"]), card["benchmark"]
    for key, name, _, goal in KIND_METRICS if benchmark else ():
        if key in SCORES:
            about = {"name": benchmark["task"], "metric": key, "notes": f"{name}; goal: {goal}"}
            scores.append({**benchmark, **about, "value": card["unlearned"].get(key)})
    write_results(folder, scores)


def card_data(card: Mapping):
    """The YAML header as `huggingface_hub.ModelCardData`, with the scores as model-index."""
    from huggingface_hub import EvalResult, ModelCardData

    results, task = [], card["loading"].task
    benchmark = card["benchmark"] or {"dataset": (card["datasets"] or ["custom"])[0]}
    for key, name, _, goal in KIND_METRICS:
        if card["unlearned"].get(key) is not None and card["forget"]:
            results.append(
                EvalResult(
                    task_type=task or "other",
                    dataset_type=benchmark["dataset"],
                    dataset_config=benchmark.get("task"),
                    dataset_name=card["forget"],
                    metric_type=key,
                    metric_name=f"{name} (goal: {goal})",
                    metric_value=card["unlearned"][key],
                )
            )
    for score in card["evaluations"]:
        goal = " (hazardous knowledge: lower is the goal)" if score.get("lower_is_goal") else ""
        results.append(
            EvalResult(
                task_type="multiple-choice" if score["metric"] == "acc" else task or "other",
                dataset_type=score.get("dataset") or "custom",
                dataset_config=score.get("task"),
                dataset_name=score["name"],
                metric_type=score["metric"],
                metric_name=score["metric"] + goal,
                metric_value=score["value"],
            )
        )
    tag = re.sub(r"[^a-z0-9]+", "-", card["method"].lower()).strip("-")
    adapter = card["loading"].adapter
    base = {"base_model": card["base_model"], "base_model_relation": "adapter" if adapter else "finetune"}
    return ModelCardData(
        **(base if is_repo_id(card["base_model"]) else {}),
        library_name="peft" if adapter else "transformers",
        pipeline_tag=task,
        license=card["license"],
        license_name=card["license_name"],
        license_link=card["license_link"],
        language=card["language"],
        datasets=card["datasets"],
        tags=["machine-unlearning", "unlearn", "hf_unlearn", tag],
        model_name=card["model_name"],
        eval_results=results or None,
    )


def base_text(base_model: str | None, revision: str | None) -> str:
    if not is_repo_id(base_model):
        return "A model that is not on the Hub," if base_model else "A model"
    return f"`{base_model}`" + (f" (revision `{revision}`)" if revision else "") + ","


def metric_table(original: Mapping, unlearned: Mapping, retrained: Mapping) -> Sequence[tuple[str, ...]]:
    """Rows (name, original, unlearned, retrained, goal) of what was measured on the unlearned model.

    Without a retrained model its column is left out.
    """
    table, models = [], (original, unlearned, retrained) if retrained else (original, unlearned)
    for key, name, digits, goal in (*RUN_METRICS, *KIND_METRICS):
        if unlearned.get(key) is not None:
            show = format_p if digits is None else lambda value, digits=digits: format_number(value, digits)
            table.append((name, *(show(row.get(key)) for row in models), goal))
    return table


def measured_text(counts: Mapping[str, tuple[int, int]]) -> str:
    """On how many rows `RUN_METRICS` were measured."""
    names = {"forget": "removed rows", "retain": "rows to be kept"}
    parts = [f"{count} of {total} {names[side]}" for side, (count, total) in counts.items()]
    return f"Measured on {' and '.join(parts)}, before and after." if parts else ""
