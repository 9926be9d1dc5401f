#!/bin/sh
# The study of docs/experiments.md, "What a new task gets from the library". Run again, it goes on where it stood.
#
#   one_shot_accuracy.sh FOLDER
#
# FOLDER holds cifar100.npz, cifar10.npz (x_train, y_train, x_test, y_test, classes), tiny.npz, steel.npz (x_all, y_all, classes), and the bases prepared
# on the operator's pictures by `fedsprig base prepare --library ...`: nested_sprig20.safetensors and nested_lite0.safetensors. About ten hours on two cores.
set -eu
folder=${1:?the folder of data and weights}
out=${OUT:-runs/one-shot-accuracy}
scenario=$(dirname "$0")/../scenarios/heterogeneous.toml
mkdir -p "$out"

# bench NAME ARMS... -- OPTIONS...
bench() {
    name=$1
    shift
    arms=
    while [ "$1" != -- ]; do
        arms="$arms --arm '$1'"
        shift
    done
    shift
    eval fedsprig bench one-shot-accuracy '"$scenario"' --data "cifar100='$folder/cifar100.npz'" --data "cifar10='$folder/cifar10.npz'" \
        --data "tiny='$folder/tiny.npz'" --data "steel='$folder/steel.npz'" --out "'$out'" --threads 1 \
        --json "'$out/$name.json'" --figure "'$out/$name.svg'" "$arms" '"$@"'
}

sprig() {
    name=$1
    shift
    bench "sprig20-$name" "$@" --bf16 --prepared "$folder/nested_sprig20.safetensors"
}

lite() {
    name=$1
    shift
    bench "lite0-$name" "$@" --trains weights --model efficientnet_lite0 --weights imagenet --image-size 64 --prepared "$folder/nested_lite0.safetensors"
}

for base in sprig lite; do
    $base main random magnitude mean ridge 'own taylor' prepared uncut --
    $base third prepared 'own taylor' -- --steps 17 --seeds 1
    $base five mean ridge 'own taylor' prepared -- --pictures 5 --seeds 1
    $base tenth random mean 'own taylor' prepared -- --macs 0.1 --seeds 1
    $base half random mean 'own taylor' prepared -- --macs 0.5 --seeds 1
    $base iterative iterative -- --seeds 1 --tasks 10
    $base growth 'mean, 5 entries' 'ridge, 5 entries' 'mean, 20 entries' 'ridge, 20 entries' mean ridge -- --seeds 1 --tasks 12
    $base healed prepared 'whole start' -- --seeds 1 --tasks 12
done
