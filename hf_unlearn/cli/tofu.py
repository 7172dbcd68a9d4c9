# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""`hf-unlearn evaluate --suite tofu`: TOFU's numbers of a model, or of a log that this or another tool wrote."""

import logging
from pathlib import Path

from ..data.prompts import QATemplate
from ..data.tofu import load_tofu
from ..errors import InputError
from ..evaluation import tofu
from ..evaluation.tofu_logs import LEGACY_FILES
from ..report.formats import MISSING, format_number, format_p
from ..report.tables import markdown_table
from ..runtime.hub import public_name
from ..runtime.loading import load_model, load_tokenizer
from ..runtime.processes import announced_processes
from .console import Result, is_quiet


logger = logging.getLogger(__name__)

SOURCE = "locuslab/TOFU"


def run_tofu(options) -> Result | None:
    """The summary of a log, read (`--log`) or made (`--model`) and written to `--output`; `--retain_log` is the other
    side of its forget quality. None on all processes but the main one, which alone evaluates.

    Raises:
        InputError: neither or both of a log and a model, arguments of the tasks, or logs that do not fit.
    """
    if (options.log is None) == (options.model is None):
        raise InputError("--suite tofu scores a model or a log: give either --model or --log")
    if options.tasks is not None or options.base is not None or options.delta is not None:
        raise InputError("--tasks, --base and --delta are not for --suite tofu: leave them out")
    retain = None if options.retain_log is None else tofu.read_log(options.retain_log)
    if options.log is not None:
        log, about = tofu.read_log(options.log), {"log": Path(options.log).name}
    else:
        state = announced_processes()
        if not state.is_main_process:
            return None
        log, about = _evaluate(options, retain, state.device), {"model": public_name(options.model)}
    summary = tofu.summarize(log, retain, legacy=any(file in log for file in LEGACY_FILES.values()))
    if retain is None:
        logger.warning("without --retain_log, the log of a retrained model, there is no forget quality")
    lines = [_table(summary)]
    if options.output:
        lines.append(f"wrote {tofu.write_log(options.output, log)}")
    return Result("\n\n".join(lines), about | {"summary": summary})


def _evaluate(options, retain, device) -> dict:
    splits = load_tofu(options.data_dir or SOURCE, options.forget)
    tokenizer = load_tokenizer(options.model, required_for="TOFU")
    model, _ = load_model(options.model, tokenizer)
    return tofu.evaluate(
        model.to(device),
        tokenizer,
        splits.evaluation(),
        retain,
        template=QATemplate(chat=options.chat),
        batch_size=options.batch_size,
        progress=not is_quiet(),
    )


def _table(summary) -> str:
    body = [[name.replace("_", " "), _text(name, value)] for name, value in summary.items()]
    return markdown_table(["measure", "value"], body)


def _text(name: str, value) -> str:
    if value is None or isinstance(value, str):
        return value or MISSING
    if name == "forget_quality":
        return format_p(value)
    return f"{value}" if isinstance(value, int) else format_number(value, 4)
