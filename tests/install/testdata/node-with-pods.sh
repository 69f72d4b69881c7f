#!/bin/sh
# Builds what a running node leaves on a machine, beside things of a neighbour, runs atoll-killall.sh, and prints what is left.
set -eu
pod=aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa
bundle=/run/atoll/containerd/io.containerd.runtime.v2.task/k8s.io/$pod

mount -t tmpfs tmpfs /run
mkdir -p "$bundle/rootfs" /run/netns /var/lib/kubelet "/var/lib/other" /cgroups/atoll-install-test/$pod
# A real disk that /etc/fstab mounts is nobody's to unmount.
mount -t tmpfs tmpfs /var/lib/kubelet
mount -t tmpfs tmpfs /var/lib/other -o exec
cp /usr/local/bin/atoll /var/lib/other/containerd-shim-runc-v2
mkdir -p "/var/lib/kubelet/pods/1/volumes/a b"
mount -t tmpfs tmpfs "/var/lib/kubelet/pods/1/volumes/a b"
mount -t tmpfs tmpfs "$bundle/rootfs"
for n in pod neighbour; do
    : >/run/netns/cni-$n
    mount --bind /proc/self/ns/net /run/netns/cni-$n
done
printf '{"namespaces":[{"type":"network","path":"/var/run/netns/cni-pod"}]}' >"$bundle/config.json"
mkdir -p /var
[ -e /var/run ] || ln -s /run /var/run

ip link set lo up
ip link add flannel.1 type bridge
ip link add atoll-vip type bridge
ip link add eth-neighbour type bridge
ip link set eth-neighbour up
ip route add 10.42.3.0/24 dev eth-neighbour
ip route add 10.43.9.0/24 dev eth-neighbour
nft -f - <<RULES
add table ip kube-proxy
add table ip6 kube-proxy
add table inet atoll-policy
add table inet neighbour
add table ip cni_hostport
add chain ip cni_hostport hostports
add rule ip cni_hostport hostports tcp dport 80 dnat to 10.42.0.5:80 comment "$pod"
add rule ip cni_hostport hostports tcp dport 81 dnat to 10.42.0.6:80 comment "neighbour-0000000000000000"
RULES

/var/lib/atoll/data/0123/bin/containerd-shim-runc-v2 -namespace &
/var/lib/other/containerd-shim-runc-v2 sleep &
/usr/local/bin/atoll containerd &
/usr/local/bin/atoll sleep &
sh -c "echo \$\$ >/cgroups/atoll-install-test/$pod/cgroup.procs; exec /bin/pod-process sleep" &
while ! grep -q . /cgroups/atoll-install-test/$pod/cgroup.procs; do :; done

/usr/local/bin/atoll-killall.sh

echo "=== after"
for p in /proc/[0-9]*; do
    case $(readlink "$p/exe") in
    */atoll | */pod-process | */containerd-shim-runc-v2) [ ! -r "$p/cmdline" ] || echo "process $(tr '\0' ' ' <"$p/cmdline")" ;;
    esac
done
sed 's/^/x /' /proc/self/mounts | cut -d' ' -f3 | grep -E '^/(run/|var/lib/)' | sed 's/^/mount /'
for l in /sys/class/net/*; do [ "${l##*/}" = lo ] || echo "link ${l##*/}"; done
ip route | grep ^10 | cut -d' ' -f1 | sed 's/^/route /'
nft list tables
nft list table ip cni_hostport | sed -n 's/.*comment "\(.*\)".*/rule \1/p'
rmdir /cgroups/atoll-install-test/$pod /cgroups/atoll-install-test
