#!/bin/sh
# The studies of docs/experiments.md, "Methods that fill a library". Run again, it goes on where it stood.
#
#   pruners.sh small FOLDER    what that page reports: two cores, hours
#   pruners.sh full FOLDER     the papers' protocols: an accelerator, days
#
# FOLDER holds cifar10.npz and cifar100.npz (x_train, y_train, x_test, y_test, classes), for `small` also
# cifar100_20.npz (the classes 80 to 99), and cifar10_resnet20.safetensors, cifar10_resnet56.safetensors.
set -eu
scale=${1:?small or full}
folder=${2:?the folder of data and weights}
out=${OUT:-runs/pruners}

bench() {
    study=$1
    shift
    fedsprig bench pruners "$study" --out "$out" --json "$out/$study-$scale.json" --bf16 --augment flip+shift "$@"
}
# Weights that saw all training pictures: what selects comes from the test split.
of_cifar10() {
    network=$1
    echo --data "$folder/cifar10.npz" --model "cifar_$network" --weights "$folder/cifar10_$network.safetensors" --held-out test
}

case $scale in
small)
    # shellcheck disable=SC2046
    bench policies $(of_cifar10 resnet20) --threads 1 --pictures 5000 --validation-pictures 3000 --test-pictures 7000 \
        --epochs 1 --learning-rate 0.01
    # shellcheck disable=SC2046
    bench sparsity $(of_cifar10 resnet20) --threads 1 --seeds 3 --pictures 5000 --validation-pictures 2000 --test-pictures 8000 \
        --epochs 6 --learning-rate 0.02 --only cubic
    bench prompts --data "$folder/cifar100_20.npz" --model cifar_resnet20 --weights "$folder/cifar10_resnet20.safetensors" \
        --threads 1 --seeds 3 --pictures 8000 --validation-pictures 1000 --test-pictures 2000 --whole-epochs 10 --epochs 6 \
        --learning-rate 0.02 --only "25% of MACs"
    # shellcheck disable=SC2046
    bench aap $(of_cifar10 resnet56) --threads 1 --pictures 20000 --validation-pictures 5000 --test-pictures 5000 \
        --epochs 2 --learning-rate 0.02 --only "parameters, one point, streams whole"
    ;;
full)
    # shellcheck disable=SC2046
    bench aap $(of_cifar10 resnet56) --device cuda --pictures 50000 --validation-pictures 5000 --test-pictures 5000 \
        --epochs 182 --batch-size 128 --learning-rate 0.1 --milestones 91,136
    # shellcheck disable=SC2046
    bench sparsity $(of_cifar10 resnet20) --device cuda --seeds 3 --pictures 50000 --validation-pictures 5000 \
        --test-pictures 5000 --epochs 100 --batch-size 128 --learning-rate 0.1
    bench prompts --data "$folder/cifar100.npz" --model cifar_resnet20 --weights "$folder/cifar10_resnet20.safetensors" \
        --device cuda --seeds 3 --pictures 45000 --validation-pictures 5000 --test-pictures 10000 --whole-epochs 100 \
        --epochs 60 --learning-rate 0.05
    ;;
*)
    echo "pruners.sh: write small or full, not $scale" >&2
    exit 2
    ;;
esac
