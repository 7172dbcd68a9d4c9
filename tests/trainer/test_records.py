# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
import pytest
from huggingface_hub import ModelCard
from peft import LoraConfig

from hf_unlearn import FirstOrder, KFade
from hf_unlearn.data.training import train_tokenizer
from hf_unlearn.errors import InputError
from hf_unlearn.methods.base import StageSize
from hf_unlearn.methods.rmu import RMU
from hf_unlearn.runtime.hub import PLACE
from hf_unlearn.runtime.published import published_files
from hf_unlearn.trainer.records import card_context, check_description, request_record, row_notes
from tests.support.hub_server import Fault, hub_server, known_here
from tests.support.models import make_experts, make_llama
from tests.support.trainers import logged, make_trainer, trained_llama


def saved_card(folder, method, **arguments):
    trainer = make_trainer(trained_llama(), method, folder / "run", max_steps=1, **arguments)
    trainer.train()
    trainer.save_model(str(folder / "model"))
    return (folder / "model/README.md").read_text()


def test_a_card_tells_all_of_a_request(tmp_path):
    described = {"forget": "eight rows of noise", "retain": "24 others", "license": "apache-2.0", "language": "en"}
    described |= {"datasets": ["lab/noise"], "limits": ["Only noise was looked at."]}
    card = saved_card(tmp_path, KFade(step_norm=0.01, curvature="kfac"), describe=described, kl_rows=64)
    data = ModelCard(card).data
    assert (data.library_name, data.base_model, data.license) == ("transformers", "lab/tiny", "apache-2.0")
    assert (data.base_model_relation, data.language, data.datasets) == ("finetune", "en", ["lab/noise"])
    assert "from which eight rows of noise was removed with K-FADE" in card
    assert "| removed | eight rows of noise (8 rows) |" in card and "| to be kept | 24 others (24 rows) |" in card
    assert "| licence | apache-2.0 |" in card and "Only noise was looked at." in card
    assert "Measured on 8 of 8 removed rows and 24 of 24 rows to be kept, before and after." in card
    assert "| loss on the removed rows, nats per label |" in card and "fit_seconds" in card
    assert "retrained" not in card.split("## What was not shown")[0] and f'from_pretrained("{PLACE}")' in card


def test_a_card_without_a_description_says_what_is_unknown(tmp_path):
    card = saved_card(tmp_path, FirstOrder("npo"), peft_config=LoraConfig(r=2, task_type="CAUSAL_LM"))
    data = ModelCard(card).data
    assert (data.library_name, data.base_model_relation, data.license) == ("peft", "adapter", None)
    assert "| removed | not described (8 rows) |" in card and "| licence | unknown: look up" in card
    assert "## What it says" not in card and "were not measured (kl_rows is 0)" in card


def test_the_licence_is_that_of_the_base_models_own_card(tmp_path):
    base = tmp_path / "base"
    make_llama().save_pretrained(base)
    header = "license: other\nlicense_name: of-the-lab\nlicense_link: LICENSE"
    (base / "README.md").write_text(f"---\n{header}\n---\n# It\n")
    trainer = make_trainer(str(base), FirstOrder("ga"), tmp_path / "run", max_steps=1)
    trainer.train()
    trainer.save_model(str(tmp_path / "model"))
    data = ModelCard.load(tmp_path / "model/README.md").data
    assert (data.license, data.license_name, data.license_link) == ("other", "of-the-lab", "LICENSE")


