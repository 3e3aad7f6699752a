#!/usr/bin/env bash
# One training on two "machines": two network namespaces that torchrun's rendezvous connects, each with its own
# copy of the data at the same path, and no other in sight (mount namespaces). Needs root, ip and unshare.
#     benchmarks/two_machines.sh TRAIN_JSON [KEY=VALUE ...]
# TRAIN_JSON lies in the data folder; the paths in it are relative. Run folders are /tmp/fcos-data/run of each.
set -euo pipefail
config=$(realpath "$1"); shift
[[ $(id -u) == 0 ]] && unshare -mn true || { echo "namespaces are not permitted here"; exit 77; }
work=$(mktemp -d)
clean() {
    for i in 1 2; do ip netns del "fcos$i" 2>/dev/null || true; done
    rm -rf "$work"
}
trap clean EXIT
mkdir -p /tmp/fcos-data
for i in 1 2; do
    cp -r "$(dirname "$config")" "$work/data$i"
    ip netns add "fcos$i"
    ip -n "fcos$i" link set lo up
done
ip link add fcosA netns fcos1 type veth peer name fcosB netns fcos2
ip -n fcos1 addr add 10.77.0.1/24 dev fcosA; ip -n fcos1 link set fcosA up
ip -n fcos2 addr add 10.77.0.2/24 dev fcosB; ip -n fcos2 link set fcosB up

machine() {  # number, network device, words
    local number=$1 device=$2; shift 2
    ip netns exec "fcos$number" unshare -m bash -c '
        mount --bind "$0" /tmp/fcos-data
        mount -t tmpfs none "$1"; mount -t tmpfs none "$2"  # the copy of the other machine, and the original
        cd /tmp/fcos-data; exec "${@:3}"' \
        "$work/data$number" "$work" "$(dirname "$config")" \
        env GLOO_SOCKET_IFNAME="$device" OMP_NUM_THREADS=1 python -m torch.distributed.run \
        --nnodes 2 --nproc-per-node 1 --rdzv-id fcos --rdzv-backend c10d \
        --rdzv-endpoint 10.77.0.1:29511 --rdzv-conf "is_host=$((number == 1))" --local-addr "10.77.0.$number" \
        -m fcos train "/tmp/fcos-data/$(basename "$config")" run_folder=/tmp/fcos-data/run "$@"
}
machine 1 fcosA "$@" & first=$!
machine 2 fcosB "$@" & second=$!
wait $first
wait $second
cat "$work/data1/run/metrics.jsonl"
if [[ -e $work/data2/run/metrics.jsonl ]]; then echo "the second machine wrote a run folder" >&2; exit 1; fi
