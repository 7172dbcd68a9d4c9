# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Accuracy of models in memory on lm-eval's tasks: before and after in one call, cached, on one process or many."""

import contextlib
import copy
import functools
import gc
import importlib.metadata
import inspect
import io
import logging
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from ..errors import InputError
from ..runtime.cache import cache_folder, cached_json
from ..runtime.files import sha256_json, sha256_tensor
from ..runtime.limits import check_tokenizer
from ..runtime.modules import evaluation_mode
from ..runtime.processes import Processes
from .harness_scores import HarnessResult, Score, make_score, plain_sample


CACHE_FORMAT = 2
ADAPTER_STATE = ("active_adapters", "scaling", "merged_adapters", "disable_adapters")
# Draws for the standard error of the metrics that have no formula for it (a mean has one).
BOOTSTRAP = 1000


def evaluate_tasks(
    models,
    tokenizer,
    tasks: Sequence[str] = (),
    *,
    questions: Mapping[str, Sequence[Mapping]] | None = None,
    data_dir: str | Path | None = None,
    include_path: str | Path | None = None,
    limit: int | None = None,
    num_fewshot: int | None = None,
    batch_size: int = 16,
    max_length: int | None = None,
    log_samples: bool = False,
    cache: bool = True,
    cache_dir: str | Path | None = None,
    accelerator=None,
    progress: bool = True,
) -> HarnessResult:
    """Scores of models on lm-eval's tasks: any task or group that lm-eval knows, and multiple choice in memory.

    The models stay as they are, on their device and in their precision: logits and log-softmax are computed in it (as
    lm-eval does), prompts are tokenised as the tokenizer does by default (with BOS if it adds one), no chat template.

    Args:
        models: a causal model (also a PEFT model), or {label: model}; in place of a model also a function without
            arguments that gives it, called when its turn comes, so that only one needs to be in memory.
        tasks (`Sequence[str]`, *optional*): names: `wmdp`, `wmdp_bio`, `mmlu`, `mmlu_virology`,
            `hellaswag` ... Those outside WMDP and MMLU take ten seconds more, as lm-eval then reads all of its names.
        questions (`Mapping[str, Sequence[Mapping]]`, *optional*): {task name: [{"question", "choices", "answer":
            index}]}, all of which are tasks too. The prompt is `Question: ...\\nAnswer:`, the choices follow after a
            space, and the likeliest (summed log-probability) is taken.
        data_dir (`str` or `Path`, *optional*): folder with local copies of WMDP and MMLU (`wmdp/bio_test.jsonl.gz`,
            `mmlu/test.jsonl` with a column `subject`, `mmlu/dev.jsonl` for examples; also flat: see
            `data.sources.LOCAL_NAMES`); otherwise the Hub.
        include_path (`str` or `Path`, *optional*): folder of your lm-eval task files; they win over built-in names.
        limit (`int`, *optional*): take the first `limit` questions of each task only (of each of MMLU's 57, too).
        num_fewshot (`int`, *optional*): examples before each question, for tasks that do not fix 0 (WMDP does).
        batch_size (`int`, *optional*, defaults to `16`): prompts in one forward pass.
        max_length (`int`, *optional*): tokens of prompt and answer; longer prompts are cut from the left. Default: the
            model's own (`max_position_embeddings`), 2048 if it has none.
        log_samples (`bool`, *optional*, defaults to `False`): also return every question with its responses.
        cache (`bool`, *optional*, defaults to `True`): read and write results; what was answered once for the same
            weights, tokenizer, tasks, data, limit and lm-eval is not asked again.
        cache_dir (`str` or `Path`, *optional*): default `cache_folder()/harness`.
        accelerator (*optional*): with several processes (a `PartialState` will do), each answers every n-th batch and
            all get the result; all must call this. Without it the calling process works alone.
        progress (`bool`, *optional*, defaults to `True`): print the number of questions, show a bar (main process).

    Raises:
        InputError: no task, an unknown one, missing or malformed data, a tokenizer that does not fit a model, lm-eval
            not installed, processes with different models or data.
        NumericalError: a model's log-likelihoods are NaN.
    """
    _check_installed()
    if tokenizer is None:
        raise InputError("evaluation on tasks needs the model's tokenizer: give one")
    if limit is not None and limit < 1:
        raise InputError(f"limit must be at least 1, not {limit}")
    tasks = [tasks] if isinstance(tasks, str) else list(tasks)
    models = models if isinstance(models, Mapping) else {"model": models}
    with _quiet():
        from .harness_tasks import load_tasks

        loaded = load_tasks(
            tasks, questions=questions, data_dir=data_dir, include_path=include_path, num_fewshot=num_fewshot
        )
    processes = Processes(accelerator, "the evaluation")
    progress = progress and processes.rank == 0
    if progress:
        print(
            f"questions: {', '.join(f'{name} {n}' for name, n in count_questions(loaded, limit).items())}", flush=True
        )
    settings = {
        "limit": limit,
        "num_fewshot": num_fewshot,
        "max_length": max_length,
        "log_samples": log_samples,
        "lm_eval": importlib.metadata.version("lm_eval"),
    }
    asked = {
        **settings,
        "format": CACHE_FORMAT,
        "tasks": _identity(loaded, limit),
        "tokenizer": _tokenizer_hash(tokenizer),
    }
    folder = Path(cache_dir) if cache_dir is not None else cache_folder() / "harness"
    scores, about, samples = {}, {}, {}
    for label, model in models.items():
        is_lent = isinstance(model, torch.nn.Module)
        model = model if is_lent else model()
        check_tokenizer(tokenizer, model)
        key = {**asked, "model": model_hash(model)}
        processes.agree(key)
        file = folder / f"{sha256_json(key)}.json"
        keep = cache and not any(processes.gather(has_hooks(model)))
        known = keep and processes.share(file.is_file)[0]
        answer = functools.partial(_evaluate, model, tokenizer, loaded, settings, batch_size, processes, progress)
        outcome = cached_json(file, key, answer, processes) if keep else answer()
        scores[label] = {task: Score(**score) for task, score in outcome["scores"].items()}
        about[label] = {"sha256": key["model"], "cached": known, **outcome["model"]}
        samples[label] = outcome["samples"]
        if not is_lent:
            del model, answer
            gc.collect()  # before the next one is loaded
    return HarnessResult(
        scores=scores,
        # A group without an average of its own has no row.
        tasks=[
            name
            for name in _rows_of_table(loaded, tasks, questions or {})
            if all(name in of for of in scores.values())
        ],
        settings={**settings, "batch_size": batch_size},
        models=about,
        samples=samples if log_samples else None,
    )


