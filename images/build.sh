#!/usr/bin/env bash
# Builds container images without a base image and without Docker, into .local/images/NAME.tar (docker archives).
#
#   images/build.sh                    llamero and llamero-worker, from the release build
#   images/build.sh pause              the image that the local cluster's pods stand on
#   images/build.sh toolbox            BusyBox, for tests: llamero.dev/toolbox:1
#   images/build.sh weights NAME DIR   llamero-weights-NAME:dev, the files of DIR as an image
#   images/build.sh emulated           llamero-worker:VERSION-cuda-emulated, for tests: the CUDA worker on an emulated driver
#
# An archive is left alone while what goes into it has not changed.
set -euo pipefail
cd "$(dirname "$0")/.."

version=$(sed -n '/^\[workspace.package\]/,/^\[/s/^version = "\(.*\)"/\1/p' Cargo.toml)
out=$PWD/.local/images
target=${CARGO_TARGET_DIR:-.local/target}
work=
mkdir -p "$out"
trap '[ -z "$work" ] || rm -rf "$work"' EXIT

# pack NAME REFERENCE DOCKERFILE STAGE CONTEXT
pack() {
  local name=$1 reference=$2 dockerfile=$3 stage=$4 context=$5 hash
  hash=$({ cat "$dockerfile"; echo "$reference"; cd "$context" && find . -type f -print0 | sort -z | xargs -0 sha256sum; } | sha256sum)
  if [ -f "$out/$name.tar" ] && [ "$(cat "$out/$name.hash" 2>/dev/null)" = "$hash" ]; then
    return
  fi
  local storage=$work/storage
  local buildah=(buildah --root "$storage" --runroot "$work/run" --storage-driver vfs)
  rm -f "$out/$name.tar" "$out/$name.hash"
  # A time of long ago: the same files make the same image.
  "${buildah[@]}" bud --quiet --isolation chroot --timestamp 0 --target "$stage" --file "$dockerfile" --tag "$reference" "$context" >/dev/null
  "${buildah[@]}" push --quiet "$reference" "docker-archive:$out/$name.tar:$reference" >/dev/null
  echo "$hash" >"$out/$name.hash"
  echo "images: $reference, $(($(stat -c %s "$out/$name.tar") / 1000000)) MB"
}

# programs CONTEXT CRATE...: puts the stripped programs of the crates there.
programs() {
  local context=$1 program
  shift
  mkdir -p "$context"
  for program in "$@"; do
    if ! file=$(ls "$target"/*-linux-*/release/"$program" 2>/dev/null); then
      echo "images: there is no $target/*/release/$program" >&2
      exit 1
    fi
    # The build ID is one of the program before it was stripped.
    strip --remove-section=.note.gnu.build-id -o "$context/$program" "$file"
    if readelf --program-headers "$context/$program" | grep -q INTERP; then
      echo "images: $program is not linked statically; it cannot run in an image without a C library" >&2
      exit 1
    fi
  done
}

# emulated CONTEXT: puts there the worker that loads a driver, its kernels, the C library that it needs and the emulated driver.
emulated() {
  local context=$1 libraries=$1/lib/x86_64-linux-gnu kernels nvrtc file
  # Compiling for every GPU takes a while, so that what was made of the same texts stays.
  kernels=$PWD/.local/kernels/$(cat worker/cuda/kernels/* worker/cuda/src/compile.rs | sha256sum | cut -c 1-16)
  find .local/kernels -mindepth 1 -maxdepth 1 ! -path "*/${kernels##*/}" -exec rm -rf {} + 2>/dev/null || true
  mkdir -p "$libraries" "$context/lib64" "$context/kernels" "$kernels"
  tests/gpu-emulator/toolchain.sh
  nvrtc=$(echo .local/venv-nvrtc/lib/python3*/site-packages/nvidia/cu13/lib)
  cargo build --locked --release --workspace --bin llamero-worker-cuda
  strip -o "$context/llamero-worker" "$target"/*-linux-*/release/llamero-worker-cuda
  cargo build --locked --release -p llamero-gpu-emulator --lib
  strip -o "$libraries/libcuda.so.1" "$target"/*-linux-*/release/deps/libllamero_gpu_emulator.so
  cp "$libraries/libcuda.so.1" "$libraries/libnvidia-ml.so.1"
  LD_LIBRARY_PATH=$nvrtc "$context/llamero-worker" kernels "$kernels" >/dev/null
  cp "$kernels"/* "$context/kernels/"
  for file in $(ldd "$context/llamero-worker" "$libraries/libcuda.so.1" | grep -o '/[^ ]*\.so[^ :]*' | sort -u); do
    case $file in
      "$context"/*) ;;
      */ld-linux*) cp -L "$file" "$context/lib64/" ;;
      *) cp -L "$file" "$libraries/" ;;
    esac
  done
  # What was compiled is its maker's alone, and pods run as somebody else.
  chmod -R a+rX "$context"
}

work=$(mktemp -d)
case ${1:-} in
  '')
    cargo build --locked --release --workspace --bin llamero-operator --bin llamero-gateway --bin llamero-worker
    programs "$work/llamero" llamero-operator llamero-gateway
    programs "$work/worker" llamero-worker
    images/sbom.sh llamero llamero-operator llamero-gateway >"$work/llamero/sbom.cdx.json"
    images/sbom.sh llamero-worker llamero-worker >"$work/worker/sbom.cdx.json"
    pack llamero "docker.io/library/llamero:$version" images/Dockerfile.llamero prebuilt "$work/llamero"
    pack llamero-worker "docker.io/library/llamero-worker:$version" images/Dockerfile.worker prebuilt "$work/worker"
    ;;
  pause)
    mkdir "$work/pause"
    gcc -Os -static -s -o "$work/pause/pause" images/pause.c
    pack pause llamero.dev/pause:1 images/Dockerfile.pause prebuilt "$work/pause"
    ;;
  toolbox)
    mkdir "$work/toolbox"
    cp "$(command -v busybox)" "$work/toolbox/busybox"
    pack toolbox llamero.dev/toolbox:1 images/Dockerfile.toolbox prebuilt "$work/toolbox"
    ;;
  weights)
    if [ $# -ne 3 ] || [ ! -d "$3" ]; then
      echo "usage: images/build.sh weights NAME DIR" >&2
      exit 2
    fi
    pack "weights-$2" "docker.io/library/llamero-weights-$2:dev" images/Dockerfile.weights 0 "$3"
    ;;
  emulated)
    emulated "$work/emulated"
    pack worker-emulated "docker.io/library/llamero-worker:$version-cuda-emulated" images/Dockerfile.worker-emulated prebuilt "$work/emulated"
    ;;
  *)
    echo "usage: images/build.sh [pause | toolbox | weights NAME DIR | emulated]" >&2
    exit 2
    ;;
esac
