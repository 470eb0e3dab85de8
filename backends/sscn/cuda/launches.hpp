// Plans of the cuda kernel set, in the Python module.
#pragma once

#include <nanobind/nanobind.h>

namespace sscn {

void bind_launches(nanobind::module_& m);

}  // namespace sscn
