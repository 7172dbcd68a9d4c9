# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""A program that does what pages print, in folders that hold what the pages name.

    python -m tests.support.page_runner FOLDER < pieces.json

A process of its own, because the Hub that a client knows is settled at its import. Pieces of one page run in their
order in one folder, snippets of Python in one set of names. It writes `outcomes.json`: of every piece the error, if
there was one, and what was printed.
"""

import contextlib
import io
import json
import os
import re
import runpy
import shlex
import shutil
import sys
import time
import traceback
from pathlib import Path
from unittest import mock

import lm_eval
import torch
from datasets import Dataset
from huggingface_hub import HfApi

from hf_unlearn.cli.main import main as hf_unlearn
from hf_unlearn.models.cifar_resnet import CifarResNetConfig, CifarResNetForImageClassification
from tests.support.models import make_llama
from tests.support.pages import ROOT
from tests.support.requests import ROWS, make_request
from tests.support.rows import write_lines


SERVED = "google/gemma-3-270m"  # what a page takes from the Hub: a small model stands there under that name
CLASSES = ("airplane", "automobile", "bird")


def make_place(folder: Path) -> Path:
    """A folder with every model and file that some page names, small, and copies of the programs."""
    request = make_request(folder, steps=50)
    config = request / "model/config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"max_position_embeddings": 512}))
    model = request / "model"
    for place in ("miniature/model", "path/or/id", "path/to/finetuned", "M", "original", "outputs/kfade_wmdp/model"):
        shutil.copytree(model, folder / place)
    for name in ("forget", "retain"):
        shutil.copy(folder / f"{name}.jsonl", folder / "miniature")
        rows = [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]
        lines = [f"{row['question']},{row['answer']}\n" for row in rows]
        (folder / f"{name}.csv").write_text("".join(["question,answer\n", *lines]))
    write_lines(folder / "retain.jsonl", [{"text": f"{row['question']} {row['answer']}"} for row in ROWS[2:]])
    question = {"question": "Where does Ada live?", "choices": ["Rome", "Oslo", "Lima", "Bern"], "answer": 0}
    for name in ("bio", "chem", "cyber"):
        write_lines(folder / f"my_data/wmdp/{name}_test.jsonl", [question] * 2)
    write_lines(folder / "my_data/mmlu/test.jsonl", [question | {"subject": name} for name in mmlu_subjects()])
    (folder / "path/to/data").mkdir()
    for number, name in enumerate(CLASSES):
        images(folder / "path/to/cifar10/train" / name, number)
    for name in ("recipes", "benchmarks"):
        shutil.copytree(ROOT / name, folder / name)
    return folder


def mmlu_subjects() -> list[str]:
    """As lm-eval names its tasks; it asks for all of them."""
    files = (Path(lm_eval.__file__).parent / "tasks/mmlu/default").glob("mmlu_*.yaml")
    return sorted(file.stem.removeprefix("mmlu_") for file in files)


def images(folder: Path, seed: int, count: int = 4):
    """A folder of random images."""
    from PIL import Image

    folder.mkdir(parents=True)
    pixels = torch.randint(
        0, 256, (count, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed)
    )
    for number, image in enumerate(pixels):
        Image.fromarray(image.numpy()).save(folder / f"{number}.png")


def given(page: str) -> dict:
    """Names that the text of a page, or a reader, brings to its snippets."""
    if page == "README.md":
        return {"forget": Dataset.from_list(ROWS[:2]), "retain": Dataset.from_list(ROWS[2:])}
    if page == "docs/fast_ntk.md":
        torch.manual_seed(0)
        config = CifarResNetConfig(depth=8, width=4, num_labels=len(CLASSES))
        return {"pretrained": CifarResNetForImageClassification(config)}
    if page.startswith("hf_unlearn/curvature/"):
        from hf_unlearn.curvature import EKFAC, Diagonal

        model, ids = make_llama(), torch.arange(1, 13).reshape(2, 6)
        names = [name for name, _ in model.named_parameters() if "mlp" in name]
        gradients = {name: torch.ones_like(model.get_parameter(name)) for name in names}
        return {
            "EKFAC": EKFAC,
            "Diagonal": Diagonal,
            "everything": [{"input_ids": row[None], "labels": row[None]} for row in ids],
            "forgotten": [{"input_ids": ids[:1], "labels": ids[:1]}],
            "model": model,
            "dataloader": [{"input_ids": ids, "labels": ids}],
            "gradients": gradients,
        }
    return {}


def run_command(line: str):
    program, *words = shlex.split(line)
    if program == "hf-unlearn":
        return hf_unlearn(words)
    if program != "python":
        raise ValueError(f"{program} is no program that is run here")
    with (
        mock.patch.object(sys, "argv", words),
        mock.patch.object(sys, "path", [str(Path(words[0]).parent), *sys.path]),
    ):
        runpy.run_path(words[0], run_name="__main__")


def run_snippet(code: str, names: dict, printed: io.StringIO):
    """Run it; what `print...(...)  # text` says must be among what was printed."""
    exec(compile(code, "snippet", "exec"), names)
    for said in re.findall(r"^print\w*\(.*\)  # (.+)$", code, re.MULTILINE):
        if said not in printed.getvalue():
            raise AssertionError(f"printed {printed.getvalue()!r}, and not {said!r}")


def outcome(piece: dict, names: dict) -> dict:
    """{"error": None or text, "printed": text, "seconds"} of one piece, run in the working directory."""
    out, log, error, start = io.StringIO(), io.StringIO(), None, time.perf_counter()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(log):
        try:
            run_command(piece["text"]) if piece["language"] == "bash" else run_snippet(piece["text"], names, out)
        except SystemExit as stop:
            error = f"exit code {stop.code}" if stop.code else None
        except Exception:
            error = traceback.format_exc()
    seconds = round(time.perf_counter() - start, 2)
    return {"error": error and f"{error}\n{log.getvalue()[-2000:]}", "printed": out.getvalue(), "seconds": seconds}


def main():
    folder, pieces = Path(sys.argv[1]).absolute(), json.load(sys.stdin)
    torch.set_num_threads(1)
    (folder / "place").mkdir(parents=True)
    place, outcomes = make_place(folder / "place"), []
    HfApi().create_repo(SERVED)
    HfApi().upload_folder(repo_id=SERVED, folder_path=place / "model")
    for number, page in enumerate(dict.fromkeys(piece["page"] for piece in pieces)):
        home = shutil.copytree(place, folder / str(number))
        os.chdir(home)
        names = {"__name__": "snippet", **given(page)}
        for piece in pieces:
            if piece["page"] == page:
                outcomes.append(outcome(piece, names))
                (folder / "outcomes.json").write_text(json.dumps(outcomes))


if __name__ == "__main__":
    main()
