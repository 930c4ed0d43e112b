#!/bin/sh
# The main job in one go: simulate a vehicle, learn its dynamics, forecast ten times beyond the training data.
# Usage: quickstart.sh [FOLDER]    (default: a fresh ./quickstart)
set -eu

if [ "$#" -gt 0 ]; then
    folder=$1
    mkdir -p -- "$folder"
elif ! mkdir quickstart 2>/dev/null; then
    folder=$(mktemp -d ./quickstart.XXXXXX) # ./quickstart is there already: leave it alone
else
    folder=quickstart
fi
cd -- "$folder"
export SNET_THREADS=1 # nothing here is large enough to share out

snet simulate vehicle -o train.h5 --trajectories 40
snet simulate vehicle -o test.h5 --trajectories 10 --seed 1 --horizon 100 --samples 500
snet fit train.h5 -o model.h5
snet evaluate model.h5 test.h5 --plot figures --require 'diverged<=0'

echo "pictures: $(pwd)/figures/plane.png (truth dotted red, forecast blue) and others beside it"
