#!/bin/sh
# The plugin library exports getCreators and setLoggerFinder, nothing else, and needs no library but the system's own.
set -eu
symbols=$(nm -D --defined-only "$1" | awk '{print $3}' | sort | tr '\n' ' ')
[ "$symbols" = "getCreators setLoggerFinder " ] || { echo "exports: $symbols"; exit 1; }
needed=$(readelf -d "$1" | sed -n 's/.*NEEDED.*\[\(.*\)\]/\1/p')
for library in $needed; do
    case "$library" in
        libstdc++.so.* | libm.so.* | libgcc_s.so.* | libc.so.* | libpthread.so.* | libdl.so.* | librt.so.* | ld-linux*) ;;
        *) echo "needs $library"; exit 1 ;;
    esac
done
