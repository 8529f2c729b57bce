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

stands() {
  touch ready
  # Whether a signal or a daemon's end ends the wait: the others are to end, too.
  wait -n || true
}
