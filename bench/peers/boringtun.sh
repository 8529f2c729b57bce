# boringtun-cli: set up with wg(8), in the foreground and without dropping privileges; MTU 1420 as for WireGuard.
. "$(dirname "$0")/lib.sh"
for side in a b; do
  wg genkey >$side.key
  wg pubkey <$side.key >$side.pub
done
IA=bta$$ IB=btb$$
start a "$A" boringtun-cli --foreground --disable-drop-privileges $IA
start b "$B" boringtun-cli --foreground --disable-drop-privileges $IB
until_true test -S /var/run/wireguard/$IA.sock -a -S /var/run/wireguard/$IB.sock
in_ns "$A" wg set $IA private-key a.key listen-port 51820 peer "$(cat b.pub)" endpoint $UB:51820 allowed-ips 10.33.0.2/32,10.32.2.0/24
in_ns "$B" wg set $IB private-key b.key listen-port 51820 peer "$(cat a.pub)" endpoint $UA:51820 allowed-ips 10.33.0.1/32,10.32.1.0/24
in_ns "$A" ip addr add 10.33.0.1/24 dev $IA
in_ns "$B" ip addr add 10.33.0.2/24 dev $IB
in_ns "$A" ip link set $IA mtu 1420 up
in_ns "$B" ip link set $IB mtu 1420 up
in_ns "$A" ip route add 10.32.2.0/24 dev $IA
in_ns "$B" ip route add 10.32.1.0/24 dev $IB
routed_containers 1420
stands
