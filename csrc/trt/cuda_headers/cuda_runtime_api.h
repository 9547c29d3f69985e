// TensorRT's headers include <cuda_runtime_api.h> for these few types. This stand-in is used only where no CUDA toolkit
// is installed; the functions themselves come from the CUDA runtime, opened at run time (cuda_api.h).
#pragma once

#include <stddef.h>
#include <stdint.h>

typedef struct CUstream_st* cudaStream_t;
typedef struct CUevent_st* cudaEvent_t;
typedef struct CUgraph_st* cudaGraph_t;
typedef struct CUgraphExec_st* cudaGraphExec_t;
typedef int cudaError_t;
