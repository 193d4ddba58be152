# Kernels are written with GCC's vector extension: __builtin_shufflevector came to GCC in 12, and what older Clangs make
# of the extension has not been tried. Xcode 14.3 has AppleClang 14.0.3, which is LLVM 15.
set(OLDEST_GNU 12)
set(OLDEST_Clang 15)
set(OLDEST_AppleClang 14.0.3)
set(OLDEST ${OLDEST_${CMAKE_CXX_COMPILER_ID}})
if(NOT OLDEST OR CMAKE_CXX_COMPILER_VERSION VERSION_LESS OLDEST)
  message(FATAL_ERROR " filigree needs GCC 12, Clang 15, Xcode 14.3 or newer. CXX is ${CMAKE_CXX_COMPILER_ID} ${CMAKE_CXX_COMPILER_VERSION}.")  # the space keeps it on one line
endif()
