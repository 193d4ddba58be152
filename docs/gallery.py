"""Write docs/gallery-model.html: what the program of gallery.md shows."""

import re
from pathlib import Path

DOCS = Path(__file__).parent
(program, *_) = re.findall(r"^```python\n(.*?)^```", (DOCS / "gallery.md").read_text(), flags=re.S | re.M)
names: dict = {}
exec(program, names)
(DOCS / "gallery-model.html").write_text(f"<div>\n{names['view']._repr_html_()}\n</div>\n")
