# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Relearning attacks on the methods of a finished comparison, as a section of its report."""

from dataclasses import asdict, dataclass, field

from ...data.rows import fingerprint_rows
from ...errors import InputError
from ...evaluation.relearn import AttackTable, attack_table
from ...report.attacks import attack_section
from ...report.page import Section
from ...runtime.cache import cached_json


@dataclass
class Attacks:
    """The section `evaluation.relearning`: fine-tuning that may bring back what was removed (K-FADE, RQ4).

    Args:
        attacks: {name: {corpus: sequences to take}}, for example benign, related, and a few forget sequences.
        methods: labels that are attacked beside the best row.
        steps, learning_rates, batch_size, eval_steps: of every attack.
        questions: questions per task asked at each evaluation; all by default.
    """

    attacks: dict[str, dict[str, int | None]]
    methods: list[str] = field(default_factory=list)
    steps: int = 200
    learning_rates: list[float] = field(default_factory=lambda: [1e-5])
    batch_size: int = 8
    eval_steps: int = 50
    questions: int | None = None

    def __post_init__(self):
        if not isinstance(self.attacks, dict) or not all(isinstance(one, dict) for one in self.attacks.values()):
            raise InputError("evaluation.relearning.attacks: give corpora by attack, as in {benign: {wikitext: 1600}}")


def relearning(problem, cell, best: str) -> Section:
    """Attack the model of the best row and those that the YAML names; kept beside the lines, so that it is done once.

    `problem` is a `WmdpProblem` with attacks, `cell` the `Cell` that ran its lines, `best` a label.
    """
    attacks, settings = problem.attacks, asdict(problem.attacks)
    known = [line.label for line in cell.lines]
    methods = list(dict.fromkeys([best, *(label for label in attacks.methods if label in known)]))
    updates = {label: cell.update(label) for label in methods}
    rows = {name: problem.corpora.joined(corpora, problem.tokenizer) for name, corpora in attacks.attacks.items()}

    def accuracies(model) -> dict[str, float]:
        asked = problem.ask(model, attacks.questions, problem.domains)
        return {task: score.accuracy for task, score in asked.items()}

    def attack():
        return attack_table(
            problem.original,
            updates,
            rows,
            evaluate=accuracies,
            **{name: settings[name] for name in ("steps", "learning_rates", "batch_size", "eval_steps")},
            seed=cell.seed,
            tokenizer=problem.tokenizer,
            max_length=problem.max_length,
            progress=problem.progress,
        ).to_json()

    key = {"identity": cell.identity, "attacks": settings}
    key |= {"updates": {label: update.sha256() for label, update in updates.items()}}
    key |= {"rows": {name: fingerprint_rows(sequences) for name, sequences in rows.items()}}
    table = AttackTable(**cached_json(cell.folder / "relearn.json", key, attack))
    labels = [line.label for line in cell.lines]
    return attack_section(table.rows, table.curves, problem.asked[problem.domains[0]].chance, labels)
