"""The file of hosts: what it may say, and what is refused before any device is asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import examples
from vitdeploy.errors import UsageError, VitDeployError
from vitdeploy.hosts.inventory import FOLDER, TIMEOUT, Host, hosts_of, on_device, read_hosts


def written(folder: Path, text: str) -> Path:
    path = folder / "fleet.toml"
    path.write_text(text)
    return path


def test_a_host_has_its_own_keys_then_the_defaults_then_the_usual_ones(tmp_path: Path) -> None:
    text = """
        [defaults]
        user = "vit"
        timeout = 60
        key = "keys/all"
        [hosts.one]
        address = "192.168.7.31"
        [hosts.two]
        address = "two.local"
        port = 2222
        user = "root"
        vitdeploy = "env A=1 ~/venv/bin/vitdeploy"
        folder = "~/bundles"
        data = "/srv/photos"
        runtime = "ort"
    """
    path = written(tmp_path, text.replace("env A=1 ~", "~"))
    one, two = read_hosts(path)
    assert one == Host("one", "192.168.7.31", user="vit", key=tmp_path / "keys/all", timeout=60.0)
    assert (one.folder, one.vitdeploy, Host("x", "y").timeout) == (FOLDER, ("vitdeploy",), TIMEOUT)
    assert (two.user, two.vitdeploy, two.folder, two.data) == (
        "root",
        ("./venv/bin/vitdeploy",),
        "./bundles",
        "/srv/photos",
    )
    assert (one.place, two.place) == ("vit@192.168.7.31", "root@two.local:2222")
    assert read_hosts(path, ["two"]) == (two,)
    assert read_hosts(written(tmp_path, text))[1].vitdeploy == ("env", "A=1", "./venv/bin/vitdeploy")


@pytest.mark.parametrize(
    ("text", "what", "offer"),
    [
        ("[hosts]", "names no hosts", "[hosts.NAME]"),
        ("", "names no hosts", "[hosts.NAME]"),
        ("[hosts.a]\nadress = 'x'", "adress below [hosts.a]", "address"),
        ("[hosts.a]", "[hosts.a]", "address"),
        ("[host.a]\naddress = 'x'", "[host]", "leave it out"),
        ("hosts = 5", "cannot say hosts", "[hosts]"),
        ("[hosts]\na = 'x'", "[hosts.a]", "address"),
        ("[defaults]\naddress = 'x'\n[hosts.a]", "address in [defaults]", "[hosts.NAME]"),
        ("[hosts.a]\naddress = 'x'\n[hosts.b]\naddress = 'X'\nport = 22", "below [hosts.b]", "leave one of them out"),
        ("[hosts.a]\naddress = 'x'\n[hosts.A]\naddress = 'y'", "[hosts.A]", "another name"),
        ("[hosts.a]\naddress = 'x'\nport = 0", "port = 0", "another value"),
        ("[hosts.a]\naddress = 'x'\nport = true", "port below", "whole number"),
        ("[hosts.a]\naddress = 'x'\nport = '22'", "port below", "whole number"),
        ("[hosts.a]\naddress = 'x'\ntimeout = nan", "timeout = nan", "seconds"),
        ("[hosts.a]\naddress = 'x'\ntimeout = -1", "timeout = -1", "seconds"),
        ("[hosts.a]\naddress = '-oProxyCommand=x'", "address", "another value"),
        ("[hosts.a]\naddress = 'x y'", "address", "another value"),
        ('[hosts.a]\naddress = "x\\u0000"', "address", "another value"),
        ("[hosts.a]\naddress = ''", "address", "another value"),
        ("[hosts.a]\naddress = 'x'\nvitdeploy = \"'\"", "vitdeploy below", "venv/bin"),
        ("[hosts.a]\naddress = 'x'\nvitdeploy = ' '", "vitdeploy below", "venv/bin"),
        ("[hosts.'../a']\naddress = 'x'", "'../a'", "[hosts.nano-1]"),
        ("[hosts.a]\naddress = 'x'\nkey = '~nobody-of-this-name/k'", "key below", "the whole path"),
        ("[hosts.a", "is not TOML", "mend"),
    ],
)
def test_what_no_host_has_is_refused_with_what_it_may_be(text: str, what: str, offer: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        read_hosts(written(tmp_path, text))
    assert "fleet.toml" in caught.value.what
    assert what in str(caught.value)
    assert offer in (caught.value.fix or "")


def test_a_name_that_is_no_hosts_has_the_nearest_one(tmp_path: Path) -> None:
    path = written(tmp_path, "[hosts.nano-1]\naddress = 'x'")
    with pytest.raises(UsageError, match="nano1") as caught:
        read_hosts(path, ["nano1"])
    assert caught.value.fix == "--only nano-1"
    with pytest.raises(UsageError, match="no host is chosen"):
        read_hosts(path, [])


VALUES = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.lists(st.integers(), max_size=2)
KEYS = st.sampled_from(["address", "port", "user", "key", "vitdeploy", "folder", "timeout", "data", "runtime", "x"])
TABLES = st.dictionaries(KEYS, VALUES, max_size=4) | VALUES


@settings(max_examples=examples(100))
@given(st.dictionaries(st.sampled_from(["defaults", "hosts", "x"]), st.dictionaries(st.text(), TABLES) | TABLES))
def test_whatever_the_tables_hold_they_are_hosts_or_an_error_of_ours(tables: dict[str, Any]) -> None:
    try:
        hosts = hosts_of(tables, Path("fleet.toml"))
    except VitDeployError as error:
        refused = error
    else:
        assert all(host.address and host.timeout > 0 and host.vitdeploy for host in hosts)
        return
    assert refused.fix


@given(st.text(min_size=1))
def test_a_path_on_a_device_is_never_an_option(path: str) -> None:
    assert on_device(path)[0] in "/."
    assert on_device(on_device(path)) == on_device(path)
