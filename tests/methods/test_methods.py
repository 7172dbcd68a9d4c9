# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""K-FADE and the first-order baselines: their decisions, on plain, PEFT, Conv1D and dropout models."""

import copy
import dataclasses
import math

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import GPT2Config, GPT2LMHeadModel, OPTConfig, OPTForCausalLM

from hf_unlearn import FirstOrder, KFade, objectives
from hf_unlearn.curvature import EKFAC, KFAC
from hf_unlearn.errors import InputError
from hf_unlearn.methods.base import Counts
from hf_unlearn.methods.rmu import control_vector
from tests.support.models import make_llama
from tests.support.trainers import COLLATE, FORGET, RETAIN, logged, make_rows, make_trainer, trained_llama
from tests.trainer.test_trainer import weights


MLP = {f"model.layers.{layer}.mlp.{part}_proj.weight" for layer in (0, 1) for part in ("gate", "up", "down")}
LORA = LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj", "down_proj"])


def kfade(**settings):
    return KFade(**{"step_norm": 0.05, "curvature": "kfac", "damping": 1e-3, **settings})


def run(method, folder, model=None, **kwargs):
    """(trainer, update tensors) of one run on the trained tiny model."""
    trainer = make_trainer(trained_llama() if model is None else model, method, folder, **kwargs)
    trainer.train()
    return trainer, trainer.update_delta().tensors


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


class CountingKFAC(KFAC):
    """Counts its fits and remembers what they were given."""

    def __init__(self):
        super().__init__()
        self.fits = []

    def fit(self, model, dataloader, **kwargs):
        rows = sum(len(batch["labels"]) for batch in dataloader)
        self.fits.append(
            {"rows": rows, "seed": kwargs["seed"], "weight": model.model.layers[0].mlp.up_proj.weight.clone()}
        )
        return super().fit(model, dataloader, **kwargs)


# ---- K-FADE: settings -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "settings, message",
    [
        ({"step_norm": None}, "exactly one of step_norm"),
        ({"kl_budget": 0.1}, "exactly one of step_norm"),
        ({"step_norm": 0.0}, "step_norm must be a finite number above 0"),
        ({"step_norm": float("nan")}, "step_norm must be"),
        ({"step_norm": None, "kl_budget": -1.0}, "kl_budget must be"),
        ({"damping": 0.0}, "damping must be"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"retain_samples": 0}, "retain_samples must be at least 1"),
        ({"objective": "loss"}, "unknown objective 'loss': choose"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(InputError, match=message):
        kfade(**settings)


def test_unknown_first_order_objective():
    with pytest.raises(InputError, match="choose one of ga, grad_diff"):
        FirstOrder("gradient")


def test_kl_budget_is_half_the_square_of_the_step_norm(tmp_path):
    _, by_norm = run(kfade(step_norm=0.05), tmp_path / "norm")
    _, by_budget = run(kfade(step_norm=None, kl_budget=0.05**2 / 2), tmp_path / "budget")
    for name in by_norm:
        assert torch.allclose(by_norm[name], by_budget[name], rtol=1e-6, atol=0)


def test_no_matching_target_lists_what_there_is(tmp_path):
    trainer = make_trainer(trained_llama(), kfade(target_modules=".*experts"), tmp_path)
    with pytest.raises(InputError, match="model.layers.{0..1}.mlp.down_proj"):
        trainer.train()
    assert all(parameter.requires_grad for parameter in trainer.model.parameters())


@pytest.mark.parametrize(
    "targets, expected",
    [
        (None, MLP),
        (r".*layers\.1\.mlp\.down_proj", {"model.layers.1.mlp.down_proj.weight"}),
        (["q_proj"], {f"model.layers.{layer}.self_attn.q_proj.weight" for layer in (0, 1)}),
    ],
)
def test_only_the_targets_move(targets, expected, tmp_path):
    model = trained_llama()
    model.lm_head.weight.requires_grad_(False)
    before = weights(model)
    _, update = run(kfade(target_modules=targets), tmp_path, model)
    assert set(update) == expected
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) == (name not in expected), name
        assert parameter.requires_grad == (name != "lm_head.weight")


