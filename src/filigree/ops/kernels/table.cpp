// The table of one instruction set's kernels.
#include "kernels.h"

namespace filigree {
namespace FILIGREE_ISA {

extern const Kernels kernels{
#define KERNEL(result, name, arguments) name,
#include "list.h"
};

}  // namespace FILIGREE_ISA
}  // namespace filigree
