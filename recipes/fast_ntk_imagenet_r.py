#!/usr/bin/env python
# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Fast-NTK's Table II: key/value prompts of a ViT tuned on 20 or 50 classes of ImageNet-R, one of them forgotten.

    python recipes/fast_ntk_imagenet_r.py --data_dir path/to/data

`data_dir` holds `imagenet-r/`, one folder of images a class. Options and output are those of
recipes/fast_ntk_cifar10.py.
"""

from pathlib import Path

from fast_ntk_cifar10 import main


if __name__ == "__main__":
    main(config=str(Path(__file__).parent / "configs" / "fast_ntk_imagenet_r.yaml"), description=__doc__)
