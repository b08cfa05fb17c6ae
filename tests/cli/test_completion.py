"""What the tab key gives in a shell: bash itself is asked, with the script that the command prints."""

import os
import subprocess
import sys

import pytest

from hf_jepa.cli import main


def completions(line: str, folder) -> list[str]:
    """As argcomplete's script asks for them."""
    answer = folder / "answer"
    environment = {
        **os.environ, "_ARGCOMPLETE": "1", "COMP_LINE": line, "COMP_POINT": str(len(line)), "COMP_TYPE": "9",
        "_ARGCOMPLETE_IFS": "\n", "_ARGCOMPLETE_SUPPRESS_SPACE": "1", "_ARGCOMPLETE_STDOUT_FILENAME": str(answer),
    }  # fmt: skip
    code = "import sys; from hf_jepa.cli import main; code = main(); assert 'torch' not in sys.modules; sys.exit(code)"
    subprocess.run([sys.executable, "-c", code], env=environment, cwd=folder, check=True, capture_output=True)
    return answer.read_text().splitlines()


def test_commands_flags_choices_and_recipes_are_completed(tmp_path):
    (tmp_path / "ijepa_mine.yaml").write_text("")
    assert {"info", "report", "train", "completion"} <= set(completions("hf-jepa ", tmp_path))
    assert {"--k", "--holdout"} <= set(completions("hf-jepa report model --", tmp_path))
    assert {"knn", "attentive"} <= set(completions("hf-jepa evaluate model --task ", tmp_path))
    found = set(completions("hf-jepa train ijepa_", tmp_path))
    assert {"ijepa_fashion_mnist", "ijepa_in1k_vith14", "ijepa_mine.yaml"} <= found
    assert all(name.startswith("ijepa_") for name in found)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_command_prints_a_script(shell, capsys):
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert "hf-jepa" in script
    assert ("complete --command hf-jepa" if shell == "fish" else "_python_argcomplete") in script


def test_bash_reads_the_script(capsys):
    main(["completion", "bash"])
    script = capsys.readouterr().out
    shown = subprocess.run(
        ["bash", "-c", f"{script}\ncomplete -p hf-jepa"], capture_output=True, text=True, check=True
    ).stdout
    assert "hf-jepa" in shown
