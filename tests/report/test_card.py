# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
import json
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from hf_unlearn.errors import InputError
from hf_unlearn.report.card import NOT_SHOWN, render_card
from hf_unlearn.version import __version__
from tests.support.reports import CLASS_ROWS


SAMPLES = Path(__file__).resolve().parents[2] / "model_cards"
CONTEXT = json.loads((SAMPLES / "kfade_tofu_sample.json").read_text())


def test_sample_is_what_the_template_renders():
    # After a wanted change of the template: write render_card(context) to the sample, and read it.
    sample = (SAMPLES / "kfade_tofu_sample.md").read_text()
    assert render_card(CONTEXT) == sample.replace("{version}", __version__)


def test_header_is_understood_by_the_hub_client():
    data = ModelCard(render_card(CONTEXT)).data
    assert data.base_model == "locuslab/tofu_ft_phi-1.5" and data.to_dict()["base_model_relation"] == "finetune"
    assert data.library_name == "transformers" and data.license == "mit"
    assert {"machine-unlearning", "unlearn", "hf_unlearn", "k-fade"} <= set(data.tags)
    results = {(result.dataset_type, result.metric_type): result for result in data.eval_results}
    assert results["locuslab/TOFU", "forget_quality"].metric_value == 0.33
    assert results["locuslab/TOFU", "retain_kl"].metric_value == 0.052
    assert "lower is the goal" in results["cais/wmdp", "acc"].metric_name
    assert results["cais/mmlu", "acc"].metric_name == "acc" and results["cais/mmlu", "acc"].metric_value == 0.42


def test_body_tells_numbers_and_limits():
    card = render_card(CONTEXT)
    assert "| forget quality (p-value of the KS test) | <1e-12 | 0.33 | 1.0 | 0.05 or more |" in card
    assert "| KL from the original on retained answers, nats per token | 0 | 0.0520 | – | lower |" in card
    assert "There is no guarantee" in card and NOT_SHOWN["relearning"] in card
    assert NOT_SHOWN["privacy"] not in card  # the context says that it was tested
    assert "steps 4" in card and "400 rows" in card and "1234 s, peak memory 20480 MB, on one GPU" in card
    assert "hf-unlearn transfer --delta your-name/phi-1_5-tofu-unlearned" in card and "@article{kfade2026" in card


def test_card_of_a_forgotten_class():
    rows = {row["method"]: row for row in CLASS_ROWS if (row["per_class"], row["seed"]) == (100, 0)}
    unlearned = {"original": rows["Full"], "unlearned": rows["Fast-NTK, at w0"], "retrained": rows["Retrain"]}
    card = render_card({"method": "Fast-NTK", "forget": "the class cat", **unlearned})
    assert "| accuracy on D_f (%) | 98.0 | 1.0 | 0 | 0 |" in card
    assert "| epochs to relearn D_f | – | 8.0 | 10.0 | as retrained |" in card


def test_least_card_is_honest_and_names_no_local_folder(tmp_path):
    card = render_card({"method": "gradient ascent", "base_model": str(tmp_path)})
    assert str(tmp_path) not in card and "not on the Hub" in card
    assert all(line in card for line in NOT_SHOWN.values())
    assert "Not measured." in card and "transfer" not in card
    data = ModelCard(card).data
    assert data.base_model is None and data.eval_results is None


@pytest.mark.parametrize("context", [{"base_model": "a/b"}, {"method": "K-FADE", "forgot": "typo"}])
def test_bad_context(context):
    with pytest.raises(InputError, match="cannot be rendered"):
        render_card(context)


HOSTILE = 'x"\n---\nlicense: mit\n# `|<b>*: &a !!python/none {{ header }} {% if'


def test_no_name_can_speak_in_the_header_or_add_to_it():
    """Whatever a model, a dataset or a licence is called is one value of the YAML, and one line of the text."""
    context = {**CONTEXT, "model_name": HOSTILE, "forget": HOSTILE, "license": HOSTILE, "method": HOSTILE}
    context |= {"answers": {"kept": [(HOSTILE, HOSTILE)]}, "row_notes": [HOSTILE], "facts": {"covered": HOSTILE}}
    card = ModelCard(render_card(context))
    assert card.data.license == HOSTILE and {result.dataset_name for result in card.data.eval_results} > {HOSTILE}
    assert card.data.base_model == CONTEXT["base_model"] and card.data.library_name == "transformers"
    lines = card.text.splitlines()
    assert "# `|<b>*: &a" not in lines and lines.count("---") == 0 and "license: mit" not in lines
    assert card.text.count("{{ header }}") >= 5


def test_what_a_run_measured_and_what_it_said():
    unlearned = {"forget_rows_loss": 4.2, "retain_rows_kl": 0.0123}
    context = {"method": "NPO", "original": {"forget_rows_loss": 0.5, "retain_rows_kl": 0}, "unlearned": unlearned}
    context |= {"measured_on": {"forget": (64, 400)}, "row_notes": ["2 empty rows were dropped."]}
    context |= {"answers": {"forgotten": [("Who?", "")]}, "facts": {"covered": "21 %"}, "hardware": "one CPU"}
    card = render_card(context)
    assert "| | original | this model | goal |\n|---|---:|---:|---|\n" in card
    assert "| loss on the removed rows, nats per label | 0.500 | 4.200 | higher |" in card
    assert "| KL from the original on the rows to be kept, nats per label | 0 | 0.0123 | lower |" in card
    assert "Measured on 64 of 400 removed rows, before and after." in card
    assert "- 2 empty rows were dropped." in card and "| the run | covered 21 % |" in card
    assert "On what was forgotten:\n\n| prompt | answer |\n|---|---|\n| Who? | (nothing) |" in card
    assert ModelCard(card).data.eval_results is None  # of its own rows: no benchmark of others
