// Launchers of the CUDA kernels: pointers, sizes and a stream in, a cudaError_t out.
//
// All pointers are device memory. A launcher checks its arguments, enqueues on `stream` and returns; it allocates
// nothing, never waits for the device, keeps no state, and may be captured into a CUDA graph (call it once before: the
// CUDA runtime loads a kernel at its first use) and called from any thread. Results have the bits of the CPU code's
// (decode.h).
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>

#include "dhead/letterbox.h"
#include "dhead/params.h"

namespace dhead {

// Decodes every anchor of the batch: boxes and scores in full. One launch for all levels and images.
//
// Returns cudaErrorInvalidValue where `maps` or `out` is out of range or a pointer is null or misaligned (maps: to
// their element; outputs: boxes to 16 bytes). A batch of 0 does nothing.
cudaError_t decode_cuda(const HeadParams& maps, const DecodeOutputs& out, cudaStream_t stream) noexcept;

// Bytes of workspace that detect_cuda needs; never less for a larger batch, level or number of candidates. 0 where the
// arguments are out of range.
std::size_t detect_workspace_bytes(const HeadParams& maps, const DetectOptions& options) noexcept;

// Finds the detections of the batch: threshold, decode of what passes, order, NMS. Two launches, whatever the batch.
//
// options.class_mask is device memory. `thresholds`, where not null, is device memory, [2] floats (conf, iou) read when
// the kernels run, in place of options.conf and options.iou. `workspace` is aligned to 256 bytes, its content is of no
// matter before and after, and two calls may share it only if they run one after the other.
//
// Any number of anchors may pass. `options.max_candidates` may be any positive number: up to 4096 candidates are sorted
// in shared memory, more of them in the workspace. anchors * num_classes must be below 2^31.
//
// Returns cudaErrorInvalidValue as decode_cuda does, and where the workspace is too small.
cudaError_t detect_cuda(const HeadParams& maps, const DetectOptions& options, const float* thresholds,
                        const DetectOutputs& out, void* workspace, std::size_t workspace_bytes,
                        cudaStream_t stream) noexcept;

// One source image in device memory. NV12 where `chroma` is set: image.data is then the plane of luma (pixel_stride 1,
// channel_offset unused) and `chroma` that of interleaved U V; the colour is BT.601, limited range (nv12.h).
struct LetterboxSource {
    LetterboxImage image;
    const uint8_t* chroma = nullptr;
    int64_t chroma_stride = 0;   // bytes
    LetterboxGeometry geometry;  // from letterbox_geometry; every source of a batch has the same canvas
};

constexpr int kLetterboxBatch = 32;  // images of one launch: their descriptions are its arguments

// Writes [count, 3, height, width] of float32 or float16, 0 … 1. One launch for up to kLetterboxBatch images, whatever
// their sizes and formats. `sources` is host memory and is read before the call returns.
cudaError_t letterbox_cuda(const LetterboxSource* sources, int count, uint8_t pad_value, DType dtype, void* output,
                           cudaStream_t stream) noexcept;

}  // namespace dhead
