# Finds TensorRT's C++ headers, and its libraries where they are installed. Only the headers are required: the builder and
# the engine open the libraries at run time.
#
# Looks in TensorRT_ROOT and $TensorRT_ROOT / $TENSORRT_ROOT (an unpacked SDK or TensorRT-RTX archive, or any folder
# that holds NvInfer.h itself), then where Debian packages and JetPack put them, then in CMake's usual places.
#
#   TensorRT_FOUND, TensorRT_VERSION, TensorRT_VERSION_MAJOR
#   TensorRT_INCLUDE_DIR        folder of NvInfer.h
#   TensorRT_IS_RTX             the headers are those of TensorRT for RTX
#   TensorRT_HAS_ONNX_PARSER    NvOnnxParser.h is beside them (some packages leave it out)
#   TensorRT_nvinfer_LIBRARY, TensorRT_nvonnxparser_LIBRARY   may be NOTFOUND
#   TensorRT::headers           headers only
#   TensorRT::nvinfer, TensorRT::nvonnxparser   where the libraries were found
#
# tensorrt_read_version(<folder> <version variable> <is-rtx variable>) reads NvInferVersion.h; empty if there is none.

function(tensorrt_read_version dir out_version out_rtx)
  set(version "")
  set(rtx FALSE)
  if(EXISTS "${dir}/NvInferVersion.h")
    file(STRINGS "${dir}/NvInferVersion.h" lines REGEX "^#define [A-Z_]*(MAJOR|MINOR|PATCH)")
    foreach(part MAJOR MINOR PATCH)
      set(value "")
      set(name "NV_TENSORRT_${part}")
      foreach(hop RANGE 2)  # since 10.11: #define NV_TENSORRT_MAJOR TRT_MAJOR_ENTERPRISE (or …_RTX), and that the number
        foreach(line IN LISTS lines)
          if(line MATCHES "^#define ${name} +([A-Za-z_0-9]+)")
            set(value "${CMAKE_MATCH_1}")
          endif()
        endforeach()
        if(value MATCHES "_RTX$")
          set(rtx TRUE)
        endif()
        if(value MATCHES "^[0-9]*$")
          break()
        endif()
        set(name "${value}")
      endforeach()
      if(value MATCHES "^[0-9]+$")
        list(APPEND version "${value}")
      endif()
    endforeach()
    list(JOIN version "." version)
  endif()
  set(${out_version} "${version}" PARENT_SCOPE)
  set(${out_rtx} "${rtx}" PARENT_SCOPE)
endfunction()

set(_trt_roots ${TensorRT_ROOT} $ENV{TensorRT_ROOT} $ENV{TENSORRT_ROOT})
find_path(
  TensorRT_INCLUDE_DIR NvInfer.h
  HINTS ${_trt_roots}
  PATHS /usr/local/tensorrt /opt/tensorrt /usr/src/tensorrt /usr/local/TensorRT /usr/local/TensorRT-RTX
  PATH_SUFFIXES include "" "targets/${CMAKE_SYSTEM_PROCESSOR}-linux-gnu/include" "include/${CMAKE_LIBRARY_ARCHITECTURE}"
                "include/tensorrt")
set(TensorRT_VERSION "")
set(TensorRT_IS_RTX FALSE)
if(TensorRT_INCLUDE_DIR)
  tensorrt_read_version("${TensorRT_INCLUDE_DIR}" TensorRT_VERSION TensorRT_IS_RTX)
  string(REGEX MATCH "^[0-9]+" TensorRT_VERSION_MAJOR "${TensorRT_VERSION}")
  set(TensorRT_HAS_ONNX_PARSER FALSE)
  if(EXISTS "${TensorRT_INCLUDE_DIR}/NvOnnxParser.h")
    set(TensorRT_HAS_ONNX_PARSER TRUE)
  endif()
  get_filename_component(_trt_prefix "${TensorRT_INCLUDE_DIR}" DIRECTORY)
  foreach(_trt_lib nvinfer nvonnxparser)
    if(TensorRT_IS_RTX)
      string(REPLACE "nvinfer" "tensorrt_rtx" _trt_file "${_trt_lib}")
      string(REPLACE "nvonnxparser" "tensorrt_onnxparser_rtx" _trt_file "${_trt_file}")
    else()
      set(_trt_file ${_trt_lib})
    endif()
    # Also by the versioned name: the runtime packages bring no unversioned link.
    find_library(
      TensorRT_${_trt_lib}_LIBRARY NAMES ${_trt_file} lib${_trt_file}.so.${TensorRT_VERSION_MAJOR}
      HINTS ${_trt_roots} "${_trt_prefix}"
      PATH_SUFFIXES lib lib64 "targets/${CMAKE_SYSTEM_PROCESSOR}-linux-gnu/lib" "lib/${CMAKE_LIBRARY_ARCHITECTURE}")
    mark_as_advanced(TensorRT_${_trt_lib}_LIBRARY)
  endforeach()
endif()
mark_as_advanced(TensorRT_INCLUDE_DIR)

include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(
  TensorRT
  REQUIRED_VARS TensorRT_INCLUDE_DIR TensorRT_VERSION
  VERSION_VAR TensorRT_VERSION
  REASON_FAILURE_MESSAGE "Set TensorRT_ROOT to an unpacked TensorRT archive, or to a folder that holds NvInfer.h.")

if(TensorRT_FOUND AND NOT TARGET TensorRT::headers)
  add_library(TensorRT::headers INTERFACE IMPORTED)
  target_include_directories(TensorRT::headers SYSTEM INTERFACE "${TensorRT_INCLUDE_DIR}")
  foreach(_trt_lib nvinfer nvonnxparser)
    if(TensorRT_${_trt_lib}_LIBRARY)
      add_library(TensorRT::${_trt_lib} UNKNOWN IMPORTED)
      set_target_properties(TensorRT::${_trt_lib} PROPERTIES IMPORTED_LOCATION "${TensorRT_${_trt_lib}_LIBRARY}")
      target_link_libraries(TensorRT::${_trt_lib} INTERFACE TensorRT::headers)
    endif()
  endforeach()
endif()