# ---- K-FADE: the step ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "settings, low, high",
    [
        # One matrix: EK-FAC's own approximation is all that is left (0.96 to 1.04 seen).
        ({"fisher": "exact", "target_modules": r".*layers\.1\.mlp\.down_proj"}, 0.85, 1.15),
        # Six matrices: G leaves out how they act together, and predicts too little (3.7 to 4.0 seen; 2.4 when exact).
        ({"objective": "margin", "fisher": "probe"}, 1.0, 6.0),
    ],
)
def test_objective_rises_and_measured_kl_is_about_the_predicted(settings, low, high, tmp_path):
    alpha = 0.01
    model = trained_llama().double()
    trainer = make_trainer(model, KFade(step_norm=alpha, damping=1e-4, **settings), tmp_path, kl_rows=24)
    batch, retain = COLLATE([*FORGET]), COLLATE([*RETAIN])
    with torch.no_grad():
        before, kept = model(**batch).logits, model(**retain).logits
    trainer.train()
    with torch.no_grad():
        after, changed = model(**batch).logits, model(**retain).logits
    labels = batch["labels"]
    assert objectives.cross_entropy(after, labels).mean() > objectives.cross_entropy(before, labels).mean()
    assert objectives.margin(after, labels).mean() < objectives.margin(before, labels).mean()
    [predicted], [measured] = logged(trainer, "predicted_kl"), logged(trainer, "measured_kl")
    assert predicted == pytest.approx(alpha**2 / 2, rel=1e-6)
    assert low < measured / predicted < high
    places = (retain["labels"][:, 1:] != -100).nonzero().tolist()
    p, q = kept.log_softmax(-1), changed.log_softmax(-1)
    naive = sum((p[row, t].exp() * (p[row, t] - q[row, t])).sum().item() for row, t in places) / len(places)
    assert measured == pytest.approx(naive, rel=1e-6)


def test_a_curvature_that_misses_directions_is_told(tmp_path, caplog):
    """Labels drawn from a model that is certain are its own: the draw carries next to no curvature."""
    trainer, _ = run(KFade(step_norm=0.01, damping=1e-4, fisher="sampled"), tmp_path, kl_rows=24)
    assert logged(trainer, "measured_kl")[0] > 10 * logged(trainer, "predicted_kl")[0]
    assert "the curvature misses directions" in caplog.text


def test_gradient_is_that_of_the_mean_objective(tmp_path):
    """The update of one step under the identity curvature is the normalised gradient, whatever the micro-batches."""
    for objective in ("cross_entropy", "margin"):
        model = trained_llama()
        twin = copy.deepcopy(model)
        batch = COLLATE([*FORGET])
        value = getattr(objectives, objective)(twin(input_ids=batch["input_ids"]).logits, batch["labels"]).mean()
        (value if objective == "cross_entropy" else -value).backward()
        _, update = run(
            kfade(curvature="identity", objective=objective),
            tmp_path / objective,
            model,
            per_device_train_batch_size=3,
        )
        gradients = {name: twin.get_parameter(name).grad for name in MLP}
        length = torch.stack([gradient.square().sum() for gradient in gradients.values()]).sum().sqrt()
        # Identity is G = I: one update of norm alpha along the gradient.
        for name, gradient in gradients.items():
            assert torch.allclose(update[name], 0.05 * gradient / length, rtol=1e-4, atol=1e-8)


def test_refit_or_one_fit(tmp_path):
    curvature = CountingKFAC()
    trainer, _ = run(kfade(curvature=curvature, steps=3), tmp_path / "refit")
    assert [fit["seed"] for fit in curvature.fits] == [42, 43, 44]
    assert not torch.equal(curvature.fits[1]["weight"], curvature.fits[0]["weight"])
    assert len(logged(trainer, "predicted_kl")) == 3
    once = CountingKFAC()
    run(kfade(curvature=once, steps=3, refit=False), tmp_path / "once")
    assert len(once.fits) == 1 and torch.equal(once.fits[0]["weight"], curvature.fits[0]["weight"])


