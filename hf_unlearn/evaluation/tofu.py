# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""The TOFU evaluation (Maini et al. 2024; metrics as in open-unlearning): a model and its splits in, a log out.

`evaluate` makes per-item values; all aggregates come from `tofu_logs`, whose functions are offered here too.
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from tqdm.auto import tqdm

from ..data.prompts import QATemplate, encode_qa
from ..data.tofu import EVAL_COLUMNS, QA_COLUMNS, WRONG_COLUMNS
from ..errors import InputError
from ..runtime.files import sha256_json
from ..runtime.provenance import library_versions
from . import memorization, privacy, scoring
from .tofu_logs import MIA_METRICS, UTILITY_PARTS, aggregates, read_log, summarize, write_log


__all__ = ["METRICS", "evaluate", "read_log", "summarize", "write_log"]

PREFIXES = {"forget": "forget", "retain": "retain", "real_authors": "ra", "world_facts": "wf"}
COLUMNS = {
    "forget": EVAL_COLUMNS,
    "retain": EVAL_COLUMNS,
    "real_authors": WRONG_COLUMNS,
    "world_facts": WRONG_COLUMNS,
    "holdout": QA_COLUMNS,
}
ANSWER_COLUMNS = {"Q_A_Prob": "answer", "Q_A_PARA_Prob": "paraphrased_answer", "Q_A_PERT_Prob": "perturbed_answer"}


class Source(NamedTuple):
    """What a metric is made of: one column of some splits, or other metrics (of these splits)."""

    splits: tuple[str, ...]
    column: str = "answer"
    parts: tuple[str, ...] = ()


def _sources() -> dict[str, Source]:
    sources: dict[str, Source] = {}
    for split, prefix in PREFIXES.items():
        own = {name: column for name, column in ANSWER_COLUMNS.items() if column in COLUMNS[split]}
        sources |= {f"{prefix}_{name}": Source((split,), column) for name, column in own.items()}
        sources[f"{prefix}_Q_A_ROUGE"] = Source((split,))
        correct = "Q_A_PARA_Prob" if "Q_A_PARA_Prob" in own else "Q_A_Prob"
        ratio = "forget_truth_ratio" if split == "forget" else f"{prefix}_Truth_Ratio"
        sources[ratio] = Source((split,), parts=(f"{prefix}_{correct}", f"{prefix}_Q_A_PERT_Prob"))
        if correct == "Q_A_Prob":
            sources[f"{prefix}_Q_A_Prob_normalised"] = sources[ratio]
    sources |= {name: Source(("forget",)) for name in ("exact_memorization", "extraction_strength")}
    sources |= {f"mia_{name}": Source(("forget", "holdout")) for name in MIA_METRICS}
    return sources | {
        "forget_quality": Source(("forget",), parts=("forget_truth_ratio",)),
        "model_utility": Source(("retain", "real_authors", "world_facts"), parts=UTILITY_PARTS),
        "privleak": Source(("forget", "holdout"), parts=("mia_min_k",)),
    }


SOURCES = _sources()
METRICS = tuple(SOURCES)


def _chosen(metrics: Iterable[str] | None, splits: Mapping, reference_model) -> list[str]:
    """The metrics to compute, with those they are made of; refuses what the splits cannot give."""
    if metrics is None:
        names = [name for name in METRICS if all(split in splits for split in SOURCES[name].splits)]
        return [name for name in names if name != "mia_reference" or reference_model is not None]
    names = [metrics] if isinstance(metrics, str) else list(metrics)
    if unknown := [name for name in names if name not in SOURCES]:
        raise InputError(f"unknown metric {', '.join(unknown)}; choose among {', '.join(METRICS)}")
    wanted: dict[str, None] = {}
    while names:
        name = names.pop()
        wanted[name] = None
        names.extend(SOURCES[name].parts)
        if missing := [split for split in SOURCES[name].splits if split not in splits]:
            raise InputError(f"{name} needs the split {', '.join(missing)}; given: {', '.join(splits)}")
    if "mia_reference" in wanted and reference_model is None:
        raise InputError("mia_reference needs reference_model=, a model that never saw the forget set")
    return [name for name in METRICS if name in wanted]


def _needed_columns(names: Iterable[str]) -> dict[str, set[str]]:
    needed: dict[str, set[str]] = {}
    for source in [SOURCES[name] for name in names if not SOURCES[name].parts]:
        for split in source.splits:
            needed.setdefault(split, {"question"}).add(source.column)
    return needed


def _check_columns(splits: Mapping, needed: Mapping[str, set[str]]) -> None:
    for split, columns in needed.items():
        present = list(splits[split].column_names)
        if missing := [column for column in COLUMNS[split] if column in columns and column not in present]:
            raise InputError(
                f"split {split} has no column {', '.join(missing)} (it has {', '.join(present)}): "
                "add it, or ask for metrics= that do without"
            )
        if len(splits[split]) == 0:
            raise InputError(f"split {split} is empty: leave it out or give rows")
        if "perturbed_answer" in columns:
            for row, wrong in enumerate(splits[split]["perturbed_answer"]):
                if not wrong or not isinstance(wrong, list):
                    raise InputError(f"split {split}, row {row}: perturbed_answer must be a list of wrong answers")


