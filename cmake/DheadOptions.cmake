# Compile options every one of our targets carries.
#
# -ffp-contract=off is part of the contract, not a preference: decode.h gives the same bits on every SIMD level and on
# the GPU only if no compiler fuses a multiply and an add on its own.
add_library(dhead_options INTERFACE)
add_library(dhead::options ALIAS dhead_options)
target_compile_features(dhead_options INTERFACE cxx_std_17)
target_compile_options(
  dhead_options
  INTERFACE $<$<COMPILE_LANGUAGE:CXX>:-ffp-contract=off -Wall -Wextra>
            $<$<COMPILE_LANGUAGE:CUDA>:-Xcompiler=-Wall,-Wextra,-ffp-contract=off>)
if(DHEAD_WERROR)
  target_compile_options(dhead_options INTERFACE $<$<COMPILE_LANGUAGE:CXX>:-Werror>
                                                 $<$<COMPILE_LANGUAGE:CUDA>:-Xcompiler=-Werror -Werror=all-warnings>)
endif()
install(TARGETS dhead_options EXPORT dhead_trtTargets COMPONENT cpp)
