"""What NVIDIA's parser and compiler, and the rules of check, say of many small models, one process for all of them."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import onnx
import onnx_ir as ir

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from vitdeploy.platforms.boards import PLATFORMS, Platform
from vitdeploy.platforms.graph_rules import check_graph
from vitdeploy.platforms.report import BLOCKS
from vitdeploy.tensorrt.rtx import requirements
from vitdeploy.tensorrt.rtx.compiler import without_driver
from vitdeploy.tensorrt.rtx.worker import compile_file

OK, REFUSED, FAILED, CRASHED, TIMED_OUT = "ok", "refused", "failed", "crashed", "timed out"
NEWEST = PLATFORMS["tensorrt10"].newest
RULES = Platform("rules", NEWEST, NEWEST)
WHY = 160  # characters of a reason
TIME_LIMIT = 60  # seconds for one model


def ask(models: Sequence[bytes]) -> list[str]:
    """What the compiler makes of each model: OK, or how it ended and why.

    REFUSED is the parser's word and FAILED the compiler's; a model that ends the process CRASHED or TIMED_OUT.
    """
    return [verdict for verdict, _ in compiled(models)]


def compiled(models: Sequence[bytes]) -> list[tuple[str, list[str]]]:
    """What `ask` says of each model, and the names of the layers of its engine."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for index, data in enumerate(models):
            (folder / f"{index}.onnx").write_bytes(data)
        answers = folder / "answers"
        answers.touch()
        while (done := len(answers.read_text().splitlines())) < len(models):
            command = [sys.executable, __file__, str(folder), str(done), str(len(models))]
            ended = subprocess.run(command, capture_output=True, check=False)
            if len(answers.read_text().splitlines()) < len(models):
                slow = ended.returncode == -signal.SIGALRM
                verdict = f"{TIMED_OUT}: after {TIME_LIMIT} s" if slow else f"{CRASHED}: exit code {ended.returncode}"
                with answers.open("a") as file:
                    file.write(json.dumps([verdict, []]) + "\n")
        return [(verdict, layers) for verdict, layers in map(json.loads, answers.read_text().splitlines())]


def rules(data: bytes) -> str:
    """`ok`, or what the rules of `check` say against a model; their sources name the table that is made of this."""
    try:
        graph = ir.from_proto(onnx.shape_inference.infer_shapes(onnx.load_model_from_string(data)))
        findings = [finding for finding in check_graph(graph, RULES) if finding.level == BLOCKS]
    except Exception as error:
        return f"unreadable: {_line(str(error))}"
    # The file is about one operator; how new its opset is says nothing of it.
    findings = [finding for finding in findings if finding.where != "model"]
    return findings[0].what if findings else OK


def _answer(folder: Path, first: int, end: int) -> None:
    """Asks for the models from `first` on; one that crashes this process has no line."""
    with (folder / "answers").open("a", buffering=1) as answers:
        for index in range(first, end):
            log = io.StringIO()
            request = {"sm": [requirements.DEFAULT_SM], "shapes": {}, "engine": None}
            signal.alarm(TIME_LIMIT)
            answer = compile_file(folder / f"{index}.onnx", request, log)
            signal.alarm(0)
            if "unusable" in answer:
                raise SystemExit(answer["unusable"])
            said = [json.loads(line) for line in log.getvalue().splitlines()]
            errors = [text for severity, text in said if severity in ("ERROR", "INTERNAL_ERROR")]
            if not answer["parsed"]:
                first_error = (answer["errors"] or [{"code": "", "why": ""}])[0]
                why = first_error["why"] if first_error["why"] != "false" else "no importer"
                verdict = f"{REFUSED}: {_line(why)}"
            else:
                built = answer["plan_bytes"] is not None
                verdict = OK if built else f"{FAILED}: {_line(errors[-1] if errors else '')}"
            lines = [line for _, text in said for line in text.splitlines() if ", LayerType: " in line]
            layers = [line.partition(", LayerType: ")[0].removeprefix("Name: ") for line in lines]
            answers.write(json.dumps([verdict, layers]) + "\n")


def _line(text: str) -> str:
    line = " ".join(without_driver(text).split())
    return line if len(line) <= WHY else f"{line[: WHY - 1]}…"


if __name__ == "__main__":
    _answer(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