class _Passes:
    """Rows are collected first, so that one length-sorted pass serves all metrics; then looked up."""

    def __init__(self, tokenizer, template):
        self.tokenizer, self.template = tokenizer, template
        self.places: dict[tuple[str, str], list] = {}
        self.encoded: list[dict] = []
        self.scores: list = []

    def add(self, split: str, column: str, dataset) -> None:
        places = []
        for question, answers in zip(dataset["question"], dataset[column]):
            start = len(self.encoded)
            single = isinstance(answers, str)
            for answer in [answers] if single else answers:
                self.encoded.append(encode_qa(self.tokenizer, question, answer, self.template))
            places.append(start if single else list(range(start, len(self.encoded))))
        self.places[split, column] = places

    def run(self, model, batch_size: int, moments: bool, progress: bool) -> None:
        # The vocabulary moments double the work per logit: only the rows of the membership scores need them.
        members = ("forget", "holdout") if moments else ()
        heavy = [i for split in members for i in self.places.get((split, "answer"), [])]
        light = sorted(set(range(len(self.encoded))) - set(heavy))
        self.scores = [None] * len(self.encoded)
        for chosen, with_moments in ((light, False), (heavy, True)):
            rows, how = [self.encoded[i] for i in chosen], {"batch_size": batch_size, "progress": progress}
            found = scoring.score_answers(model, self.tokenizer, rows, moments=with_moments, **how)
            for i, score in zip(chosen, found):
                self.scores[i] = score

    def of(self, split: str, column: str) -> list:
        pick = lambda place: [self.scores[i] for i in place] if isinstance(place, list) else self.scores[place]
        return [pick(place) for place in self.places[split, column]]

    def encoded_of(self, split: str) -> list[dict]:
        return [self.encoded[place] for place in self.places[split, "answer"]]


def evaluate(
    model,
    tokenizer,
    splits: Mapping,
    retain_log: Mapping | None = None,
    *,
    template: QATemplate | None = None,
    batch_size: int = 32,
    max_new_tokens: int = 200,
    metrics: Iterable[str] | None = None,
    reference_model=None,
    progress: bool = True,
) -> dict:
    """Evaluate a causal LM (or PEFT model) on TOFU, where it lies and in eval mode; its mode is restored.

    Args:
        splits (`Mapping`): `datasets.Dataset`s under `forget` and `retain` (question, answer, paraphrased_answer,
            perturbed_answer: a list), `real_authors` and `world_facts` (no paraphrase), `holdout` (question, answer,
            for the membership scores). Any may be absent or None.
        retain_log (`Mapping`, *optional*): log of the model retrained without the forget rows; gives forget quality
            and the reference of privleak.
        template (`QATemplate`, *optional*): of the prompts, by default its own; the log holds its hash.
        metrics (`Iterable[str]`, *optional*): names from `METRICS`, or None for all that the splits allow. What a
            metric is made of comes with it. ROUGE generates and the gradient norm goes item by item: a sweep asks for
            less, such as `("forget_truth_ratio", "retain_Q_A_Prob")`.
        max_new_tokens (`int`, *optional*, defaults to `200`): of the greedy generations for ROUGE.
        reference_model (*optional*): for `mia_reference`, scored with the same tokenizer.

    Returns:
        The log, in open-unlearning's TOFU_EVAL.json layout (see `tofu_logs`), with a key `hf_unlearn` for template
        hash, counts, data hashes and versions. Equal inputs give equal logs: nothing is sampled.

    Raises:
        InputError: a split, column, metric or reference model is missing, or perturbed answers are not lists.
        NumericalError: the model gives logits that are not finite.
    """
    template = template or QATemplate()
    splits = {name: split for name, split in splits.items() if split is not None}
    if unknown := [name for name in splits if name not in COLUMNS]:
        raise InputError(f"unknown split {', '.join(unknown)}; the splits are {', '.join(COLUMNS)}")
    names = _chosen(metrics, splits, reference_model)
    if not names:
        raise InputError(f"no metric can be computed from the splits given; give some of {', '.join(COLUMNS)}")
    needed = _needed_columns(names)
    _check_columns(splits, needed)

    passes = _Passes(tokenizer, template)
    for split, columns in needed.items():
        for column in sorted(columns - {"question"}):
            passes.add(split, column, splits[split])
    passes.run(model, batch_size, "mia_min_k_plus_plus" in names, progress)

    log: dict = {}
    for name in names:
        if name in ("forget_quality", "model_utility", "privleak"):
            log[name] = {"agg_value": None}
        elif name.startswith("mia_"):
            log[name] = _membership(name, model, passes, splits, reference_model, batch_size, progress)
        elif name.endswith("_Q_A_ROUGE"):
            how = {"max_new_tokens": max_new_tokens, "batch_size": batch_size, "progress": progress}
            log[name] = _metric(_rouge(model, passes, SOURCES[name].splits[0], splits, how))
        else:
            log[name] = _metric(_likelihood(name, passes, log))
    values = aggregates(log, retain_log)
    for name, metric in log.items():
        metric["agg_value"] = values.get(name)
        if name.startswith("mia_"):
            metric["auc"] = values[name]
            for part in ("forget", "holdout"):
                metric[part]["agg_value"] = values[f"{name}/{part}"]
    log["hf_unlearn"] = _record(model, tokenizer, template, splits, max_new_tokens)
    return log


