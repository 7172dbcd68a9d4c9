# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""`hf-unlearn push`: a saved folder as one commit, or the list of what would be sent."""

from ..runtime.cost import format_bytes
from ..runtime.hub import push_folder
from ..runtime.published import published_files
from .console import Result


def run_push(options) -> Result:
    """Push, or with `--dry_run` list the files and their sizes."""
    if not options.dry_run:
        url = push_folder(options.repo_id, options.folder, private=options.private)
        return Result(url, {"commit": url})
    sizes = {name: file.stat().st_size for name, file in published_files(options.folder).items()}
    lines = [f"{format_bytes(size):>10}  {name}" for name, size in sizes.items()]
    total = f"{format_bytes(sum(sizes.values())):>10}  {len(sizes)} files; nothing was pushed"
    return Result("\n".join([*lines, total]), {"files": sizes, "bytes": sum(sizes.values())})
