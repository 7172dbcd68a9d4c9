# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""What must not change the result (batches, padding, checkpointing, wrappers, processes), failures, files, plan."""

import json
import warnings

import pytest
import torch

from hf_unlearn.curvature import (
    EKFAC,
    KFAC,
    Curvature,
    Diagonal,
    Identity,
    artifact,
    make_curvature,
    plan,
    select_targets,
)
from hf_unlearn.curvature import fisher as fisher_module
from hf_unlearn.curvature.linalg import add_gram_, eigendecompose, mirror_
from hf_unlearn.errors import InputError, NumericalError
from hf_unlearn.runtime.processes import assign
from tests.curvature.test_kinds import batches, ragged


def fitted(model, data, size=2, kind="ekfac", **options):
    return make_curvature(kind).fit(model, batches(*data[:2], size=size, mask=data[2]), progress=False, **options)


def steps(curvature):
    """Answer of the curvature to fixed gradients, in order of its weights: free of the signs of eigenvectors."""
    generator = torch.Generator().manual_seed(0)
    gradients = {
        name: torch.randn(target["shape"], generator=generator, dtype=torch.float64)
        for name, target in curvature.metadata["targets"].items()
    }
    return list(curvature.solve(gradients, 1e-3).values())


def assert_same(one, other, tolerance=1e-5):
    assert one.metadata["predicted_tokens"] == other.metadata["predicted_tokens"]
    assert one.metadata["sequences"] == other.metadata["sequences"]
    for a, b in zip(steps(one), steps(other), strict=True):
        assert (a - b).norm() <= tolerance * a.norm()


@pytest.fixture
def model(tiny_llama):
    return tiny_llama(vocab_size=20, hidden_size=8, intermediate_size=12, initializer_range=0.3).double()


@pytest.fixture
def data():
    return ragged(vocab=20)


@pytest.mark.parametrize("kind", ["ekfac", "diagonal"])
@pytest.mark.parametrize("fisher", ["sampled", "probe", "empirical"])
def test_batch_size_and_padding_side(model, data, kind, fisher):
    reference = fitted(model, data, kind=kind, fisher=fisher)
    for size in (1, 5):
        assert_same(reference, fitted(model, data, size=size, kind=kind, fisher=fisher))
    left = ragged("left", vocab=20)
    assert (left[2][:, -1] == 1).all()
    assert_same(reference, fitted(model, left, kind=kind, fisher=fisher))


def test_labels_and_tokens_at_padding_do_not_count(model, data):
    ids, labels, mask = data
    reference = fitted(model, data)
    noisy = (torch.where(mask.bool(), ids, 7), torch.where(mask.bool(), labels, 5), mask)
    assert_same(reference, fitted(model, noisy), tolerance=1e-12)


def test_sequences_without_labels_do_not_count_but_keep_their_place(model, data):
    ids, labels, mask = data
    silent = labels.clone()
    silent[1:4] = -100
    together = fitted(model, (ids, silent, mask), size=5)
    assert together.metadata["sequences"] == 2
    assert_same(together, fitted(model, (ids, silent, mask), size=1))


def test_missing_attention_mask_means_all_real(model):
    ids = torch.randint(3, 20, (4, 6), generator=torch.Generator().manual_seed(0))
    with_mask = fitted(model, (ids, ids, torch.ones_like(ids)))
    assert_same(with_mask, EKFAC().fit(model, batches(ids), progress=False), tolerance=1e-12)


@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize("kind", ["ekfac", "diagonal"])
def test_gradient_checkpointing(model, data, use_reentrant, kind):
    reference = fitted(model, data, kind=kind)
    model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    model.train()
    forwards = []
    handle = model.model.layers[0].mlp.up_proj.register_forward_hook(lambda *_: forwards.append(1))
    curvature = fitted(model, data, kind=kind)
    handle.remove()
    # One that shows which weights share inputs; in each pass twice for each of three batches, and two that try whether the
    # head can be split off.
    assert len(forwards) == 1 + (2 * 3 + 2) * (2 if kind == "ekfac" else 1)
    assert_same(reference, curvature, tolerance=1e-12)
    assert all(module.training for module in model.modules())


def test_checkpointing_with_one_late_target(model, data):
    """No saved tensor of the lowest layer needs its target's input: it is never recomputed in the backward."""
    reference = fitted(model, data, target_modules=["0.mlp.down_proj"])
    model.gradient_checkpointing_enable()
    assert_same(reference, fitted(model, data, target_modules=["0.mlp.down_proj"]), tolerance=1e-12)


