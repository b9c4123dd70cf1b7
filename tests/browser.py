"""Headless Chromium, driven through the DevTools protocol over a pipe: no driver and no package is needed."""

import base64
import fcntl
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
KEYS = {
    "Enter": (13, "\r"), "Tab": (9, ""), "Escape": (27, ""), "ArrowDown": (40, ""), "ArrowUp": (38, ""),
    "ArrowLeft": (37, ""), "ArrowRight": (39, ""), "Space": (32, " "),
}  # fmt: skip


def found() -> str | None:
    """Path of a browser, or None."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Page:
    """One tab. What it complained of and asked for is kept in `errors` and `requests`."""

    def __init__(self, write: int, read: int):
        self._write, self._read = write, os.fdopen(read, "rb")
        self._number, self._session = 0, None
        self.errors: list[str] = []
        self.allowed = ""
        """What a test provokes: a complaint that holds this text is not kept; "" keeps all."""
        self.requests: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network", "Accessibility", "DOM"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """A command and its result. Raises AssertionError with the browser's words where it refuses."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                assert "error" not in answer, f"{method}: {answer.get('error')}"
                return answer["result"]

    def _next(self) -> dict[str, Any]:
        parts = bytearray()
        while (byte := self._read.read(1)) != b"\0":
            assert byte, "the browser has gone"
            parts += byte
        message = json.loads(parts)
        params = message.get("params", {})
        match message.get("method"):
            case "Runtime.exceptionThrown":
                self._complain(
                    params["exceptionDetails"].get("exception", {}).get("description", "exception")
                )
            case "Log.entryAdded" if params["entry"]["level"] == "error":
                self._complain(f"{params['entry']['text']} {params['entry'].get('url', '')}")
            case "Network.requestWillBeSent":
                self.requests.append(params["request"]["url"])
        return message

    def _complain(self, words: str) -> None:
        if not self.allowed or self.allowed not in words:
            self.errors.append(words)

    def open(self, url: str) -> None:
        """Load it anew, also where only what stands after # differs."""
        self.call("Page.navigate", url="about:blank")
        self.call("Page.navigate", url=url)
        self.wait("document.readyState === 'complete'")

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression; a promise is awaited."""
        result = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in result, f"{script}: {result['exceptionDetails']}"
        return result["result"].get("value")

    def wait(self, condition: str, patience: float = 60) -> None:
        """Until the expression is true. Raises AssertionError with the page's text where it does not become so."""
        ends = time.monotonic() + patience
        while time.monotonic() < ends:
            if self.run(f"Boolean({condition})"):
                return
            time.sleep(0.02)
        raise AssertionError(f"never: {condition}; the page: {self.run('document.body.innerText')}")

    def press(self, *keys: str) -> None:
        """Keys by name ("Enter", "Shift+Tab"), as a person would press them."""
        for key in keys:
            *held, name = key.split("+")
            code, text = KEYS[name]
            event = {
                "key": " " if name == "Space" else name,
                "code": name,
                "windowsVirtualKeyCode": code,
                "modifiers": 8 if held else 0,
            }
            self.call("Input.dispatchKeyEvent", type="keyDown", **event, **({"text": text} if text else {}))
            self.call("Input.dispatchKeyEvent", type="keyUp", **event)

    def type(self, text: str) -> None:
        self.call("Input.insertText", text=text)

    def click(self, selector: str) -> None:
        """The mouse on the middle of the element; what lies over it gets the click, as with a person."""
        place = self.run(
            f"(() => {{ const node = document.querySelector({json.dumps(selector)});"
            " node.scrollIntoView({block: 'center', behavior: 'instant'});"
            " const box = node.getBoundingClientRect();"
            " return {x: box.x + box.width / 2, y: box.y + box.height / 2}; })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, button="left", clickCount=1, **place)

    def size(self, width: int, height: int) -> None:
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1,
            mobile=width < 600,
        )  # fmt: skip

    def prefer(self, **features: str) -> None:
        """Media features: prefer(**{"prefers-color-scheme": "dark"})."""
        listed = [{"name": name, "value": value} for name, value in features.items()]
        self.call("Emulation.setEmulatedMedia", features=listed)

    def offline(self, gone: bool) -> None:
        """Cut, or mend, the line to every server."""
        self.call(
            "Network.emulateNetworkConditions", offline=gone, latency=0, downloadThroughput=-1, uploadThroughput=-1
        )  # fmt: skip

    def choose_file(self, selector: str, path: Path) -> None:
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", nodeId=node, files=[str(path)])

    def picture(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))


@contextmanager
def browser(command: str) -> Iterator[Page]:
    """A page of a browser that is ended with the block."""
    # the browser reads from descriptor 3 and writes to 4: ours must not be these two
    away, incoming, outgoing, back = (
        fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10)
        for pair in (os.pipe(), os.pipe())
        for end in reversed(pair)
    )

    def connect() -> None:
        os.dup2(incoming, 3)
        os.dup2(outgoing, 4)

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        process = subprocess.Popen(
            [
                command, "--headless=new", "--remote-debugging-pipe", f"--user-data-dir={folder}", "--no-first-run",
                "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking",
                "--disable-component-update", "--hide-scrollbars", "about:blank",
            ],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, close_fds=False, preexec_fn=connect,
        )  # fmt: skip
        os.close(incoming)
        os.close(outgoing)
        try:
            yield Page(away, back)
        finally:
            process.kill()
            process.wait()
            os.close(away)
