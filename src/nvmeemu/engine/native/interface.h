/* What Python calls. api.h itself is read by cffi, too, which takes no directives. */

#ifndef NVMEEMU_INTERFACE_H
#define NVMEEMU_INTERFACE_H

#include <stdbool.h>
#include <stdint.h>

#include "api.h"

#endif
