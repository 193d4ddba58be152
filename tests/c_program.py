"""Exported C programs, compiled and run."""

import numpy as np

from filigree.export.c.compiler import compiled, compiler


def run_c(path, x):
    """The outputs of the program `m.c` on these rows, an array or a tensor, as float32 `(rows, outputs)`."""
    main = (
        '#include <stdio.h>\n#include "m.h"\nint main(void) { static float x[M_INPUTS], y[M_OUTPUTS];'
        "while (fread(x, sizeof x, 1, stdin) == 1) { m_predict(x, y); fwrite(y, sizeof y, 1, stdout); } return 0; }"
    )
    texts = [file.read_text() for file in (path, path.with_suffix(".h"))]
    with compiled(*texts, path.stem, compiler()) as program:
        outputs = program.run(main, np.ascontiguousarray(x, np.float32).tobytes())
    return np.frombuffer(outputs, np.float32).reshape(len(x), -1)
