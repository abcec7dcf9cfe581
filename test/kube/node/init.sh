#!/usr/bin/env bash
# Process 1 of a node: makes its namespaces look like a machine of its own and
# runs containerd, kubelet and kube-proxy there. When it dies, all of the node
# dies with it.
#
# NODE is its name, DIR its directory (its disk, so to speak), BINARIES where
# Kubernetes is, CGROUP a name for control groups. It begins when a line
# arrives on standard input: eth0 is there by then.
set -euo pipefail
read -r _
exec </dev/null

# A control group in every hierarchy, which is to be the root of what the node
# sees of it.
if [ "${1:-}" != joined ]; then
  while read -r hierarchy; do
    for group in "$hierarchy/$CGROUP" "$hierarchy/$CGROUP/$NODE"; do
      mkdir -p "$group"
      # Of the old hierarchies this one takes nobody in before it has these.
      for setting in cpuset.cpus cpuset.mems; do
        [ ! -e "$group/cgroup.clone_children" ] || [ ! -e "$group/$setting" ] || cat "$hierarchy/$setting" >"$group/$setting"
      done
    done
    if [ -e "$hierarchy/$CGROUP/cgroup.subtree_control" ]; then
      for controller in $(cat "$hierarchy/$CGROUP/cgroup.controllers"); do
        echo "+$controller" >"$hierarchy/$CGROUP/cgroup.subtree_control"
      done
    fi
    echo 0 >"$hierarchy/$CGROUP/$NODE/cgroup.procs"
  done <"$DIR/hierarchies"
  exec unshare --cgroup bash "$0" joined < <(echo)
fi

hostname "$NODE"

# The machine's files with a layer of the node's own on top: whatever is
# written stays here, and is here again after a reboot.
root=$DIR/root
mkdir -p "$root" "$DIR"/{upper,work,containerd,kubelet}
mount --make-rprivate /
mount -t overlay -o "lowerdir=/,upperdir=$DIR/upper,workdir=$DIR/work" overlay "$root"
mount --rbind /dev "$root/dev"
mount -t proc proc "$root/proc"
mount -t sysfs sysfs "$root/sys"
mount -t tmpfs -o mode=755 tmpfs "$root/run"
mount -t tmpfs tmpfs "$root/tmp"

cgroups=$root/sys/fs/cgroup
if [ -e /sys/fs/cgroup/cgroup.procs ]; then
  mount -t cgroup2 cgroup2 "$cgroups"
  # A group that hands controllers on may have no process itself.
  mkdir -p "$cgroups/init"
  echo 0 >"$cgroups/init/cgroup.procs"
  for controller in $(cat "$cgroups/cgroup.controllers"); do
    echo "+$controller" >"$cgroups/cgroup.subtree_control"
  done
else
  mount -t tmpfs -o mode=755 tmpfs "$cgroups"
  for path in /sys/fs/cgroup/*; do
    name=${path##*/}
    if [ -L "$path" ]; then
      cp -P "$path" "$cgroups/"
      continue
    fi
    mkdir "$cgroups/$name"
    case $name in
      unified) mount -t cgroup2 cgroup2 "$cgroups/$name" ;;
      systemd) mount -t cgroup -o none,name=systemd cgroup "$cgroups/$name" ;;
      *) mount -t cgroup -o "$name" cgroup "$cgroups/$name" ;;
    esac
  done
fi

# What lies below an overlay cannot be on one, and some of it is large.
mkdir -p "$root"/{node,kubernetes,run/netns,run/containerd,var/lib/containerd,var/lib/kubelet,etc/cni/net.d,opt/cni/bin}
mount --bind "$DIR" "$root/node"
mount --bind "$BINARIES" "$root/kubernetes"
mount --bind "$DIR/containerd" "$root/var/lib/containerd"
mount --bind "$DIR/kubelet" "$root/var/lib/kubelet"
cd "$root"
pivot_root . .
umount -l .
cd /
mount --make-rshared /

# The kubelet sets these for the whole kernel if they are not as it likes:
# it sees them as it likes.
for setting in vm/overcommit_memory=1 kernel/panic=10 kernel/panic_on_oops=1; do
  file=/run/$(basename "${setting%=*}")
  echo "${setting#*=}" >"$file"
  mount --bind "$file" "/proc/sys/${setting%=*}"
done
for setting in ipv4/ip_forward ipv6/conf/all/forwarding; do
  echo 1 >/proc/sys/net/$setting
done
ip -batch /node/network
cp -n /usr/lib/cni/* /opt/cni/bin/
# Only at the first boot: what others have made of it since is theirs.
[ -e /etc/cni/net.d/.made ] || cp /node/podnet.conflist /etc/cni/net.d/10-podnet.conflist
touch /etc/cni/net.d/.made

# keep NAME COMMAND [ARGUMENT...]: again when it has ended, as on a machine.
keep() {
  local log=/node/$1.log
  shift
  while true; do
    "$@" >>"$log" 2>&1 || echo "ended with code $?" >>"$log"
    sleep 1
  done
}
keep containerd containerd --config /node/containerd.toml &
until ctr version >/dev/null 2>&1; do sleep 0.1; done
keep kubelet /kubernetes/kubernetes kubelet --config=/node/kubelet.yaml --kubeconfig=/node/kubelet.kubeconfig \
  --hostname-override="$NODE" --node-ip="$ADDRESSES" &
keep kube-proxy /kubernetes/kubernetes kube-proxy --kubeconfig=/node/kube-proxy.kubeconfig --hostname-override="$NODE" \
  --proxy-mode=iptables --iptables-min-sync-period=100ms --cluster-cidr="$POD_CIDRS" --oom-score-adj=0 \
  --conntrack-max-per-core=0 --conntrack-min=0 --conntrack-tcp-timeout-established=0s \
  --conntrack-tcp-timeout-close-wait=0s &
wait # for ever; and meanwhile bash reaps what others have left
