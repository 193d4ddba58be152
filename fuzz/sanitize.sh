#!/usr/bin/env bash
# The kernels under AddressSanitizer and UndefinedBehaviorSanitizer (all instruction sets), or under ThreadSanitizer (the
# portable one, whose threads share out work as the others' do), by the project's own CMake and gcc, apart from the package.
#     fuzz/sanitize.sh address [rounds] [seed]      fuzz/sanitize.sh thread [rounds] [seed]
# The last line says what ran and what was found. A second call compiles only what has changed. JOBS=2 compiles two at a
# time; ISAS="portable;avx2" takes these instruction sets only.
set -euo pipefail
kind=${1:-address} rounds=${2:-2000} seed=${3:-0}
root=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-$root/.venv/bin/python} build=${BUILD:-$root/build/sanitize-$kind} tools=${TOOLS:-$root/build/tools}
say() { echo "sanitize $kind: $*" >&2; }
stage="starting"
trap 'code=$?; [ $code = 0 ] || say "FAILED while $stage"; exit $code' EXIT

case $kind in
  address) flags="-fsanitize=address,undefined -fno-sanitize-recover=undefined" isas=${ISAS:-} runtimes="libasan.so libubsan.so" ;;
  thread) flags="-fsanitize=thread" isas=${ISAS:-portable} runtimes="libtsan.so" ;;
  *) kind=; say "expected address or thread. Got $1."; exit 2 ;;
esac
library() { g++ -print-file-name="$1"; }
command -v g++ >/dev/null || { say "g++ is not installed here"; exit 1; }
for runtime in $runtimes; do  # g++ repeats the name of what it does not have
  [ -e "$(library $runtime)" ] || { say "$runtime is not installed here; it comes with gcc"; exit 1; }
done
"$python" -c "import torch" 2>/dev/null || { say "$python has no torch: run make test first, or give PYTHON=..."; exit 1; }

stage="installing cmake, ninja and nanobind" began=$SECONDS
if [ ! -x "$tools/bin/ninja" ]; then
  "$python" -m venv --clear "$tools"
  "$tools/bin/pip" install --quiet --disable-pip-version-check -c "$root/constraints.txt" cmake ninja nanobind
fi

stage="compiling"
mkdir -p "$build"
teams=""
if [ "$kind" = thread ]; then
  teams=$build/teams.o
  g++ -std=c++17 -fPIC -O1 -g1 $flags -c "$root/fuzz/teams.cpp" -o "$teams"
fi
"$tools/bin/cmake" -S "$root" -B "$build" -G Ninja "-DCMAKE_MAKE_PROGRAM=$tools/bin/ninja" -DCMAKE_CXX_COMPILER=g++ \
  -DCMAKE_BUILD_TYPE=Sanitize "-DCMAKE_CXX_FLAGS=-O1 -g1 -w -fno-omit-frame-pointer $flags" \
  "-DCMAKE_MODULE_LINKER_FLAGS=$flags $teams" "-DISAS=$isas" "-DPython_EXECUTABLE=$tools/bin/python" >/dev/null
"$tools/bin/cmake" --build "$build" --parallel "${JOBS:-1}"
kernels=$(ls "$build"/_kernels*.so) compiled=$((SECONDS - began))

drive() { PYTHONMALLOC=malloc "$python" "$root/fuzz/kernels.py" --kernels "$kernels" "$@"; }
if [ "$kind" = address ]; then
  export ASAN_OPTIONS=detect_leaks=0:detect_odr_violation=0 UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1
else
  export TSAN_OPTIONS=halt_on_error=1:exitcode=66 OMP_NUM_THREADS=1 MKL_NUM_THREADS=1
fi
LD_PRELOAD=""
for runtime in $runtimes libstdc++.so.6; do LD_PRELOAD+="$(library $runtime) "; done
export LD_PRELOAD
stage="checking the tool: a deliberate error was not reported"
if drive --broken >/dev/null 2>&1; then exit 1; fi
stage="running rounds of seed $seed" began=$SECONDS
drive --rounds "$rounds" --seed "$seed"
say "$rounds rounds of seed $seed${isas:+ on $isas}, no error; compiled in $compiled s, ran in $((SECONDS - began)) s"
