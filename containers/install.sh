#!/bin/sh
# The steps of all images: the Containerfiles and the Apptainer definitions call this script.
#   install.sh base              sscn-bench with its requirements, in /opt/venv
#   install.sh engines NAME ...  engines by their recipes; CUDA=12.6 chooses the builds for CUDA,
#                                SOURCES=/sources takes the source from /sources/NAME if it is there,
#                                MAX_JOBS=1 sets the number of compilers at a time
set -eu
cd "$(dirname "$0")/.."
python=/opt/venv/bin/python
case $1 in
base)
    apt-get update
    DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends \
        ca-certificates g++ git libopenblas-dev libsparsehash-dev python3-dev python3-venv
    rm -rf /var/lib/apt/lists/*
    python3 -m venv /opt/venv
    $python -m pip install --no-cache-dir --constraint constraints.txt torch
    $python -m pip install --no-cache-dir --constraint constraints.txt --editable ".[dask]"
    ;;
engines)
    shift
    export CMAKE_BUILD_PARALLEL_LEVEL="${MAX_JOBS-}"
    for engine; do
        source=${SOURCES:+$SOURCES/$engine}
        [ -d "$source" ] || source=
        $python -m harness engines install "$engine" \
            ${CUDA:+--cuda "$CUDA"} ${source:+--source "$source"}
    done
    ;;
esac