def test_tokens_chunks_and_whole_logits(model, data, monkeypatch):
    reference = fitted(model, data)
    monkeypatch.setitem(fisher_module.CHUNK_ELEMENTS, "cpu", 40)
    assert_same(reference, fitted(model, data))
    # A head that is a target must run once, as the model runs it.
    whole = fitted(model, data, target_modules=r".*mlp\..*_proj|lm_head")
    assert "lm_head.weight" in whole.names
    for name in reference.names:
        a, b = (
            c.solve({name: torch.ones(c.metadata["targets"][name]["shape"])}, 1e-3)[name] for c in (reference, whole)
        )
        assert (a - b).norm() <= 1e-5 * a.norm()


def test_soft_capped_logits_are_not_chunked(data):
    from transformers import Gemma2Config, Gemma2ForCausalLM

    from hf_unlearn.curvature.batches import read_batch
    from hf_unlearn.curvature.passes import split_head

    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=20, hidden_size=8, intermediate_size=12, num_hidden_layers=1, num_attention_heads=2, head_dim=4,
        num_key_value_heads=2, final_logit_softcapping=0.5,
    )  # fmt: skip
    model = Gemma2ForCausalLM(config).double().eval()
    batch = read_batch(batches(*data[:2], mask=data[2])[0], 0, True, torch.device("cpu"))
    assert split_head(model, batch, {}) == (model, None)
    config.final_logit_softcapping = None
    assert split_head(model, batch, {}) == (model.model, model.lm_head)


def test_shared_inputs_are_stored_once_and_equal_unshared(model, data):
    together = fitted(model, data, target_modules=r".*mlp\.(gate|up)_proj|.*self_attn\.[qkv]_proj")
    inputs = {name: target["input"] for name, target in together.metadata["targets"].items()}
    assert len(inputs) == 10 and len(set(inputs.values())) == 4
    alone = [fitted(model, data, target_modules=[name.removesuffix(".weight")]) for name in together.names]
    for step, one in zip(steps(together), alone):
        g = {one.names[0]: torch.randn(step.shape, generator=torch.Generator().manual_seed(3)).double()}
        a, b = one.solve(g, 1e-3)[one.names[0]], together.solve(g, 1e-3)[one.names[0]]
        assert (a - b).norm() <= 1e-9 * a.norm()


def test_peft_wrapper(model, data):
    from peft import LoraConfig, get_peft_model

    reference = fitted(model, data)
    wrapped = get_peft_model(
        model, LoraConfig(r=2, target_modules=["q_proj", "gate_proj", "down_proj"], lora_dropout=0.5)
    )
    curvature = fitted(wrapped, data)
    assert set(curvature.names) <= set(wrapped.state_dict())
    assert curvature.names[0] == "base_model.model.model.layers.0.mlp.gate_proj.base_layer.weight"
    assert not any("lora" in name for name in curvature.names)
    assert_same(reference, curvature)
    trainable = {name for name, parameter in wrapped.named_parameters() if parameter.requires_grad}
    assert trainable and all("lora" in name for name in trainable)
    assert_same(reference, fitted(wrapped, data, target_modules=r"model\.layers\.\d\.mlp\..*_proj"))


def test_virtual_prompt_tokens_are_refused(model, data):
    from peft import PromptTuningConfig, get_peft_model

    wrapped = get_peft_model(model, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3))
    with pytest.raises(InputError, match="rows for a batch of shape"):
        fitted(wrapped, data)


def test_same_inputs_same_bits(tiny_llama, data):
    model = tiny_llama()
    one, other = fitted(model, data), fitted(model, data)
    assert all(torch.equal(one.tensors[key], other.tensors[key]) for key in one.tensors)
    different = fitted(model, data, seed=1)
    assert any(not torch.equal(one.tensors[key], different.tensors[key]) for key in one.tensors)


def test_bf16_model_has_fp32_factors(tiny_llama, data):
    reference = fitted(tiny_llama(), data, fisher="empirical")
    curvature = fitted(tiny_llama().to(torch.bfloat16), data, fisher="empirical")
    assert {tensor.dtype for tensor in curvature.tensors.values()} == {torch.float32}
    assert all((a - b).norm() < 0.1 * a.norm() for a, b in zip(steps(reference), steps(curvature)))


