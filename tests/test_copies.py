"""The suite and the tools, run by a hook or by `git rebase --exec`: the user's repository is safe.

Git then exports variables such as GIT_DIR, and a git or dvc in a copy would obey them.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from stages.support.errors import InputError
from stages.support.git import environment_without_git_variables, git
from tests.conftest import CHECKOUT, Project
from tools import smoke
from tools.copies import commit_all, copy_checkout, plain_params

# A dvc that does at once the harm which the real one can do, in whichever repository git shows it,
# and then fails to run the pipeline.
DVC = """#!/bin/sh
git rev-parse --absolute-git-dir >> "$SEEN"
git config --local test.harm done && git add --all &&
git commit --quiet --allow-empty --message harm && test "$1" != repro
"""
# Whatever starts git or dvc in a copy.
TOOLS = """
import tempfile
from contextlib import suppress
from pathlib import Path
from bench.pipeline import make_repository
from stages.support.errors import InputError
from tools import smoke
with suppress(InputError):
    smoke.main()
with tempfile.TemporaryDirectory() as folder:
    make_repository(Path(folder), {})
"""


class Outer:
    """A user's repository of this checkout, with a linked worktree in which the user works."""

    def __init__(self, main: Path, linked: Path) -> None:
        self.main, self.linked = main, linked
        self.git("commit", "--quiet", "--allow-empty", "--message", "another")
        self.git("worktree", "add", "--quiet", "-b", "mine", str(self.linked))

    def git(self, *arguments: str, folder: Path | None = None) -> str:
        """Return what a git command prints."""
        command = ["git", *arguments]
        return subprocess.check_output(command, cwd=folder or self.main, text=True)

    def state(self) -> list[str]:
        """Return what a stray command could change."""
        everything = [(self.main / ".git/config").read_text(encoding="utf-8")]
        for folder in (self.main, self.linked):
            for command in ("for-each-ref", "log --all", "ls-files --stage", "status --porcelain"):
                everything.append(self.git(*command.split(), folder=folder))
        return everything


@pytest.fixture
def outer(new_project: Callable[[], Project], tmp_path: Path) -> Outer:
    """A user's repository."""
    return Outer(new_project().folder, tmp_path / "linked")


def test_a_project_is_a_repository_of_its_own(new_project: Callable[[], Project]) -> None:
    project = new_project()
    assert project.run("git", "rev-parse", "--show-toplevel").strip() == str(project.folder)
    assert len(project.run("git", "log", "--all", "--oneline").splitlines()) == 1
    assert project.run("git", "status", "--porcelain") == ""


def test_what_binds_git_to_a_repository_is_no_part_of_a_copys_environment(
    monkeypatch: pytest.MonkeyPatch, outer: Outer, tmp_path: Path
) -> None:
    before = outer.state()
    foreign = {
        "GIT_DIR": str(outer.main / ".git"),
        "GIT_WORK_TREE": str(outer.main),
        "GIT_INDEX_FILE": str(outer.main / ".git/index"),
    }
    with monkeypatch.context() as patch:
        for name, value in foreign.items():
            patch.setenv(name, value)
        assert environment_without_git_variables() == {
            k: v for k, v in os.environ.items() if k not in foreign
        }
        copy = tmp_path / "copy"
        copy.mkdir()
        copy_checkout(CHECKOUT, copy)
    assert (copy / ".git/HEAD").exists()
    assert (copy / "dvc.yaml").read_bytes() == (CHECKOUT / "dvc.yaml").read_bytes()
    assert outer.state() == before