def _evaluate(
    model, tokenizer, loaded: dict, settings: Mapping, batch_size: int, processes: Processes, progress: bool
) -> dict:
    """Ask one model all questions: its scores and samples as they are cached."""
    stderr = sys.stderr
    with _quiet(), evaluation_mode(model):
        from lm_eval.evaluator import evaluate

        from .harness_model import SpreadLM

        if tokenizer.pad_token_id is None:
            tokenizer = copy.deepcopy(tokenizer)  # lm-eval gives it a padding token
        lm = SpreadLM(
            model, tokenizer, share=(processes.rank, processes.size), bar_file=stderr if progress else None,
            batch_size=batch_size, max_length=settings["max_length"],
        )  # fmt: skip
        found = evaluate(
            lm, loaded, limit=settings["limit"], bootstrap_iters=BOOTSTRAP, log_samples=settings["log_samples"]
        )
    chances = {name: chance_level(task) for name, task in loaded["tasks"].items()}
    results = found["results"]
    for name, group in loaded["groups"].items():
        members = [task.task_name for task in group.get_all_tasks()]
        chances[name] = _weighted_mean([(chances[member], results[member]["sample_len"]) for member in members])
    order = [*loaded["groups"], *loaded["tasks"]]
    scores = {
        name: asdict(make_score(results[name], chances[name])) for name in order if results[name].get("sample_len")
    }
    samples = {name: [plain_sample(sample) for sample in rows] for name, rows in (found.get("samples") or {}).items()}
    facts = {"dtype": str(model.dtype).removeprefix("torch."), "max_length": lm.max_length, "truncated": lm.truncated}
    return {"scores": scores, "samples": samples, "model": facts}


def chance_level(task) -> float | None:
    """Mean over the questions that were asked of 1 / number of choices; None for a task without choices."""
    if task.OUTPUT_TYPE != "multiple_choice":
        return None
    choices: dict = {}
    for instance in task.instances:
        # The requests without a prompt are of another metric (mutual information), not further choices.
        choices[instance.doc_id] = choices.get(instance.doc_id, 0) + bool(instance.args[0])
    return sum(1 / n for n in choices.values() if n) / len(choices)


def hash_tasks(
    tasks: Sequence[str] = (),
    *,
    questions: Mapping[str, Sequence[Mapping]] | None = None,
    data_dir: str | Path | None = None,
) -> str:
    """SHA-256 of the settings and rows of tasks, whichever file they lie in; the arguments of [`evaluate_tasks`]."""
    with _quiet():
        from .harness_tasks import load_tasks

        return sha256_json(_identity(load_tasks(tasks, questions=questions, data_dir=data_dir), None))


