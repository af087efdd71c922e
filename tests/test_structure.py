"""What must agree between files: dvc.yaml and the imports, README and the metrics."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.conftest import CHECKOUT
from tools.smoke import read_params

DVC = yaml.safe_load((CHECKOUT / "dvc.yaml").read_text(encoding="utf-8"))


def modules(path: Path) -> set[Path]:
    """Return the module and all of this repository's that it imports, through others too."""
    found, waiting = set(), [path, CHECKOUT / "stages/__init__.py"]
    while waiting:
        module = waiting.pop()
        found.add(module)
        for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                names = [node.module or "", *(f"{node.module}.{name.name}" for name in node.names)]
            elif isinstance(node, ast.Import):
                names = [name.name for name in node.names]
            else:
                continue
            files = {CHECKOUT / f"{name.replace('.', '/')}.py" for name in names}
            waiting += [file for file in files if file.is_file() and file not in found]
    return found


@pytest.mark.parametrize("stage", DVC["stages"])
def test_a_stage_depends_on_exactly_the_modules_that_it_imports(stage: str) -> None:
    imported = {
        str(file.relative_to(CHECKOUT)) for file in modules(CHECKOUT / f"stages/{stage}.py")
    }
    listed = [name for name in DVC["stages"][stage]["deps"] if name.endswith(".py")]
    assert sorted(imported) == sorted(listed)


@pytest.mark.parametrize("stage", DVC["stages"])
def test_the_paths_of_a_command_are_its_dependencies_and_outputs(stage: str) -> None:
    entry = DVC["stages"][stage]
    named = {word for word in entry["cmd"].split() if "/" in word}
    listed = [item for kind in ("deps", "outs", "metrics", "plots") for item in entry.get(kind, [])]
    paths = [path for item in listed for path in ([item] if isinstance(item, str) else item)]
    assert named == {path for path in paths if not path.endswith(".py")}


@pytest.mark.parametrize("variant", read_params(CHECKOUT)["variants"])
def test_readme_shows_the_committed_metrics(variant: str) -> None:
    printed = subprocess.check_output(
        [sys.executable, "-m", "tools.table"], cwd=CHECKOUT, text=True
    )
    row = re.compile(rf"^\| {variant} \|(.*)\|[^|]*\|$", re.MULTILINE)  # all but the seconds
    expected, shown = row.search(printed), row.search((CHECKOUT / "README.md").read_text())
    assert expected is not None
    assert shown is not None and shown[1] == expected[1], "put into README what `make table` prints"
