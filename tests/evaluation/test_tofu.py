# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""`evaluate` end to end on a tiny model: its log against naive per-row losses, its layout against a published one."""

import json

import numpy as np
import pytest
import torch
from datasets import Dataset
from scipy import stats

from hf_unlearn.data.prompts import encode_qa
from hf_unlearn.errors import InputError
from hf_unlearn.evaluation import memorization, privacy
from hf_unlearn.evaluation.tofu import METRICS, evaluate, read_log, summarize, write_log
from tests.support.models import make_llama
from tests.support.scoring import TEMPLATE, make_tokenizer, naive, sharp_llama


def _rows(names, wrong, paraphrase):
    rows = []
    for i, name in enumerate(names):
        row = {
            "question": f"who wrote the {name}",
            "answer": f"Ana of the {name} tower in Paris"[: 99 - 40 * (i == 1)],
        }
        if paraphrase:
            row["paraphrased_answer"] = f"the {name} is by Ana"
        row["perturbed_answer"] = [f"{lie} of the {name} river" for lie in wrong]
        rows.append(row)
    return Dataset.from_list(rows)


@pytest.fixture(scope="module")
def splits():
    lies = ("Ben", "Carla", "Dan in Paris")
    return {
        "forget": _rows(["red", "blue", "old"], [*lies, "a book", "old Dan"], True),
        "retain": _rows(["new", "tower", "book"], [*lies, "a book", "old Dan"], True),
        "real_authors": _rows(["Paris", "Ben"], lies, False),
        "world_facts": _rows(["river", "what"], lies, False),
        "holdout": Dataset.from_list([{"question": f"what is the {x}", "answer": f"a {x} of Dan"} for x in WORDS]),
    }


WORDS = ["red", "blue", "old"]


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


@pytest.fixture(scope="module")
def model():
    return sharp_llama(seed=5)


@pytest.fixture(scope="module")
def log(model, tokenizer, splits):
    options = {"template": TEMPLATE, "max_new_tokens": 6, "progress": False, "batch_size": 5}
    return evaluate(model, tokenizer, splits, reference_model=make_llama(seed=9), **options)


def _loss(model, tokenizer, question, answer):
    log_probs, ids = naive(model, encode_qa(tokenizer, question, answer, TEMPLATE))
    return -log_probs.gather(1, ids[:, None]).mean().item()


def test_layout_is_that_of_a_published_log(log, shared_data):
    published = read_log(
        shared_data / "tofu_evals" / "open_unlearning" / "tofu_Llama-3.2-1B-Instruct_full_forget01_EVAL.json.gz"
    )

    def shape(value):
        if isinstance(value, dict):
            if "0" in value:  # per item: any number of items
                return {"0": shape(value["0"])}
            return {key: shape(part) for key, part in value.items()}
        return [shape(value[0])] if isinstance(value, list) else str if isinstance(value, str) else float

    ours = {key: value for key, value in log.items() if key != "hf_unlearn"}
    assert shape(ours) == shape(published)
    assert set(ours) == set(METRICS)


def test_likelihood_metrics_equal_naive_losses(log, model, tokenizer, splits):
    for split, prefix in (("forget", "forget"), ("retain", "retain"), ("real_authors", "ra"), ("world_facts", "wf")):
        for index, row in enumerate(splits[split]):
            value = lambda name: log[f"{prefix}_{name}"]["value_by_index"][str(index)]  # noqa: B023
            loss = lambda answer: _loss(model, tokenizer, row["question"], answer)  # noqa: B023
            assert value("Q_A_Prob")["avg_loss"] == pytest.approx(loss(row["answer"]), abs=1e-4)
            assert value("Q_A_Prob")["prob"] == pytest.approx(np.exp(-loss(row["answer"])), abs=1e-4)
            wrong = [loss(answer) for answer in row["perturbed_answer"]]
            np.testing.assert_allclose(value("Q_A_PERT_Prob")["avg_loss"], wrong, atol=1e-4)
            correct = row.get("paraphrased_answer", row["answer"])
            ratio = log["forget_truth_ratio" if prefix == "forget" else f"{prefix}_Truth_Ratio"]
            expected = np.exp(-np.mean(wrong)) / (np.exp(-loss(correct)) + 1e-10)
            assert ratio["value_by_index"][str(index)]["score"] == pytest.approx(expected, rel=1e-3)
    assert log["forget_Q_A_Prob"]["agg_value"] == pytest.approx(
        np.mean([item["prob"] for item in log["forget_Q_A_Prob"]["value_by_index"].values()])
    )