def test_fitted_curvature_is_used_as_it_is(tmp_path):
    # Labels are drawn by a row's place, so the rows come as the trainer gives them: the longest first.
    loader = [COLLATE(sorted(RETAIN, key=lambda row: -len(row["input_ids"])))]
    fitted = CountingKFAC().fit(trained_llama(), loader, seed=42, progress=False)
    _, update = run(kfade(curvature=fitted), tmp_path / "fitted")
    assert len(fitted.fits) == 1
    _, own = run(kfade(curvature=CountingKFAC()), tmp_path / "own")
    for name in own:
        assert (update[name] - own[name]).norm() <= 1e-4 * own[name].norm()
    with pytest.raises(InputError, match="another architecture"):
        run(kfade(curvature=fitted), tmp_path / "other", make_llama(intermediate_size=32))


def test_retain_samples_is_a_seeded_choice(tmp_path):
    curvature = CountingKFAC()
    _, first = run(kfade(curvature=curvature, retain_samples=6), tmp_path / "a")
    assert curvature.fits[0]["rows"] == 6
    _, second = run(kfade(retain_samples=6), tmp_path / "b")
    _, third = run(kfade(retain_samples=6), tmp_path / "c", seed=7)
    assert same(first, second) and not same(first, third)


@pytest.mark.parametrize("size, expected", [(4, [4, 4, 2]), (5, [5, 5]), (None, [10, 10])])
def test_forget_batches_are_drawn_without_replacement(size, expected, tmp_path):
    rows = make_rows(10, 9)

    class Recording(KFade):
        def loss(self, model, inputs, counts):
            if model.training:
                batches[-1].extend(tuple(row[row != 0].tolist()) for row in inputs["input_ids"])
            return super().loss(model, inputs, counts)

    batches = [[]]
    method = Recording(step_norm=0.05, curvature="identity", steps=len(expected), forget_batch_size=size)
    trainer = make_trainer(trained_llama(), method, tmp_path, rows, per_device_train_batch_size=3)
    trainer.method.create_optimizer, make = lambda trainer: watch(make(trainer)), trainer.method.create_optimizer

    def watch(optimizer):
        optimizer.register_step_post_hook(lambda *_: batches.append([]))
        return optimizer

    trainer.train()
    assert [len(batch) for batch in batches[:-1]] == expected and not batches[-1]
    seen = [row for batch in batches for row in batch]
    everything = sorted(tuple(row) for row in rows["input_ids"])
    assert sorted(seen[:10]) == everything
    if len(seen) == 20:
        assert sorted(seen[10:]) == everything


def test_forget_batch_larger_than_the_set(tmp_path):
    with pytest.raises(InputError, match="forget_batch_size is 9 but there are 8"):
        make_trainer(trained_llama(), kfade(forget_batch_size=9), tmp_path)


# ---- K-FADE: sweep ------------------------------------------------------------------------------------------------------
def test_sweep_fits_once_and_keeps_the_best(tmp_path):
    curvature, looked = CountingKFAC(), []

    def evaluate(model, row):
        looked.append(weights(model))
        return {"score": -abs(row["step_norm"] - 0.03) - row["damping"]}

    method = kfade(curvature=curvature, step_norm=0.5)
    trainer = make_trainer(trained_llama(), method, tmp_path / "sweep")
    result = method.sweep(
        trainer, [0.01, 0.03, 0.1], [1e-2, 1e-3], evaluate=evaluate,
        best=lambda rows: max(range(len(rows)), key=lambda index: rows[index]["score"]),
    )  # fmt: skip
    assert len(curvature.fits) == 1
    assert [(row["damping"], row["step_norm"]) for row in result.rows] == [
        (damping, norm) for damping in (1e-2, 1e-3) for norm in (0.01, 0.03, 0.1)
    ]
    assert result.best == 4 and result.best_row["predicted_kl"] == pytest.approx(0.03**2 / 2)
    assert result.to_markdown().count("\n") == 7 and "| * | 0.03 | 0.001 |" in result.to_markdown()
    update = trainer.update_delta()
    direct, expected = run(kfade(step_norm=0.03), tmp_path / "direct")
    assert same(update.tensors, expected)
    for name, parameter in trainer.model.named_parameters():
        assert torch.equal(parameter, direct.model.get_parameter(name))
        assert torch.allclose(parameter, looked[4][name], rtol=1e-6, atol=1e-8)
    # The delta tells what was done, not what was asked first.
    assert update.config["settings"]["step_norm"] == 0.03 and update.config["settings"]["damping"] == 1e-3
    assert logged(trainer, "predicted_kl") == [pytest.approx(0.03**2 / 2, rel=1e-6)]


