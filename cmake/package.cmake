# Installs the CMake package: cmake --install <build> --component cpp --prefix <where>; then find_package(dhead_trt).
include(CMakePackageConfigHelpers)
set(DHEAD_PACKAGE_MAJORS "")
foreach(major 11 10)
  if(TARGET dhead_tensorrt${major})
    list(APPEND DHEAD_PACKAGE_MAJORS ${major})
  endif()
endforeach()
set(DHEAD_PACKAGE_CUDA FALSE)
if(TARGET dhead_cuda)
  set(DHEAD_PACKAGE_CUDA TRUE)
endif()
set(DHEAD_PACKAGE_CUDART ${DHEAD_PACKAGE_CUDA})
if(DHEAD_PACKAGE_MAJORS AND DHEAD_TRT_CUDART)
  set(DHEAD_PACKAGE_CUDART TRUE)
endif()
set(dhead_package_dir lib/cmake/dhead_trt)
configure_package_config_file(cmake/dhead_trtConfig.cmake.in "${CMAKE_CURRENT_BINARY_DIR}/dhead_trtConfig.cmake"
                              INSTALL_DESTINATION ${dhead_package_dir})
write_basic_package_version_file("${CMAKE_CURRENT_BINARY_DIR}/dhead_trtConfigVersion.cmake"
                                 VERSION ${PROJECT_VERSION} COMPATIBILITY SameMinorVersion)
install(
  EXPORT dhead_trtTargets
  NAMESPACE dhead_trt::
  DESTINATION ${dhead_package_dir}
  COMPONENT cpp)
install(
  FILES "${CMAKE_CURRENT_BINARY_DIR}/dhead_trtConfig.cmake" "${CMAKE_CURRENT_BINARY_DIR}/dhead_trtConfigVersion.cmake"
  DESTINATION ${dhead_package_dir}
  COMPONENT cpp)
