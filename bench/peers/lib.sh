# What all set-ups share; sourced by them. Arguments of each: the two hosts' network namespaces and the two
# containers', as paths. The hosts are joined by eth0, 10.99.0.1 and 10.99.0.2. It runs in a directory of its own.
#
# When the set-up stands it makes the file `ready` and waits; when it ends, its daemons do.
set -euo pipefail
A=$1 B=$2 CA=$3 CB=$4
UA=10.99.0.1 UB=10.99.0.2
daemons=()
umask 077
trap 'kill "${daemons[@]}" 2>/dev/null || true; wait || true' EXIT
trap 'exit 0' TERM INT

in_ns() { nsenter --net="$1" "${@:2}"; }

# A daemon in a namespace: start NAME NAMESPACE COMMAND...; nsenter becomes the command, so that $! is its process.
start() {
  nsenter --net="$2" "${@:3}" >"$1.log" 2>&1 </dev/null &
  daemons+=($!)
}

# until_true COMMAND...: tries for ten seconds.
until_true() {
  for _ in $(seq 200); do
    if "$@" >/dev/null 2>&1; then return; fi
    sleep 0.05
  done
  echo "waited in vain for: $*" >&2
  exit 1
}

has_device() { in_ns "$1" ip link show "$2"; }

# bridged HOST CONTAINER ADDRESS/LENGTH DEVICE MTU
bridged() {
  in_ns "$1" ip link add br0 type bridge stp_state 0 forward_delay 0
  in_ns "$1" ip link add ct mtu "$5" type veth peer name eth0 netns "$2" mtu "$5"
  for device in ct "$4"; do
    in_ns "$1" ip link set "$device" mtu "$5" master br0 up
  done
  in_ns "$1" ip link set br0 mtu "$5" up
  in_ns "$2" ip addr add "$3" dev eth0
  in_ns "$2" ip link set eth0 up
}

# routed HOST CONTAINER ADDRESS/LENGTH GATEWAY/LENGTH MTU
routed() {
  in_ns "$1" sh -c 'echo 1 >/proc/sys/net/ipv4/ip_forward'
  in_ns "$1" ip link add ct mtu "$5" type veth peer name eth0 netns "$2" mtu "$5"
  in_ns "$1" ip addr add "$4" dev ct
  in_ns "$1" ip link set ct up
  in_ns "$2" ip addr add "$3" dev eth0
  in_ns "$2" ip link set eth0 up
  in_ns "$2" ip route add default via "${4%/*}"
}

# Containers behind their hosts, for overlays that carry IP and not Ethernet.
routed_containers() {
  routed "$A" "$CA" 10.32.1.2/24 10.32.1.1/24 "$1"
  routed "$B" "$CB" 10.32.2.2/24 10.32.2.1/24 "$1"
}

# wireguard COMMAND...: a WireGuard in userspace, set up with wg(8). The command is given its interface's name.
wireguard() {
  for side in a b; do
    wg genkey >$side.key
    wg pubkey <$side.key >$side.pub
  done
  # The control socket is in one directory for all network namespaces: names must differ, from run to run, too.
  local ia=wga$$ ib=wgb$$
  start a "$A" "$@" $ia
  start b "$B" "$@" $ib
  until_true test -S /var/run/wireguard/$ia.sock -a -S /var/run/wireguard/$ib.sock
  in_ns "$A" wg set $ia private-key a.key listen-port 51820 peer "$(cat b.pub)" endpoint $UB:51820 allowed-ips 10.33.0.2/32,10.32.2.0/24
  in_ns "$B" wg set $ib private-key b.key listen-port 51820 peer "$(cat a.pub)" endpoint $UA:51820 allowed-ips 10.33.0.1/32,10.32.1.0/24
  in_ns "$A" ip addr add 10.33.0.1/24 dev $ia
  in_ns "$B" ip addr add 10.33.0.2/24 dev $ib
  in_ns "$A" ip link set $ia mtu 1420 up
  in_ns "$B" ip link set $ib mtu 1420 up
  in_ns "$A" ip route add 10.32.2.0/24 dev $ia
  in_ns "$B" ip route add 10.32.1.0/24 dev $ib
  routed_containers 1420
  stands
}

stands() {
  touch ready
  # Whether a signal or a daemon's end ends the wait: the others are to end, too.
  wait -n || true
}