@pytest.mark.slow
def test_a_hook_that_runs_the_suite_leaves_the_repository_alone(
    outer: Outer, tmp_path: Path
) -> None:
    remote, hook = tmp_path / "remote", outer.main / ".git/hooks/pre-push"
    outer.git("init", "--quiet", "--bare", str(remote))
    test = f"tests/test_copies.py::{test_a_project_is_a_repository_of_its_own.__name__}"
    pytest_here = f"'{sys.executable}' -m pytest -q -n 0 -p no:cacheprovider"
    hook.write_text(
        "#!/bin/sh\n"
        f"env > '{tmp_path}/exported'\n"
        f"exec {pytest_here} --basetemp='{tmp_path}/inner' {test} > '{tmp_path}/told' 2>&1\n",
        encoding="utf-8",
    )
    hook.chmod(0o755)
    before = outer.state()
    outer.git("push", "--quiet", str(remote), "mine", folder=outer.linked)
    assert "1 passed" in (tmp_path / "told").read_text(encoding="utf-8")
    assert f"GIT_DIR={outer.main}/.git/worktrees/linked" in (tmp_path / "exported").read_text()
    assert outer.state() == before


def test_smoke_takes_small_data_of_ones_own_from_a_relative_folder(
    inside: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with inside.params() as params:
        params["datasets"]["small"]["sources"] = ["my-digits", "~/digits", "npm:a@1"]
    (tmp_path / "python").write_text("#!/bin/sh\nexit 1\n", encoding="utf-8")
    (tmp_path / "python").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(smoke, "SIDE", 21)
    with pytest.raises(InputError, match=r"python -m tools\.page failed in "):
        smoke.main()
    (copy,) = tmp_path.glob("smoke-*")
    params = plain_params(copy)
    assert params["data"]["per_class"] == 4
    assert params["data"]["pad"] == 6  # 33 pixels, of which five poolings leave one
    here = str(inside.folder / "my-digits")
    assert params["datasets"]["small"]["sources"] == [here, "~/digits", "npm:a@1"]

    with inside.params() as params:
        params["data"]["per_class"] = "some"
    with pytest.raises(InputError, match=r"params\.yaml: data\.per_class: 'some': must be"):
        smoke.main()
    assert [*tmp_path.glob("smoke-*")] == [copy]


def test_a_copy_is_committed_without_the_users_hooks_and_signature(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "hooks").mkdir()
    (tmp_path / "hooks/pre-commit").write_text("#!/bin/sh\nexit 1\n", encoding="utf-8")
    (tmp_path / "hooks/pre-commit").chmod(0o755)
    settings = f"[commit]\n\tgpgsign = true\n[core]\n\thooksPath = {tmp_path}/hooks\n"
    (tmp_path / "gitconfig").write_text(settings, encoding="utf-8")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "gitconfig"))
    copy = tmp_path / "copy"
    copy.mkdir()
    copy_checkout(CHECKOUT, copy)
    commit_all(copy)
    assert git("-C", str(copy), "status", "--porcelain") == ""


def test_a_file_whose_name_is_no_utf_8_is_copied(tmp_path: Path) -> None:
    (tmp_path / "checkout").mkdir()
    subprocess.run(["git", "init", "--quiet"], cwd=tmp_path / "checkout", check=True)
    name = os.fsdecode(b"caf\xe9.png")
    (tmp_path / "checkout" / name).touch()
    (tmp_path / "copy").mkdir()
    copy_checkout(tmp_path / "checkout", tmp_path / "copy")
    assert (tmp_path / "copy" / name).exists()


@pytest.mark.slow
def test_a_rebase_that_runs_the_tools_leaves_the_repository_alone(
    outer: Outer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/dvc").write_text(DVC, encoding="utf-8")
    (tmp_path / "bin/dvc").chmod(0o755)
    (tmp_path / "all_tools.py").write_text(TOOLS, encoding="utf-8")
    monkeypatch.setenv("PATH", f"{tmp_path}/bin{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("SEEN", str(tmp_path / "seen"))
    (tmp_path / "copies").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "copies"))
    monkeypatch.setenv("PYTHONPATH", str(outer.linked))
    before = outer.state()
    command = f"'{sys.executable}' -B '{tmp_path}/all_tools.py'"
    outer.git("rebase", "--quiet", "--exec", command, "HEAD^", folder=outer.linked)
    seen = (tmp_path / "seen").read_text(encoding="utf-8").splitlines()
    assert len(seen) >= 2  # of smoke and of bench
    assert all(folder.startswith(str(tmp_path / "copies")) for folder in seen)
    assert outer.state() == before