def test_sweep_refuses_what_it_cannot_do(tmp_path):
    keywords = {"evaluate": lambda model, row: {}, "best": lambda rows: 0}
    method = kfade(steps=2)
    with pytest.raises(InputError, match="one step"):
        method.sweep(make_trainer(trained_llama(), method, tmp_path), [0.1], **keywords)
    method = kfade()
    with pytest.raises(InputError, match="made with this method"):
        method.sweep(make_trainer(trained_llama(), kfade(), tmp_path), [0.1], **keywords)
    with pytest.raises(InputError, match="at least one step_norm"):
        method.sweep(make_trainer(trained_llama(), method, tmp_path), [], **keywords)


# ---- dropout and gradient checkpointing ---------------------------------------------------------------------------------
def dropout_model(kind):
    torch.manual_seed(0)
    if kind == "gpt2":
        config = GPT2Config(vocab_size=50, n_embd=16, n_layer=2, n_head=2, n_positions=32, embd_pdrop=0.5, attn_pdrop=0.5, resid_pdrop=0.5)  # fmt: skip
        return GPT2LMHeadModel(config)
    # OPT applies dropout in the forward of the very layer that is checkpointed.
    config = OPTConfig(vocab_size=50, hidden_size=16, ffn_dim=24, num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=32, word_embed_proj_dim=16, dropout=0.5, attention_dropout=0.5)  # fmt: skip
    return OPTForCausalLM(config)


def without_dropout(model):
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        for name in ("dropout", "attention_dropout"):
            if isinstance(vars(module).get(name), float):
                setattr(module, name, 0.0)
    return model


