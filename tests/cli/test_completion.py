"""`vitdeploy completion`: scripts that the shells take, and what they offer."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from vitdeploy.cli import COMMANDS, main
from vitdeploy.cli.completion import SHELLS
from vitdeploy.cli.parser import name_of

pytest.importorskip("shtab")
BASH = shutil.which("bash")


def script(shell: str, capsys: pytest.CaptureFixture[str]) -> str:
    """What the command prints for a shell."""
    assert main(["completion", shell]) == 0
    return capsys.readouterr().out


def offers(text: str, words: list[str], folder: Path) -> set[str]:
    """What bash offers for the last of `words`."""
    line = f"""
{text}
COMP_WORDS=({" ".join(f"'{word}'" for word in words)})
COMP_CWORD={len(words) - 1}
COMP_LINE="${{COMP_WORDS[*]}}"
COMP_POINT=${{#COMP_LINE}}
function="$(complete -p vitdeploy | sed 's/.*-F \\([^ ]*\\) .*/\\1/')"
$function vitdeploy "${{COMP_WORDS[COMP_CWORD]}}" "${{COMP_WORDS[COMP_CWORD-1]}}"
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
    assert BASH is not None
    done = subprocess.run([BASH, "-c", line], cwd=folder, capture_output=True, text=True, check=True)
    return {word.strip() for word in done.stdout.splitlines()}


@pytest.mark.skipif(BASH is None, reason="bash is not installed")
@pytest.mark.parametrize(
    ("words", "expected", "absent"),
    [
        (["vitdeploy", "ex"], {"export"}, {"verify"}),
        (["vitdeploy", "export", "lemevit_ti"], {"lemevit_tiny", "lemevit_tiny.eurosat"}, {"dualvit_s"}),
        (["vitdeploy", "export", "my_"], {"my_model.py"}, {"lemevit_tiny"}),
        (["vitdeploy", "export", "lemevit_tiny", "--fp"], {"--fp16"}, {"--int8"}),
        (["vitdeploy", "export", "lemevit_tiny", "--target", "tensorrt1"], {"tensorrt10", "tensorrt11"}, {"portable"}),
        (["vitdeploy", "check", "b", "--target", "jetson-orin-nano-jp"], {"jetson-orin-nano-jp6"}, {"tensorrt10"}),
        (["vitdeploy", "verify", "b", "--runtime", "o"], {"onnxruntime", "openvino"}, {"tensorrt"}),
        (["vitdeploy", "help", "ver"], {"verify"}, {"export"}),
        (["vitdeploy", "verify", "my"], {"my_model.py"}, {"lemevit_tiny"}),
    ],
)
def test_bash_offers_commands_options_names_and_paths(
    words: list[str], expected: set[str], absent: set[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "my_model.py").touch()
    found = offers(script("bash", capsys), words, tmp_path)
    assert expected <= found
    assert not absent & found


@pytest.mark.parametrize("shell", SHELLS)
def test_every_shell_gets_every_command(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = script(shell, capsys)
    assert all(name_of(module) in text for module in COMMANDS)
    program = shutil.which({"powershell": "pwsh"}.get(shell, shell))
    if program is not None and shell in ("bash", "zsh", "fish"):
        done = subprocess.run([program, "-n"], input=text, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")


def test_without_the_library_the_error_says_what_to_install(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert main(["completion", "bash"]) == 2
    assert "pip install 'vitdeploy[completion]'" in capsys.readouterr().err
