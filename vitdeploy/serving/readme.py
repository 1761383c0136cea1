"""The README.md beside the files: how to start, what each file is, and what is not as the bundle does it."""

from __future__ import annotations

from collections.abc import Iterable

from vitdeploy.serving.content import Content, Request, one_line
from vitdeploy.serving.wording import client_steps

README = "README.md"


def readme(request: Request, content: Content, title: str) -> str:
    """The page; the same for the same bundle and options."""
    manifest = request.manifest
    name = one_line(manifest.model.name)
    parts = [
        f"# {name} for {title}",
        f"Written by vitdeploy from a bundle of {name} in {manifest.precision.upper()} for "
        f"{manifest.target}. Its manifest has the SHA-256 `{request.bundle.manifest_sha256}`.",
        "## Start",
        "```sh\n" + "\n".join(content.start) + "\n```",
        *content.told,
        "## Files",
        "| file | what it is |\n| --- | --- |\n"
        + "\n".join(f"| `{path}` | {file.about} |" for path, file in sorted(content.files.items())),
    ]
    steps = client_steps(manifest) if content.client else []
    if steps:
        parts += ["## What has to be done to an image", _numbered(steps)]
    if content.baked:
        parts += ["## What was built into the model", _listed(content.baked)]
    parts.append("## What differs from the bundle")
    parts.append(_listed(content.differs) if content.differs else "Nothing: the model is the bundle's, byte by byte.")
    return "\n\n".join(parts) + "\n"


def _listed(sentences: Iterable[str]) -> str:
    return "\n".join(f"- {one}" for one in sentences)


def _numbered(sentences: Iterable[str]) -> str:
    return "\n".join(f"{number}. {one}" for number, one in enumerate(sentences, 1))