@pytest.mark.parametrize("kind", ["gpt2", "opt"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradient_has_no_dropout_and_layers_stay_checkpointed(kind, checkpointing, tmp_path):
    settings = {"curvature": "identity", "step_norm": 1.0}
    clean = without_dropout(dropout_model(kind)).eval()
    batch = COLLATE([*FORGET])
    nll = objectives.cross_entropy(
        clean(**{name: batch[name] for name in ("input_ids", "attention_mask")}).logits, batch["labels"]
    )
    nll.mean().backward()
    model = dropout_model(kind).train()
    calls = []
    layer = (model.transformer.h if kind == "gpt2" else model.model.decoder.layers)[0]
    linear = layer.mlp.c_fc if kind == "gpt2" else layer.fc1
    linear.register_forward_hook(lambda *_: calls.append(1))
    _, update = run(KFade(**settings), tmp_path, model, gradient_checkpointing=checkpointing)
    names = dict(clean.named_parameters())
    length = math.sqrt(sum(names[name].grad.square().sum().item() for name in update))
    for name, value in update.items():
        assert torch.allclose(value, names[name].grad / length, rtol=1e-3, atol=1e-6), name
    # One micro-batch: a checkpointed layer runs once more in the backward.
    assert len(calls) == (2 if checkpointing else 1)
    assert "forward" not in vars(layer)


# ---- other models -------------------------------------------------------------------------------------------------------
def test_conv1d_model(tmp_path):
    model = without_dropout(dropout_model("gpt2"))
    before = weights(model)
    with torch.no_grad():
        loss = model(**COLLATE([*FORGET])).loss.item()
    trainer, update = run(KFade(step_norm=0.1, damping=1e-5), tmp_path, model)
    assert set(update) == {
        f"transformer.h.{layer}.mlp.{part}.weight" for layer in (0, 1) for part in ("c_fc", "c_proj")
    }
    for name, value in update.items():
        assert value.shape == before[name].shape and torch.equal(model.get_parameter(name), before[name] + value)
    model.eval()
    with torch.no_grad():
        assert model(**COLLATE([*FORGET])).loss.item() > loss


def trained_adapter():
    """A LoRA model whose adapter has already learnt something (so disabling it is not the model as given)."""
    torch.manual_seed(0)
    model = get_peft_model(trained_llama(), LORA)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.1)
    return model


def test_kfade_under_an_adapter_changes_the_base(tmp_path):
    model = trained_adapter()
    before = weights(model)
    trainer, update = run(kfade(steps=2), tmp_path / "peft", model)
    assert set(update) == MLP
    for name, parameter in model.named_parameters():
        base = name.removeprefix("base_model.model.").replace(".base_layer", "")
        if base in update:
            assert torch.equal(parameter, before[name] + update[base])
        else:
            assert torch.equal(parameter, before[name])
        assert parameter.requires_grad == ("lora" in name)
    # Merged, the same function: the first step must be the same.
    _, merged = run(kfade(), tmp_path / "merged", trained_adapter().merge_and_unload())
    _, first = run(kfade(), tmp_path / "first", trained_adapter())
    for name in MLP:
        assert (merged[name] - first[name]).norm() <= 1e-3 * merged[name].norm()


@pytest.mark.parametrize("objective", ["npo", "kl"])
@pytest.mark.parametrize("build", [trained_adapter, trained_llama, lambda: dropout_model("gpt2")])
def test_reference_is_the_model_as_given(objective, build, tmp_path):
    """At the first step the model is its own reference: NPO is 2 log 2 / beta a row and KL is 0; later it is not."""
    model = build()
    reference = copy.deepcopy(model).eval()
    method = FirstOrder(objective, beta=0.5)
    trainer = make_trainer(model, method, tmp_path, max_steps=2, learning_rate=1e-2, per_device_train_batch_size=8)
    terms = []
    part = "_forget_term" if objective == "npo" else "_retain_term"
    original = getattr(method, part)

    def watched(model, batch, counts):
        value = original(model.eval(), batch, counts)  # no dropout: the model can equal its reference
        inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
        with torch.no_grad():
            logits, old = model(**inputs).logits, reference(**inputs).logits
        if objective == "npo":
            nll, old_nll = (objectives.sequence_nll(x, batch["labels"])[0].double() for x in (logits, old))
            expected = (2 / 0.5 * torch.log1p(torch.exp(-0.5 * (nll - old_nll)))).mean()
        else:
            expected = objectives.kl_divergence(logits.double(), old.double(), batch["labels"]).mean()
        terms.append((value[0].item(), expected.item()))
        return value

    setattr(method, part, watched)
    trainer.train()
    start = 4 * math.log(2) if objective == "npo" else 0.0
    assert terms[0] == (pytest.approx(start, abs=1e-5), pytest.approx(start, abs=1e-5))
    assert terms[1][0] == pytest.approx(terms[1][1], rel=1e-3) and abs(terms[1][1] - start) > 1e-4


def test_first_order_delta_under_an_adapter_is_the_merged_difference(tmp_path):
    model = trained_adapter()
    before = copy.deepcopy(model).merge_and_unload()
    _, update = run(FirstOrder("grad_diff"), tmp_path, model, max_steps=3, learning_rate=1e-2)
    after = copy.deepcopy(model).merge_and_unload()
    names = {
        f"model.layers.{layer}.{part}.weight" for layer in (0, 1) for part in ("self_attn.q_proj", "mlp.down_proj")
    }
    assert set(update) == names
    for name in names:
        assert torch.allclose(
            update[name], after.get_parameter(name) - before.get_parameter(name), rtol=1e-4, atol=1e-6
        )


def test_fully_trained_modules_of_an_adapter_are_in_the_delta(tmp_path):
    config = LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head"])
    trainer = make_trainer(
        trained_llama(), FirstOrder("ga"), tmp_path, peft_config=config, max_steps=2, learning_rate=1e-2
    )
    assert trainer.is_peft
    trainer.train()
    merged = copy.deepcopy(trainer.model).merge_and_unload()
    update = trainer.update_delta().tensors
    difference = merged.lm_head.weight - trained_llama().lm_head.weight
    assert torch.allclose(update["lm_head.weight"], difference) and difference.abs().max() > 1e-3


def test_an_adapter_is_evaluated_and_its_best_state_kept(tmp_path):
    trainer = make_trainer(
        trained_llama(), FirstOrder("grad_diff"), tmp_path, peft_config=LORA, max_steps=2, learning_rate=1e-2,
        eval_strategy="steps", eval_steps=1, save_strategy="steps", save_steps=1, load_best_model_at_end=True,
        metric_for_best_model="forget_loss", greater_is_better=False,
    )  # fmt: skip
    trainer.train()
    losses = logged(trainer, "eval_forget_loss")
    assert losses[0] < losses[1]
    assert trainer.evaluate()["eval_forget_loss"] == pytest.approx(losses[0], rel=1e-5)


def test_best_state_of_kfade_under_an_adapter(tmp_path):
    trainer = make_trainer(
        trained_adapter(), kfade(steps=2), tmp_path, eval_strategy="steps", eval_steps=1, save_strategy="steps",
        save_steps=1, load_best_model_at_end=True, metric_for_best_model="forget_loss", greater_is_better=False,
    )  # fmt: skip
    trainer.train()
    _, first = run(kfade(), tmp_path / "one", trained_adapter())
    assert same(trainer.update_delta().tensors, first)
    for name in MLP:
        inside = f"base_model.model.{name.replace('down_proj.', 'down_proj.base_layer.')}"
        assert torch.equal(trainer.model.get_parameter(inside), trained_adapter().get_parameter(inside) + first[name])


# ---- first order --------------------------------------------------------------------------------------------------------
def test_first_order_terms_and_weights():
    """`loss` against formulas on the model's own logits, with weights other than 1."""
    model = trained_llama()
    inputs = {"forget": COLLATE([*FORGET]), "retain": COLLATE([*RETAIN.select(range(8))])}
    counts = Counts(
        *(f(inputs[side]["labels"]) for side in inputs for f in (objectives.count_predictions, objectives.count_rows))
    )
    log_p = {}
    for side, batch in inputs.items():
        scores = (
            model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits.double().log_softmax(-1)
        )
        log_p[side] = [
            [scores[row, place, label].item() for place, label in enumerate(labels[1:]) if label != -100]
            for row, labels in enumerate(batch["labels"].tolist())
        ]  # fmt: skip
    mean = {side: sum(map(sum, rows)) / sum(map(len, rows)) for side, rows in log_p.items()}
    simnpo = [-2 / 3 * math.log(1 / (1 + math.exp(-(-3 * sum(row) / len(row) - 0.2)))) for row in log_p["forget"]]
    expected = {
        "grad_diff": 0.5 * mean["forget"] - 2 * mean["retain"],
        "finetune": -2 * mean["retain"],
        "simnpo": 0.5 * sum(simnpo) / 8 - 2 * mean["retain"],
    }
    for objective, value in expected.items():
        method = FirstOrder(objective, beta=3.0, gamma=0.2, forget_weight=0.5, retain_weight=2.0)
        loss, parts = method.loss(model, inputs, counts)
        assert loss.item() == pytest.approx(value, rel=1e-5), objective
        assert parts["retain_loss"].item() == pytest.approx(-mean["retain"], rel=1e-5)
        assert objective == "finetune" or parts["forget_loss"].item() == pytest.approx(-mean["forget"], rel=1e-5)
    loss, _ = FirstOrder("ga").loss(model, inputs["forget"], counts)
    assert loss.item() == pytest.approx(mean["forget"], rel=1e-5)


# ---- RMU ------------------------------------------------------------------------------------------------------------------
def states_of(model, batch, layer):
    """Output of a layer (B, T, d), by transformers' own way to ask for it."""
    inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
    with torch.no_grad():
        # The last entry comes after the final norm; the others are what the layers put out.
        return model(**inputs, output_hidden_states=True).hidden_states[layer + 1]


def rmu_terms(model, original, inputs, layer, control, average):
    """The two terms of RMU with plain loops in fp64."""
    terms = []
    for side in ("forget", "retain"):
        batch, rows = inputs[side], []
        now, before = states_of(model, batch, layer).double(), states_of(original, batch, layer).double()
        for row, labels in enumerate(batch["labels"].tolist()):
            rows.append([])
            for place, label in enumerate(labels[1:]):
                if label != -100:
                    target = control.double() if side == "forget" else before[row, place]
                    rows[-1].append((now[row, place] - target).square().sum().item() / len(target))
        if average == "tokens":
            terms.append(sum(map(sum, rows)) / sum(map(len, rows)))
        else:
            terms.append(sum(sum(row) / len(row) for row in rows) / len(rows))
    return terms


@pytest.mark.parametrize("average", ["tokens", "rows"])
@pytest.mark.parametrize("side", ["right", "left"])
def test_rmu_loss_by_hand(average, side, tmp_path):
    collate = dataclasses.replace(COLLATE, padding_side=side)
    inputs = {"forget": collate([*FORGET]), "retain": collate([*RETAIN.select(range(5))])}
    counts = Counts(
        *(f(inputs[side]["labels"]) for side in inputs for f in (objectives.count_predictions, objectives.count_rows))
    )
    model, original = trained_llama(layers=2), trained_llama(layers=2)
    method = FirstOrder("rmu", layer=0, steering=2.5, retain_weight=30.0, forget_weight=0.5, average=average)
    trainer = make_trainer(model, method, tmp_path, seed=3)
    method.prepare(trainer)
    with torch.no_grad():  # as a step would leave it
        down = model.model.layers[0].mlp.down_proj.weight
        down.add_(0.05 * torch.randn(down.shape, generator=torch.Generator().manual_seed(0)))
    generator = torch.Generator().manual_seed(3)
    direction = torch.rand(16, generator=generator)
    control = direction * (2.5 / math.sqrt(sum(value * value for value in direction.tolist())))
    forget, retain = rmu_terms(model, original, inputs, 0, control, average)
    loss, parts = method.loss(model, inputs, counts)
    assert loss.item() == pytest.approx(0.5 * forget + 30 * retain, rel=1e-5) and retain > 1e-4
    assert parts["forget_mse"].item() == pytest.approx(forget, rel=1e-5)
    assert parts["retain_mse"].item() == pytest.approx(retain, rel=1e-4)
    loss.backward()
    # The gradient of the formula, written without hooks and detached states.
    twin = copy.deepcopy(model)
    down = twin.model.layers[0].mlp.down_proj.weight
    total = 0.0
    for side, weight in (("forget", 0.5), ("retain", 30.0)):
        batch = inputs[side]
        now = twin(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], output_hidden_states=True
        ).hidden_states[1]
        target = control if side == "forget" else states_of(original, batch, 0)
        mask = (batch["labels"][:, 1:] != -100).float()
        squares = (now - target).square().mean(-1)[:, :-1] * mask
        mean = squares.sum() / mask.sum() if average == "tokens" else (squares.sum(1) / mask.sum(1)).mean()
        total = total + weight * mean
    [gradient] = torch.autograd.grad(total, down)
    mine = model.model.layers[0].mlp.down_proj.weight.grad
    assert (mine - gradient).norm() <= 1e-4 * gradient.norm()
    method.finish(trainer)


