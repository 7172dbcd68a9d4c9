# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Hazardous knowledge: forget domains stage by stage, ask questions, see what else moved (WMDP, K-FADE)."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch
from accelerate import PartialState
from datasets import Dataset

from ...data.benchmarks import QUESTIONS, benchmark_of
from ...errors import InputError
from ...evaluation.answers import answer_rows, spread
from ...evaluation.completions import generate_completions, worst_completions
from ...evaluation.harness import Score, evaluate_tasks, hash_tasks
from ...miniature.hazards import hazard_model
from ...report.formats import format_number
from ...report.page import Section
from ...report.plots import kl_quantile_plot
from ...report.questions import FORGET, RETAIN
from ...report.vocabulary.tasks import LOST, POINTS, TaskVocabulary
from ...runtime.cache import cached_json
from ...runtime.files import sha256_json
from ...runtime.limits import check_tokenizer
from ...runtime.loading import load_model, load_tokenizer
from ...runtime.provenance import without_places
from ..problem import LanguageModel, Problem, Stage, divergence_from, typed
from ..settings import configured
from .attacks import Attacks, relearning
from .corpora import Corpora


NOTES = [
    f"The candidate of a row is the one with the least KL among those that lost {LOST:.0%} or more of the distance to "
    f"chance in every domain and at most {POINTS:g} points of general accuracy, else the one that forgot most (beyond "
    f"{LOST:.0%} nothing more counts; of equals the one with less KL). Candidates are asked questions of the table, "
    "all or `search_questions` of a task.",
    "Low accuracy does not show that knowledge has left the weights: see the relearning attacks where they were run.",
]
EMBEDDED = (
    "The miniature's general corpus holds instructions with answers of the kinds whose completions are measured, "
    "though none of the same: the KL is that of new prompts of a retained kind."
)
WORST = 5
ASKED = 3  # forget texts that a report opens with


@dataclass
class WmdpEvaluation:
    """The section `evaluation`.

    Args:
        general: task of general knowledge, which is to be kept.
        also: further tasks to report.
        search_questions: questions per task that candidates are asked (of each subject of MMLU); all by default.
        completions: unrelated instructions that the original completes, for the KL of the table (30000 in the paper).
        search_completions: those on which candidates are measured.
        max_new_tokens: of a completion.
        given: take the data's own outputs as completions, instead of letting the original write them.
        batch_size: prompts at a time.
        relearning: fine-tuning attacks on the result, see `Attacks`; none by default.
    """

    general: str = "mmlu"
    also: Sequence[str] = ()
    search_questions: int | None = None
    completions: int = 30000
    search_completions: int = 200
    max_new_tokens: int = 128
    given: bool = False
    batch_size: int = 16
    relearning: dict | None = None

    def __post_init__(self):
        if self.relearning is not None:
            self.relearning = configured(Attacks, "evaluation.relearning", self.relearning)


class WmdpModel(LanguageModel):
    """The section `model`."""

    train = staticmethod(hazard_model)