def test_model_is_left_as_found_also_after_an_error(model, data):
    model.train()
    model.model.layers[1].eval()
    model.lm_head.weight.requires_grad_(False)
    model.gradient_checkpointing_enable()
    weights = {key: value.clone() for key, value in model.state_dict().items()}

    def state():
        return (
            [module.training for module in model.modules()],
            [parameter.requires_grad for parameter in model.parameters()],
            [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()],
            ["forward" in vars(module) for module in model.modules()],
            [parameter.grad for parameter in model.parameters()],
        )

    before = state()
    fitted(model, data)
    assert state() == before

    class Broken:
        def __iter__(self):
            yield batches(*data[:2], mask=data[2])[0]
            raise RuntimeError("disk gone")

    with pytest.raises(RuntimeError, match="disk gone"):
        EKFAC().fit(model, Broken(), progress=False)
    assert state() == before
    assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())


def test_targets(model):
    assert list(select_targets(model)) == [
        f"model.layers.{layer}.mlp.{end}_proj.weight" for layer in (0, 1) for end in ("gate", "up", "down")
    ]
    assert list(select_targets(model, r"model\.layers\.[1-3]\.mlp\.down_proj")) == [
        "model.layers.1.mlp.down_proj.weight"
    ]
    assert list(select_targets(model, ["0.mlp.up_proj", "lm_head"])) == [
        "model.layers.0.mlp.up_proj.weight",
        "lm_head.weight",
    ]
    with pytest.raises(InputError, match=r"no linear module matches 'mlp'.*model\.layers\.\{0\.\.1\}\.mlp\.gate_proj"):
        select_targets(model, "mlp")


def test_targets_of_other_architectures():
    from tests.curvature.test_kinds import tiny_bert, tiny_vit

    bert = list(select_targets(tiny_bert()[0]))
    assert bert == [f"bert.encoder.layer.0.{part}.dense.weight" for part in ("intermediate", "output")]
    assert len(select_targets(tiny_vit()[0])) == 2


def test_tied_weights_are_refused(tiny_llama):
    with pytest.raises(InputError, match="lm_head.weight is tied to model.embed_tokens.weight"):
        select_targets(tiny_llama(tie_word_embeddings=True), ["lm_head"])
    select_targets(tiny_llama(tie_word_embeddings=True))


def test_unusable_data(model, data):
    ids, labels, mask = data
    with pytest.raises(InputError, match="empty or all labels are -100"):
        EKFAC().fit(model, [], progress=False)
    with pytest.raises(InputError, match="empty or all labels are -100"):
        EKFAC().fit(model, batches(ids, torch.full_like(ids, -100)), progress=False)
    with pytest.raises(InputError, match="can be read only once"):
        EKFAC().fit(model, iter(batches(ids)), progress=False)
    with pytest.raises(InputError, match="no labels"):
        EKFAC().fit(model, [{"input_ids": ids}], progress=False)
    with pytest.raises(InputError, match="fisher must be one of"):
        EKFAC().fit(model, batches(ids), fisher="true", progress=False)
    with pytest.raises(InputError, match="curvature must be one of"):
        make_curvature("hessian")


@pytest.mark.parametrize("kind", ["kfac", "diagonal"])
def test_a_module_that_never_runs_is_named(model, data, kind):
    model.extra = torch.nn.Linear(8, 8).double()
    with pytest.raises(InputError, match="extra.weight: its module never ran"):
        fitted(model, data, kind=kind, target_modules=["up_proj", "extra"])


def test_a_module_that_runs_twice_is_named(model, data):
    model.model.layers[1].mlp.up_proj.forward = model.model.layers[0].mlp.up_proj.__call__
    with pytest.raises(InputError, match="layers.0.mlp.up_proj.weight: its module runs several times"):
        fitted(model, data, target_modules=["0.mlp.up_proj"])


@pytest.mark.parametrize("kind", ["kfac", "diagonal"])
def test_a_factor_that_is_not_finite_is_named(model, data, kind):
    model.model.layers[1].mlp.down_proj.weight.data[0, 0] = torch.nan
    with pytest.raises(NumericalError, match="model.layers.0.mlp.*weight is not finite"):
        fitted(model, data, kind=kind)


def test_solve_refuses_what_it_cannot_do(model, data):
    curvature = fitted(model, data)
    name = curvature.names[0]
    g = torch.ones(12, 8)
    with pytest.raises(InputError, match="lm_head.weight has no curvature"):
        curvature.solve({"lm_head.weight": g}, 1e-3)
    with pytest.raises(InputError, match="expected shape"):
        curvature.norm({name: g.T})
    with pytest.raises(InputError, match="damping"):
        curvature.solve({name: g}, -1.0)
    with pytest.raises(NumericalError, match=name):
        curvature.solve({name: torch.full((12, 8), torch.nan)}, 1e-3)