@pytest.mark.parametrize(
    "layer, layers, moved",
    [(1, None, {0, 1}), (0, None, {0}), (2, None, {0, 1, 2}), (3, None, {1, 2, 3}), (3, [2], {2})],
)
def test_rmu_moves_the_chosen_weights_alone(layer, layers, moved, tmp_path):
    model = make_llama(layers=4)
    model.lm_head.weight.requires_grad_(False)
    before = weights(model)
    method = FirstOrder("rmu", layer=layer, layers=layers, retain_weight=1.0)
    _, update = run(method, tmp_path, model, max_steps=2, learning_rate=1e-2)
    names = {f"model.layers.{number}.mlp.down_proj.weight" for number in moved}
    assert set(update) == names
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) == (name not in names), name
        assert parameter.requires_grad == (name != "lm_head.weight")


def test_rmu_steers_forget_states_and_holds_retain_states(tmp_path):
    model, original = trained_llama(), trained_llama()
    trainer, update = run(
        FirstOrder("rmu", layer=1, steering=5.0, retain_weight=10.0), tmp_path / "a", model,
        num_train_epochs=10, learning_rate=1e-2, lr_scheduler_type="constant",
    )  # fmt: skip
    values = {name: logged(trainer, name) for name in ("forget_mse", "retain_mse", "forget_loss", "retain_loss")}
    assert values["forget_mse"][-1] < 0.8 * values["forget_mse"][0]
    assert values["retain_mse"][0] < 1e-10 and values["retain_mse"][-1] < values["forget_mse"][-1] / 10
    # Logged losses are the mean negative log-likelihood, as for every method.
    with torch.no_grad():
        batch = COLLATE([*FORGET])
        nll = objectives.cross_entropy(original(input_ids=batch["input_ids"]).logits, batch["labels"]).mean()
    assert values["forget_loss"][0] == pytest.approx(nll.item(), rel=1e-4)
    _, again = run(
        FirstOrder("rmu", layer=1, steering=5.0, retain_weight=10.0), tmp_path / "b",
        num_train_epochs=10, learning_rate=1e-2, lr_scheduler_type="constant",
    )  # fmt: skip
    assert same(update, again)


