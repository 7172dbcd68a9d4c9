# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""The command `hf-unlearn`, called in this process."""

from hf_unlearn.cli.main import main


WEIGHT = "model.layers.0.mlp.up_proj.weight"
SETTINGS = {"method": "KFade", "steps": 4, "kl_budget": None, "damping": 1e-6}


def call(*arguments):
    """Exit code of the command, run in this process."""
    try:
        main([str(argument) for argument in arguments])
    except SystemExit as stop:
        return stop.code or 0
    return 0