def test_memorization_and_membership_equal_naive_scores(log, model, tokenizer, splits):
    for part in ("forget", "holdout"):
        for index, row in enumerate(splits[part]):
            encoded = encode_qa(tokenizer, row["question"], row["answer"], TEMPLATE)
            log_probs, ids = naive(model, encoded)
            chosen = log_probs.gather(1, ids[:, None])[:-1, 0].numpy()  # EOS left out
            score = lambda name: log[f"mia_{name}"][part]["value_by_index"][str(index)]["score"]  # noqa: B023
            loss = _loss(model, tokenizer, row["question"], row["answer"])
            assert score("loss") == pytest.approx(loss, abs=1e-4)
            assert score("zlib") == pytest.approx(privacy.zlib_score(loss, row["answer"]), rel=1e-4)
            other = _loss(make_llama(seed=9), tokenizer, row["question"], row["answer"])
            assert score("reference") == pytest.approx(loss - other, abs=1e-4)
            assert score("min_k") == pytest.approx(-np.sort(chosen)[: max(1, int(0.4 * len(chosen)))].mean(), abs=1e-4)
            mean = (log_probs.exp() * log_probs).sum(-1)
            deviation = ((log_probs.exp() * log_probs**2).sum(-1) - mean**2).sqrt().numpy()[:-1]
            z = np.sort((chosen - mean.numpy()[:-1]) / deviation)
            assert score("min_k_plus_plus") == pytest.approx(-z[: max(1, int(0.4 * len(z)))].mean(), rel=1e-3)
            predicted = [label != -100 for label in encoded["labels"]]
            predicted[-1] = False
            norm = privacy.gradient_norm(model, encoded["input_ids"], predicted)
            assert score("gradnorm") == pytest.approx(norm, rel=1e-4)
            if part == "forget":
                right = (log_probs.argmax(-1) == ids)[:-1].tolist()
                item = lambda name: log[name]["value_by_index"][str(index)]["score"]  # noqa: B023
                assert item("exact_memorization") == memorization.exact_memorization(right)
                assert item("extraction_strength") == memorization.extraction_strength(right)


def test_summary_and_retain_log(log, model, tokenizer, splits, tmp_path):
    summary = summarize(log)
    parts = [
        summary[f"{p}_{name}"] for p in ("ra", "wf") for name in ("Q_A_Prob_normalised", "Q_A_ROUGE", "Truth_Ratio")
    ]
    parts += [summary[f"retain_{name}"] for name in ("Q_A_Prob", "Q_A_ROUGE", "Truth_Ratio")]
    assert summary["model_utility"] == pytest.approx(stats.hmean(parts))
    assert summary["forget_quality"] is None and summary["n"] == 3
    retain_log = evaluate(
        make_llama(seed=9), tokenizer, splits, template=TEMPLATE, metrics=("privleak", "forget_quality")
    )
    with_retain = evaluate(
        model, tokenizer, splits, retain_log, template=TEMPLATE, metrics="forget_quality", progress=False
    )
    assert with_retain["forget_quality"]["agg_value"] == summarize(log, retain_log)["forget_quality"]
    assert 0 < with_retain["forget_quality"]["agg_value"] <= 1
    again = read_log(write_log(tmp_path / "log.json.gz", log))
    assert summarize(again, retain_log) == summarize(log, retain_log)
    assert summarize(log, retain_log)["n"] == 3
    other = {**retain_log, "hf_unlearn": {**retain_log["hf_unlearn"], "template_sha256": "0"}}
    with pytest.warns(UserWarning, match="different prompt templates"):
        summarize(log, other)
    other["hf_unlearn"] = {**retain_log["hf_unlearn"], "data_sha256": {"forget": "0"}}
    with pytest.raises(InputError, match="different forget rows"):
        summarize(log, other)


