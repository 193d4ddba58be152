"""Write the files that make of a C program a module of MicroPython: `import digits; digits.predict(x)`."""

from __future__ import annotations

import functools
import string
from collections.abc import Sequence

from filigree.export.device.emulator import function_of, template

_MAKE = """# Written by filigree. make USER_C_MODULES=the folder above this one
SRC_USERMOD_C += $$(USERMOD_DIR)/module.c
SRC_USERMOD_LIB_C += $$(USERMOD_DIR)/network.c
"""

_CMAKE = """# Written by filigree. -DUSER_C_MODULES=the path of this file
add_library(usermod_$prefix INTERFACE)
target_sources(usermod_$prefix INTERFACE "$${CMAKE_CURRENT_LIST_DIR}/module.c" "$${CMAKE_CURRENT_LIST_DIR}/network.c")
target_include_directories(usermod_$prefix INTERFACE "$${CMAKE_CURRENT_LIST_DIR}")
target_link_libraries(usermod INTERFACE usermod_$prefix)
"""

# The name of the program's file stands here alone: make cannot read all of those that C can.
_NETWORK = '/* Written by filigree. */\n#include "../$name.c"\n'

_MOMENTS = "    {MP_ROM_QSTR(MP_QSTR_MOMENTS), MP_ROM_INT(${macro}_MOMENTS)},"

_NUMBERS = {"float": ["floats"], "int8_t": ["floats if any", "bytes"]}  # pieces that read them
_GIVE = {"float": "mp_obj_new_float((mp_float_t)numbers[i])", "int8_t": "MP_OBJ_NEW_SMALL_INT(numbers[i])"}


def micropython_files(words: dict[str, str], declarations: Sequence[str]) -> dict[str, str]:
    """Write the texts of the files, by their names in the folder of the program.

    Args:
        words: of the templates: `name`, `prefix`, `macro`, `input` and `output`, the types in C.
        declarations: of the functions of the program; those that take and return numbers become functions of Python.
    """
    declared = {function_of(text).removeprefix(f"{words['prefix']}_"): text for text in declarations}
    functions = {name: _piece_of(name, text) for name, text in declared.items()}
    functions = {name: piece for name, piece in functions.items() if piece in _pieces()}
    needed = ["count", *_NUMBERS[words["input"]]]
    if words["input"] == "int8_t":
        functions |= {"quantize": "quantize"} | ({"quantize_step": "quantize_step"} if "step" in declared else {})
    if "train_step" in declared:
        needed.append("labels" if "labels" in declared["train_step"] else "targets")
    body = "\n\n".join(_pieces()[piece] for piece in [*needed, *functions.values()])
    rows = "\n".join([_MOMENTS] * ("step" in declared) + [_entry(name) for name in functions])
    own = {"read": _NUMBERS[words["input"]][-1], "give": _GIVE[words["output"]], "floats": _pieces()["floats"]}
    texts = {
        "module.c": string.Template(_pieces()["module"]).safe_substitute(body=body, rows=rows),
        "network.c": _NETWORK, "micropython.mk": _MAKE, "micropython.cmake": _CMAKE,
    }  # fmt: skip
    return {
        f"micropython/{name}": string.Template(text).substitute(words | own) + "\n" * (name == "module.c")
        for name, text in texts.items()
    }


def _piece_of(name: str, declaration: str) -> str:
    return "rewire by gradient" if name == "rewire" and "inputs" in declaration else name


def _entry(name: str) -> str:
    entry = f"    {{MP_ROM_QSTR(MP_QSTR_{name}), MP_ROM_PTR(&call_{name}_object)}},"
    return f"#if MICROPY_PY_BUILTINS_FLOAT\n{entry}\n#endif" if "quantize" in name else entry


@functools.cache
def _pieces() -> dict[str, str]:
    parts = template("micropython.c.in").split("/*== ")[1:]
    return {name: body.strip("\n") for name, body in (part.split(" ==*/\n", 1) for part in parts)}
