# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""`hf-unlearn inspect`: what a folder holds, read from its files.

Each kind is read into facts, which `--json` prints, and told to a person from these.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from ..curvature.artifact import CONFIG_FILE as CURVATURE_FILE
from ..curvature.artifact import describe as describe_curvature
from ..deltas import describe as describe_delta
from ..errors import InputError, NumericalError, first_line
from ..report.formats import format_settings
from ..report.tables import format_table, markdown_table
from ..requests.ledger import LOG_FILE, read_log
from ..runtime.cost import format_bytes
from ..runtime.files import atomic_write, read_json
from ..structure.mask import CONFIG_FILE as MASK_FILE
from ..structure.mask import read_mask
from .console import Result


# Names of trainer/run_folder.py, whose import would load transformers for nothing.
RUN_FILE, COMPLETE_FILE = "unlearn_run.json", "complete"


class Kind(NamedTuple):
    """One of the things that a folder may hold."""

    name: str
    read: Callable[[str | Path], dict]  # of its file, or of the folder or repository of a delta
    tell: Callable[[dict], Iterator[str]]


def run_inspect(options) -> Result:
    """All that a folder, or the delta of a repository, holds: `holds` has a dict of each, with its `kind`.

    With an `output` folder the picture of a mask is written there.

    Raises:
        InputError: it holds nothing of ours, or what it holds is damaged.
    """
    path = Path(options.path)
    found = [(kind, ".", path / name) for name, kind in KINDS.items() if (path / name).is_file()]
    # Of a delta itself, of a model with its delta, and of a comparison or a request with its model.
    folders = (".", "delta", "model/delta")
    places = [(DELTA, folder, path / folder) for folder in folders if (path / folder / "delta_config.json").is_file()]
    # What does not exist here can only be a delta on the Hub; the error says so when it is not.
    found += places or ([] if path.exists() else [(DELTA, ".", options.path)])
    if not found:
        raise InputError(f"{path} holds no delta, curvature, mask, run or results of hf_unlearn; pass such a folder")
    lines, holds = [], []
    for kind, place, file in found:
        facts, told = _described(kind, file)
        holds.append({"kind": kind.name, "place": place, **facts})
        lines += told
    pictures = write_pictures(holds, Path(options.output)) if options.output else []
    lines += [f"wrote {picture}" for picture in pictures]
    # Names in a file may hold what speaks to the terminal, or half a character.
    lines = ["".join(sign if sign.isprintable() else repr(sign)[1:-1] for sign in line) for line in lines]
    return Result("\n".join(lines), {"path": str(options.path), "holds": holds, "pictures": [*map(str, pictures)]})


def _described(kind: Kind, file: str | Path) -> tuple[dict, list[str]]:
    try:
        facts = kind.read(file)
        return facts, [part for line in kind.tell(facts) for part in line.splitlines()]
    except (InputError, NumericalError, OSError):
        raise
    except Exception as error:  # whatever a file of another program holds under the name of ours
        raise InputError(
            f"{file} is not what hf_unlearn writes ({type(error).__name__}: {first_line(error)}); look at it yourself"
        ) from error


def _some(names) -> str:
    """The first three names and the last."""
    names = list(names)
    return ", ".join(names[:3]) + (f", ... {names[-1]}" if len(names) > 3 else "")


def tell_delta(delta: dict) -> Iterator[str]:
    size = f"{format_bytes(delta['bytes'])} in {delta.get('dtype')}"
    yield f"delta: {len(delta['tensors'])} tensors, {size}, norm {delta['norm']:.6g}"
    settings = {key: value for key, value in (delta.get("settings") or {}).items() if key != "method"}
    yield f"  method    {delta.get('method') or 'unknown'}: {format_settings(settings)}"
    revision = f" at {delta['base_revision']}" if delta.get("base_revision") else ""
    yield f"  base      {delta.get('base_model') or 'unknown'}{revision}"
    yield f"  seed      {delta.get('seed')}"
    yield f"  sha256    {delta.get('sha256')}"
    yield f"  versions  {format_settings(delta.get('versions'))}"
    yield f"  tensors   {_some(delta['tensors'])}"


def read_curvature(file: Path) -> dict:
    """Its own `kind` is told as `curvature`."""
    facts = describe_curvature(file.parent)
    return {"curvature": facts.pop("kind"), **facts}


def tell_curvature(config: dict) -> Iterator[str]:
    yield f"curvature: {config['curvature']} of {len(config['targets'])} weights, {format_bytes(config['bytes'])}"
    yield f"  model     {config.get('model_class')}"
    fitted = f"{config.get('sequences')} sequences, {config.get('predicted_tokens')} predicted tokens"
    yield f"  fit       {config.get('fisher')} Fisher, seed {config.get('seed')}, {fitted}"
    yield f"  weights   {_some(config['targets'])}"


