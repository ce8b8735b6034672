#!/usr/bin/python3
"""A look at a page with a real browser: Chromium, driven over its DevTools pipe. Prints one JSON object.

    browser.py URL WIDTH light|dark PICTURE

Loads the page, waits until it has shown something, and tells: what the console, the network and the security policy
complained of, requests to other hosts, bytes, the first paint, texts with too little contrast, elements that the Tab key
reaches and whether each shows its focus, and whether anything is wider than the page. PICTURE is a PNG of all of it.
"""
import base64, json, os, select, shutil, signal, subprocess, sys, tempfile, time

BOUND = 60
FLAGS = """--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking
--disable-component-update --disable-sync --disable-dev-shm-usage --hide-scrollbars --remote-debugging-pipe""".split()


class Browser:
    def __init__(self, folder):
        to_browser, ours = os.pipe()
        theirs, from_browser = os.pipe()
        # Chromium reads from descriptor 3 and writes to 4.
        command = ["/bin/bash", "-c", f'exec /usr/bin/chromium "$@" 3<&{to_browser} 4>&{from_browser}',
                   "chromium", *FLAGS, f"--user-data-dir={folder}", "about:blank"]
        self.process = subprocess.Popen(command, pass_fds=(to_browser, from_browser), stdin=subprocess.DEVNULL,
                                        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
        os.close(to_browser)
        os.close(from_browser)
        self.write, self.read = ours, theirs
        self.number, self.rest, self.events, self.session = 0, b"", [], None

    def receive(self, until):
        while b"\0" not in self.rest:
            left = until - time.monotonic()
            if left <= 0 or not select.select([self.read], [], [], left)[0]:
                raise TimeoutError("the browser did not answer in time")
            more = os.read(self.read, 1 << 16)
            if not more:
                raise EOFError("the browser has ended")
            self.rest += more
        message, self.rest = self.rest.split(b"\0", 1)
        return json.loads(message)

    def call(self, method, **params):
        self.number += 1
        message = {"id": self.number, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.write, json.dumps(message).encode() + b"\0")
        until = time.monotonic() + BOUND
        while True:
            answer = self.receive(until)
            if answer.get("id") == self.number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]
            self.events.append(answer)

    def evaluate(self, script):
        result = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in result:
            raise RuntimeError(result["exceptionDetails"])
        return result["result"].get("value")

    def wait(self, what, script):
        until = time.monotonic() + BOUND
        while not self.evaluate(script):
            if time.monotonic() > until:
                raise TimeoutError(f"waited in vain: {what}")
            time.sleep(0.1)

    def end(self):
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()



# Of each text that can be seen: the contrast of its colour and the first ground behind it (WCAG 2.1, 1.4.3).
CONTRAST = r"""(() => {
  const parse = (text) => (text.match(/[\d.]+/g) || [0, 0, 0, 0]).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((v) => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, at) => sum + v * [0.2126, 0.7152, 0.0722][at], 0);
  const ground = (element) => {
    for (; element; element = element.parentElement) {
      const colour = parse(getComputedStyle(element).backgroundColor);
      if (colour.length < 4 || colour[3] > 0.99) return colour;
    }
    return [255, 255, 255];
  };
  const bad = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const text = walker.currentNode.textContent.trim(), element = walker.currentNode.parentElement;
    if (!text || ["SCRIPT", "STYLE", "TITLE", "title", "NOSCRIPT"].includes(element.tagName) || !element.getClientRects().length) continue;
    const style = getComputedStyle(element);
    const [one, other] = [light(parse(element.namespaceURI.endsWith("svg") ? style.fill : style.color)), light(ground(element))];
    const ratio = (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
    const large = parseFloat(style.fontSize) >= 24 || (parseFloat(style.fontSize) >= 18.66 && style.fontWeight >= 700);
    if (ratio < (large ? 3 : 4.5)) bad.push([text.slice(0, 40), Math.round(ratio * 100) / 100]);
  }
  return bad;
})()"""

FOCUSED = """(() => {
  const element = document.activeElement;
  if (!element || element === document.body) return null;
  const style = getComputedStyle(element), box = element.getBoundingClientRect();
  const name = element.getAttribute("aria-label") || element.textContent.trim().slice(0, 40);
  return { tag: element.tagName, id: element.id, name, shown: style.outlineStyle !== "none" && parseFloat(style.outlineWidth) > 0,
           top: Math.round(box.top + scrollY), left: Math.round(box.left) };
})()"""

WIDE = "document.documentElement.scrollWidth - document.documentElement.clientWidth"


def look(browser, url, width, scheme, picture):
    target = browser.call("Target.createTarget", url="about:blank")["targetId"]
    browser.session = browser.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
    for domain in ["Page", "Runtime", "Network", "Log"]:
        browser.call(domain + ".enable")
    browser.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 500)
    browser.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    browser.call("Page.navigate", url=url)
    # The first load starts parts of the browser, too.
    browser.wait("the page has shown something", "document.documentElement?.dataset.shown === 'yes'")
    browser.call("Page.reload")
    time.sleep(0.3)
    browser.wait("the page has shown something again", "document.documentElement?.dataset.shown === 'yes'")
    # A second look of the page's own, so that what it fetches afterwards is there too.
    time.sleep(3)
    paint = browser.evaluate("Math.round((performance.getEntriesByType('paint').find((one) => one.name === 'first-contentful-paint') || {}).startTime)")
    contrast, wide = browser.evaluate(CONTRAST), browser.evaluate(WIDE)
    text = browser.evaluate("document.body.innerText")
    height = min(6000, browser.evaluate("Math.ceil(document.documentElement.scrollHeight)"))
    clip = {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}
    image = browser.call("Page.captureScreenshot", format="png", clip=clip, captureBeyondViewport=True)
    with open(picture, "wb") as file:
        file.write(base64.b64decode(image["data"]))
    focused = []
    for _ in range(60):
        for kind in ["rawKeyDown", "keyUp"]:
            browser.call("Input.dispatchKeyEvent", type=kind, key="Tab", code="Tab", windowsVirtualKeyCode=9)
        now = browser.evaluate(FOCUSED)
        if now is None or now in focused:
            break
        focused.append(now)
    return {"first_paint_ms": paint, "contrast": contrast, "wide": wide, "text": text, "focused": focused, **told(browser, url)}


def told(browser, url):
    complaints, requests, size, failed = [], [], 0, []
    for event in browser.events:
        method, params = event.get("method"), event.get("params", {})
        if method == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning", "assert"):
            complaints.append([one.get("value") or one.get("description") for one in params["args"]])
        elif method == "Runtime.exceptionThrown":
            complaints.append(params["exceptionDetails"].get("exception", {}).get("description"))
        elif method == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            complaints.append(params["entry"]["text"] + " " + params["entry"].get("url", ""))
        elif method == "Network.requestWillBeSent":
            requests.append(params["request"]["url"])
        elif method == "Network.loadingFinished":
            size += params["encodedDataLength"]
        elif method == "Network.loadingFailed":
            failed.append(params.get("errorText"))
    own = url.rstrip("/")
    elsewhere = [one for one in requests if not one.startswith((own, "data:"))]
    return {"complaints": complaints, "elsewhere": elsewhere, "requests": requests, "failed": failed, "bytes": size}


def main():
    url, width, scheme, picture = sys.argv[1:]
    folder = tempfile.mkdtemp(prefix="pga-browser-")
    browser = Browser(folder)
    try:
        print(json.dumps(look(browser, url, int(width), scheme, picture)))
    finally:
        browser.end()
        shutil.rmtree(folder, ignore_errors=True)


main()
