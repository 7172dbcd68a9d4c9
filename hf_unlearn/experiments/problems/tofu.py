# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""TOFU, and the embedded problem in its columns: forget some authors; compare with a model that never knew them."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

from ...data.benchmarks import TOFU, benchmark_of
from ...data.prompts import make_template, tokenize_qa
from ...data.tofu import TofuSplits, load_tofu
from ...errors import InputError
from ...evaluation import tofu
from ...evaluation.answers import answer_rows, spread
from ...miniature.authors import load_synthetic, scratch_models
from ...report.questions import FORGET, RETAIN
from ...report.vocabulary import TofuVocabulary
from ...runtime.files import sha256_json, sha256_tensors
from ...runtime.limits import check_tokenizer
from ...runtime.loading import load_model, load_tokenizer
from ...runtime.processes import on_main_process
from ..problem import LanguageModel, Problem, Reference, Stage, StageSize, divergence_from, typed


SEARCH_METRICS = ("forget_truth_ratio", "forget_Q_A_Prob", "retain_Q_A_Prob")
# What the table shows, without the membership scores that take one backward pass per row.
TABLE_METRICS = (
    *("forget_quality", "model_utility", "forget_Q_A_Prob", "forget_Q_A_ROUGE"),
    *("exact_memorization", "extraction_strength"),
)
NOTES = [
    "The candidate of a row is the one with the least retain KL among those with forget quality >= 0.05, else the one "
    "that forgot most. Choosing needs the retrained model, as in the papers.",
    "Forget quality is the p-value of a two-sample KS test on truth ratios against the retrained model (TOFU); it "
    "says the two cannot be told apart by this test on n items, not that nothing is left. Relearning attacks are not "
    "part of this table.",
]
SYNTHETIC = "synthetic"
# Keys of the section `data` that one of the sources alone has.
OF_TOFU, OF_SYNTHETIC = ("forget", "retain_rows"), ("authors", "forget_authors", "questions_per_author")


@dataclass
class TofuData:
    """The section `data`.

    Args:
        source: "synthetic" for the embedded problem, or a folder or Hub id of TOFU.
        forget, retain_rows: see `data.tofu.load_tofu`.
        authors, forget_authors, questions_per_author: see `miniature.authors.load_synthetic`.
        template: a name of `data.prompts.PRESETS`, or fields of `QATemplate`.
    """

    source: str = "locuslab/TOFU"
    forget: str | None = None
    retain_rows: int | None = None
    authors: int | None = None
    forget_authors: int | None = None
    questions_per_author: int | None = None
    template: dict | str = field(default_factory=dict)

    def __post_init__(self):
        try:
            self.template = make_template(self.template)
        except InputError as error:
            raise InputError(f"data.template: {error}") from error
        if found := self.given(OF_TOFU if self.is_synthetic else OF_SYNTHETIC):
            whose = "TOFU" if self.is_synthetic else f"source: {SYNTHETIC}"
            raise InputError(f"data: {', '.join(found)} belongs to {whose}: leave it out, or change source")

    @property
    def is_synthetic(self) -> bool:
        return self.source == SYNTHETIC

    def given(self, names: Sequence[str]) -> dict:
        """Those of the keys that have a value."""
        return {name: value for name in names if (value := getattr(self, name)) is not None}

    def splits(self, seed: int) -> TofuSplits:
        """The rows; those of the embedded problem are drawn from the seed."""
        if self.is_synthetic:
            return load_synthetic(seed, **self.given(OF_SYNTHETIC))
        return load_tofu(self.source, **self.given(OF_TOFU))


@dataclass
class TofuEvaluation:
    """The section `evaluation`.

    Args:
        max_length: tokens of the longest row.
        max_new_tokens: of a generated answer.
        batch_size: rows scored at a time.
        sweep_rows: retain rows on which every candidate's KL is measured.
    """

    max_length: int = 512
    max_new_tokens: int = 200
    batch_size: int = 32
    sweep_rows: int = 200


@dataclass
class TofuModel(LanguageModel):
    """The section `model`: a forget quality needs a retrained model too.

    Args:
        retrained, retain_log: a model that never saw the forget rows, or the log of one.
    """

    retrained: str | None = None
    retain_log: str | None = None

    train = staticmethod(scratch_models)

    def __post_init__(self):
        super().__post_init__()
        if self.scratch is None and not self.retrained and not self.retain_log:
            raise InputError("give model.retrained or model.retain_log: forget quality needs a retrained model")


