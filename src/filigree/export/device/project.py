"""Write the files around a program for a device: for CMake, Zephyr, Arduino and MicroPython, and for the emulator."""

from __future__ import annotations

import re
import string
from collections.abc import Sequence
from pathlib import Path

from filigree.export.device.emulator import board_script, emulated, template
from filigree.export.device.micropython import micropython_files
from filigree.export.device.targets import Target

_NOTE = "Written by filigree"

_CMAKE = """# Written by filigree. In a project of yours: add_subdirectory of this folder, then link $identifier.
# Alone, with emulator/toolchain.cmake, it builds a program for qemu, with your main by -DFILIGREE_MAIN=its path; the
# target `run` runs it.
cmake_minimum_required(VERSION 3.16)
project($identifier C)
add_library($identifier STATIC "$name.c")
target_include_directories($identifier PUBLIC "$${CMAKE_CURRENT_SOURCE_DIR}")
set_target_properties($identifier PROPERTIES C_STANDARD 99)
if(UNIX OR CMAKE_CROSSCOMPILING)
  target_link_libraries($identifier PUBLIC m)
endif()
if(FILIGREE_EMULATOR AND CMAKE_SOURCE_DIR STREQUAL CMAKE_CURRENT_SOURCE_DIR)
  set(EMULATOR "$${CMAKE_CURRENT_SOURCE_DIR}/emulator")
  set(FILIGREE_MAIN "$${EMULATOR}/main.c" CACHE FILEPATH "the main of the program")
  add_executable(program "$${FILIGREE_MAIN}" "$${EMULATOR}/board.c")
  target_link_libraries(program PRIVATE $identifier)
  target_link_options(program PRIVATE --specs=nano.specs -nostartfiles "-T$${EMULATOR}/board.ld" -Wl,--gc-sections)
  add_custom_target(run COMMAND $emulator -kernel $$<TARGET_FILE:program> DEPENDS program
    WORKING_DIRECTORY "$${CMAKE_CURRENT_SOURCE_DIR}" VERBATIM)
endif()
"""

_TOOLCHAIN = """# Written by filigree. A $target, as qemu's board $machine has it.
set(CMAKE_SYSTEM_NAME Generic)
set(CMAKE_SYSTEM_PROCESSOR arm)
set(CMAKE_C_COMPILER arm-none-eabi-gcc)
set(CMAKE_TRY_COMPILE_TARGET_TYPE STATIC_LIBRARY)
set(CMAKE_C_FLAGS_INIT "$flags -mthumb -Os -ffunction-sections -fdata-sections")
set(FILIGREE_EMULATOR ON)
"""

_ZEPHYR = """# Written by filigree. This folder is a module of Zephyr: name it in EXTRA_ZEPHYR_MODULES.
zephyr_library_named($identifier)
zephyr_library_sources("../$name.c")
zephyr_include_directories(..)
"""

_MODULE = """# Written by filigree.
name: $identifier
build:
  cmake: zephyr
"""

_ARDUINO = """# Written by filigree. Copy this folder into the folder `libraries` of Arduino.
name=$identifier
version=1.0.0
author=filigree
maintainer=filigree
sentence=A neural network of $inputs inputs and $outputs outputs.
paragraph=C99, static memory, no dependencies.
category=Data Processing
url=
architectures=*
includes=$name.h
"""

_SKETCH = """// Written by filigree.
#include <$name.h>

static $input input[${macro}_INPUTS];
static $output output[${macro}_OUTPUTS];

void setup() {
  Serial.begin(115200);
}

void loop() {
  // Fill `input`, one sample, here.
  ${prefix}_predict(input, output);
  for (int i = 0; i < ${macro}_OUTPUTS; ++i) {
    Serial.println(+output[i]);
  }
  delay(1000);
}
"""

# Names of targets that CMake has or that are used here, and libraries.
_TARGETS = {
    "all", "c", "clean", "depend", "edit_cache", "gcc", "help", "install", "m", "package", "package_source",
    "preinstall", "program", "rebuild_cache", "run", "test",
}  # fmt: skip


def project_files(
    path: Path, prefix: str, target: Target, sides: tuple[int, int], types: tuple[str, str], declarations: Sequence[str]
) -> dict[Path, str]:
    """Write the texts of the files around `path`, by their paths.

    Args:
        sides: numbers of inputs and outputs. types: theirs, in C. declarations: of the program's functions.

    Raises:
        ValueError: a name that CMake would read otherwise; files of these names that filigree has not written.
    """
    if re.search(r'[";$\\<>\n]', path.stem):
        raise ValueError(
            f"export: the name of a program with project files must have no quotes or \\;$<>. Got {path.name!r}."
        )
    words = {
        "name": path.stem, "prefix": prefix, "macro": prefix.upper(), "target": target.name,
        "identifier": f"{prefix}_network" if prefix in _TARGETS else prefix,
        "machine": target.machine, "flags": " ".join(target.flags), "emulator": " ".join(emulated(target)),
        "inputs": str(sides[0]), "outputs": str(sides[1]), "input": types[0], "output": types[1],
    }  # fmt: skip
    templates = {
        "CMakeLists.txt": _CMAKE, "emulator/toolchain.cmake": _TOOLCHAIN, "emulator/main.c": template("main.c.in"),
        "zephyr/CMakeLists.txt": _ZEPHYR, "zephyr/module.yml": _MODULE, "library.properties": _ARDUINO,
        f"examples/{prefix}/{prefix}.ino": _SKETCH,
    }  # fmt: skip
    texts = {name: string.Template(text).substitute(words) for name, text in templates.items()}
    texts |= micropython_files(words, declarations)
    texts |= {"emulator/board.c": template("board.c.in"), "emulator/board.ld": board_script(target)}
    files = {path.parent / name: text for name, text in texts.items()}
    own = [str(file) for file in files if file.exists() and _NOTE not in file.read_text(errors="replace")[:200]]
    if own:
        raise ValueError(
            f"export: {own[0]} is there, and not of filigree. Export to another folder. Nothing was written."
        )
    return files
