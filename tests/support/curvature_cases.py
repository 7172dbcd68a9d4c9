# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""The table of cases that every kind of curvature walks: models, data, and their dense Gauss-Newton blocks.

The blocks are made of autograd Jacobians: no hooks, no Kronecker structure.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev

from tests.support.curvature import ragged
from tests.support.models import make_llama


NAME = "model.layers.{}.mlp.{}.weight"
# Llama computes its norms in fp32 even in fp64, so oracles through the model agree to this and no better.
CLOSE = {"rtol": 1e-5, "atol": 1e-8}


@dataclass(eq=False)
class Case:
    """A model and its data.

    Attributes:
        model: in eval mode, fp64.
        columns: what the model takes and `labels`, N rows each.
        weights: how many carry curvature.
        size: rows of a batch.
        causal: whether labels (N, T) are shifted by one; otherwise they are (N,), and (N, 2, 1) of spans.
        head: what is predicted: "classes", a "value" (a normal distribution of variance 1), or a "span" (two classes
            over the real tokens of a row).
        kronecker: whether the Gauss-Newton block of each weight is one Kronecker product, so that K-FAC is exact.
        close: how close a fit comes to an oracle through the model.
        target_modules: of the fit.
    """

    model: nn.Module
    columns: dict[str, Tensor]
    weights: int
    size: int = 2
    causal: bool = True
    head: str = "classes"
    kronecker: bool = False
    close: dict[str, float] = field(default_factory=lambda: CLOSE)
    target_modules: str | None = None

    @property
    def batches(self) -> list[dict[str, Tensor]]:
        starts = range(0, len(self.columns["labels"]), self.size)
        return [{key: value[i : i + self.size] for key, value in self.columns.items()} for i in starts]

    @functools.cached_property
    def tokens(self) -> int:
        return sum(map(len, map(self._predicting, range(len(self.columns["labels"])))))

    @functools.cache  # noqa: B019
    def block(self, name: str) -> Tensor:
        """Exact Gauss-Newton block of weight.flatten(): (1 / N) sum over predictions of J^T H J.

        H is diag p - p p^T of classes, and 1 of a value.
        """
        total = 0.0
        for row in range(len(self.columns["labels"])):
            jacobian, logits = self._jacobian(name, row)
            for place in self._predicting(row):
                p = logits[place].softmax(-1)
                hessian = torch.eye(1).to(p) if self.head == "value" else torch.diag(p) - torch.outer(p, p)
                total = total + jacobian[place].T @ hessian @ jacobian[place]
        return total / self.tokens

    def empirical_squares(self, name: str) -> Tensor:
        """(1 / N) sum over samples of the squared gradient of -log p of the sample's labels; of encoders."""
        total = 0.0
        for row, labels in enumerate(self.columns["labels"]):
            (jacobian, logits), gradient = self._jacobian(name, row), 0.0
            for place, label in enumerate(labels.reshape(-1)):
                if self.head == "value":
                    at_output = logits[place] - label
                else:
                    at_output = logits[place].softmax(-1) - torch.eye(logits.shape[-1]).to(logits)[label]
                gradient = gradient + at_output @ jacobian[place]
            total = total + gradient**2 / self.tokens
        return total.view_as(self.model.get_parameter(name))

    def _predicting(self, row: int) -> list[int]:
        """Places of a row whose outputs are compared with a label."""
        if not self.causal:
            return [0, 1] if self.head == "span" else [0]
        labels, mask = self.columns["labels"][row], self.columns["attention_mask"][row]
        return [t for t in range(len(labels) - 1) if labels[t + 1] != -100 and mask[t] and mask[t + 1]]

    def _jacobian(self, name: str, row: int) -> tuple[Tensor, Tensor]:
        """d logits (T, V) / d weight, flattened to (T, V, d_out * d_in), for one row; and the logits."""
        parameters = {key: value.detach() for key, value in self.model.named_parameters()}
        inputs = {key: value[row : row + 1] for key, value in self.columns.items() if key != "labels"}

        def logits(weight):
            outputs = functional_call(self.model, parameters | {name: weight}, (), inputs)
            if self.head == "span":
                real = inputs["attention_mask"].bool()
                return torch.stack([outputs.start_logits[real], outputs.end_logits[real]])
            outputs = outputs if isinstance(outputs, Tensor) else outputs.logits
            return outputs.reshape(-1, outputs.shape[-1])

        return jacrev(logits)(parameters[name]).flatten(2), logits(parameters[name])


def small_llama():
    return make_llama(vocab_size=11, hidden_size=4, intermediate_size=6, heads=1, initializer_range=0.4).double()


def tiny_bert(head="classes", ids=None, mask=None):
    """With the head of a `Case`, and rows of unequal length."""
    from transformers import BertConfig, BertForQuestionAnswering, BertForSequenceClassification

    config = BertConfig(
        vocab_size=20, hidden_size=4, num_hidden_layers=1, num_attention_heads=1, intermediate_size=6,
        num_labels={"classes": 3, "value": 1, "span": 2}[head], max_position_embeddings=16, initializer_range=0.4,
    )  # fmt: skip
    if ids is None:
        ids, _, mask = ragged(vocab=20)
    build = BertForQuestionAnswering if head == "span" else BertForSequenceClassification
    return build(config), {"input_ids": ids, "attention_mask": torch.ones_like(ids) if mask is None else mask}


