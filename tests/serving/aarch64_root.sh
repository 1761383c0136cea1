#!/usr/bin/env bash
# Makes a folder with what it takes to compile the C++ of `vitdeploy handoff` for aarch64 and to run it on x86_64:
#
#   bash tests/serving/aarch64_root.sh ROOT          (as root, on Debian 12)
#   AARCH64_ROOT=ROOT .venv/bin/python -m pytest -m slow tests/serving/test_cpp.py -k aarch64
#
# Debian's cross compiler, libjpeg and libpng of arm64, OpenVINO's package for aarch64, and the user emulation of qemu.
set -euo pipefail
python=$PWD/.venv/bin/python
version=$("$python" -c 'from importlib.metadata import version; print(version("openvino"))')
mkdir -p "$1"
cd "$1"
root=$PWD libraries=$PWD/system/usr/lib/aarch64-linux-gnu
apt-get install --yes --no-install-recommends cmake g++-aarch64-linux-gnu qemu-user-static
dpkg --add-architecture arm64
apt-get update
for name in libjpeg62-turbo libjpeg62-turbo-dev libpng16-16 libpng-dev zlib1g zlib1g-dev libc6 libstdc++6 libgcc-s1; do
    apt-get download "$name:arm64"
done
for package in ./*.deb; do dpkg-deb --extract "$package" system; done
cp --no-dereference system/lib/aarch64-linux-gnu/libz.so.1* "$libraries"
ln --symbolic --force libz.so.1 "$libraries/libz.so"
platforms=()
for glibc in 35 34 31 28 17; do platforms+=(--platform "manylinux_2_${glibc}_aarch64"); done
"$python" -m pip download --no-deps --only-binary=:all: --python-version 3.11 "${platforms[@]}" "openvino==$version"
"$python" -m zipfile --extract openvino-*.whl python
cat > toolchain.cmake <<EOF
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
set(CMAKE_CXX_COMPILER aarch64-linux-gnu-g++)
set(CMAKE_CXX_STANDARD_INCLUDE_DIRECTORIES $root/system/usr/include/aarch64-linux-gnu)
set(CMAKE_EXE_LINKER_FLAGS_INIT "-Wl,--allow-shlib-undefined -L$libraries")
set(OpenVINO_DIR $root/python/openvino/cmake)
set(JPEG_INCLUDE_DIR $root/system/usr/include)
set(JPEG_LIBRARY $libraries/libjpeg.so)
set(PNG_PNG_INCLUDE_DIR $root/system/usr/include)
set(PNG_LIBRARY $libraries/libpng.so)
set(ZLIB_INCLUDE_DIR $root/system/usr/include)
set(ZLIB_LIBRARY $libraries/libz.so)
EOF
cat > run <<EOF
#!/bin/sh
exec qemu-aarch64-static -L $root/system \\
    -E LD_LIBRARY_PATH=$root/python/openvino/libs:$libraries:$root/system/lib/aarch64-linux-gnu "\$@"
EOF
chmod +x run
echo "AARCH64_ROOT=$root"
