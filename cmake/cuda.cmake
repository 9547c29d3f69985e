# The CUDA kernels (dhead_cuda) and their Python module (_cuda). Included by csrc/CMakeLists.txt.
#
# DHEAD_CUDA=AUTO builds them where nvcc is found. CMAKE_CUDA_ARCHITECTURES is the user's; where it is not given, every
# architecture from Turing on that this nvcc knows, and PTX of the newest for those to come.
if(NOT DHEAD_CUDA STREQUAL "OFF")
  include(CheckLanguage)
  check_language(CUDA)
endif()
if(DHEAD_CUDA STREQUAL "OFF" OR NOT CMAKE_CUDA_COMPILER)
  if(DHEAD_CUDA STREQUAL "ON")
    message(FATAL_ERROR "DHEAD_CUDA=ON, but no CUDA compiler was found. Put nvcc on PATH, or set CUDACXX or CMAKE_CUDA_COMPILER.")
  endif()
  message(STATUS "dhead_trt: CUDA kernels: no (DHEAD_CUDA=${DHEAD_CUDA}, nvcc ${CMAKE_CUDA_COMPILER})")
  return()
endif()

if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
  set(dhead_default_architectures TRUE)
  set(CMAKE_CUDA_ARCHITECTURES 75) # of the compiler check; the real list follows
endif()
enable_language(CUDA)
if(dhead_default_architectures)
  set(CMAKE_CUDA_ARCHITECTURES 75-real 80-real 86-real 87-real 89-real)
  if(CMAKE_CUDA_COMPILER_VERSION VERSION_LESS 12.8)
    list(APPEND CMAKE_CUDA_ARCHITECTURES 90)
  else()
    list(APPEND CMAKE_CUDA_ARCHITECTURES 90-real 100-real 120)
  endif()
  if(CMAKE_CUDA_COMPILER_VERSION VERSION_GREATER_EQUAL 13.0)
    list(APPEND CMAKE_CUDA_ARCHITECTURES 110-real) # Jetson Thor; CUDA 12 called it 101
  endif()
endif()
set(CMAKE_CUDA_STANDARD 17)
set(CMAKE_CUDA_STANDARD_REQUIRED ON)
find_package(CUDAToolkit 11.8 REQUIRED)
message(STATUS "dhead_trt: CUDA kernels: nvcc ${CMAKE_CUDA_COMPILER_VERSION}, architectures ${CMAKE_CUDA_ARCHITECTURES}")

add_library(dhead_cuda STATIC decode_cuda.cu detect_cuda.cu filter_cuda.cu nms_cuda.cu letterbox_cuda.cu)
add_library(dhead::cuda ALIAS dhead_cuda)
set_target_properties(dhead_cuda PROPERTIES EXPORT_NAME cuda CUDA_RUNTIME_LIBRARY Static)
target_include_directories(dhead_cuda PUBLIC $<BUILD_INTERFACE:${CMAKE_CURRENT_SOURCE_DIR}/include>
                                             $<INSTALL_INTERFACE:include>)
target_link_libraries(
  dhead_cuda
  PUBLIC CUDA::cudart_static
  PRIVATE dhead::options)
install(
  TARGETS dhead_cuda
  EXPORT dhead_trtTargets
  ARCHIVE DESTINATION lib COMPONENT cpp)

if(DHEAD_PYTHON)
  pybind11_add_module(_cuda MODULE bindings/cuda.cpp)
  target_link_libraries(_cuda PRIVATE dhead_cuda dhead::options)
  set_target_properties(_cuda PROPERTIES CUDA_RUNTIME_LIBRARY Static)
  install(TARGETS _cuda LIBRARY DESTINATION dhead_trt COMPONENT python)
endif()
