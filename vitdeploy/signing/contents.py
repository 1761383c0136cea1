"""What is in the folder of a bundle, and what a signature says of it."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from vitdeploy.bundle import SIGNATURE
from vitdeploy.signing.library import ALGORITHM, METHOD

# A name and a hash for each file of a bundle; nothing else grows with it.
LARGEST_SIGNATURE = 1 << 20  # bytes

_STATEMENT = "https://in-toto.io/Statement/v1"
_PREDICATE = "https://model_signing/signature/v1.0"


@dataclass(frozen=True)
class Contents:
    """Everything in a folder but the signature, by paths with forward slashes.

    files      regular files, hidden ones too
    unusual    what no signature covers, links above all, each with what it is
    """

    files: tuple[str, ...]
    unusual: Mapping[str, str]


@dataclass(frozen=True)
class Statement:
    """What a signature says, whoever made it.

    key     fingerprint of the public key that it names
    files   path to SHA-256, in hexadecimal
    alone   the signature once more, with nothing in it but what was read here, so that another reader finds the same
    """

    key: str
    files: Mapping[str, str]
    alone: bytes


def list_contents(folder: Path) -> Contents:
    """What is in `folder` and below it, links not followed; OSError where it cannot be read."""
    files: list[str] = []
    unusual: dict[str, str] = {}
    waiting = [folder]
    while waiting:
        with os.scandir(waiting.pop()) as entries:
            for entry in entries:
                name = Path(entry.path).relative_to(folder).as_posix()
                if entry.is_symlink():
                    unusual[name] = f"a symbolic link to {os.path.realpath(entry.path)}"
                elif not _is_text(name):
                    unusual[ascii(name)] = "a name that is no text"
                elif entry.is_dir() and name == SIGNATURE:
                    unusual[name] = "a folder"
                elif entry.is_dir():
                    waiting.append(Path(entry.path))
                elif entry.is_file():
                    files.append(name)
                else:
                    unusual[name] = "no file and no folder"
    return Contents(tuple(sorted(set(files) - {SIGNATURE})), unusual)


def read_statement(signature: bytes) -> Statement:
    """What a signature says; nothing of it is trusted before the signature is checked with a key.

    Raises ValueError, in words, for what is no signature of OpenSSF model signing, by a key, of whole files by SHA-256.
    """
    try:
        document = json.loads(signature)
        envelope, key = document["dsseEnvelope"], document["verificationMaterial"]["publicKey"]["hint"]
        (signed,) = envelope["signatures"]
        payload = json.loads(base64.b64decode(envelope["payload"], validate=True))
        how, resources = payload["predicate"]["serialization"], payload["predicate"]["resources"]
        kinds = (payload["_type"], payload["predicateType"], how["method"], how["hash_type"])
        named = [(one["name"], one["algorithm"], one["digest"]) for one in resources]
        alone = {
            "mediaType": document["mediaType"],
            "verificationMaterial": {"publicKey": {"hint": key}, "tlogEntries": []},
            "dsseEnvelope": {
                "payload": envelope["payload"],
                "payloadType": envelope["payloadType"],
                "signatures": [{"sig": signed["sig"], "keyid": ""}],
            },
        }
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise ValueError("it is not one of OpenSSF model signing by a key") from error
    if not all(isinstance(part, str) for part in (key, *(part for one in named for part in one))):
        raise ValueError("it is not one of OpenSSF model signing by a key")
    if kinds != (_STATEMENT, _PREDICATE, METHOD, ALGORITHM) or any(one[1] != ALGORITHM for one in named):
        raise ValueError(f"it is not one of whole files by {ALGORITHM}")
    files = {name: digest for name, _, digest in named}
    if len(files) != len(named):
        raise ValueError("it names a file twice")
    return Statement(key, files, json.dumps(alone).encode())


def _is_text(name: str) -> bool:
    """Whether a name can be written in a signature: on Linux a name is any bytes."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def first(names: Collection[str]) -> str:
    """The first of some names, and how many there are, in words."""
    ordered = sorted(names)
    return ordered[0] if len(ordered) == 1 else f"{ordered[0]} and {len(ordered) - 1} more"
