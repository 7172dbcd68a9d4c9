# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Types and ranges of `UnlearnConfig`, and what is a fault of its own words."""

import pytest
from transformers import HfArgumentParser

from hf_unlearn import UnlearnConfig
from hf_unlearn.errors import InputError


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"max_length": 0}, "max_length must be at least 1, not 0"),
        ({"max_length": "512"}, "max_length must be a whole number, not '512'"),
        ({"kl_rows": 0.5}, "kl_rows must be a whole number, not 0.5"),
        ({"kl_rows": True}, "kl_rows must be a whole number, not True"),
        ({"curvature_batch_size": 0}, "curvature_batch_size must be at least 1"),
        ({"model_init_kwargs": ["bf16"]}, "model_init_kwargs must be a mapping or None"),
        ({"learning_rate": "1e-5"}, "learning_rate must be a number, not '1e-5'"),
        ({"learning_rate": float("nan")}, "learning_rate must be a finite number at least 0, not nan"),
        ({"per_device_train_batch_size": 0}, "per_device_train_batch_size must be at least 1"),
        ({"max_steps": 0}, "max_steps must be at least 1, or -1"),
        ({"num_train_epochs": 0}, "num_train_epochs must be above 0"),
        ({"adam_beta1": 1.0}, "adam_beta1 must be a finite number at least 0 and below 1"),
        ({"seed": -1}, "seed must be at least 0"),
        ({"bf16": "false"}, "bf16 must be True or False, not 'false'"),
        ({"optim": "adamx"}, "training arguments: adamx is not a valid OptimizerNames"),
        ({"fp16": True, "bf16": True}, "training arguments: At most one of fp16 and bf16"),
    ],
)
def test_a_value_that_does_not_fit_is_named(settings, message, tmp_path):
    with pytest.raises(InputError, match=f"^{message}") as caught:
        UnlearnConfig(output_dir=str(tmp_path), use_cpu=True, **settings)
    assert "\n" not in str(caught.value)


def test_a_command_line_gives_what_fits():
    parser = HfArgumentParser(UnlearnConfig)
    words = "--output_dir o --learning_rate 1e-5 --kl_rows 3 --max_factor_memory 2GB --bf16 false --max_steps 2"
    (args,) = parser.parse_args_into_dataclasses(f"{words} --use_cpu".split())
    assert (args.learning_rate, args.kl_rows, args.max_factor_memory, args.bf16) == (1e-5, 3, "2GB", False)
    assert UnlearnConfig(output_dir="o", max_factor_memory=10**9, use_cpu=True).max_factor_memory == 10**9