def test_answers_are_given_to_the_users_own_prompts_alone(tmp_path):
    """Rows to forget are not published with their questions: a card shows what was chosen for it."""
    make_llama(vocab_size=300).save_pretrained(tmp_path / "base")
    train_tokenizer(["A text."], 290).save_pretrained(tmp_path / "base")
    rows = [{"question": f"Who keeps Umbrellaville {i}?", "answer": f"Nobody {i}"} for i in range(4)]
    kept = [{"question": f"Who paints Kettlemoor {i}?", "answer": f"Nobody {i}"} for i in range(4)]
    from datasets import Dataset

    sides = Dataset.from_list(rows), Dataset.from_list(kept)
    prompts = {"forgotten": ["Who was it | then?", "And who?"], "kept": ["Which\nway?"]}
    arguments = {"max_steps": 1, "describe": {"prompts": prompts}, "kl_rows": 4}
    trainer = make_trainer(str(tmp_path / "base"), FirstOrder("grad_diff"), tmp_path / "run", *sides, **arguments)
    trainer.train()
    trainer.save_model(str(tmp_path / "model"))
    card = (tmp_path / "model/README.md").read_text()
    told = card.split("## What it says")[1].split("##")[0]
    assert "On what was forgotten:" in told and "On what was kept:" in told
    assert "| Who was it \\| then? |" in told and "| And who? |" in told and "| Which way? |" in told
    assert "Umbrellaville" not in card and "Kettlemoor" not in card


def test_a_run_is_not_lost_for_a_prompt(tmp_path, monkeypatch, caplog):
    tokenizer = train_tokenizer(["A text."], 290)
    model = make_llama(vocab_size=300)
    arguments = {"max_steps": 1, "describe": {"prompts": {"kept": ["Who?"]}}, "processing_class": tokenizer}
    trainer = make_trainer(model, FirstOrder("ga"), tmp_path / "run", **arguments)
    trainer.train()
    monkeypatch.setattr(model, "generate", lambda **inputs: 1 / 0)
    trainer.save_model(str(tmp_path / "model"))
    assert "Prompts could not be answered." in (tmp_path / "model/README.md").read_text()
    assert "prompts could not be answered (division by zero)" in caplog.text


def test_what_was_measured_elsewhere_joins_the_card(tmp_path):
    trainer = make_trainer(trained_llama(), FirstOrder("ga"), tmp_path / "run", max_steps=1, kl_rows=4)
    trainer.train()
    trainer.card_extras = {"unlearned": {"model_utility": 0.5}, "forget": "noise", "limits": ["One more limit."]}
    trainer.save_model(str(tmp_path / "model"))
    card = (tmp_path / "model/README.md").read_text()
    assert "| model utility | – | 0.500 |" in card and "| loss on the removed rows, nats per label |" in card
    assert "One more limit." in card and "| removed | noise (8 rows) |" in card


def test_scores_on_a_benchmark_go_with_the_model_and_with_its_weights(tmp_path):
    trainer = make_trainer(trained_llama(), FirstOrder("ga"), tmp_path / "run", max_steps=1, kl_rows=4)
    trainer.train()
    score = {"dataset": "cais/mmlu", "task": "all", "name": "mmlu", "metric": "acc", "value": 0.5}
    trainer.card_extras = {"evaluations": [score]}
    trainer.save_model(str(tmp_path / "model"))
    assert ".eval_results/mmlu.yaml" in published_files(tmp_path / "model")
    trainer.card_extras = {}
    trainer.save_model(str(tmp_path / "model"))
    assert not list((tmp_path / "model").glob(".eval_results/*"))


def test_who_cannot_push_hears_of_it_before_the_run(tmp_path, monkeypatch):
    with hub_server() as server:
        known_here(server, monkeypatch)
        server.faults.append(Fault("POST /api/repos/create", 401, 99))
        arguments = {"push_to_hub": True, "hub_model_id": "lab/gone"}
        with pytest.raises(ConnectionError, match="^lab/gone was not pushed: the Hub does not know you.*log in"):
            make_trainer(trained_llama(), FirstOrder("ga"), tmp_path, **arguments)
        server.faults.clear()
        assert make_trainer(trained_llama(), FirstOrder("ga"), tmp_path, **arguments).hub_model_id == "lab/gone"
        with pytest.raises(InputError, match="hub_strategy='every_save'.* half made: leave it at 'end'"):
            make_trainer(trained_llama(), FirstOrder("ga"), tmp_path, hub_strategy="every_save", **arguments)