def read_mask_facts(file: Path) -> dict:
    """Sites with the numbers of the structures that are kept, and how many single elements of a weight are."""
    config, chosen, elements = read_mask(file.parent)
    sites = [{**site, "kept": chosen[key].nonzero()[:, 0].tolist()} for key, site in config["sites"].items()]
    told = {key: config[key] for key in ("sparsity", "share", "settings", "fingerprint")}
    return told | {"sites": sites, "elements": {name: int(one.sum()) for name, one in elements.items()}}


def tell_mask(mask: dict) -> Iterator[str]:
    kept = {
        kind: [len(site["kept"]) for site in mask["sites"] if site["kind"] == kind] for kind in ("heads", "filters")
    }
    all_of = {kind: sum(site["count"] for site in mask["sites"] if site["kind"] == kind) for kind in kept}
    told = " and ".join(f"{sum(counts)} of {all_of[kind]} {kind}" for kind, counts in kept.items() if counts)
    yield f"mask: {told} are kept, {mask['share']:.2%} of the model's parameters, sparsity {mask['sparsity']:.3g}"
    yield f"  chosen    {format_settings(mask['settings'])}"
    if mask["elements"]:
        yield f"  elements  {sum(mask['elements'].values())} single ones, of {len(mask['elements'])} weights"
    layers: dict[int, dict[str, str]] = {}
    for site in mask["sites"]:
        layers.setdefault(site["layer"], {})[site["kind"]] = f"{len(site['kept'])} of {site['count']}"
    kinds = [kind for kind, counts in kept.items() if counts]
    yield markdown_table(
        ["layer", *kinds], [[f"{n}", *(row.get(kind, "") for kind in kinds)] for n, row in layers.items()]
    )


def write_pictures(holds: list[dict], folder: Path) -> list[Path]:
    """The picture of a mask, for a light page and for a dark one.

    Raises:
        InputError: there is no mask.
    """
    masks = [one for one in holds if one["kind"] == "mask"]
    if not masks:
        raise InputError("--output is for the picture of a mask, and here is none: leave it out")
    from ..report.plots import mask_plot
    from ..report.styles import turn_dark

    figure, pictures = mask_plot(masks[0]["sites"]), []
    for name, change in (("mask.png", lambda figure: None), ("mask_dark.png", turn_dark)):
        change(figure)
        pictures.append(atomic_write(folder / name, figure.savefig))
    return pictures


def read_run(file: Path) -> dict:
    """What tells the run from others, and its checkpoints; of one that is not complete the run does not go on."""
    folders = sorted(file.parent.glob("checkpoint-*"))
    checkpoints = [{"name": path.name, "complete": (path / COMPLETE_FILE).is_file()} for path in folders]
    return {"identity": read_json(file, {}), "checkpoints": checkpoints}


def tell_run(run: dict) -> Iterator[str]:
    yield f"run: {format_settings(run['identity'])}"
    told = [f"{one['name']}{'' if one['complete'] else ' (not complete)'}" for one in run["checkpoints"]]
    yield f"  checkpoints  {', '.join(told) or 'none'}"


def read_requests(file: Path) -> dict:
    requests, damaged = read_log(file)
    if damaged:
        raise InputError(
            f"{damaged[0]}: remove the broken line"
            if len(damaged) == 1
            else f"{len(damaged)} lines of {file} cannot be read, the first is: {damaged[0]}"
        )
    return {"requests": requests}


def tell_requests(log: dict) -> Iterator[str]:
    yield f"log: {len(log['requests'])} requests"
    for request in log["requests"]:
        rows, settings = request.get("forget_rows"), format_settings(request.get("settings"))
        yield f"  {request.get('time')}  {request.get('method')}, {rows} rows: {settings}"


def read_report(file: Path) -> dict:
    report = read_json(file, {"candidates?": [{}]})
    told = {key: report.get(key) for key in ("title", "summary", "settings", "environment")}
    return told | {"candidates": len(report.get("candidates", []))}


def tell_report(report: dict) -> Iterator[str]:
    yield f"report: {report['title']} ({report['candidates']} candidates tried)"
    yield f"  {report['summary']}"


def read_results(file: Path) -> dict:
    rows = read_json(file)
    if not isinstance(rows, list) or not all(isinstance(row, dict) and "method" in row for row in rows):
        raise InputError(f"{file} does not hold a list of rows, each with a method: run the recipe again")
    return {"rows": rows}


def tell_results(results: dict) -> Iterator[str]:
    yield "results:"
    yield format_table(results["rows"])


DELTA = Kind("delta", describe_delta, tell_delta)
KINDS = {
    MASK_FILE: Kind("mask", read_mask_facts, tell_mask),
    CURVATURE_FILE: Kind("curvature", read_curvature, tell_curvature),
    RUN_FILE: Kind("run", read_run, tell_run),
    LOG_FILE: Kind("log", read_requests, tell_requests),
    "report.json": Kind("report", read_report, tell_report),
    "results.json": Kind("results", read_results, tell_results),
}
