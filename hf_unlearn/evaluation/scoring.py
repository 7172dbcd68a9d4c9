# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""The model passes that all metrics share: teacher-forced scores of answers, greedy generation, logits where needed.

Batches are sorted by length and the output head runs at answer positions only, so that no [batch, length, vocabulary]
tensor is ever made. Works on any causal LM of transformers and on PEFT models, where the model lies.
"""

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from tqdm.auto import tqdm

from ..data.collators import CausalCollator
from ..errors import InputError, NumericalError
from ..objectives import IGNORE, scored_labels
from ..runtime.limits import check_tokenizer, check_tokens
from ..runtime.loading import padding_id
from ..runtime.modules import evaluation_mode, model_device, positions_behind_padding, takes_positions


# Numbers in one block of logits, and in one temporary of its reduction. On a CPU big blocks lose half of their time to
# page faults and cache misses; on an accelerator small ones lose it to launches.
LOGIT_BUDGET = {"cpu": 2**22, "other": 2**26}
REDUCTION_BUDGET = {"cpu": 2**19, "other": 2**25}
LOG_PROB_FLOOR = -1e4  # exp() of it is 0, yet 0 * floor is 0: vocabulary entries masked with -inf make no NaN


@dataclass(frozen=True)
class AnswerScore:
    """What one (question, answer) row left behind; n answer tokens, the final EOS included."""

    token_log_probs: np.ndarray  # (n,) log-probability of each answer token, nats
    correct: np.ndarray  # (n,) whether the token is the model's argmax
    mean: np.ndarray | None  # (n,) mean of log p over the vocabulary under p; None when not asked for
    variance: np.ndarray | None  # (n,) its variance, likewise
    eos: bool  # whether the last token is the EOS, or ends a turn (not so when the row was truncated)

    @property
    def nll_sum(self) -> float:
        return -float(self.token_log_probs.sum(dtype=np.float64))

    @property
    def nll_mean(self) -> float | None:
        """Mean loss over the answer's tokens with EOS; None when the row has no answer token."""
        return self.nll_sum / len(self.token_log_probs) if len(self.token_log_probs) else None

    @property
    def text(self) -> slice:
        """The tokens of the answer without its EOS."""
        return slice(0, len(self.token_log_probs) - self.eos)


