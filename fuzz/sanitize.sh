#!/usr/bin/env bash
# The kernels under AddressSanitizer and UndefinedBehaviorSanitizer (all instruction sets), or under ThreadSanitizer (the
# portable one, whose threads share out work as the others' do). Builds apart from the package; needs gcc.
#   fuzz/sanitize.sh address [rounds] [seed]      fuzz/sanitize.sh thread [rounds] [seed]
set -euo pipefail
kind=${1:-address} rounds=${2:-2000} seed=${3:-0}
root=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-$root/.venv/bin/python} kernels=$root/src/filigree/ops/kernels build=${BUILD:-$root/build/sanitize-$kind}
mkdir -p "$build"
case $kind in
  address) flags="-fsanitize=address,undefined -fno-sanitize-recover=undefined" isas="portable avx2 avx512" ;;
  thread) flags="-fsanitize=thread" isas="portable" ;;
  *) echo "sanitize: expected address or thread. Got $kind." >&2; exit 2 ;;
esac
[ "$(uname -m)" = x86_64 ] || isas="portable neon"
common="-std=c++17 -fPIC -fvisibility=hidden -O1 -g1 -w -fno-omit-frame-pointer $flags"
declare -A own=([portable]="" [neon]="" [avx2]="-mavx2 -mfma -mf16c"
                [avx512]="-mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx2 -mfma -mf16c -mprefer-vector-width=512")
compile() {  # object, source, flags: only what has changed
  if [ ! "$1" -nt "$2" ] || [ -n "$(find "$kernels" -name '*.h' -newer "$1" -print -quit 2>/dev/null)" ]; then
    echo "compiling $(basename "$1")"
    g++ $common "${@:3}" -c "$2" -o "$1"
  fi
}
sources=$(sed -n 's/^set(SOURCES \(.*\))$/\1/p' "$root/CMakeLists.txt")
have=""
for isa in $isas; do
  have+=" -DFILIGREE_HAVE_$isa"
  for source in $sources; do
    compile "$build/${source%.cpp}-$isa.o" "$kernels/$source" -ffp-contract=fast -fno-math-errno -fno-trapping-math \
      ${own[$isa]} "-DFILIGREE_ISA=$isa" "-DFILIGREE_ISA_$isa"
  done
done
nanobind=$("$python" -c 'import nanobind; print(nanobind.source_dir() + "/..")')
include=$("$python" -c 'import sysconfig; print(sysconfig.get_paths()["include"])')
compile "$build/nanobind.o" "$nanobind/src/nb_combined.cpp" -fno-strict-aliasing "-I$nanobind/include" \
  "-I$nanobind/ext/robin_map/include" "-I$include"
for source in caches scratch; do compile "$build/$source.o" "$kernels/$source.cpp"; done
compile "$build/bindings.o" "$kernels/bindings.cpp" "-I$nanobind/include" "-I$include" $have
if [ "$kind" = thread ]; then compile "$build/teams.o" "$root/fuzz/teams.cpp"; fi
g++ -shared $flags "$build"/*.o -o "$build/_kernels.so"

library() { g++ -print-file-name="$1"; }
drive() { PYTHONMALLOC=malloc "$python" "$root/fuzz/kernels.py" --kernels "$build/_kernels.so" "$@"; }
if [ "$kind" = address ]; then
  export ASAN_OPTIONS=detect_leaks=0:detect_odr_violation=0 UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1
  export LD_PRELOAD="$(library libasan.so) $(library libubsan.so) $(library libstdc++.so.6)"
else
  export TSAN_OPTIONS=halt_on_error=1:exitcode=66 OMP_NUM_THREADS=1 MKL_NUM_THREADS=1
  export LD_PRELOAD="$(library libtsan.so) $(library libstdc++.so.6)"
fi
if drive --broken >/dev/null 2>&1; then
  echo "sanitize: a deliberate error was not reported; the tool is not at work" >&2
  exit 1
fi
drive --rounds "$rounds" --seed "$seed"
