"""A headless Chromium, driven through its DevTools protocol over two pipes, with nothing but the standard library."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "chrome")
SECONDS = 60.0


def program() -> str | None:
    """The browser of this machine, or None."""
    return next((found for name in PROGRAMS if (found := shutil.which(name))), None)


class Page:
    """A page that is open; `events` are those of the protocol since it was opened."""

    def __init__(self, browser: Browser, session: str) -> None:
        self._browser, self._session = browser, session
        self.events: list[dict[str, Any]] = []

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        return self._browser.call(method, parameters, self)

    @property
    def session(self) -> str:
        return self._session

    def evaluate(self, expression: str) -> Any:
        """The value of an expression of JavaScript in the page."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def screenshot(self, path: Path) -> None:
        found = self.call("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(found["data"]))

    def complaints(self) -> list[str]:
        """What the console shows of warnings and errors."""
        logged = [one["params"]["entry"] for one in self.events if one["method"] == "Log.entryAdded"]
        said = [f"{one['level']}: {one['text']}" for one in logged]
        names = ("Runtime.consoleAPICalled", "Runtime.exceptionThrown")
        return said + [json.dumps(one["params"]) for one in self.events if one["method"] in names]

    def requests(self) -> list[str]:
        """The addresses that it asked for, without those that are data themselves."""
        asked = [one["params"]["request"]["url"] for one in self.events if one["method"] == "Network.requestWillBeSent"]
        return [address for address in asked if not address.startswith("data:")]


class Browser:
    """A browser that runs until the end of `with`; `folder` keeps its profile."""

    def __init__(self, folder: Path) -> None:
        executable = program()
        assert executable is not None
        orders, self._orders = os.pipe()
        self._answers, answers = os.pipe()
        # Out of the way of 3 and 4, which is where the browser looks for them.
        inside = [fcntl.fcntl(one, fcntl.F_DUPFD, 50) for one in (orders, answers)]

        def place() -> None:
            os.dup2(inside[0], 3)
            os.dup2(inside[1], 4)

        switches = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run")
        self._process = subprocess.Popen(
            [executable, *switches, "--remote-debugging-pipe", f"--user-data-dir={folder}", "about:blank"],
            preexec_fn=place,
            close_fds=False,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for one in (orders, answers, *inside):
            os.close(one)
        self._number, self._pages, self._rest = 0, {}, b""  # type: int, dict[str, Page], bytes

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._orders)
        os.close(self._answers)
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def open(self, path: Path, *, width: int, dark: bool = False) -> Page:
        """A file in a window of that width, after it has been loaded."""
        target = self.call("Target.createTarget", {"url": "about:blank"})["targetId"]
        session = self.call("Target.attachToTarget", {"targetId": target, "flatten": True})["sessionId"]
        page = self._pages[session] = Page(self, session)
        for domain in ("Page", "Log", "Runtime", "Network"):
            page.call(f"{domain}.enable")
        page.call("Emulation.setScrollbarsHidden", hidden=True)  # as on a phone; they take 15 pixels elsewhere
        page.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        page.call("Emulation.setEmulatedMedia", features=[scheme])
        page.call("Page.navigate", url=path.resolve().as_uri())
        end = time.monotonic() + SECONDS
        while not any(one["method"] == "Page.loadEventFired" for one in page.events):
            assert time.monotonic() < end, "the page was not loaded"
            self._take(end)
        page.call("Runtime.evaluate", expression="1")  # what is said until here is in `events`
        return page

    def call(self, method: str, parameters: dict[str, Any], page: Page | None = None) -> dict[str, Any]:
        self._number += 1
        order = {"id": self._number, "method": method, "params": parameters}
        if page is not None:
            order["sessionId"] = page.session
        os.write(self._orders, json.dumps(order).encode() + b"\0")
        end = time.monotonic() + SECONDS
        while True:
            answer = self._take(end)
            if answer.get("id") == self._number:
                assert "error" not in answer, answer["error"]
                result: dict[str, Any] = answer["result"]
                return result

    def _take(self, end: float) -> dict[str, Any]:
        """The next message; an event is kept with its page."""
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._answers], [], [], max(0.0, end - time.monotonic()))
            assert ready, "the browser does not answer"
            more = os.read(self._answers, 1 << 20)
            assert more, "the browser has ended"
            self._rest += more
        text, _, self._rest = self._rest.partition(b"\0")
        message: dict[str, Any] = json.loads(text)
        page = self._pages.get(message.get("sessionId", ""))
        if "method" in message and page is not None:
            page.events.append(message)
        return message