class TofuProblem(Problem):
    """Forgetting rows of TOFU. In place of the retrained model there may be `retain_log`, the log of such a model."""

    vocabulary = TofuVocabulary()
    sections = {"data": typed(TofuData), "model": typed(TofuModel), "evaluation": typed(TofuEvaluation)}

    def __init__(self, experiment, size, seed, progress=True):
        model, self.settings = experiment.model, experiment.evaluation
        self.splits, self.template = experiment.data.splits(seed), experiment.data.template
        self.name, self.max_length = self.splits.name, self.settings.max_length
        self.retrained = self.retain_log = None
        if model.scratch is not None:
            trained = scratch_models(self.splits, seed, **model.scratch, progress=progress)
            self.tokenizer, self.original, self.retrained = trained
            return
        self.tokenizer = load_tokenizer(model.original, model.arguments, required_for="TOFU")
        self.original = self._loaded(model.original, model)
        if model.retrained:
            self.retrained = self._loaded(model.retrained, model)
        else:
            self.retain_log = tofu.read_log(model.retain_log)

    def _loaded(self, place: str, model: TofuModel):
        loaded, _ = load_model(place, self.tokenizer, model.arguments)
        check_tokenizer(self.tokenizer, loaded)
        return loaded.eval()

    @classmethod
    def stage_sizes(cls, experiment, size):
        splits = experiment.data.splits(experiment.seeds[0])
        return [StageSize(splits.name, len(splits.forget), len(splits.retain), experiment.evaluation.max_length)]

    def rows(self, split) -> object:
        return tokenize_qa(split, self.tokenizer, self.template, self.max_length)

    @functools.cached_property
    def stages(self) -> list[Stage]:
        forget, retain = self.splits.forget, self.splits.retain
        questions = forget.select_columns(["question", "answer"])
        return [Stage(self.name, self.rows(forget), self.rows(retain), questions, asdict(self.template))]

    def identity(self):
        retrained = self.retain_log if self.retrained is None else sha256_tensors(self.retrained.state_dict())
        evaluated = {name: rows for name, rows in self.splits.evaluation().items() if rows is not None}
        return {
            "data": self.splits.name,
            "retrained": sha256_json(retrained),
            "evaluated": sha256_json({name: rows.to_list() for name, rows in evaluated.items()}),
            "template": self.template.fingerprint(self.tokenizer),
            "sweep_rows": self.settings.sweep_rows,
            "max_new_tokens": self.settings.max_new_tokens,
        }

    def prepare(self, folder, identity):
        rows = self.splits.retain_eval
        rows = self.rows(rows.select(range(min(self.settings.sweep_rows, len(rows)))))
        self._kl = divergence_from(self, rows)
        if not self._kl.cached:
            raise InputError(
                f"evaluation.sweep_rows={self.settings.sweep_rows} is too many to remember the original's answers: "
                "lower it"
            )

    def references(self):
        return super().references() | ({} if self.retrained is None else {"retrained": Reference(self.retrained)})

    @functools.cached_property
    def _reference_log(self) -> Mapping:
        return self.retain_log if self.retrained is None else self._log(self.retrained)

    def _log(self, model, metrics=None) -> Mapping:
        every = TABLE_METRICS if self.splits.holdout is None else (*TABLE_METRICS, "privleak")
        return tofu.evaluate(
            model,
            self.tokenizer,
            self.splits.evaluation(),
            template=self.template,
            batch_size=self.settings.batch_size,
            max_new_tokens=self.settings.max_new_tokens,
            metrics=metrics or every,
            progress=False,
        )

    def score_candidate(self, model):
        return metrics_of(tofu.summarize(self._log(model, SEARCH_METRICS), self._reference_log), self._kl(model).mean)

    def evaluate(self, model, folder=None):
        log = self._reference_log if model is self.retrained else self._log(model)
        if folder is not None:
            on_main_process(lambda: tofu.write_log(folder / "TOFU_EVAL.json", log))
        kl = self._kl(model)
        return metrics_of(tofu.summarize(log, self._reference_log), kl.mean), kl

    def answers(self, model):
        found = {}
        for side, rows, count in ((FORGET, self.splits.forget, 3), (RETAIN, self.splits.retain, 1)):
            rows = rows.select(spread(len(rows), count))
            said = answer_rows(model, self.tokenizer, self.rows(rows), max_new_tokens=self.settings.max_new_tokens)
            found[side] = [
                {"prompt": row["question"], "row": row["answer"], "answer": one["answer"]}
                for row, one in zip(rows, said, strict=True)
            ]
        return found

    def notes(self):
        return NOTES

    def facts(self):
        sizes = {name: len(rows) for name, rows in self.splits.evaluation().items() if rows is not None}
        return {"rows": {"forget": len(self.splits.forget), "retain": len(self.splits.retain), "evaluated": sizes}}

    def card(self, rows, best):
        told = {"forget": f"the forget set of {self.name}", "retain": "its other rows"}
        asked = sum(len(rows) for name, rows in self.splits.evaluation().items() if name != "holdout")
        if benchmark := benchmark_of(TOFU, self.name, asked):
            told |= {"datasets": [benchmark.dataset], "benchmark": benchmark.names}
        return told


def metrics_of(summary: Mapping, kl: float) -> dict:
    """The numbers of a row. Probabilities and ROUGE are means over rows, `retain_kl` is in nats per token."""
    return {
        "forget_quality": summary["forget_quality"],
        "ks_statistic": summary["ks_statistic"],
        "n": summary["n"],
        "log10_forget_quality": summary["log10_forget_quality"],
        "model_utility": summary.get("model_utility"),
        "forget_probability": summary["forget_Q_A_Prob"],
        "retain_probability": summary["retain_Q_A_Prob"],
        "forget_truth_ratio": summary["forget_truth_ratio"],
        "forget_rouge": summary.get("forget_Q_A_ROUGE"),
        "retain_rouge": summary.get("retain_Q_A_ROUGE"),
        "extraction_strength": summary.get("extraction_strength"),
        "exact_memorization": summary.get("exact_memorization"),
        "privleak": summary.get("privleak"),
        "retain_kl": kl,
    }