WRONG = {
    "a number": (3, "describe is a int: give a text, or a dict"),
    "a key with a slip": ({"forgot": "x"}, "unknown key 'forgot': known are forget, retain"),
    "a list of words": ({"forget": ["x"]}, r"forget=\['x'\]: give a text"),
    "one dataset as a text": ({"datasets": "lab/x"}, "datasets='lab/x': give a list of texts"),
    "prompts without a kind": ({"prompts": ["Who?"]}, "give lists of texts under forgotten and kept"),
    "prompts of another kind": ({"prompts": {"forget": ["Who?"]}}, "give lists of texts under forgotten and kept"),
    "prompts without a tokenizer": ({"prompts": {"kept": ["Who?"]}}, "pass processing_class"),
    "an empty prompt": ({"prompts": {"kept": [" "]}}, "give lists of texts under forgotten and kept"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_description_is_checked_before_any_work(kind, tmp_path):
    describe, words = WRONG[kind]
    with pytest.raises(InputError, match=words):
        make_trainer(trained_llama(), FirstOrder("ga"), tmp_path, describe=describe)


def test_a_description_is_words_or_a_dict():
    assert check_description(None) == {} and check_description("x") == {"forget": "x"}
    assert check_description({"forget": "x", "license": None}) == {"forget": "x"}


EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
# Of two layers: 4 experts of 3 x 16 x 24 numbers beside one shared MLP of 3 x 16 x 32.
ALL = 2 * (4 * 3 * 16 * 24 + 3 * 16 * 32)


@pytest.mark.parametrize(
    "method, lora, covered",
    [
        (FirstOrder("rmu", layer=1), {}, 2 * 16 * 32 / ALL),
        (FirstOrder("grad_diff"), {}, None),
        (FirstOrder("grad_diff"), {"target_modules": ["up_proj"]}, 2 * 16 * 32 / ALL),
        (FirstOrder("grad_diff"), {"target_modules": ["q_proj"], "target_parameters": EXPERTS}, None),
        (
            FirstOrder("grad_diff"),
            {"target_modules": ["q_proj"], "target_parameters": EXPERTS[1:]},
            2 * 4 * 16 * 24 / ALL,
        ),
    ],
    ids=["rmu", "all", "lora", "lora on experts", "lora on a third of them"],
)
def test_experts_that_stay_as_they_are_stand_in_log_ledger_and_card(method, lora, covered, tmp_path, caplog):
    adapter = {"peft_config": LoraConfig(r=2, **lora)} if lora else {}
    trainer = make_trainer(make_experts(), method, tmp_path, max_steps=1, **adapter)
    trainer.train()
    facts = card_context(trainer, trainer.update_delta())["facts"]
    for told in (trainer.covered, request_record(trainer), facts):
        assert told.get("mlp_parameters_covered") == (covered and pytest.approx(covered))
    assert logged(trainer, "mlp_parameters_covered") == ([] if covered is None else [pytest.approx(covered)])
    assert ("are routed experts" in caplog.text) == (covered is not None)
    if isinstance(method, RMU):
        (line,) = method.plan(trainer.model, StageSize("all", 8, 24, 9))
        assert line.endswith(f"; {covered:.0%} of the MLP parameters: experts are not covered")


def test_what_became_of_the_rows_is_said_where_something_did():
    class Counts:
        rows, dropped_empty, packed_rows, cut_rows, cut_tokens = 8, 2, 0, 3, 14

    class Whole:
        rows, dropped_empty, packed_rows, cut_rows, cut_tokens = 8, 0, 0, 0, 0

    assert row_notes({"forget": Counts(), "retain": Whole()}) == [
        "2 empty rows of the forget set were dropped.",
        "3 rows of the forget set were too long and were cut.",
        "14 tokens of the forget set were cut off and had no part in the request.",
    ]
