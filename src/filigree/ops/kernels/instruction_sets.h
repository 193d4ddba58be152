// The instruction sets that kernels are compiled for, the fastest first: INSTRUCTION_SET(name, whether this processor
// has it). CMakeLists.txt says which are built, and with which flags.

#ifdef FILIGREE_HAVE_avx512
INSTRUCTION_SET(avx512, __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                            __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") && has_f16c())
#endif
#ifdef FILIGREE_HAVE_avx2
INSTRUCTION_SET(avx2, __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c())
#endif
#ifdef FILIGREE_HAVE_neon
INSTRUCTION_SET(neon, true)  // every 64-bit ARM has it
#endif
INSTRUCTION_SET(portable, true)

#undef INSTRUCTION_SET