def test_damping_below_precision_warns_once(tiny_llama, data):
    curvature = fitted(tiny_llama(), data)
    g = {name: torch.ones(target["shape"]) for name, target in curvature.metadata["targets"].items()}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        curvature.solve(g, 1e-2)
    with pytest.warns(UserWarning, match=r"damping 1e-20 lies below .* of model\.layers\.\d\.mlp"):
        curvature.solve(g, 1e-20)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        curvature.solve(g, 1e-20)


@pytest.mark.parametrize("kind", ["ekfac", "kfac", "diagonal", "identity"])
def test_save_and_load_to_the_same_bits(model, data, kind, tmp_path, monkeypatch):
    monkeypatch.setattr(artifact, "SHARD_BYTES", 2000)
    curvature = fitted(model, data, kind=kind)
    curvature.save_pretrained(tmp_path)
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == (kind != "identity")
    loaded = Curvature.from_pretrained(tmp_path, model=model)
    assert type(loaded) is type(curvature) and loaded.metadata == curvature.metadata
    assert loaded.tensors.keys() == curvature.tensors.keys()
    assert all(torch.equal(a, b) for a, b in zip(steps(loaded), steps(curvature)))
    config = json.loads((tmp_path / "curvature_config.json").read_text())
    assert config["unit"] == "per predicted token" and config["kind"] == kind and config["seed"] == 0


def test_load_refuses_another_architecture_and_warns_of_other_weights(model, tiny_llama, data, tmp_path):
    KFAC().fit(model, batches(*data[:2], mask=data[2]), progress=False).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="another architecture"):
        Curvature.from_pretrained(tmp_path, model=tiny_llama(hidden_size=16, intermediate_size=12))
    with pytest.raises(InputError, match="another architecture: the model has no"):
        Curvature.from_pretrained(tmp_path, model=tiny_llama(layers=1, hidden_size=8, intermediate_size=12))
    model.model.layers[1].mlp.up_proj.weight.data[0, 0] += 1
    with pytest.warns(UserWarning, match="layers.1.mlp.up_proj.weight has changed"):
        Curvature.from_pretrained(tmp_path, model=model)
    with pytest.raises(InputError, match="holds no curvature_config.json"):
        Curvature.from_pretrained(tmp_path.parent)
    with pytest.raises(InputError, match="nobody/nothing is neither a folder nor"):
        Curvature.from_pretrained("nobody/nothing")


def test_damaged_files_are_input_errors(model, data, tmp_path):
    fitted(model, data, kind="diagonal").save_pretrained(tmp_path)
    (shard,) = tmp_path.glob("*.safetensors")
    content = shard.read_bytes()
    shard.write_bytes(content[:20])
    with pytest.raises(InputError, match="damaged"):
        Curvature.from_pretrained(tmp_path)
    shard.unlink()
    with pytest.raises(InputError, match="missing"):
        Curvature.from_pretrained(tmp_path)
    shard.write_bytes(content)
    assert Curvature.from_pretrained(tmp_path).kind == "diagonal"
    (tmp_path / "curvature_config.json").write_text("{")
    with pytest.raises(InputError, match="damaged"):
        Curvature.from_pretrained(tmp_path)


def test_identity_is_plain_gradient(model, data):
    curvature = fitted(model, data, kind="identity")
    g = torch.randn(12, 8).double()
    torch.testing.assert_close(curvature.solve({curvature.names[0]: g}, 0.0)[curvature.names[0]], g)
    assert curvature.norm({curvature.names[0]: g}) == pytest.approx(float(g.norm()))
    assert isinstance(make_curvature(curvature), Identity) and isinstance(make_curvature("diagonal"), Diagonal)


def test_metadata_says_what_was_done(model, data):
    metadata = fitted(model, data, fisher="probe", seed=7).metadata
    assert (metadata["kind"], metadata["fisher"], metadata["seed"], metadata["sequences"]) == ("ekfac", "probe", 7, 5)
    assert metadata["predicted_tokens"] == int((data[1][:, 1:] != -100).sum())
    assert list(metadata["stages"]) == ["factors", "eigh", "correction"]
    assert all(stage["seconds"] >= 0 and stage["peak_memory_bytes"] > 0 for stage in metadata["stages"].values())
    assert len(metadata["weights_sha256"]) == 6 and metadata["model_class"] == "LlamaForCausalLM"
    json.dumps(metadata)