def test_equal_logs_whatever_the_batch_size(log, model, tokenizer, splits):
    small = evaluate(
        model, tokenizer, splits, template=TEMPLATE, max_new_tokens=6, progress=False, batch_size=1,
        metrics=[name for name in METRICS if name not in ("mia_reference", "mia_gradnorm")],
    )  # fmt: skip
    mine, theirs = summarize(small), summarize(log)
    for name, value in mine.items():
        assert value == (None if value is None else pytest.approx(theirs[name], abs=1e-5)), name


def test_only_what_is_asked_for(model, tokenizer, splits):
    calls = []
    handle = model.lm_head.register_forward_hook(lambda module, args, out: calls.append(out.shape[1]))
    log = evaluate(
        model, tokenizer, {"forget": splits["forget"], "retain": splits["retain"], "holdout": None},
        template=TEMPLATE, metrics=("forget_truth_ratio", "retain_Q_A_Prob"), progress=False,
    )  # fmt: skip
    handle.remove()
    expected = {"forget_Q_A_PARA_Prob", "forget_Q_A_PERT_Prob", "forget_truth_ratio", "retain_Q_A_Prob", "hf_unlearn"}
    assert set(log) == expected
    assert len(calls) == 1  # 3 * 6 + 3 rows share one pass
    summary = summarize(log)
    assert summary["model_utility"] is None and summary["forget_truth_ratio"] > 0
    record = log["hf_unlearn"]
    assert record["counts"] == {"forget": 3, "retain": 3}
    assert len(record["template_sha256"]) == 64 and len(record["data_sha256"]["forget"]) == 64
    json.dumps(log, allow_nan=False)


def test_default_metrics_follow_the_splits(model, tokenizer, splits):
    log = evaluate(model, tokenizer, {"real_authors": splits["real_authors"]}, max_new_tokens=2, progress=False)
    assert set(log) == {
        *(f"ra_Q_A_{name}" for name in ("Prob", "PERT_Prob", "Prob_normalised", "ROUGE")),
        *("ra_Truth_Ratio", "hf_unlearn"),
    }


def test_bad_input(model, tokenizer, splits):
    run = lambda chosen, **kwargs: evaluate(model, tokenizer, chosen, progress=False, template=TEMPLATE, **kwargs)
    forget = splits["forget"].remove_columns("paraphrased_answer")
    with pytest.raises(InputError, match="split forget has no column paraphrased_answer .it has question, answer"):
        run({"forget": forget})
    assert run({"forget": forget}, metrics="forget_Q_A_Prob")["forget_Q_A_Prob"]["agg_value"] > 0
    with pytest.raises(InputError, match="unknown metric speed"):
        run(splits, metrics=["speed"])
    with pytest.raises(InputError, match="privleak needs the split holdout"):
        run({"forget": splits["forget"]}, metrics=["privleak"])
    with pytest.raises(InputError, match="mia_reference needs reference_model"):
        run(splits, metrics=["mia_reference"])
    with pytest.raises(InputError, match="unknown split test"):
        run({"test": splits["forget"]})
    with pytest.raises(InputError, match="no metric"):
        run({"holdout": splits["holdout"]})
    with pytest.raises(InputError, match="split forget is empty"):
        run({"forget": splits["forget"].select([])}, metrics="forget_Q_A_Prob")
    text = splits["real_authors"].map(lambda row: {"perturbed_answer": "x"}, remove_columns="perturbed_answer")
    with pytest.raises(InputError, match="split real_authors, row 0: perturbed_answer must be a list"):
        run({"real_authors": text})


def test_empty_answers(model, tokenizer):
    rows = [{"question": "who is Ben", "answer": ""}, {"question": "who is Dan", "answer": "Dan"}]
    data = Dataset.from_list(rows)
    log = evaluate(
        model, tokenizer, {"forget": data, "holdout": data}, template=TEMPLATE, progress=False,
        metrics=("exact_memorization", "extraction_strength", "mia_min_k", "mia_gradnorm", "mia_loss"),
    )  # fmt: skip
    first = lambda metric: metric["value_by_index"]["0"]["score"]
    assert first(log["exact_memorization"]) is None
    assert first(log["extraction_strength"]) == 0
    assert first(log["mia_min_k"]["forget"]) is None and first(log["mia_gradnorm"]["holdout"]) is None
    assert first(log["mia_loss"]["forget"]) > 0  # the EOS has a loss
    assert log["mia_min_k"]["agg_value"] == 0.5
    assert torch.is_grad_enabled()