def test_rmu_control_vector_is_the_seed_s():
    vector = control_vector(4096, 6.5, seed=1)
    assert torch.equal(vector, control_vector(4096, 6.5, seed=1))
    assert not torch.equal(vector, control_vector(4096, 6.5, seed=2))
    # Uniform on [0, 1) before it is scaled: the norm is right, no entry is negative, and mean / rms is sqrt(3) / 2.
    assert vector.norm().item() == pytest.approx(6.5, rel=1e-5) and vector.min() >= 0
    assert (vector.mean() / vector.square().mean().sqrt()).item() == pytest.approx(math.sqrt(3) / 2, rel=0.02)


def test_rmu_on_other_architectures(tmp_path):
    for name, ends in (("gpt2", "mlp.c_proj.weight"), ("opt", "fc2.weight")):
        _, update = run(
            FirstOrder("rmu", layer=1, retain_weight=1.0), tmp_path / name, dropout_model(name), max_steps=1
        )
        assert len(update) == 2 and all(key.endswith(ends) for key in update)


def test_rmu_with_gradient_checkpointing_is_the_same(tmp_path):
    updates = [
        run(
            FirstOrder("rmu", layer=1, retain_weight=1.0), tmp_path / str(checkpointing), max_steps=2,
            learning_rate=1e-2, gradient_checkpointing=checkpointing,
        )[1]
        for checkpointing in (False, True)
    ]  # fmt: skip
    for name in updates[0]:
        assert torch.allclose(updates[0][name], updates[1][name], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"layer": 2}, "MLPs in layers 0 to 1, not in layer 2; set layer"),
        ({}, "not in layer 5, 6, 7; set layer"),
        ({"layer": 0, "layers": [0, 1]}, "layer 1 lies above layer 0"),
        ({"layer": 1, "layers": []}, "none was named"),
    ],
)
def test_rmu_layers_that_do_not_exist(settings, message, tmp_path):
    trainer = make_trainer(trained_llama(), FirstOrder("rmu", **settings), tmp_path)
    with pytest.raises(InputError, match=message):
        trainer.train()
    assert all(parameter.requires_grad for parameter in trainer.model.parameters())


def test_rmu_settings():
    settings = FirstOrder("rmu").settings()
    assert settings == {
        "method": "FirstOrder", "objective": "rmu", "forget_weight": 1.0, "retain_weight": 1200.0, "steering": 6.5,
        "layer": 7, "layers": None, "average": "tokens",
    }  # fmt: skip
    assert "steering" not in FirstOrder("npo").settings() and FirstOrder("npo").settings()["retain_weight"] == 1.0
    assert FirstOrder("rmu").paper["id"] == "arXiv:2403.03218"
    for bad, message in (({"steering": 0.0}, "steering must be"), ({"average": "mean"}, "choose 'tokens'")):
        with pytest.raises(InputError, match=message):
            FirstOrder("rmu", **bad)


def test_rmu_refuses_an_adapter(tmp_path):
    trainer = make_trainer(trained_adapter(), FirstOrder("rmu", layer=1), tmp_path)
    with pytest.raises(InputError, match="merge_and_unload"):
        trainer.train()


def test_ekfac_by_name_is_ekfac(tmp_path):
    _, named = run(kfade(curvature="ekfac"), tmp_path / "name")
    _, given = run(kfade(curvature=EKFAC()), tmp_path / "object")
    assert same(named, given)