def tiny_vit():
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        image_size=4, patch_size=2, num_channels=1, hidden_size=4, num_hidden_layers=1, num_attention_heads=1,
        intermediate_size=6, num_labels=3, initializer_range=0.4,
    )  # fmt: skip
    return ViTForImageClassification(config), {"pixel_values": torch.randn(5, 1, 4, 4, dtype=torch.float64)}


class DeepLinear(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(*(nn.Linear(i, o, bias=False) for i, o in ((5, 4), (4, 3), (3, 2))))

    def forward(self, x):
        return self.layers(x)


def _columns(ids: Tensor, labels: Tensor | None = None, mask: Tensor | None = None) -> dict[str, Tensor]:
    labels, mask = ids if labels is None else labels, torch.ones_like(ids) if mask is None else mask
    return {"input_ids": ids, "labels": labels, "attention_mask": mask}


def _one_prediction() -> Case:
    """One position and one token: the block is one product."""
    return Case(small_llama(), _columns(torch.tensor([[4, 7]])), 6, kronecker=True)


def _sequences() -> Case:
    return Case(small_llama(), _columns(*ragged(vocab=11)), 6)


def _transposed() -> Case:
    """Weights stored (in, out), in GPT-2's `Conv1D`."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(vocab_size=9, n_positions=8, n_embd=4, n_layer=1, n_head=1, n_inner=6, initializer_range=0.4)
    model = GPT2LMHeadModel(config).double().eval()
    return Case(model, _columns(torch.tensor([[4, 7]])), 2, kronecker=True, close={"rtol": 1e-8, "atol": 1e-12})


def _deep_linear() -> Case:
    """Two classes and inputs of equal absolute margin: the logit Hessian is constant, so A and S are independent."""
    network = DeepLinear().double()
    weight = network.layers[2].weight @ network.layers[1].weight @ network.layers[0].weight
    direction = (weight[1] - weight[0]).detach()
    x = torch.randn(6, 5, dtype=torch.float64)
    margins = torch.tensor([1.0, -1, 1, -1, 1, -1], dtype=torch.float64)
    x = x + ((margins - x @ direction) / direction.square().sum())[:, None] * direction
    labels = torch.tensor([0, 0, 0, 0, 1, 1])
    close = {"rtol": 1e-10, "atol": 1e-13}
    return Case(
        network, {"x": x, "labels": labels}, 3, size=4, causal=False, kronecker=True, close=close, target_modules=".*"
    )


def _encoder(make: Callable, head: str = "classes", labels=(0, 2, 1, 0, 1), **settings) -> Case:
    torch.manual_seed(0)
    model, inputs = make()
    columns = inputs | {"labels": torch.tensor(labels)}
    close = {"rtol": 1e-8, "atol": 1e-12}
    return Case(model.double().eval(), columns, 2, causal=False, head=head, close=close, **settings)


ONE = torch.tensor([[7]])  # a row of one token
SPANS = [[[1], [3]], [[0], [0]], [[2], [4]], [[0], [2]], [[3], [5]]]  # of rows of 7, 4, 5, 3 and 6 tokens


# Name -> maker of the case, which is made once.
CASES: dict[str, Callable[[], Case]] = {
    name: functools.cache(make)
    for name, make in {
        "one position and one token": _one_prediction,
        "sequences": _sequences,
        "transposed weights": _transposed,
        "deep linear network": _deep_linear,
        "bert": functools.partial(_encoder, tiny_bert),
        "vit": functools.partial(_encoder, tiny_vit),
        "values": functools.partial(
            _encoder, functools.partial(tiny_bert, "value"), "value", (0.5, -1.0, 2.0, 0.0, 1.5)
        ),
        "one token and one value": functools.partial(
            _encoder, functools.partial(tiny_bert, "value", ONE), "value", (0.5,), kronecker=True
        ),
        "spans": functools.partial(_encoder, functools.partial(tiny_bert, "span"), "span", SPANS),
    }.items()
}


def eigenbasis(curvature, name: str) -> Tensor:
    """Columns are the eigenvectors of a fitted block, of the kept entries of weight.flatten() as it is stored."""
    target = curvature.metadata["targets"][name]
    d_out, d_in = target["kept"]
    if curvature.kind in ("diagonal", "identity"):
        basis = torch.eye(d_out * d_in, dtype=torch.float64)
    else:
        q_in, q_out = curvature._both("vectors", name)
        basis = torch.kron(q_out, q_in)
    if target["transposed"]:
        basis = basis[torch.arange(d_out * d_in).view(d_out, d_in).T.flatten()]
    return basis


def kept_places(curvature, name: str) -> Tensor:
    """The places in weight.flatten(), as it is stored, of what a mask keeps."""
    target = curvature.metadata["targets"][name]
    places = torch.arange(torch.Size(target["shape"]).numel()).view(target["shape"])
    for side, dim in (("rows", 0), ("columns", 1)):
        if (index := curvature.tensors.get(f"{side}.{name}")) is not None:
            places = places.index_select(1 - dim if target["transposed"] else dim, index)
    return places.flatten()


def dense(curvature, name: str) -> Tensor:
    """A fitted block as a matrix over weight.flatten() as it is stored."""
    basis = eigenbasis(curvature, name)
    values = curvature._eigenvalues(name).double().flatten().expand(len(basis))  # the identity has one for all
    return basis @ torch.diag(values) @ basis.T
