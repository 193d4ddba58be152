"""Pages in a real browser: Chromium without a window."""

import json
import re
import shutil
import subprocess

import pytest

WATCH = "<script>const seen = []; addEventListener('error', e => seen.push(e.message));</script>"
TELL = """<script>addEventListener('load', () => setTimeout(() => {
    document.querySelectorAll('details').forEach(d => { d.open = true; draw(d) });
    const own = ACTION;
    document.title = JSON.stringify({errors: seen, places: document.querySelectorAll('figure').length,
        drawn: document.querySelectorAll('.js-plotly-plot').length, needs: document.documentElement.scrollWidth,
        has: innerWidth, own}) }, 500))</script>"""


def browse(page, folder, width, action="null"):
    """Open a page, all details too: no errors, no sideways scrolling. `action` is JavaScript whose value is `own`."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium on this machine")
    inner = page.with_name("inner.html")
    text = page.read_text().replace("<head>", "<head>" + WATCH, 1)
    inner.write_text(text.replace("</body>", TELL.replace("ACTION", action) + "</body>"))
    outer = page.with_name("outer.html")  # a frame, since windows have a least width
    outer.write_text(
        f'<iframe src="inner.html" width={width} height=3000></iframe><script>setInterval(() => document.title = '
        "document.querySelector('iframe').contentDocument.title, 100)</script>"
    )
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
             "--disable-background-networking", "--disable-component-update", "--allow-file-access-from-files",
             f"--user-data-dir={folder / 'profile'}", "--virtual-time-budget=10000", "--dump-dom"]  # fmt: skip
    done = subprocess.run([browser, *flags, outer.as_uri()], capture_output=True, text=True, timeout=120)
    found = json.loads(re.search(r"<title>(\{.*?\})</title>", done.stdout).group(1).replace("&quot;", '"'))
    assert found["errors"] == []
    assert found["has"] <= width
    assert found["needs"] <= found["has"]
    assert "Uncaught" not in done.stderr
    return found
