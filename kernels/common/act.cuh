// The type of activations, chosen by the build: ACT_BF16 is 0 or 1.
#pragma once
#include "device.cuh"

#if ACT_BF16
typedef bf16 act;
#else
typedef float act;
#endif
