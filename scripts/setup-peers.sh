#!/usr/bin/env bash
# Installs the real peers that the tests talk to: DICOM toolkits and archives,
# PostgreSQL, PyTorch. Without them those tests skip, saying so.
set -eu
packages="dcmtk orthanc orthanc-dicomweb dicom3tools libgdcm-tools python3-pydicom python3-numpy python3-pil python3-torch python3-onnx postgresql util-linux"
if ! command -v apt-get >/dev/null; then
  echo "setup-peers: no apt-get here; install the equivalents of: $packages" >&2
  exit 0
fi
missing=""
for package in $packages; do
  dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'install ok installed' || missing="$missing $package"
done
if [ -z "$missing" ]; then
  echo "setup-peers: all present"
  exit 0
fi
as_root=""
if [ "$(id -u)" != 0 ]; then as_root="sudo"; fi
$as_root apt-get update -q
# shellcheck disable=SC2086 # a list of names on purpose
DEBIAN_FRONTEND=noninteractive $as_root apt-get install -y -q --no-install-recommends $missing
