// The library's own operation: on which instruction set it runs. The others stand in the files of their names.

#include <torch/csrc/stable/library.h>

#include <string>

#include "instruction_set.h"

namespace {

std::string instruction_set_name() {
    const char* names[] = {"baseline", "avx2", "avx512"};
    return names[static_cast<int>(se3_fast::instruction_set())];
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(se3_fast_cpp, m) { m.def("instruction_set() -> str"); }

STABLE_TORCH_LIBRARY_IMPL(se3_fast_cpp, CompositeExplicitAutograd, m) { m.impl("instruction_set", TORCH_BOX(&instruction_set_name)); }
