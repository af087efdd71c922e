"""`make variants` makes the experiments, or says why it cannot; whose names are taken is told."""

import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from stages.support.errors import InputError
from stages.support.git import experiments, outdated
from tests.commands import started
from tests.conftest import Project
from tools import variants


def refusal() -> str:
    """Return why the tool refuses, which makes no experiment and changes nothing in git."""

    def state() -> str:
        commands = (["for-each-ref"], ["status", "--porcelain"])
        return "".join(subprocess.check_output(["git", *c], text=True) for c in commands)

    before = state()
    with pytest.raises(InputError) as caught:
        variants.main()
    assert state() == before
    return str(caught.value)


@pytest.mark.parametrize(
    ("command", "remedy"),
    [
        ("git branch sgd", "the branch sgd: rename it with `git branch --move sgd OTHER`"),
        ("git tag adam", "the tag adam: rename it with `git tag OTHER adam` and `git tag --delete"),
        ("git update-ref refs/remotes/origin/sgd HEAD", "the remote branch origin/sgd: rename the"),
        ("git update-ref refs/remotes/sgd HEAD", "the commit of that name (`git rev-parse sgd`)"),
    ],
)
def test_a_name_that_git_would_take_for_a_commit_is_refused(
    inside: Project, command: str, remedy: str
) -> None:
    inside.run(*command.split())
    assert remedy in refusal()


