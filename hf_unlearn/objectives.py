# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Forgetting and retaining objectives as pure functions of logits and labels.

Shapes: `logits` (B, T, V) with `labels` (B, T) for causal models (logits t predict label t + 1, as transformers shifts
them), (B, V) with (B,) for classifiers, (B, 1) with floating labels (B,) for a regression, or (B, k, 1, V) with
(B, k, 1) for k predictions a row (of a span: its first and its last token); -100 is ignored. Token functions return
one value per predicted token, flattened to (N,); sequence functions return one per row (B,). Nothing here averages:
the caller divides by counts taken over the whole accumulated batch, so gradient accumulation and padding never change
the result.
"""

import torch
import torch.nn.functional as F


IGNORE = -100


def logits_of(outputs, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
    """Logits of a model's outputs in the shapes above; of a span (B, 2, 1, T), over the real tokens of the row.

    transformers lets a span end at padding, so that its loss depends on how far a batch is padded: not so here.
    """
    if getattr(outputs, "start_logits", None) is None:
        return outputs.logits
    logits = torch.stack([outputs.start_logits, outputs.end_logits], 1)
    if attention_mask is not None:
        # Half of the lowest number: differences of two stay finite.
        logits = logits.masked_fill(~attention_mask.bool()[:, None], torch.finfo(logits.dtype).min / 2)
    return logits[:, :, None]


def scored_labels(labels: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
    """Labels (B, T) with -100 where no real token predicts a real one: at padding, and at the first token behind it.

    What a model says at padding means nothing, so left and right padding then score the same tokens.
    """
    real = attention_mask.bool()
    scored = real.clone()
    scored[:, 1:] &= real[:, :-1]
    return labels.masked_fill(~scored, IGNORE)


def predictions(logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rows of `logits` that predict a label: (N, V) in fp32 or better, their labels (N,), and the batch's row (N,)."""
    if labels.dim() == 2:
        logits, labels = logits[:, :-1], labels[:, 1:]
    keep = labels != IGNORE
    rows = keep.nonzero()[:, 0]
    return logits[keep].to(torch.promote_types(logits.dtype, torch.float32)), labels[keep], rows


def count_predictions(labels: torch.Tensor) -> int:
    """Number of labels that a model predicts: shifted and not ignored."""
    return int((labels[:, 1:] if labels.dim() == 2 else labels).ne(IGNORE).sum())


def count_rows(labels: torch.Tensor) -> int:
    """Number of rows with a label that a model predicts."""
    labels = labels[:, 1:] if labels.dim() == 2 else labels.flatten(1) if labels.dim() > 2 else labels[:, None]
    return int(labels.ne(IGNORE).any(1).sum())


def cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """-log p(label) per predicted token, (N,); of a regression (y - label)^2 / 2.

    The latter is -log p of a normal distribution of variance 1 about the output, but for a constant: half of the
    squared error that transformers trains on.
    """
    selected, targets, _ = predictions(logits, labels)
    return _nll(selected, targets)


def _nll(selected: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    if targets.is_floating_point():
        return (selected[:, 0] - targets).square() / 2
    return F.cross_entropy(selected, targets, reduction="none")


def margin(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """z_y - log sum_{i != y} exp(z_i) per predicted token, (N,): the log odds of the label (K-FADE, section 3).

    Unlike the log probability it does not saturate where the model is certain, so tokens known by heart pull hardest.
    """
    selected, targets, _ = predictions(logits, labels)
    targets = targets[:, None]
    others = selected.scatter(1, targets, float("-inf"))
    return selected.gather(1, targets)[:, 0] - others.logsumexp(1)


def unlikelihood(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """-log(1 - p(label)) per predicted token, (N,) (Welleck et al. 2019, arXiv:1908.04319).

    Its pull on a token's logits is p(label): strongest on what is known by heart, none on what is forgotten. That of
    cross-entropy is 1 - p(label), that of the margin 1 throughout.
    """
    return F.softplus(margin(logits, labels))


def sequence_nll(logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Summed -log p of each row's labels (B,), and the number of labels in each row (B,)."""
    selected, targets, rows = predictions(logits, labels)
    nll = _nll(selected, targets)
    total = nll.new_zeros(len(labels)).index_add(0, rows, nll)
    return total, torch.bincount(rows, minlength=len(labels))


def kl_divergence(logits: torch.Tensor, reference_logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """KL(reference || model) per predicted token, (N,), in nats; of a regression of normals of variance 1."""
    selected, _, _ = predictions(logits, labels)
    reference, _, _ = predictions(reference_logits, labels)
    if labels.is_floating_point():
        return (selected - reference)[:, 0].square() / 2
    return F.kl_div(selected.log_softmax(-1), reference.log_softmax(-1), log_target=True, reduction="none").sum(-1)


def npo(nll: torch.Tensor, reference_nll: torch.Tensor, beta: float) -> torch.Tensor:
    """Negative preference optimisation per row (Zhang et al. 2024, eq. 3): 2/beta log(1 + (p / p_ref)^beta), (B,).

    `nll` and `reference_nll` are summed over the row's labels, so `beta` means what it does in the paper.
    """
    return -2 / beta * F.logsigmoid(beta * (nll - reference_nll))


def dpo(
    nll: torch.Tensor,
    reference_nll: torch.Tensor,
    preferred_nll: torch.Tensor,
    preferred_reference_nll: torch.Tensor,
    beta: float,
) -> torch.Tensor:
    """DPO per row (Rafailov et al. 2023, eq. 7) that prefers another answer: -2/beta log sigma(beta (r' - r)), (B,).

    r = log(p / p_ref) of the row's own answer, r' of the preferred one, sums over labels. The factor 2 / beta is that
    of NPO, to which this comes down where r' does not move.
    """
    margin = (nll - reference_nll) - (preferred_nll - preferred_reference_nll)
    return -2 / beta * F.logsigmoid(beta * margin)


def simnpo(nll: torch.Tensor, lengths: torch.Tensor, beta: float, gamma: float = 0.0) -> torch.Tensor:
    """SimNPO per row (Fan et al. 2024, eq. 4): length-normalised and free of a reference model, (B,)."""
    return -2 / beta * F.logsigmoid(beta * nll / lengths.clamp(min=1) - gamma)


def steering(states: torch.Tensor, target: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean squared difference of hidden states to a target over the hidden size (RMU, Li et al. 2024, section 4).

    `states` (B, T, d) are a layer's outputs, `target` (d,) a control vector or (B, T, d) the frozen model's outputs.
    Returns one value per position that predicts a label (N,), and the row of each (N,): padding never counts.
    """
    selected, _, rows = predictions(states, labels)
    wanted = target if target.dim() == 1 else predictions(target, labels)[0]
    return (selected - wanted.to(selected)).square().mean(-1), rows
