"""A headless Chromium, driven through its DevTools protocol: what a page does when it is opened.

aiohttp, which fgkd needs anyway, speaks the protocol's websocket; so no driver is to be installed.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
import os
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--hide-scrollbars", "--remote-debugging-port=0", "about:blank"),
)
START_S, ANSWER_S = 60, 60  # generous: the machine may be busy, and a hang must still end


def find() -> str | None:
    """The path of a Chromium or Chrome, if there is one."""
    return next(filter(None, map(shutil.which, NAMES)), None)


@dataclass
class Seen:
    """What happened on a page: console messages and errors, requests made, a script's value."""

    messages: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    value: Any = None
    screenshot: bytes = b""


class Tab:
    """One tab: commands are numbered, and events are kept as they come."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.socket, self.numbers, self.events = socket, itertools.count(1), list[dict[str, Any]]()

    async def ask(self, method: str, **params: Any) -> dict[str, Any]:
        """The result of a command."""
        number = next(self.numbers)
        await self.socket.send_json({"id": number, "method": method, "params": params})
        while (message := await self.socket.receive_json(timeout=ANSWER_S)).get("id") != number:
            self.events.append(message)
        assert "error" not in message, (method, message)
        result: dict[str, Any] = message["result"]
        return result

    async def until(self, event: str) -> None:
        """Wait for an event that has not come yet."""
        while not any(seen["method"] == event for seen in self.events):
            self.events.append(await self.socket.receive_json(timeout=ANSWER_S))

    async def run(self, script: str) -> Any:
        """The JSON value of an expression, which may be a promise."""
        given = {"expression": script, "awaitPromise": True, "returnByValue": True}
        answer = await self.ask("Runtime.evaluate", **given)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")


@contextlib.asynccontextmanager
async def open_tab(program: str) -> AsyncIterator[Tab]:
    """A tab of a fresh browser with an empty profile."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        child = subprocess.Popen(
            [program, f"--user-data-dir={profile}", *FLAGS],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "HOME": profile, "TMPDIR": profile},
        )
        try:
            port = await _port(child, Path(profile) / "DevToolsActivePort")
            async with aiohttp.ClientSession() as session:
                async with session.get(f"http://127.0.0.1:{port}/json/list") as answer:
                    pages = [row for row in await answer.json() if row["type"] == "page"]
                address = pages[0]["webSocketDebuggerUrl"]
                async with session.ws_connect(address, max_msg_size=0) as socket:
                    yield Tab(socket)
        finally:
            child.terminate()
            child.wait(START_S)


async def _port(child: subprocess.Popen[bytes], path: Path) -> int:
    for _ in range(START_S * 20):
        assert child.poll() is None, f"the browser ended with {child.returncode}"
        if path.exists() and (lines := path.read_text().splitlines())[1:]:
            return int(lines[0])
        await asyncio.sleep(0.05)
    raise AssertionError("the browser did not open its DevTools port")


def visit(
    page: Path,
    *,
    script: str = "null",
    key: str = "",
    then: str = "",
    width: int = 1280,
    scheme: str = "light",
    screenshot: bool = False,
) -> Seen:
    """Open a file in a window of a width and colour scheme, run a script, and say what happened.

    key: press it afterwards, and run the script `then`. The value is that of the last script.
    """
    program = find()
    assert program

    async def whole() -> Seen:
        async with open_tab(program) as tab:
            await _show(tab, page, width, scheme)
            value = await tab.run(script)
            if key:
                for kind in ("rawKeyDown", "char", "keyUp"):
                    press = {"key": key, "code": key, "windowsVirtualKeyCode": 13, "text": "\r"}
                    await tab.ask("Input.dispatchKeyEvent", type=kind, **press)
                value = await tab.run(then)
            seen = _seen(tab.events, value)
            if screenshot:
                shot = await tab.ask("Page.captureScreenshot", captureBeyondViewport=True)
                seen.screenshot = base64.b64decode(shot["data"])
            return seen

    return asyncio.run(whole())


async def _show(tab: Tab, page: Path, width: int, scheme: str) -> None:
    """Load a file; events from here on are the page's."""
    for domain in ("Page", "Runtime", "Log", "Network"):
        await tab.ask(f"{domain}.enable")
    window = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    await tab.ask("Emulation.setDeviceMetricsOverride", **window)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    await tab.ask("Emulation.setEmulatedMedia", features=features)
    tab.events.clear()
    await tab.ask("Page.navigate", url=page.resolve().as_uri())
    await tab.until("Page.loadEventFired")


def _seen(events: list[dict[str, Any]], value: Any) -> Seen:
    """What the events say, in words."""
    seen = Seen(value=value)
    for event in events:
        said = event["params"]
        if event["method"] == "Network.requestWillBeSent":
            seen.requests.append(said["request"]["url"])
        if event["method"] in ("Runtime.consoleAPICalled", "Runtime.exceptionThrown"):
            seen.messages.append(str(said))
        if event["method"] == "Log.entryAdded":
            seen.messages.append(said["entry"]["text"])
    return seen
