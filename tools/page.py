"""Prepare the page that `dvc plots show` and `dvc plots diff` fill: one that needs no network."""

import argparse
import subprocess
from pathlib import Path

from vl_convert import javascript_bundle

from stages.support.atomic import write_bytes
from stages.support.errors import InputError, errors_as_messages

PAGE = Path(".dvc/plots/page.html")


def main() -> None:
    """Write the page's template with Vega in it, and name it to DVC, in this checkout alone."""
    template = Path(__file__).with_suffix(".html").read_text(encoding="utf-8")
    bundle = javascript_bundle()  # type: ignore[call-arg]  # its stub wants an argument
    page = template.replace("{vega}", bundle)
    # The path is relative to .dvc. DVC fails where the page is missing, so the setting must stay in
    # this checkout. The page comes last: if anything fails, it is missing or old, and make tries
    # again.
    where = str(PAGE.relative_to(".dvc"))
    command = ["dvc", "config", "--local", "plots.html_template", where]
    if subprocess.run(command, check=False).returncode:
        raise InputError(f"`{' '.join(command)}` failed; the lines above say why")
    write_bytes(PAGE, page.encode())


if __name__ == "__main__":
    argparse.ArgumentParser("python -m tools.page", description=__doc__).parse_args()
    with errors_as_messages():
        main()
