# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""A program that fits a curvature on several processes, one of which may kill itself (curvature/test_resume.py)."""

import os
import signal
import sys
import time
from pathlib import Path

from accelerate import Accelerator

from hf_unlearn.errors import exit_codes
from tests.support.curvature import fitted, rows


class Deadly(list):
    """Batches; process 1 dies when it has read so many of them, once. Slow, so that a fit is on its way then."""

    def __init__(self, data, after, rank):
        super().__init__(data)
        self.left, self.rank = after, rank

    def __iter__(self):
        for batch in super().__iter__():
            self.left -= 1
            if self.left == 0 and self.rank == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(0.01)
            yield batch


def main(folder: Path, after: int):
    accelerator = Accelerator(cpu=True)
    data = Deadly(rows(), after, accelerator.process_index)
    curvature = fitted(data=data, accelerator=accelerator, checkpoint_dir=folder / "progress", checkpoint_every=2)
    curvature.save_pretrained(folder / "fitted")
    if accelerator.process_index == 0:
        # After the rerun: how many batches the first pass still had to compute is known by what was read.
        (folder / "read").write_text(str(after - data.left))
    # Left to the end of the program, threads of gloo that still run now and then abort it.
    accelerator.end_training()


if __name__ == "__main__":
    with exit_codes():
        main(Path(sys.argv[1]), int(sys.argv[2]))
