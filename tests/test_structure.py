"""What must agree between files: dvc.yaml and the imports, links and pages, what git keeps."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.conftest import CHECKOUT, Project
from tools.copies import copy_checkout

DVC = yaml.safe_load((CHECKOUT / "dvc.yaml").read_text(encoding="utf-8"))
FOLDERS = ("", "reporting", "learning", "support")  # of stages/: each may import those after it
LEARNING = "stages/learning"  # which train and evaluate name whole
MODULES = sorted((CHECKOUT / "stages").glob("**/*.py"))


def imports(module: Path) -> set[Path]:
    """Return the modules of stages/ that a module imports by itself."""
    names = []
    for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: a relative import"
            names += [node.module or "", *(f"{node.module}.{name.name}" for name in node.names)]
        elif isinstance(node, ast.Import):
            names += [name.name for name in node.names]
    files = {CHECKOUT / f"{name.replace('.', '/')}.py" for name in names}
    return files & set(MODULES)


def folder_of(module: Path) -> str:
    """Return the folder of stages/ that a module is in; an empty text for a stage."""
    return module.relative_to(CHECKOUT / "stages").parent.as_posix().removeprefix(".")


def recorded(stage: Path) -> set[str]:
    """Return a stage's module and all of learning/ and reporting/ that it imports.

    What a module of support/ imports does not count: nothing there decides a number.
    """
    found: set[Path] = set()
    waiting = {stage}
    while waiting:
        found |= waiting
        waiting = {other for module in waiting for other in imports(module)} - found
        waiting = {module for module in waiting if folder_of(module) != "support"}
    return {module.relative_to(CHECKOUT).as_posix() for module in found}


@pytest.mark.parametrize("stage", DVC["stages"])
def test_a_stage_depends_on_exactly_the_code_that_it_imports(stage: str) -> None:
    listed = [name for name in DVC["stages"][stage]["deps"] if name.startswith("stages/")]
    imported = recorded(CHECKOUT / f"stages/{stage}.py")
    if stage in ("train", "evaluate"):
        assert {name for name in imported if name.startswith(LEARNING)}
        imported = {name for name in imported if not name.startswith(LEARNING)} | {LEARNING}
    assert sorted(listed) == sorted(imported)


@pytest.mark.parametrize("module", MODULES, ids=lambda path: path.relative_to(CHECKOUT).as_posix())
def test_imports_run_one_way(module: Path) -> None:
    if module.name == "__main__.py":  # which imports a stage by the name on the command line
        assert {folder_of(other) for other in imports(module)} == {"support"}
        return
    own = FOLDERS.index(folder_of(module))
    for other in imports(module):
        # Nothing imports a stage, not even another stage.
        assert FOLDERS.index(folder_of(other)) >= max(own, 1), (
            f"imports {other.relative_to(CHECKOUT)}"
        )


def test_no_module_imports_itself_through_others() -> None:
    left = {module: imports(module) for module in MODULES}
    while free := {module for module, needs in left.items() if not needs & left.keys()}:
        left = {module: needs for module, needs in left.items() if module not in free}
    assert not left


def test_a_folder_begins_with_its_description_and_nothing_else() -> None:
    inits = {module for module in MODULES if module.name == "__init__.py"}
    assert {folder_of(module) for module in inits} == set(FOLDERS)
    for module in inits:
        (only,) = ast.parse(module.read_text(encoding="utf-8")).body
        assert isinstance(only, ast.Expr)
        assert isinstance(only.value, ast.Constant) and isinstance(only.value.value, str)


def test_nothing_happens_at_import(tmp_path: Path) -> None:
    names = [
        module.relative_to(CHECKOUT).with_suffix("").as_posix().replace("/", ".")
        for module in MODULES
    ]
    look = (
        f"import sys; sys.path.insert(0, {str(CHECKOUT)!r})\n"
        "import os, signal, sys, warnings; warnings.simplefilter('ignore')\n"
        "from importlib import import_module\n"
        "import torch, matplotlib.figure, scipy.stats, ruamel.yaml\n"  # what others do is theirs
        "def state():\n"
        "    handlers = [signal.getsignal(number) for number in signal.valid_signals()]\n"
        "    switches = torch.are_deterministic_algorithms_enabled(), torch.get_num_threads()\n"
        "    return handlers, switches, dict(os.environ), sys.stdout, sys.stderr, os.getcwd()\n"
        "before = state()\n"
        "for name in sys.argv[1:]: import_module(name)\n"
        "assert state() == before\n"
        "assert 'torchvision' not in sys.modules, 'takes 5 s and 1 GB'\n"
    )
    done = subprocess.run(
        [sys.executable, "-B", "-c", look, *names],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert (done.stdout, done.returncode) == ("", 0)
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("stage", DVC["stages"])
def test_the_paths_of_a_command_are_its_dependencies_and_outputs(stage: str) -> None:
    entry = DVC["stages"][stage]
    assert entry["cmd"].split()[:4] == ["python", "-m", "stages", stage]
    named = [word for word in entry["cmd"].split() if "/" in word]
    listed = [item for kind in ("deps", "outs", "metrics", "plots") for item in entry.get(kind, [])]
    paths = [path for item in listed for path in ([item] if isinstance(item, str) else item)]
    assert sorted(named) == sorted(path for path in paths if not path.startswith("stages/"))


def ignored(folder: Path, *names: str) -> set[str]:
    """Return which of the names git would ignore in the folder, if it did not track them."""
    command = ["git", "check-ignore", "--no-index", *names]
    done = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, text=True, check=False)
    return set(done.stdout.splitlines())


def test_results_are_ignored_also_where_a_link_leads_to_them(tmp_path: Path) -> None:
    (tmp_path / "copy").mkdir()
    copy_checkout(CHECKOUT, tmp_path / "copy")
    folders = ["data/raw", "data/subset", "models/adam", "metrics/history", "metrics/timing"]
    folders += [".checkpoints", ".locks", ".snakemake", ".venv", "dvc_plots"]
    results = [f"{folder}/file" for folder in folders]
    assert ignored(tmp_path / "copy", *results) == set(results)

    linked = tmp_path / "linked"
    linked.mkdir()
    subprocess.run(["git", "init", "--quiet"], cwd=linked, check=True)
    (linked / ".gitignore").write_bytes((CHECKOUT / ".gitignore").read_bytes())
    links = ("data", "models", "metrics/history", "metrics/timing", ".checkpoints", ".venv")
    for name in links:
        (linked / name).parent.mkdir(exist_ok=True)
        (linked / name).symlink_to(tmp_path)
    assert ignored(linked, *links) == set(links)


def test_results_for_git_are_not_ignored() -> None:
    results = ["summary/adam.json", "uncertainty/adam.json", "curves/adam.csv", "selected.yaml"]
    results += ["confusion/adam.csv", "figures/modes.png", "curves.csv", "selected.json"]
    assert ignored(CHECKOUT, *(f"metrics/{name}" for name in results)) == set()


def test_a_checkout_with_other_ends_of_lines_has_the_same_bytes(
    finished: Project, tmp_path: Path
) -> None:
    clone = ["git", "-c", "core.autocrlf=true", "clone", "--quiet", str(finished.folder), "."]
    subprocess.run(clone, cwd=tmp_path, check=True)
    names = ("stages/train.py", "params.yaml", "metrics/curves.csv", "metrics/figures/modes.png")
    for name in names:
        assert (tmp_path / name).read_bytes() == (finished.folder / name).read_bytes(), name


def test_data_and_models_are_there_in_a_fresh_clone() -> None:
    # Forced into git: .gitignore names both folders, so that it also matches links of these names.
    tracked = subprocess.check_output(
        ["git", "ls-files", "data", "models"], cwd=CHECKOUT, text=True
    )
    assert tracked.split() == ["data/.gitignore", "models/.gitignore"]


def anchors(page: Path) -> set[str]:
    """Return what a link may name after a # in a page, as GitHub makes it from the headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize(
    "page", [*CHECKOUT.glob("*.md"), *CHECKOUT.glob("docs/*.md")], ids=lambda path: path.name
)
def test_every_link_of_a_page_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", page.read_text(encoding="utf-8")):
        name, _, anchor = target.partition("#")
        linked = page.parent / name if name else page
        assert linked.exists(), target
        assert not anchor or anchor in anchors(linked), target
