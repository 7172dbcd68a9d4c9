# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Put measured tables and pictures into README.md: `python benchmarks/update_readme.py` after `make demo` and `make bench`.

Reads outputs/demo/results.json and the files in benchmarks/results; writes between the markers of README.md and copies the
Pareto picture to docs/images/. Nothing in those places is typed by hand.
"""

import json
import re
import shutil
from pathlib import Path

from hf_unlearn.evaluation.report import format_table
from hf_unlearn.experiment import summarise


ROOT = Path(__file__).resolve().parents[1]


def fill(text: str, name: str, content: str) -> str:
    """`text` with what stands between the markers `name` replaced."""
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    if not pattern.search(text):
        raise SystemExit(f"README.md has no markers {begin} ... {end}")
    return pattern.sub(lambda _: f"{begin}\n{content}\n{end}", text)


def demo_section() -> str:
    rows = json.loads((ROOT / "outputs/demo/results.json").read_text())
    images = ROOT / "docs/images"
    images.mkdir(parents=True, exist_ok=True)
    shutil.copy(ROOT / "outputs/demo/pareto.png", images / "demo_pareto.png")
    return f"{summarise(rows)}\n\n![forget quality against what is kept](docs/images/demo_pareto.png)\n\n{format_table(rows)}"


def tofu_section(path: Path) -> str:
    record = json.loads(path.read_text())
    return f"`{record['command']}`\n\n{summarise(record['rows'])}\n\n{format_table(record['rows'])}"


def main():
    readme = ROOT / "README.md"
    text = fill(readme.read_text(), "demo", demo_section())
    results = ROOT / "benchmarks/results"
    if (tofu := results / "tofu_tiny.json").is_file():
        text = fill(text, "tofu", tofu_section(tofu))
    if (bench := results / "curvature.md").is_file():
        text = fill(text, "bench", bench.read_text().strip())
    readme.write_text(text)


if __name__ == "__main__":
    main()