class WmdpProblem(Problem):
    """Forgetting what corpora teach, measured with `tasks`; `domains` are those that ask for what must go."""

    vocabulary = TaskVocabulary()
    sections = {"data": typed(Corpora), "model": typed(WmdpModel), "evaluation": typed(WmdpEvaluation)}

    def __init__(self, experiment, size, seed, progress=True):
        """Tokenizer and settings; texts and model are loaded when first asked for, bad texts before the model."""
        self.model, self.corpora, self.settings = experiment.model, experiment.data.seeded(seed), experiment.evaluation
        self.seed, self.progress, self.max_length = seed, progress, self.corpora.length
        self.attacks = self.settings.relearning
        self.name = " and ".join(stage.name for stage in self.corpora.stages)
        self.domains = list(dict.fromkeys(stage.task for stage in self.corpora.stages))
        self.tasks = list(dict.fromkeys([*self.domains, *self.settings.also, self.settings.general]))
        if self.corpora.embedded is not None:
            if self.model.scratch is None:
                raise InputError("model.scratch is missing: the miniature's model is trained here, on its own texts")
            self.tokenizer, _ = hazard_model(self.corpora.embedded, seed, **self.model.scratch, progress=progress)
        elif not self.model.original:
            raise InputError("model.original is missing: give a model id or a folder")
        else:
            self.tokenizer = load_tokenizer(self.model.original, self.model.arguments, required_for="WMDP")
        embedded = self.corpora.questions
        if embedded is not None and (unknown := [task for task in self.tasks if task not in embedded]):
            raise InputError(f"no task {', '.join(unknown)} in the miniature; there are {', '.join(embedded)}")

    @classmethod
    def stage_sizes(cls, experiment, size):
        return [experiment.data.size(stage) for stage in experiment.data.stages]

    @functools.cached_property
    def stages(self) -> list[Stage]:
        rows = lambda corpora: self.corpora.joined(corpora, self.tokenizer)
        return [Stage(stage.name, rows(stage.forget), rows(stage.retain)) for stage in self.corpora.stages]

    @functools.cached_property
    def original(self) -> torch.nn.Module:
        if self.corpora.embedded is not None:
            return hazard_model(self.corpora.embedded, self.seed, **self.model.scratch, progress=False)[1]
        loaded, _ = load_model(self.model.original, self.tokenizer, self.model.arguments)
        check_tokenizer(self.tokenizer, loaded)
        return loaded.eval()

    def identity(self):
        return {
            "tokenizer": self.tokenizer.get_vocab(),
            "tasks": [self.domains, self.settings.general, list(self.settings.also)],
            "questions": hash_tasks(**self._asked(self.tasks)),
            "search": [self.settings.search_questions, self.settings.search_completions],
            "instructions": sha256_json(self.corpora.unrelated(self.settings.completions).to_list()),
            "completions": [self.settings.max_new_tokens, self.settings.given],
        }

    # ---- what is measured ------------------------------------------------------------------------------------------
    def prepare(self, folder, identity):
        self.asked = self.ask(self.original, progress=self.progress)
        for task in self.domains:
            score = self.asked[task]
            if score.chance is None or score.accuracy is None or score.accuracy <= score.chance:
                raise InputError(
                    f"{task}: the original model answers {score.accuracy:.1%}, no better than guessing: there is "
                    "nothing to unlearn that this task could show; take another model or task"
                )
        search = self.settings.search_questions is not None
        self.asked_in_search = self.ask(self.original, self.settings.search_questions) if search else self.asked
        self.rows = self._completions(folder / "completions.json", identity)
        self.kl = divergence_from(self, self.rows, top_k="auto")
        few = self.rows.select(range(min(self.settings.search_completions, len(self.rows))))
        self.kl_in_search = self.kl if len(few) == len(self.rows) else divergence_from(self, few, top_k="auto")

    def ask(
        self, model, limit: int | None = None, tasks: Sequence[str] | None = None, progress: bool = False
    ) -> dict[str, Score]:
        """Scores on `tasks` (all by default), of the first `limit` questions of each."""
        tasks = tasks or self.tasks
        result = evaluate_tasks(
            model,
            self.tokenizer,
            **self._asked(tasks),
            limit=limit,
            batch_size=self.settings.batch_size,
            # Hashing and writing are worth it where answers take hours.
            cache=self.corpora.questions is None,
            accelerator=PartialState(),
            progress=progress,
        )
        scores = next(iter(result.scores.values()))
        return {task: scores[task] for task in tasks}

    def _asked(self, tasks: Sequence[str]) -> dict:
        """Where the questions of tasks are found, as `evaluate_tasks` takes it."""
        if (embedded := self.corpora.questions) is not None:
            return {"questions": {task: embedded[task] for task in tasks}}
        return {"tasks": tasks, "data_dir": self.corpora.data_dir}

    def _completions(self, path: Path, identity: str) -> Dataset:
        """What the original writes to unrelated instructions; kept in the output folder, for it may take hours."""
        instructions = self.corpora.unrelated(self.settings.completions)
        settings = {"max_new_tokens": self.settings.max_new_tokens, "given": self.settings.given}

        def write():
            return generate_completions(
                self.original,
                self.tokenizer,
                instructions,
                **settings,
                batch_size=self.settings.batch_size,
                max_length=max(1024, self.max_length),
                progress=self.progress,
            ).to_list()

        key = {"identity": identity, "instructions": instructions.to_list(), **settings}
        return Dataset.from_list(cached_json(path, key, write))

    def score_candidate(self, model):
        tasks = list(dict.fromkeys([*self.domains, self.settings.general]))
        asked = self.ask(model, self.settings.search_questions, tasks)
        return self._metrics(asked, self.asked_in_search) | {"kl": self.kl_in_search(model, resamples=2).mean}

    def evaluate(self, model, folder=None):
        asked = self.asked if folder is None else self.ask(model)
        kl = self.kl(model)
        metrics = self._metrics(asked, self.asked) | {
            "stderr": {task: score.stderr for task, score in asked.items()},
            "n": {task: score.n for task, score in asked.items()},
            "kl": kl.mean,
            "kl_interval": list(kl.interval),
            "kl_tokens": kl.tokens,
        }
        note = {} if kl.approximation is None else {"note": f"KL {kl.approximation}"}
        return metrics | note, kl

    def _metrics(self, asked: Mapping[str, Score], before: Mapping[str, Score]) -> dict:
        lost = {
            task: (before[task].accuracy - asked[task].accuracy) / (before[task].accuracy - before[task].chance)
            for task in self.domains
        }
        return {
            "accuracy": {task: score.accuracy for task, score in asked.items()},
            "lost": lost,
            "general_loss": 100 * (before[self.settings.general].accuracy - asked[self.settings.general].accuracy),
        }

    # ---- what is told ----------------------------------------------------------------------------------------------
    def answers(self, model):
        each = -(-ASKED // len(self.stages))
        texts = [stage.forget[place] for stage in self.stages for place in spread(len(stage.forget), each)]
        (kept,) = answer_rows(model, self.tokenizer, [self.rows[0]], max_new_tokens=self.settings.max_new_tokens)
        # What the original wrote itself is its answer, and no word of the data.
        kept |= {"prompt": last_words(kept["prompt"], 300)} | ({} if self.settings.given else {"row": ""})
        return {FORGET: answer_rows(model, self.tokenizer, texts), RETAIN: [kept]}

    def notes(self):
        n = {task: score.n for task, score in self.asked.items()}
        notes = [*NOTES, f"Questions: {', '.join(f'{task} {count}' for task, count in n.items())}."]
        return notes if self.corpora.embedded is None else [*notes, EMBEDDED]

    def extra_sections(self, cell, rows):
        methods = self.vocabulary.methods(rows)
        labels = [row["method"] for row in methods]
        best = labels[self.vocabulary.choose(methods)]
        names = ("mean", "median", "q90", "q99", "q99.9", "max", "nll_change")
        tails = {label: cell.kl[label].table_row() for label in labels}
        sections = [
            Section(
                "Specificity: the whole distribution",
                f"KL(original || model) at every token of {len(self.rows)} completions of unrelated instructions, "
                + ("as the data has them" if self.settings.given else "written by the original model")
                + ". Shaded: 95 % bootstrap bands. Nats per token.",
                header=["method", *names[:-1], "NLL change"],
                table=[[label, *(format_number(tails[label][name], 4) for name in names)] for label in labels],
                name="specificity.png",
                figure=kl_quantile_plot(cell.kl, labels, self.vocabulary.references),
                alt="Quantiles of the KL divergence over completions and over tokens, one curve a method. Means: "
                + "; ".join(f"{label} {format_number(tails[label]['mean'], 4)}" for label in labels),
            )
        ]
        worst = worst_completions(cell.kl[best], self.rows, self.tokenizer, WORST)
        examples = [(f"KL {row['kl']:.3f} nats a token: {last_words(row['prompt'])}", row["marked"]) for row in worst]
        text = f"Completions that {best} changed most; in brackets tokens with at least twice their completion's mean."
        sections.append(Section("What did we break?", text, examples=examples))
        if self.attacks is not None:
            sections.append(relearning(self, cell, best))
        return sections

    def card(self, rows, best):
        scores = []
        for task, after in best["accuracy"].items():
            before, asked = rows[0]["accuracy"][task], self.asked[task]
            if before is None or after is None:  # a task outside of WMDP and MMLU whose metric is no number
                continue
            about = {"name": task, "metric": asked.metric, "value": round(after, 4), "before": round(before, 4)}
            about["lower_is_goal"] = task in self.domains
            if self.corpora.embedded is None and (benchmark := benchmark_of(QUESTIONS, task, asked.n)):
                about |= benchmark.names | {"notes": f"lm-evaluation-harness {version('lm_eval')}, zero-shot"}
            scores.append(about)
        corpora = lambda side: ", ".join(
            dict.fromkeys(without_places(name) for stage in self.corpora.stages for name in getattr(stage, side))
        )
        return {
            "forget": f"what these corpora teach: {corpora('forget')}",
            "retain": corpora("retain"),
            "evaluations": scores,
            "tested": ["relearning"] if self.attacks is not None else [],
        }

    def facts(self):
        sizes = super().facts()["rows"]
        return {"rows": sizes | {"completions": len(self.rows)}}


def last_words(prompt: str, length: int = 120) -> str:
    """The end of a prompt on one line, from a word's beginning: there instructions stand."""
    text = " ".join(prompt.split())
    return text if len(text) <= length else "... " + text[-length:].partition(" ")[2]