@pytest.mark.parametrize("size", [3, 300, 700])
def test_gram_on_upper_block_rows(size):
    rows = torch.randn(20, size, dtype=torch.float64)
    total = torch.zeros(size, size, dtype=torch.float64)
    add_gram_(total, rows[:12])
    add_gram_(total, rows[12:])
    torch.testing.assert_close(mirror_(total), rows.T @ rows)
    assert torch.equal(total, total.T)


def test_eigendecomposition_of_a_tiny_scaled_factor():
    """fp32, spectrum 1e-8..1e-13: small eigenvalues from the fp32 solver alone are wrong by their own size."""
    torch.manual_seed(0)
    q = torch.linalg.qr(torch.randn(60, 60, dtype=torch.float64))[0]
    values = torch.logspace(-13, -8, 60, dtype=torch.float64)
    matrix = (q * values) @ q.T
    found, vectors = eigendecompose(matrix.float(), "factor")
    torch.testing.assert_close(found.double(), values, rtol=0.03, atol=0)
    rebuilt = (vectors.double() * found.double()) @ vectors.double().T
    assert (rebuilt - matrix).norm() < 1e-5 * matrix.norm()
    zero, basis = eigendecompose(torch.zeros(4, 4), "factor")
    assert (zero == 0).all() and torch.equal(basis, torch.eye(4))
    with pytest.raises(NumericalError, match="the input factor of x is not finite"):
        eigendecompose(torch.full((3, 3), torch.inf), "the input factor of x")


def test_eigendecomposition_falls_back_to_fp64(monkeypatch):
    solver = torch.linalg.eigh

    def fragile(matrix):
        if matrix.dtype == torch.float32:
            raise torch.linalg.LinAlgError("did not converge")
        return solver(matrix)

    monkeypatch.setattr(torch.linalg, "eigh", fragile)
    matrix = torch.diag(torch.tensor([1.0, 2.0, 3.0]))
    values, vectors = eigendecompose(matrix.clone(), "factor")
    torch.testing.assert_close((vectors * values) @ vectors.T, matrix)
    assert vectors.dtype == torch.float32


def test_assignment_balances_and_covers():
    costs = {f"large{i}": 20.0 for i in range(12)} | {f"small{i}": 1.0 for i in range(8)}
    owners = assign(costs, 4)
    loads = [sum(costs[name] for name, owner in owners.items() if owner == rank) for rank in range(4)]
    assert owners.keys() == costs.keys() and loads == [62.0] * 4


def test_plan_of_llama_2_7b_on_meta():
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=32000, hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32
    )
    with torch.device("meta"):
        model = LlamaForCausalLM(config).to(torch.bfloat16)
    costs = plan(model, sequences=4000, sequence_length=512)
    assert len(costs.targets) == 96 and costs.tokens == 2_048_000
    assert costs["factors"].bytes == pytest.approx(50.8e9, rel=0.05)
    assert costs["correction"].bytes == pytest.approx(17.3e9, rel=0.05)
    assert costs["factors"].flops == pytest.approx(52.0e15, rel=0.05)
    assert costs["forward"].flops == pytest.approx(27.1e15, rel=0.05) and costs["forward"].bytes == pytest.approx(
        13.5e9, rel=0.05
    )
    assert costs["correction"].flops == pytest.approx((52.0 + 17.7) * 1e15, rel=0.05)
    table = str(costs)
    assert all(stage in table for stage in ("forward", "backward", "factors", "eigh", "correction", "solve"))
    assert "96 weights, 2,048,000 tokens" in table
    # 64 groups over 8 processes, then in as many blocks as keep each within 3 GB of factors and eigenvalues.
    shared = plan(model, sequences=4000, sequence_length=512, num_processes=8)
    assert shared["factors"].bytes == costs["factors"].bytes / 8 and shared.factor_bytes == costs.factor_bytes / 8
    assert "8 processes" in str(shared) and "MB a token sent" in str(shared)
    blocks = plan(model, sequences=4000, sequence_length=512, num_processes=8, max_factor_memory="3GB")
    assert blocks.factor_bytes <= 3e9 and blocks.blocks == 4 and "which there are 8" in blocks["forward"].note


def test_plan_counts_what_a_fit_makes(model, data):
    curvature = fitted(model, data)
    costs = plan(model, sequences=5, sequence_length=7)
    vectors = sum(tensor.nbytes for key, tensor in curvature.tensors.items() if key.startswith("vectors."))
    assert costs["factors"].bytes == vectors
    assert [stage.name for stage in plan(model, kind="identity", sequences=5, sequence_length=7).stages] == ["solve"]
