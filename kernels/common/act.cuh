// Element types, chosen by the build: each macro is 0 or 1.
#pragma once
#include "device.cuh"

// Of activations.
#if ACT_BF16
typedef bf16 act;
#else
typedef float act;
#endif

// Of what a kernel reads and what it makes, where those may differ.
#if X_BF16
typedef bf16 X;
#else
typedef float X;
#endif
#if Y_BF16
typedef bf16 Y;
#else
typedef float Y;
#endif