def count_questions(loaded: Mapping, limit: int | None = None) -> dict[str, int]:
    """{group or task outside of the groups: number of questions}, of what `load_tasks` gave."""
    counts = {name: min(len(task.eval_docs), limit or math.inf) for name, task in loaded["tasks"].items()}
    members = {name: [task.task_name for task in group.get_all_tasks()] for name, group in loaded["groups"].items()}
    inner = {child.name for group in loaded["groups"].values() for child in group.get_all_groups()}
    groups = {name: sum(counts[task] for task in tasks) for name, tasks in members.items() if name not in inner}
    # A long list of members says less than their sum.
    hidden = {task for name in groups for task in members[name] if len(members[name]) > 5}
    return {**groups, **{name: n for name, n in counts.items() if name not in hidden}}


def model_hash(model) -> str:
    """SHA-256 of all that decides what a model computes, but hooks (`has_hooks`).

    Weights and buffers (sharded ones are put together, by all processes), settings, attention, and which adapters act,
    how strongly.
    """
    digests = {}
    for name, tensor in (dict(model.named_buffers()) | model.state_dict()).items():
        tensor = tensor.full_tensor() if isinstance(tensor, torch.distributed.tensor.DTensor) else tensor
        digests[name] = sha256_tensor(tensor)
    # Where a model came from is not what it computes.
    ignored = ("_name_or_path", "transformers_version", "architectures")
    config = {key: value for key, value in model.config.to_dict().items() if key not in ignored}
    adapters = {
        name: [str(getattr(module, part, None)) for part in ADAPTER_STATE]
        for name, module in model.named_modules()
        if hasattr(module, "active_adapters") and hasattr(module, "scaling")
    }
    attention = getattr(model.config, "_attn_implementation", None)
    return sha256_json({"weights": digests, "config": config, "attention": attention, "adapters": adapters})


def has_hooks(model) -> bool:
    """Whether a forward pass runs hooks, which no hash covers."""
    return any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def _tokenizer_hash(tokenizer) -> str:
    backend = getattr(tokenizer, "backend_tokenizer", None)  # slow ones have none
    return sha256_json(
        [tokenizer.get_vocab() if backend is None else backend.to_str(), str(tokenizer.special_tokens_map)]
    )


def _identity(loaded: Mapping, limit: int | None) -> dict:
    """What tells these tasks from others: their settings, the rows that are asked, the groups they are in."""
    tasks = {}
    for name, task in loaded["tasks"].items():
        docs = list(task.eval_docs)[:limit]
        shots = list(task.fewshot_docs()) if task.get_config("num_fewshot") else []
        ignored = ("custom_dataset", *(() if shots else ("fewshot_config", "fewshot_split")))
        settings = {key: _source(value) for key, value in task.dump_config().items() if key not in ignored}
        settings["metadata"] = str((settings.get("metadata") or {}).get("version"))  # the rest is where the file lay
        tasks[name] = {"settings": sha256_json(settings), "rows": sha256_json([docs, shots])}
    groups = {name: [task.task_name for task in group.get_all_tasks()] for name, group in loaded["groups"].items()}
    return {"tasks": tasks, "groups": groups}


def _source(value):
    """A task's setting with the source of functions in place of the functions, whose text has an address in it."""
    if isinstance(value, Mapping):
        return {key: _source(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_source(part) for part in value]
    return inspect.getsource(value) if inspect.isfunction(value) else value


def _rows_of_table(loaded: Mapping, tasks: Sequence[str], questions: Mapping) -> list[str]:
    rows = []
    for name in dict.fromkeys([*questions, *tasks]):
        if name in loaded["groups"]:
            rows += [name, *loaded["groups"][name].child_names]
        elif name in loaded["tasks"]:
            rows.append(name)
        else:  # a tag: a name for several tasks
            rows += [task for task in loaded["tasks"] if task not in rows]
    return list(dict.fromkeys(rows))


def _weighted_mean(pairs: Sequence[tuple[float | None, int]]) -> float | None:
    total = sum(n for _, n in pairs)
    return None if not total or any(value is None for value, _ in pairs) else sum(v * n for v, n in pairs) / total


def _check_installed():
    try:
        importlib.metadata.version("lm_eval")
    except importlib.metadata.PackageNotFoundError as error:
        raise InputError("lm-eval is not installed; install it with: pip install 'lm-eval[hf]>=0.4.13'") from error


@contextlib.contextmanager
def _quiet():
    """Keep lm-eval's log lines and its bars of building prompts off the screen; its warnings of a model in memory are
    about spreading, which `SpreadLM` does."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)
