#!/usr/bin/env bash
# The layers of an image as laboratories have them, from Debian's and PyPI's packages, as layer-1.tar to layer-5.tar.
#
#   layers.sh FOLDER
#
# A base, programs, Python, its numeric packages, TensorFlow; the last layer takes manual pages away. Packages are kept in
# FOLDER/packages; what is there is not fetched or made again. Needs mmdebstrap (as root, or with unprivileged user namespaces) and pip.
set -euo pipefail
folder=$(realpath -m "${1:?usage: layers.sh FOLDER}")
[ -e "$folder/whole" ] && exit 0
packages=$folder/packages
mkdir -p "$packages/debs" "$packages/wheels"

numeric=(numpy==1.26.4 scipy==1.11.4 pandas==2.1.4 scikit-learn==1.3.2 matplotlib==3.8.4 pysam==0.22.1 biopython==1.83)
learning=(tensorflow-cpu==2.15.1)
if [ ! -e "$packages/wheels/whole" ]; then
  pip download --quiet --only-binary :all: --python-version 3.11 --implementation cp \
    --platform manylinux2014_x86_64 --platform manylinux_2_17_x86_64 --platform manylinux_2_28_x86_64 \
    --dest "$packages/wheels" "${numeric[@]}" "${learning[@]}"
  touch "$packages/wheels/whole"
fi

# What has changed since the layer before; what lies below the mount points and apt's own files are no part of an image.
cat >"$folder/layer" <<'HOOK'
set -eu
cd "$2"
apt() { chroot . env DEBIAN_FRONTEND=noninteractive apt-get -qq -o Dpkg::Use-Pty=0 install --yes --no-install-recommends "$@" >/dev/null; }
since="-cnewer $1/layer.stamp"
case $3 in
  1) since= ;;
  2) apt samtools bcftools bwa bedtools tabix perl git curl openjdk-17-jre-headless ;;
  3) apt python3-minimal python3-pip libopenblas0 hdf5-tools gnuplot-nox ;;
  4|5)
    cp -r "$1/packages/wheels" wheels
    [ "$3" = 4 ] && wanted=$4 || wanted=$5
    chroot . python3 -m pip install --quiet --root-user-action ignore --break-system-packages --no-index --no-cache-dir --find-links /wheels $wanted
    rm -r wheels
    ;;
esac
if [ "$3" = 5 ]; then
  rm -rf usr/share/man
  touch usr/share/.wh.man
fi
find . -xdev \( -path ./dev -o -path ./proc -o -path ./sys -o -path ./tmp -o -path ./var/cache/apt -o -path ./var/lib/apt/lists \) -prune \
  -o ! -path . $since -printf '%P\0' |
  LC_ALL=C sort -z | tar --create --file "$1/layer-$3.tar" --numeric-owner --no-recursion --null --files-from -
sleep 1 # as fine as the file system's times may be
touch "$1/layer.stamp"
HOOK

hooks=()
for number in 1 2 3 4 5; do
  hooks+=(--customize-hook="sh '$folder/layer' '$folder' \"\$1\" $number '${numeric[*]}' '${learning[*]} ${numeric[0]}'")
done
mmdebstrap --quiet --variant=minbase --include=ca-certificates --skip=cleanup/apt,download/empty \
  --aptopt='Acquire::Check-Valid-Until "false"' --aptopt='Acquire::Check-Date "false"' --aptopt='APT::Keep-Downloaded-Packages "true"' \
  --setup-hook="mkdir -p \"\$1/var/cache/apt/archives\"; cp -r '$packages/debs/.' \"\$1/var/cache/apt/archives/\"" \
  "${hooks[@]}" \
  --customize-hook="cp -n \"\$1\"/var/cache/apt/archives/*.deb '$packages/debs/'" \
  --format=null bookworm
rm "$folder/layer" "$folder/layer.stamp"
touch "$folder/whole"
