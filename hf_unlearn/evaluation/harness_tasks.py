# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Tasks of lm-eval by name: WMDP and MMLU on local files too, questions in memory, and everything lm-eval knows.

WMDP and MMLU always are the installed lm-eval's own tasks (prompts, metrics, groups); a data folder replaces their
rows and nothing else. Imports lm-eval, so it is imported late.
"""

import difflib
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import lm_eval.tasks
from datasets import Dataset
from datasets.exceptions import DatasetNotFoundError
from lm_eval.api.task import ConfigurableTask
from lm_eval.tasks import TaskManager

from ..data.wmdp import check_question, load_questions
from ..errors import InputError, first_line


# The folders of lm-eval that hold WMDP and MMLU: reading only these saves the seconds that all 14,000 names take.
FOLDERS = [Path(lm_eval.tasks.__file__).parent / name for name in ("wmdp", "mmlu/default")]
WMDP, MMLU = "cais/wmdp", "cais/mmlu"


def load_tasks(
    names: Sequence[str],
    *,
    questions: Mapping[str, Sequence[Mapping]] | None = None,
    data_dir: str | Path | None = None,
    include_path: str | Path | None = None,
    num_fewshot: int | None = None,
) -> dict:
    """lm-eval's `{"tasks": {name: Task}, "groups": {name: Group}}` of the names and of all in-memory questions.

    Raises:
        InputError: no name, an unknown one (near matches are listed), data that is missing or malformed.
    """
    questions = questions or {}
    names = [name for name in dict.fromkeys(names) if name not in questions]
    if not names and not questions:
        raise InputError("no task was named: give at least one, as wmdp, wmdp_bio or mmlu")
    tasks = {name: question_task(name, rows) for name, rows in questions.items()}
    groups = {}
    manager = _small_manager(data_dir, include_path, bool(num_fewshot)) if names else None
    for name in names:
        found = _load(name, manager if name in manager.task_index else _whole_manager(include_path), manager)
        tasks |= found["tasks"]
        groups |= found["groups"]
    for task in tasks.values():
        # As lm_eval.simple_evaluate does: what a task fixes at 0 stays 0.
        shots = task.get_config("num_fewshot")
        task.set_config("num_fewshot", (shots or 0) if shots == 0 or num_fewshot is None else num_fewshot)
        task.set_fewshot_seed(1234)
    return {"tasks": tasks, "groups": groups}


def question_task(name: str, rows: Sequence[Mapping]) -> ConfigurableTask:
    """A multiple-choice task in memory: `Question: ...\\nAnswer:`, each choice after a space, metric `acc`."""
    if not rows:
        raise InputError(f"the task {name} has no questions: give it at least one")
    questions = [check_question(f"question {number} of the task {name}", row) for number, row in enumerate(rows, 1)]
    docs = Dataset.from_list([{key: row[key] for key in ("question", "choices", "answer")} for row in questions])
    return ConfigurableTask(
        config={
            "task": name,
            "custom_dataset": lambda **_: {"test": docs},
            "test_split": "test",
            "output_type": "multiple_choice",
            "doc_to_text": lambda doc: f"Question: {doc['question']}\nAnswer:",
            "doc_to_choice": lambda doc: doc["choices"],
            "doc_to_target": lambda doc: doc["answer"],
            "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
            "num_fewshot": 0,
            "metadata": {"version": 1},
        }
    )


def _small_manager(data_dir, include_path, with_examples: bool) -> TaskManager:
    """Knows WMDP, MMLU and the tasks of `include_path`; WMDP and MMLU read `data_dir` when there is one."""
    if include_path and not Path(include_path).is_dir():
        raise InputError(f"{include_path} is not a folder; give the folder of your lm-eval task files as include_path")
    own = [Path(include_path)] if include_path else []
    manager = TaskManager(include_path=[*FOLDERS, *own], include_defaults=False)
    if data_dir is None:
        return manager
    built_in = TaskManager(include_path=FOLDERS, include_defaults=False) if own else manager

    @functools.lru_cache
    def read(source: str):
        return load_questions(source, data_dir=data_dir)

    def rows(source: str, config: str, split: str) -> Dataset:
        # MMLU's subjects are one file; a file without that column holds one subject, as WMDP's do.
        if source == WMDP:
            return Dataset.from_list(read(f"{source}:{config}:{split}"))
        found = [row for row in read(f"{source}:all:{split}") if row.get("subject", config) == config]
        if not found:
            raise InputError(
                f"MMLU in {data_dir} has no question of the subject {config} ({split}); use the whole file"
            )
        return Dataset.from_list(found)

    for name, entry in manager.task_index.items():
        config = entry.cfg or {}
        if entry != built_in.task_index.get(name) or config.get("dataset_path") not in (WMDP, MMLU):
            continue
        # Examples are read only when they are asked for: few have MMLU's dev split at hand.
        unused = ("include", *(() if with_examples else ("fewshot_split", "fewshot_config")))
        config = {key: value for key, value in config.items() if key not in unused}
        splits = [config[key] for key in ("test_split", "fewshot_split") if config.get(key)]
        dataset = functools.partial(_splits, rows, config["dataset_path"], config["dataset_name"], splits)
        manager.task_index[name] = replace(entry, yaml_path=None, cfg={**config, "custom_dataset": dataset})
    return manager


def _splits(rows: Callable, source: str, subset: str, splits: Sequence[str], **_) -> dict[str, Dataset]:
    """What lm-eval calls for a task's data, with the task's metadata as further arguments."""
    return {split: rows(source, subset, split) for split in splits}


@functools.lru_cache(maxsize=1)
def _whole_manager(include_path) -> TaskManager:
    return TaskManager(include_path=include_path)


def _load(name: str, manager: TaskManager, small: TaskManager) -> dict:
    if name not in manager.task_index:
        near = difflib.get_close_matches(name, manager.all_tasks, n=5, cutoff=0.7)
        likely = [other for other in manager.all_tasks if name and other.startswith(name)]
        near = ", ".join(list(dict.fromkeys(near + likely))[:5])
        listed = f"; did you mean {near}?" if near else ""
        raise InputError(f"there is no task {name!r}{listed} (`lm_eval ls tasks` lists all of lm-eval's)")
    try:
        return manager.load([name])
    except (ConnectionError, DatasetNotFoundError, FileNotFoundError) as error:
        local = ", or give a folder with local copies as data_dir (--data_dir)" if manager is small else ""
        raise InputError(
            f"the data of the task {name} cannot be read ({first_line(error)}); go online{local}"
        ) from error
