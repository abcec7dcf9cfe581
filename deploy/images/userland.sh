#!/bin/sh
# userland.sh DIR copies into DIR what tacit-agent runs beside itself: iptables
# with both backends and its extensions, nft, and the libraries that these load.
# There is no shell in it. It needs Debian's or Ubuntu's packages iptables and
# nftables.
set -eu
umask 022
[ $# = 1 ] || { echo "usage: $0 DIR" >&2; exit 1; }
dir=$1

# add FILE...: below the directory that it really is in, as /lib and /sbin are
# links into /usr; those are made at the end.
add() {
  for file; do
    target=$dir$(realpath "$(dirname "$file")")
    mkdir -p "$target"
    cp --dereference "$file" "$target/"
  done
}

for program in xtables-nft-multi xtables-legacy-multi nft; do
  path=$(command -v "$program" || echo "/usr/sbin/$program")
  [ -x "$path" ] || { echo "$0: $program is missing: install the packages iptables and nftables" >&2; exit 1; }
  add "$path"
done
for extensions in /usr/lib/*/xtables; do
  add "$extensions"/libxt_*.so "$extensions"/libipt_*.so "$extensions"/libip6t_*.so
done
# Each line of ldd that names a file: "NAME => FILE (ADDRESS)" or, for the
# loader, "FILE (ADDRESS)".
# shellcheck disable=SC2046
add $(ldd "$dir"/usr/sbin/* "$dir"/usr/lib/*/xtables/*.so | sed -n 's|^.*[[:space:]]\(/[^ ]*\) (0x.*|\1|p' | sort -u)

for family in iptables ip6tables; do
  for verb in "" -save -restore; do
    ln -sf xtables-nft-multi "$dir/usr/sbin/$family-nft$verb"
    ln -sf xtables-legacy-multi "$dir/usr/sbin/$family-legacy$verb"
    ln -sf xtables-nft-multi "$dir/usr/sbin/$family$verb"
  done
done
mkdir -p "$dir/usr/lib64" "$dir/usr/lib" "$dir/usr/sbin"
for link in lib lib64 sbin; do
  ln -sfn "usr/$link" "$dir/$link"
done
