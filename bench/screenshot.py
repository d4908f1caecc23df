"""Make docs/screenshot.svg: a real build of a real checkpoint in the terminal app, at 120x40.

usage: python bench/screenshot.py CHECKPOINT [--scheme Q4_K_M] [--out docs/screenshot.svg]

The app runs without a terminal in a home of its own; the checkpoint is linked into it, so the picture shows no path of
this machine.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import tempfile
import time
from pathlib import Path
from typing import Any


async def until(pilot: Any, condition: Any, seconds: float = 40.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            text = "\n".join(strip.text.rstrip() for strip in pilot.app.screen._compositor.render_strips())
            raise TimeoutError(f"the app did not get there:\n{text}")
        await pilot.pause(0.02)


async def picture(name: str, scheme: str, out: Path) -> None:
    """Take the checkpoint in hand, build one scheme to its end, start a second build and take the picture."""
    from phitui.actions.context import Context
    from phitui.tui.app import PhituiApp
    from phitui.tui.widgets.table import Table

    app = PhituiApp(Context())
    async with app.run_test(size=(120, 40)) as pilot:
        models = app.screen.query_one(Table)
        await until(pilot, lambda: any(row.key.endswith(f"/{name}") for row in models.rows) and app.devices)
        models.move_to(next(row.key for row in models.rows if row.key.endswith(f"/{name}")))
        await pilot.press("enter")
        await until(pilot, lambda: app.screen.NAME == "build" and len(app.screen.query_one(Table).rows) > 3)
        schemes = app.screen.query_one(Table)
        schemes.move_to(scheme)
        await until(pilot, lambda: scheme in app.screen._plans)
        await pilot.press("b")
        await until(pilot, lambda: any(job.live and job.progress.fraction > 0.4 for job in app.jobs))
        await pilot.pause(0.2)
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(app.export_screenshot(title="phitui"), encoding="utf-8")
        await until(pilot, lambda: not any(job.live for job in app.jobs))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--name", help="name to show; the directory's by default")
    parser.add_argument("--scheme", default="Q4_K_M")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent.parent / "docs" / "screenshot.svg")
    arguments = parser.parse_args()
    name = arguments.name or arguments.checkpoint.resolve().name
    with tempfile.TemporaryDirectory() as directory:
        home = Path(directory)
        os.environ.update(HOME=directory, PHITUI_HOME=str(home / ".phitui"))
        models = home / ".phitui" / "data" / "models"
        (models / name).mkdir(parents=True)
        for file in arguments.checkpoint.resolve().iterdir():
            (models / name / file.name).symlink_to(file)
        asyncio.run(picture(name, arguments.scheme, arguments.out.absolute()))


if __name__ == "__main__":
    main()
