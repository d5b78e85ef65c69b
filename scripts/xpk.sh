#!/usr/bin/env bash
# CLUSTER=my-cluster IMAGE=my-image TPU=v5litepod-256 scripts/xpk.sh NAME configs/mm_fundus_clip.py --workdir /mnt/shared/run [arguments]
# Starts a workload on GKE with XPK; the workdir is a volume that all pods mount. For GPUs, set DEVICE=h100-80gb-8 NODES=4 instead of TPU.
set -euo pipefail
name=$1; shift
if [ -n "${DEVICE:-}" ]; then
  kind=(--device-type "$DEVICE" --num-nodes "${NODES:-1}")
else
  kind=(--tpu-type "${TPU:?set TPU=v5litepod-256, or DEVICE and NODES}" --num-slices "${SLICES:-1}")
fi
command="python3 launch.py train"
for word in "$@"; do command+=" '${word//\'/\'\\\'\'}'"; done  # any shell reads this, in any locale
exec xpk workload create --cluster "${CLUSTER:?}" --workload "$name" --docker-image "${IMAGE:?}" "${kind[@]}" \
  --command "$command"
