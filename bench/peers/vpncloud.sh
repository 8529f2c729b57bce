# vpncloud: TAP in switch mode, a shared password, the cipher that its own speed test finds fastest. Overhead at most 64 bytes.
# It ends where there is no default route, and where nobody answers its wish to have a port forwarded.
. "$(dirname "$0")/lib.sh"
in_ns "$A" ip route add default via $UB
in_ns "$B" ip route add default via $UA
start a "$A" vpncloud --device vc0 --type tap --mode switch --password bench --no-port-forwarding --listen 3210 --peer $UB:3210
start b "$B" vpncloud --device vc0 --type tap --mode switch --password bench --no-port-forwarding --listen 3210 --peer $UA:3210
until_true has_device "$A" vc0
until_true has_device "$B" vc0
bridged "$A" "$CA" 10.32.0.1/24 vc0 1400
bridged "$B" "$CB" 10.32.0.2/24 vc0 1400
stands
