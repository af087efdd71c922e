"""Commands that run while a test looks at what they print, and signals them."""

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import psutil  # type: ignore[import-untyped]  # DVC brings it
import pytest

from tests.conftest import Project


@dataclass
class Command:
    """A running command, alone in its process group, and what it has printed so far."""

    process: subprocess.Popen[str]
    output: str = ""

    def until(self, text: str) -> None:
        """Read until a line with the text; fail if the output ends without one."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.output += line
            if text in line:
                return
        pytest.fail(f"never printed {text!r}:\n{self.output}")

    def end(self) -> int:
        """Read until nobody can print any more, orphans included; return the exit code."""
        assert self.process.stdout is not None
        self.output += self.process.stdout.read()
        assert "Traceback" not in self.output, self.output
        return self.process.wait()

    def stopped(self) -> psutil.Process:
        """Return the stage's process once it has stopped itself, as a hook lets it."""
        while self.process.poll() is None:
            process = psutil.Process(self.process.pid)
            for one in (process, *process.children(recursive=True)):
                with suppress(psutil.NoSuchProcess):  # some end meanwhile
                    if one.status() == psutil.STATUS_STOPPED:
                        return one
            time.sleep(0.02)
        self.end()
        pytest.fail(f"ended instead of stopping:\n{self.output}")


@contextmanager
def started(project: Project, *command: str, **environment: str) -> Iterator[Command]:
    """Yield the command, started; nothing of it is left afterwards."""
    with subprocess.Popen(
        command,
        cwd=project.folder,
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            yield Command(process)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
