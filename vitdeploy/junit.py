"""What a command judged as JUnit XML, the form that Jenkins, GitLab and GitHub's actions read.

It keeps to what the schemas of Jenkins (junit-10.xsd) and of the task of Ant have in common: one suite in `testsuites`,
counts that add up, times with three decimals, and no character that XML 1.0 does not have.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime, timezone
from typing import NamedTuple

_NO_CHARACTER = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


class Case(NamedTuple):
    """One gate of one thing that was judged.

    subject  what was judged, such as `lemevit-int8 on openvino`
    gate     what it had to pass, in words that stay the same from run to run
    failure  why it does not, in words; None where it does
    skipped  why it was not judged; None where it was
    error    why it could not be judged; None where it could
    """

    subject: str
    gate: str
    failure: str | None = None
    skipped: str | None = None
    error: str | None = None


def junit(command: str, cases: Sequence[Case], seconds: float, ended: datetime | None = None) -> str:
    """One run of a command as a document.

    Args:
        command: Its name, which becomes that of the suite.
        cases: What it judged.
        seconds: How long it took. The first case has it as its time, since everything is measured once, for all cases.
        ended: When; now by default.
    """
    import xml.etree.ElementTree as ElementTree

    counts = {
        "tests": len(cases),
        "failures": sum(case.failure is not None for case in cases),
        "errors": sum(case.error is not None for case in cases),
    }
    told = {"name": f"vitdeploy {command}", **{name: str(count) for name, count in counts.items()}}
    told["time"] = f"{seconds:.3f}"
    root = ElementTree.Element("testsuites", told)
    skipped = sum(case.skipped is not None for case in cases)
    when = (ended or datetime.now(timezone.utc)).strftime("%Y-%m-%dT%H:%M:%S")
    suite = ElementTree.SubElement(root, "testsuite", {**told, "skipped": str(skipped), "timestamp": when})
    for place, case in enumerate(cases):
        time = seconds if place == 0 else 0.0
        named = {"classname": _text(case.subject), "name": _text(case.gate), "time": f"{time:.3f}"}
        element = ElementTree.SubElement(suite, "testcase", named)
        for tag, kind, why in (
            ("skipped", None, case.skipped),
            ("error", "error", case.error),
            ("failure", "gate", case.failure),
        ):
            if why is not None:
                more = {} if kind is None else {"type": kind}
                found = ElementTree.SubElement(element, tag, {"message": _text(why).partition("\n")[0], **more})
                found.text = _text(why)
    ElementTree.indent(root)
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{ElementTree.tostring(root, encoding="unicode")}\n'


def _text(text: str) -> str:
    """With a sign in the place of what XML cannot hold: control characters, and halves of characters."""
    return _NO_CHARACTER.sub("\ufffd", text)