def _metric(items: Iterable) -> dict:
    return {"agg_value": None, "value_by_index": {str(i): item for i, item in enumerate(items)}}


def _likelihood(name: str, passes: _Passes, log: Mapping) -> list[dict]:
    """Per-item values of a metric that needs no generation; `log` holds the metrics that it is made of."""
    if name in ("exact_memorization", "extraction_strength"):
        formula = getattr(memorization, name)
        return [{"score": formula(score.correct[score.text])} for score in passes.of("forget", "answer")]
    source = SOURCES[name]
    if source.parts:
        correct, wrong = (log[part]["value_by_index"].values() for part in source.parts)
        field = "prob" if name.endswith("_normalised") else "avg_loss"
        formula = memorization.normalised_probability if field == "prob" else memorization.truth_ratio
        return [
            {"prob" if field == "prob" else "score": _unless_missing(formula, right[field], lies[field])}
            for right, lies in zip(correct, wrong)
        ]
    items = []
    for score in passes.of(source.splits[0], source.column):
        single = not isinstance(score, list)
        losses = [one.nll_mean for one in ([score] if single else score)]
        probabilities = [None if loss is None else memorization.probability(loss) for loss in losses]
        items.append(
            {"prob": probabilities[0] if single else probabilities, "avg_loss": losses[0] if single else losses}
        )
    return items


def _unless_missing(formula, correct: float | None, wrong: list) -> float | None:
    return None if correct is None or None in wrong else formula(correct, wrong)


def _rouge(model, passes: _Passes, split: str, splits: Mapping, how: Mapping) -> list[dict]:
    """ROUGE of greedy generations, without special tokens and stripped."""
    prompts = [scoring.prompt_ids(row) for row in passes.encoded_of(split)]
    generations = scoring.generate_ids(model, passes.tokenizer, prompts, **how)
    questions, answers = (
        passes.tokenizer.batch_decode(rows, skip_special_tokens=True) for rows in (prompts, generations)
    )
    return [
        {
            **memorization.rouge(truth.strip(), answer.strip()),
            "input": question,
            "ground_truth": truth.strip(),
            "generation": answer.strip(),
        }
        for truth, question, answer in zip(splits[split]["answer"], questions, answers)
    ]


def _membership(name, model, passes, splits, reference_model, batch_size, progress) -> dict:
    log = {}
    for split in ("forget", "holdout"):
        scores, encoded, texts = passes.of(split, "answer"), passes.encoded_of(split), splits[split]["answer"]
        losses = [score.nll_mean for score in scores]
        if name == "mia_zlib":
            losses = [None if loss is None else privacy.zlib_score(loss, text) for loss, text in zip(losses, texts)]
        elif name == "mia_reference":
            how = {"batch_size": batch_size, "progress": progress}
            theirs = scoring.score_answers(reference_model, passes.tokenizer, encoded, **how)
            losses = [None if loss is None else loss - other.nll_mean for loss, other in zip(losses, theirs)]
        elif name == "mia_min_k":
            losses = [privacy.min_k(s.token_log_probs[s.text]) for s in scores]
        elif name == "mia_min_k_plus_plus":
            losses = [
                privacy.min_k_plus_plus(s.token_log_probs[s.text], s.mean[s.text], s.variance[s.text]) for s in scores
            ]
        elif name == "mia_gradnorm":
            bar = tqdm(list(zip(encoded, scores)), desc=f"gradient norms, {split}", disable=not progress, leave=False)
            losses = [_gradient_norm(model, row, score) for row, score in bar]
        log[split] = _metric({"score": loss} for loss in losses)
    return log | {"auc": None, "agg_value": None}


def _gradient_norm(model, row: Mapping, score: scoring.AnswerScore) -> float | None:
    predicted = [label != -100 for label in row["labels"]]
    if score.eos:
        predicted[-1] = False
    return privacy.gradient_norm(model, row["input_ids"], predicted)


def _record(model, tokenizer, template, splits: Mapping, max_new_tokens: int) -> dict:
    return {
        "template_sha256": template.fingerprint(tokenizer),
        "counts": {name: len(split) for name, split in splits.items()},
        "data_sha256": {
            name: sha256_json([list(split[column]) for column in ("question", "answer")])
            for name, split in splits.items()
        },
        "seeds": {},  # greedy decoding and full passes: nothing is drawn
        "max_new_tokens": max_new_tokens,
        "dtype": str(next(model.parameters()).dtype).removeprefix("torch."),
        "versions": library_versions(),
    }