def rows_within(budget: Mapping[str, int], device: torch.device, vocabulary: int) -> int:
    """How many rows of logits a budget allows on a device; at least one."""
    return max(1, budget.get(device.type, budget["other"]) // vocabulary)


def reduction_rows(logits: torch.Tensor) -> int:
    """How many rows of (n, V) are reduced at a time."""
    return rows_within(REDUCTION_BUDGET, logits.device, logits.shape[1])


def predicted_logits(model, inputs: Mapping[str, torch.Tensor], predicted: torch.Tensor) -> torch.Tensor:
    """Logits, (n, V) in row-major order, that predict the n tokens marked in `predicted` (B, T).

    The token at t is predicted by position t - 1, so column 0 is never predicted. Positions are chosen in front of
    the output head, by a hook: what a model does to its logits afterwards (caps, scales) still happens.
    Half precision is widened to fp32.
    """
    source = predicted[:, 1:]
    chosen = []

    def choose(module, args):
        hidden = args[0]
        if hidden.shape[:2] != predicted.shape:
            return None
        chosen.append(True)
        return (hidden[:, :-1][source.to(hidden.device)].unsqueeze(0), *args[1:])

    head = model.get_output_embeddings()
    handle = head.register_forward_pre_hook(choose) if head is not None else None
    try:
        told = positions_behind_padding(inputs)
        if "position_ids" in told and takes_positions(model):  # which looks at every module: only where it matters
            inputs = told
        logits = model(**inputs, use_cache=False).logits
    finally:
        if handle is not None:
            handle.remove()
    logits = logits[0] if chosen else logits[:, :-1][source.to(logits.device)]
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits


def predicted_tokens(batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """(B, T) mask of the tokens that count: labelled, real, and behind a real one (nothing else predicts them)."""
    labels = batch["labels"]
    if "attention_mask" in batch:
        labels = scored_labels(labels, batch["attention_mask"])
    predicted = labels != IGNORE
    predicted[:, 0] = False
    return predicted


def logit_blocks(model, batch: Mapping[str, torch.Tensor]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield (logits (n, V), token ids (n,)) over groups of rows of a batch (all B, T), each within the logit budget.

    Rows without a predicted token are left out; the groups depend on the labels and on V only, so two models of one
    vocabulary see the same ones. Call inside `evaluation_mode`.
    """
    predicted = predicted_tokens(batch)
    counts = predicted.sum(1).tolist()
    vocabulary = model.get_input_embeddings().weight.shape[0]
    device = model_device(model)
    most = rows_within(LOGIT_BUDGET, device, vocabulary)
    group: list[int] = []
    for row in [*range(len(counts)), None]:
        if group and (row is None or sum(counts[r] for r in group) + counts[row] > most):
            rows = torch.tensor(group)
            inputs = {name: value[rows].to(device) for name, value in batch.items() if name != "labels"}
            mask = predicted[rows]
            logits = predicted_logits(model, inputs, mask.to(device))
            yield logits, batch["labels"][rows][mask].to(logits.device)
            group = []
        if row is not None and counts[row]:
            group.append(row)


def score_answers(
    model,
    tokenizer,
    encoded: Sequence[Mapping],
    *,
    batch_size: int = 32,
    moments: bool = False,
    progress: bool = False,
) -> list[AnswerScore]:
    """Teacher-forced scores of rows as `data.prompts.encode_qa` gives them, in their order.

    Batches of `batch_size` rows are filled in order of length and cut further where their logits would not fit the
    budget. `moments` adds the mean and variance of log p over the vocabulary (min-k++), at twice the cost per logit.

    Raises:
        InputError: another model's tokenizer, or a row that is too long for the model.
        NumericalError: the model gives logits that are not finite.
    """
    check_tokenizer(tokenizer, model)
    _check_rows(model, [row["input_ids"] for row in encoded], "what is scored")
    stops = stop_ids(model, tokenizer)
    scores: list[AnswerScore | None] = [None] * len(encoded)
    order = sorted(range(len(encoded)), key=lambda i: len(encoded[i]["input_ids"]))
    collate = CausalCollator(padding_id(tokenizer))
    bar = tqdm(total=len(order), desc="scoring", disable=not progress, leave=False)
    with evaluation_mode(model), bar:
        for start in range(0, len(order), batch_size):
            items = order[start : start + batch_size]
            batch = collate([encoded[i] for i in items])
            blocks = [_token_statistics(*block, moments) for block in logit_blocks(model, batch)]
            empty = np.zeros(0)
            columns = [np.concatenate(column) for column in zip(*blocks)] or [empty] * (4 if moments else 2)
            ends = np.cumsum(predicted_tokens(batch).sum(1).numpy())
            for i, end, begin in zip(items, ends, [0, *ends[:-1]]):
                log_probs, correct, *rest = (column[begin:end] for column in columns)
                mean, variance = rest or (None, None)
                last = encoded[i]["labels"][-1] if encoded[i]["labels"] else None
                eos = bool(end > begin and last in stops)
                scores[i] = AnswerScore(log_probs, correct.astype(bool), mean, variance, eos)
            bar.update(len(items))
    return scores


def _token_statistics(logits: torch.Tensor, labels: torch.Tensor, moments: bool) -> list[np.ndarray]:
    """log p of the labels, whether they are the argmax, and on demand mean and variance of log p; each (n,)."""
    rows = reduction_rows(logits)
    pieces = [_reduce(*piece, moments) for piece in zip(logits.split(rows), labels[:, None].split(rows))]
    columns = [torch.cat(column) for column in zip(*pieces)]
    if not torch.isfinite(columns[0]).all():
        raise NumericalError("the model gives logits that are not finite: it diverged; use a smaller step")
    return [column.cpu().numpy() for column in columns]


def _reduce(logits: torch.Tensor, labels: torch.Tensor, moments: bool) -> list[torch.Tensor]:
    top, label = logits.amax(-1, keepdim=True), logits.gather(1, labels)
    # argmax is slow, and needed only where the label has the top logit: half precision ties, and the first index wins.
    correct = (label == top)[:, 0]
    correct[correct.clone()] = logits[correct].argmax(-1) == labels[correct, 0]
    if not moments:
        return [((label - top) - (logits - top).exp_().sum(-1, keepdim=True).log_())[:, 0], correct]
    log_probs = logits.log_softmax(-1).clamp_min_(LOG_PROB_FLOOR)
    weights = log_probs.exp()
    mean = (weights * log_probs).sum(-1, keepdim=True)
    variance = (weights * log_probs.sub(mean).square_()).sum(-1)
    return [log_probs.gather(1, labels)[:, 0], correct, mean[:, 0], variance]


def stop_ids(model, tokenizer) -> set[int]:
    """Tokens that end an answer: the tokenizer's EOS, and those of the model's generation config (ends of a turn)."""
    configured = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    return {tokenizer.eos_token_id, *(configured if isinstance(configured, list) else [configured])} - {None}


def _check_rows(model, rows: Sequence[Sequence[int]], what: str):
    longest, largest = max(map(len, rows), default=0), max((max(row, default=0) for row in rows), default=0)
    check_tokens(model, longest, largest, what)


def prompt_ids(encoded: Mapping) -> list[int]:
    """The prompt of an encoded row, token for token as teacher forcing saw it."""
    if "prompt_ids" in encoded:  # of a template whose answers' first token is not learned
        return list(encoded["prompt_ids"])
    labels = encoded["labels"]
    answer = next((i for i, label in enumerate(labels) if label != -100), len(labels))
    return list(encoded["input_ids"][:answer])


def generate_ids(
    model,
    tokenizer,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int = 200,
    batch_size: int = 32,
    progress: bool = False,
) -> list[list[int]]:
    """Token ids that continue token-id prompts greedily, in their order, each up to and with the token that ended it.

    Stops at the tokenizer's EOS and at those of the model's generation config; sampling, beams and repetition
    penalties of that config are switched off. The ids do not depend on `batch_size`, but for ties within rounding.

    Raises:
        InputError: a prompt without tokens, or with more than the model can read.
    """
    if any(len(prompt) == 0 for prompt in prompts):
        raise InputError("a question gives an empty prompt: add a question text or a template with a start tag")
    stops = stop_ids(model, tokenizer)
    _check_rows(model, prompts, "what is asked")
    pad, device = padding_id(tokenizer), model_device(model)
    padded = functools.partial(pad_sequence, batch_first=True, padding_side="left")
    results: list[list[int]] = [[] for _ in prompts]
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    bar = tqdm(total=len(order), desc="generating", disable=not progress, leave=False)
    with evaluation_mode(model), bar:
        for start in range(0, len(order), batch_size):
            items = order[start : start + batch_size]
            ids = padded([torch.tensor(prompts[i]) for i in items], padding_value=pad)
            mask = padded([torch.ones(len(prompts[i]), dtype=torch.long) for i in items])
            output = model.generate(
                input_ids=ids.to(device),
                attention_mask=mask.to(device),
                max_new_tokens=max_new_tokens,
                do_sample=False,
                temperature=None,
                top_p=None,
                top_k=None,
                num_beams=1,
                repetition_penalty=1.0,
                no_repeat_ngram_size=0,
                use_cache=True,
                pad_token_id=pad,
                eos_token_id=sorted(stops) or None,
            )
            for i, new in zip(items, output[:, ids.shape[1] :].tolist()):
                # What follows the first stop is padding.
                end = next((place for place, token in enumerate(new) if token in stops), len(new))
                results[i] = new[: end + 1]
            bar.update(len(items))
    return results
