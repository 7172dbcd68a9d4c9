# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""The smallest run of a table of class forgetting that has every part."""

from hf_unlearn.experiments.problems.class_forgetting import read_protocol


def tiny_protocol(**changes) -> dict:
    config = read_protocol()
    config["seeds"] = [0, 1]
    config["data"] = config["data"] | {"per_class": [4], "holdout_per_class": 5}
    config["model"] = {
        "config": {"model_type": "cifar_resnet", "depth": 8, "width": 4, "image_size": 8},
        "pretrain": {"train": "digits:train", "per_class": 6, "epochs": 2, "learning_rate": 5.0e-3, "batch_size": 32},
        "new_head": True,
    }
    config["tuning"] = {"epochs": 8, "learning_rate": 2.0e-2, "batch_size": 20}
    config["methods"] = [
        {
            "label": "Max Loss", "method": "first_order", "settings": {"objective": "max_loss"},
            "search": {"learning_rate": [0.01]}, "epochs": 3,
        },
        {
            "label": "Random Label", "method": "first_order", "settings": {"objective": "random_label"},
            "search": {"learning_rate": [0.01]}, "epochs": 2,
        },
        {"label": "Fast-NTK", "method": "fast_ntk", "search": {"ridge": [0.1]}},
    ]  # fmt: skip
    config["relearning"] = {"learning_rate": 1e-2, "max_epochs": 3}
    return config | changes
