# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Road from an experiment to its report, which `hf-unlearn demo` and the recipes share."""

import contextlib
import shutil
from pathlib import Path

import torch
from accelerate import PartialState
from tqdm.auto import tqdm

from ..report.aggregates import aggregate
from ..report.page import write_report
from ..report.tables import format_table
from ..report.vocabulary import vocabulary_of
from ..runtime.folders import staged_folder, temporary_folder, writing
from ..runtime.processes import Processes, held, on_main_process
from ..runtime.provenance import record_run, without_places
from ..runtime.published import MODEL_FILES
from .comparison import Comparison
from .planning import plans
from .problems.kinds import KINDS
from .settings import Experiment, read_experiment


SECONDS = (
    "Seconds are those of the chosen candidate (fit, gradient, steps), without evaluation; on a shared machine "
    "compare ratios."
)


def run_experiment(experiment: Experiment, output_dir: str | Path, *, progress: bool = True) -> list[dict]:
    """Load, compare, and write the report; returns the rows of `results.json`.

    Raises:
        InputError: data or models that cannot be had, settings that do not fit them, or another process is at work in
            the folder.
    """
    with held(output_dir, Processes(PartialState(), "the comparison")):
        return _run(experiment, Path(output_dir), progress)


def _run(experiment: Experiment, output_dir: Path, progress: bool) -> list[dict]:
    comparison = Comparison(experiment, output_dir, progress=progress)

    def show_plans(cell):
        if progress:
            sizes = [stage.size for stage in cell.problem.stages]
            tqdm.write(plans(experiment.kind, cell.problem.original, cell.lines, sizes) + "\n")

    threads = torch.get_num_threads()
    if getattr(experiment.model, "scratch", None) is not None:
        # Small models gain little from a second thread, and threads that wait for each other on a busy machine take
        # many times as long.
        torch.set_num_threads(1)
    try:
        with contextlib.ExitStack() as stack:
            with writing(output_dir):
                models = stack.enter_context(temporary_folder(output_dir, "models"))
            rows = comparison.run(models, show_plans)
            # The report says on how many threads the numbers were made.
            on_main_process(lambda: publish(experiment, comparison, rows, output_dir, models))
    finally:
        torch.set_num_threads(threads)
    return rows


def publish(experiment: Experiment, comparison: Comparison, rows: list[dict], output_dir: Path, models: Path):
    """Put the report of a comparison that is done, and the models that it speaks of, in their place together.

    Raises:
        WriteError: a file could not be written; report and models are those of before.
    """
    budgets = sorted(set(map(experiment.kind.candidates, experiment.lines)))
    # Methods have their own lines in the report.
    written = without_places(experiment.written)
    settings = {key: value for key, value in written.items() if value and key not in ("title", "methods")}
    places = [row["saved_as"] for row in rows if "saved_as" in row]
    of_models = [f"{place}/{pattern}" for place in places for pattern in MODEL_FILES]
    sections = comparison.sections + experiment.kind.table_sections(experiment, rows)
    if experiment.sweep is not None:
        # Before other parts: it is what the run is for.
        sections = [*experiment.sweep.sections(experiment.curves, rows), *sections]
    with staged_folder(output_dir, ["kl.png", *of_models]) as staged:
        for place in places:
            (staged / place).parent.mkdir(parents=True, exist_ok=True)
            shutil.move(models / place, staged / place)
        write_report(
            staged,
            title=experiment.title,
            rows=rows,
            candidates=comparison.candidates,
            kl_samples={name: kl.per_token.tolist() for name, kl in comparison.kl.items()},
            questions=comparison.questions,
            sections=sections,
            settings=settings | comparison.facts,
            summary=vocabulary_of(rows).summarise(rows),
            notes=[f"Every method evaluated {' or '.join(map(str, budgets))} candidates.", *comparison.notes, SECONDS],
        )


def run_demo(
    output_dir: str | Path = "outputs/demo", seed: int = 0, progress: bool = True, record_to: str | Path | None = None
) -> list[dict]:
    """The embedded default: train two tiny models (cached), unlearn with every method, write the report."""
    experiment = read_experiment(None, "demo.yaml", KINDS, {"seed": seed})
    rows = run_experiment(experiment, output_dir, progress=progress)
    record(rows, output_dir, experiment, record_to)
    return rows


def record(rows: list[dict], output_dir: str | Path, experiment: Experiment, path: str | Path | None = None):
    """Print the table; with a path also write it with command, settings, versions and machine."""
    vocabulary = vocabulary_of(rows)
    print(format_table(rows))
    print(f"\n{vocabulary.summarise(rows)}\n\nreport: {Path(output_dir) / 'report.html'}")
    if path is None:
        return
    about = {"config": without_places(experiment.written), "rows": rows}
    if len(experiment.seeds) == 1 and vocabulary.size_key is None:
        record_run(path, {"seed": experiment.seeds[0], **about})
    else:
        about["table"] = aggregate(rows, vocabulary.size_key)
        record_run(path, {"seeds": list(experiment.seeds), **about})