def test_a_shallow_clone_is_refused(
    finished: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clone = tmp_path / "shallow"
    finished.run("git", "clone", "--quiet", "--depth=1", finished.folder.as_uri(), str(clone))
    monkeypatch.chdir(clone)
    assert "`git fetch --unshallow`" in refusal()
    Project(clone).run("git", "fetch", "--quiet", "--unshallow")
    variants.require_a_usable_repository()


def test_what_is_not_ascii_is_named(
    inside: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = inside.folder / ".git/config"
    kept = config.read_bytes()
    inside.run("git", "config", "user.name", "Jürgen")
    assert "config, line " in refusal() and "name = Jürgen: DVC makes no experiment" in refusal()
    config.write_bytes(kept + b"[user]\n\tname = J\xfcrgen\n")  # Latin-1
    assert "DVC makes no experiment" in refusal()
    config.write_bytes(kept)
    inside.run("git", "clone", "--quiet", str(inside.folder), str(tmp_path / "Übung"))
    monkeypatch.chdir(tmp_path / "Übung")
    assert f"{tmp_path}/Übung: DVC makes no experiment" in refusal()


def test_a_folder_without_git_and_one_without_a_commit_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="is not a git repository"):
        variants.require_a_usable_repository()
    subprocess.run(["git", "init", "--quiet"], check=True)
    with pytest.raises(InputError, match="there is no commit yet"):
        variants.require_a_usable_repository()


@pytest.mark.parametrize(
    "work", ["merge", "rebase", "cherry-pick", "revert", "cherry-pick or revert"]
)
def test_a_merge_or_the_like_is_not_broken_off(inside: Project, work: str) -> None:
    def commit(text: str) -> None:
        Path("CHANGELOG.md").write_text(text, encoding="utf-8")
        inside.commit()

    inside.run("git", "switch", "--quiet", "--create", "other")
    commit("theirs\n")
    commit("theirs again\n")
    inside.run("git", "switch", "--quiet", "main")
    commit("ours\n")
    commit("ours again\n")
    commits = {"revert": ["HEAD^"], "cherry-pick or revert": ["other^", "other"]}
    inside.run("git", work.split()[0], *commits.get(work, ["other"]), fails=True)  # a conflict
    Path("CHANGELOG.md").write_text("both\n", encoding="utf-8")
    inside.run("git", "add", "CHANGELOG.md")
    if work == "cherry-pick or revert":  # It has more commits to take, and no CHERRY_PICK_HEAD.
        inside.run("git", "commit", "--quiet", "--message", "resolved")
    assert f"a {work} is under way" in refusal()


def test_a_bisection_is_not_broken_off(inside: Project) -> None:
    inside.run("git", "bisect", "start")
    assert "a bisection is under way" in refusal()


def test_new_parameters_are_not_shown_beside_old_numbers(inside: Project) -> None:
    with inside.params() as params:
        params["variants"]["sgd"]["lr"] = 0.5
    inside.commit()
    assert "`dvc repro` and `git commit` first" in refusal()


@pytest.mark.parametrize("staged", [False, True])
def test_results_that_are_not_committed_are_refused(inside: Project, staged: bool) -> None:
    with inside.params() as params:
        params["variants"]["sgd"]["lr"] = 0.5
    if staged:
        inside.run("git", "add", "params.yaml")
    assert "params.yaml: not as committed; `git commit --all` first" in refusal()


@pytest.mark.slow
def test_experiments_are_renewed_the_users_own_stay_and_a_name_may_look_like_a_number(
    inside: Project, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    summaries = Path("metrics/summary")
    (tmp_path / "sgd.json").write_text("{}", encoding="utf-8")  # other numbers
    inside.run("dvc", "exp", "run", "--temp", "--name", "sgd", "--set-param", "variant=sgd")
    remedy = re.search(
        r"the experiment sgd \(refs/exps/.+`(dvc exp rename refs.+) OTHER`", refusal()
    )
    assert remedy and outdated(["sgd"], tmp_path) == []  # It is the user's own.
    inside.run(*remedy[1].split(), "mine")
    variants.main()
    assert sorted(experiments().values()) == ["adam", "mine", "sgd"]
    assert outdated(["sgd", "adam"], summaries) == []
    assert outdated(["sgd"], tmp_path) == ["sgd"]
    (adam,) = (reference for reference, name in experiments().items() if name == "adam")
    inside.run("git", "update-ref", f"{adam.removesuffix('adam')}kept", adam)  # as if renamed

    with inside.params() as params:
        params["variants"]["1e3"] = params["variants"].pop("sgd")
        params["variants"]["adam"]["lr"] = 0.5
    output = inside.run("dvc", "repro")
    assert "`make variants` renews the experiments adam: their numbers are older" in output
    inside.commit()
    variants.main()
    assert sorted(experiments().values()) == ["1e3", "adam", "kept", "mine"]
    assert "removed the experiment sgd: params.yaml has no such" in capsys.readouterr().out
    assert "0.5" in inside.run("dvc", "params", "diff", "kept", "adam")
    assert "`make variants` renews" not in inside.run("dvc", "repro", "--force", "-s", "compare")


# As dvc does it: nothing to do in `repro --dry`; `exp run` brings the user's edits back at its end.
DVC = """#!/bin/sh
[ "$1" = repro ] && exit
trap 'sleep 0.5; touch brought-back; exit 1' INT
touch begun
while :; do sleep 0.05; done
"""


def test_interrupted_it_waits_until_dvc_has_brought_the_users_edits_back(inside: Project) -> None:
    folder = inside.folder.parent
    (folder / "dvc").write_text(DVC, encoding="utf-8")
    (folder / "dvc").chmod(0o755)
    command = ("python", "-m", "tools.variants")
    with started(inside, *command, PATH=f"{folder}:{os.environ['PATH']}") as running:
        while not Path("begun").exists():
            assert running.process.poll() is None, running.end()
            time.sleep(0.02)
        os.killpg(running.process.pid, signal.SIGINT)  # as Ctrl-C does
        running.end()
    assert Path("brought-back").exists()
    assert running.process.returncode == 130


def test_a_damaged_cache_has_a_remedy_that_works(inside: Project) -> None:
    weights, history = Path("models/adam/0.safetensors"), Path("metrics/history/adam/0.csv")
    before = inside.digests()
    for output in (weights, history):
        (lock,) = (
            out["md5"]
            for out in inside.lock()["stages"]["train@adam-0"]["outs"]
            if out["path"] == str(output)
        )
        cached = Path(".dvc/cache/files/md5", lock[:2], lock[2:])
        content = bytearray(cached.read_bytes())
        # In the weights, or in the first test accuracy, which nothing else would contradict.
        first = re.finditer(rb"\n1,[^,]+,[^,]+,\d\.", content)
        content[-3 if output == weights else next(first).end()] ^= 1
        cached.chmod(0o644)
        cached.write_bytes(content)
        output.unlink()
        output.write_bytes(content)  # as `dvc checkout` puts it there
        with pytest.raises(InputError, match="DVC's copy is damaged too: `rm ") as caught:
            inside.stage(*inside.command("evaluate@adam")[3:])
        command = str(caught.value).split("`")[1]
        subprocess.run(["bash", "-c", command], check=True)
        assert not cached.exists() and not output.exists()
    shutil.rmtree(".checkpoints")
    inside.repro()
    assert inside.digests() == before


def test_a_damaged_list_of_a_folder_has_a_remedy_that_works(inside: Project) -> None:
    (md5,) = (out["md5"] for out in inside.lock()["stages"]["subset"]["outs"])
    listed = Path(".dvc/cache/files/md5", md5[:2], md5[2:])
    listed.chmod(0o644)
    listed.write_text("[]", encoding="utf-8")
    shutil.rmtree("data/subset")
    with pytest.raises(InputError, match=r"DVC's copy is damaged too: `rm ") as caught:
        inside.stage(*inside.command("compare")[3:])
    subprocess.run(["bash", "-c", str(caught.value).split("`")[1]], check=True)
    before = inside.digests()
    assert "subset" in inside.repro()
    assert inside.digests().items() >= before.items()


def test_without_a_cache_a_missing_file_gets_one_line(finished: Project, tmp_path: Path) -> None:
    clone = finished.clone(tmp_path / "a clone")
    missing = r"data/raw/train-images-idx3-ubyte: No such file.*; `dvc repro` makes it"
    with pytest.raises(InputError, match=missing):
        clone.stage("subset", "data/raw", "data/subset")
